"""Photographs enlarged by four for real: segmented once as a whole, super-resolved tile by tile."""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from restoration_env.errors import InvalidArgument
from restoration_env.photos import Photo, read_photo, write_photo
from restoration_env.resizing import SCALE, bicubic
from restoration_env.sft.super_resolver import SuperResolver, prior

SMALLEST = 8  # pixels on the shorter side of what is enlarged
_MARGIN = 24  # low-resolution pixels around a tile that its result depends on
_SEEN = 640  # enlarged pixels on the longer side of what the segmenter sees: it learned from images half as large


def upscale(
    image: np.ndarray,
    resolver: SuperResolver,
    *,
    category: str | None = None,
    tile: int = 96,
    device: torch.device | str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """Enlarge an image of any size from 8x8 pixels on by four, without seams.

    Args:
        image: uint8 (H, W, 3).
        resolver: what enlarges.
        category: say that all of the image is of this category, instead of looking.
        tile: side of the tiles in pixels of the image.
        device: where the resolver is.
        progress: called after each tile with the tiles done and their number.

    Returns:
        uint8 (4H, 4W, 3).

    Raises:
        InvalidArgument: for an image of another shape or type or a smaller one, and an unknown category.
    """
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        got = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise InvalidArgument("image", "a uint8 array of shape (H, W, 3)", got)
    height, width = image.shape[:2]
    if min(height, width) < SMALLEST:
        raise InvalidArgument("image", f"at least {SMALLEST} pixels high and wide", f"{width}x{height}")
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
    maps = None if category is not None else _coarse_maps(pixels, resolver, device)
    result = np.empty((SCALE * height, SCALE * width, 3), np.uint8)
    tiles = [(down, right) for down in _parts(height, tile) for right in _parts(width, tile)]

    def shares(rows: slice, columns: slice) -> Tensor:
        if maps is not None:
            return _stretched(maps, (height, width), rows, columns)
        size = (SCALE * (part.stop - part.start) for part in (rows, columns))
        return prior(str(category), *size).to(device)

    scene = resolver.scene(shares(*tile) for tile in tiles)
    for done, (down, right) in enumerate(tiles, 1):
        seen_down, seen_right = _widened(down, height), _widened(right, width)
        part = pixels[:, :, seen_down, seen_right].to(device).float() / 255
        made = resolver(part, shares(seen_down, seen_right), scene)[0]
        rows, columns = (_scaled(inner, outer) for inner, outer in ((down, seen_down), (right, seen_right)))
        rounded = (made[:, rows, columns] * 255).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0)
        place = tuple(slice(SCALE * part.start, SCALE * part.stop) for part in (down, right))
        result[place] = rounded.cpu().numpy()
        if progress:
            progress(done, len(tiles))
    return result


def upscale_file(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    resolver: SuperResolver,
    *,
    category: str | None = None,
    device: torch.device | str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> Photo:
    """Enlarge an image file into another one, with its colour profile, EXIF block and alpha channel.

    Raises:
        UnreadableImage: if the source is no readable image.
        InvalidArgument: as for `upscale`, and for a target whose ending names no format.
    """
    photo = read_photo(source)
    rgb = upscale(photo.rgb, resolver, category=category, device=device, progress=progress)
    if photo.grey:
        rgb = np.repeat(np.array(Image.fromarray(rgb).convert("L"))[..., None], 3, 2)
    alpha = None
    if photo.alpha is not None:
        alpha = np.array(Image.fromarray(photo.alpha).resize(rgb.shape[1::-1], Image.Resampling.BICUBIC))
    enlarged = dataclasses.replace(photo, rgb=rgb, alpha=alpha)
    write_photo(enlarged, target)
    return enlarged


def _coarse_maps(pixels: Tensor, resolver: SuperResolver, device: torch.device | str) -> Tensor:
    """What is where in the whole photograph, float (1, 8, h, w), at the size the segmenter knows scenes in."""
    height, width = pixels.shape[2:]
    scale = min(float(SCALE), _SEEN / max(height, width))
    whole = pixels.to(device).float() / 255
    seen = bicubic(whole, scale) if scale > 1 else F.interpolate(whole, scale_factor=scale, mode="area")
    seen = F.pad(seen, (0, max(0, 16 - seen.shape[3]), 0, max(0, 16 - seen.shape[2])), mode="replicate")
    maps = resolver.segmenter(seen.clamp(0, 1))
    return maps[..., : max(1, round(scale * height)), : max(1, round(scale * width))]


def _stretched(maps: Tensor, shape: tuple[int, int], rows: slice, columns: slice) -> Tensor:
    """The part of the maps that belongs to rows and columns of the photograph, at four times its resolution."""
    axes = []
    for part, length in ((rows, shape[0]), (columns, shape[1])):
        places = torch.arange(SCALE * part.start, SCALE * part.stop, device=maps.device)
        axes.append((places + 0.5) / (SCALE * length) * 2 - 1)
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij")[::-1], -1)[None].to(maps.dtype)
    shares = F.grid_sample(maps, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return shares / shares.sum(1, keepdim=True)


def _parts(length: int, side: int) -> list[slice]:
    count = -(-length // side)
    edges = [length * i // count for i in range(count + 1)]
    return [slice(start, stop) for start, stop in itertools.pairwise(edges)]


def _widened(part: slice, length: int) -> slice:
    return slice(max(0, part.start - _MARGIN), min(length, part.stop + _MARGIN))


def _scaled(inner: slice, outer: slice) -> slice:
    """Where a part lies in a larger one, at four times the resolution."""
    return slice(SCALE * (inner.start - outer.start), SCALE * (inner.stop - outer.start))
