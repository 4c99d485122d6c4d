"""Super-resolvers held against each other on held-out scenes, category by category."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from restoration_env.errors import InvalidArgument
from restoration_env.metrics import psnr
from restoration_env.perceptual import load_lpips, lpips
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

    A scene counts for the category that fills at least half of what is labelled in it, and always for "all". So few
    count for some categories, and these are not alone in them; "regions" has instead all that is labelled with a
    category in any scene: the PSNR of all its pixels together, and the mean LPIPS within it, weighed by its size.

    Args:
        scenes: held out from training; cut at the end to multiples of four pixels.
        resolvers: by name, functions float (1, 3, h, w) to (1, 3, 4h, 4w).
        report: called after each scene.

    Returns:
        For each method a row of "method", by category "scenes", "psnr" and "lpips", and "regions": by category
        "scenes" (in which it is), "share" (of all labelled pixels), "psnr" and "lpips".

    Raises:
        InvalidArgument: for a resolver that returns another size.
    """
    methods: dict[str, Resolver] = {"bicubic": lambda low: bicubic(low, SCALE), **resolvers}
    found: dict[str, dict[str, list[tuple[float, float]]]] = {name: {} for name in methods}
    regions: dict[str, list[Tensor]] = {name: [] for name in methods}
    for done, (image, label) in enumerate(zip(scenes.images, scenes.labels, strict=True), 1):
        height, width = (side // SCALE * SCALE for side in label.shape)
        high = image[None, :, :height, :width].float() / 255
        low = eight_bit(bicubic(high, 1 / SCALE)) / 255.0
        groups = ("all", *_category(label, scenes.categories))
        where = _where(label[:height, :width], len(scenes.categories))
        for name, resolve in methods.items():
            made = eight_bit(resolve(low).cpu()) / 255.0
            if made.shape != high.shape:
                raise InvalidArgument(name, f"a function that returns {tuple(high.shape)}", tuple(made.shape))
            values = psnr(made, high).item(), lpips(made, high).item()
            for group in groups:
                found[name].setdefault(group, []).append(values)
            regions[name].append(_within(made, high, where))
        report(done, len(scenes))
    order = ("all", *scenes.categories)
    return [
        {
            "method": name,
            **{group: _mean(groups[group]) for group in order if group in groups},
            "regions": _regions(torch.stack(regions[name]), scenes.categories),
        }
        for name, groups in found.items()
    ]


def _where(label: Tensor, categories: int) -> Tensor:
    """Labels (H, W) to one map for each category, float (1, K, H, W)."""
    return (label == torch.arange(categories)[:, None, None]).float()[None]


def _within(made: Tensor, high: Tensor, where: Tensor) -> Tensor:
    """For each category: its pixels, the sum of their squared errors, and LPIPS within times pixels, float64 (3, K)."""
    pixels = where.double().sum(dim=(0, 2, 3))
    errors = ((made - high).double().square().mean(dim=1, keepdim=True) * where).sum(dim=(0, 2, 3))
    distance = load_lpips().within(made, high, where)[0].double()
    return torch.stack((pixels, errors, torch.where(pixels > 0, distance, 0.0) * pixels))


def _regions(sums: Tensor, categories: Sequence[str]) -> dict[str, dict[str, float]]:
    """Sums of each scene (N, 3, K) to what rows tell of each category that is anywhere."""
    pixels, errors, distances = sums.sum(0)
    return {
        category: {
            "scenes": int((sums[:, 0, k] > 0).sum()),
            "share": round((pixels[k] / pixels.sum()).item(), 4),
            "psnr": round(-10.0 * math.log10(errors[k].item() / pixels[k].item() + 1e-10), 3),
            "lpips": round((distances[k] / pixels[k]).item(), 4),
        }
        for k, category in enumerate(categories)
        if pixels[k] > 0
    }


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
