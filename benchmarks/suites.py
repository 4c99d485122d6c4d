"""Test suites: damaged images that are the same to the byte wherever they are made.

Damage is computed in float64 and rounded to eight bits once before compression, which is integer arithmetic from
there on (`restoration_env.jpeg`). Machines differ in the last bits of an exponential or a sum, so a suite is refused if
any of its values lies so near to the boundary between two levels that such a difference could decide.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from restoration_env.distortions import Recipe, gaussian_blur, gaussian_noise, jpeg_compression, recipe
from restoration_env.errors import InvalidArgument, UnknownName, check_at_least
from restoration_env.images import ImagePool, damaged_patches, load_images
from restoration_env.randomness import draw_keys, normal, uniform

SEED = 2018
DIV2K_PATCHES = 3584  # of the published test set
_MARGIN = 4e-12  # levels; float64 computes the damage within about half of this
_KINDS = {"patches": 1000, "whole": 8, "real": 8}  # and how many images of each kind


@dataclass(frozen=True)
class Suite:
    """Clean and damaged images with their origin.

    Attributes:
        name: what the damage is.
        clean: float (N, 3, H, W) in [0, 1], or one (1, 3, H, W) for each whole image; NaN where nobody knows.
        damaged: the same shapes, whole 8-bit values as in a file.
        source: where the clean images come from, and which split of them.
        digest: sha256 of all images as 8-bit values.
    """

    name: str
    clean: Tensor | tuple[Tensor, ...]
    damaged: Tensor | tuple[Tensor, ...]
    source: str
    digest: str

    def __len__(self) -> int:
        return len(self.damaged)

    @property
    def referenced(self) -> bool:
        """Whether the clean images are known."""
        return not bool(self.clean[0].isnan().any())

    def patches(self) -> tuple[Tensor, Tensor]:
        """Clean and damaged as two tensors.

        Raises:
            InvalidArgument: for a suite of whole images.
        """
        if isinstance(self.clean, Tensor) and isinstance(self.damaged, Tensor):
            return self.clean, self.damaged
        raise InvalidArgument("suite", "one of patches", repr(self.name))

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Clean and damaged (n, 3, H, W), at most ``size`` patches at once, whole images one by one."""
        if isinstance(self.clean, Tensor) and isinstance(self.damaged, Tensor):
            yield from zip(self.clean.split(size), self.damaged.split(size), strict=True)
        else:
            yield from zip(self.clean, self.damaged, strict=True)


@dataclass(frozen=True)
class SuiteSpec:
    """One row of the table of suites.

    Attributes:
        name: what users call it.
        description: what it holds.
        kind: "patches" of 63x63, "whole" images, or "real" photographs that nobody has a better version of.
        damage: the recipe; "" for none.
    """

    name: str
    description: str
    kind: str
    damage: str


SUITES = {
    spec.name: spec
    for spec in (
        SuiteSpec("mild", "all three distortions, weak", "patches", "mild"),
        SuiteSpec("moderate", "all three distortions, as agents are trained", "patches", "moderate"),
        SuiteSpec("severe", "all three distortions, strong", "patches", "severe"),
        SuiteSpec("blur", "Gaussian blur alone, sigma 0 to 5", "patches", "blur"),
        SuiteSpec("noise", "Gaussian noise alone, sigma 0 to 50", "patches", "noise"),
        SuiteSpec("jpeg", "JPEG artifacts alone, quality 100 to 10", "patches", "jpeg"),
        SuiteSpec("whole", "whole images, mild, moderate or severe", "whole", "any"),
        SuiteSpec("real", "photographs as they are, without ground truth", "real", ""),
    )
}


def suite_specification(name: str) -> SuiteSpec:
    """A suite of the table.

    Raises:
        UnknownName: if there is none of this name.
    """
    if name not in SUITES:
        raise UnknownName("suite", name, SUITES)
    return SUITES[name]


def build_suite(
    name: str,
    images: str = "bundled",
    split: str = "test",
    count: int | None = None,
    *,
    seed: int = SEED,
    real: str = "bundled-real",
) -> Suite:
    """A suite of the table, built once and kept.

    Args:
        name: of the suite.
        images: a source of clean images as `load_images` takes it.
        split: which part of it.
        count: how many images; None is 1,000 patches (3,584 of DIV2K, as published) or at most 8 whole images.
        seed: suites of different seeds share no damage.
        real: the source of the suite "real".

    Raises:
        InvalidArgument: for an unknown suite or source, no images, and a seed with which a value lies on the boundary
            between two levels.
    """
    spec = suite_specification(name)
    default = DIV2K_PATCHES if images == "div2k" and spec.kind == "patches" else _KINDS[spec.kind]
    count = default if count is None else count
    check_at_least(1, count=count)
    check_at_least(0, seed=seed)
    return _built(name, str(images), split, count, seed, str(real))


@lru_cache(maxsize=24)
def _built(name: str, images: str, split: str, count: int, seed: int, real: str) -> Suite:
    spec = suite_specification(name)
    if spec.kind == "patches":
        return patch_suite(images, split, recipe(spec.damage), count, seed=seed)
    if spec.kind == "whole":
        return whole_suite(images, split, recipe(spec.damage), count, seed=seed)
    return real_suite(real, count)


def patch_suite(
    images: str,
    split: str,
    damage: Recipe,
    count: int,
    *,
    size: int = 63,
    seed: int = SEED,
    limit: float | None = None,
) -> Suite:
    """A suite of ``count`` patches; the first ones are those of a smaller suite.

    Args:
        images: a source as `load_images` takes it.
        split: which part of it.
        damage: the recipe.
        count: patches drawn.
        size: side of the patches in pixels.
        seed: suites of different seeds share no episode.
        limit: leave out patches whose damaged PSNR is above this many dB.

    Raises:
        InvalidArgument: for a source without images, and a seed with which a value lies on the boundary between two
            levels.
    """
    pool = load_images(images, split).fitting(size)
    check, keys = _inspector(damage.name), patch_keys(damage, count, seed)
    parts = [damaged_patches(pool, part, damage, size, inspect=check) for part in keys.split(128)]
    clean, damaged = (_levels(torch.cat(side)) for side in zip(*parts, strict=True))
    if limit is not None:
        error = (damaged.double() - clean.double()).square().mean(dim=(1, 2, 3)) / 255.0**2
        keep = error > 10 ** (-limit / 10)
        clean, damaged = clean[keep], damaged[keep]
    return Suite(damage.name, clean / 255.0, damaged / 255.0, _source(images, split, pool), _digest([clean, damaged]))


def whole_suite(images: str, split: str, damage: Recipe, count: int, *, seed: int = SEED) -> Suite:
    """A suite of at most ``count`` whole images, spread evenly over the source; arguments as for `patch_suite`."""
    pool = load_images(images, split)
    check, keys = _inspector(damage.name), patch_keys(damage, len(pool), seed)
    clean, damaged = [], []
    for number in _spread(len(pool), count):
        key, image = keys[number : number + 1], pool.images[number][None].double() / 255.0
        blur, noise, quality = damage.draw(uniform(key, 4, stream=2))
        worse = gaussian_blur(image, blur)
        worse = gaussian_noise(worse, noise, normal(key, tuple(worse.shape[1:]), stream=3, dtype=worse.dtype))
        check(worse)
        clean.append(_levels(image))
        damaged.append(_levels(jpeg_compression(worse, quality)))
    digest = _digest([*clean, *damaged])
    sides = [tuple(image / 255.0 for image in side) for side in (clean, damaged)]
    return Suite(damage.name, sides[0], sides[1], _source(images, split, pool), digest)


def real_suite(images: str, count: int) -> Suite:
    """At most ``count`` photographs as they are, spread evenly over the source."""
    pool = load_images(images, "all")
    photos = [pool.images[number][None] for number in _spread(len(pool), count)]
    damaged = tuple(photo / 255.0 for photo in photos)
    unknown = tuple(torch.full_like(photo, torch.nan) for photo in damaged)
    return Suite("real", unknown, damaged, _source(images, "all", pool), _digest(photos))


def patch_keys(damage: Recipe, count: int, seed: int = SEED) -> Tensor:
    """The keys of a suite's images, int64 (count,), each of which everything about its image follows from."""
    stream = int.from_bytes(hashlib.sha256(damage.name.encode()).digest()[:4], "big")
    return torch.from_numpy(draw_keys(np.random.default_rng([seed, stream]), count))


def _spread(total: int, count: int) -> list[int]:
    return sorted({number * total // min(count, total) for number in range(min(count, total))})


def _levels(values: Tensor) -> Tensor:
    """Values in [0, 1] as whole levels 0..255, uint8."""
    return (values.double() * 255.0).round().to(torch.uint8)


def _inspector(name: str) -> Callable[[Tensor], None]:
    def check(values: Tensor) -> None:
        place = (values * 255.0) % 1.0
        if float((place - 0.5).abs().min()) < _MARGIN:
            expected = f"another one for {name!r}: with it, machines may round a pixel differently"
            raise InvalidArgument("seed", expected)

    return check


def _source(images: str, split: str, pool: ImagePool) -> str:
    return f"{Path(images).name} ({split}, {len(pool)} images)"


def _digest(images: Sequence[Tensor]) -> str:
    """A sha256 of images, uint8, and of their shapes."""
    digest = hashlib.sha256()
    for image in images:
        digest.update(repr(tuple(image.shape)).encode() + image.contiguous().numpy().tobytes())
    return digest.hexdigest()
