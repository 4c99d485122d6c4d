"""Bicubic resizing as MATLAB's ``imresize`` does it, which is what super-resolution papers call low resolution.

Keys' kernel with a = -0.5; when an image shrinks, the kernel is widened by the same factor (antialiasing); beyond
the border the image is mirrored, edge pixels included. Pillow's BICUBIC is the same away from the borders, where it
leaves out what lies beyond.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from restoration_env.errors import InvalidArgument

SCALE = 4  # of every super-resolver here


def bicubic(images: Tensor, scale: float) -> Tensor:
    """Resize a batch by a factor, as ``imresize(image, scale, 'bicubic')`` does, without rounding or clipping.

    Each image's values are the same whatever else is in the batch; gradients flow to the images.

    Args:
        images: float (N, C, H, W).
        scale: above 0; below 1 shrinks with antialiasing.

    Returns:
        The same type, (N, C, ceil(scale H), ceil(scale W)).

    Raises:
        InvalidArgument: for images of another kind, and for a scale that is not a positive number.
    """
    if not (isinstance(images, Tensor) and images.is_floating_point() and images.ndim == 4) or 0 in images.shape:
        got = f"{images.dtype} {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
        raise InvalidArgument("images", "a float tensor of shape (N, C, H, W), none of them 0", got)
    if not (scale > 0 and math.isfinite(scale)):
        raise InvalidArgument("scale", "a finite number above 0", scale)
    return _along(_along(images, scale, 2), scale, 3)


def _along(images: Tensor, scale: float, axis: int) -> Tensor:
    sources, weights = _taps(images.shape[axis], float(scale))
    shape = [-1 if i == axis else 1 for i in range(4)]
    result = None
    # Tap by tap, not as a matrix product, whose sums come in an order that depends on the size of the batch.
    for source, weight in zip(sources, weights, strict=True):
        part = images.index_select(axis, source.to(images.device))
        part = part * weight.to(images.device, images.dtype).view(shape)
        result = part if result is None else result + part
    assert result is not None
    return result


def enlarged_again(images: Tensor) -> Tensor:
    """Shrunk by four and enlarged again to their own size: images that lost their resolution, clipped to [0, 1]."""
    height, width = images.shape[-2:]
    return bicubic(bicubic(images, 1 / SCALE), SCALE)[..., :height, :width].clamp(0.0, 1.0)


def cubic(x: Tensor) -> Tensor:
    """Keys' interpolation kernel with a = -0.5, zero from 2 on (Keys, 1981)."""
    x = x.abs()
    near = (1.5 * x - 2.5) * x * x + 1.0
    far = ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0
    return torch.where(x <= 1.0, near, torch.where(x < 2.0, far, 0.0))


@lru_cache(maxsize=64)
def _taps(length: int, scale: float) -> tuple[Tensor, Tensor]:
    """For each tap and output pixel, the input pixel (taps, outputs) and its weight, float64."""
    outputs, widened = math.ceil(length * scale - 1e-9), min(scale, 1.0)
    reach = 2.0 / widened
    centres = (torch.arange(outputs, dtype=torch.float64) + 0.5) / scale - 0.5
    first = torch.floor(centres - reach)
    places = first + torch.arange(math.ceil(2 * reach) + 2, dtype=torch.float64)[:, None]
    weights = cubic((centres - places) * widened)
    weights = weights / weights.sum(0)
    mirrored = places.long() % (2 * length)
    sources = torch.where(mirrored < length, mirrored, 2 * length - 1 - mirrored)
    used = (weights != 0).any(1)
    return sources[used], weights[used]
