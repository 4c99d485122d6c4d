"""Statistics of an image in which damage shows: spectra of blocks, their spread, and the grid that JPEG leaves.

What noise, blur and compression do to photographs is seen best in the coefficients of a discrete cosine transform:
noise lifts all of them, blur drops the high ones, JPEG sets them to zero block by block, and what photographs
themselves have falls off evenly. Image quality without a reference is predicted from such statistics (BLIINDS-II:
Saad, Bovik and Charrier, "Blind Image Quality Assessment", TIP 2012). They need no training, so what is learned on
top of them needs few images.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

_BLOCK = 8  # side of the transform: JPEG's
_BAND_EDGES = (0.5, 1.2, 2.1, 3.2, 4.3, 5.4, 6.6, 8.0)  # of frequencies (u, v), by their distance from zero
_QUANTILES = (0.1, 0.35, 0.65, 0.9)  # over the blocks of an image: flat ones show its noise, others its edges
_ZERO = (2.0, 6.0)  # of 255: coefficients below are as good as zero
_SYMMETRIC, _BANDS = _BLOCK * (_BLOCK + 1) // 2, len(_BAND_EDGES) + 1
STATISTICS = 2 * _SYMMETRIC + len(_QUANTILES) * (_BANDS - 1) + 2 * _BANDS + _BLOCK
GRID_STATISTICS = (len(_ZERO) + 1) * _SYMMETRIC
_RINGS, _DIRECTIONS = 20, 2  # of the spectrum of a whole image: by distance from zero, and along the axes or oblique
_YCC = ((0.299, 0.587, 0.114), (-0.169, -0.331, 0.5), (0.5, -0.419, -0.081))


def statistics(images: Tensor) -> Tensor:
    """Statistics of images, the same for an image transposed.

    Args:
        images: float (N, 3, H, W), [0, 1] for white; differences of images are welcome. At least 16 pixels a side.

    Returns:
        float32 (N, ``STATISTICS``): logarithms of the power of each frequency of luma and of how unevenly it is
        spread, quantiles over the blocks of the power of bands, the power of bands of chroma, and how differences
        of neighbours depend on their place in the JPEG grid.
    """
    luma, chroma = _luma_chroma(images)
    basis, symmetric, bands = (part.to(images.device) for part in _tables())
    blocks = F.conv2d(luma, basis, stride=_BLOCK // 2).flatten(2).transpose(1, 2)  # (N, blocks, 64)
    power = blocks.square()
    mean_power = power.mean(1) @ symmetric
    mean_size = blocks.abs().mean(1) @ symmetric
    in_bands = torch.log10(power @ bands + 0.05)[..., 1:]  # without the mean of a block
    levels = torch.quantile(in_bands, in_bands.new_tensor(_QUANTILES), dim=1).transpose(0, 1).flatten(1)
    colours = F.conv2d(chroma, basis, stride=_BLOCK).flatten(2).square().mean(2) @ bands
    right = (luma[..., :, 1:] - luma[..., :, :-1]).abs().mean((1, 2))
    down = (luma[..., 1:, :] - luma[..., :-1, :]).abs().mean((1, 3))
    by_place = torch.stack(
        [right[:, i::_BLOCK].mean(1) + down[:, i::_BLOCK].mean(1) for i in range(_BLOCK)],
        1,
    )
    parts = (
        torch.log10(mean_power + 0.05),
        torch.log10((mean_size.square() + 0.05) / (mean_power + 0.05)),
        levels,
        torch.log10(colours + 0.02).view(len(images), -1),
        torch.log10((by_place + 0.05) / (by_place.mean(1, keepdim=True) + 0.05)),
    )
    return torch.cat(parts, 1)


def grid_statistics(images: Tensor) -> Tensor:
    """What JPEG left in images whose corner lies on its grid.

    Args:
        images: float (N, 3, H, W) in [0, 1].

    Returns:
        float32 (N, ``GRID_STATISTICS``): for each frequency of luma, how many blocks of the grid have almost none of
        it, and how its power there compares with that of all blocks.
    """
    luma, _ = _luma_chroma(images)
    basis, symmetric, _ = (part.to(images.device) for part in _tables())
    on_grid = F.conv2d(luma, basis, stride=_BLOCK).flatten(2)  # (N, 64, blocks)
    everywhere = F.conv2d(luma, basis, stride=_BLOCK // 2).flatten(2)
    shares = [(on_grid.abs() < threshold).float().mean(2) @ symmetric for threshold in _ZERO]
    powers = [torch.log10(blocks.square().mean(2) @ symmetric + 0.05) for blocks in (on_grid, everywhere)]
    return torch.cat((*shares, powers[0] - powers[1]), 1)


def spectrum(images: Tensor) -> Tensor:
    """The power spectrum of whole square images, where blur shows that is wider than a block.

    Args:
        images: float (N, 3, S, S) in [0, 1].

    Returns:
        float32 (N, `spectrum_size`): logarithms of the power of luma and both chromas, in rings of frequencies as wide
        as they are far from zero, the frequencies near the axes and the oblique ones apart.
    """
    luma, chroma = _luma_chroma(images)
    planes = torch.cat((luma, chroma.view(len(images), 2, *chroma.shape[2:])), 1)
    lines, rings = (part.to(images.device) for part in _rings(images.shape[-1]))
    power = (lines @ planes @ lines.T).square().flatten(2) @ rings
    return torch.log10(power + 0.05).flatten(1)


def spectrum_size(side: int) -> int:
    """How many numbers `spectrum` gives of an image of this side."""
    return 3 * _rings(side)[1].shape[1]


@lru_cache(maxsize=4)
def _rings(side: int) -> tuple[Tensor, Tensor]:
    """The transform of a line (S, S), and the means of the coefficients of each ring and direction (S * S, R)."""
    place = torch.arange(side).float()
    distance = (place[:, None].square() + place.square()).sqrt()
    slant = (torch.atan2(place[:, None].expand(side, side), place.expand(side, side)) - math.pi / 4).abs()
    edges = torch.logspace(math.log10(1.5), math.log10(side * math.sqrt(2.0) + 1.0), _RINGS)
    ring = torch.bucketize(distance, torch.cat((torch.tensor([0.5]), edges))) - 1
    direction = (slant * _DIRECTIONS / (math.pi / 4 + 1e-6)).long().clamp_max(_DIRECTIONS - 1)
    which = torch.where(ring >= 0, ring * _DIRECTIONS + direction, -1).flatten()
    means = torch.stack([(which == number).float() for number in range(_RINGS * _DIRECTIONS)], 1)
    means = means[:, means.sum(0) > 0]
    return _cosines(side), means / means.sum(0)


def _cosines(side: int) -> Tensor:
    """The discrete cosine transform of a line, orthonormal, (S, S)."""
    index = torch.arange(side)
    lines = torch.cos(math.pi * (2 * index + 1) * index[:, None] / (2 * side)) * math.sqrt(2.0 / side)
    lines[0] /= math.sqrt(2.0)
    return lines


def _luma_chroma(images: Tensor) -> tuple[Tensor, Tensor]:
    """Luma (N, 1, H, W) and the chroma channels (2N, 1, H, W), both of an image side by side, 255 for white."""
    colours = torch.einsum("kc,nchw->nkhw", images.new_tensor(_YCC, dtype=torch.float32) * 255.0, images.float())
    return colours[:, :1].contiguous(), colours[:, 1:].flatten(0, 1)[:, None]


@lru_cache(maxsize=1)
def _tables() -> tuple[Tensor, Tensor, Tensor]:
    """The transform (64, 1, 8, 8), and means of coefficients: (u, v) with (v, u) (64, 36), and of bands (64, 9)."""
    index, lines = torch.arange(_BLOCK), _cosines(_BLOCK)
    basis = torch.einsum("uy,vx->uvyx", lines, lines).reshape(_BLOCK**2, 1, _BLOCK, _BLOCK)
    pairs = {pair: number for number, pair in enumerate((u, v) for u in range(_BLOCK) for v in range(u, _BLOCK))}
    symmetric = torch.tensor([pairs[min(u, v), max(u, v)] for u in range(_BLOCK) for v in range(_BLOCK)])
    distance = (index[:, None].square() + index.square()).float().sqrt().flatten()
    bands = torch.bucketize(distance, torch.tensor(_BAND_EDGES))
    symmetric, bands = F.one_hot(symmetric, _SYMMETRIC).float(), F.one_hot(bands, _BANDS).float()
    return basis, symmetric / symmetric.sum(0), bands / bands.sum(0)
