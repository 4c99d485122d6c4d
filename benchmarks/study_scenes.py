"""Which scenes a user study shows: of each category those that show most of it."""

from __future__ import annotations

import torch
from torch import Tensor

from restoration_env.errors import InvalidArgument
from restoration_env.sft.scenes import load_scenes


def scenes_by_category(folder: str, per_category: int, split: str = "test") -> list[tuple[str, str, Tensor]]:
    """Held-out scenes with the category that most of them show, background aside.

    Args:
        folder: of labelled scenes.
        per_category: scenes of each category at most, those that show the most of it.
        split: the part of the scenes.

    Returns:
        name, category, and image as uint8 (3, H, W), by category.

    Raises:
        InvalidArgument: for a count below one, or scenes of background only.
    """
    if per_category < 1:
        raise InvalidArgument("per_category", "1 or more", per_category)
    scenes = load_scenes(folder, split)
    found: dict[int, list[tuple[float, int]]] = {}
    for number, labels in enumerate(scenes.labels):
        known = labels[labels < len(scenes.categories)].long()
        counts = torch.bincount(known, minlength=len(scenes.categories)).double()
        counts[0] = 0.0  # the background
        if counts.sum() > 0:
            category = int(counts.argmax())
            found.setdefault(category, []).append((float(counts[category]) / labels.numel(), number))
    if not found:
        raise InvalidArgument("scenes", "scenes that show a category", folder)
    chosen = []
    for category, members in sorted(found.items()):
        for _, number in sorted(members, reverse=True)[:per_category]:
            chosen.append((scenes.names[number], scenes.categories[category], scenes.images[number]))
    return chosen
