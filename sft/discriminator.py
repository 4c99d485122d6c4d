"""The discriminator of SFT-GAN: real or made, and of which category (Wang et al., CVPR 2018, Section 3.3)."""

from __future__ import annotations

from torch import Tensor, nn

from restoration_env.errors import InvalidArgument
from restoration_env.sft.conditioning import CATEGORIES


class Discriminator(nn.Module):
    """VGG-style, for patches of one size: pairs of 3x3 and of 4x4 with stride 2, batch normalisation but the first.

    10.8 million parameters at the published width and size.

    Args:
        width: channels of the first pair; doubled up to eight times that.
        side: of the patches in pixels, a multiple of 16.
    """

    def __init__(self, width: int = 64, side: int = 96) -> None:
        super().__init__()
        if side < 16 or side % 16:
            raise InvalidArgument("side", "a multiple of 16", side)
        self.side = side
        layers: list[nn.Module] = []
        inputs = 3
        for outputs in (width, 2 * width, 4 * width, 8 * width):
            for kernel, stride in ((3, 1), (4, 2)):
                layers.append(nn.Conv2d(inputs, outputs, kernel, stride, 1))
                if len(layers) > 1:
                    layers.append(nn.BatchNorm2d(outputs))
                layers.append(nn.LeakyReLU(0.1))
                inputs = outputs
        self.features = nn.Sequential(*layers)
        self.real = self._head(inputs * (side // 16) ** 2, 1)
        self.category = self._head(inputs * (side // 16) ** 2, len(CATEGORIES))

    @staticmethod
    def _head(inputs: int, outputs: int) -> nn.Sequential:
        return nn.Sequential(nn.Linear(inputs, 100), nn.LeakyReLU(0.1), nn.Linear(100, outputs))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of being real (N,) and of the categories (N, 8), of images (N, 3, side, side).

        Raises:
            InvalidArgument: for images of another size.
        """
        if tuple(images.shape[1:]) != (3, self.side, self.side):
            raise InvalidArgument("images", f"of shape (N, 3, {self.side}, {self.side})", tuple(images.shape))
        features = self.features(images).flatten(1)
        return self.real(features)[:, 0], self.category(features)
