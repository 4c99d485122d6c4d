"""SFT-Net, the super-resolver by four (Wang, Yu, Dong and Loy, CVPR 2018, Section 3.3), and its rivals.

One generator, and one switch for how it is told what is where: the paper's spatial feature transform, the three other
ways it compares with (Section 4.3), or not at all.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from restoration_env.errors import InvalidArgument, UnknownName
from restoration_env.resizing import SCALE, bicubic
from restoration_env.sft.conditioning import CATEGORIES, ConditionNetwork, SFTLayer

UPSAMPLING = ("nearest", "pixel-shuffle")
CONDITIONING = {
    "sft": "spatial feature transform: scales and shifts every feature at every position",
    "film": "feature-wise linear modulation: the same for the whole image, from the mean conditions",
    "concat": "the maps as further channels of the input",
    "compositional": "a convolution for each category, mixed by the maps",
    "none": "nothing is known about what is where",
}


class _ResidualBlock(nn.Module):
    def __init__(self, width: int, modulated: bool) -> None:
        super().__init__()
        self.sft1 = SFTLayer(width) if modulated else None
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.sft2 = SFTLayer(width) if modulated else None
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, features: Tensor, conditions: Tensor | None) -> Tensor:
        x = F.relu(self.conv1(_modulated(self.sft1, features, conditions)))
        return features + self.conv2(_modulated(self.sft2, x, conditions))


def _modulated(layer: nn.Module | None, features: Tensor, conditions: Tensor | None) -> Tensor:
    return features if layer is None else layer(features, conditions)


class SFTNet(nn.Module):
    """Enlarges an image four times, textures guided by segmentation probabilities.

    Both published forms: "nearest" (nearest-neighbour upsampling and a convolution; 1,612,195 parameters) and
    "pixel-shuffle" (1,833,763), each at width 64 with 16 blocks.

    Args:
        upsampling: "nearest" or "pixel-shuffle".
        width: channels.
        blocks: residual blocks.
        conditioning: a name of `CONDITIONING`.
        on_bicubic: add the output to the bicubic enlargement, from which small networks get further in a short
            training; the published ones do not.
    """

    def __init__(
        self,
        upsampling: str = "nearest",
        width: int = 64,
        blocks: int = 16,
        conditioning: str = "sft",
        on_bicubic: bool = False,
    ) -> None:
        super().__init__()
        if upsampling not in UPSAMPLING:
            raise UnknownName("upsampling", upsampling, UPSAMPLING)
        if conditioning not in CONDITIONING:
            raise UnknownName("conditioning", conditioning, CONDITIONING)
        self.upsampling, self.conditioning, self.on_bicubic = upsampling, conditioning, on_bicubic
        modulated = conditioning in ("sft", "film")
        self.condition = ConditionNetwork() if modulated else None
        self.first = nn.Conv2d(3, width, 3, padding=1)
        self.blocks = nn.ModuleList(_ResidualBlock(width, modulated) for _ in range(blocks))
        self.sft = SFTLayer(width) if modulated else None
        self.middle = nn.Conv2d(width, width, 3, padding=1)
        self.told: nn.Module | None = None  # what concatenated maps, or each category, add to these two
        if conditioning == "concat":
            self.told = nn.Conv2d(len(CATEGORIES), width, 3, padding=1, bias=False)
        elif conditioning == "compositional":
            self.told = nn.Conv2d(width, len(CATEGORIES) * width, 3, padding=1)
        grown = width * (4 if upsampling == "pixel-shuffle" else 1)
        self.up = nn.ModuleList(nn.Conv2d(width, grown, 3, padding=1) for _ in range(2))
        self.detail = nn.Conv2d(width, width, 3, padding=1)
        self.last = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, images: Tensor, probabilities: Tensor, scene: Tensor | None = None) -> Tensor:
        """Enlarge by four.

        Args:
            images: float (N, 3, H, W) in [0, 1].
            probabilities: float (N, 8, 4H, 4W), the share of each category at each pixel.
            scene: for FiLM, of images that are parts of larger ones: the mean conditions of these, (N, 32, 1, 1).

        Returns:
            float (N, 3, 4H, 4W), not clipped.

        Raises:
            InvalidArgument: if the maps are not four times as large as the images.
        """
        if tuple(probabilities.shape[-2:]) != (SCALE * images.shape[-2], SCALE * images.shape[-1]):
            expected = "four times as high and wide as the images"
            raise InvalidArgument("probabilities", expected, tuple(probabilities.shape[-2:]))
        conditions = self.conditions(probabilities, scene)
        told, shallow = self.told, self.first(images)
        if told is not None and self.conditioning == "concat":
            shallow = shallow + told(F.avg_pool2d(probabilities, SCALE))
        x = shallow
        for block in self.blocks:
            x = block(x, conditions)
        x = _modulated(self.sft, x, conditions)
        deep = self.middle(x)
        if told is not None and self.conditioning == "compositional":
            shares = F.avg_pool2d(probabilities, SCALE)
            deep = deep + (told(x).unflatten(1, (len(CATEGORIES), -1)) * shares[:, :, None]).sum(1)
        x = shallow + deep
        for conv in self.up:
            x = self._double(x, conv)
        x = self.last(F.relu(self.detail(x)))
        return x.float() + bicubic(images, SCALE) if self.on_bicubic else x

    def conditions(self, probabilities: Tensor, scene: Tensor | None = None) -> Tensor | None:
        """What the modulation layers see, float (N, 32, H, W), or None for a network without them.

        FiLM's are the same everywhere, (N, 32, 1, 1): the ``scene``, as `forward` gets it, or the mean of the maps'.
        """
        if self.condition is None:
            return None
        if self.conditioning == "film" and scene is not None:
            return scene
        conditions: Tensor = self.condition(probabilities)
        return conditions.mean((2, 3), keepdim=True) if self.conditioning == "film" else conditions

    def _double(self, x: Tensor, conv: nn.Module) -> Tensor:
        if self.upsampling == "pixel-shuffle":
            return F.relu(F.pixel_shuffle(conv(x), 2))
        return F.relu(conv(F.interpolate(x, scale_factor=2.0, mode="nearest")))

    @staticmethod
    def is_inserted(name: str) -> bool:
        """Whether a parameter belongs to the conditioning, of whatever kind, and not to the generator itself."""
        return name.startswith(("condition.", "told.")) or "sft" in name

    @torch.no_grad()
    def begin_from(self, weights: Mapping[str, Tensor]) -> None:
        """Take over a network of the same sizes, whose conditioning may be another; what is new changes nothing yet.

        So are conditions inserted into a trained generator (Section 3.4): modulation begins as the identity, and what
        concatenated maps or categories add begins as zero.

        Raises:
            InvalidArgument: for weights of another width, number of blocks or upsampling.
        """
        new = [*self.told.parameters()] if self.told is not None else []
        for layer in (m for m in self.modules() if isinstance(m, SFTLayer)):
            new += [*layer.scale[1].parameters(), *layer.shift[1].parameters()]
        for parameter in new:
            nn.init.zeros_(parameter)
        ours = self.state_dict()
        for name, value in weights.items():
            place = ours.get(name)
            if place is None:
                continue
            if place.shape != value.shape:
                raise InvalidArgument("start", f"a network with {tuple(place.shape)} at {name}", tuple(value.shape))
            place.copy_(value)
        missing = [name for name in ours if name not in weights and not self.is_inserted(name)]
        if missing:
            raise InvalidArgument("start", f"a network with {missing[0]}", "none")
