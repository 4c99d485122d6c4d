"""How long a training step takes by each way to compute convolutions (direct, Winograd's, bfloat16), and Muon's."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from restoration_env.benchmarks.networks import build_network
from restoration_env.benchmarks.train_single import SingleConfig
from restoration_env.devices import imitates_bfloat16
from restoration_env.tools.optimizers import FloatMuon, ToolOptimizer
from restoration_env.tools.restoring import RestoringRun

WAYS = {
    "direct, float32": ("direct", "float32"),
    "winograd, float32": ("winograd", "float32"),
    "direct, bfloat16": ("direct", "bfloat16"),
}
MUONS = {"torch, bfloat16": torch.optim.Muon, "float32": FloatMuon}
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
        if precision == "bfloat16" and imitates_bfloat16("cpu"):
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


def muon_steps(*, turns: int = 2, note: Callable[[str], None]) -> dict[str, Any]:
    """Milliseconds that a step of Muon takes once the gradients are there, by network, as torch has it and in float32.

    Args:
        turns: steps of each that count, the fastest of them; another one before them does not.
        note: told what is measured.
    """
    measured: dict[str, Any] = {}
    for name in TRAINED:
        shapes = [matrix.shape for _, matrix in ToolOptimizer(build_network(name), "muon", 0.0).matrices]
        steps = {kind: _muon(make, shapes) for kind, make in MUONS.items()}
        seconds = {kind: [0.0] * (turns + 1) for kind in steps}
        for turn in range(turns + 1):
            for kind, step in steps.items():
                note(f"a step of Muon for {name}: {kind}")
                began = time.perf_counter()
                step()
                seconds[kind][turn] = time.perf_counter() - began
        measured[name] = {kind: round(1e3 * min(taken[1:]), 1) for kind, taken in seconds.items()}
    return measured


def _muon(make: type[torch.optim.Muon], shapes: list[torch.Size]) -> Callable[[], object]:
    matrices = [torch.nn.Parameter(torch.rand(shape)) for shape in shapes]
    for matrix in matrices:
        matrix.grad = torch.randn(matrix.shape, generator=torch.Generator().manual_seed(0))
    return make(matrices, adjust_lr_fn="match_rms_adamw").step
