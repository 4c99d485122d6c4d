"""Training data of the super-resolver's tool: what it is shown in an episode, and what should come of it.

Photographs lose their resolution and are damaged as episodes damage them; low resolution is what the tool shrinks that
to. Noise and JPEG blocks of the damaged image are in it, made sharper and larger by the shrinking.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from restoration_env.distortions import recipe
from restoration_env.images import ImagePool, damaged_patches
from restoration_env.randomness import generator
from restoration_env.sft.conditioning import CATEGORIES
from restoration_env.sft.crops import Batch
from restoration_env.sft.losses import BACKGROUND
from restoration_env.sft.resizing import decimated


class LostResolution:
    """Draws batches as `restoration_env.sft.crops.Crops` does, without knowing what is where.

    Args:
        pools: photographs at least ``side`` pixels high and wide; all pools count the same.
        side: of the crops at high resolution, a multiple of four.
        damage: a recipe that loses resolution.
    """

    def __init__(self, pools: Sequence[ImagePool], side: int = 96, damage: str = "x4") -> None:
        self.pools, self.side, self.recipe = tuple(pool.fitting(side) for pool in pools), side, recipe(damage)

    def batch(self, count: int, seed: int, iteration: int, rank: int = 0) -> Batch:
        """The batch of an iteration; its maps say "background" everywhere."""
        keys = torch.randint(2**62, (count,), generator=generator(seed, rank, iteration))
        shares = zip(self.pools, keys.tensor_split(len(self.pools)), strict=True)
        parts = [damaged_patches(pool, some, self.recipe, self.side) for pool, some in shares if len(some)]
        clean, damaged = (torch.cat(part) for part in zip(*parts, strict=True))
        low = decimated(damaged).clamp(0.0, 1.0)
        maps = torch.zeros(count, len(CATEGORIES), 1, 1)
        maps[:, BACKGROUND] = 1.0
        categories = torch.full((count,), BACKGROUND)
        return Batch(clean, low, maps.expand(-1, -1, self.side, self.side), categories)
