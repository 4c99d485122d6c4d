"""What the super-resolver adds to a toolbox: who uses it on images that lost their resolution, and who on others.

The family is RestoreSR's, in its two halves: ``x4`` (resolution lost by four, in half of the images slight noise and
JPEG) and ``mixed`` (the damage agents are trained on, no loss of resolution).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from restoration_env.agents.agent import RestorationAgent
from restoration_env.agents.oracles import greedy
from restoration_env.agents.policies import roll_out
from restoration_env.benchmarks.suites import Suite
from restoration_env.episodes import Episodes
from restoration_env.toolbox import Toolbox

if TYPE_CHECKING:
    from restoration_env.agents.sb3_policy import SB3Policy

HALVES = ("x4", "mixed")
TOOL = "sft-x4"


def measure(
    suites: Mapping[str, Suite],
    toolboxes: Sequence[Toolbox],
    agents: Mapping[str, RestorationAgent | SB3Policy],
    note: Callable[[str], None] = lambda text: None,
) -> list[dict[str, Any]]:
    """A row for the greedy oracle of each toolbox and for each agent.

    Args:
        suites: by the names of the halves.
        toolboxes: of the oracles.
        agents: by name, each plays with its own toolbox.
        note: told what is measured now.

    Returns:
        Rows of "policy", "toolbox", "gain" (dB, the mean of the halves'), and for each half the gain and the share of
        its images on which the super-resolver was used.
    """
    rows = []
    for toolbox in toolboxes:
        halves = {}
        for name, suite in suites.items():
            note(f"oracle of {toolbox.name}, {name}")
            found = greedy(toolbox, *suite.patches())
            halves[name] = _half(toolbox, found.gain, found.toolchains)
        rows.append(_row("greedy oracle", toolbox, halves))
    for label, agent in agents.items():
        halves = {}
        for name, suite in suites.items():
            note(f"{label}, {name}")
            episodes = Episodes(agent.toolbox, max_steps=agent.max_steps)
            clean, damaged = suite.patches()
            episodes.begin(damaged, clean)
            with torch.no_grad():
                roll_out(agent, episodes)
            gain = episodes.psnr - episodes.psnr_initial
            halves[name] = _half(agent.toolbox, gain, episodes.toolchain)
        rows.append(_row(label, agent.toolbox, halves))
    return rows


def _half(toolbox: Toolbox, gain: Tensor, toolchains: Tensor) -> dict[str, float]:
    used = torch.zeros(len(gain), dtype=torch.bool)
    if TOOL in toolbox.names:
        used = (toolchains == toolbox.names.index(TOOL)).any(1)
    return {"gain": round(gain.mean().item(), 4), "share": round(used.double().mean().item(), 4)}


def _row(policy: str, toolbox: Toolbox, halves: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    mean = sum(half["gain"] for half in halves.values()) / len(halves)
    return {"policy": policy, "toolbox": toolbox.name, "gain": round(mean, 4), **halves}
