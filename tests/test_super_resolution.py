"""The super-resolution leaderboard: its networks, their data, losses and training, and what is measured."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.color import rgb2ycbcr
from torch import nn

from restoration_env.benchmarks.readme import ROOT
from restoration_env.benchmarks.super_resolution import load_published, load_resolver, measure, strip_rows
from restoration_env.benchmarks.super_resolution_data import (
    Pairs,
    load_pairs,
    make_pairs,
    training_patches,
    validation_patches,
)
from restoration_env.benchmarks.super_resolution_losses import CROP, Discriminator
from restoration_env.benchmarks.super_resolvers import SPECS, LapSRN, build_resolver, luma
from restoration_env.cli import main
from restoration_env.errors import InvalidArgument
from restoration_env.files import save_weights
from restoration_env.pixels import eight_bit
from restoration_env.resizing import SCALE, bicubic
from restoration_env.sft.generator import SFTNet

SETS = ROOT.parent / "shared" / "data" / "eval"
needs_sets = pytest.mark.skipif(not (SETS / "Set5").is_dir(), reason="Set5 and Set14 are not on this machine")


@pytest.fixture(scope="module")
def pairs():
    return load_pairs(["bundled"], split="validation", least=96)


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


# Ours and, in thousands, what the papers and the tables of later ones say. LapSRN's count has transposed convolutions
# of 3x3 where the text has 4x4: the difference is tested below.
@pytest.mark.parametrize(
    ("name", "ours", "tolerance"),
    [
        ("srcnn", 57_281, 0.01),
        ("vdsr", 665_921, 0.01),
        ("lapsrn", 870_112, 0.08),
        ("drrn", 297_216, 0.01),
        ("memnet", 676_998, 0.01),
        ("srresnet", 1_549_462, 0.01),
        ("srgan", 1_549_462, 0.01),
        ("enhancenet-e", 852_867, 0.01),
        ("enhancenet", 852_867, 0.01),
        ("sft-net", 328_707, 0.01),  # of no table but ours
    ],
)
def test_networks_have_the_published_sizes(name, ours, tolerance):
    assert parameters(build_resolver(name)) == ours
    assert ours / 1000 == pytest.approx(SPECS[name].published, rel=tolerance)


def test_lapsrns_published_count_has_transposed_convolutions_of_three_pixels():
    ups = [module for module in LapSRN().modules() if isinstance(module, nn.ConvTranspose2d)]
    as_counted = parameters(LapSRN()) - sum(up.weight[:, :, 0, 0].numel() * (16 - 9) for up in ups)
    assert as_counted / 1000 == pytest.approx(SPECS["lapsrn"].published, rel=0.001)


def test_sizes_of_the_discriminators():
    # SRGAN's Figure 4: eight convolutions, then 512 x 6 x 6 to 1024 to 1.
    assert parameters(Discriminator()) == 23_565_505
    assert Discriminator(32, 5, normalise=False)(torch.rand(2, 3, CROP, CROP)).shape == (2,)
    with pytest.raises(InvalidArgument, match="crop"):
        Discriminator()(torch.rand(1, 3, 48, 48))


@pytest.mark.parametrize("name", SPECS)
def test_a_fresh_network_enlarges_by_four_and_all_of_it_learns(name):
    torch.manual_seed(0)
    network, image = build_resolver(name), torch.rand(1, 3, 8, 10)
    made = network(image)
    assert made.shape == (1, 3, 32, 40)
    if name != "lapsrn":  # which begins as its own bilinear interpolation
        torch.testing.assert_close(made, bicubic(image, SCALE), atol=1e-5, rtol=0)
    optimizer = torch.optim.SGD(network.parameters(), 1e-2)
    for _ in range(2):  # what begins with zero hands gradients on from the second step
        optimizer.zero_grad()
        network.judged(network(image) - 0.1).square().mean().backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    assert sum(p.grad.abs().sum() > 0 for p in network.parameters()) > 0.7 * len(list(network.parameters()))


@pytest.mark.parametrize("name", ["srcnn", "memnet"])
def test_a_luma_network_changes_the_luma_alone(name):
    torch.manual_seed(0)
    network = build_resolver(name)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.003 * torch.randn_like(parameter))
        image = 0.3 + 0.4 * torch.rand(1, 3, 10, 12)
        made, wide = network(image), bicubic(image, SCALE)
    ours, plain = (rgb2ycbcr(x[0].permute(1, 2, 0).double().numpy()) for x in (made, wide))
    np.testing.assert_allclose(ours[..., 1:], plain[..., 1:], atol=1e-3)
    found = network.enlarge(luma(image), luma(wide))
    np.testing.assert_allclose(ours[..., 0] / 255, found[0, 0].detach().numpy(), atol=1e-5)
    assert np.abs(ours[..., 0] - plain[..., 0]).max() > 0.1


def test_luma_is_scikit_images():
    image = torch.rand(2, 3, 5, 6, dtype=torch.float64)
    expected = rgb2ycbcr(image.permute(0, 2, 3, 1).numpy())[..., 0] / 255
    np.testing.assert_allclose(luma(image)[:, 0].numpy(), expected, atol=1e-9)


def test_patches_are_parts_of_the_photographs_and_their_small_versions(pairs):
    large, small = training_patches(pairs, 6, 48, 3)
    assert large.shape == (6, 3, 48, 48) and small.shape == (6, 3, 12, 12)
    # Away from the border a small patch is what shrinking the large one gives, turned and mirrored alike.
    shrunk = eight_bit(bicubic(large, 1 / SCALE)).float() / 255
    inner = (..., slice(2, -2), slice(2, -2))
    assert (shrunk - small)[inner].abs().max() < 1.5 / 255
    assert all(torch.equal(a, b) for a, b in zip((large, small), training_patches(pairs, 6, 48, 3), strict=True))
    assert not torch.equal(large, training_patches(pairs, 6, 48, 4)[0])
    assert not torch.equal(large, training_patches(pairs, 6, 48, 3, seed=1)[0])
    large, small = validation_patches(pairs, 8, 96)
    assert large.shape[1:] == (3, 96, 96) and small.shape[1:] == (3, 24, 24)


def test_photographs_are_cut_to_multiples_of_four_and_tiny_ones_refused():
    image = torch.randint(0, 256, (3, 43, 50), dtype=torch.uint8)
    made = make_pairs([image], ["a"])
    assert torch.equal(made.large[0], image[:, :40, :48]) and made.small[0].shape == (3, 10, 12)
    other = Pairs(made.large, (made.small[0] ^ 1,), made.names)
    assert made.digest == make_pairs([image], ["b"]).digest != other.digest
    with pytest.raises(InvalidArgument, match="32 pixels"):
        make_pairs([image[:, :31]], ["a"])
    with pytest.raises(InvalidArgument, match="photographs of"):
        load_pairs(["bundled"], split="validation", least=9_000)


def test_published_weights_are_taken_by_name_or_by_order(tmp_path):
    state = build_resolver("vdsr").state_dict()
    random = {name: torch.randn_like(value) * 0.01 for name, value in state.items()}
    renamed = {f"layer{number}": value for number, value in enumerate(random.values())}
    torch.save(random, tmp_path / "names.pth")
    torch.save({"state_dict": renamed}, tmp_path / "order.pth")
    for file in ("names.pth", "order.pth"):
        found = load_published("vdsr", tmp_path / file)
        assert all(torch.equal(found[name], random[name]) for name in state)
    resolver = load_resolver("vdsr", published=tmp_path / "order.pth")
    assert resolver.title == "VDSR (published)" and resolver(torch.rand(1, 3, 8, 8)).shape == (1, 3, 32, 32)
    (tmp_path / "text.pth").write_text("no weights")
    for name, file in (("srcnn", "names.pth"), ("vdsr", "text.pth"), ("vdsr", "none.pth")):
        with pytest.raises(InvalidArgument, match="published weights"):
            load_published(name, tmp_path / file)


def nearest(images):
    return nn.functional.interpolate(images, scale_factor=4.0, mode="nearest")


def test_functions_of_others_can_be_measured_and_must_enlarge_by_four(pairs):
    resolver = load_resolver("test_super_resolution:nearest")
    row, plain = measure(resolver, pairs), measure(load_resolver("bicubic"), pairs)
    assert row["psnr_rgb"] < plain["psnr_rgb"] and row["psnr_luma"] < plain["psnr_luma"] and row["lpips"] > 0
    with pytest.raises(InvalidArgument, match="enlarges by four"):
        load_resolver("torch:relu")(torch.rand(1, 3, 8, 8))
    for name in ("nobody:nothing", "torch:no_such_thing"):
        with pytest.raises(InvalidArgument, match="module:callable"):
            load_resolver(name)
    with pytest.raises(InvalidArgument, match="bicubic, srcnn"):
        load_resolver("resnet")
    with pytest.raises(InvalidArgument, match="weights"):
        load_resolver("srcnn", "no/such/folder")


def test_an_sft_net_is_measured_from_its_file(tmp_path, pairs):
    torch.manual_seed(0)
    shape = {"upsampling": "nearest", "width": 8, "blocks": 1, "conditioning": "sft", "on_bicubic": True}
    network = SFTNet(**shape)
    size = parameters(network)
    save_weights(tmp_path / "mine.safetensors", network.state_dict(), {**shape, "parameters": size})
    resolver = load_resolver(str(tmp_path / "mine.safetensors"))
    assert (resolver.title, resolver.parameters) == ("SFT-Net (mine)", size)
    assert resolver(pairs.small[0][None, :, :24, :32].float() / 255).shape == (1, 3, 96, 128)


def test_a_perfect_super_resolver_has_perfect_numbers(pairs, monkeypatch):
    photographs = iter([image[None].float() / 255 for image in pairs.large])
    resolver = load_resolver("bicubic")
    monkeypatch.setattr(type(resolver), "__call__", lambda self, images: next(photographs))
    row = measure(resolver, pairs)
    assert (row["psnr_rgb"], row["psnr_luma"], row["ssim"], row["lpips"]) == (100, 100, 1, 0)


@needs_sets
def test_bicubic_has_the_published_numbers_on_set5():
    """PSNR 28.42 dB and LPIPS 0.3407 are what the literature has for MATLAB's bicubic on Set5."""
    row = measure(load_resolver("bicubic"), load_pairs([str(SETS / "Set5")]))
    assert row["psnr_luma"] == pytest.approx(28.42, abs=0.02)
    assert row["lpips"] == pytest.approx(0.3407, abs=0.001)


def test_strips_show_the_busiest_part():
    flat = torch.full((3, 64, 64), 90, dtype=torch.uint8)
    flat[:, 40:60, 40:60] = torch.randint(0, 256, (3, 20, 20), dtype=torch.uint8)
    (row,) = strip_rows([load_resolver("bicubic")], make_pairs([flat], ["a"]), 3, crop=32)
    assert row["clean"].shape == (32, 32, 3) and row["clean"].std() > 0.8 * flat[:, 32:, 32:].float().std()
    (title, value, part) = row["parts"][0]
    assert title == "bicubic" and part.shape == (32, 32, 3) and math.isfinite(value)


def run(*arguments):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    return ended.value.code


def test_the_commands_train_measure_and_go_on(tmp_path, capsys):
    folder = tmp_path / "photos"
    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(4):
        coarse = Image.fromarray(random.integers(0, 256, (14, 14, 3), dtype=np.uint8))
        coarse.resize((112, 112), Image.Resampling.BICUBIC).save(folder / f"{number}.png")
    out, result = tmp_path / "weights", tmp_path / "result.json"
    options = ["--images", str(folder), "--out", str(out), "--budget", "8p", "--batch", "2", "--device", "cpu"]
    assert run("train", "sr", "srcnn", *options) == 0
    card = json.loads((out / "srcnn.json").read_text())
    assert card["command"].startswith("restoration-env train sr srcnn --images photos --budget 8p")
    assert run("train", "sr", "srcnn", *options) == 0
    assert "already trained" in capsys.readouterr().err
    assert run("train", "sr", "srcnn", *options[:-4], "--budget", "soon") == 2
    options = ["--images", str(folder), "--weights", str(out), "--json", str(result), "--device", "cpu"]
    assert run("sr", *options, "--limit", "2", "--strips", str(tmp_path / "strips")) == 0
    assert "SRCNN" in capsys.readouterr().out and Path(tmp_path / "strips" / "photos.png").is_file()
    first = json.loads(result.read_text())
    assert set(first["sets"]["photos"]["rows"]) == {"bicubic", "SRCNN"} and first["sets"]["photos"]["images"] == 2
    assert run("sr", "bicubic", *options, "--limit", "2") == 0
    second = json.loads(result.read_text())
    assert first["commands"] == second["commands"] == [first["command"]]  # the second had nothing to measure
    assert run("sr", f"{__name__}:nearest", *options, "--limit", "2") == 0
    third = json.loads(result.read_text())
    assert third["commands"] == [first["command"], third["command"]]  # all that its rows came from
    assert second["sets"] == first["sets"] and second["resolvers"] == first["resolvers"]
    assert run("sr", *options, "--limit", "0") == 2
    assert run("sr", *options, "--published", "vdsr") == 2
