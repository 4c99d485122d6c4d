"""The eight ways to turn and mirror an image: what is learned or done in one way holds in all of them."""

from __future__ import annotations

import torch
from torch import Tensor

WAYS = 8


def turned(images: Tensor, way: int) -> Tensor:
    """Images in one of the eight ways; way 0 leaves them as they are.

    Args:
        images: (..., H, W).
        way: 0 .. 7: transposed where it is odd, then mirrored in their columns (2) and rows (4).

    Returns:
        (..., H, W), or (..., W, H) where the way is odd; a view where that is possible.
    """
    return _mirrored(images.transpose(-1, -2) if way & 1 else images, way)


def turned_back(images: Tensor, way: int) -> Tensor:
    """The images that `turned` turned in this way."""
    images = _mirrored(images, way)
    return images.transpose(-1, -2) if way & 1 else images


def turned_each(images: Tensor, ways: Tensor) -> Tensor:
    """Squares (N, C, S, S), each in a way of its own: int64 (N,)."""
    for bit, turn in enumerate((lambda x: x.transpose(-1, -2), lambda x: x.flip(-1), lambda x: x.flip(-2))):
        chosen = ways.bitwise_and(1 << bit).ne(0)[:, None, None, None]
        images = torch.where(chosen, turn(images), images)
    return images


def _mirrored(images: Tensor, way: int) -> Tensor:
    axes = [axis for axis, bit in ((-1, 2), (-2, 4)) if way & bit]
    return images.flip(axes) if axes else images
