"""JPEG as libjpeg does it, to the bit, on batches of tensors on any device.

`jpeg` returns exactly what Pillow returns after saving an RGB image with ``quality=q`` (4:2:0, the integer
"islow" transform) and loading it again. Every step of libjpeg is integer arithmetic, so the transform can be
written as two integer matrix products with a rounding shift after each. The products are computed in
float64, where they are exact (all values stay below 2^53), because that is fast on every device.
"""

from __future__ import annotations

import torch
from torch import Tensor

from restoration_env.devices import constant
from restoration_env.errors import InvalidArgument

# ITU-T T.81, Annex K.1: the standard quantisation tables at quality 50.
_LUMA = (
    (16, 11, 10, 16, 24, 40, 51, 61), (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56), (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77), (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101), (72, 92, 95, 98, 112, 100, 103, 99),
)  # fmt: skip
_CHROMA = (
    (17, 18, 24, 47, 99, 99, 99, 99), (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99), (47, 66, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99), (99, 99, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99), (99, 99, 99, 99, 99, 99, 99, 99),
)  # fmt: skip

# The Loeffler-Ligtenberg-Moschytz transform in 13-bit fixed point, multiplied out: row k holds the weights of
# the eight samples in coefficient k. libjpeg's inverse transform is exactly the transpose.
_DCT = (
    (8192, 8192, 8192, 8192, 8192, 8192, 8192, 8192),
    (11363, 9633, 6437, 2260, -2260, -6437, -9633, -11363),
    (10703, 4433, -4433, -10703, -10703, -4433, 4433, 10703),
    (9633, -2259, -11362, -6436, 6436, 11362, 2259, -9633),
    (8192, -8192, -8192, 8192, 8192, -8192, -8192, 8192),
    (6437, -11362, 2261, 9633, -9633, -2261, 11362, -6437),
    (4433, -10704, 10704, -4433, -4433, 10704, -10704, 4433),
    (2260, -6436, 9633, -11363, 11363, -9633, 6436, -2260),
)

_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def jpeg(images: Tensor, quality: Tensor, *, check: bool = True) -> Tensor:
    """Compress and decompress, bit for bit as libjpeg.

    Args:
        images: uint8 (N, 3, H, W), RGB.
        quality: (N,) integers 1..100, one for each image.
        check: look at the qualities. Callers that made them themselves switch it off: on a GPU looking means waiting.

    Returns:
        uint8 (N, 3, H, W) on the same device.

    Raises:
        InvalidArgument: if the images are not uint8 (N, 3, H, W) or a quality is outside 1..100.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape:
        raise InvalidArgument("images", "uint8 of shape (N, 3, H, W)", f"{images.dtype} {tuple(images.shape)}")
    if quality.shape != images.shape[:1] or quality.dtype not in _INTEGERS:
        raise InvalidArgument("quality", f"{len(images)} integers", f"{quality.dtype} {tuple(quality.shape)}")
    quality = quality.to(images.device)
    if check and bool(((quality < 1) | (quality > 100)).any()):
        raise InvalidArgument("quality", "between 1 and 100", quality.tolist())

    height, width = images.shape[-2:]
    luma, chroma = _to_ycc(images.int())
    luma = _pad(luma, -(-height // 16) * 16, -(-width // 16) * 16)
    chroma = _pad(chroma, height + height % 2, luma.shape[-1])
    chroma = _pad(_halve(chroma), luma.shape[-2] // 2, luma.shape[-1] // 2)

    luma = _through_dct(luma, _table(_LUMA, quality))[..., :height, :width]
    chroma = _through_dct(chroma, _table(_CHROMA, quality))
    chroma = _double(chroma[..., : (height + 1) // 2, : (width + 1) // 2])[..., :height, :width]
    return _to_rgb(luma, chroma)


def _to_ycc(rgb: Tensor) -> tuple[Tensor, Tensor]:
    """RGB int (N, 3, H, W) to luma (N, 1, H, W) and chroma (N, 2, H, W), in 16-bit fixed point."""
    r, g, b = rgb.unbind(1)
    offset = (128 << 16) + 32767
    y = (19595 * r + 38470 * g + 7471 * b + 32768) >> 16
    cb = (-11059 * r - 21709 * g + 32768 * b + offset) >> 16
    cr = (32768 * r - 27439 * g - 5329 * b + offset) >> 16
    return y.unsqueeze(1), torch.stack((cb, cr), 1)


def _to_rgb(luma: Tensor, chroma: Tensor) -> Tensor:
    y, cb, cr = luma[:, 0], chroma[:, 0] - 128, chroma[:, 1] - 128
    r = y + ((91881 * cr + 32768) >> 16)
    g = y + ((-22554 * cb - 46802 * cr + 32768) >> 16)
    b = y + ((116130 * cb + 32768) >> 16)
    return torch.stack((r, g, b), 1).clamp_(0, 255).to(torch.uint8)


def _pad(x: Tensor, height: int, width: int) -> Tensor:
    """Repeat the last row and the last column until the size is reached."""
    down, right = height - x.shape[-2], width - x.shape[-1]
    if right:
        x = torch.cat((x, x[..., -1:].expand(*x.shape[:-1], right)), -1)
    if down:
        x = torch.cat((x, x[..., -1:, :].expand(*x.shape[:-2], down, x.shape[-1])), -2)
    return x


def _halve(x: Tensor) -> Tensor:
    """Mean of each 2x2 block; the rounding bias alternates 1, 2 along a row."""
    total = x[..., 0::2, 0::2] + x[..., 0::2, 1::2] + x[..., 1::2, 0::2] + x[..., 1::2, 1::2]
    bias = 1 + torch.arange(total.shape[-1], device=x.device, dtype=x.dtype) % 2
    return (total + bias) >> 2


def _double(x: Tensor) -> Tensor:
    """Twice the height and width by libjpeg's triangle filter; plain repetition if the width is 2 or less."""
    if x.shape[-1] <= 2:
        return x.repeat_interleave(2, -2).repeat_interleave(2, -1)
    up = torch.cat((x[..., :1, :], x[..., :-1, :]), -2)
    down = torch.cat((x[..., 1:, :], x[..., -1:, :]), -2)
    rows = torch.stack((3 * x + up, 3 * x + down), -2).flatten(-3, -2)
    left = torch.cat((rows[..., :1], rows[..., :-1]), -1)
    right = torch.cat((rows[..., 1:], rows[..., -1:]), -1)
    return torch.stack(((3 * rows + left + 8) >> 4, (3 * rows + right + 7) >> 4), -1).flatten(-2)


def _table(base: tuple[tuple[int, ...], ...], quality: Tensor) -> Tensor:
    """The quantisation tables (N, 8, 8) of a batch of qualities, as float64 whole numbers."""
    quality = quality.to(torch.int64)
    scale = torch.where(quality < 50, 5000 // quality, 200 - 2 * quality)
    table = (constant(base, quality.device) * scale[:, None, None] + 50) // 100
    return table.clamp(1, 255).double()


def _through_dct(x: Tensor, table: Tensor) -> Tensor:
    """Transform, quantise, and back: int (N, C, H, W) with H and W multiples of 8."""
    n, c, h, w = x.shape
    matrix = constant(_DCT, x.device, torch.float64)
    rows, columns = (-1, 8), (n, c, h // 8, 8, w)  # each view has the eight samples of a block on one axis
    steps = table.repeat(1, 1, w // 8)[:, None, None]

    y = _shift((x - 128).double().view(rows) @ matrix.T, 11)
    y = _shift(matrix @ y.view(columns), 15)
    y = torch.floor((y.abs() + 4 * steps) / (8 * steps)).copysign_(y).mul_(steps)
    y = _shift(matrix.T @ y, 11)
    y = _shift(y.view(rows) @ matrix, 18)
    return y.add_(128).clamp_(0, 255).view(n, c, h, w).int()


def _shift(x: Tensor, bits: int) -> Tensor:
    """(x + half) >> bits for whole numbers held in float64, in place."""
    return x.add_(1 << (bits - 1)).mul_(0.5**bits).floor_()
