"""How training judges an agent: its mean gain on held-out damage of each severity."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from restoration_env.agents.agent import RestorationAgent
from restoration_env.agents.policies import roll_out
from restoration_env.distortions import SEVERITY_RANGES, recipe
from restoration_env.episodes import Episodes
from restoration_env.images import ImagePool, damaged_patches


def validation_batches(
    pool: ImagePool, count: int, size: int, device: torch.device | str, severity: str = "every"
) -> dict[str, tuple[Tensor, Tensor]]:
    """Clean and damaged patches of each severity, always the same; of lost resolution and none if training has both."""
    keys, pool = torch.arange(count), pool.fitting(size)
    names = ("x4", "mixed") if recipe(severity).loses else SEVERITY_RANGES
    return {name: damaged_patches(pool, keys, recipe(name), size, device=device) for name in names}


@torch.no_grad()
def restored(agent: RestorationAgent, held_out: Mapping[str, tuple[Tensor, Tensor]]) -> Iterator[tuple[str, Episodes]]:
    """For each severity the episodes of the greedy agent, at their end."""
    for name, (clean, damaged) in held_out.items():
        episodes = Episodes(agent.toolbox, max_steps=agent.max_steps)
        episodes.begin(damaged, clean)
        roll_out(agent, episodes)
        yield name, episodes


def mean_gains(agent: RestorationAgent, held_out: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, float]:
    """The greedy agent's mean gain in dB on each severity."""
    return {name: mean_gain(episodes) for name, episodes in restored(agent, held_out)}


def mean_gain(episodes: Episodes) -> float:
    """The mean gain in dB."""
    return (episodes.psnr - episodes.psnr_initial).mean().item()
