"""Damage done to clean images: Gaussian blur, loss of resolution, Gaussian noise and JPEG, in this order.

`distort` applies given strengths to a batch; a `Recipe` draws strengths. The severity recipes are those of
RL-Restore (Yu et al., CVPR 2018, Section 4): ten levels of each distortion, a triple of levels per image,
and the sum of the three levels decides whether the damage is mild, moderate or severe. Resolution is lost by shrinking
four times and enlarging again, both bicubic; it is no part of the published recipes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from restoration_env import devices
from restoration_env.devices import constant, has_kernels
from restoration_env.errors import InvalidArgument, UnknownName
from restoration_env.jpeg import through_jpeg
from restoration_env.randomness import noisy_in_one, normal
from restoration_env.resizing import enlarged_again

KERNEL_RADIUS = 10  # the published 21x21 kernel
_DENSE_SIDE = 192  # up to this side a matrix product beats a convolution
_NOTHING = 1e-15  # weights that change no pixel; products of smaller ones would be denormal numbers, and slow
LOSSLESS = math.inf  # the quality of an image that is not compressed

BLUR_EDGES = tuple(0.5 * i for i in range(11))
NOISE_EDGES = tuple(5.0 * i for i in range(11))
JPEG_EDGES = (100.0, 80.0, 60.0, 50.0, 40.0, 35.0, 30.0, 25.0, 20.0, 15.0, 10.0)

# A triple's severity is the sum of its levels minus 2 (RL-Restore's released data recipe).
SEVERITY_RANGES = {"mild": (9, 11), "moderate": (12, 17), "severe": (18, 20)}


def check_images(images: Tensor, argument: str = "images", *, low: float = 0.0, high: float = 1.0) -> None:
    """Refuse anything but a finite float tensor (N, 3, H, W) within ``low`` .. ``high``."""
    if not isinstance(images, Tensor) or not images.is_floating_point():
        got = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise InvalidArgument(argument, "a float tensor of shape (N, 3, H, W)", got)
    if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape:
        raise InvalidArgument(argument, "of shape (N, 3, H, W), none of them 0", tuple(images.shape))
    least, most = torch.aminmax(images.detach())
    if not (low <= least.item() and most.item() <= high):  # also false for NaN
        expected = f"finite and within [{low:g}, {high:g}]"
        raise InvalidArgument(argument, expected, f"values from {least.item():g} to {most.item():g}")


def gaussian_blur(images: Tensor, sigma: Tensor, crop: int = 0) -> Tensor:
    """Blur with a 21x21 Gaussian kernel, replicating the border.

    Args:
        images: float (N, 3, H, W).
        sigma: (N,) standard deviations in pixels; 0 leaves its image unchanged.
        crop: pixels on each side of the result that nobody needs and that are left out.
    """
    n, c, h, w = images.shape
    precise = torch.promote_types(images.dtype, torch.float32)
    offsets = torch.arange(-KERNEL_RADIUS, KERNEL_RADIUS + 1, device=images.device, dtype=precise)
    safe = sigma.to(precise).clamp_min(1e-3)[:, None]
    kernel = torch.exp(-0.5 * (offsets / safe) ** 2)
    kernel = (kernel / kernel.sum(1, keepdim=True)).to(images.dtype)
    kernel = torch.where(kernel < _NOTHING, 0.0, kernel)
    if max(h, w) <= _DENSE_SIDE:
        lines = images.permute(0, 2, 1, 3).reshape(n, h, c * w)  # the channels side by side: few products, large ones
        down, across = _band_matrix(kernel, h), _band_matrix(kernel, w).transpose(1, 2)
        lines = torch.cat([down[:, made, seen] @ lines[:, seen] for made, seen in _spans(h, crop, n)], 1)
        lines = lines.view(n, -1, w)
        lines = torch.cat([lines[..., seen] @ across[:, seen, made] for made, seen in _spans(w, crop, n)], 2)
        blurred = lines.unflatten(1, (-1, c)).transpose(1, 2)
    else:
        kernel = kernel.repeat_interleave(c, 0)
        padded = F.pad(images, (KERNEL_RADIUS,) * 4, mode="replicate").reshape(1, n * c, h + 20, w + 20)
        rows = F.conv2d(padded, kernel[:, None, :, None], groups=n * c)
        blurred = F.conv2d(rows, kernel[:, None, None, :], groups=n * c).view(n, c, h, w)
        blurred = blurred[..., crop : h - crop, crop : w - crop]
    return _only_where(sigma > 0, blurred, images[..., crop : h - crop, crop : w - crop])


def _band_matrix(kernel: Tensor, side: int) -> Tensor:
    """The blur of a line of pixels, border replicated, as a matrix: (N, 21) to (N, side, side)."""
    # Looked up, not multiplied out: then an image's bits do not depend on how many others are in the batch.
    first, last = kernel.cumsum(1), kernel.flip(1).cumsum(1)
    sums = torch.cat((kernel, first, last, torch.zeros_like(kernel[:, :1])), 1)
    which = _band_entries(side, kernel.device)
    return sums.index_select(1, which).view(-1, side, side)


def _spans(side: int, crop: int, images: int) -> list[tuple[slice, slice]]:
    """Parts of a blurred line, without its cropped ends, each with the pixels that it sees: to others it is blind."""
    parts = 1 if images == 1 else max(1, (side - 2 * crop) // 16)  # where there are several, less that is zero pays
    edges = [crop + (side - 2 * crop) * part // parts for part in range(parts + 1)]
    spans = itertools.starmap(slice, itertools.pairwise(edges))
    return [(span, slice(max(0, span.start - KERNEL_RADIUS), span.stop + KERNEL_RADIUS)) for span in spans]


@lru_cache(maxsize=8)
def _band_entries(side: int, device: torch.device) -> Tensor:
    """(side * side,): where entry [i, j], the weight of input j in output i, stands among the sums above."""
    taps = 2 * KERNEL_RADIUS + 1
    outputs, inputs = torch.arange(side)[:, None], torch.arange(side)
    distance = inputs - outputs
    entries = torch.where(distance.abs() <= KERNEL_RADIUS, distance + KERNEL_RADIUS, 3 * taps)
    # The border pixels also stand for all pixels beyond them.
    entries = torch.where((inputs == 0) & (outputs <= KERNEL_RADIUS), taps + KERNEL_RADIUS - outputs, entries)
    from_end = side - 1 - outputs
    at_end = (inputs == side - 1) & (from_end <= KERNEL_RADIUS)
    entries = torch.where(at_end, 2 * taps + KERNEL_RADIUS - from_end, entries)
    return (entries.flatten() if side > 1 else torch.tensor([2 * taps - 1])).to(device)


def lose_resolution(images: Tensor, lost: Tensor) -> Tensor:
    """Shrink by four and enlarge again the images of which ``lost``, bool (N,), is true."""
    if not devices.must_not_wait(images.device) and not bool(lost.any()):
        return images
    return torch.where(lost.view(-1, 1, 1, 1), enlarged_again(images), images)


def gaussian_noise(images: Tensor, sigma: Tensor, noise: Tensor) -> Tensor:
    """Add ``noise`` (standard normal, the images' shape) times sigma (0-255 scale) and clip to [0, 1]."""
    scale = (sigma.to(images.dtype) / 255.0).view(-1, 1, 1, 1)
    return _only_where(sigma > 0, (noise * scale).add_(images).clamp_(0.0, 1.0), images)


def seeded_noise(images: Tensor, sigma: Tensor, keys: Tensor, stream: int) -> Tensor:
    """`gaussian_noise` with the normal numbers that keys, int64 (N,), have in a stream."""
    if images.is_cuda and images.dtype == torch.float32 and has_kernels():
        return noisy_in_one(images, sigma.to(images.dtype) / 255.0, keys, stream)
    return gaussian_noise(images, sigma, normal(keys, tuple(images.shape[1:]), stream, dtype=images.dtype))


def jpeg_compression(images: Tensor, quality: Tensor) -> Tensor:
    """Compress in JPEG 4:2:0, bit for bit as Pillow does; infinite quality leaves its image unchanged."""
    lossy = torch.isfinite(quality.double())
    whole = torch.where(lossy, quality.double(), 100.0).round().long()
    coded = through_jpeg(images.clamp(0.0, 1.0).mul_(255.0).round_().float(), whole).to(images.dtype).div_(255.0)
    return _only_where(lossy, coded, images)


def _only_where(which: Tensor, worse: Tensor, images: Tensor) -> Tensor:
    """Those of a batch that are damaged, bool (N,), and the others as they were."""
    if not devices.must_not_wait(which.device) and bool(which.all()):
        return worse
    return torch.where(which.view(-1, 1, 1, 1), worse, images)


def distort(
    images: Tensor,
    blur_sigma: Tensor,
    noise_sigma: Tensor,
    jpeg_quality: Tensor,
    generator: torch.Generator | None = None,
    *,
    noise: Tensor | None = None,
    lost: Tensor | None = None,
) -> Tensor:
    """Blur, lose resolution, add noise, then compress, each image with its own strengths (RL-Restore, Section 4).

    Args:
        images: float (N, 3, H, W) in [0, 1], RGB.
        blur_sigma: (N,) pixels, 0 or more; 0 changes nothing.
        noise_sigma: (N,) on the 0-255 scale, 0 or more; 0 changes nothing.
        jpeg_quality: (N,) 1..100, rounded to an integer; ``LOSSLESS`` (infinity) changes nothing.
        generator: draws the noise; torch's default generator if None.
        noise: standard normal (N, 3, H, W) to use instead of drawing.
        lost: bool (N,), which images lose their resolution; None for none.

    Returns:
        float (N, 3, H, W) in [0, 1].

    Raises:
        InvalidArgument: for images of another shape, type or range, and for strengths out of range.
    """
    check_images(images)
    n = len(images)
    strengths = {"blur_sigma": blur_sigma, "noise_sigma": noise_sigma, "jpeg_quality": jpeg_quality}
    for name, values in strengths.items():
        if not isinstance(values, Tensor) or values.shape != (n,) or values.is_complex():
            got = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise InvalidArgument(name, f"a tensor of shape ({n},)", got)
    for name in ("blur_sigma", "noise_sigma"):
        if not bool((strengths[name] >= 0).all() & torch.isfinite(strengths[name]).all()):
            raise InvalidArgument(name, "finite and 0 or more", strengths[name].tolist())
    in_range = (jpeg_quality >= 1) & (jpeg_quality <= 100)  # false for NaN
    if not bool((in_range | (jpeg_quality == LOSSLESS)).all()):
        raise InvalidArgument("jpeg_quality", "between 1 and 100, or LOSSLESS", jpeg_quality.tolist())
    if noise is not None and noise.shape != images.shape:
        raise InvalidArgument("noise", f"of the images' shape {tuple(images.shape)}", tuple(noise.shape))
    if noise is None:
        noise = torch.randn(images.shape, generator=generator, dtype=images.dtype, device=images.device)
    blurred = gaussian_blur(images, blur_sigma.to(images.device))
    if lost is not None:
        if lost.shape != (n,) or lost.dtype != torch.bool:
            raise InvalidArgument("lost", f"a bool tensor of shape ({n},)", f"{lost.dtype} {tuple(lost.shape)}")
        blurred = lose_resolution(blurred, lost.to(images.device))
    noisy = gaussian_noise(blurred, noise_sigma.to(images.device), noise)
    return jpeg_compression(noisy, jpeg_quality.to(images.device))


@dataclass(frozen=True)
class Recipe:
    """Draws the strengths of one image's damage from four uniform numbers.

    Attributes:
        name: what users call it.
        draw: maps uniforms (N, 4) in [0, 1) to (blur_sigma, noise_sigma, jpeg_quality), each (N,).
        loses: share of the images that lose their resolution, those whose first uniform is below it.
    """

    name: str
    draw: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]
    loses: float = 0.0

    def lost(self, u: Tensor) -> Tensor:
        """Which images lose their resolution, bool (N,), of the uniforms that `draw` maps to strengths."""
        return u[:, 0] < self.loses


@lru_cache
def level_triples(severity: str) -> tuple[tuple[int, int, int], ...]:
    """All triples of levels 1..10 (blur, noise, JPEG) of a severity: 163, 434 or 163 of them."""
    if severity not in SEVERITY_RANGES:
        raise UnknownName("severity", severity, SEVERITY_RANGES)
    low, high = SEVERITY_RANGES[severity]
    levels = range(1, 11)
    return tuple(t for t in itertools.product(levels, levels, levels) if low <= sum(t) - 2 <= high)


def _within(edges: tuple[float, ...], level: Tensor, u: Tensor) -> Tensor:
    """The value at the fraction ``u`` of a level 1..10."""
    table = constant(edges, u.device, u.dtype)
    return table[level - 1] + u * (table[level] - table[level - 1])


def _severity(name: str) -> Recipe:
    def draw(u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        triples = constant(level_triples(name), u.device)
        blur, noise, quality = triples[(u[:, 0] * len(triples)).long()].unbind(1)
        return (
            _within(BLUR_EDGES, blur, u[:, 1]),
            _within(NOISE_EDGES, noise, u[:, 2]),
            _within(JPEG_EDGES, quality, u[:, 3]).round(),
        )

    return Recipe(name, draw)


def band(kind: str, low: float, high: float) -> Recipe:
    """A single distortion ("blur", "noise" or "jpeg") of uniform strength between ``low`` and ``high``."""
    if kind not in ("blur", "noise", "jpeg"):
        raise UnknownName("kind", kind, ("blur", "noise", "jpeg"))

    def draw(u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        value = low + u[:, 1] * (high - low)
        zero, lossless = torch.zeros_like(value), torch.full_like(value, LOSSLESS)
        return (
            value if kind == "blur" else zero,
            value if kind == "noise" else zero,
            value.clamp(1, 100).round() if kind == "jpeg" else lossless,
        )

    return Recipe(f"{kind} {low:g}-{high:g}", draw)


def _mixture(name: str, parts: tuple[Recipe, ...]) -> Recipe:
    """Each image follows one of the parts, all equally likely."""

    def draw(u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        choice = (u[:, 0] * len(parts)).long()
        rest = torch.cat(((u[:, :1] * len(parts)) % 1.0, u[:, 1:]), 1)
        drawn = [torch.stack(part.draw(rest)) for part in parts]
        blur, noise, quality = torch.stack(drawn).gather(0, choice.expand(1, 3, -1))[0]
        return blur, noise, quality

    return Recipe(name, draw)


def _x4() -> Recipe:
    """Lost resolution; then, in half of the images, slight noise and slight JPEG."""

    def draw(u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        slight = u[:, 1] < 0.5
        noise = torch.where(slight, u[:, 2] * 15.0, 0.0)
        quality = torch.where(slight, (60.0 + u[:, 3] * 40.0).round(), LOSSLESS)
        return torch.zeros_like(noise), noise, quality

    return Recipe("x4", draw, loses=1.0)


@lru_cache
def recipe(name: str) -> Recipe:
    """A recipe by name.

    Names: mild, moderate, severe (as published); blur, noise, jpeg (one distortion of any strength); single
    (one of the three); mixed (half moderate, half single, as the authors advise for training agents); any
    (mild, moderate or severe); every (mild, moderate, severe or single, for joint training); x4 (resolution lost by
    four, in half of the images slight noise and JPEG); with-x4 (half x4, half mixed, for RestoreSR).

    Raises:
        UnknownName: for any other name.
    """
    known = recipe_names()
    if name not in known:
        raise UnknownName("severity", name, known)
    if name in SEVERITY_RANGES:
        return _severity(name)
    ranges = {"blur": (0.0, 5.0), "noise": (0.0, 50.0), "jpeg": (100.0, 10.0)}
    if name in ranges:
        return Recipe(name, band(name, *ranges[name]).draw)
    if name == "x4":
        return _x4()
    parts = {"single": tuple(ranges), "mixed": ("moderate", "single"), "any": tuple(SEVERITY_RANGES)}
    parts["every"] = (*SEVERITY_RANGES, "single")
    parts["with-x4"] = ("x4", "mixed")
    loses = 0.5 if name == "with-x4" else 0.0  # the first half of the first uniform, as `_mixture` shares it out
    return Recipe(name, _mixture(name, tuple(recipe(part) for part in parts[name])).draw, loses)


def recipe_names() -> tuple[str, ...]:
    """The names that `recipe` knows."""
    return (*SEVERITY_RANGES, "blur", "noise", "jpeg", "single", "mixed", "any", "every", "x4", "with-x4")
