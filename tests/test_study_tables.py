"""The tables of the studies of agents."""

import pytest

from restoration_env.benchmarks.study_tables import contestants_table, fewer_images_table, policies_table
from restoration_env.errors import InvalidArgument

SUITES = ("mild", "severe")


def entry(policy, family, gain, patches=None):
    return {
        "policy": policy,
        "family": family,
        "gain": gain,
        "harmed": 0.25,
        "mean_tools": 1.5,
        "training_patches": patches,
        "training_seconds": None,
    }


def board(digest="ab", oracle="oracle"):
    rows = [entry("input", "baseline", 0.0), entry("agent", "toolchain", 3.0, 1234), entry("best", oracle, 4.0)]
    return {"suites": {suite: {"sha256": [digest], "rows": rows} for suite in SUITES}}


def study():
    said = {"gain": 2.5, "gain_std": 0.125, "harmed": 0.1, "mean_tools": 2.0}
    row = {"suites": dict.fromkeys(SUITES, said), "training_images": 1387.0, "training_seconds": 44.2}
    needed = {"gain": 2.0, "images": 640.0, "exact values": 80.0, "times_fewer": 8.0}
    never = {"gain": 3.0, "images": 640.0, "exact values": None, "times_fewer": None}
    return {
        "suites": {suite: {"sha256": "ab"} for suite in SUITES},
        "rows": {"ppo": row},
        "images_for_the_same_gain": {"drqn": needed, "double": never},
    }


def test_a_study_and_a_board_of_the_same_patches_make_one_table():
    lines = policies_table(study(), board()).splitlines()
    assert lines[0] == "| policy | mild | severe | regret | harmed | tools | images | seconds |"
    assert lines[3] == "| agent | +3.00 | +3.00 | 1.00 / 1.00 | 25.0% / 25.0% | 1.5 / 1.5 | 1,234 |  |"
    assert lines[-1].startswith("| ppo | +2.50 ± 0.12 | +2.50 ± 0.12 | 1.50 / 1.50 | 10.0% / 10.0% |")
    assert lines[-1].endswith("| 1,387 | 44 |") and len({line.count("|") for line in lines}) == 1


def test_other_patches_and_a_board_without_an_oracle_are_refused():
    with pytest.raises(InvalidArgument, match="mild patches of the study"):
        policies_table(study(), board(digest="cd"))
    with pytest.raises(InvalidArgument, match="one with one oracle"):
        policies_table(study(), board(oracle="toolchain"))


def test_a_study_alone_and_the_images_it_saves():
    alone, fewer = contestants_table(study()).splitlines(), fewer_images_table(study()).splitlines()
    assert alone[2] == "| ppo | +2.50 ± 0.12 | +2.50 ± 0.12 | 10.0% / 10.0% | 2.0 / 2.0 | 1,387 | 44 |"
    assert fewer[2:] == ["| drqn | +2.00 dB | 640 | 80 | 8.0 |", "| double | +3.00 dB | 640 | never |  |"]
