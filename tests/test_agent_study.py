"""Studies of agents: equal budgets, several seeds, the numbers and the picture made of them."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from checks import write_checks
from helpers import tiny  # registers the toolbox
from PIL import Image

from restoration_env.agents import sb3
from restoration_env.agents.sb3 import algorithm_names
from restoration_env.benchmarks.agent_study import STUDIES, Workshop, contestants, curve, images_needed, mean_curve
from restoration_env.benchmarks.curves import draw_curves
from restoration_env.cli import main
from restoration_env.errors import InvalidArgument

assert tiny


def test_all_variants_have_the_same_budget() -> None:
    drqn = [c for c in STUDIES["variants"] if c.algorithm == "drqn"]
    for budget in ("episodes", "batch", "updates", "sample", "severity", "network"):
        assert len({c.settings[budget] for c in drqn}) == 1
    assert [c.settings["max_steps"] for c in STUDIES["horizons"]] == [1, 2, 3, 4, 5, 6]
    assert [c.label for c in STUDIES["baselines"]] == list(algorithm_names())
    for name in STUDIES:
        for contestant in contestants(name):
            contestant.config(1, {})  # its settings are ones that there are
    with pytest.raises(InvalidArgument, match="variants, horizons"):
        contestants("nothing")
    with pytest.raises(InvalidArgument, match="dueling"):
        contestants("variants", ["duelling"])


def test_curves_are_averaged_and_read() -> None:
    one = curve({"history": [{"images": 10, "gain": 1.0}, {"images": 20, "gain": 2.0}]})
    other = curve({"history": [{"images": 10, "mild": 9, "moderate": 2.0}, {"images": 20, "mild": 9, "moderate": 4.0}]})
    points = mean_curve([one, other])
    assert points == [(10, 1.5, pytest.approx(0.5**0.5)), (20, 3.0, pytest.approx(2**0.5))]
    assert images_needed(points, 1.5) == 10
    assert images_needed(points, 2.25) == pytest.approx(15)
    assert images_needed(points, 3.1) is None
    with pytest.raises(InvalidArgument, match="same numbers of images"):
        mean_curve([one, [(10, 1.0)]])


def test_curves_are_drawn() -> None:
    points = {"first": [(10, 1.0, 0.1), (100, 2.0, 0.2), (1000, 2.5, 0.1)], "second": [(1000, 2.5, 0.0)]}
    plain = draw_curves(points, "title", "images", "dB")
    logarithmic = draw_curves(points, "title", "images", "dB", logarithmic=True)
    assert plain.dtype == np.uint8 and plain.shape == logarithmic.shape and (plain != logarithmic).any()
    for colour in ((32, 92, 150), (196, 98, 16)):
        assert (plain == colour).all(2).sum() > 20
    with pytest.raises(InvalidArgument, match="curves"):
        draw_curves({}, "title", "images", "dB")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write_checks(tmp_path / "checks", count=20, side=80)


def words(images: Path, tmp_path: Path, *more: str) -> list[str]:
    said = [
        "agent-study",
        "variants",
        "--toolbox",
        "tiny",
        "--images",
        str(images),
        "--test",
        str(images),
        "--count",
        "2",
    ]
    said += ["--only", "double", "--only", "exact values", "--episodes", "32", "--evaluate-every", "1"]
    said += ["--validation-images", "2", "--severity", "noise", "--seeds", "2", "--device", "cpu"]
    return [*said, "--folder", str(tmp_path / "runs"), "--json", str(tmp_path / "study.json"), *more]


def test_the_command_compares_over_seeds_and_makes_no_run_twice(images, tmp_path, capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words(images, tmp_path, "--picture", str(tmp_path / "curves.png")))
    assert ended.value.code == 0
    result = json.loads((tmp_path / "study.json").read_text())
    assert set(result["rows"]) == {"double", "exact values"}
    for row in result["rows"].values():
        assert row["seeds"] == 2 and row["training_images"] == 32
        assert {"gain", "gain_std", "harmed", "mean_tools"} <= set(row["suites"]["mild"])
    assert result["images_for_the_same_gain"]["double"]["images"] == 32
    assert Image.open(tmp_path / "curves.png").size == (920, 520)
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").glob("*.safetensors")}
    assert len(made) == 4
    with pytest.raises(SystemExit):
        main(words(images, tmp_path))
    assert made == {path: path.stat().st_mtime_ns for path in made}
    again = json.loads((tmp_path / "study.json").read_text())
    for label, row in again["rows"].items():
        assert row["suites"] == result["rows"][label]["suites"]
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(words(images, tmp_path, "--severity", "blur"))
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "severity=noise" in said and "severity=blur" in said


def test_baselines_run_in_the_same_workshop(images, tmp_path, monkeypatch) -> None:
    changes = {"steps": 64, "envs": 4, "evaluate_every": 32, "validation_images": 2, "patch_size": 20}
    runs = Workshop(tmp_path / "runs", str(images), "tiny", changes={**changes, "severity": "noise"})
    (contestant,) = contestants("baselines", ["a2c"])
    card = runs.train(contestant, 0)
    assert card["training"]["steps_done"] >= 64 and 20 <= card["images_seen"] <= 64
    assert [x for x, _ in curve(card)][:2] == [32, 64]
    assert runs.load(contestant, 0).name == "a2c"
    changed = tuple(replace(row, learning_rate=1e-5) for row in sb3.ALGORITHMS)
    monkeypatch.setattr(sb3, "ALGORITHMS", changed)  # a run made with another row of the table is not this one
    with pytest.raises(InvalidArgument, match="algorithm"):
        runs.train(contestant, 0)
