"""Where episodes come from: photographs, a recipe of damage and a patch size."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from restoration_env import devices
from restoration_env.devices import find_device
from restoration_env.distortions import Recipe, distort, recipe, recipe_names
from restoration_env.episodes import Start, joined, start
from restoration_env.errors import InvalidArgument, UnknownName
from restoration_env.images import GRIDS, damaged_patches, load_images
from restoration_env.randomness import normal, uniform
from restoration_env.workers import in_parallel, own_threads

# Patches that a core damages at once, and of threads the share that does nothing else while others apply tools: threads
# that call many small operations wait for each other.
_PART, _SHARE = 32, 4


class EpisodeSource:
    """Draws the clean and the damaged image of an episode, a pure function of its key."""

    def __init__(
        self,
        images: str,
        split: str,
        severity: str,
        patch_size: int,
        grid: str,
        scale: float,
        device: str,
    ) -> None:
        if not isinstance(patch_size, int) or patch_size < 16:
            raise InvalidArgument("patch_size", "an integer of 16 or more", repr(patch_size))
        if grid not in GRIDS:
            raise UnknownName("grid", grid, GRIDS)
        if not isinstance(images, str | os.PathLike):
            raise InvalidArgument("images", "'bundled', 'div2k' or a folder", repr(images))
        self.recipe = _recipe(severity)
        self.device = find_device(device)
        self.pool = load_images(images, split, scale=scale).fitting(patch_size)
        self.patch_size, self.grid = patch_size, grid

    def draw(self, keys: Tensor, options: Mapping[str, Any] | None = None) -> tuple[Tensor, Tensor]:
        """Clean and damaged patches, float (N, 3, size, size): a pure function of keys (N,) and options."""
        given = {} if options is None else options
        keys_known = isinstance(given, Mapping) and set(given) <= {"severity", "image", "damaged"}
        if not keys_known or ("damaged" in given and ("image" not in given or "severity" in given)):
            expected = "a dictionary of 'severity' and 'image', or of 'image' and 'damaged'"
            got = sorted(map(str, given)) if isinstance(given, Mapping) else type(given).__name__
            raise InvalidArgument("options", expected, got)
        severity, image, damaged = (given.get(name) for name in ("severity", "image", "damaged"))
        how = self.recipe if severity is None else _recipe(severity)
        if image is None:
            return self._drawn(keys, how)
        clean = self._patch(image, "options['image']").repeat(len(keys), 1, 1, 1)
        if damaged is not None:
            return clean, self._patch(damaged, "options['damaged']").repeat(len(keys), 1, 1, 1)
        return clean, _damage(clean, keys.to(self.device), how)

    def starts(self, keys: Tensor) -> list[Callable[[], Start]]:
        """What makes the beginnings of the episodes of keys (N,), to be called on any thread, a part of them each."""
        return [partial(self._start, some) for some in keys.chunk(max(1, own_threads() // _SHARE))]

    def _start(self, keys: Tensor) -> Start:
        drawn = (self._part(some, self.recipe) for some in keys.split(2 * _PART))
        return joined([start(damaged, clean) for clean, damaged in drawn])

    def _drawn(self, keys: Tensor, how: Recipe) -> tuple[Tensor, Tensor]:
        if devices.must_not_wait(self.device) or len(keys) <= _PART:
            return self._part(keys, how)
        drawn = in_parallel([partial(self._part, some, how) for some in keys.split(_PART)])
        clean, damaged = map(torch.cat, zip(*drawn, strict=True))
        return clean, damaged

    def _part(self, keys: Tensor, how: Recipe) -> tuple[Tensor, Tensor]:
        return damaged_patches(self.pool, keys, how, self.patch_size, grid=self.grid, device=self.device)

    def _patch(self, image: Any, argument: str) -> Tensor:
        shape = (self.patch_size, self.patch_size, 3)
        if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.shape != shape:
            got = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
            raise InvalidArgument(argument, f"a uint8 array of shape {shape}", got)
        return torch.from_numpy(image.copy()).permute(2, 0, 1)[None].to(self.device).float() / 255.0


def _recipe(name: str) -> Recipe:
    if name not in recipe_names():
        raise UnknownName("severity", name, recipe_names())
    return recipe(name)


def _damage(clean: Tensor, keys: Tensor, how: Recipe) -> Tensor:
    drawn = uniform(keys, 4, stream=2)
    noise = normal(keys, tuple(clean.shape[1:]), stream=3)
    return distort(clean, *how.draw(drawn), noise=noise, lost=how.lost(drawn))
