"""A head start for the agent's eyes: what damage an image has, learned before anything about tools.

Which tool is right depends on how blurred, noisy and compressed an image is. Images with known damage cost nothing
but their making, so the convolutions first learn to tell the three strengths, from far more images than the tools
could be run on. The memory and the Q values are not touched.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from restoration_env.agents.network import ToolchainNetwork
from restoration_env.distortions import Recipe
from restoration_env.images import ImagePool, damaged_patches
from restoration_env.randomness import uniform
from restoration_env.schedules import cosine


def strengths(damage: Recipe, keys: Tensor) -> Tensor:
    """Blur, noise and JPEG of the damage of each key, float (N, 3), each from 0 (none) to about 1."""
    blur, noise, quality = damage.draw(uniform(keys, 4, stream=2))
    compression = torch.where(torch.isfinite(quality), (101.0 - quality) / 91.0, 0.0)
    return torch.stack((blur / 5.0, noise / 50.0, compression), 1).float()


def pretrain(
    network: ToolchainNetwork,
    pool: ImagePool,
    damage: Recipe,
    *,
    iterations: int = 1_500,
    batch: int = 64,
    learning_rate: float = 2e-3,
    seed: int = 0,
    device: torch.device | str = "cpu",
    report: Callable[[int, float], None] = lambda iteration, loss: None,
) -> float:
    """Teach the convolutions of an agent's network the strengths of the damage.

    Args:
        network: trained in place.
        pool: clean images.
        damage: the recipe that damages them.
        iterations: optimiser steps.
        batch: images in each.
        learning_rate: of AdamW at the start; falls to zero along a cosine.
        seed: of the images.
        device: where everything runs.
        report: called after each step with the iterations done and the loss.

    Returns:
        The mean absolute error of the strengths over the last tenth of the steps.
    """
    head = nn.Linear(network.fc.out_features, 3).to(device)
    memory = {*network.gates.parameters(), *network.q.parameters()}
    learned = [*(p for p in network.parameters() if p not in memory), *head.parameters()]
    optimizer = torch.optim.AdamW(learned, learning_rate, weight_decay=1e-4)
    pool, errors = pool.fitting(network.patch_size), []
    for iteration in range(iterations):
        rate = learning_rate * cosine(iteration, iterations)
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (iteration + 1) / 50)
        keys = torch.arange(batch) + (seed << 40) + (1 << 38) + iteration * batch
        _, damaged = damaged_patches(pool, keys, damage, network.patch_size, device=device)
        wanted = strengths(damage, keys).to(device)
        network.train()
        found = head(network.features(damaged))
        network.eval()
        loss = F.smooth_l1_loss(found, wanted, beta=0.05)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        errors.append((found - wanted).abs().mean().item())
        report(iteration + 1, errors[-1])
    last = errors[-max(1, iterations // 10) :]
    return sum(last) / len(last)
