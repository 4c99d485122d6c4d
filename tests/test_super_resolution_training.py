"""How the super-resolvers of the leaderboard are trained: budgets, stages, losses, going on after a stop."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from restoration_env.benchmarks import super_resolution_losses
from restoration_env.benchmarks.super_resolution import load_resolver
from restoration_env.benchmarks.super_resolution_data import (
    load_pairs,
    make_pairs,
    training_patches,
    validation_patches,
)
from restoration_env.benchmarks.super_resolution_losses import CROP, EnhanceNetLoss, SRGANLoss
from restoration_env.benchmarks.super_resolvers import luma
from restoration_env.benchmarks.train_super_resolution import ResolverConfig, parse_budget, train_resolver
from restoration_env.errors import InvalidArgument
from restoration_env.files import load_checkpoint, read_weights
from restoration_env.metrics import psnr
from restoration_env.perceptual import weights_path
from restoration_env.resizing import SCALE, bicubic

needs_vgg = pytest.mark.skipif(
    not weights_path("vgg").is_file(), reason="VGG16's weights have not been made (restoration-env perceptual-weights)"
)


@pytest.fixture(scope="module")
def pairs():
    return load_pairs(["bundled"], split="validation", least=96)


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("90s", (90, "seconds")),
        ("40m", (2400, "seconds")),
        ("1.5h", (5400, "seconds")),
        ("9000p", (9000, "patches")),
    ],
)
def test_budgets_are_of_seconds_or_patches(text, budget):
    assert parse_budget(text) == budget


@pytest.mark.parametrize("text", ["", "40", "m", "-3s", "0p", "1e3p", "40 minutes"])
def test_other_budgets_are_refused(text):
    with pytest.raises(InvalidArgument, match="budget"):
        parse_budget(text)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"network": "resnet"}, "srcnn"),
        ({"crop": 50}, "multiple of 4"),
        ({"network": "srgan", "crop": 48}, "96"),
        ({"precision": "half"}, "bfloat16"),
        ({"pixel_share": 2.0}, "pixel_share"),
        ({"batch": 0}, "batch"),
    ],
)
def test_bad_settings_are_refused(changes, match):
    with pytest.raises(InvalidArgument, match=match):
        ResolverConfig(**{"network": "srcnn", **changes})


def small(**changes):
    settings = {"network": "srcnn", "budget": "8p", "batch": 2, "crop": 24, "validation_images": 1, **changes}
    return ResolverConfig(**settings)


class Killed(Exception):
    pass


@pytest.mark.parametrize("network", ["srcnn", "enhancenet-e"])
def test_a_killed_run_ends_bit_for_bit_as_an_uninterrupted_one(pairs, tmp_path, network):
    config = small(network=network)

    def kill(progress):
        if progress.spent == 6:
            raise Killed

    whole = train_resolver(config, pairs, pairs, tmp_path / "whole")
    with pytest.raises(Killed):
        train_resolver(config, pairs, pairs, tmp_path / "parts", checkpoint_seconds=0.0, report=kill)
    assert load_checkpoint(tmp_path / "parts" / f"{network}.checkpoint")["iteration"] == 3
    parts = train_resolver(config, pairs, pairs, tmp_path / "parts")
    files = [tmp_path / part / f"{network}.safetensors" for part in ("whole", "parts")]
    tensors = [read_weights(file)[0] for file in files]
    assert all(torch.equal(tensors[0][name], tensors[1][name]) for name in tensors[0])
    assert whole["history"] == parts["history"] and not list(tmp_path.rglob("*.checkpoint"))


def rectangles(count=4):
    """Photographs of grey rectangles: their sharp edges are learned soon."""
    random, images = np.random.default_rng(0), []
    for _ in range(count):
        image = torch.full((3, 96, 96), 128, dtype=torch.uint8)
        for y, x, h, w, grey in random.integers(0, (90, 90, 30, 30, 256), (40, 5)).tolist():
            image[:, y : y + h + 5, x : x + w + 5] = grey
        images.append(image)
    return make_pairs(images, [str(number) for number in range(count)])


def test_training_beats_bicubic_and_the_card_says_what_was_seen(tmp_path):
    config = small(budget="320p", crop=36, batch=4, learning_rate=1e-3, averaging=0.9, validation_images=4)
    sharp = rectangles()
    card = train_resolver(config, sharp, sharp, tmp_path, card={"data": "rectangles"})
    large, little = validation_patches(sharp, 4, CROP)
    plain = psnr(luma(bicubic(little, SCALE)), luma(large)).mean().item()
    assert card["validation_psnr_db"] > plain + 0.1
    assert card["patches_seen"] == 320 and card["works_on"] == "luma" and card["data"] == "rectangles"
    resolver = load_resolver("srcnn", tmp_path)
    assert resolver.parameters == 57_281 and resolver.card["sha256"] == card_on_disk(tmp_path)["sha256"]
    found = psnr(luma(resolver(little)), luma(large)).mean().item()
    assert found == pytest.approx(card["validation_psnr_db"], abs=0.02)  # half-precision weights


def card_on_disk(folder):
    return json.loads((folder / "srcnn.json").read_text(encoding="utf-8"))


def test_a_budget_of_seconds_is_kept(pairs, tmp_path):
    card = train_resolver(small(budget="0.3s"), pairs, pairs, tmp_path)
    assert 0.3 <= card["seconds"] < 5 and card["patches_seen"] >= 2


def test_another_configuration_is_refused(pairs, tmp_path):
    def kill(progress):
        raise Killed

    with pytest.raises(Killed):
        train_resolver(small(), pairs, pairs, tmp_path, checkpoint_seconds=0.0, report=kill)
    with pytest.raises(InvalidArgument, match="seed was 0, is 1"):
        train_resolver(small(seed=1), pairs, pairs, tmp_path)


class Edges(nn.Module):
    """Features that cost nothing, in VGG16's place."""

    def forward(self, images, layers):
        edges = torch.cat((images[..., 1:, :] - images[..., :-1, :], images[..., 1:, :]), 1)
        return [nn.functional.avg_pool2d(edges, 2).abs() for _ in layers]


@pytest.mark.parametrize("name", ["srgan", "enhancenet"])
def test_the_adversarial_family_learns_pixels_first_and_then_its_loss(pairs, tmp_path, name, monkeypatch):
    monkeypatch.setattr(super_resolution_losses, "VGGFeatures", Edges)
    stages = []

    def kill(progress):
        stages.append(progress.stage)
        if len(stages) == 3:
            raise Killed

    config = ResolverConfig(name, budget="4p", batch=1, validation_images=1)
    with pytest.raises(Killed):
        train_resolver(config, pairs, pairs, tmp_path, checkpoint_seconds=0.0, report=kill)
    held = load_checkpoint(tmp_path / f"{name}.checkpoint")
    assert stages == ["pixels", name, name] and held["looks"]["discriminator"]
    card = train_resolver(config, pairs, pairs, tmp_path)
    assert card["patches_seen"] == 4 and card["converged"] is False


@needs_vgg
@pytest.mark.parametrize("loss", [SRGANLoss, EnhanceNetLoss])
def test_adversarial_losses_fall_where_the_image_comes_nearer(pairs, loss):
    torch.manual_seed(0)
    objective = loss()
    clean, little = validation_patches(pairs, 1, CROP)
    far = bicubic(little, SCALE)
    near = (0.25 * far + 0.75 * clean).requires_grad_(True)
    assert objective.perceptual(clean, clean).item() == pytest.approx(0, abs=1e-6)
    assert objective.perceptual(near, clean).item() < objective.perceptual(far, clean).item()
    objective(near, clean).sum().backward()
    assert near.grad.isfinite().all() and near.grad.abs().max() > 0


def test_the_discriminator_learns_to_tell_apart(pairs, monkeypatch):
    monkeypatch.setattr(super_resolution_losses, "VGGFeatures", Edges)
    torch.manual_seed(0)
    objective = EnhanceNetLoss()
    clean, little = training_patches(pairs, 2, CROP, 0)
    made = bicubic(little, SCALE)
    for _ in range(6):
        objective.learn(made, clean)
    with torch.no_grad():
        assert objective.discriminator(clean).mean() > objective.discriminator(made).mean()
