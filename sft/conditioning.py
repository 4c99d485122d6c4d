"""Spatial Feature Transform (Wang, Yu, Dong and Loy, CVPR 2018, Section 3.2)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from restoration_env.errors import InvalidArgument

CATEGORIES = ("background", "sky", "water", "grass", "mountain", "building", "plant", "animal")
CONDITIONS = 32  # channels of the shared conditions


class ConditionNetwork(nn.Module):
    """Segmentation probabilities to the conditions that all SFT layers share.

    Maps float (N, 8, 4H, 4W), probabilities at high resolution, to (N, 32, H, W), conditions at low resolution.
    """

    def __init__(self) -> None:
        super().__init__()
        widths = ((128, 128, 1), (128, 128, 1), (128, 128, 1), (128, CONDITIONS, 1))
        self.convs = nn.ModuleList([nn.Conv2d(len(CATEGORIES), 128, 4, stride=4)])
        self.convs.extend(nn.Conv2d(inputs, outputs, kernel) for inputs, outputs, kernel in widths)

    def forward(self, probabilities: Tensor) -> Tensor:
        """The conditions of a batch of probability maps.

        Raises:
            InvalidArgument: if the maps do not have eight channels or their sides are no multiples of four.
        """
        shape = tuple(probabilities.shape)
        if len(shape) != 4 or shape[1] != len(CATEGORIES) or shape[2] % 4 or shape[3] % 4:
            raise InvalidArgument("probabilities", "of shape (N, 8, H, W), H and W multiples of 4", shape)
        x = probabilities
        for conv in self.convs[:-1]:
            x = F.leaky_relu(conv(x), 0.1)
        return self.convs[-1](x)


class SFTLayer(nn.Module):
    """Scales and shifts every feature at every position: (1 + scale) * features + shift.

    Two branches of two 1x1 convolutions map the conditions to scale and shift. The paper writes gamma for
    1 + scale; the authors' later release predicts the difference to one, which begins near the identity.

    Args:
        width: channels of the features.
        conditions: channels of the conditions.
    """

    def __init__(self, width: int = 64, conditions: int = CONDITIONS) -> None:
        super().__init__()
        self.scale = nn.ModuleList((nn.Conv2d(conditions, conditions, 1), nn.Conv2d(conditions, width, 1)))
        self.shift = nn.ModuleList((nn.Conv2d(conditions, conditions, 1), nn.Conv2d(conditions, width, 1)))

    def modulation(self, conditions: Tensor) -> tuple[Tensor, Tensor]:
        """Gamma and beta, each (N, width, H, W), of conditions (N, 32, H, W)."""
        scale = self.scale[1](F.leaky_relu(self.scale[0](conditions), 0.1))
        shift = self.shift[1](F.leaky_relu(self.shift[0](conditions), 0.1))
        return 1.0 + scale, shift

    def forward(self, features: Tensor, conditions: Tensor) -> Tensor:
        """Features (N, width, H, W) modulated by conditions (N, 32, H, W)."""
        gamma, beta = self.modulation(conditions)
        return gamma * features + beta
