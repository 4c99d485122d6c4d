"""A critic of outcomes: how much better an image is than it was, told without the clean image.

What is known of the clean image is what a network makes of the damaged one in a single pass. Trained for PSNR, it
gives the mean of all clean images that would explain what it sees, and of several outcomes the one that is nearest to
that mean is the one with the least expected squared error: ``E |outcome - clean|^2`` is ``|outcome - mean|^2`` and a
variance that is the same for all outcomes. So the critic never needs to foresee what a tool will do, because at
decision time the tools can be run; and it knows nothing of any tool: it judges those of all toolboxes.

A mean does not say how far off it may be. Where a photograph was out of focus before anything was done to it, all that
promises a gain may be a loss. So a small network beside it, which sees what the other one sees at quarter resolution,
has learned how often images like this one were worse after restoration.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from restoration_env.errors import InvalidArgument
from restoration_env.metrics import decibels
from restoration_env.tools.networks import restorer


class RestoringCritic(nn.Module):
    """Predicts the gain in PSNR of images over the damaged image that they were made from.

    1,375,213 parameters at the default width, whatever the tools; 497 M multiply-adds an image of 63x63, and three
    quarters of that again for the doubts.

    Args:
        width: channels of its network at half resolution, twice as many at a quarter.
        patch_size: side of the patches in pixels that it is trained on.

    Attributes:
        restorer: float (N, 3, H, W) in [0, 1], damaged, to the same shape.
        unknown: the squared error of the restorer on held-out damage, mean in dB: no outcome is told to have less.
        doubt: what `summary` gives, normalised, to the logit of the chance that restoration makes an image worse. It
            has none before it was taught.
    """

    kind = "critic"
    unknown: Tensor
    centre: Tensor
    spread: Tensor

    def __init__(self, width: int = 48, patch_size: int = 63) -> None:
        super().__init__()
        self.width, self.patch_size = width, patch_size
        self.restorer = restorer(width)
        self.register_buffer("unknown", torch.tensor(1e-3))
        count = 3 * 2 * width  # of the features at quarter resolution: mean, deviation and greatest size
        self.register_buffer("centre", torch.zeros(count))
        self.register_buffer("spread", torch.ones(count))
        self.doubt = nn.Sequential(nn.Linear(count, 192), nn.ReLU(), nn.Dropout(0.6), nn.Linear(192, 1))
        nn.init.zeros_(self.doubt[3].get_parameter("weight"))
        nn.init.constant_(self.doubt[3].get_parameter("bias"), -20.0)

    def summary(self, images: Tensor) -> Tensor:
        """What is seen of images, float (N, 3, H, W) in [0, 1], float32 (N, 6 * width)."""
        deep = self.restorer.features(images.contiguous(memory_format=torch.channels_last))[1].float()
        return torch.cat((deep.mean((2, 3)), deep.std((2, 3)), deep.abs().amax((2, 3))), 1)

    def doubts(self, summaries: Tensor) -> Tensor:
        """The logit of the chance that restoration makes an image worse, by its summary: float (N,)."""
        return self.doubt(((summaries - self.centre) / self.spread).clamp(-6.0, 6.0))[:, 0]

    def risk(self, images: Tensor) -> Tensor:
        """The chance that restoration makes damaged images worse, uint8 (N, 3, H, W) to float (N,)."""
        return torch.cat([torch.sigmoid(self.doubts(self.summary(part / 255.0))) for part in images.split(32)])

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
