"""Shrinking an image that was enlarged, so that what it was enlarged from comes back."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from restoration_env.resizing import SCALE, bicubic


def decimated(images: Tensor) -> Tensor:
    """The small images whose bicubic enlargements are nearest to the given ones, in the least squares sense.

    Of an image that was enlarged by four this is the image it was enlarged from, exactly; shrinking it bicubically
    would blur it once more.

    Args:
        images: float (N, C, H, W), H and W multiples of four.

    Returns:
        float (N, C, H / 4, W / 4).
    """
    height, width = images.shape[-2:]
    rows, columns = (_inverse(side).to(images.device, images.dtype) for side in (height, width))
    with torch.autocast(images.device.type, enabled=False):  # eight bits of pixels need more than bfloat16
        return rows @ images @ columns.T


@lru_cache(maxsize=32)
def _inverse(side: int) -> Tensor:
    """The pseudo-inverse of enlarging a line to ``side`` pixels, float64 (side / 4, side)."""
    unit = torch.eye(side // SCALE, dtype=torch.float64)
    # One line for each small pixel; all rows of each are the same, so one is enough.
    enlarged = bicubic(unit[None, :, None, :], SCALE)[0, :, 0]
    return torch.linalg.pinv(enlarged.T)
