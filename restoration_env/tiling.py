"""Tools on photographs of any size: tile by tile, with exactly the surroundings each tile depends on.

A tile is cut with a margin as wide as the halos of all its tools together. Where the photograph ends there is
no margin: a tool sees the same border, with the same padding, as if it had been given the whole photograph.
So there are no seams, and the memory needed does not grow with the photograph.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from restoration_env.errors import InvalidArgument
from restoration_env.pixels import eight_bit
from restoration_env.toolbox import Tool
from restoration_env.workers import in_parallel

Progress = Callable[[int, int], None]  # called with the tiles done and their number
_TILE = {"cpu": 192, "cuda": 1024}  # margins that cost little, activations that need little; or fill the GPU


def apply_tools(
    image: np.ndarray,
    tools: Sequence[Tool],
    *,
    device: torch.device | str = "cpu",
    tile: int | None = None,
    keep_frames: bool = False,
    progress: Progress | None = None,
) -> tuple[np.ndarray, ...]:
    """Apply tools one after the other to an image of any size, as if it were done in one piece.

    The image stays in floating point between the tools, not clipped, as in `Episodes`; only what is returned
    is rounded.

    Args:
        image: uint8 (H, W, 3).
        tools: in the order in which they are applied; the same tool may come twice.
        device: where the tools compute.
        tile: side of the tiles in pixels; None for what suits the device.
        keep_frames: return the image after every tool, not only after the last one.
        progress: called after each tile with the tiles done and their number.

    Returns:
        uint8 (H, W, 3) after the last tool, or after each one; empty if there are no tools.

    Raises:
        InvalidArgument: for an image of another shape or type, or tiles without pixels.
    """
    _check(image, tile)
    kept = len(tools) if keep_frames else min(1, len(tools))
    frames = tuple(np.empty_like(image) for _ in range(kept))
    skipped = len(tools) - kept
    tiles = _tiles(image.shape, tile or _TILE.get(torch.device(device).type, 256))

    def piece(place: tuple[slice, slice]) -> None:
        for step, pixels in enumerate(_after_each_tool(image, tools, *place, device)):
            if step >= skipped:
                frames[step - skipped][place] = eight_bit(pixels).permute(1, 2, 0).cpu().numpy()

    pieces = [partial(piece, place) for place in tiles] if tools else []
    on_cpu = torch.device(device).type == "cpu"
    for count, _ in enumerate(in_parallel(pieces) if on_cpu else (run() for run in pieces), 1):
        if progress:
            progress(count, len(tiles))
    return frames


def _check(image: np.ndarray, tile: int | None) -> None:
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
        got = image.dtype if isinstance(image, np.ndarray) else type(image).__name__
        raise InvalidArgument("image", "a uint8 array of shape (H, W, 3)", got)
    if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise InvalidArgument("image", "of shape (H, W, 3), none of them 0", image.shape)
    if tile is not None and tile < 1:
        raise InvalidArgument("tile", "1 pixel or more", tile)


def _tiles(shape: tuple[int, ...], side: int) -> list[tuple[slice, slice]]:
    """Rows and columns of tiles, at most ``side`` wide and high and nearly equal, that cover an image."""
    rows, columns = (_parts(length, side) for length in shape[:2])
    return [(down, right) for down in rows for right in columns]


def _parts(length: int, side: int) -> list[slice]:
    count = -(-length // side)
    edges = [length * i // count for i in range(count + 1)]
    return [slice(start, stop) for start, stop in itertools.pairwise(edges)]


@torch.no_grad()
def _after_each_tool(
    image: np.ndarray, tools: Sequence[Tool], rows: slice, columns: slice, device: torch.device | str
) -> Iterator[Tensor]:
    """A tile after every tool, float (3, h, w), not clipped."""
    height, width = image.shape[:2]
    grid = math.lcm(*(tool.grid for tool in tools))
    halos = [-(-tool.halo // grid) * grid for tool in tools]  # whole cells of the grid: every cut lies on it
    left = sum(halos)
    down, right = _widened(rows, left, height, grid), _widened(columns, left, width, grid)
    pixels = torch.from_numpy(np.array(image[down, right])).to(device)
    batch = pixels.permute(2, 0, 1)[None].float() / 255.0
    for tool, halo in zip(tools, halos, strict=True):
        batch = tool(batch).to(batch.dtype)
        left -= halo
        # What the tool made of the outermost pixels is wrong, except where the image itself ends.
        seen_down, seen_right = down, right
        down, right = _widened(rows, left, height, grid), _widened(columns, left, width, grid)
        batch = batch[:, :, _within(down, seen_down), _within(right, seen_right)]
        yield batch[0][:, _within(rows, down), _within(columns, right)]


def _widened(part: slice, margin: int, length: int, grid: int) -> slice:
    """A part of a line with its margin, as far as the line goes, from a multiple of the grid on."""
    return slice(max(0, part.start - margin) // grid * grid, min(length, part.stop + margin))


def _within(inner: slice, outer: slice) -> slice:
    """Where a part lies in a larger one."""
    return slice(inner.start - outer.start, inner.stop - outer.start)
