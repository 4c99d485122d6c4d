"""A critic of outcomes: how much better an image is than it was, told without the clean image.

It compares an image before and after tools. Every branch of every image is a pair whose gain in PSNR is known in
training, so it learns from twelve labelled pairs where Q-learning sees one reward; and it never needs to foresee
what a tool will do, because at decision time the tools can be run.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from restoration_env.agents.statistics import GRID_STATISTICS, STATISTICS, grid_statistics, statistics
from restoration_env.errors import InvalidArgument

_BEFORE, _AFTER = STATISTICS + GRID_STATISTICS, 2 * STATISTICS + 3


class OutcomeCritic(nn.Module):
    """Predicts the gain in PSNR of images over the damaged image that they were made from.

    Statistics of the damaged image, of each outcome and of the difference go through three small layers; the
    outcomes are judged together, so that each is seen beside its siblings. 80,961 parameters, whatever the tools.

    Args:
        patch_size: side of the patches in pixels that it is trained on.
        width: of the first layer.
        hidden: of the others.
        dropout: in training.
    """

    kind = "critic"

    def __init__(self, patch_size: int = 63, width: int = 128, hidden: int = 64, dropout: float = 0.1) -> None:
        super().__init__()
        self.patch_size = patch_size
        for name, size in (("before", _BEFORE), ("after", _AFTER)):
            self.register_buffer(f"{name}_mean", torch.zeros(size))
            self.register_buffer(f"{name}_scale", torch.ones(size))
        self.from_before, self.from_after = nn.Linear(_BEFORE, width), nn.Linear(_AFTER, width)
        self.inner = nn.Linear(width, hidden)
        self.beside = nn.Linear(2 * hidden, hidden)
        self.gain = nn.Linear(hidden, 1)
        self.dropout = nn.Dropout(dropout)
        nn.init.zeros_(self.gain.weight)

    @staticmethod
    def see_before(images: Tensor) -> Tensor:
        """Damaged images, uint8 (N, 3, H, W), to statistics (N, S)."""
        pixels = images.float() / 255.0
        return torch.cat((statistics(pixels), grid_statistics(pixels)), 1)

    @staticmethod
    def see_after(before: Tensor, after: Tensor) -> Tensor:
        """Damaged images, uint8 (N, 3, H, W), and outcomes, uint8 (N, K, 3, H, W), to statistics (N, K, S)."""
        pixels = after.float() / 255.0
        change = pixels - before.float()[:, None] / 255.0
        size = torch.log10((255.0 * change).square().mean((3, 4)) + 0.01)
        flat = [statistics(part.flatten(0, 1)).view(*after.shape[:2], -1) for part in (pixels, change)]
        return torch.cat((*flat, size), 2)

    @torch.no_grad()
    def scale_to(self, before: Tensor, after: Tensor) -> None:
        """Take what is seen of some images, (N, S) and (N, K, S), as what is to be expected."""
        for name, seen in (("before", before), ("after", after.flatten(0, -2))):
            getattr(self, f"{name}_mean").copy_(seen.float().mean(0))
            getattr(self, f"{name}_scale").copy_(seen.float().std(0) + 1e-3)

    def forward(self, before: Tensor, after: Tensor) -> Tensor:
        """The gain in dB of each outcome, float (N, K), by what is seen of it and of the damaged image."""
        known = ((before.float() - self.before_mean) / self.before_scale).clamp(-5.0, 5.0)
        made = ((after.float() - self.after_mean) / self.after_scale).clamp(-5.0, 5.0)
        x = self.dropout(F.gelu(self.from_before(known)[:, None] + self.from_after(made)))
        x = self.dropout(F.gelu(self.inner(x)))
        x = F.gelu(self.beside(torch.cat((x, x.mean(1, keepdim=True).expand_as(x)), 2)))
        return 10.0 * self.gain(x)[..., 0]

    def scale_values(self, factor: float) -> None:
        """Refused: there are no Q values here that training on Q values could go on with."""
        raise InvalidArgument("start", "an agent with a network of Q values", "a lookahead agent")
