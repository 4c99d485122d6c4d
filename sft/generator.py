"""SFT-Net, the super-resolver by four (Wang, Yu, Dong and Loy, CVPR 2018, Section 3.3)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from restoration_env.errors import InvalidArgument, UnknownName
from restoration_env.sft.conditioning import ConditionNetwork, SFTLayer

UPSAMPLING = ("nearest", "pixel-shuffle")


class _ResidualBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.sft1, self.conv1 = SFTLayer(width), nn.Conv2d(width, width, 3, padding=1)
        self.sft2, self.conv2 = SFTLayer(width), nn.Conv2d(width, width, 3, padding=1)

    def forward(self, features: Tensor, conditions: Tensor) -> Tensor:
        x = F.relu(self.conv1(self.sft1(features, conditions)))
        return features + self.conv2(self.sft2(x, conditions))


class SFTNet(nn.Module):
    """Enlarges an image four times, textures guided by segmentation probabilities.

    Both published forms: "nearest" (nearest-neighbour upsampling and a convolution; 1,612,195 parameters) and
    "pixel-shuffle" (1,833,763), each at width 64 with 16 blocks.

    Args:
        upsampling: "nearest" or "pixel-shuffle".
        width: channels.
        blocks: residual blocks.
    """

    def __init__(self, upsampling: str = "nearest", width: int = 64, blocks: int = 16) -> None:
        super().__init__()
        if upsampling not in UPSAMPLING:
            raise UnknownName("upsampling", upsampling, UPSAMPLING)
        self.upsampling = upsampling
        self.condition = ConditionNetwork()
        self.first = nn.Conv2d(3, width, 3, padding=1)
        self.blocks = nn.ModuleList(_ResidualBlock(width) for _ in range(blocks))
        self.sft, self.middle = SFTLayer(width), nn.Conv2d(width, width, 3, padding=1)
        grown = width * (4 if upsampling == "pixel-shuffle" else 1)
        self.up = nn.ModuleList(nn.Conv2d(width, grown, 3, padding=1) for _ in range(2))
        self.detail = nn.Conv2d(width, width, 3, padding=1)
        self.last = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, images: Tensor, probabilities: Tensor) -> Tensor:
        """Enlarge by four.

        Args:
            images: float (N, 3, H, W) in [0, 1].
            probabilities: float (N, 8, 4H, 4W), the share of each category at each pixel.

        Returns:
            float (N, 3, 4H, 4W), not clipped.

        Raises:
            InvalidArgument: if the maps are not four times as large as the images.
        """
        if tuple(probabilities.shape[-2:]) != (4 * images.shape[-2], 4 * images.shape[-1]):
            expected = "four times as high and wide as the images"
            raise InvalidArgument("probabilities", expected, tuple(probabilities.shape[-2:]))
        conditions = self.condition(probabilities)
        shallow = self.first(images)
        x = shallow
        for block in self.blocks:
            x = block(x, conditions)
        x = shallow + self.middle(self.sft(x, conditions))
        for conv in self.up:
            x = self._double(x, conv)
        return self.last(F.relu(self.detail(x)))

    def _double(self, x: Tensor, conv: nn.Module) -> Tensor:
        if self.upsampling == "pixel-shuffle":
            return F.relu(F.pixel_shuffle(conv(x), 2))
        return F.relu(conv(F.interpolate(x, scale_factor=2.0, mode="nearest")))
