"""The paper's figures: priors swapped, modulation maps, comparison strips (Wang et al., CVPR 2018, Figures 4 to 8)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from restoration_env.errors import InvalidArgument
from restoration_env.metrics import psnr
from restoration_env.perceptual import lpips
from restoration_env.photos import read_photo
from restoration_env.pixels import eight_bit
from restoration_env.rendering import Strip, contact_sheet
from restoration_env.resizing import SCALE, bicubic
from restoration_env.sft.conditioning import CATEGORIES
from restoration_env.sft.generator import SFTNet
from restoration_env.sft.super_resolver import SuperResolver, prior

_SMALLEST = 32  # pixels of a crop: LPIPS needs 31
_SHOWN = 6  # categories with the largest shares, beside modulation maps


@dataclass(frozen=True, eq=False)
class Crop:
    """The middle of a photograph: float (1, 3, S, S) in [0, 1], and the same shrunk by four."""

    name: str
    high: Tensor
    low: Tensor


def middle(photo: str | os.PathLike[str], side: int) -> Crop:
    """The middle of a photograph, at most ``side`` pixels and a multiple of four wide and high.

    Raises:
        UnreadableImage: if it cannot be read.
        InvalidArgument: if less than 32 pixels are left.
    """
    rgb = read_photo(photo).rgb
    side = min(side, *rgb.shape[:2]) // SCALE * SCALE
    if side < _SMALLEST:
        raise InvalidArgument("photos", f"such that {_SMALLEST} pixels can be cut out", f"{side} of {photo}")
    top, left = ((length - side) // 2 for length in rgb.shape[:2])
    high = torch.from_numpy(rgb[top : top + side, left : left + side].copy()).permute(2, 0, 1)[None].float() / 255
    return Crop(Path(photo).stem, high, eight_bit(bicubic(high, 1 / SCALE)) / 255.0)


def prior_swap(crops: Sequence[Crop], resolver: SuperResolver) -> np.ndarray:
    """Each crop as the segmenter sees it, and under each of the eight priors; captions tell LPIPS."""
    rows = []
    for crop in crops:
        height, width = crop.high.shape[2:]
        made = {"segmented": resolver(crop.low)}
        made |= {name: resolver(crop.low, prior(name, height, width).to(crop.low.device)) for name in CATEGORIES}
        frames = [_pixels(image) for image in made.values()]
        captions = [(name, f"LPIPS {_distance(image, crop):.3f}") for name, image in made.items()]
        rows.append(Strip(frames, captions, crop.name, (_pixels(crop.high), ("original", "")), steps=False))
    return contact_sheet(rows, title=f"{resolver.name}: one image under eight priors", scale=1)


def modulation(crops: Sequence[Crop], resolver: SuperResolver, channel: int | None = None) -> np.ndarray:
    """The largest shares beside gamma and beta of one channel of the last modulation layer, dark to bright.

    Args:
        crops: of photographs.
        resolver: with modulation layers.
        channel: of the features; None for the one whose gamma varies most over the crops.

    Raises:
        InvalidArgument: for a resolver without modulation layers and a channel it does not have.
    """
    network = resolver.network
    if not isinstance(network, SFTNet) or network.sft is None or network.conditioning != "sft":
        raise InvalidArgument("weights", "a super-resolver whose conditioning is 'sft'", resolver.name)
    maps = [resolver.maps(crop.low) for crop in crops]
    assert network.condition is not None
    with torch.no_grad():
        found = [network.sft.modulation(network.condition(one)) for one in maps]
    width = found[0][0].shape[1]
    if channel is None:
        channel = int(torch.stack([gamma[0].std((1, 2)) for gamma, _ in found]).mean(0).argmax())
    if not 0 <= channel < width:
        raise InvalidArgument("channel", f"between 0 and {width - 1}", channel)
    rows = []
    for crop, shares, (gamma, beta) in zip(crops, maps, found, strict=True):
        largest = shares[0].mean((1, 2)).argsort(descending=True)[:_SHOWN].tolist()
        frames, captions = [_pixels(crop.high)], [("original", "")]
        for number in largest:
            frames.append(_grey(shares[0, number], 0.0, 1.0))
            captions.append((CATEGORIES[number], f"{shares[0, number].mean():.0%}"))
        for name, values in (("gamma", gamma[0, channel]), ("beta", beta[0, channel])):
            least, most = values.min().item(), values.max().item()
            enlarged = values.repeat_interleave(SCALE, 0).repeat_interleave(SCALE, 1)
            frames.append(_grey(enlarged, least, most))
            captions.append((f"{name}, channel {channel}", f"{least:.2f} to {most:.2f}"))
        rows.append(Strip(frames, captions, crop.name, steps=False))
    return contact_sheet(rows, title=f"{resolver.name}: what is where, and how it modulates", scale=1)


def comparison(crops: Sequence[Crop], resolvers: Sequence[SuperResolver]) -> np.ndarray:
    """Bicubic, each resolver, the first one told "background" if it listens, PSNR and LPIPS, and the original."""
    rows = []
    for crop in crops:
        made = {"bicubic": bicubic(crop.low, SCALE)} | {r.name: r(crop.low) for r in resolvers}
        if getattr(resolvers[0].network, "conditioning", "none") != "none":
            nothing = prior("background", *crop.high.shape[2:]).to(crop.low.device)
            made[f"{resolvers[0].name}, as background"] = resolvers[0](crop.low, nothing)
        captions = [(name, f"{_psnr(i, crop):.2f} dB, LPIPS {_distance(i, crop):.3f}") for name, i in made.items()]
        frames = [_pixels(image) for image in made.values()]
        rows.append(Strip(frames, captions, crop.name, (_pixels(crop.high), ("original", "")), steps=False))
    return contact_sheet(rows, title="Enlarged four times", scale=1)


def _psnr(image: Tensor, crop: Crop) -> float:
    return psnr(eight_bit(image) / 255.0, crop.high).item()


def _distance(image: Tensor, crop: Crop) -> float:
    return lpips(eight_bit(image) / 255.0, crop.high).item()


def _pixels(image: Tensor) -> np.ndarray:
    return np.ascontiguousarray((image[0] * 255).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).cpu().numpy())


def _grey(values: Tensor, least: float, most: float) -> np.ndarray:
    scaled = ((values - least) / max(most - least, 1e-9)).clamp(0, 1)
    return np.repeat((scaled * 255).round().to(torch.uint8).cpu().numpy()[..., None], 3, 2)
