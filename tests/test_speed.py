"""What the speed command measures and says."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from helpers import needs_cnn12, tiny

from restoration_env.backends import openvino_installed
from restoration_env.benchmarks import speed
from restoration_env.benchmarks.commands_speed import speed as command
from restoration_env.benchmarks.commands_speed import tables
from restoration_env.benchmarks.speed_convolutions import MUONS, muon_steps, training_steps
from restoration_env.benchmarks.speed_photo import TOOLS, picture
from restoration_env.benchmarks.speed_picture import draw_speed
from restoration_env.devices import multiplies_bfloat16, processor_units
from restoration_env.errors import InvalidArgument
from restoration_env.tools.catalogue import NAMES
from restoration_env.winograd import has_compiler

RESULT = json.loads((Path(speed.__file__).parent / "results" / "speed.json").read_text(encoding="utf-8"))


def rates(**ratios: float) -> dict:
    return {"naive": {"steps_per_second": 100.0}, **{name: {"ratio_to_naive": ratio} for name, ratio in ratios.items()}}


def test_only_what_agrees_with_float32_can_be_the_fastest() -> None:
    ways = rates(exact=1.0, near=3.0, far=9.0)
    agree = {"near": {"largest": 0.02}, "far": {"largest": 0.0201}}
    assert speed.fastest_that_agrees(ways, agree) == "near"
    assert speed.fastest_that_agrees(rates(exact=4.0, near=3.0), agree) == "exact"


def test_every_environment_takes_the_same_actions_and_they_are_counted() -> None:
    plain = speed.Steps(speed.naive(4, "cpu", toolbox="tiny"), 4)
    batched = speed.Steps(speed.RestoreVectorEnv(4, toolbox="tiny"), 4)
    for run in (plain, batched):
        assert run.take(6) > 0
        assert run.rate(0.0, least=3) > 0
    np.testing.assert_array_equal(plain.counts, batched.counts)
    assert plain.counts.sum() == 9 * 4 and len(plain.counts) == 4


def test_contenders_are_those_installed() -> None:
    names = [way.name for way in speed.contenders("cpu")]
    assert names[:2] == ["torch float32", "torch bfloat16"]
    assert ("openvino int8" in names) == openvino_installed()
    assert [way.backend for way in speed.contenders("cuda")] == ["torch", "torch"]


def test_copies_of_a_tool_make_a_toolbox() -> None:
    box = speed._copies(tiny()["blur"], 5)
    assert len(box) == 5 and {tool.description for tool in box} == {"averages 3x3 pixels"}


def test_the_picture_of_a_photograph_has_the_size_asked_for() -> None:
    assert picture(64, 48).shape == (48, 64, 3) and set(TOOLS) <= set(NAMES)


def test_the_result_that_ships_is_drawn_and_tabulated() -> None:
    drawn = draw_speed(RESULT)
    assert drawn.dtype == np.uint8 and drawn.shape[2] == 3 and drawn.std() > 5
    assert [table.title for table in tables(RESULT)][2:] == ["growth", "photograph", "learning loops"]


def test_the_result_that_ships_names_what_was_not_run() -> None:
    on_gpu = "CPU" not in RESULT["device"]
    assert on_gpu or len([line for line in RESULT["not_run"] if "GPU" in line]) == 4
    best = RESULT["fastest"]
    assert RESULT["ratio_to_naive"] == RESULT["rates"][best]["ratio_to_naive"]
    assert RESULT["agreement_db"][best]["largest"] <= speed.AGREES_DB


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--threads", "0"], "--threads must be 1 or more"),
        (["--count", "0"], "--count must be 1 or more"),
        (["--picture", "speed.jpg"], "--picture must be a path that ends in .png"),
        (["--quick", "--picture", "speed.png"], "--picture must be left out with --quick"),
        (["--training-step", "--picture", "speed.png"], "--picture must be left out with --quick and --training-step"),
        (["--device", "tpu"], "device must be"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_measured(arguments, message) -> None:
    result = CliRunner().invoke(command, arguments)
    assert isinstance(result.exception, InvalidArgument) and message in str(result.exception)


@pytest.mark.long
@needs_cnn12
def test_quick_measures_the_ratio(tmp_path) -> None:
    target = tmp_path / "speed.json"
    result = CliRunner().invoke(command, ["--quick", "--device", "cpu", "--json", str(target)])
    assert result.exit_code == 0, result.output
    written = json.loads(target.read_text(encoding="utf-8"))
    assert written["ratio_to_naive"] > 1.5 and written["environments"] == 64
    assert 0.2 < written["rates"][written["fastest"]]["share_of_limit"] < 1.3


@pytest.mark.skipif(not Path("/proc/cpuinfo").is_file(), reason="only Linux says what its processor has")
def test_the_units_of_the_processor_are_among_those_the_system_names():
    named = Path("/proc/cpuinfo").read_text(errors="replace").split()
    units = processor_units()
    assert all(unit in named for unit in units)
    assert ("avx2" in named) == ("avx2" in units)
    assert RESULT["processor"], "the committed result says on what it was measured"


@pytest.mark.skipif(not has_compiler(), reason="needs a C++ compiler")
def test_every_way_takes_its_training_step() -> None:
    told: list[str] = []
    measured = training_steps(turns=1, batch=2, note=told.append)
    assert list(measured) == ["vdsr", "dncnn", "equal-parameters", "equal-multiply-adds"]
    for ways in measured.values():
        assert list(ways)[:2] == ["direct, float32", "winograd, float32"]
        assert ("direct, bfloat16" in ways) == multiplies_bfloat16()
        assert ways["direct, float32"]["times_faster"] == 1.0
        assert all(way["milliseconds_per_patch"] > 0.0 for way in ways.values())
    assert len(told) == 2 * sum(map(len, measured.values()))
    muon = muon_steps(turns=1, note=told.append)
    assert list(muon) == list(measured)
    assert all(list(taken) == list(MUONS) and min(taken.values()) > 0.0 for taken in muon.values())
    (table,) = tables({"training_steps": measured, "muon_steps": muon, "device": "a processor", "threads": 1})
    assert (table.row_count, len(table.columns)) == (4, 1 + len(measured["vdsr"]) + len(MUONS))
