"""What the adversarial super-resolvers are trained for: SRGAN's and EnhanceNet's losses.

Each is an objective as in `restoration_env.agents.objectives`. Both papers look through VGG19; here it is VGG16, whose
weights ``restoration-env perceptual-weights`` makes, and VGG19's last convolution is VGG16's, conv5_3.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from restoration_env.errors import InvalidArgument
from restoration_env.perceptual import VGGFeatures

CROP = 96  # pixels: the side that the discriminators' dense layers are made for


class Discriminator(nn.Module):
    """Tells photographs of 96x96 from enlarged ones: pairs of 3x3 convolutions, the second of stride two.

    Args:
        width: channels of the first pair; they double to 512.
        pairs: how many.
        normalise: batch normalisation on all but the first convolution.
    """

    def __init__(self, width: int = 64, pairs: int = 4, *, normalise: bool = True) -> None:
        super().__init__()
        widths = [min(512, width << i) for i in range(pairs)]
        layers: list[nn.Module] = []
        for inputs, outputs in itertools.pairwise((3, *widths)):
            for stride, before in ((1, inputs), (2, outputs)):
                layers.append(nn.Conv2d(before, outputs, 3, stride, 1))
                if normalise and len(layers) > 1:
                    layers.append(nn.BatchNorm2d(outputs))
                layers.append(nn.LeakyReLU(0.2))
        self.body = nn.Sequential(*layers)
        side = CROP >> pairs
        self.head = nn.Sequential(nn.Linear(widths[-1] * side**2, 1024), nn.LeakyReLU(0.2), nn.Linear(1024, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N,) of float (N, 3, 96, 96) in [0, 1]: above zero for photographs.

        Raises:
            InvalidArgument: for images of another size.
        """
        if tuple(images.shape[1:]) != (3, CROP, CROP):
            raise InvalidArgument("crop", f"{CROP} pixels for an adversarial loss", tuple(images.shape[1:]))
        return self.head(self.body(images * 2.0 - 1.0).flatten(1))[:, 0]


class AdversarialLoss(nn.Module, ABC):
    """A perceptual and an adversarial loss; the discriminator learns from every batch the generator has learned from.

    Args:
        discriminator: made for this loss.
        weight: of the adversarial loss.
    """

    def __init__(self, discriminator: Discriminator, weight: float) -> None:
        super().__init__()
        self.features, self.discriminator, self.weight = VGGFeatures(), discriminator, weight
        self.optimizer = torch.optim.Adam(discriminator.parameters(), 1e-4, betas=(0.9, 0.999))

    @abstractmethod
    def perceptual(self, images: Tensor, clean: Tensor) -> Tensor:
        """The perceptual loss (N,)."""

    def forward(self, images: Tensor, clean: Tensor) -> Tensor:
        """The loss (N,) of enlarged images (N, 3, 96, 96) against the photographs."""
        self.discriminator.requires_grad_(False)
        fooled = F.softplus(-self.discriminator(images).float())  # -log D
        return self.perceptual(images, clean) + self.weight * fooled

    def learn(self, images: Tensor, clean: Tensor) -> None:
        """One step of the discriminator, on images without gradients."""
        self.discriminator.requires_grad_(True)
        real, made = self.discriminator(clean).float(), self.discriminator(images).float()
        loss = (F.softplus(-real) + F.softplus(made)).mean()
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


class SRGANLoss(AdversarialLoss):
    """Squared distance of the last map of VGG, and a thousandth of the adversarial loss (Ledig et al., Section 2.2).

    The maps are divided by 12.75, as published, so the distance has the weight 0.006.
    """

    def __init__(self) -> None:
        super().__init__(Discriminator(64, 4), 1e-3)

    def perceptual(self, images: Tensor, clean: Tensor) -> Tensor:
        """The distance (N,) of relu5_3."""
        with torch.no_grad():
            (wanted,) = self.features(clean, ["relu5_3"])
        (found,) = self.features(images, ["relu5_3"])
        return (found.float() - wanted.float()).square().mean(dim=(1, 2, 3)) / 12.75**2


class EnhanceNetLoss(AdversarialLoss):
    """EnhanceNet-PAT: distances of two pooled maps, textures of three, and the adversarial loss (Table 2).

    Maps are scaled to a mean of one. A texture is the matrix of products of channels summed over 16x16 pixels of the
    image; the published weights are those of the squared differences of these matrices. The discriminator has no
    batch normalisation and five pairs of convolutions, from 32 channels on.
    """

    _POOLED: ClassVar = {"relu2_2": 0.2, "relu5_3": 0.02}
    _TEXTURES: ClassVar = {
        "relu1_1": (3e-7, 16),
        "relu2_1": (1e-6, 8),
        "relu3_1": (1e-6, 4),
    }

    def __init__(self) -> None:
        super().__init__(Discriminator(32, 5, normalise=False), 2.0)

    def perceptual(self, images: Tensor, clean: Tensor) -> Tensor:
        """Perceptual and texture loss (N,); textures have a weight and the side of a patch in their pixels."""
        layers = [*self._POOLED, *self._TEXTURES]
        with torch.no_grad():
            wanted = [part.float() for part in self.features(clean, layers)]
            means = [part.mean().clamp_min(1e-6) for part in wanted]
        found = [part.float() for part in self.features(images, layers)]
        total = torch.zeros(len(images), device=images.device)
        for name, ours, theirs, mean in zip(layers, found, wanted, means, strict=True):
            ours, theirs = ours / mean, theirs / mean
            if name in self._POOLED:
                far = F.max_pool2d(ours, 2) - F.max_pool2d(theirs, 2)
                total = total + self._POOLED[name] * far.square().mean(dim=(1, 2, 3))
            else:
                weight, side = self._TEXTURES[name]
                far = _textures(ours, side) - _textures(theirs, side)
                total = total + weight * far.square().mean(dim=(1, 2, 3))
        return total


def _textures(maps: Tensor, side: int) -> Tensor:
    """Gram matrices (N, patches, C, C) of maps (N, C, H, W), in patches of side x side."""
    n, channels, height, width = maps.shape
    cut = maps[:, :, : height // side * side, : width // side * side]
    cells = cut.unfold(2, side, side).unfold(3, side, side)  # (N, C, rows, columns, side, side)
    cells = cells.permute(0, 2, 3, 1, 4, 5).reshape(n, -1, channels, side * side)
    return cells @ cells.transpose(2, 3)


LOSSES: dict[str, Callable[[], AdversarialLoss]] = {"srgan": SRGANLoss, "enhancenet": EnhanceNetLoss}
