"""Runs that may be killed: a checkpoint every few minutes and at Ctrl-C, from which the same run goes on."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from restoration_env.errors import TrainingDiverged
from restoration_env.files import load_checkpoint, save_checkpoint


class Resumable(Protocol):
    """A run in training.

    Attributes:
        seconds: what it has taken so far.
    """

    seconds: float

    def state(self) -> dict[str, Any]:
        """All that `restore` needs: tensors, numbers, strings and containers of them."""

    def restore(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken; a state of another configuration is refused."""


@contextmanager
def resumed(
    run: Resumable, checkpoint: Path, every: float, clock: Callable[[], float] = time.monotonic
) -> Iterator[Callable[..., None]]:
    """A run that goes on from its checkpoint, if there is one.

    Inside, whoever steps the run calls what is yielded after every step, with the step's losses: it counts the run's
    seconds and writes the checkpoint when it is due. Ctrl-C writes one too, and passes on. After any other error the
    last one stays as it is.

    Args:
        run: what is trained inside.
        checkpoint: its file, which is not removed at the end.
        every: seconds between two checkpoints.
        clock: what the run's seconds are counted with.

    Raises:
        InvalidArgument: for a checkpoint of another configuration.
        TrainingDiverged: if a loss is no number, or the step said so; the message tells where the last good
            checkpoint is.
    """
    if checkpoint.exists():
        run.restore(load_checkpoint(checkpoint))
    counted, saved = clock(), time.monotonic()

    def count() -> None:
        nonlocal counted
        now = clock()
        run.seconds, counted = run.seconds + now - counted, now

    def stepped(*losses: float) -> None:
        nonlocal saved
        count()
        if not all(map(math.isfinite, losses)):
            found = ", ".join(f"{loss:g}" for loss in losses)
            raise TrainingDiverged(f"{checkpoint.stem} diverged: the loss is {found}")
        if time.monotonic() - saved > every:
            save_checkpoint(checkpoint, run.state())
            saved = time.monotonic()

    try:
        yield stepped
    except KeyboardInterrupt:
        count()
        save_checkpoint(checkpoint, run.state())
        raise
    except TrainingDiverged as error:
        kept = (
            f"the last good checkpoint is kept in {checkpoint}" if checkpoint.exists() else "no checkpoint was due yet"
        )
        raise TrainingDiverged(f"{error}; {kept}") from error
    count()
