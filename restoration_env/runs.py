"""Runs that may be killed: a checkpoint every few minutes and at Ctrl-C, from which the same run goes on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

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
) -> Iterator[Callable[[], None]]:
    """A run that goes on from its checkpoint, if there is one.

    Inside, whoever steps the run calls what is yielded after every step: it counts the run's seconds and writes the
    checkpoint when it is due. Ctrl-C writes one too, and passes on. After any other error, such as diverged training,
    the last one stays as it is.

    Args:
        run: what is trained inside.
        checkpoint: its file, which is not removed at the end.
        every: seconds between two checkpoints.
        clock: what the run's seconds are counted with.

    Raises:
        InvalidArgument: for a checkpoint of another configuration.
    """
    if checkpoint.exists():
        run.restore(load_checkpoint(checkpoint))
    counted, saved = clock(), time.monotonic()

    def count() -> None:
        nonlocal counted
        now = clock()
        run.seconds, counted = run.seconds + now - counted, now

    def stepped() -> None:
        nonlocal saved
        count()
        if time.monotonic() - saved > every:
            save_checkpoint(checkpoint, run.state())
            saved = time.monotonic()

    try:
        yield stepped
    except KeyboardInterrupt:
        count()
        save_checkpoint(checkpoint, run.state())
        raise
    count()
