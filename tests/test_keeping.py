"""Tables that grow: what is taken over from an earlier result, and what is refused."""

import json

import pytest
from checks import write_checks
from helpers import tiny  # registers the toolbox

from restoration_env.benchmarks.agent_study import contestants
from restoration_env.benchmarks.entries import Sources
from restoration_env.benchmarks.keeping import with_board, with_study
from restoration_env.cli import main
from restoration_env.errors import InvalidArgument

assert tiny
NO_ORACLE = Sources(oracle="none")


def command(*words):
    with pytest.raises(SystemExit) as end:
        main([*map(str, words)])
    return end.value.code


def run(folder, name, *words):
    said = ["leaderboard", "run", *words, "--suite", "mild", "--count", "3", "--no-looks", "--no-latency"]
    assert command(*said, "--store", folder / name, "--json", folder / f"{name}.json") == 0
    return json.loads((folder / f"{name}.json").read_text())


@pytest.fixture(scope="module")
def boards(tmp_path_factory):
    """A table of three entries, the first two alone, and the third with the first two taken over."""
    folder = tmp_path_factory.mktemp("boards")
    whole = run(folder, "whole", "input", "drqn", "classifier", "--oracle", "greedy")
    first = run(folder, "first", "input", "drqn", "--oracle", "greedy")
    grown = run(folder, "grown", "classifier", "--oracle", "none", "--keep", folder / "first.json")
    return whole, first, grown


def test_a_table_that_grew_is_the_table_measured_at_once(boards):
    whole, first, grown = boards
    rows = {row["policy"]: row for row in grown["suites"]["mild"]["rows"]}
    assert len(rows) == 4
    for row in whole["suites"]["mild"]["rows"]:
        made = rows[row["policy"]].pop("made", None)
        assert rows[row["policy"]] == row  # the regret of the new row is to the oracle that was taken over
        assert (made is None) == (row["policy"] == "classifier (cnn12)")
        assert made is None or made["command"] == first["command"]
    assert grown["command"].endswith("--oracle none --keep first.json")


def test_what_was_timed_before_stays_as_it_is(boards, tmp_path):
    _, first, _ = boards
    (tmp_path / "board.json").write_text(json.dumps(first))
    times = json.dumps({"rows": {"drqn (cnn12)": {"batch_1": 5.0, "batch_256": 1.0}}})
    (tmp_path / "board_latency.json").write_text(times)
    words = ["leaderboard", "run", "input", "--suite", "mild", "--count", "3", "--no-looks", "--oracle", "none"]
    words += ["--store", tmp_path / "store", "--json", tmp_path / "board.json", "--keep", tmp_path / "board.json"]
    assert command(*words) == 0
    assert (tmp_path / "board_latency.json").read_text() == times
    assert len(json.loads((tmp_path / "board.json").read_text())["suites"]["mild"]["rows"]) == 3


def test_a_row_that_is_measured_again_takes_its_old_place(boards):
    whole, first, _ = boards
    again = with_board(whole, first, NO_ORACLE)
    names = [row["policy"] for row in again["suites"]["mild"]["rows"]]
    held = [row["policy"] for row in first["suites"]["mild"]["rows"]]
    assert names == [*held, "classifier (cnn12)"] and not any("made" in row for row in again["suites"]["mild"]["rows"])


def changed(board, **values):
    suite = board["suites"]["mild"]
    rows = [{**row, **values} if row["policy"] == "drqn (cnn12)" else row for row in suite["rows"]]
    return {**board, "suites": {"mild": {**suite, "rows": rows}}}


def test_rows_of_other_images_or_other_weights_are_not_taken_over(boards):
    _, first, grown = boards
    new = {**grown, "suites": {"mild": {**grown["suites"]["mild"], "rows": grown["suites"]["mild"]["rows"][-1:]}}}
    other = {**first, "suites": {"mild": {**first["suites"]["mild"], "sha256": ["0"]}}}
    with pytest.raises(InvalidArgument, match=r"--keep must be a result with the same sha256, got sha256 was \['0'\]"):
        with_board(new, other, NO_ORACLE)
    with pytest.raises(InvalidArgument, match="same protocol, got count was 4, is 3"):
        with_board(new, {**first, "protocol": {**first["protocol"], "count": 4}}, NO_ORACLE)
    for option, words in (("--precision bfloat16", "precision was bfloat16"), ("--max-steps 2", "max_steps was 2")):
        with pytest.raises(InvalidArgument, match=f"same settings, got {words}"):
            with_board(new, {**first, "command": f"{first['command']} {option}"}, NO_ORACLE)
    with pytest.raises(
        InvalidArgument, match=r"drqn \(cnn12\) that there is now: name it, too, got training_seconds was 1"
    ):
        with_board(new, changed(first, training_seconds=1), NO_ORACLE)
    kept = with_board(new, changed(first, training_seconds=1, submitted=True), NO_ORACLE)  # it is not from here
    assert "made" in next(row for row in kept["suites"]["mild"]["rows"] if row["policy"] == "drqn (cnn12)")


def test_what_is_no_table_is_refused_before_anything_is_measured(tmp_path):
    words = ["leaderboard", "run", "input", "--suite", "mild", "--count", "3", "--store", tmp_path / "store"]
    assert command(*words, "--keep", tmp_path / "missing.json") == 2
    assert not (tmp_path / "store").exists()


def study(folder, images, label, name, *more):
    words = ["agent-study", "variants", "--toolbox", "tiny", "--images", images, "--test", images, "--count", "2"]
    words += ["--episodes", "32", "--evaluate-every", "1", "--validation-images", "2", "--severity", "noise"]
    words += ["--seeds", "1", "--device", "cpu", "--folder", folder / "runs", "--json", folder / f"{name}.json"]
    return command(*words, "--only", label, *more)


def test_a_study_grows_and_compares_with_what_it_took_over(tmp_path, capsys):
    images = write_checks(tmp_path / "checks", count=20, side=80)
    assert study(tmp_path, images, "exact values", "first") == 0
    assert study(tmp_path, images, "double", "grown", "--keep", tmp_path / "first.json") == 0
    first, grown = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("first", "grown"))
    assert list(grown["rows"]) == ["double", "exact values"]  # in the order of the study
    assert grown["rows"]["exact values"].pop("made")["command"] == first["command"]
    assert grown["rows"]["exact values"] == first["rows"]["exact values"]
    assert "--keep first.json" in grown["command"] and grown["command"].endswith("--only double")
    assert set(grown["images_for_the_same_gain"]) == {"double"}
    capsys.readouterr()
    assert study(tmp_path, images, "double", "other", "--keep", tmp_path / "first.json", "--seeds", "2") == 2
    assert "--keep must be a result with the same exact values, got seeds was 1, is 2" in capsys.readouterr().err
    assert not (tmp_path / "other.json").exists() and not list((tmp_path / "runs").glob("double-1*"))  # nor trained


def test_rows_of_another_study_are_refused():
    result = {"suites": {"mild": {"sha256": "a"}}, "rows": {}}
    with pytest.raises(InvalidArgument, match="--keep must be a result of this study: drqn, double"):
        with_study(result, {**result, "rows": {"6 steps": {}}}, contestants("variants"), {}, 3)
    with pytest.raises(InvalidArgument, match="the same suites"):
        with_study(result, {"suites": {}, "rows": {}}, contestants("variants"), {}, 3)
