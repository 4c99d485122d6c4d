"""How networks of this folder are trained: Fabric for devices and precision, progress, checkpoints, resuming.

Fabric (the package lightning-fabric, extra ``sft``) moves modules and batches, runs mixed precision and several GPUs.
The data of iteration i follows from the seed, the process and i alone, so a killed run goes on as if it had not been.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch

from restoration_env.devices import find_device
from restoration_env.errors import InvalidArgument, TrainingDiverged, UnknownName, check_at_least
from restoration_env.files import check_same_configuration, load_checkpoint, save_checkpoint
from restoration_env.toolbox import PRECISIONS

if TYPE_CHECKING:
    from lightning_fabric import Fabric

_PRECISIONS = {"float32": "32-true", "bfloat16": "bf16-mixed"}


@dataclass(frozen=True)
class Progress:
    """What a run reports after every step; ``validation`` is empty except after a validation."""

    iteration: int
    iterations: int
    losses: dict[str, float]
    validation: dict[str, float] = field(default_factory=dict)


class Run(Protocol):
    """One training: what `train` needs of it."""

    config: Any  # a dataclass with iterations and evaluate_every
    iteration: int
    seconds: float

    def step(self) -> dict[str, float]:
        """One optimiser step; returns its losses."""

    def evaluate(self) -> dict[str, float]:
        """Judge the weights, keep them if they are the best, return the figures."""

    def state(self) -> dict[str, Any]:
        """All that `restore` needs."""

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a state."""


def make_fabric(device: str = "auto", devices: int = 1, precision: str = "float32") -> Fabric:
    """Fabric on a device, "auto", "cpu" or "cuda", on so many GPUs or processes.

    Raises:
        InvalidArgument: for another device or precision, and without the package lightning-fabric.
    """
    if precision not in PRECISIONS:
        raise UnknownName("precision", precision, PRECISIONS)
    if device not in ("auto", "cpu", "cuda"):
        raise UnknownName("device", device, ("auto", "cpu", "cuda"))
    kind = find_device(device).type
    check_at_least(1, devices=devices)
    if kind == "cuda" and devices > torch.cuda.device_count():
        raise InvalidArgument("devices", f"at most {torch.cuda.device_count()}, the GPUs there are", devices)
    try:
        from lightning_fabric import Fabric
        from lightning_fabric.strategies import DDPStrategy
    except ImportError:
        expected = "installed with `pip install restoration-env[sft]` for this kind of training"
        raise InvalidArgument("lightning-fabric", expected) from None
    # The discriminator sees two batches before one backward pass: its statistics must not be exchanged between them.
    strategy: Any = DDPStrategy(broadcast_buffers=False) if devices > 1 else "auto"
    how: Any = _PRECISIONS[precision]
    fabric = Fabric(accelerator=kind, devices=devices, precision=how, strategy=strategy)
    fabric.launch()
    return fabric


def train(
    run: Run,
    fabric: Fabric,
    checkpoint: Path,
    *,
    checkpoint_seconds: float = 120.0,
    stop_after: float = math.inf,
    report: Callable[[Progress], None] = lambda progress: None,
) -> bool:
    """Train until the last iteration, the end of the time or Ctrl-C, from a checkpoint if there is one.

    Args:
        run: what to train.
        fabric: only its first process writes.
        checkpoint: the file to go on from; it is removed when the run ends.
        checkpoint_seconds: time between two checkpoints.
        stop_after: seconds after which the run is put by in its checkpoint.
        report: called after every step.

    Returns:
        Whether the run came to its end.

    Raises:
        InvalidArgument: for a checkpoint of another configuration.
        TrainingDiverged: if a loss is no number; the last good checkpoint stays.
    """
    if checkpoint.exists():
        state = load_checkpoint(checkpoint)
        check_same_configuration(state["config"], asdict(run.config))
        run.restore(state["run"])
        run.iteration, run.seconds = state["iteration"], state["seconds"]
    started = began = saved = time.monotonic()

    def put_by() -> None:
        nonlocal began, saved
        run.seconds += time.monotonic() - began
        began = saved = time.monotonic()
        if fabric.is_global_zero:
            kept = {"config": asdict(run.config), "iteration": run.iteration, "seconds": run.seconds}
            save_checkpoint(checkpoint, {**kept, "run": run.state()})

    iterations = run.config.iterations
    with _asked_to_stop() as asked:
        while run.iteration < iterations:
            losses = run.step()
            if not all(math.isfinite(loss) for loss in losses.values()):
                message = f"diverged at iteration {run.iteration} ({losses})"
                raise TrainingDiverged(f"{message}; the last good checkpoint is kept in {checkpoint}")
            run.iteration += 1
            validation: dict[str, float] = {}
            if run.iteration % run.config.evaluate_every == 0 or run.iteration == iterations:
                validation = run.evaluate()
            report(Progress(run.iteration, iterations, losses, validation))
            stop = bool(asked) or time.monotonic() - started > stop_after
            if fabric.world_size > 1:
                stop = fabric.broadcast(stop)  # all processes or none
            if stop and run.iteration < iterations:
                put_by()
                return False
            if time.monotonic() - saved > checkpoint_seconds:
                put_by()
    run.seconds += time.monotonic() - began
    return True


@contextmanager
def _asked_to_stop() -> Iterator[list[int]]:
    """A list that is no longer empty once Ctrl-C was pressed; a second time interrupts at once."""
    asked: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield asked  # signals are not for us
        return
    before = signal.getsignal(signal.SIGINT)

    def remember(number: int, frame: object) -> None:
        asked.append(number)
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, remember)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)
