"""The two tool networks of RL-Restore (Yu et al., CVPR 2018, Table 1), as in the released checkpoints."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from restoration_env.errors import UnknownName


def _conv(inputs: int, outputs: int, kernel: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)


class ThreeLayer(nn.Module):
    """Three convolutions that predict the correction of a mildly damaged image. 21,827 parameters.

    Maps float (N, 3, H, W) to the same shape; zero padding, output not clipped.
    """

    halo = 8  # pixels on each side that one output pixel depends on
    cost = 21_776  # multiply-adds per pixel

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = _conv(3, 32, 9)
        self.conv2 = _conv(32, 16, 5)
        self.conv3 = _conv(16, 3, 5)

    def residual(self, images: Tensor) -> Tensor:
        """The correction (N, 3, H, W) that `forward` adds to the images."""
        return self.conv3(F.relu(self.conv2(F.relu(self.conv1(images), inplace=True)), inplace=True))

    def forward(self, images: Tensor) -> Tensor:
        """The images plus their correction; the sum is taken in the images' own precision."""
        return images + self.residual(images).to(images.dtype)


class EightLayer(nn.Module):
    """Eight convolutions with two pre-activation residual blocks, for strong damage. 50,851 parameters.

    Maps float (N, 3, H, W) to the same shape; zero padding, output not clipped.
    """

    halo = 8
    cost = 50_560

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = _conv(3, 64, 5)
        self.squeeze = _conv(64, 32, 1)
        self.block1 = nn.ModuleList((_conv(32, 32, 3), _conv(32, 32, 3)))
        self.block2 = nn.ModuleList((_conv(32, 32, 3), _conv(32, 32, 3)))
        self.expand = _conv(32, 64, 1)
        self.conv8 = _conv(64, 3, 5)

    def residual(self, images: Tensor) -> Tensor:
        """The correction (N, 3, H, W) that `forward` adds to the images."""
        features = self.squeeze(F.relu(self.conv1(images), inplace=True))
        for first, second in (self.block1, self.block2):
            features = features + second(F.relu(first(F.relu(features)), inplace=True))
        return self.conv8(F.relu(self.expand(features), inplace=True))

    def forward(self, images: Tensor) -> Tensor:
        """The images plus their correction; the sum is taken in the images' own precision."""
        return images + self.residual(images).to(images.dtype)


NETWORKS: dict[str, Callable[[], ThreeLayer | EightLayer]] = {"3-layer": ThreeLayer, "8-layer": EightLayer}


def build_network(name: str) -> ThreeLayer | EightLayer:
    """A fresh network by name: "3-layer" or "8-layer"."""
    if name not in NETWORKS:
        raise UnknownName("network", name, NETWORKS)
    return NETWORKS[name]()
