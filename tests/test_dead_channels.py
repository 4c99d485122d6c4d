"""Channels that a rectifier holds at zero: counted, revived without changing what a network computes, trained again."""

import pytest
import torch

from restoration_env.benchmarks.dead_channels import dead_channels, is_plain, revive, widen
from restoration_env.benchmarks.networks import ConvolutionStack, build_network
from restoration_env.benchmarks.train_single import SingleConfig, train_single
from restoration_env.cli import main
from restoration_env.errors import InvalidArgument
from restoration_env.files import read_weights, save_weights
from restoration_env.images import load_images


@pytest.fixture(scope="module")
def photos():
    return load_images("bundled", "train"), load_images("bundled", "validation")


def convolutions(network):
    return [network.head, *(module for module in network.inner if isinstance(module, torch.nn.Conv2d)), network.tail]


def kill(network, *channels):
    """Hold these channels, pairs of layer and number, below their rectifiers."""
    with torch.no_grad():
        for layer, channel in channels:
            convolutions(network)[layer].bias[channel] = -1e3
    return network


def stack(*channels):
    torch.manual_seed(0)
    network = ConvolutionStack(5, 6)
    torch.nn.init.normal_(network.tail.weight, std=0.1)
    return kill(network, *channels)


def looks(number=8):
    return torch.rand(number, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def test_dead_channels_are_counted_in_their_layers():
    assert dead_channels(stack(), looks()) == [0, 0, 0, 0]
    assert dead_channels(stack((1, 0), (1, 4), (3, 2)), looks()) == [0, 2, 0, 1]


@pytest.mark.parametrize(
    "channels", [[(0, 3)], [(1, 0), (1, 4), (2, 4), (3, 2)], [(2, channel) for channel in range(6)], []]
)
def test_revived_channels_live_and_the_network_computes_what_it_did(channels):
    network = stack(*channels)
    before, dead = network(looks()), sum(dead_channels(network, looks()))
    assert dead >= len(channels)  # a layer after one that is dead altogether may be dead as well
    assert revive(network, looks(), torch.Generator().manual_seed(2)) == dead
    torch.testing.assert_close(network(looks()), before)
    assert dead_channels(network, looks(32)) == [0, 0, 0, 0]
    assert not revive(network, looks(), torch.Generator())


def test_training_uses_a_revived_channel_again():
    network = stack((1, 0))
    own, outgoing = convolutions(network)[1].weight, convolutions(network)[2].weight

    def gradients():
        network.zero_grad()
        (network(looks()) - 0.5).square().mean().backward()
        return own.grad[0].abs().sum(), outgoing.grad[:, 0].abs().sum()

    assert gradients() == (0, 0)
    revive(network, looks(), torch.Generator())
    assert gradients()[1] > 0  # what it is used for is learned first, because that is zero
    with torch.no_grad():
        outgoing -= 1e-2 * outgoing.grad
    assert gradients()[0] > 0


def test_new_weights_depend_on_the_generator_alone():
    networks = [stack((1, 0)), stack((1, 0)), stack((1, 0))]
    for seed, network in zip((3, 3, 4), networks, strict=True):
        revive(network, looks(), torch.Generator().manual_seed(seed))
    first, again, other = (convolutions(network)[1].weight[0] for network in networks)
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_only_stacks_without_normalisation_are_looked_into():
    plain = [name for name in ("dncnn", "vdsr", "vdsr-s", "equal-parameters") if is_plain(build_network(name))]
    assert plain == ["vdsr", "vdsr-s"]
    for name in ("dncnn", "equal-parameters", "equal-multiply-adds"):
        with pytest.raises(InvalidArgument, match="revive must be left out for every network but vdsr and vdsr-s"):
            SingleConfig(name, revive=True)


def test_a_wider_network_begins_as_a_narrower_one():
    narrow, wide = stack(), ConvolutionStack(5, 9)
    torch.nn.init.normal_(wide.tail.weight)
    widen(wide, narrow.state_dict())
    torch.testing.assert_close(wide(looks()), narrow(looks()))
    assert dead_channels(wide, looks()) == [3, 3, 3, 3]
    assert revive(wide, looks(), torch.Generator()) == 12
    torch.testing.assert_close(wide(looks()), narrow(looks()))
    for other in (ConvolutionStack(5, 10), ConvolutionStack(4, 6), ConvolutionStack(5, 6, normalise=True)):
        before = {name: value.clone() for name, value in wide.state_dict().items()}
        with pytest.raises(InvalidArgument, match="start must be weights of a network of as many layers"):
            widen(wide, other.state_dict())
        assert all(torch.equal(value, before[name]) for name, value in wide.state_dict().items())


SMALL = {"batch": 2, "patch": 16, "validation_images": 2, "evaluate_every": 2, "iterations": 4}


@pytest.fixture(scope="module")
def lame(tmp_path_factory):
    """Weights of a network of which two channels are dead."""
    torch.manual_seed(0)
    network = kill(build_network("vdsr-s"), (5, 0), (6, 7))
    torch.nn.init.normal_(network.tail.weight, std=1e-3)
    path = tmp_path_factory.mktemp("lame") / "vdsr-s.safetensors"
    card = {"network": "vdsr-s", "multiply_adds_per_pixel": network.cost, "patches_seen": 10, "seconds": 1.0}
    save_weights(path, network.state_dict(), card)
    return path


def test_training_on_revives_what_is_dead_and_the_card_counts_it(photos, lame, tmp_path):
    many = {**SMALL, "patch": 32, "validation_images": 4}
    card = train_single(SingleConfig("vdsr-s", **many), *photos, tmp_path / "as it is", start=lame)
    assert card["revived_channels"] == 0 and card["dead_channels"] >= 2
    first, dead = card["history"][0], card["dead_channels"]
    card = train_single(SingleConfig("vdsr-s", revive=True, **many), *photos, tmp_path / "revived", start=lame)
    assert card["revived_channels"] >= 2 and card["dead_channels"] <= dead - 2
    assert card["history"][0] == pytest.approx(first, abs=1e-3)  # the same network before the first step
    assert "dead_channels" not in train_single(SingleConfig("dncnn", **SMALL), *photos, tmp_path)


def test_vdsr_may_begin_as_vdsr_s_where_dead_channels_are_revived(photos, lame, tmp_path):
    settings = {**SMALL, "iterations": 1, "learning_rate": 0.0}
    card = train_single(SingleConfig("vdsr", revive=True, **settings), *photos, tmp_path / "grown", start=lame)
    as_it_is = train_single(SingleConfig("vdsr-s", **settings), *photos, tmp_path / "as it is", start=lame)
    assert card["history"][0] == pytest.approx(as_it_is["history"][0], abs=1e-3)
    assert card["revived_channels"] >= 2 + 19 * (64 - 36) and card["patches_seen"] == 12
    assert card["started_from"]["sha256"] == as_it_is["started_from"]["sha256"]
    with pytest.raises(InvalidArgument, match="start must be weights of vdsr of"):
        train_single(SingleConfig("vdsr", **settings), *photos, tmp_path / "not", start=lame)


def test_a_killed_run_of_a_revived_network_ends_as_an_uninterrupted_one(photos, lame, tmp_path):
    class Killed(Exception):
        pass

    def stop(progress):
        if progress.iteration == 3:
            raise Killed

    config = SingleConfig("vdsr-s", revive=True, **SMALL)
    whole = train_single(config, *photos, tmp_path / "whole", start=lame)
    with pytest.raises(Killed):
        train_single(config, *photos, tmp_path / "parts", start=lame, checkpoint_seconds=0.0, report=stop)
    parts = train_single(config, *photos, tmp_path / "parts", start=lame)
    assert parts["history"] == whole["history"] and parts["revived_channels"] >= 2
    first, second = (read_weights(tmp_path / name / "vdsr-s.safetensors")[0] for name in ("whole", "parts"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_command_revives_and_says_so_in_the_card(lame, tmp_path, monkeypatch, capsys):
    seen = {}

    def finished(config, *pools, card, **settings):
        seen.update(card, revive=config.revive)
        return {"trained_enough": "no", "validation_gain_db": 0.0, "patches_seen": 0}

    options = ["train", "single", "vdsr-s", "--batch", "2", "--out", str(tmp_path), "--revive"]
    with pytest.raises(SystemExit) as end:
        main(options)
    assert end.value.code == 2
    assert "revive must be used with weights to start from" in " ".join(capsys.readouterr().err.split())
    monkeypatch.setattr("restoration_env.benchmarks.commands_single.train_single", finished)
    with pytest.raises(SystemExit) as end:
        main([*options, "--start", str(lame)])
    assert end.value.code == 0 and seen["revive"]
    assert seen["command"].endswith("--start vdsr-s.safetensors --batch 2 --revive")
