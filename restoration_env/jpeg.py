"""JPEG as libjpeg does it, to the bit, on batches of tensors on any device.

`jpeg` returns exactly what Pillow returns after saving an RGB image with ``quality=q`` (4:2:0, the integer
"islow" transform) and loading it again. Every step of libjpeg is integer arithmetic, so the transform can be
written as two integer matrix products with a rounding shift after each. The products are computed in floating-point
numbers, where they are exact: in float64, which is fast on every device, or on a processor, faster still, in float32.
Where numba is installed a processor computes in whole numbers instead, image after image (`loops`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from restoration_env.devices import constant, has_loops, loops
from restoration_env.errors import InvalidArgument
from restoration_env.workers import by_parts

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

_PIXELS = 32 * 80 * 80  # at once, on a processor: what they need on the way stays in its cache
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

    return through_jpeg(images.float(), quality).to(torch.uint8)


def through_jpeg(levels: Tensor, quality: Tensor) -> Tensor:
    """`jpeg` for whole numbers held in float32, unchecked.

    Args:
        levels: (N, 3, H, W), 0 .. 255.
        quality: integers (N,), 1 .. 100, on the same device.

    Returns:
        Whole numbers, float32 (N, 3, H, W).
    """
    few = max(1, _PIXELS // math.prod(levels.shape[-2:]))
    return by_parts(_through_jpeg, levels, quality, part=few)[0]


def _through_jpeg(levels: Tensor, quality: Tensor) -> tuple[Tensor]:
    if has_loops(levels.device):
        made, steps = torch.empty(levels.shape), _tables(levels.device, torch.float32)[quality.long()]
        matrix = np.array(_DCT, np.int32)
        loops().through_jpeg(levels.detach().contiguous().numpy(), steps.numpy(), matrix, made.numpy())
        return (made,)
    height, width = levels.shape[-2:]
    high, wide = -(-height // 16) * 16, -(-width // 16) * 16
    luma, chroma = _to_ycc(levels)
    chroma = _halve(_pad(chroma, height + height % 2, wide))
    # One image for the transform: luma, and under it the two chromas side by side, half as high and half as wide.
    planes = levels.new_empty(len(levels), high + high // 2, wide, dtype=_exact(levels.device))
    planes[:, :high] = _pad(luma, high, wide)
    planes[:, high:] = _pad(chroma, high // 2, wide // 2).transpose(1, 2).flatten(2)
    planes = _through_dct(planes, high, quality).float()

    luma = planes[:, :height, :width]
    chroma = planes[:, high:].unflatten(2, (2, wide // 2)).transpose(1, 2)
    chroma = _double(chroma[..., : (height + 1) // 2, : (width + 1) // 2])[..., :height, :width]
    return (_to_rgb(luma, chroma.sub_(128.0)),)


def _to_ycc(rgb: Tensor) -> tuple[Tensor, Tensor]:
    """RGB (N, 3, H, W) to luma (N, H, W) and chroma (N, 2, H, W), in 16-bit fixed point.

    All sums are whole numbers below 2^24, which float32 holds exactly.
    """
    r, g, b = rgb.unbind(1)
    chroma = rgb.new_empty(len(rgb), 2, *rgb.shape[2:])
    luma = torch.mul(r, 19595.0).add_(g, alpha=38470.0).add_(b, alpha=7471.0).add_(32768.0)
    torch.mul(r, -11059.0, out=chroma[:, 0]).add_(g, alpha=-21709.0).add_(b, alpha=32768.0)
    torch.mul(r, 32768.0, out=chroma[:, 1]).add_(g, alpha=-27439.0).add_(b, alpha=-5329.0)
    chroma.add_((128 << 16) + 32767.0)
    return luma.mul_(2.0**-16).floor_(), chroma.mul_(2.0**-16).floor_()


def _to_rgb(luma: Tensor, chroma: Tensor) -> Tensor:
    """Luma (N, H, W) and chroma (N, 2, H, W) less 128 to RGB (N, 3, H, W)."""
    rgb = luma.new_empty(len(luma), 3, *luma.shape[1:])
    cb, cr = chroma.unbind(1)
    # Of red and blue no product lies half way between two whole numbers.
    torch.mul(cr, 91881 * 2.0**-16, out=rgb[:, 0]).round_()
    torch.mul(cb, -22554.0, out=rgb[:, 1]).add_(cr, alpha=-46802.0).add_(32768.0).mul_(2.0**-16).floor_()
    torch.mul(cb, 116130 * 2.0**-16, out=rgb[:, 2]).round_()
    return rgb.add_(luma[:, None]).clamp_(0.0, 255.0)


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
    rows = x[..., 0::2, :] + x[..., 1::2, :]
    total = rows[..., 0::2] + rows[..., 1::2]
    bias = 1 + torch.arange(total.shape[-1], device=x.device) % 2
    return total.add_(bias).mul_(0.25).floor_()


def _double(x: Tensor) -> Tensor:
    """Twice the height and width by libjpeg's triangle filter; plain repetition if the width is 2 or less."""
    if x.shape[-1] <= 2:
        return x.repeat_interleave(2, -2).repeat_interleave(2, -1)
    n, channels, height, width = x.shape
    padded = torch.cat((x[..., :1, :], x, x[..., -1:, :]), -2)
    rows = x.new_empty(n, channels, height, 2, width)
    torch.add(padded[..., :-2, :], x, alpha=3.0, out=rows[..., 0, :])
    torch.add(padded[..., 2:, :], x, alpha=3.0, out=rows[..., 1, :])
    rows = rows.view(n, channels, 2 * height, width)
    padded = torch.cat((rows[..., :1], rows, rows[..., -1:]), -1)
    both = x.new_empty(n, channels, 2 * height, width, 2)
    torch.add(padded[..., :-2], rows, alpha=3.0, out=both[..., 0])
    torch.add(padded[..., 2:], rows, alpha=3.0, out=both[..., 1])
    bias = constant((8.0, 7.0) * width, x.device)
    return both.view(n, channels, 2 * height, 2 * width).add_(bias).mul_(1 / 16).floor_()


def _exact(device: torch.device) -> torch.dtype:
    """In which numbers the transform is computed: in float32 where its products are surely not rounded to less."""
    sure = device.type == "cpu" and torch.get_float32_matmul_precision() == "highest"
    return torch.float32 if sure else torch.float64


@lru_cache(maxsize=8)
def _tables(device: torch.device, dtype: torch.dtype) -> Tensor:
    """The quantisation tables of qualities 0 (as 1) .. 100, of luma and of chroma: (101, 2, 8, 8)."""
    quality = torch.arange(101).clamp_min(1)
    scale = torch.where(quality < 50, 5000 // quality, 200 - 2 * quality)
    tables = (torch.tensor((_LUMA, _CHROMA)) * scale[:, None, None, None] + 50) // 100
    return tables.clamp(1, 255).to(device, dtype)


@lru_cache(maxsize=8)
def _passes(device: torch.device, dtype: torch.dtype) -> tuple[_Pass, ...]:
    """Rows, columns; and back, columns, rows. Of rows those of two blocks, because products gain from it."""
    matrix = torch.tensor(_DCT, dtype=torch.float64)
    twice = torch.block_diag(matrix, matrix)
    return (
        _Pass(twice.T, 11, 0.5, device, dtype, split=False),  # eight samples below 2^7 make sums below 2^23
        _Pass(matrix, 15, 0.5, device, dtype),
        _Pass(matrix.T, 11, 0.5, device, dtype),
        _Pass(twice, 18, 128.5, device, dtype),
    )


class _Pass:
    """A pass of the transform, exact: floor(products with a matrix / 2^shift + offset).

    float64 holds every sum that occurs, float32 whole numbers up to 2^24. For those the matrix is split into
    128 coarse + fine: floor((128 c + f) / 2^shift + offset) is floor((c + floor(f / 128)) / 2^(shift - 7) + offset),
    because the offset is a multiple of 128 / 2^shift. No sum of either is too large: the longest samples are those that
    the columns going back leave. The eight coefficients of a column have a norm of at most 2^10, to which rounding to
    multiples of at most 255 adds 2^7 each; so these samples are below 2^14, and their coarse sums below 2^23.
    """

    def __init__(
        self,
        matrix: Tensor,
        shift: int,
        offset: float,
        device: torch.device,
        dtype: torch.dtype,
        *,
        split: bool = True,
    ) -> None:
        self.offset, self.share = offset, 2.0 ** (7 - shift)
        factors = [matrix * 2.0**-shift]
        if split and dtype == torch.float32:
            coarse = (matrix / 128).round()
            factors = [coarse * self.share, (matrix - 128 * coarse) / 128]
        self.factors = [factor.to(device, dtype) for factor in factors]

    def __call__(self, multiply: Callable[[Tensor], Tensor]) -> Tensor:
        """What becomes of samples that ``multiply`` multiplies a matrix with."""
        coarse, *fine = self.factors
        made = multiply(coarse)
        for factor in fine:
            made.add_(multiply(factor).floor_(), alpha=self.share)
        return made.add_(self.offset).floor_()


def _through_dct(x: Tensor, high: int, quality: Tensor) -> Tensor:
    """Transform, quantise, and back: whole numbers (N, H, W), luma in the first ``high`` rows, chroma below."""
    width = x.shape[-1]
    rows, columns = (-1, 16), (-1, 8, width)  # views with the samples of a block, or of two, on one axis
    across, down, up, back = _passes(x.device, x.dtype)
    x.sub_(128.0)
    y = across(lambda factor: x.view(rows) @ factor)
    y = down(lambda factor: factor @ y.view(columns)).view_as(x)
    steps = _tables(x.device, x.dtype)[quality.long()].repeat(1, 1, 1, width // 8)
    # Halves are rounded away from zero: the whole numbers divided are far from all others that are nearly halves.
    upwards = 1.0 + 32.0 * torch.finfo(x.dtype).eps
    for part, step in zip((y[:, :high], y[:, high:]), steps[:, :, None].unbind(1), strict=True):
        part.unflatten(1, (-1, 8)).mul_(upwards / (8.0 * step)).round_().mul_(step)
    y = up(lambda factor: factor @ y.view(columns)).view(rows)
    return back(lambda factor: y @ factor).clamp_(0.0, 255.0).view_as(x)
