"""Eight-bit networks: what range each convolution's input has, measured on damaged photographs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from restoration_env.distortions import recipe
from restoration_env.images import damaged_patches, load_images
from restoration_env.toolbox import Toolbox

LEVELS = 256
Range = tuple[float, float]
_IMAGES, _SIZE = 30, 63
_BINS = 2048


@torch.no_grad()
def calibration_images(toolbox: Toolbox) -> Tensor:
    """Images as the tools see them, float (N, 3, S, S): damaged, and after one and two tools taken at random."""
    keys = torch.arange(_IMAGES) + (1 << 40)
    _, damaged = damaged_patches(load_images("bundled", "train"), keys, recipe("every"), _SIZE)
    generator = torch.Generator().manual_seed(0)
    seen = [damaged]
    for _ in range(2):
        actions = torch.randint(len(toolbox), (_IMAGES,), generator=generator)
        seen.append(toolbox.apply(seen[-1], actions, check=False))
    return torch.cat([part[i::3] for i, part in enumerate(seen)])


@torch.no_grad()
def input_ranges(network: nn.Module, layers: Sequence[str], images: Tensor) -> dict[str, Range]:
    """For each named layer, the range of its inputs that 256 levels represent with the smallest squared error."""
    found: dict[str, Range] = {}

    def look(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            found[name] = best_range(inputs[0].detach().float().flatten())

        return hook

    hooks = [network.get_submodule(name).register_forward_pre_hook(look(name)) for name in layers]
    network(images)
    for hook in hooks:
        hook.remove()
    return found


def best_range(values: Tensor) -> Range:
    """The range whose 256 levels represent the values best: clipping outliers makes all steps smaller.

    Zero is one of the levels, because convolutions pad with it.
    """
    low, high = min(0.0, values.min().item()), max(0.0, values.max().item())
    if low == high:
        return 0.0, 1.0
    counts = torch.histc(values, _BINS, low, high).double()
    centres = torch.linspace(low, high, 2 * _BINS + 1, dtype=torch.float64)[1::2]
    best = (math.inf, (low, high))
    for share in (1.0, 0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5):
        step = (high - low) * share / (LEVELS - 1)
        zero = round(-low * share / step)
        first, last = -zero * step, (LEVELS - 1 - zero) * step
        clipped = (centres - centres.clamp(first, last)).square()
        error = (counts * (clipped + step**2 / 12)).sum().item()
        best = min(best, (error, (first, last)))
    return best[1]
