"""The super-resolver as a tool: an image that lost its resolution is shrunk by four and made anew at its own size."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from restoration_env.resizing import SCALE
from restoration_env.sft.resizing import decimated
from restoration_env.sft.super_resolver import SuperResolver, load_super_resolver
from restoration_env.toolbox import Tool
from restoration_env.turning import WAYS, turned, turned_back

NAME = "sft-x4"
_COST = WAYS * 31_000  # multiply-adds per pixel
_WEIGHTS = "sft-tool"  # learned from what the tool is shown, and needs no segmenter: it sees tiles only
_HALO = 96  # the generator's reach


def sft_x4(*, device: torch.device | str = "cpu", precision: str = "float32") -> Tool:
    """The tool, as `restoration_env.registry` loads it."""
    resolver = load_super_resolver(_WEIGHTS, device)
    return Tool(
        NAME, "SFT-Net x4: new detail where resolution was lost", Resharpen(resolver), _COST, _HALO, precision, SCALE
    )


class Resharpen:
    """Float (N, 3, H, W) to the same shape: decimated by four, then super-resolved in eight views, which are averaged.

    Sides that are no multiples of four are extended by their last pixels.
    """

    def __init__(self, resolver: SuperResolver) -> None:
        self.resolver = resolver

    def __call__(self, images: Tensor) -> Tensor:
        """The images with new detail."""
        height, width = images.shape[-2:]
        padded = F.pad(images, (0, -width % SCALE, 0, -height % SCALE), mode="replicate")
        small = decimated(padded.float()).clamp(0.0, 1.0)
        made = torch.zeros_like(padded, dtype=torch.float32)
        for way in range(WAYS):
            made += turned_back(self.resolver(turned(small, way)), way)
        return (made / WAYS)[..., :height, :width]
