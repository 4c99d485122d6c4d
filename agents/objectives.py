"""What joint training trains the tools for: the PSNR, or how an image looks."""

from __future__ import annotations

import itertools
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from restoration_env.errors import UnknownName
from restoration_env.metrics import psnr
from restoration_env.perceptual import LPIPS, lpips

ENOUGH = 1e-5  # a mean squared error (50 dB) below which nothing is left to restore


class Objective(Protocol):
    """What the tools are trained for."""

    def __call__(self, images: Tensor, clean: Tensor) -> Tensor:
        """The loss (N,) of restored images (N, 3, H, W) against the clean ones."""
        ...

    def worth(self, images: Tensor, clean: Tensor) -> Tensor:
        """What training keeps the best of on held-out images, (N,), higher is better."""
        ...

    def learn(self, images: Tensor, clean: Tensor) -> None:
        """Called after each step with its last images, without gradients: a discriminator learns here."""
        ...

    def state(self) -> dict[str, Any]:
        """All that `restore` needs."""
        ...

    def restore(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken."""
        ...


class Decibels:
    """The negative PSNR in dB, levelled off at 50 dB: as the reward, so that every image counts alike."""

    def to(self, device: torch.device | str) -> Decibels:
        """Nothing to move."""
        return self

    def __call__(self, images: Tensor, clean: Tensor) -> Tensor:
        """The loss (N,)."""
        return 10.0 * torch.log10((images - clean).square().mean(dim=(1, 2, 3)) + ENOUGH)

    def worth(self, images: Tensor, clean: Tensor) -> Tensor:
        """The PSNR in dB (N,), not levelled off."""
        return psnr(images, clean)

    def learn(self, images: Tensor, clean: Tensor) -> None:
        """Nothing to learn."""

    def state(self) -> dict[str, Any]:
        """Nothing to remember."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Nothing to restore."""


class Discriminator(nn.Module):
    """Tells clean patches from restored ones, region by region: float (N, 3, H, W) to logits (N, 1, H/8, W/8)."""

    def __init__(self, channels: int = 32) -> None:
        super().__init__()
        widths = (3, channels, 2 * channels, 4 * channels)
        self.body = nn.Sequential(
            *(
                layer
                for inputs, outputs in itertools.pairwise(widths)
                for layer in (
                    nn.utils.parametrizations.spectral_norm(nn.Conv2d(inputs, outputs, 4, 2, 1)),
                    nn.LeakyReLU(0.2),
                )
            ),
            nn.Conv2d(widths[-1], 1, 3, padding=1),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Logits: above zero for what looks clean."""
        return self.body(images * 2.0 - 1.0)


class Looks(nn.Module):
    """Perceptual, adversarial and pixel loss together: the future work that RL-Restore's Section 6 names.

    The perceptual part is LPIPS through VGG16; the adversarial part is a hinge loss against a discriminator of regions
    that learns alongside; the pixel part is the PSNR.

    Args:
        perceptual: weight of the perceptual part.
        adversarial: weight of the adversarial part.
        pixel: weight of a dB.
        precision: of VGG16, "float32" or "bfloat16".
    """

    def __init__(
        self, perceptual: float = 10.0, adversarial: float = 0.1, pixel: float = 0.05, precision: str = "float32"
    ) -> None:
        super().__init__()
        self.perceptual, self.adversarial, self.pixel, self.precision = perceptual, adversarial, pixel, precision
        self.distance = LPIPS("vgg")
        self.decibels = Decibels()
        self.discriminator = Discriminator()
        self.optimizer = torch.optim.Adam(self.discriminator.parameters(), 2e-4, betas=(0.5, 0.99))

    def forward(self, images: Tensor, clean: Tensor) -> Tensor:
        """The loss (N,)."""
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            far = self.distance(*(part.contiguous(memory_format=torch.channels_last) for part in (images, clean)))
        self.discriminator.requires_grad_(False)
        looks = -self.discriminator(images).mean(dim=(1, 2, 3))
        return self.perceptual * far.float() + self.adversarial * looks + self.pixel * self.decibels(images, clean)

    def worth(self, images: Tensor, clean: Tensor) -> Tensor:
        """The negative LPIPS (N,), through AlexNet: training looks through another network."""
        return -lpips(images.clamp(0.0, 1.0), clean)

    def learn(self, images: Tensor, clean: Tensor) -> None:
        """One step of the discriminator."""
        self.discriminator.requires_grad_(True)
        loss = F.relu(1.0 - self.discriminator(clean)).mean() + F.relu(1.0 + self.discriminator(images)).mean()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()

    def state(self) -> dict[str, Any]:
        """All that `restore` needs."""
        return {"discriminator": self.discriminator.state_dict(), "optimizer": self.optimizer.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken."""
        self.discriminator.load_state_dict(state["discriminator"])
        self.optimizer.load_state_dict(state["optimizer"])


OBJECTIVES = ("looks", "psnr")


def build_objective(name: str, precision: str = "float32") -> Decibels | Looks:
    """An objective by name.

    Raises:
        UnknownName: if there is none; the message lists those there are.
    """
    if name not in OBJECTIVES:
        raise UnknownName("objective", name, OBJECTIVES)
    return Decibels() if name == "psnr" else Looks(precision=precision)
