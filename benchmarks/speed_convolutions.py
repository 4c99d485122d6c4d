"""How long a training step takes by each way to compute convolutions: direct, Winograd's, and in bfloat16."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from restoration_env.benchmarks.networks import build_network
from restoration_env.benchmarks.train_single import SingleConfig
from restoration_env.devices import multiplies_bfloat16
from restoration_env.tools.restoring import RestoringRun

WAYS = {
    "direct, float32": ("direct", "float32"),
    "winograd, float32": ("winograd", "float32"),
    "direct, bfloat16": ("direct", "bfloat16"),
}
TRAINED = ("vdsr", "dncnn", "equal-parameters", "equal-multiply-adds")


def training_steps(*, turns: int = 2, batch: int = 32, note: Callable[[str], None]) -> dict[str, Any]:
    """Milliseconds a patch of 63x63 pixels, by network and way; the fastest of some turns, in which all ways alternate.

    A processor that would have to imitate bfloat16 is not asked to: it takes many times as long.

    Args:
        turns: steps of each way that count; another one before them does not.
        batch: patches of a step, damaged with noise, that are there already.
        note: told what is measured.
    """
    clean = torch.rand(batch, 3, 63, 63, generator=torch.Generator().manual_seed(0))
    damaged = (clean + 0.1 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(1))).clamp(0.0, 1.0)
    return {name: _of_network(name, turns, clean, damaged, note) for name in TRAINED}


def _of_network(
    name: str, turns: int, clean: torch.Tensor, damaged: torch.Tensor, note: Callable[[str], None]
) -> dict[str, Any]:
    runs, seconds = {}, dict[str, list[float]]()
    for way, (convolutions, precision) in WAYS.items():
        if precision == "bfloat16" and not multiplies_bfloat16():
            continue
        config = SingleConfig(name, convolutions=convolutions, precision=precision)
        runs[way] = RestoringRun(build_network(name), config, {}, "cpu", precision)
    for _ in range(turns + 1):
        for way, run in runs.items():
            note(f"a training step of {name}: {way}")
            began = time.perf_counter()
            run.descend(clean, damaged, 0.01)
            seconds.setdefault(way, []).append(time.perf_counter() - began)
    fastest = {way: min(taken[1:]) for way, taken in seconds.items()}
    return {
        way: {
            "milliseconds_per_patch": round(1e3 * value / len(clean), 2),
            "times_faster": round(fastest["direct, float32"] / value, 2),
        }
        for way, value in fastest.items()
    }
