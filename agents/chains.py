"""Running chains of tools on images whose clean version is known: what oracles and searches share."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from restoration_env.distortions import check_images
from restoration_env.errors import InvalidArgument, check_at_least
from restoration_env.metrics import psnr
from restoration_env.toolbox import Toolbox

Chain = tuple[int, ...]
Report = Callable[[int, int], None]  # tool runs done, and in all; a run is one tool on one image
_PIXELS = 1 << 24  # held at once, about 200 MB as float RGB
_BATCH = 64


def check_search(clean: Tensor, damaged: Tensor, **counts: int) -> None:
    """Refuse anything but two batches of images of one shape, and counts under one.

    Raises:
        InvalidArgument: the message names what is wrong.
    """
    check_images(clean, "clean")
    check_images(damaged, "damaged")
    if clean.shape != damaged.shape:
        raise InvalidArgument("clean", f"of the damaged images' shape {tuple(damaged.shape)}", tuple(clean.shape))
    check_at_least(1, **counts)


def parts(images: Tensor, held: int, together: int = 1) -> tuple[Tensor, ...]:
    """Rows to search at once, so that ``held`` images for each of them stay within the memory meant for it.

    Where ``together`` consecutive images share a chain, the numbers are those of such groups.
    """
    count = min(_BATCH, _PIXELS // (held * images.shape[-2] * images.shape[-1])) // together
    return torch.arange(len(images) // together, device=images.device).split(max(1, count))


def walk(
    toolbox: Toolbox, clean: Tensor, images: Tensor, steps: int, prefix: Chain = ()
) -> Iterator[tuple[Chain, Tensor]]:
    """Every chain of 1 to ``steps`` tools, depth first, with the PSNR of its results, float64 (N,)."""
    for tool in range(len(toolbox)):
        result, quality = run_tool(toolbox, tool, images, clean)
        yield (*prefix, tool), quality
        if steps > 1:
            yield from walk(toolbox, clean, result, steps - 1, (*prefix, tool))


def run_tool(toolbox: Toolbox, tool: int, images: Tensor, clean: Tensor) -> tuple[Tensor, Tensor]:
    """A tool's results on all images and their PSNR, float64 (N,); -inf where a tool returned no numbers."""
    actions = torch.full((len(images),), tool, device=images.device)
    result = toolbox.apply(images, actions, check=False)
    quality = psnr(result, clean)
    return result, torch.where(quality.isnan(), -torch.inf, quality)


def count_chains(tools: int, steps: int) -> int:
    """How many chains of 1 to ``steps`` tools there are."""
    return sum(tools**step for step in range(1, steps + 1))


class Progress:
    """Counts tool runs."""

    def __init__(self, report: Report, total: int) -> None:
        self.report, self.done, self.total = report, 0, total

    def add(self, count: int) -> None:
        """Report so many more."""
        self.done += count
        self.report(self.done, self.total)
