"""Eight-bit networks: what range each convolution's input has, measured on damaged photographs."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from restoration_env.distortions import recipe
from restoration_env.images import damaged_patches, load_images
from restoration_env.toolbox import Toolbox

LEVELS = 256
Range = tuple[float, float]
_STEP = 1.25 / 255
IMAGE: Range = (-25 * _STEP, 230 * _STEP)  # of what tools make of images: a little beyond 0 and 1
_BEARABLE = 1e-5  # mean squared change of a network's result: a hundredth of what restored images are wrong by
_IMAGES, _SIZE = 30, 63
_BINS, _AT_ONCE = 2048, 3


@torch.no_grad()
def calibration_images(toolbox: Toolbox) -> Tensor:
    """Images as the tools see them, float (N, 3, S, S): damaged, and after one and two tools taken at random."""
    keys = torch.arange(_IMAGES) + (1 << 40)
    pool, how = load_images("bundled", "train"), recipe("every")
    damaged = torch.cat([damaged_patches(pool, few, how, _SIZE)[1] for few in keys.split(_AT_ONCE)])
    generator = torch.Generator().manual_seed(0)
    seen = [damaged]
    for _ in range(2):
        actions = torch.randint(len(toolbox), (_IMAGES,), generator=generator)
        few = zip(seen[-1].split(_AT_ONCE), actions.split(_AT_ONCE), strict=True)
        seen.append(torch.cat([toolbox.apply(images, chosen, check=False) for images, chosen in few]))
    return torch.cat([part[i::3] for i, part in enumerate(seen)])


@torch.no_grad()
def bears_rounding(network: nn.Module, images: Tensor) -> bool:
    """Whether a network's results stay as they are when the images it sees have 256 levels in the range of `IMAGE`.

    One that sharpens does not: it amplifies the rounding, and needs what other tools put beyond the range.

    Args:
        network: maps images to the same shape.
        images: float (N, 3, H, W), as it sees them.
    """
    low, high = IMAGE
    changes = []
    for some in images.split(_AT_ONCE):
        rounded = (some / _STEP).round().mul(_STEP).clamp(low, high)
        # Only what is taken from the image is rounded, not the image to which the correction is added.
        changes.append((network(rounded) - rounded - network(some) + some).square().mean(dim=(1, 2, 3)))
    return torch.cat(changes).mean().item() < _BEARABLE


@torch.no_grad()
def input_ranges(network: nn.Module, layers: Sequence[str], images: Tensor) -> dict[str, Range]:
    """For each named layer, the range of its inputs that 256 levels represent with the smallest squared error.

    A layer that sees the images themselves gets the range of `IMAGE`. The network sees few images at once, so that this
    needs little memory: first for the extremes, then to count.
    """
    ends = {name: (0.0, 0.0) for name in layers}  # zero is among the inputs: convolutions pad with it
    of_images = min(0.0, images.min().item()), max(0.0, images.max().item())
    counts = {name: torch.zeros(_BINS, dtype=torch.float64) for name in layers}

    def widen(name: str, values: Tensor) -> None:
        low, high = torch.aminmax(values)
        ends[name] = min(ends[name][0], low.item()), max(ends[name][1], high.item())

    def count(name: str, values: Tensor) -> None:
        low, high = ends[name]
        counts[name] += torch.histc(values.float(), _BINS, low, high).double() if low < high else 0.0

    for look in (widen, count):
        hooks = [
            network.get_submodule(name).register_forward_pre_hook(
                lambda _, inputs, name=name, look=look: look(name, inputs[0])
            )
            for name in layers
        ]
        for some in images.split(_AT_ONCE):
            network(some)
        for hook in hooks:
            hook.remove()
    return {name: IMAGE if ends[name] == of_images else best_range(counts[name], *ends[name]) for name in layers}


def best_range(counts: Tensor, low: float, high: float) -> Range:
    """The range whose 256 levels represent values best: clipping outliers makes all steps smaller.

    Args:
        counts: how many values lie in each of equal parts of ``low`` .. ``high``.
        low: the least value, or 0, which is one of the levels.
        high: the greatest value, or 0.
    """
    if low == high:
        return 0.0, 1.0
    bins = len(counts)
    centres = torch.linspace(low, high, 2 * bins + 1, dtype=torch.float64)[1::2]
    best = (math.inf, (low, high))
    for share in (1.0, 0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5):
        step = (high - low) * share / (LEVELS - 1)
        zero = round(-low * share / step)
        first, last = -zero * step, (LEVELS - 1 - zero) * step
        clipped = (centres - centres.clamp(first, last)).square()
        error = (counts * (clipped + step**2 / 12)).sum().item()
        best = min(best, (error, (first, last)))
    return best[1]
