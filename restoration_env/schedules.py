"""How learning rates go: a short linear warm-up, then half a cosine."""

from __future__ import annotations

import math


def cosine(iteration: int, iterations: int, *, warmup: int = 0, floor: float = 0.0) -> float:
    """The share of the peak learning rate at an iteration.

    Args:
        iteration: from 0 on.
        iterations: of the whole schedule.
        warmup: iterations of the warm-up; a tenth of all of them at most.
        floor: the share at the end.
    """
    warmup = min(warmup, iterations // 10)
    if iteration < warmup:
        return (iteration + 1) / warmup
    share = min(1.0, (iteration - warmup) / max(1, iterations - warmup))
    return floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * share))
