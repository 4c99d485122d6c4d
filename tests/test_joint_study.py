"""The ablation of joint training."""

import pytest

from restoration_env.benchmarks.joint_study import ALL, BEFORE, IDEAS, Idea, joint_study, joint_study_table
from restoration_env.errors import InvalidArgument
from restoration_env.images import load_images
from restoration_env.tools.catalogue import NAMES

TINY = {"batch": 2, "own": 1, "unstopped": 1, "validation_images": 2, "agent_sample": 2}


def test_each_row_changes_something_and_can_be_trained():
    for idea in IDEAS:
        config = idea.config(iterations=7)
        assert config.iterations == 7
        for name, value in {**ALL, **idea.changes}.items():
            assert getattr(config, name) == value
    assert [idea.words for idea in IDEAS if all(ALL[name] == value for name, value in idea.changes.items())] == [
        "everything"
    ]


def test_rows_are_trained_once_and_measured_beside_where_they_began(tmp_path):
    photos = load_images("bundled", "train"), load_images("bundled", "validation")
    ideas, told = [Idea("with two", TINY)], []

    def kill(text: str) -> None:
        told.append(text)
        if text == "with two: measuring":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        joint_study(ideas, 1, *photos, tmp_path, count=2, tell=kill)
    trained = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "with-two").glob("*.safetensors")}
    assert set(trained) == {f"{name}.safetensors" for name in (*NAMES, "agent")}
    before, row = joint_study(ideas, 1, *photos, tmp_path, count=2)
    assert {name: (tmp_path / "with-two" / name).stat().st_mtime_ns for name in trained} == trained
    assert (before["words"], row["words"]) == (BEFORE, "with two")
    assert 0.0 <= row["least_share"] <= 1 / len(NAMES) and "least_used" not in before
    assert row["oracle_mean"] > 1.0 and row["oracle_mean"] != before["oracle_mean"]
    assert row["agent_mean"] == pytest.approx(sum(row["agent"].values()) / 3, abs=1e-3)
    table = joint_study_table({"rows": [before, row]})
    assert "| with two | " in table and row["least_used"] in table.splitlines()[-1]
    with pytest.raises(InvalidArgument, match="learning_rate"):
        joint_study([Idea("with two", {**TINY, "learning_rate": 0.5})], 1, *photos, tmp_path, count=2)
