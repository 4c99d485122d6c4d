"""A critic of outcomes: how much better an image is than it was, told without the clean image.

What is known of the clean image is what a network makes of the damaged one in a single pass. Trained for PSNR, it
gives the mean of all clean images that would explain what it sees, and of several outcomes the one that is nearest to
that mean is the one with the least expected squared error: ``E |outcome - clean|^2`` is ``|outcome - mean|^2`` and a
variance that is the same for all outcomes. So the critic never needs to foresee what a tool will do, because at
decision time the tools can be run; and it knows nothing of any tool: it judges those of all toolboxes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from restoration_env.errors import InvalidArgument
from restoration_env.metrics import decibels
from restoration_env.tools.networks import restorer


class RestoringCritic(nn.Module):
    """Predicts the gain in PSNR of images over the damaged image that they were made from.

    1,319,532 parameters at the default width, whatever the tools; 497 M multiply-adds an image of 63x63.

    Args:
        width: channels of its network at half resolution, twice as many at a quarter.
        patch_size: side of the patches in pixels that it is trained on.

    Attributes:
        restorer: float (N, 3, H, W) in [0, 1], damaged, to the same shape.
        unknown: the squared error of the restorer on held-out damage, mean in dB: no outcome is told to have less.
    """

    kind = "critic"
    unknown: Tensor

    def __init__(self, width: int = 48, patch_size: int = 63) -> None:
        super().__init__()
        self.width, self.patch_size = width, patch_size
        self.restorer = restorer(width)
        self.register_buffer("unknown", torch.tensor(1e-3))

    def see_before(self, images: Tensor) -> Tensor:
        """Damaged images, uint8 (N, 3, H, W), to what they are taken to have been, float32 in [0, 1]."""
        pixels = (images.float() / 255.0).contiguous(memory_format=torch.channels_last)
        return torch.cat([self.restorer(part).float().clamp(0.0, 1.0) for part in pixels.split(32)])

    @staticmethod
    def see_after(before: Tensor, after: Tensor) -> Tensor:
        """Damaged images, uint8 (N, 3, H, W), and outcomes, uint8 (N, K, 3, H, W), side by side (N, 1 + K, 3, H, W)."""
        return torch.cat((before[:, None], after), 1)

    def forward(self, before: Tensor, after: Tensor) -> Tensor:
        """The gain in dB of each outcome, float (N, K), by what `see_before` and `see_after` made of them."""
        error = (after.float() / 255.0 - before[:, None]).square().mean((2, 3, 4)) + self.unknown
        return decibels(error[:, 1:]) - decibels(error[:, :1])

    def scale_values(self, factor: float) -> None:
        """Refused: there are no Q values here that training on Q values could go on with."""
        raise InvalidArgument("start", "an agent with a network of Q values", "a lookahead agent")
