"""Super-resolvers held against each other on held-out scenes, category by category."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from restoration_env.errors import InvalidArgument
from restoration_env.metrics import psnr
from restoration_env.perceptual import lpips
from restoration_env.pixels import eight_bit
from restoration_env.resizing import SCALE, bicubic
from restoration_env.sft.scenes import VOID, Scenes

_MOST = 0.5  # a scene counts for the category that fills at least so much of it

Resolver = Callable[[Tensor], Tensor]


def compare(
    scenes: Scenes,
    resolvers: Mapping[str, Resolver],
    report: Callable[[int, int], None] = lambda done, total: None,
) -> list[dict[str, Any]]:
    """PSNR in dB (RGB) and LPIPS (AlexNet) of bicubic and of each resolver, whole scenes at eight bits.

    A scene counts for the category that fills at least half of what is labelled in it, and always for "all".

    Args:
        scenes: held out from training; cut at the end to multiples of four pixels.
        resolvers: by name, functions float (1, 3, h, w) to (1, 3, 4h, 4w).
        report: called after each scene.

    Returns:
        For each method a row of "method" and, by category, "scenes", "psnr" and "lpips".

    Raises:
        InvalidArgument: for a resolver that returns another size.
    """
    methods: dict[str, Resolver] = {"bicubic": lambda low: bicubic(low, SCALE), **resolvers}
    found: dict[str, dict[str, list[tuple[float, float]]]] = {name: {} for name in methods}
    for done, (image, label) in enumerate(zip(scenes.images, scenes.labels, strict=True), 1):
        height, width = (side // SCALE * SCALE for side in label.shape)
        high = image[None, :, :height, :width].float() / 255
        low = eight_bit(bicubic(high, 1 / SCALE)) / 255.0
        groups = ("all", *_category(label, scenes.categories))
        for name, resolve in methods.items():
            made = eight_bit(resolve(low).cpu()) / 255.0
            if made.shape != high.shape:
                raise InvalidArgument(name, f"a function that returns {tuple(high.shape)}", tuple(made.shape))
            values = psnr(made, high).item(), lpips(made, high).item()
            for group in groups:
                found[name].setdefault(group, []).append(values)
        report(done, len(scenes))
    order = ("all", *scenes.categories)
    return [
        {"method": name, **{group: _mean(groups[group]) for group in order if group in groups}}
        for name, groups in found.items()
    ]


def _category(label: Tensor, categories: Sequence[str]) -> tuple[str, ...]:
    known = label[label != VOID].long()
    if not len(known):
        return ()
    counts = torch.bincount(known, minlength=len(categories))
    largest = int(counts.argmax())
    return (categories[largest],) if counts[largest] >= _MOST * len(known) else ()


def _mean(values: Sequence[tuple[float, float]]) -> dict[str, float]:
    quality, distance = (math.fsum(column) / len(values) for column in zip(*values, strict=True))
    return {"scenes": len(values), "psnr": round(quality, 3), "lpips": round(distance, 4)}
