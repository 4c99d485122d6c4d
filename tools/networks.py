"""The networks of the tools: RL-Restore's two (Yu et al., CVPR 2018, Table 1), and two modern ones of the same cost."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from restoration_env.errors import UnknownName


def _conv(inputs: int, outputs: int, kernel: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)


class ToolNetwork(nn.Module, ABC):
    """Predicts the correction of a damaged image: float (N, 3, H, W) to the same shape, not clipped.

    Attributes:
        cost: multiply-adds per pixel.
        halo: pixels on each side that one output pixel depends on.
        grid: pixels after which what the network does repeats; 1 if it treats all alike.
    """

    cost: int
    halo: int
    grid = 1

    @abstractmethod
    def residual(self, images: Tensor) -> Tensor:
        """The correction (N, 3, H, W) that `forward` adds to the images."""

    def forward(self, images: Tensor) -> Tensor:
        """The images plus their correction; the sum is taken in the images' own precision."""
        return images + self.residual(images).to(images.dtype)


class ThreeLayer(ToolNetwork):
    """Three convolutions that predict the correction of a mildly damaged image. 21,827 parameters.

    Maps float (N, 3, H, W) to the same shape; zero padding, output not clipped.
    """

    halo = 8
    cost = 21_776

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = _conv(3, 32, 9)
        self.conv2 = _conv(32, 16, 5)
        self.conv3 = _conv(16, 3, 5)

    def residual(self, images: Tensor) -> Tensor:
        """The correction (N, 3, H, W) that `forward` adds to the images."""
        return self.conv3(F.relu(self.conv2(F.relu(self.conv1(images), inplace=True)), inplace=True))


class EightLayer(ToolNetwork):
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


# What decides by the tensors at hand is one step for `torch.fx`, which traces networks without any.
@fx.wrap
def _dense(features: Tensor) -> Tensor:
    """Features for a sigmoid: where memory is dense a processor takes several in bfloat16 at once."""
    return features.clone() if features.dtype == torch.bfloat16 and features.device.type == "cpu" else features


@fx.wrap
def _extended(images: Tensor, grid: int) -> Tensor:
    """Images (N, C, H, W), extended by their last pixels to sides that are multiples of a grid."""
    down, right = (-side % grid for side in images.shape[-2:])
    return F.pad(images, (0, right, 0, down), mode="replicate") if down or right else images


class GateBlock(nn.Module):
    """A residual block in which one half of the features decides how much of the other half passes.

    The gate of NAFNet (Chen et al., ECCV 2022), with a sigmoid, because the bare product diverged, and behind a
    full 3x3 convolution, because a processor runs those nearer its limit than depthwise ones.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.both = _conv(channels, 2 * channels, 3)
        self.mix = _conv(channels, channels, 1)
        for parameter in self.mix.parameters():
            nn.init.zeros_(parameter)  # begin as the identity

    def forward(self, features: Tensor) -> Tensor:
        """Features (N, channels, H, W) to the same shape."""
        left, right = self.both(features).chunk(2, 1)
        return features + self.mix(left * torch.sigmoid(_dense(right)))


class GateUNet(ToolNetwork):
    """Gate blocks at half and at quarter resolution: five times the reach of `EightLayer` for its cost.

    The image is folded two by two into channels, so that a multiply-add serves four pixels. Sides that are not
    multiples of four are extended by their last pixels. Zero padding inside, output not clipped.

    Args:
        half: channels at half resolution.
        quarter: channels at quarter resolution.
        blocks: gate blocks before, at and after quarter resolution.
    """

    grid = 4

    def __init__(self, half: int, quarter: int, blocks: tuple[int, int, int]) -> None:
        super().__init__()
        before, middle, after = blocks
        self.head = _conv(12, half, 3)
        self.before = nn.Sequential(*(GateBlock(half) for _ in range(before)))
        self.down = nn.Conv2d(half, quarter, 2, stride=2)
        self.middle = nn.Sequential(*(GateBlock(quarter) for _ in range(middle)))
        self.up = _conv(quarter, 4 * half, 1)
        self.after = nn.Sequential(*(GateBlock(half) for _ in range(after)))
        self.tail = _conv(half, 12, 3)
        gate = 19  # 2 * 3x3 + 1x1 weights of a gate block, per channel squared
        in_half = (before + after) * gate * half**2 + 2 * 9 * 12 * half
        in_quarter = middle * gate * quarter**2 + 2 * 4 * half * quarter
        self.cost = in_half // 4 + in_quarter // 16
        self.halo = 2 * (2 + before + after) + 4 * middle + 3

    def features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """What is seen at half resolution, (N, half, H/2, W/2), and then at a quarter, (N, quarter, H/4, W/4)."""
        shallow = self.before(self.head(F.pixel_unshuffle(_extended(images, 4), 2)))
        return shallow, self.middle(self.down(shallow))

    def residual(self, images: Tensor) -> Tensor:
        """The correction (N, 3, H, W) that `forward` adds to the images."""
        height, width = images.shape[-2:]
        shallow, deep = self.features(images)
        features = self.after(shallow + F.pixel_shuffle(self.up(deep), 2))
        return F.pixel_shuffle(self.tail(features), 2)[..., :height, :width]


def restorer(width: int) -> GateUNet:
    """A gated U-Net for damage of every kind at once, of so many channels at half resolution, which begins gently."""
    network = GateUNet(width, 2 * width, (2, 6, 3))
    begin_gently(network)
    return network


def begin_gently(network: nn.Module) -> None:
    """Begin as the identity that looks at contrast only, so that early steps wreck nothing.

    The last convolution begins at zero, and the first ones' filters sum to zero, so that the brightness of
    an image, by far its largest component and of no use to a tool, does not drown the rest.
    """
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    for parameter in convolutions[-1].parameters():
        nn.init.zeros_(parameter)
    with torch.no_grad():
        first = convolutions[0].weight
        first -= first.mean(dim=(2, 3), keepdim=True)


NETWORKS: dict[str, Callable[[], ToolNetwork]] = {
    "3-layer": ThreeLayer,
    "8-layer": EightLayer,
    "modern-small": lambda: GateUNet(32, 64, (0, 2, 1)),
    "modern-large": lambda: GateUNet(32, 64, (2, 5, 2)),
}


def build_network(name: str) -> ToolNetwork:
    """A fresh network by name: "3-layer", "8-layer", "modern-small" or "modern-large"."""
    if name not in NETWORKS:
        raise UnknownName("network", name, NETWORKS)
    return NETWORKS[name]()
