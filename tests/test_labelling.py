"""Labelled episodes: what is written, what is learned from it, and what is refused."""

import json

import pytest
import torch
from helpers import STOP, TOOLS, tiny

from restoration_env.agents.agent import ToolchainAgent, load_agent, save_agent
from restoration_env.agents.exact_values import ExactValues
from restoration_env.agents.fitting import FitConfig, train_fit
from restoration_env.agents.labelling import SHARD, LabelConfig, label, read_labels
from restoration_env.agents.network import UNIT, ToolchainNetwork, build_network
from restoration_env.agents.pretraining import pretrain
from restoration_env.agents.statistics import spectrum, spectrum_size
from restoration_env.cli import main
from restoration_env.distortions import distort, recipe
from restoration_env.errors import InvalidArgument, UnknownName
from restoration_env.images import damaged_patches, load_images
from restoration_env.metrics import psnr

SIDE = 24


def player(seed=0, toolbox=None):
    torch.manual_seed(seed)
    return ToolchainAgent(ToolchainNetwork(TOOLS, SIDE), toolbox or tiny(), 2)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """Two files of the tiny tools' labels, written in two goes."""
    folder = tmp_path_factory.mktemp("labelled")
    pool = load_images("bundled", "train")
    for count in (SHARD, 2 * SHARD):
        label(LabelConfig(promising=2), player(), pool, folder, count, seed=3, facts={"data": "bundled"})
    return folder


def test_labels_are_whole_files_that_say_what_they_are(labelled):
    assert sorted(path.name for path in labelled.iterdir()) == [
        "3-000000.safetensors",
        "3-000256.safetensors",
        "labels.json",
    ]
    episodes, (facts,) = read_labels([labelled], tiny().names)
    assert episodes.images.shape == (2 * SHARD, 2, 3, SIDE, SIDE) and episodes.images.dtype == torch.uint8
    assert episodes.values.shape == (2 * SHARD, 2, TOOLS + 1) and bool((episodes.values[..., STOP] == 0).all())
    assert facts["episodes"] == 2 * SHARD and facts["promising"] == 2 and facts["data"] == "bundled"
    assert not torch.equal(episodes.images[:SHARD], episodes.images[SHARD:])


def test_the_same_seed_writes_the_same_file_whatever_came_before(labelled, tmp_path):
    label(LabelConfig(promising=2), player(), load_images("bundled", "train"), tmp_path, SHARD, seed=3)
    first = (labelled / "3-000000.safetensors").read_bytes()
    assert (tmp_path / "3-000000.safetensors").read_bytes() == first


def test_labelling_leaves_the_agent_as_it_was(tmp_path):
    agent = player()
    before = {name: value.clone() for name, value in agent.network.state_dict().items()}
    label(LabelConfig(), agent, load_images("bundled", "train"), tmp_path, 1)
    for name, value in agent.network.state_dict().items():
        torch.testing.assert_close(value, before[name])


def test_other_labels_than_those_in_the_folder_are_refused(labelled):
    pool = load_images("bundled", "train")
    with pytest.raises(InvalidArgument, match="explore was 0.4, is 0.1"):
        label(LabelConfig(promising=2, explore=0.1), player(), pool, labelled, SHARD, seed=3)
    with pytest.raises(InvalidArgument, match="darken"):
        read_labels([labelled], ["one", "two", "darken"])
    with pytest.raises(InvalidArgument, match="labelled"):
        read_labels([labelled / "nothing"], tiny().names)


def test_only_the_promising_branches_are_played(monkeypatch):
    """Two of three are played, and those are the ones with the highest estimates."""
    torch.manual_seed(0)
    clean = torch.rand(6, 3, SIDE, SIDE) * 0.5 + 0.3
    damaged = (clean - 0.05).clamp(0, 1)
    played = {}
    for promising in (0, 2):
        torch.manual_seed(1)
        values = ExactValues(ToolchainNetwork(TOOLS, SIDE), max_steps=2, explore=0.0, promising=promising)
        seen = []
        original = values._played
        monkeypatch.setattr(values, "_played", lambda *a, _o=original, _s=seen: (_s.append(a[-1]), _o(*a))[1])
        values.visit(tiny(), clean, damaged)
        played[promising] = (seen[0], values.replay.take(torch.arange(6)).values[:, 0])
    assert bool(played[0][0].all()) and bool((played[2][0].sum(0) == 2).all())
    which = played[2][0].T
    torch.testing.assert_close(played[2][1][:, :TOOLS][which], played[0][1][:, :TOOLS][which])


def config(**settings):
    small = {"iterations": 40, "known_damage": 64, "evaluate_every": 20, "validation_images": 4}
    return FitConfig(**{**small, **settings})


def fitted(labelled, path, toolbox=None, **settings):
    toolbox, pool = toolbox or tiny(), load_images("bundled", "train")
    how = config(**settings)
    return train_fit(how, toolbox, read_labels([labelled], toolbox.names), pool, pool, path)


@pytest.fixture(scope="module")
def of_patches(tmp_path_factory):
    """Labels of patches as large as those that agents are for."""
    folder = tmp_path_factory.mktemp("patches")
    torch.manual_seed(0)
    agent = ToolchainAgent(ToolchainNetwork(TOOLS, 63), tiny(), 2)
    label(LabelConfig(promising=0), agent, load_images("bundled", "train"), folder, SHARD)
    return folder


def test_an_agent_learns_from_labels_alone(of_patches, tmp_path):
    card = fitted(of_patches, tmp_path / "a.safetensors", network="spectral", iterations=200, evaluate_every=200)
    agent = load_agent(tmp_path / "a.safetensors", toolbox=tiny())
    assert agent.network.kind == "spectral" and card["images_seen"] == SHARD
    assert card["labelled"][0]["episodes"] == SHARD and card["training"]["algorithm"] == "fit"
    episodes, _ = read_labels([of_patches], tiny().names)
    first = episodes.values[:, 0]
    with torch.no_grad():
        state = agent.network.initial_state(SHARD)
        q, _ = agent.network(episodes.images[:, 0], episodes.last_actions[:, 0], state)
    chosen = first.gather(1, q.argmax(1, keepdim=True)).mean()
    always = first.mean(0).max()  # the best that needs no looking
    assert chosen > always + 0.25 * (first.max(1).values.mean() - always)
    assert abs(q.max(1).values.mean() - first.max(1).values.mean()) < 0.5  # in dB


def test_a_killed_fit_ends_as_if_it_had_not_been(of_patches, tmp_path):
    pool, labels = load_images("bundled", "train"), read_labels([of_patches], tiny().names)

    def stop(progress):
        if progress.iteration == 25:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_fit(config(), tiny(), labels, pool, pool, tmp_path / "a.safetensors", report=stop)
    assert (tmp_path / "a.checkpoint").exists() and not (tmp_path / "a.safetensors").exists()
    with pytest.raises(InvalidArgument, match="closeness was 1.0, is 2.0"):
        train_fit(config(closeness=2.0), tiny(), labels, pool, pool, tmp_path / "a.safetensors")
    for name in ("a", "b"):
        train_fit(config(), tiny(), labels, pool, pool, tmp_path / f"{name}.safetensors")
    assert not (tmp_path / "a.checkpoint").exists()
    one, two = (json.loads((tmp_path / f"{name}.json").read_text()) for name in "ab")
    assert one["sha256"] == two["sha256"] and one["history"] == two["history"]


def test_a_fit_goes_on_from_an_agent_and_never_ends_behind_it(of_patches, tmp_path):
    first = fitted(of_patches, tmp_path / "first.safetensors", network="statistics", iterations=4, evaluate_every=4)
    how = {"start": str(tmp_path / "first.safetensors"), "learning_rate": 0.5, "iterations": 4, "evaluate_every": 2}
    card = fitted(of_patches, tmp_path / "second.safetensors", **how)
    agents = [load_agent(tmp_path / f"{name}.safetensors", toolbox=tiny()) for name in ("first", "second")]
    assert [agent.network.kind for agent in agents] == ["statistics"] * 2
    assert card["images_seen"] == 2 * SHARD and card["started_from"]["sha256"] == agents[0].card["sha256"]
    assert card["validation_gain_db"] >= first["validation_gain_db"] and card["history"][0]["iteration"] == 0


def command(*words):
    with pytest.raises(SystemExit) as end:
        main([str(word) for word in words])
    return end.value.code


def test_the_commands_label_and_fit(tmp_path, capsys):
    torch.manual_seed(0)
    save_agent(tmp_path / "player.safetensors", ToolchainAgent(ToolchainNetwork(TOOLS, 63), tiny(), 2), {})
    folder, out = tmp_path / "labels", tmp_path / "fitted.safetensors"
    assert (
        command("label", "--agent", tmp_path / "player.safetensors", "--out", folder, "--count", 1, "--soft", 0.5) == 0
    )
    assert json.loads((folder / "labels.json").read_text())["command"].endswith("--promising 4 --soft 0.5")
    fit = ["train", "agent", "--algo", "fit", "--toolbox", "tiny", "--out", out, "--iterations", 4, "--known-damage", 8]
    fit += ["--validation-images", 2]
    assert command(*fit, "--labelled", folder) == 0
    card = json.loads(out.with_suffix(".json").read_text())
    assert card["labelled"][0]["soft"] == 0.5 and "--labelled labels" in card["command"]
    assert load_agent(out, toolbox=tiny()).network.kind == "spectral"
    assert command(*fit) == 2 and "--labelled must be given with --algo fit" in capsys.readouterr().err
    assert command("train", "agent", "--algo", "exact", "--labelled", folder) == 2
    assert command(*fit, "--labelled", tmp_path) == 2
    assert "a folder that `restoration-env label` wrote" in " ".join(capsys.readouterr().err.split())


def test_soft_patches_are_blurred_before_they_are_damaged():
    pool, keys = load_images("bundled", "train"), torch.arange(16)
    sharp, _ = damaged_patches(pool, keys, recipe("jpeg"), 63)
    soft, damaged = damaged_patches(pool, keys, recipe("jpeg"), 63, soft=1.0)
    some, _ = damaged_patches(pool, keys, recipe("jpeg"), 63, soft=0.5)

    def detail(images):
        return images.diff(dim=-1).abs().mean((1, 2, 3))

    assert bool((detail(soft) < detail(sharp)).all()) and bool((psnr(damaged, soft) > 20.0).all())
    assert torch.equal(soft, (soft * 255.0).round() / 255.0)  # a photograph's levels
    changed = (some != sharp).flatten(1).any(1)
    assert 0 < changed.sum() < 16
    assert torch.equal(some[changed], soft[changed])


def test_settings_that_mean_nothing_are_refused():
    with pytest.raises(UnknownName, match="spectral"):
        FitConfig(network="oracle")
    with pytest.raises(InvalidArgument, match="iterations"):
        FitConfig(iterations=0)
    with pytest.raises(InvalidArgument, match="promising"):
        LabelConfig(promising=-1)


def test_the_spectrum_is_that_of_the_transposed_image_and_sees_wide_blur():
    clean = load_images("bundled", "validation").crops(torch.rand(8, 3), 63)[0].float() / 255
    seen = spectrum(clean)
    assert seen.shape == (8, spectrum_size(63)) and bool(torch.isfinite(seen).all())
    torch.testing.assert_close(spectrum(clean.transpose(2, 3)), seen, atol=1e-3, rtol=0)
    torch.testing.assert_close(spectrum(clean[3:4]), seen[3:4], atol=1e-4, rtol=0)  # of each image alone
    lossless = torch.full((8,), torch.inf)
    sharp, soft = (spectrum(distort(clean, torch.full((8,), s), torch.zeros(8), lossless)) for s in (2.5, 4.5))
    luma = slice(0, spectrum_size(63) // 3)
    assert bool((soft[:, luma].mean(1) < sharp[:, luma].mean(1)).all())


def test_statistics_tell_damage_sooner_than_convolutions():
    pool, damage, error = load_images("bundled", "train"), recipe("moderate"), {}
    for kind in ("spectral", "statistics"):
        torch.manual_seed(0)
        error[kind] = pretrain(build_network(kind, TOOLS), pool, damage, iterations=30, batch=16)
    assert error["spectral"] < error["statistics"]


def test_what_is_fixed_is_all_that_an_image_is_asked_for():
    network = build_network("spectral", TOOLS).eval()
    images = torch.randint(0, 256, (5, 3, 63, 63), dtype=torch.uint8)
    with torch.no_grad():
        torch.testing.assert_close(network.learned(network.fixed(images)), network.features(images))
        torch.testing.assert_close(network.features(images), network.features(images.float() / 255.0))
    assert sum(p.numel() for p in network.parameters()) == 164_036
    assert network.ways == 2 and build_network("statistics", TOOLS).ways == 8


def test_values_of_a_network_in_units_become_decibels():
    network = build_network("spectral", TOOLS).eval()
    images, last = torch.randint(0, 256, (2, 3, 63, 63), dtype=torch.uint8), torch.full((2,), STOP)
    with torch.no_grad():
        before, _ = network(images, last, network.initial_state(2))
        network.scale_values(UNIT)
        after, _ = network(images, last, network.initial_state(2))
    torch.testing.assert_close(after, before * UNIT)
    assert network.with_more_tools(TOOLS + 1).tools == TOOLS + 1
