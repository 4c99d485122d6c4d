"""Policies without reinforcement learning: the best fixed chain, and the classifier with its training."""

import functools
import itertools
import math

import pytest
import torch
from helpers import tiny

from restoration_env.agents.classifier import (
    KINDS,
    ClassifierConfig,
    DistortionClassifier,
    _Run,
    labelled_patches,
    levels,
    read_classifier,
    tool_for,
    train_classifier,
)
from restoration_env.agents.network import ToolchainNetwork
from restoration_env.agents.policies import restore_batch
from restoration_env.agents.reference import ClassifierPolicy, best_fixed_chain, load_classifier
from restoration_env.distortions import LOSSLESS
from restoration_env.episodes import Episodes
from restoration_env.errors import InvalidArgument
from restoration_env.files import read_weights, save_weights
from restoration_env.images import load_images
from restoration_env.toolbox import Tool, Toolbox
from restoration_env.tools.catalogue import CATALOGUE, NAMES


def patches(seed=0, count=6):
    generator = torch.Generator().manual_seed(seed)
    clean = torch.rand(count, 3, 10, 10, generator=generator) * 0.3 + 0.4
    return clean, (clean - 0.05 + 0.05 * torch.randn(clean.shape, generator=generator)).clamp(0, 1)


def mean_psnr(toolbox, clean, damaged, chain):
    episodes = Episodes(toolbox, max_steps=len(chain))
    episodes.begin(damaged, clean)
    for action in chain:
        episodes.step(torch.full((len(clean),), action))
    return episodes.psnr.mean().item()


def catalogue_toolbox(order=NAMES):
    """The twelve names; each tool adds its own amount, so that results tell what was applied."""
    return Toolbox("twelve", [Tool(name, "adds", lambda x, k=k: x + 0.001 * 2**k) for k, name in enumerate(order)])


class Fixed(torch.nn.Module):
    """Predicts the given levels, whatever it sees, and counts how often it looks."""

    def __init__(self, predicted):
        super().__init__()
        self.predicted, self.looks = torch.tensor(predicted), 0

    def forward(self, images):
        self.looks += 1
        assert images.dtype == torch.uint8
        return torch.nn.functional.one_hot(self.predicted, 5).float()


@pytest.mark.parametrize("length", [1, 2, 3])
def test_the_best_fixed_chain_has_the_highest_mean_gain(length):
    toolbox, (clean, damaged) = tiny(), patches()
    every = {chain: mean_psnr(toolbox, clean, damaged, chain) for chain in itertools.product(range(3), repeat=length)}
    best = max(every, key=every.get)
    names = " > ".join(toolbox.names[tool] for tool in best)
    said = []
    policy = best_fixed_chain(toolbox, clean, damaged, length=length, report=lambda *done: said.append(done))
    assert policy.name == f"best chain of {length} ({names})"
    assert said[-1] == (6 * sum(3**k for k in range(1, length + 1)),) * 2
    applied = restore_batch(policy, toolbox, damaged, max_steps=length).toolchains()
    assert applied == [tuple(toolbox.names[tool] for tool in best)] * 6
    whole = best_fixed_chain(toolbox, clean, damaged, length=length, width=3 ** (length - 1))
    assert whole.name == policy.name


def test_a_beam_over_chains_follows_the_best_prefixes():
    toolbox, (clean, damaged) = tiny(), patches(1)
    chain = ()
    for _ in range(3):
        chain = max(((*chain, tool) for tool in range(3)), key=lambda c: mean_psnr(toolbox, clean, damaged, c))
    said = []
    policy = best_fixed_chain(toolbox, clean, damaged, width=1, report=lambda *done: said.append(done))
    assert policy.name == f"best chain of 3 ({' > '.join(toolbox.names[tool] for tool in chain)})"
    assert said[-1] == (6 * 9, 6 * 9)


@pytest.mark.parametrize(("changes", "words"), [({"length": 0}, "length"), ({"width": 0}, "width")])
def test_chains_of_nothing_are_refused(changes, words):
    with pytest.raises(InvalidArgument, match=f"{words} must be at least 1"):
        best_fixed_chain(tiny(), *patches(), **changes)


def test_levels_are_the_bands_of_the_catalogue():
    for spec in CATALOGUE:
        strengths = spec.band.draw(torch.rand(64, 4, dtype=torch.float64) * 0.98 + 0.01)
        kind = next(name for name in KINDS if spec.name.startswith(f"de{name}"))
        expected = [int(spec.name[-1]) if name == kind else 0 for name in KINDS]
        kept = (strengths[2] < spec.high) | (kind != "jpeg")  # a quality may be rounded into the milder band
        assert (levels(*strengths)[kept] == torch.tensor(expected)).all(), spec.name
        assert tool_for(kind, int(spec.name[-1])) == spec.name
    edges = torch.tensor([0.0, 1.25, 1.26]), torch.tensor([0.0, 12.5, 50.0]), torch.tensor([LOSSLESS, 60.0, 59.0])
    assert levels(*edges).tolist() == [[0, 0, 0], [1, 1, 1], [2, 4, 2]]


def test_the_tools_follow_in_the_reverse_order_of_the_damage():
    predicted = [[1, 2, 3], [0, 4, 0], [4, 0, 1], [0, 0, 0]]
    for order in (NAMES, NAMES[::-1]):  # found by name, not by place
        toolbox, network = catalogue_toolbox(order), Fixed(predicted)
        policy = ClassifierPolicy(network, toolbox)
        images = torch.full((4, 3, 63, 63), 0.2)
        chains = restore_batch(policy, toolbox, images, max_steps=4).toolchains()
        assert chains == [
            ("dejpeg-3", "denoise-2", "deblur-1", "stop"),
            ("denoise-4", "stop"),
            ("dejpeg-1", "deblur-4", "stop"),
            ("stop",),
        ]
        assert network.looks == 1
        assert restore_batch(policy, toolbox, images, max_steps=2).toolchains()[0] == ("dejpeg-3", "denoise-2")
        assert network.looks == 2
        network.predicted = torch.tensor([[0, 1, 0]])
        assert restore_batch(policy, toolbox, images[:1]).toolchains() == [("denoise-1", "stop")]


def test_a_toolbox_without_the_tools_is_refused():
    with pytest.raises(InvalidArgument, match=r"toolbox must be one with deblur-1.*dejpeg-4, got 'tiny'"):
        ClassifierPolicy(DistortionClassifier(), tiny())


def test_the_network_is_no_larger_than_the_agents():
    size, agents = (sum(p.numel() for p in net.parameters()) for net in (DistortionClassifier(), ToolchainNetwork()))
    assert 0.9 * agents < size <= agents


def test_the_network_takes_pixels_of_eight_bits_and_images_of_any_size():
    network = DistortionClassifier().eval()
    pixels = torch.randint(0, 256, (2, 3, 40, 71), dtype=torch.uint8)
    assert network(pixels).shape == (2, 3, 5)
    torch.testing.assert_close(network(pixels), network(pixels.float() / 255))


def small(**changes):
    settings = {"iterations": 6, "batch": 4, "evaluate_every": 3, "validation_images": 8}
    return ClassifierConfig(**{**settings, **changes})


@pytest.fixture(scope="module")
def pools():
    return load_images("bundled", "train"), load_images("bundled", "validation")


def test_patches_carry_the_levels_of_their_own_damage(pools):
    """Those with a single kind of damage, of the strongest band, are the most damaged of it."""
    images, target = labelled_patches(pools[0], torch.arange(48), "noise")
    assert images.dtype == torch.uint8 and images.shape == (48, 3, 63, 63)
    assert (target[:, [0, 2]] == 0).all() and set(target[:, 1].tolist()) == {1, 2, 3, 4}
    rough = images.float().diff(dim=3).diff(dim=2).abs().mean(dim=(1, 2, 3))
    means = [rough[target[:, 1] == level].mean() for level in (1, 2, 3, 4)]
    assert means == sorted(means)


def test_training_learns(pools):
    run = _Run(small(iterations=30), "cpu")
    batch = labelled_patches(pools[0], torch.arange(12), "every")
    before = run.judge(*batch)
    losses = [run.step(*batch) for _ in range(30)]
    assert losses[-1] < 0.7 * losses[0]
    after = run.judge(*batch)
    assert all(after[kind] >= before[kind] for kind in KINDS) and sum(after.values()) > 1.5 * sum(before.values())
    assert run.best_accuracy == after and run.best_loss < losses[0]


def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(tmp_path, pools):
    def kill(progress):
        if progress.iteration == 4:
            raise KeyboardInterrupt

    whole, resumed = tmp_path / "whole.safetensors", tmp_path / "resumed.safetensors"
    expected = train_classifier(small(), *pools, whole)
    with pytest.raises(KeyboardInterrupt):
        train_classifier(small(), *pools, resumed, report=kill)
    assert not resumed.exists()
    with pytest.raises(InvalidArgument, match="seed was 0, is 1"):
        train_classifier(small(seed=1), *pools, resumed)
    iterations = []
    facts = train_classifier(small(), *pools, resumed, report=lambda p: iterations.append(p.iteration))
    assert iterations == [5, 6]
    assert facts["validation_loss"] == expected["validation_loss"]
    tensors, _ = read_weights(resumed)
    for name, value in read_weights(whole)[0].items():
        assert torch.equal(value, tensors[name]), name
    assert not resumed.with_suffix(".checkpoint").exists()


def test_what_was_trained_can_be_loaded_and_played(tmp_path, pools):
    path, toolbox = tmp_path / "c.safetensors", catalogue_toolbox()
    train_classifier(small(iterations=2), *pools, path, card={"command": "as typed"})
    policy = load_classifier(toolbox, path)
    assert policy.card["command"] == "as typed" and policy.card["bands"]["jpeg"][3] == [10.0, 20.0]
    assert set(policy.card["validation_accuracy"]) == set(KINDS)
    assert restore_batch(policy, toolbox, torch.rand(3, 3, 63, 63)).actions.shape == (3, 3)


def test_weights_of_another_network_are_refused(tmp_path):
    path = tmp_path / "agent.safetensors"
    save_weights(path, {"x": torch.zeros(1)}, {"tools": 12})
    with pytest.raises(InvalidArgument, match="weights must be of a classifier of the catalogue's bands"):
        read_classifier(path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"iterations": 0}, "iterations"), ({"severity": "terrible"}, "severity"), ({"learning_rate": math.nan}, "rate")],
)
def test_configurations_that_mean_nothing_are_refused(changes, words):
    with pytest.raises(InvalidArgument, match=words):
        small(**changes)


def test_the_command_trains(tmp_path, capsys, monkeypatch):
    from restoration_env.agents import commands_classifier
    from restoration_env.cli import main

    quick = functools.partial(ClassifierConfig, validation_images=8)
    monkeypatch.setattr(commands_classifier, "ClassifierConfig", quick)
    path = tmp_path / "c.safetensors"
    words = ["train", "classifier", "--out", str(path), "--iterations", "1", "--batch", "2", "--device", "cpu"]
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 0 and "blur" in capsys.readouterr().err
    _, card = read_classifier(path)
    assert card["command"] == "restoration-env train classifier --images bundled --iterations 1 --batch 2"
    assert card["data"] == "bundled: 6 images train, 1 validate"
