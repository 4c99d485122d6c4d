"""A run that was stopped goes on where it was; what diverged leaves the last good checkpoint."""

import math

import pytest

from restoration_env.errors import TrainingDiverged
from restoration_env.files import load_checkpoint
from restoration_env.runs import resumed


class Counting:
    """Counts its steps."""

    def __init__(self):
        self.steps, self.seconds = 0, 0.0

    def state(self):
        return {"steps": self.steps, "seconds": self.seconds}

    def restore(self, state):
        self.steps, self.seconds = state["steps"], state["seconds"]


class Clock:
    """A second older whenever it is asked."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        self.now += 1.0
        return self.now


def go(path, steps, error=None, every=1e9):
    run = Counting()
    with resumed(run, path, every, Clock()) as stepped:
        for _ in range(steps):
            run.steps += 1
            stepped()
        if error:
            raise error
    return run


def test_a_run_that_ends_counts_its_seconds_and_writes_nothing_before_it_is_due(tmp_path):
    run = go(tmp_path / "a.checkpoint", 3)
    assert run.steps == 3 and run.seconds == 4.0  # the clock is asked at the start, after each step, and at the end
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_saves_and_the_run_goes_on_from_there(tmp_path):
    path = tmp_path / "a.checkpoint"
    with pytest.raises(KeyboardInterrupt):
        go(path, 5, KeyboardInterrupt())
    saved = load_checkpoint(path)
    assert saved == {"steps": 5, "seconds": 6.0}
    run = go(path, 2)
    assert run.steps == 7 and run.seconds == saved["seconds"] + 3.0
    assert load_checkpoint(path) == saved, "whoever writes the results removes it"


def test_a_checkpoint_is_written_when_due_and_stays_when_training_diverges(tmp_path):
    path = tmp_path / "a.checkpoint"
    go(path, 4, every=0.0)
    before = load_checkpoint(path)
    assert before["steps"] == 4
    with pytest.raises(TrainingDiverged, match="no number; the last good checkpoint is kept in .*a.checkpoint"):
        go(path, 3, TrainingDiverged("no number"))
    assert load_checkpoint(path) == before
    with pytest.raises(TrainingDiverged, match="no number; no checkpoint was due yet"):
        go(tmp_path / "b.checkpoint", 3, TrainingDiverged("no number"))


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_step_whose_loss_is_no_number_is_the_last_and_never_saved(loss, tmp_path):
    path, run = tmp_path / "a.checkpoint", Counting()
    with (
        pytest.raises(TrainingDiverged, match=f"a diverged: the loss is 1, {loss}; the last good"),
        resumed(run, path, 0.0) as stepped,
    ):
        for losses in ((), (2.0,), (1.0, loss), (1.0,)):
            run.steps += 1
            stepped(*losses)
    assert run.steps == 3 and load_checkpoint(path)["steps"] == 2
