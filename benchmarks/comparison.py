"""Policies side by side on the same suites: PSNR, gain, harm and tools used."""

from __future__ import annotations

import time
from typing import Any

import torch

from restoration_env.agents.policies import FixedChain, Policy, roll_out
from restoration_env.benchmarks.suites import Suite
from restoration_env.episodes import NO_ACTION, Episodes
from restoration_env.metrics import psnr
from restoration_env.toolbox import Toolbox

_BATCH = 128


@torch.no_grad()
def evaluate(policy: Policy, toolbox: Toolbox, suite: Suite, *, max_steps: int = 3) -> dict[str, Any]:
    """One row of the table: a policy on a suite."""
    began = time.perf_counter()
    before, after, used = [], [], []
    for start in range(0, len(suite.clean), _BATCH):
        rows = slice(start, start + _BATCH)
        episodes = Episodes(toolbox, max_steps=max_steps)
        episodes.begin(suite.damaged[rows], suite.clean[rows])
        roll_out(policy, episodes)
        before.append(episodes.psnr_initial)
        after.append(episodes.psnr)
        taken = (episodes.toolchain != NO_ACTION) & (episodes.toolchain != toolbox.stop)
        used.append(taken.sum(1).double())
    psnr_in, psnr_out, tools = torch.cat(before), torch.cat(after), torch.cat(used)
    gain = psnr_out - psnr_in
    return {
        "policy": policy.name,
        "toolbox": toolbox.name,
        "psnr_in": round(psnr_in.mean().item(), 4),
        "psnr_out": round(psnr_out.mean().item(), 4),
        "gain": round(gain.mean().item(), 4),
        "standard_error": round(gain.std().item() / len(gain) ** 0.5, 4),
        "harmed": round((gain < -1e-6).double().mean().item(), 4),
        "mean_tools": round(tools.mean().item(), 3),
        "ms_per_image": round(1000 * (time.perf_counter() - began) / len(gain), 2),
    }


@torch.no_grad()
def best_single_tool(toolbox: Toolbox, suite: Suite) -> FixedChain:
    """The tool with the highest mean gain on a suite, which must not be the one it is judged on."""
    start = psnr(suite.damaged, suite.clean).mean()
    gains = {}
    for tool in toolbox:
        restored = torch.cat([tool(part) for part in suite.damaged.split(32)])
        gains[tool.name] = (psnr(restored, suite.clean).mean() - start).item()
    best = max(gains, key=lambda name: gains[name])
    policy = FixedChain(toolbox, [best])
    policy.name = f"best single tool ({best})"
    return policy
