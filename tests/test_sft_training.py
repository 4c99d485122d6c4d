"""The three stages: what they learn from, that they learn, that they go on where they stopped, what they refuse."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from scenery import COLOURS, write_scenes

from restoration_env.cli import main
from restoration_env.errors import InvalidArgument
from restoration_env.files import read_weights
from restoration_env.images import load_images
from restoration_env.resizing import bicubic
from restoration_env.sft.conditioning import CATEGORIES
from restoration_env.sft.crops import Crops, whole_maps
from restoration_env.sft.losses import PerceptualLoss, adversarial_loss, category_loss
from restoration_env.sft.lost import LostResolution
from restoration_env.sft.runs import make_fabric
from restoration_env.sft.scenes import load_scenes
from restoration_env.sft.segmenter import LiteSegmenter, Segmenter
from restoration_env.sft.training import SFTConfig, rate_share, train_sft

SMALL = {"width": 8, "blocks": 1, "on_bicubic": True, "batch": 2, "crop": 48, "iterations": 4, "evaluate_every": 2}
LATER = {**SMALL, "perceptual": "alex", "discriminator_width": 4}


@pytest.fixture(scope="module")
def crops(tmp_path_factory):
    scenes = load_scenes(write_scenes(tmp_path_factory.mktemp("scenes")), "all")
    photographs = load_images("bundled", "validation").fitting(48)
    torch.manual_seed(0)
    segmenter = Segmenter(LiteSegmenter(), CATEGORIES)
    maps = [whole_maps(segmenter, images) for images in (scenes.images, photographs.images)]
    return Crops(scenes, photographs, *maps, side=48)


def _flat(crops):
    """Maps that know nothing, of scenes and of photographs."""
    maps = [torch.full((8, -(-i.shape[1] // 4), -(-i.shape[2] // 4)), 32, dtype=torch.uint8) for i in crops.images]
    return maps[: len(crops.scenes)], maps[len(crops.scenes) :]


@pytest.fixture(scope="module")
def fabric():
    return make_fabric("cpu")


@pytest.fixture(scope="module")
def pixel(crops, fabric, tmp_path_factory):
    path = tmp_path_factory.mktemp("pixel") / "pixel.safetensors"
    train_sft(SFTConfig(**SMALL), crops, crops.batch(4, 1, 0), path, fabric)
    return path


def test_a_batch_is_a_function_of_its_iteration(crops):
    one, same, other = crops.batch(6, 0, 3), crops.batch(6, 0, 3), crops.batch(6, 0, 4)
    assert torch.equal(one.high, same.high) and torch.equal(one.maps, same.maps)
    assert not torch.equal(one.high, other.high)
    assert not torch.equal(one.high, crops.batch(6, 1, 3).high)  # another seed
    assert not torch.equal(one.high, crops.batch(6, 0, 3, rank=1).high)  # another process
    assert one.high.shape == (6, 3, 48, 48) and one.low.shape == (6, 3, 12, 12) and one.maps.shape == (6, 8, 48, 48)
    torch.testing.assert_close(one.low, bicubic(one.high, 0.25).clamp(0, 1))
    torch.testing.assert_close(one.maps.sum(1), torch.ones(6, 48, 48))


def test_crops_of_a_category_show_it(tmp_path):
    scenes = load_scenes(write_scenes(tmp_path, height=128), "all")
    flat = [torch.full((8, 32, 32), 32, dtype=torch.uint8) for _ in scenes.images]
    batch = Crops(scenes, scenes.pool(), flat, flat, side=48, scenes_share=1.0).batch(64, 0, 0)
    colours = torch.tensor(COLOURS).float() / 255
    found = (batch.high[:, None, :, 20:28, 20:28].mean((3, 4)) - colours).abs().sum(2).argmin(1)
    assert (found == batch.categories).float().mean() > 0.9
    assert len(batch.categories.unique()) == 8


def test_the_background_can_be_drawn_more_often(crops):
    flat = _flat(crops)
    more = Crops(crops.scenes, crops.scenes.pool(), flat[0], flat[0], side=48, scenes_share=1.0, background=7.0)
    counts = torch.bincount(more.batch(400, 0, 0).categories, minlength=8)
    assert 170 < counts[0] < 230 and counts[1:].sum() == 400 - counts[0] and (counts[1:] > 8).all()
    never = Crops(crops.scenes, crops.scenes.pool(), flat[0], flat[0], side=48, scenes_share=1.0, background=0.0)
    assert (never.batch(400, 0, 0).categories > 0).all()


def test_the_three_stages_follow_each_other(crops, fabric, pixel, tmp_path):
    validation = crops.batch(4, 1, 0)
    adversarial = tmp_path / "adversarial.safetensors"
    train_sft(SFTConfig(stage="adversarial", start=str(pixel), **LATER), crops, validation, adversarial, fabric)
    card = read_weights(adversarial)[1]
    assert card["started_from"]["name"] == "pixel"
    assert card["conditioning"] == "none"
    for conditioning in ("sft", "film", "concat", "compositional"):
        config = SFTConfig(stage="sft", conditioning=conditioning, start=str(adversarial), alone=0.5, **LATER)
        path = tmp_path / f"{conditioning}.safetensors"
        card = train_sft(config, crops, validation, path, fabric)
        assert set(card["validation"]) == {"psnr_gain_db", "lpips", "lpips_bicubic"}
        assert card["iterations_done"] == 4


def test_a_judge_is_left_and_taken_over(crops, fabric, pixel, tmp_path):
    validation, still = crops.batch(4, 1, 0), {**LATER, "learning_rate": 0.0}
    train_sft(SFTConfig(stage="adversarial", start=str(pixel), **LATER), crops, validation, tmp_path / "a", fabric)
    left = tmp_path / "judges" / "a"
    config = SFTConfig(stage="sft", conditioning="sft", start=str(pixel), judge=str(left), seed=1, **still)
    card = train_sft(config, crops, validation, tmp_path / "b", fabric)
    config = SFTConfig(stage="sft", conditioning="sft", start=str(pixel), seed=1, **still)
    train_sft(config, crops, validation, tmp_path / "c", fabric)
    before, taken, new = (read_weights(tmp_path / "judges" / name)[0] for name in "abc")
    learned = [name for name in before if name.endswith(("weight", "bias")) and before[name].ndim > 1]
    assert learned and all(torch.equal(before[name], taken[name]) for name in learned)
    assert not any(torch.equal(before[name], new[name]) for name in learned)
    assert card["training"]["judge"] == "a"
    with pytest.raises(InvalidArgument, match="judge must be a discriminator of width 8 for crops of 48"):
        wider = SFTConfig(stage="adversarial", start=str(pixel), judge=str(left), **{**LATER, "discriminator_width": 8})
        train_sft(wider, crops, validation, tmp_path / "d", fabric)
    with pytest.raises(InvalidArgument, match="judge must be given only in the last two stages"):
        SFTConfig(judge=str(left), **SMALL)


@pytest.mark.parametrize(
    ("how", "new"),
    [
        ("sft", "sft.scale.1.weight"),
        ("film", "sft.shift.1.weight"),
        ("concat", "told.weight"),
        ("compositional", "told.weight"),
    ],
)
def test_only_what_was_inserted_learns_at_first(crops, fabric, pixel, tmp_path, how, new):
    config = SFTConfig(stage="sft", conditioning=how, start=str(pixel), alone=1.0, averaging=0.0, **LATER)
    train_sft(config, crops, crops.batch(4, 1, 0), tmp_path / "a.safetensors", fabric)
    before, after = read_weights(pixel)[0], read_weights(tmp_path / "a.safetensors")[0]
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert bool((after[new] != 0).any())


def test_pixel_training_gains_on_bicubic(crops, fabric, tmp_path):
    photographs = load_images("bundled", "train").fitting(48)
    maps = [
        torch.full((8, -(-i.shape[1] // 4), -(-i.shape[2] // 4)), 32, dtype=torch.uint8) for i in photographs.images
    ]
    cut = Crops(crops.scenes, photographs, _flat(crops)[0], maps, side=48, scenes_share=0.0)
    settings = {"width": 16, "blocks": 2, "iterations": 300, "batch": 8, "learning_rate": 4e-3}
    config = SFTConfig(**{**SMALL, **settings, "averaging": 0.9, "evaluate_every": 100})
    card = train_sft(config, cut, cut.batch(16, 1, 0), tmp_path / "x.safetensors", fabric)
    assert card["validation"]["psnr_gain_db"] > 0.5


@pytest.mark.parametrize("stage", ["pixel", "adversarial"])
def test_a_run_that_was_put_by_ends_as_if_it_had_not(crops, fabric, pixel, tmp_path, stage):
    settings = SMALL if stage == "pixel" else {**LATER, "start": str(pixel)}
    config, validation = SFTConfig(stage=stage, **settings), crops.batch(4, 1, 0)
    straight, broken = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    train_sft(config, crops, validation, straight, fabric)
    card = train_sft(config, crops, validation, broken, fabric, stop_after=0)
    assert card["iterations_done"] == 1 and broken.with_suffix(".checkpoint").exists()
    with pytest.raises(
        InvalidArgument, match="checkpoint must be of the same configuration: seed was 0, is 1|seed was"
    ):
        train_sft(SFTConfig(stage=stage, **{**settings, "seed": 1}), crops, validation, broken, fabric)
    train_sft(config, crops, validation, broken, fabric)
    assert straight.read_bytes() == broken.read_bytes()
    assert not broken.with_suffix(".checkpoint").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stage": "second"}, "stage must be one of pixel, adversarial, sft"),
        ({"stage": "adversarial", "conditioning": "sft", "start": "x"}, "conditioning must be 'none'"),
        ({"stage": "sft", "start": "x"}, "conditioning must be what the sft stage is to insert"),
        ({"stage": "adversarial"}, "start must be weights of the stage before"),
        ({"perceptual": "resnet"}, "perceptual must be one of vgg19, vgg16, alex, none"),
        ({"crop": 50}, "crop must be a multiple of 16"),
        ({"scenes_share": 1.5}, "scenes_share must be a share from 0 to 1, got 1.5"),
        ({"background": -1.0}, "background must be at least 0, got -1"),
        ({"damage": "mixed"}, "damage must be a recipe that loses resolution, x4 or with-x4, got 'mixed'"),
        ({"damage": "x4", "conditioning": "sft"}, "damage must be given only in the pixel stage without conditions"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(InvalidArgument, match=message):
        SFTConfig(**settings)


def test_rates_are_halved_as_published_or_fall_along_a_cosine():
    settings = {**LATER, "stage": "adversarial", "start": "x", "iterations": 120}
    halved, smooth = SFTConfig(**settings), SFTConfig(**settings, cosine=True)
    assert [rate_share(halved, at) for at in (0, 9, 10, 20, 30, 40, 119)] == [1, 1, 0.5, 0.25, 0.125, 0.0625, 0.0625]
    assert rate_share(smooth, 0) == 1.0 and rate_share(smooth, 60) == pytest.approx(0.5)
    assert 0.0 < rate_share(smooth, 119) < 0.001


def test_the_tool_learns_what_it_is_shown_in_episodes(fabric, tmp_path):
    pools = [load_images("bundled", part) for part in ("validation", "test")]
    lost = LostResolution(pools, 48)
    one, same, other = lost.batch(5, 0, 3), lost.batch(5, 0, 3), lost.batch(5, 0, 4)
    assert torch.equal(one.low, same.low) and not torch.equal(one.low, other.low)
    assert one.high.shape == (5, 3, 48, 48) and one.low.shape == (5, 3, 12, 12) and one.maps.shape == (5, 8, 48, 48)
    # Enlarged again, the small image is the damaged one, as far as the damage left it one that was enlarged.
    errors = (bicubic(one.low, 4) - one.high).abs().mean((1, 2, 3))
    assert (errors < 0.15).all() and (one.maps[:, 0] == 1).all() and not one.categories.any()
    card = train_sft(SFTConfig(**SMALL, damage="x4"), lost, other, tmp_path / "tool.safetensors", fabric)
    assert card["training"]["damage"] == "x4"


def test_a_start_of_another_width_is_refused(crops, fabric, pixel, tmp_path):
    config = SFTConfig(stage="adversarial", start=str(pixel), **{**LATER, "width": 16})
    with pytest.raises(InvalidArgument, match="start must be weights with width 16, got 8"):
        train_sft(config, crops, crops.batch(4, 1, 0), tmp_path / "x.safetensors", fabric)


def test_missing_perceptual_weights_say_which_file_and_how_to_do_without(monkeypatch, tmp_path):
    with pytest.raises(InvalidArgument, match=r"vgg19-dcbb9e9d.pth .*torchvision.* train without it: --perceptual"):
        PerceptualLoss("vgg19")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(InvalidArgument, match="restoration-env perceptual-weights"):
        PerceptualLoss("vgg16")


def test_vgg19_is_read_from_the_published_form(tmp_path):
    from restoration_env.sft.losses import _VGG19, VGG19Features

    state, inputs, number = {}, 3, 0
    torch.manual_seed(0)
    for width in _VGG19:
        if width:
            state[f"features.{number}.weight"] = torch.randn(width, inputs, 3, 3) / (3 * inputs**0.5)
            state[f"features.{number}.bias"] = torch.zeros(width)
            inputs, number = width, number + 2
        else:
            number += 1
    assert f"features.{number - 2}.weight" == "features.34.weight"  # torchvision's conv5_4
    torch.save({**state, "classifier.0.weight": torch.zeros(1)}, tmp_path / "vgg19.pth")
    assert VGG19Features(tmp_path / "vgg19.pth")(torch.rand(1, 3, 32, 32)).shape == (1, 512, 2, 2)
    (tmp_path / "other.pth").write_bytes(b"nothing")
    with pytest.raises(InvalidArgument, match="weights of VGG19 must be torchvision's"):
        VGG19Features(tmp_path / "other.pth")


def test_the_losses():
    logits = torch.tensor([3.0, -2.0])
    assert adversarial_loss(logits, True) > adversarial_loss(logits.abs(), True)
    named = torch.zeros(3, 8)
    named[0, 2] = 9.0
    assert category_loss(named, torch.tensor([2, 0, 0])) < 0.01  # the background counts for nothing
    assert category_loss(named, torch.tensor([0, 0, 0])) == 0
    images = torch.rand(2, 3, 48, 48)
    loss = PerceptualLoss("alex")
    assert loss(images, images) == 0
    loss.calibrate(bicubic(bicubic(images, 0.25), 4), images)
    torch.testing.assert_close(loss(bicubic(bicubic(images, 0.25), 4), images), torch.tensor(1.0))
    assert PerceptualLoss("none")(images, images) == 0


def test_weights_held_in_bfloat16_give_the_loss_and_the_gradient_that_autocast_gives():
    images, references = torch.rand(2, 2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    found = []
    for held in (False, True):
        loss = PerceptualLoss("alex")
        if held:
            loss.hold_bfloat16()
        seen = images.clone().requires_grad_(True)
        with torch.autocast("cpu", torch.bfloat16):
            value = loss(seen, references)
        value.backward()
        found.append((value.detach(), seen.grad))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-3, atol=0.0)
    assert torch.allclose(found[0][1], found[1][1], atol=0.01 * float(found[0][1].abs().max()))


def test_the_command_trains_the_stages(tmp_path, capsys):
    scenes = write_scenes(tmp_path / "scenes", count=30)
    segmenter = tmp_path / "segmenter.safetensors"
    run = ["--iterations", "1", "--batch", "2", "--crop", "64", "--device", "cpu"]
    _ok(["train", "segmenter", "--scenes", str(scenes), "--out", str(segmenter), "--start", "none", *run])
    rng, images = np.random.default_rng(0), tmp_path / "images"
    images.mkdir()
    Image.fromarray(rng.integers(0, 255, (96, 96, 3), np.uint8)).save(images / "a.png")
    given = ["--scenes", str(scenes), "--images", str(images), "--segmenter", str(segmenter), "--out", str(tmp_path)]
    small = ["--width", "8", "--blocks", "1", "--discriminator-width", "4", "--perceptual", "alex"]
    _ok(["train", "sft", *given, *run, *small])
    _ok(["train", "sft", *given, *run, *small, "--stage", "sft", "--start", str(tmp_path / "pixel-none.safetensors")])
    card = json.loads((tmp_path / "sft-sft.json").read_text())
    assert card["command"].startswith("restoration-env train sft --scenes scenes --images images --start pixel-none")
    assert card["conditioning"] == "sft"


def _ok(arguments):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 0
