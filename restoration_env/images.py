"""Clean images by name or path, split so that train, validation and test share none, and their patches."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from restoration_env import devices
from restoration_env.devices import constant
from restoration_env.distortions import (
    KERNEL_RADIUS,
    Recipe,
    gaussian_blur,
    jpeg_compression,
    lose_resolution,
    seeded_noise,
)
from restoration_env.errors import InvalidArgument, UnknownName, UnreadableImage
from restoration_env.photos import SUFFIXES, read_photo
from restoration_env.randomness import uniform
from restoration_env.turning import WAYS, turned_each

SPLITS = ("train", "validation", "test", "all")
GRIDS = {"aligned": 8, "random": 1}
DIV2K_VARIABLE = "RESTORATION_ENV_DIV2K"

# The photographs inside scikit-image's wheel; the test ones are never trained on. The real ones were bad to begin
# with: moved, out of focus, or noisy.
_BUNDLED = {
    "train": ("astronaut.png", "motorcycle_left.png", "ihc.png", "grass.png", "gravel.png", "brick.png"),
    "validation": ("rocket.jpg",),
    "test": ("chelsea.png", "coffee.png"),
}
REAL = ("clock_motion.png", "coins.png", "moon.png", "text.png")
_MCU = 16  # side of a 4:2:0 JPEG block
_REACH = 20  # a multiple of 4: pixels that shrinking by four and enlarging again look at, rounded up
_File = tuple[Path, int, int]  # a file as it was when listed: its path, size and time of change


class ImagePool:
    """Clean uint8 images in memory, from which patches are cut and damaged."""

    def __init__(self, images: Sequence[np.ndarray], names: Sequence[str]) -> None:
        if not images:
            raise InvalidArgument("images", "a source with at least one readable image")
        self._hold([np.ascontiguousarray(i) for i in images], names)

    def _hold(self, arrays: Sequence[np.ndarray], names: Sequence[str]) -> None:
        self.images = [torch.from_numpy(array).permute(2, 0, 1) for array in arrays]
        self.names = tuple(names)
        self._arrays = list(arrays)
        self._sides = tuple((len(array), array.shape[1]) for array in arrays)
        self._copies: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def __len__(self) -> int:
        return len(self.images)

    def fitting(self, size: int) -> ImagePool:
        """The images that hold a patch of this size.

        Raises:
            InvalidArgument: if none does.
        """
        keep = [i for i, image in enumerate(self.images) if min(image.shape[-2:]) >= size]
        if not keep:
            largest = max(min(image.shape[-2:]) for image in self.images)
            raise InvalidArgument("patch_size", f"at most {largest}, the largest image's shorter side", size)
        if len(keep) == len(self.images):
            return self
        pool = ImagePool.__new__(ImagePool)
        pool._hold([self._arrays[i] for i in keep], [self.names[i] for i in keep])
        return pool

    def joined(self, other: ImagePool) -> ImagePool:
        """These images and those of another pool after them."""
        pool = ImagePool.__new__(ImagePool)
        pool._hold([*self._arrays, *other._arrays], [*self.names, *other.names])
        return pool

    def crops(self, u: Tensor, size: int, grid: str = "aligned", margin: int = 0) -> tuple[Tensor, Tensor]:
        """Cut square patches, each with a margin (replicated where the image ends).

        Args:
            u: uniforms (N, 3) in [0, 1): which image, which row, which column.
            size: side of the patches in pixels.
            grid: "aligned" cuts at multiples of 8, as published; "random" cuts anywhere.
            margin: pixels added on all four sides.

        Returns:
            uint8 (N, 3, size + 2 margin, size + 2 margin) and the corners (N, 2) of the patches.
        """
        which, corners = self.places(u, size, grid)
        return self.windows(which, corners - margin, size + 2 * margin), corners

    def places(self, u: Tensor, size: int, grid: str = "aligned") -> tuple[Tensor, Tensor]:
        """Where patches are cut: the numbers of their images (N,) and their corners (N, 2), for uniforms (N, 3)."""
        if grid not in GRIDS:
            raise UnknownName("grid", grid, GRIDS)
        sides = constant(self._sides, u.device)
        which = (u[:, 0] * len(self)).long()
        room = torch.div(sides[which] - size, GRIDS[grid], rounding_mode="floor") + 1
        return which, GRIDS[grid] * (u[:, 1:] * room).long()

    def windows(self, which: Tensor, corners: Tensor, size: int) -> Tensor:
        """Squares of images, uint8 (N, 3, size, size), replicated where they reach over an image's edge.

        On a GPU all images are copied there once, and cut there.
        """
        if not devices.must_not_wait(which.device):
            squares = np.empty((len(which), size, size, 3), np.uint8)
            for square, number, (top, left) in zip(squares, which.tolist(), corners.tolist(), strict=True):
                _copy_window(self._arrays[number], top, left, square)
            return torch.from_numpy(squares).permute(0, 3, 1, 2)
        pixels, starts = self._on_device(which.device)
        sides, steps = constant(self._sides, which.device)[which], torch.arange(size, device=which.device)
        rows, columns = (
            torch.minimum((corners[:, axis, None] + steps).clamp_min(0), sides[:, axis, None] - 1) for axis in (0, 1)
        )
        flat = (starts[which, None] + rows * sides[:, 1:])[:, :, None] + columns[:, None, :]
        return pixels[flat].permute(0, 3, 1, 2)

    def _on_device(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """All pixels (P, 3), image after image, and where each image starts."""
        if device not in self._copies:
            starts = np.cumsum([0, *(height * width for height, width in self._sides[:-1])])
            pixels = np.concatenate([array.reshape(-1, 3) for array in self._arrays])
            self._copies[device] = torch.from_numpy(pixels).to(device), torch.from_numpy(starts).to(device)
        return self._copies[device]


def _copy_window(image: np.ndarray, top: int, left: int, square: np.ndarray) -> None:
    """Fill a square (S, S, 3) with what an image (H, W, 3) holds there, its edges replicated."""
    size, (height, width) = len(square), image.shape[:2]
    above, before = max(0, -top), max(0, -left)
    below, after = max(0, top + size - height), max(0, left + size - width)
    if max(above, below, before, after) >= size:  # nothing of the image is in it
        down, right = np.arange(top, top + size), np.arange(left, left + size)
        square[:] = image[down.clip(0, height - 1)[:, None], right.clip(0, width - 1)]
        return
    rows, columns = slice(above, size - below), slice(before, size - after)
    square[rows, columns] = image[top + above : top + size - below, left + before : left + size - after]
    square[rows, :before] = square[rows, before : before + 1]
    square[rows, size - after :] = square[rows, size - after - 1 : size - after]
    square[:above] = square[above]
    square[size - below :] = square[size - below - 1]


def damaged_patches(
    pool: ImagePool,
    keys: Tensor,
    recipe: Recipe,
    size: int,
    *,
    grid: str = "aligned",
    device: torch.device | str = "cpu",
    turns: bool = False,
    soft: float = 0.0,
    place_keys: Tensor | None = None,
    noise_keys: Tensor | None = None,
    inspect: Callable[[Tensor], None] | None = None,
) -> tuple[Tensor, Tensor]:
    """Clean and damaged patches, each a pure function of its key.

    The damage is that of the whole image: blur sees the true surroundings, and the JPEG grid starts at the
    image's corner, as when the published data was cut from damaged images. Only where the image's right or
    bottom edge cuts a JPEG block in two may that block differ, because its padding does. Shrinking and enlarging see
    the image's last pixels repeated beyond its border, not mirrored.

    Args:
        pool: images at least ``size`` pixels on each side.
        keys: int64 (N,), one for each patch.
        recipe: draws the strengths.
        size: side of the patches in pixels.
        grid: "aligned" cuts at multiples of 8, as published; "random" cuts anywhere.
        device: where the patches are damaged and returned.
        turns: turn and mirror each clean patch in one of the eight ways before it is damaged, to learn from.
        soft: share of the patches whose clean image is put out of focus first, by a Gaussian of 1 to 4 pixels.
        place_keys: int64 (N,), to cut the patches where those of other keys lie; None for their own.
        noise_keys: int64 (N,), to add the noise of other keys.
        inspect: computes the damage in float64, and is shown its values, float64 (N, 3, H, W) in [0, 1], before
            compression rounds them to eight bits.

    Returns:
        clean and damaged, float32 (float64 if inspected) (N, 3, size, size) in [0, 1].
    """
    keys = keys.to(device)
    place_keys, noise_keys = (keys if other is None else other.to(device) for other in (place_keys, noise_keys))
    which, corners = pool.places(uniform(place_keys, 3, stream=0), size, grid)
    # The JPEG blocks that decide a patch: those it lies in and, as chroma is interpolated, one pixel around.
    side = -(-(size + _MCU + 1 - size % 2) // _MCU) * _MCU
    reach = _REACH if recipe.loses else 0
    radius = KERNEL_RADIUS + reach
    lead = corners - ((corners - 1) // _MCU * _MCU).clamp_min(0)
    blocks = pool.windows(which, corners - lead - radius, side + 2 * radius)
    if turns:
        blocks = turned_each(blocks, (uniform(keys, 1, stream=4)[:, 0] * WAYS).long())
    blocks = blocks.to(torch.float64 if inspect else torch.float32).div_(255.0)
    if soft:
        chance, width = uniform(keys, 2, stream=8).unbind(1)
        blocks = gaussian_blur(blocks, torch.where(chance < soft, 1.0 + 3.0 * width, 0.0)).mul(255.0).round() / 255.0
    drawn = uniform(keys, 4, stream=2)
    blur, noise, quality = recipe.draw(drawn)
    worse = gaussian_blur(blocks, blur, crop=KERNEL_RADIUS)
    if reach:  # the blocks begin at multiples of 16 of the image, so the small pixels are those of the whole image
        worse = _inside(lose_resolution(worse, recipe.lost(drawn)), reach)
    worse = seeded_noise(worse, noise, noise_keys, stream=3)
    if inspect:
        inspect(worse)
    worse = jpeg_compression(worse, quality)
    return _cut(blocks, lead + radius, size), _cut(worse, lead, size)


def _inside(batch: Tensor, margin: int) -> Tensor:
    return batch[..., margin : batch.shape[-2] - margin, margin : batch.shape[-1] - margin]


def _cut(batch: Tensor, corners: Tensor, size: int) -> Tensor:
    """Out of each image of a batch, the square of this size at its corner."""
    if not devices.must_not_wait(batch.device):
        pieces = [p[:, y : y + size, x : x + size] for p, (y, x) in zip(batch, corners.tolist(), strict=True)]
        if batch.is_contiguous(memory_format=torch.channels_last):  # then lines are dense with all their channels
            return torch.stack([piece.permute(1, 2, 0) for piece in pieces]).permute(0, 3, 1, 2)
        return torch.stack(pieces)
    steps = torch.arange(size, device=batch.device)
    rows, columns = corners[:, 0, None] + steps, corners[:, 1, None] + steps
    which = torch.arange(len(batch), device=batch.device)
    return batch[which[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


def load_images(source: str | os.PathLike[str] = "bundled", split: str = "train", *, scale: float = 1.0) -> ImagePool:
    """Load a source of clean images.

    Args:
        source: "bundled" (the photographs inside scikit-image), "bundled-real" (four more there that were never
            perfect; no split), "div2k" (in the folder that the environment
            variable RESTORATION_ENV_DIV2K names; images 1-750 train, 801-900 validation, 751-800 test, as
            published), or a folder of PNG, JPEG, WebP, TIFF and BMP files, read recursively. A folder is
            split by the hash of each file's content: a tenth validation, a tenth test.
        split: "train", "validation", "test" or "all".
        scale: resize every image by this factor, 0 < scale <= 1 (bicubic, antialiased).

    Raises:
        InvalidArgument: for an unknown split, a source that does not exist or holds no readable image.
    """
    if split not in SPLITS:
        raise UnknownName("split", split, SPLITS)
    if not 0.0 < scale <= 1.0:
        raise InvalidArgument("scale", "above 0 and at most 1", scale)
    if source == "bundled":
        files = _bundled(split)
    elif source == "bundled-real":
        files = _bundled("real")
    elif source == "div2k":
        files = _div2k(split)
    else:
        files = _folder(Path(source), split)
    pool, skipped = _read(tuple(_listed(file) for file in files), scale)
    for error in skipped:
        warnings.warn(f"skipped: {error}", stacklevel=2)
    if pool is None:
        raise InvalidArgument("images", f"a source with a readable image in its {split} split", repr(str(source)))
    return pool


def with_more(pool: ImagePool, also: str | os.PathLike[str] | None) -> tuple[ImagePool, str]:
    """A pool with all images of a further source, and what a card says of them after its own; without one as it is."""
    if also is None:
        return pool, ""
    more = load_images(also, "all")
    return pool.joined(more), f"; {Path(also).name}: {len(more)} images train"


def _listed(path: Path) -> _File:
    try:
        status = path.stat()
    except OSError:
        return path, 0, 0  # reading it says what is wrong
    return path, status.st_size, status.st_mtime_ns


# Sizes and times are part of what is asked for, so a changed file is read again.
@lru_cache(maxsize=8)
def _read(files: tuple[_File, ...], scale: float) -> tuple[ImagePool | None, tuple[str, ...]]:
    """The images of the files that can be read, and why the others cannot."""
    images, names, skipped = [], [], []
    for path, _, _ in files:
        try:
            images.append(_resized(read_photo(path).rgb, scale))
            names.append(path.name)
        except UnreadableImage as error:
            skipped.append(str(error))
    return (ImagePool(images, names) if images else None), tuple(skipped)


@lru_cache(maxsize=1 << 16)
def _digest(file: _File) -> str:
    return hashlib.sha256(file[0].read_bytes()).hexdigest()


def _resized(rgb: np.ndarray, scale: float) -> np.ndarray:
    if scale == 1.0:
        return rgb
    height, width = max(1, round(rgb.shape[0] * scale)), max(1, round(rgb.shape[1] * scale))
    return np.array(Image.fromarray(rgb).resize((width, height), Image.Resampling.BICUBIC))


def _bundled(split: str) -> list[Path]:
    import skimage

    names = REAL if split == "real" else sum(_BUNDLED.values(), ()) if split == "all" else _BUNDLED[split]
    return [Path(skimage.__file__).parent / "data" / name for name in names]


def _div2k(split: str) -> list[Path]:
    folder = Path(os.environ.get(DIV2K_VARIABLE, ""))
    if not os.environ.get(DIV2K_VARIABLE) or not folder.is_dir():
        expected = f"'div2k' with {DIV2K_VARIABLE} set to the folder that holds 0001.png ... 0900.png"
        raise InvalidArgument("images", expected, os.environ.get(DIV2K_VARIABLE, "no such variable"))
    ranges = {"train": (1, 750), "test": (751, 800), "validation": (801, 900), "all": (1, 900)}
    first, last = ranges[split]
    found = (p for p in sorted(folder.rglob("*.png")) if p.stem[:4].isdigit())
    return [p for p in found if first <= int(p.stem[:4]) <= last]


def _folder(folder: Path, split: str) -> list[Path]:
    if not folder.is_dir():
        raise InvalidArgument("images", "'bundled', 'div2k' or an existing folder", repr(str(folder)))
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    if not files:
        raise InvalidArgument("images", "a folder with " + ", ".join(SUFFIXES) + " files", repr(str(folder)))
    # By content: renaming a file, or holding it twice, never moves an image between splits.
    by_content = {_digest(_listed(p)): p for p in reversed(files)}
    ranked = [by_content[digest] for digest in sorted(by_content)]
    tenth = max(1, len(ranked) // 10) if len(ranked) >= 3 else 0
    parts = {"test": ranked[:tenth], "validation": ranked[tenth : 2 * tenth], "train": ranked[2 * tenth :]}
    return sorted(ranked if split == "all" else parts[split])
