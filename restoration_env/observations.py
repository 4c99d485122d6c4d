"""What Gymnasium users see of a batch of episodes: spaces, channels last, NumPy."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor


def observation_space(patch_size: int, tools: int, max_steps: int) -> spaces.Dict:
    """The observation space of one episode."""
    return spaces.Dict(
        {
            "image": spaces.Box(0, 255, (patch_size, patch_size, 3), np.uint8),
            "last_action": spaces.Discrete(tools + 1),
            "steps_left": spaces.Discrete(max_steps + 1),
        }
    )


def to_numpy(values: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """Copies of tensors on the host; from a GPU all together, waiting once."""
    if not any(value.is_cuda for value in values.values()):
        return {name: value.cpu().numpy() for name, value in values.items()}
    copies = {name: torch.empty(value.shape, dtype=value.dtype, pin_memory=True) for name, value in values.items()}
    for name, value in values.items():
        copies[name].copy_(value, non_blocking=True)
    torch.cuda.synchronize()
    return {name: copy.numpy() for name, copy in copies.items()}
