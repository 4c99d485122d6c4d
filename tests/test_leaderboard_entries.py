"""What toolchains are held against: single networks and their training, the published OWAN, classical chains."""

import json
import math

import pytest
import torch
from torch import nn

from restoration_env.agents.agent import load_agent, save_agent
from restoration_env.benchmarks.classical_entries import CHAINS
from restoration_env.benchmarks.comparison import evaluate
from restoration_env.benchmarks.entries import Sources, entry_names, load_entry
from restoration_env.benchmarks.networks import (
    MEAN_TOOLCHAIN,
    NETWORKS,
    SingleTool,
    build_network,
    equal_multiply_adds,
    load_single,
)
from restoration_env.benchmarks.owan import OWAN, load_owan
from restoration_env.benchmarks.readme import ROOT
from restoration_env.benchmarks.suites import patch_suite
from restoration_env.benchmarks.train_single import SingleConfig, _Run, converged, train_single, training_patches
from restoration_env.distortions import recipe
from restoration_env.errors import InvalidArgument, TrainingDiverged
from restoration_env.files import load_checkpoint, read_weights, save_weights
from restoration_env.images import load_images
from restoration_env.metrics import psnr
from restoration_env.toolbox import Tool
from restoration_env.tools.networks import GateUNet

WEIGHTS = ROOT.parent / "shared" / "peers" / "owan" / "model_best.pth"
needs_owan = pytest.mark.skipif(not WEIGHTS.is_file(), reason="the authors' weights are not on this machine")


@pytest.fixture(scope="module")
def photos():
    return load_images("bundled", "train"), load_images("bundled", "validation")


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


# Published: RL-Restore's comparison, and for the single network of a toolbox's size the re-implementation that has it.
@pytest.mark.parametrize(
    ("name", "ours", "published"),
    [
        ("dncnn", 669_379, 669_000),
        ("vdsr", 668_227, 665_000),
        ("vdsr-s", 212_583, 209_000),
        ("equal-parameters", 446_659, 448_000),
    ],
)
def test_networks_have_the_published_sizes(name, ours, published):
    assert parameters(build_network(name)) == ours == pytest.approx(published, rel=0.04)


@pytest.mark.parametrize("name", sorted(set(NETWORKS) - {"equal-multiply-adds"}))  # that one: tests/test_tools.py
def test_the_cost_counts_every_multiplication_and_the_halo_is_how_far_a_pixel_reaches(name):
    network = build_network(name)
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    assert sum(conv.weight.numel() for conv in convolutions) == network.cost
    assert sum(conv.kernel_size[0] // 2 for conv in convolutions) == network.halo


@pytest.mark.parametrize("name", NETWORKS)
def test_a_fresh_network_is_the_identity_and_learns(name):
    torch.manual_seed(0)
    network, image = build_network(name), torch.rand(2, 3, 12, 16)
    assert torch.equal(network(image), image)
    optimizer = torch.optim.SGD(network.parameters(), 1e-2)
    for _ in range(3):  # layer after layer leaves its gentle start
        optimizer.zero_grad()
        (network(image) - 0.9 * image).square().mean().backward()
        optimizer.step()
    assert all(parameter.grad.abs().sum() > 0 for parameter in network.parameters())
    assert not torch.equal(network(image), image)


def test_the_network_of_a_given_cost_comes_nearest_to_it():
    assert build_network("equal-multiply-adds").cost == pytest.approx(MEAN_TOOLCHAIN, rel=0.04)
    for budget in (5_000, 30_000, 61_234.5, 200_000):
        found = equal_multiply_adds(budget)
        width = found.head.out_channels
        others = [GateUNet(other, 2 * other, (2, 6, 3)).cost for other in (width - 4, width + 4) if other]
        assert all(abs(found.cost - budget) <= abs(other - budget) for other in others)
        assert build_network("equal-multiply-adds", budget).cost == found.cost


def test_unknown_networks_and_costs_of_others_are_refused():
    with pytest.raises(InvalidArgument, match="vdsr-s"):
        build_network("resnet")
    with pytest.raises(InvalidArgument, match="multiply_adds"):
        build_network("vdsr", 10_000)
    with pytest.raises(InvalidArgument, match="multiply_adds must be at least"):
        equal_multiply_adds(math.nan)
    with pytest.raises(InvalidArgument, match="severity"):
        SingleConfig("vdsr", severity="some")


def test_one_tool_is_applied_once_to_every_image():
    suite = patch_suite("bundled", "test", recipe("moderate"), 6)
    policy = SingleTool(Tool("brighter", "adds a little", lambda images: images + 0.02))
    row = evaluate(policy, policy.toolbox, suite)
    clean, damaged = suite.patches()
    gain = (psnr(damaged + 0.02, clean) - psnr(damaged, clean)).mean().item()
    assert row["mean_tools"] == 1 and policy.toolbox.name == "brighter"
    assert row["gain"] == pytest.approx(gain, abs=1e-3)
    assert policy.parameters is None and SingleTool(Tool("net", "", nn.Conv2d(3, 3, 1))).parameters == 12


def small(**changes):
    settings = {"iterations": 8, "batch": 2, "patch": 24, "evaluate_every": 2, "validation_images": 2, **changes}
    return SingleConfig(settings.pop("network", "equal-multiply-adds"), **{"multiply_adds": 1_100, **settings})


def test_training_patches_are_a_function_of_seed_and_place(photos):
    config = small(batch=4)
    first = training_patches(photos[0], config, 8)
    again = training_patches(photos[0], config, 8)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    for other in (training_patches(photos[0], config, 12), training_patches(photos[0], small(batch=4, seed=1), 8)):
        assert not torch.equal(first[1], other[1])
    for iteration in range(18):  # turned and mirrored together
        clean, damaged = training_patches(photos[0], config, 4 * iteration)
        assert clean.shape == damaged.shape == (4, 3, 24, 24)
        quality = psnr(damaged, clean).mean()
        assert quality > psnr(damaged.flip(3), clean).mean() and quality > psnr(damaged.mT, clean).mean()


@pytest.mark.parametrize(
    ("network", "optimizer"), [("dncnn", "adamw"), ("equal-multiply-adds", "adamw"), ("equal-multiply-adds", "muon")]
)
def test_a_killed_run_resumes_and_ends_bit_for_bit_as_an_uninterrupted_one(photos, tmp_path, network, optimizer):
    class Killed(Exception):
        pass

    def kill(progress):
        if progress.iteration == 3:
            raise Killed

    multiply_adds = None if network == "dncnn" else 1_100
    config = small(network=network, optimizer=optimizer, iterations=4, patch=16, multiply_adds=multiply_adds)
    whole = train_single(config, *photos, tmp_path / "whole")
    with pytest.raises(Killed):
        train_single(config, *photos, tmp_path / "parts", checkpoint_seconds=0.0, report=kill)
    assert load_checkpoint(tmp_path / "parts" / f"{network}.checkpoint")["iteration"] == 3
    iterations = []
    parts = train_single(config, *photos, tmp_path / "parts", report=lambda p: iterations.append(p.iteration))
    assert iterations == [4]
    tensors = [read_weights(tmp_path / folder / f"{network}.safetensors")[0] for folder in ("whole", "parts")]
    assert all(torch.equal(tensors[0][name], tensors[1][name]) for name in tensors[0])
    assert whole["history"] == parts["history"] and not list(tmp_path.rglob("*.checkpoint"))


def test_few_patches_at_a_time_teach_what_all_at_once_do(photos):
    runs = []
    for part in (2, 4):
        run = _Run(small(batch=4), None, "cpu")
        run.part = part
        losses = [run.descend(*training_patches(photos[0], run.config, run.patches_seen), run.rate()) for _ in range(3)]
        runs.append((losses, run.average.module.state_dict()))
    assert runs[0][0] == pytest.approx(runs[1][0], abs=1e-4)
    for name, value in runs[0][1].items():
        torch.testing.assert_close(value, runs[1][1][name], atol=1e-4, rtol=1e-4)
    assert _Run(small(network="dncnn", multiply_adds=None, batch=64), None, "cpu").part is None  # batch normalisation


def test_the_card_says_what_was_seen_and_training_on_adds_to_it(photos, tmp_path):
    seen = []
    card = train_single(small(), *photos, tmp_path, card={"data": "some"}, report=seen.append)
    assert card["patches_seen"] == 16 and card["seconds"] > 0 and card["data"] == "some"
    assert [iteration for iteration, _ in card["history"]] == [2, 4, 6, 8]
    assert card["validation_gain_db"] == max(gain for _, gain in card["history"])
    assert card["parameters"] == parameters(build_network("equal-multiply-adds", 1_100))
    policy = load_single(tmp_path / "equal-multiply-adds.safetensors")
    assert policy.name == "equal-multiply-adds" and policy.card["patches_seen"] == 16
    assert policy.toolbox.tools[0].cost == card["multiply_adds_per_pixel"]

    start = tmp_path / "equal-multiply-adds.safetensors"
    more = train_single(small(), *photos, tmp_path / "more", start=start)
    assert more["patches_seen"] == 32 and more["seconds"] > card["seconds"]
    assert more["started_from"]["sha256"] == policy.card["sha256"]
    assert more["validation_gain_db"] >= card["validation_gain_db"]
    with pytest.raises(InvalidArgument, match="start"):
        train_single(small(multiply_adds=4_000), *photos, tmp_path / "more", start=start)


def test_resuming_with_another_configuration_says_what_changed(photos, tmp_path):
    def kill(progress):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_single(small(), *photos, tmp_path, checkpoint_seconds=0.0, report=kill)
    with pytest.raises(InvalidArgument, match="seed was 0, is 1"):
        train_single(small(seed=1), *photos, tmp_path)


def test_diverging_training_stops_with_a_clear_message_and_keeps_the_checkpoint(photos, tmp_path):
    reports = []
    config = small(iterations=400, learning_rate=1e18, evaluate_every=1000)
    with pytest.raises(TrainingDiverged, match="equal-multiply-adds diverged: the loss is .* kept in"):
        train_single(config, *photos, tmp_path, checkpoint_seconds=0.0, report=reports.append)
    assert load_checkpoint(tmp_path / "equal-multiply-adds.checkpoint")["iteration"] == reports[-1].iteration


def test_converged_means_still_in_the_last_quarter_of_the_budget():
    rising = [(10, 1.0), (50, 2.0), (75, 3.0)]
    assert converged([*rising, (90, 3.01), (100, 3.005)], 100)
    assert not converged([*rising, (90, 3.01), (100, 3.03)], 100)
    assert converged([*rising, (90, 2.9), (100, 2.995)], 100)  # a dip that led nowhere
    assert not converged([*rising, (90, 3.0), (100, 2.97)], 100)  # a fall
    assert not converged([(80, 3.0), (100, 3.0)], 100)  # nothing known of the quarter's beginning
    assert not converged([*rising, (90, 3.0)], 100)  # nor of its end
    assert not converged([], 100)


def test_rounds_are_added_until_a_network_has_been_trained_enough(photos, tmp_path):
    assert small(iterations=6, rounds=3).ends() == [6, 8, 11, 15]
    still = {"learning_rate": 0.0, "evaluate_every": 1}
    card = train_single(small(rounds=2, **still), *photos, tmp_path / "still")
    assert card["training"]["iterations_done"] == 8 and card["trained_enough"].startswith("the validation PSNR")
    moving = {"iterations": 6, "batch": 1, "evaluate_every": 6}  # no validation before the last quarter: not known
    card = train_single(small(rounds=1, **moving), *photos, tmp_path / "moving")
    assert card["training"]["iterations_done"] == 8 and card["patches_seen"] == 8
    card = train_single(small(rounds=5, system_patches=8, **moving), *photos, tmp_path / "as many")
    assert card["training"]["iterations_done"] == 8 and card["trained_enough"].startswith("as many patches")
    card = train_single(small(system_patches=9, **moving), *photos, tmp_path / "too few")
    assert card["patches_seen"] == 6 and card["trained_enough"] == "no"


def test_weights_that_do_not_fit_their_card_are_refused(tmp_path):
    network = build_network("equal-multiply-adds", 1_100)
    cost = {"network": "equal-multiply-adds", "multiply_adds_per_pixel": network.cost}
    save_weights(tmp_path / "own.safetensors", network.state_dict(), cost)
    assert load_single(tmp_path / "own.safetensors").toolbox.tools[0].cost == network.cost
    save_weights(tmp_path / "a.safetensors", network.state_dict(), {"network": "vdsr-s"})
    with pytest.raises(InvalidArgument, match="vdsr-s that their card names"):
        load_single(tmp_path / "a.safetensors")
    save_weights(tmp_path / "b.safetensors", network.state_dict(), {})
    with pytest.raises(InvalidArgument, match="network must be one of dncnn"):
        load_single(tmp_path / "b.safetensors")


def test_the_command_trains_a_network_and_does_not_train_it_twice(tmp_path, monkeypatch, capsys):
    from restoration_env.cli import main

    monkeypatch.chdir(tmp_path)
    command = ["train", "single", "equal-multiply-adds", "--multiply-adds", "1100", "--iterations", "2", "--batch", "2"]
    written = []
    for _ in range(2):
        with pytest.raises(SystemExit) as end:
            main([*command, "--out", "out", "--device", "cpu"])
        assert end.value.code == 0
        written.append((tmp_path / "out" / "equal-multiply-adds.safetensors").stat().st_mtime_ns)
    assert written[0] == written[1]
    output = capsys.readouterr()
    assert "4 patches" in output.out and "already trained" in output.err
    card = json.loads((tmp_path / "out" / "equal-multiply-adds.json").read_text())
    given = "--images bundled --iterations 2 --batch 2 --multiply-adds 1100"
    assert card["command"] == f"restoration-env train single equal-multiply-adds {given}"
    assert card["patches_seen"] == 4 and card["converged"] is False
    load_single(tmp_path / "out" / "equal-multiply-adds.safetensors")


def test_classical_chains_are_entries_of_the_classical_toolbox():
    suite = patch_suite("bundled", "test", recipe("severe"), 2, size=24)
    names = entry_names(Sources())
    assert {">".join(chain) for chain in CHAINS} <= set(names)
    chain = load_entry("tv-strong>wiener-1.5")
    row = evaluate(chain.policy, chain.toolbox, suite)
    assert chain.toolbox.name == "classical" and chain.family == "classical"
    assert row["mean_tools"] == 2 and row["gain"] > 0
    alone = load_entry("unsupervised-wiener")
    rows = [evaluate(alone.policy, alone.toolbox, suite) for _ in range(2)]
    assert rows[0]["psnr_out"] == rows[1]["psnr_out"] != rows[0]["psnr_in"]


def test_owan_counts_its_multiply_adds_and_its_parameters():
    network, counted = OWAN(), 0

    def count(module, inputs, output):
        nonlocal counted
        counted += output.shape[-2] * output.shape[-1] * module.weight.numel()

    for module in network.modules():
        if getattr(module, "weight", None) is not None and module.weight.ndim == 4:
            module.register_forward_hook(count)
    with torch.no_grad():
        assert network(torch.rand(1, 3, 12, 10)).shape == (1, 3, 12, 10)
    assert counted == 120 * OWAN.cost
    assert parameters(network) == 391_456


def test_owan_is_refused_when_the_file_is_something_else(tmp_path):
    with pytest.raises(InvalidArgument, match=r"owan must be the path of the authors' model_best.pth"):
        load_owan(tmp_path / "missing.pth")
    torch.save({"FEB.0.weight": torch.zeros(1)}, tmp_path / "other.pth")
    (tmp_path / "text.pth").write_text("no weights")
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    torch.save(torch.optim.SGD([torch.zeros(1)], 1.0), tmp_path / "object.pth")
    for name in ("other", "text", "list", "object"):
        with pytest.raises(InvalidArgument, match="owan must be"):
            load_owan(tmp_path / f"{name}.pth")


@needs_owan
def test_the_published_owan_restores():
    policy = load_owan(WEIGHTS)
    suite = patch_suite("bundled", "test", recipe("moderate"), 4)
    row = evaluate(policy, policy.toolbox, suite)
    assert row["gain"] > 1.5 and row["harmed"] == 0 and row["mean_tools"] == 1
    assert policy.parameters == 391_456 and policy.toolbox.name == "owan"


def test_an_oracle_as_an_entry_needs_a_kind_of_oracle():
    with pytest.raises(InvalidArgument, match="oracle must be one of greedy, beam, exhaustive"):
        load_entry("oracle:classical", Sources(oracle="none"))


def test_an_agent_plays_with_other_tools_wherever_its_weights_lie(tmp_path):
    path = tmp_path / "at@home" / "mine.safetensors"
    save_agent(path, load_agent("toolchain-joint"), {"name": "mine"})
    assert load_entry(str(path)).toolbox.name == "cnn12-joint"
    assert load_entry(f"{path}@cnn12").toolbox.name == "cnn12"
    with pytest.raises(InvalidArgument, match="toolbox"):
        load_entry("toolchain-joint@")
