"""The super-resolver in use: the function, the tool, RestoreSR-v0, lost resolution, photographs and pictures."""

import json

import gymnasium as gym
import numpy as np
import pytest
import torch
from PIL import Image
from scenery import SHARED

from restoration_env.cli import main
from restoration_env.distortions import LOSSLESS, distort, recipe
from restoration_env.errors import InvalidArgument
from restoration_env.files import save_weights
from restoration_env.images import ImagePool, damaged_patches, load_images
from restoration_env.randomness import normal, uniform
from restoration_env.registry import load_tool, load_toolbox, tool_names
from restoration_env.resizing import bicubic, enlarged_again
from restoration_env.sft.conditioning import CATEGORIES
from restoration_env.sft.generator import CONDITIONING, SFTNet
from restoration_env.sft.resizing import decimated
from restoration_env.sft.segmenter import WEIGHTS, LiteSegmenter, Segmenter
from restoration_env.sft.super_resolver import SuperResolver, load_super_resolver, prior
from restoration_env.sft.tool import Resharpen
from restoration_env.sft.upscale import upscale

needs_weights = pytest.mark.skipif(not (WEIGHTS / "sft-psnr.safetensors").is_file(), reason="no trained super-resolver")


@pytest.fixture(scope="module")
def resolver():
    torch.manual_seed(0)
    network = SFTNet(width=8, blocks=1, on_bicubic=True)
    return SuperResolver("untrained", network, Segmenter(LiteSegmenter(), CATEGORIES))


@pytest.fixture(scope="module")
def weights(tmp_path_factory, resolver):
    """Files of an untrained super-resolver and segmenter, as the training commands write them."""
    folder = tmp_path_factory.mktemp("weights")
    shape = {"upsampling": "nearest", "width": 8, "blocks": 1, "conditioning": "sft", "on_bicubic": True}
    save_weights(folder / "own.safetensors", resolver.network.state_dict(), shape)
    card = {"network": "lite", "categories": list(CATEGORIES)}
    save_weights(folder / "eyes.safetensors", resolver.segmenter.network.state_dict(), card)
    return folder


def test_it_enlarges_by_four_with_its_own_maps_or_given_ones(resolver):
    images = torch.rand(2, 3, 12, 15)
    made = resolver(images)
    assert made.shape == (2, 3, 48, 60) and made.dtype == torch.float32
    assert torch.equal(made, resolver(images, resolver.maps(images)))
    assert not torch.equal(made, resolver(images, prior("sky", 48, 60).expand(2, -1, -1, -1)))


def test_a_network_that_is_told_nothing_needs_no_segmenter(resolver):
    blind = SuperResolver("blind", SFTNet(width=8, blocks=1, conditioning="none"), resolver.segmenter)
    images = torch.rand(2, 3, 5, 6)
    torch.testing.assert_close(blind(images), blind(images, resolver.maps(images)))


@pytest.mark.parametrize(
    ("images", "maps", "message"),
    [
        (torch.rand(1, 3, 3, 9), None, "images must be of shape .* at least 4 pixels"),
        (torch.rand(3, 9, 9), None, "images must be of shape"),
        (torch.rand(1, 3, 8, 8), torch.rand(1, 8, 16, 16), "maps must be of shape"),
        (torch.rand(1, 3, 8, 8), torch.ones(1, 8, 32, 32), "maps must be shares .* sum to one"),
    ],
)
def test_bad_images_and_maps_are_refused(resolver, images, maps, message):
    with pytest.raises(InvalidArgument, match=message):
        resolver(images, maps)


def test_unknown_names_and_other_files_are_refused(weights):
    with pytest.raises(InvalidArgument, match="prior must be one of background, sky"):
        prior("cloud", 8, 8)
    with pytest.raises(InvalidArgument, match="weights must be one of"):
        load_super_resolver("best")
    with pytest.raises(InvalidArgument, match="weights must be those of a super-resolver"):
        load_super_resolver(weights / "eyes.safetensors")
    with pytest.raises(InvalidArgument, match="weights must be those of a segmenter"):
        load_super_resolver(weights / "own.safetensors", segmenter=weights / "own.safetensors")


def test_decimating_undoes_enlarging():
    small = torch.rand(2, 3, 16, 21, dtype=torch.float64)
    torch.testing.assert_close(decimated(bicubic(small, 4)), small, atol=1e-9, rtol=0)
    torch.testing.assert_close(decimated(torch.full((1, 3, 16, 16), 0.4)), torch.full((1, 3, 4, 4), 0.4))


def test_the_tool_keeps_the_size(resolver):
    tool = Resharpen(resolver)
    for size in ((63, 63), (16, 40), (17, 18)):
        assert tool(torch.rand(2, 3, *size)).shape == (2, 3, *size)
    with torch.autocast("cpu", torch.bfloat16):
        assert tool(torch.rand(1, 3, 63, 63)).dtype == torch.float32


@needs_weights
def test_it_is_registered_as_third_parties_do():
    assert "sft-x4" in tool_names()
    assert load_toolbox("classical", ["sft-x4"]).names[-1] == "sft-x4"
    env = gym.make("Restore-v0", extra_tools=("sft-x4",))
    assert env.action_space.n == 14
    env = gym.make("RestoreSR-v0")
    assert env.action_space.n == 14
    env.reset(seed=0)
    assert np.isfinite(env.step(12)[1])
    envs = gym.make_vec("RestoreSR-v0", 2, split="validation")
    assert envs.single_action_space.n == 14


@needs_weights
def test_the_tool_restores_lost_resolution_better_than_nothing():
    clean, damaged = damaged_patches(load_images("bundled", "test"), torch.arange(48), recipe("x4"), 63)
    lost_only = enlarged_again(clean)
    with torch.no_grad():
        made = load_tool("sft-x4")(lost_only)
    before, after = ((x - clean).square().mean().log10() for x in (lost_only, made))
    assert after < before - 0.03
    assert damaged.shape == clean.shape


def test_a_patch_that_lost_resolution_is_cut_from_the_whole_image_that_did():
    rng = np.random.default_rng(0)
    smooth = Image.fromarray(rng.integers(0, 255, (24, 32, 3), np.uint8)).resize((256, 192), Image.Resampling.BICUBIC)
    pool = ImagePool([np.array(smooth)], ["one"])
    whole = pool.images[0][None].float() / 255
    blurred = enlarged_again(whole)
    found = 0
    for key in range(40):
        keys = torch.tensor([key])
        drawn = uniform(keys, 4, stream=2)
        if recipe("x4").draw(drawn)[2].item() != LOSSLESS:
            continue
        clean, damaged = damaged_patches(pool, keys, recipe("x4"), 63)
        for top in range(0, 192 - 63 + 1, 8):
            for left in range(0, 256 - 63 + 1, 8):
                inside = 24 <= top <= 192 - 63 - 24 and 24 <= left <= 256 - 63 - 24
                if inside and torch.equal(whole[:, :, top : top + 63, left : left + 63], clean):
                    expected = blurred[:, :, top : top + 63, left : left + 63]
                    torch.testing.assert_close(damaged, expected, atol=1e-6, rtol=0)
                    found += 1
    assert found >= 3


def test_recipes_that_lose_resolution():
    keys = torch.arange(400)
    drawn = uniform(keys, 4, stream=2)
    assert recipe("x4").lost(drawn).all()
    assert 0.4 < recipe("with-x4").lost(drawn).float().mean() < 0.6
    assert not recipe("mixed").lost(drawn).any()
    blur, _, _ = recipe("with-x4").draw(drawn)
    assert (blur[recipe("with-x4").lost(drawn)] == 0).all()
    pool = load_images("bundled", "validation")
    together = damaged_patches(pool, keys[:9], recipe("with-x4"), 63)[1]
    alone = torch.cat([damaged_patches(pool, keys[i : i + 1], recipe("with-x4"), 63)[1] for i in range(9)])
    assert torch.equal(together, alone)


def test_distort_loses_resolution_where_told():
    images = torch.rand(2, 3, 32, 32)
    zero, lossless = torch.zeros(2), torch.full((2,), LOSSLESS)
    noise = normal(torch.arange(2), (3, 32, 32))
    damaged = distort(images, zero, zero, lossless, noise=noise, lost=torch.tensor([True, False]))
    torch.testing.assert_close(damaged[0], enlarged_again(images)[0])
    assert torch.equal(damaged[1], images[1])
    with pytest.raises(InvalidArgument, match="lost must be a bool tensor"):
        distort(images, zero, zero, lossless, noise=noise, lost=torch.tensor([1.0, 0.0]))


class _Halves:
    """Stands in for a segmenter: sky at the left, grass at the right."""

    categories = CATEGORIES

    def __call__(self, images):
        _, _, height, width = images.shape
        left = width // 2
        return torch.cat((prior("sky", height, left), prior("grass", height, width - left)), 3)


@pytest.mark.parametrize("conditioning", CONDITIONING)
def test_photographs_are_enlarged_without_seams(conditioning):
    torch.manual_seed(0)
    network = SFTNet(width=8, blocks=1, conditioning=conditioning, on_bicubic=True)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter *= 3.0 if network.is_inserted(name) else 1.0  # so that one sees what conditions change
    resolver = SuperResolver("untrained", network, _Halves())
    image = np.random.default_rng(0).integers(0, 255, (61, 90, 3), np.uint8)
    enlarged = []
    for category in ("plant", None):
        whole = upscale(image, resolver, tile=500, category=category)
        tiled = upscale(image, resolver, tile=20, category=category)
        assert whole.shape == (244, 360, 3)
        assert np.abs(whole.astype(int) - tiled.astype(int)).max() <= 1
        enlarged.append(whole.astype(int))
    assert (np.abs(enlarged[0] - enlarged[1]).max() > 2) == (conditioning != "none")


@pytest.mark.parametrize(
    ("image", "settings", "message"),
    [
        (np.zeros((7, 40, 3), np.uint8), {}, "image must be at least 8 pixels"),
        (np.zeros((40, 40), np.uint8), {}, "image must be a uint8 array"),
        (np.zeros((9, 9, 3), np.uint8), {"category": "cloud"}, "prior must be one of"),
    ],
)
def test_photographs_that_cannot_be_enlarged_are_refused(resolver, image, settings, message):
    with pytest.raises(InvalidArgument, match=message):
        upscale(image, resolver, **settings)


def _run(capsys, *arguments):
    with pytest.raises(SystemExit) as ended:
        main([str(a) for a in arguments])
    return ended.value.code, capsys.readouterr()


def test_the_upscale_command_keeps_what_the_file_says(tmp_path, weights, capsys):
    photo, out = tmp_path / "a.png", tmp_path / "b.png"
    rgba = np.random.default_rng(0).integers(0, 255, (20, 24, 4), np.uint8)
    Image.fromarray(rgba, "RGBA").save(photo)
    with_weights = [
        "--weights",
        weights / "own.safetensors",
        "--segmenter",
        weights / "eyes.safetensors",
        "--device",
        "cpu",
    ]
    code, said = _run(capsys, "upscale", photo, "-o", out, "--json", *with_weights)
    assert code == 0
    assert json.loads(said.out)["width"] == 96
    with Image.open(out) as made:
        assert made.size == (96, 80) and made.mode == "RGBA"
    code, said = _run(capsys, "upscale", photo, "-o", out, *with_weights)
    assert code == 2 and "output must be a new file unless --overwrite" in said.err
    code, said = _run(capsys, "upscale", photo, "-o", tmp_path / "c.png", "--category", "cloud", *with_weights)
    assert code == 2 and "category must be one of background, sky" in said.err
    assert not (tmp_path / "c.png").exists()


def test_the_pictures_of_the_paper_are_drawn_by_one_command(tmp_path, weights, capsys, monkeypatch):
    monkeypatch.setattr(
        "restoration_env.sft.super_resolver.load_segmenter",
        lambda path, device: Segmenter(LiteSegmenter(), CATEGORIES),
    )
    photo = tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 70, 3), np.uint8)).save(photo)
    own = weights / "own.safetensors"
    code, _ = _run(
        capsys,
        "sft-pictures",
        photo,
        "-o",
        tmp_path,
        "--weights",
        own,
        "--against",
        own,
        "--side",
        48,
        "--device",
        "cpu",
    )
    assert code == 0
    for name in ("priors", "modulation", "comparison"):
        with Image.open(tmp_path / f"{name}.png") as drawn:
            assert drawn.width > 300
    code, said = _run(
        capsys, "sft-pictures", photo, "-o", tmp_path, "--weights", own, "--channel", 8, "--device", "cpu"
    )
    assert code == 2 and "channel must be between 0 and 7" in said.err
    code, said = _run(capsys, "sft-pictures", photo, "-o", tmp_path, "--weights", own, "--side", 20, "--device", "cpu")
    assert code == 2 and "32 pixels" in said.err


@needs_weights
@pytest.mark.skipif(not (SHARED / "data" / "eval" / "Set14").is_dir(), reason="no Set14 beside it")
def test_the_shipped_resolver_gains_on_set14():
    resolver, gains = load_super_resolver(), []
    for path in sorted((SHARED / "data" / "eval" / "Set14").iterdir())[:6]:
        with Image.open(path) as file:
            rgb = torch.from_numpy(np.array(file.convert("RGB"))).permute(2, 0, 1)[None, :, :256, :256].float() / 255
        rgb = rgb[..., : rgb.shape[2] // 4 * 4, : rgb.shape[3] // 4 * 4]
        low = (bicubic(rgb, 0.25) * 255).round().clamp(0, 255) / 255
        errors = [(made.clamp(0, 1) - rgb).square().mean() for made in (bicubic(low, 4), resolver(low))]
        gains.append(10 * (errors[0] / errors[1]).log10().item())
    assert np.mean(gains) > 0.4
