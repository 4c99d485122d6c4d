"""Test suites: damaged patches that are the same wherever they are made."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from restoration_env.distortions import Recipe
from restoration_env.images import damaged_patches, load_images
from restoration_env.randomness import draw_keys


@dataclass(frozen=True)
class Suite:
    """Clean and damaged patches with their origin.

    Attributes:
        name: what the damage is.
        clean: float (N, 3, H, W) in [0, 1].
        damaged: the same shape, whole 8-bit values as in a file.
        source: where the clean images come from, and which split of them.
        digest: sha256 of the damaged patches as 8-bit values.
    """

    name: str
    clean: Tensor
    damaged: Tensor
    source: str
    digest: str


def patch_suite(
    images: str,
    split: str,
    damage: Recipe,
    count: int,
    *,
    size: int = 63,
    seed: int = 2018,
    limit: float | None = None,
) -> Suite:
    """A suite of ``count`` patches.

    Args:
        images: a source as `load_images` takes it.
        split: which part of it.
        damage: the recipe.
        count: patches drawn.
        size: side of the patches in pixels.
        seed: suites of different seeds share no episode.
        limit: leave out patches whose damaged PSNR is above this many dB.
    """
    pool = load_images(images, split).fitting(size)
    stream = int.from_bytes(hashlib.sha256(damage.name.encode()).digest()[:4], "big")
    keys = torch.from_numpy(draw_keys(np.random.default_rng([seed, stream]), count))
    parts = [damaged_patches(pool, part, damage, size) for part in keys.split(256)]
    clean, damaged = torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])
    stored = (damaged * 255.0).round().to(torch.uint8)
    damaged = stored.float() / 255.0
    if limit is not None:
        keep = (damaged - clean).square().mean(dim=(1, 2, 3)) > 10 ** (-limit / 10)
        clean, damaged, stored = clean[keep], damaged[keep], stored[keep]
    digest = hashlib.sha256(stored.contiguous().numpy().tobytes()).hexdigest()
    return Suite(damage.name, clean, damaged, f"{Path(images).name} ({split}, {len(pool)} images)", digest)
