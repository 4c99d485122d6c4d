"""Pairs for super-resolution by four: photographs whose sides are multiples of four, and the small ones made of them.

Low resolution is MATLAB's bicubic by a quarter, rounded to eight bits, made of the whole photograph: a patch of it is
what it would be in the small photograph. Rows and columns at the right and the bottom that do not fill four are cut.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from restoration_env.errors import InvalidArgument
from restoration_env.images import load_images
from restoration_env.pixels import eight_bit
from restoration_env.randomness import uniform
from restoration_env.resizing import SCALE, bicubic
from restoration_env.sft.scenes import load_scenes
from restoration_env.turning import WAYS, turned

_FIRST_KEY = 1 << 38  # of the training patches, so that no other training draws the same places
RESCALED = (1.0, 0.75, 0.5)  # training photographs also shrink, as SFT-GAN's do, by up to a half


@dataclass(frozen=True, eq=False)
class Pairs:
    """Photographs and their small versions.

    Attributes:
        large: uint8 (3, 4h, 4w) each.
        small: uint8 (3, h, w) each.
        names: of the files.
        label: what tables call them.
    """

    large: tuple[Tensor, ...]
    small: tuple[Tensor, ...]
    names: tuple[str, ...]
    label: str = ""

    def __len__(self) -> int:
        return len(self.large)

    @property
    def digest(self) -> str:
        """Says whether two sets are the same, pixel by pixel."""
        found = hashlib.sha256()
        for image in (*self.large, *self.small):
            found.update(repr(tuple(image.shape)).encode() + image.contiguous().numpy().tobytes())
        return found.hexdigest()[:16]


def make_pairs(images: Sequence[Tensor], names: Sequence[str], label: str = "") -> Pairs:
    """Cut photographs to multiples of four and make the small ones.

    Args:
        images: uint8 (3, H, W) each.
        names: of the files.
        label: what tables call them.

    Raises:
        InvalidArgument: if one is smaller than 32 pixels on a side, which leaves nothing to measure.
    """
    for image, name in zip(images, names, strict=True):
        if min(image.shape[-2:]) < 8 * SCALE:
            raise InvalidArgument(
                "images", f"at least {8 * SCALE} pixels high and wide", f"{tuple(image.shape)}, {name}"
            )
    large = tuple(i[:, : i.shape[1] // SCALE * SCALE, : i.shape[2] // SCALE * SCALE].contiguous() for i in images)
    small = tuple(eight_bit(bicubic(i[None].float() / 255.0, 1.0 / SCALE))[0] for i in large)
    return Pairs(large, small, tuple(names), label)


def load_pairs(
    images: Sequence[str], scenes: str | None = None, split: str = "all", *, rescaled: bool = False, least: int = 32
) -> Pairs:
    """Pairs of several sources together; scenes are not shrunk further, they are small already.

    Args:
        images: sources as `restoration_env.images.load_images` takes them.
        scenes: a folder of labelled scenes, split as the segmenter's and SFT-Net's are.
        split: "train", "validation", "test" or "all", of each source.
        rescaled: also each photograph at three quarters and a half of its size, where that is large enough.
        least: shorter side in pixels; smaller photographs are left out.

    Raises:
        InvalidArgument: if a source is not there, or nothing is large enough.
    """
    found, names = list[Tensor](), list[str]()
    for source in (*images, *((None,) if scenes else ())):
        pool = load_images(source, split) if source is not None else load_scenes(str(scenes), split).pool()
        for image, name in zip(pool.images, pool.names, strict=True):
            for scale in RESCALED if rescaled and source is not None else (1.0,):
                if min(image.shape[-2:]) * scale >= least:
                    wide = image if scale == 1.0 else eight_bit(bicubic(image[None].float() / 255.0, scale))[0]
                    found.append(wide)
                    names.append(name)
    if not found:
        raise InvalidArgument("images", f"a source with photographs of {least} pixels or more", ", ".join(images))
    label = " + ".join(Path(source).name for source in (*images, *([scenes] if scenes else [])))
    return make_pairs(found, names, label)


def training_patches(
    pairs: Pairs, count: int, crop: int, number: int, *, seed: int = 0, device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor]:
    """Patches of one iteration, turned and mirrored in the eight ways: a function of the seed and the number.

    Args:
        pairs: photographs at least as large as a patch.
        count: patches.
        crop: side of the large ones in pixels, a multiple of four.
        number: of the iteration.
        seed: of the run.
        device: where they are returned.

    Returns:
        large and small, float32 (count, 3, crop, crop) and (count, 3, crop / 4, crop / 4) in [0, 1].
    """
    keys = torch.arange(count) + (seed << 40) + _FIRST_KEY + number * count
    side, large, small = crop // SCALE, list[Tensor](), list[Tensor]()
    for which, down, right, way in uniform(keys, 4, stream=0).tolist():
        index = int(which * len(pairs))
        tall, wide = pairs.small[index].shape[-2:]
        top, left, turn = int(down * (tall - side + 1)), int(right * (wide - side + 1)), int(WAYS * way)
        for kept, images, scale in ((large, pairs.large, SCALE), (small, pairs.small, 1)):
            rows, columns = (slice(scale * start, scale * (start + side)) for start in (top, left))
            kept.append(turned(images[index][:, rows, columns], turn))
    return tuple(torch.stack(part).to(device).float() / 255.0 for part in (large, small))  # type: ignore[return-value]


def validation_patches(pairs: Pairs, count: int, crop: int) -> tuple[Tensor, Tensor]:
    """The middles of photographs, evenly chosen; shapes as of `training_patches`."""
    chosen = [len(pairs) * i // min(count, len(pairs)) for i in range(min(count, len(pairs)))]
    large, small = list[Tensor](), list[Tensor]()
    for index in chosen:
        tall, wide = pairs.small[index].shape[-2:]
        side = crop // SCALE
        top, left = (tall - side) // 2, (wide - side) // 2
        small.append(pairs.small[index][:, top : top + side, left : left + side])
        rows, columns = (slice(SCALE * start, SCALE * (start + side)) for start in (top, left))
        large.append(pairs.large[index][:, rows, columns])
    return torch.stack(large).float() / 255.0, torch.stack(small).float() / 255.0
