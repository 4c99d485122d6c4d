"""Super-resolvers held against each other, and what the tool adds to a toolbox."""

import json

import pytest
import torch
from helpers import tiny
from scenery import write_scenes

from restoration_env.agents.agent import ToolchainAgent
from restoration_env.agents.network import build_network
from restoration_env.benchmarks.lost_resolution import HALVES, TOOL, measure
from restoration_env.benchmarks.suites import patch_suite
from restoration_env.cli import main
from restoration_env.distortions import recipe
from restoration_env.errors import InvalidArgument
from restoration_env.files import read_weights, save_weights
from restoration_env.resizing import bicubic
from restoration_env.sft.comparison import compare
from restoration_env.sft.conditioning import CATEGORIES
from restoration_env.sft.generator import SFTNet
from restoration_env.sft.scenes import VOID, load_scenes
from restoration_env.sft.super_resolver import load_super_resolver
from restoration_env.toolbox import Tool, Toolbox


def test_each_scene_counts_for_all_and_for_what_fills_half_of_it(tmp_path):
    scenes = load_scenes(write_scenes(tmp_path, count=3, height=64, width=64), "all")
    scenes.labels[0][:] = 4
    rows = compare(scenes, {"same": lambda low: bicubic(low, 4), "grey": lambda low: torch.full((1, 3, 64, 64), 0.5)})
    assert [row["method"] for row in rows] == ["bicubic", "same", "grey"]
    assert rows[0]["all"]["scenes"] == 3 and rows[0]["mountain"]["scenes"] == 2  # one was made so, one is
    assert rows[0]["all"] == rows[1]["all"]
    assert rows[2]["all"]["psnr"] < rows[0]["all"]["psnr"] and rows[2]["all"]["lpips"] > rows[0]["all"]["lpips"]
    with pytest.raises(InvalidArgument, match="small must be a function that returns"):
        compare(scenes, {"small": lambda low: low})


def test_regions_are_all_that_is_labelled_with_a_category(tmp_path):
    scenes = load_scenes(write_scenes(tmp_path, count=2, height=64, width=64), "all")
    for label in scenes.labels:
        label[:] = CATEGORIES.index("sky")
    scenes.labels[0][:, :32] = CATEGORIES.index("grass")
    scenes.labels[1][:, :16] = VOID

    def spoils_the_left(low):
        made = bicubic(low, 4)
        made[..., :32] = 0.5
        return made

    plain, spoilt = (row["regions"] for row in compare(scenes, {"spoilt": spoils_the_left}))
    assert list(plain) == ["sky", "grass"] and (plain["sky"]["scenes"], plain["grass"]["scenes"]) == (2, 1)
    assert plain["grass"]["share"] == pytest.approx(2 / 7, abs=1e-3)
    assert spoilt["grass"]["psnr"] < plain["grass"]["psnr"] and spoilt["grass"]["lpips"] > plain["grass"]["lpips"]
    scenes.labels[1][:, :32] = VOID  # then the spoilt half is no part of the sky
    plain, spoilt = (row["regions"] for row in compare(scenes, {"spoilt": spoils_the_left}))
    assert spoilt["sky"]["psnr"] == plain["sky"]["psnr"]


def test_one_region_of_all_pixels_has_the_plain_measures(tmp_path):
    scenes = load_scenes(write_scenes(tmp_path, count=1, height=64, width=64), "all")
    scenes.labels[0][:] = CATEGORIES.index("water")
    (row,) = compare(scenes, {})
    assert row["regions"] == {"water": {**row["water"], "share": 1.0}}


def test_the_command_compares_files(tmp_path, monkeypatch, capsys):
    from restoration_env.sft.segmenter import LiteSegmenter, Segmenter

    monkeypatch.setattr(
        "restoration_env.sft.super_resolver.load_segmenter",
        lambda path, device: Segmenter(LiteSegmenter(), CATEGORIES),
    )
    network = SFTNet(width=8, blocks=1, conditioning="film")
    shape = {"upsampling": "nearest", "width": 8, "blocks": 1, "conditioning": "film", "on_bicubic": False}
    save_weights(tmp_path / "mine.safetensors", network.state_dict(), shape)
    scenes = write_scenes(tmp_path / "scenes", count=3, height=64, width=64)
    with pytest.raises(SystemExit) as ended:
        words = ["sft-compare", str(tmp_path / "mine.safetensors"), "--scenes", str(scenes), "--split", "all"]
        main([*words, "-o", str(tmp_path / "result.json")])
    assert ended.value.code == 0
    result = json.loads((tmp_path / "result.json").read_text())
    assert [row["method"] for row in result["rows"]] == ["bicubic", "mine"]
    assert result["weights"]["mine"]["conditioning"] == "film" and len(result["weights"]["mine"]["sha256"]) == 64
    assert result["command"] == "restoration-env sft-compare mine --scenes scenes --split all"


def test_what_the_tool_adds_is_told_for_both_halves():
    suites = {name: patch_suite("bundled", "validation", recipe(name), 4) for name in HALVES}
    plain = tiny()

    def sum_of(image):
        return round((image.double() * 255).sum().item())

    perfect = {sum_of(suite.damaged[i]): suite.clean[i] for suite in suites.values() for i in range(4)}

    def undo(images):
        known = [perfect.get(sum_of(image), image) for image in images]
        return torch.stack(known)

    told = plain.extended([Tool(TOOL, "knows the answer", undo)])
    agent = ToolchainAgent(build_network("statistics", len(told)), told)
    rows = measure(suites, [plain, told], {"untrained": agent})
    assert [row["policy"] for row in rows] == ["greedy oracle", "greedy oracle", "untrained"]
    assert rows[0]["x4"]["share"] == 0 and rows[1]["x4"]["share"] == rows[1]["mixed"]["share"] == 1
    assert rows[1]["gain"] > rows[0]["gain"]
    assert rows[1]["gain"] == pytest.approx((rows[1]["x4"]["gain"] + rows[1]["mixed"]["gain"]) / 2, abs=1e-3)
    assert isinstance(plain, Toolbox)


def test_the_mean_of_runs_is_written_with_what_they_were(tmp_path):
    shape = {"upsampling": "nearest", "width": 8, "blocks": 1, "conditioning": "sft", "on_bicubic": True}
    networks = [SFTNet(width=8, blocks=1, conditioning="sft", on_bicubic=True) for _ in range(2)]
    files = [str(tmp_path / f"{name}.safetensors") for name in ("first", "second")]
    for number, (network, file) in enumerate(zip(networks, files, strict=True), 1):
        save_weights(file, network.state_dict(), {**shape, "name": f"run {number}", "iterations_done": 100 * number})
    with pytest.raises(SystemExit) as ended:
        main(["sft-average", *files, "-o", str(tmp_path / "mean.safetensors")])
    assert ended.value.code == 0
    tensors, card = read_weights(tmp_path / "mean.safetensors")
    for name, value in tensors.items():
        torch.testing.assert_close(value, (networks[0].state_dict()[name] + networks[1].state_dict()[name]) / 2)
    assert [part["iterations_done"] for part in card["mean_of"]] == [100, 200] and card["name"] == "mean"
    assert load_super_resolver(str(tmp_path / "mean.safetensors")).network.conditioning == "sft"


@pytest.mark.parametrize("others", [[], ["film"]])
def test_the_mean_of_one_run_or_of_unequal_ones_is_refused(tmp_path, others, capsys):
    files = []
    for conditioning in ("sft", *others):
        shape = {"upsampling": "nearest", "width": 8, "blocks": 1, "conditioning": conditioning, "on_bicubic": True}
        files.append(str(tmp_path / f"{conditioning}.safetensors"))
        save_weights(files[-1], SFTNet(width=8, blocks=1, conditioning=conditioning).state_dict(), shape)
    with pytest.raises(SystemExit) as ended:
        main(["sft-average", *files, "-o", str(tmp_path / "mean.safetensors")])
    assert ended.value.code == 2 and not (tmp_path / "mean.safetensors").exists()
    assert ("generators like the first" if others else "at least two files") in capsys.readouterr().err
