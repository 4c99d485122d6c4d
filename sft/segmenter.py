"""What is where: photographs to the share of each category at each pixel.

SFT-GAN (Wang et al., CVPR 2018, Section 3.1) segments the bicubic-enlarged low-resolution image with a ResNet-101 and
conditions the super-resolver on the probabilities, not on the winners. `ResNetSegmenter` is that network; the light
one that ships, `LiteSegmenter`, has twelve times fewer parameters.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from restoration_env.errors import InvalidArgument, UnknownName
from restoration_env.files import read_weights
from restoration_env.sft.backbone import WIDTHS, LiteBackbone
from restoration_env.sft.conditioning import CATEGORIES

WEIGHTS = Path(__file__).parent / "weights"
SMALLEST = 16  # pixels on the shorter side of what is segmented


class LiteSegmenter(nn.Module):
    """A feature pyramid on EfficientNet-Lite0: float (N, 3, H, W) to logits (N, categories, H / 8, W / 8).

    Args:
        categories: how many.
        width: channels of the pyramid.
    """

    def __init__(self, categories: int = len(CATEGORIES), width: int = 96) -> None:
        super().__init__()
        self.backbone = LiteBackbone()
        self.lateral = nn.ModuleList(nn.Conv2d(channels, width, 1) for channels in WIDTHS)
        self.scene = nn.Conv2d(WIDTHS[-1], width, 1)  # what kind of scene it is, the same everywhere
        self.smooth = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
        self.classify = nn.Conv2d(width, categories, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of a batch in [0, 1]."""
        fine, *coarse = self.backbone(images)
        fine = F.avg_pool2d(fine, 2, ceil_mode=True, count_include_pad=False)
        maps = [lateral(x) for lateral, x in zip(self.lateral, (fine, *coarse), strict=True)]
        x = maps[3] + self.scene(coarse[-1].mean((2, 3), keepdim=True))
        x = maps[2] + F.interpolate(x, maps[2].shape[-2:], mode="bilinear")
        x = F.relu(self.smooth[0](F.relu(x)))
        x = maps[1] + maps[0] + F.interpolate(x, maps[1].shape[-2:], mode="bilinear")
        return self.classify(F.relu(self.smooth[1](F.relu(x))))


class _Unit(nn.Sequential):
    """Convolution, batch normalisation and, unless told otherwise, ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, dilation: int = 1, relu: bool = True):
        padding = dilation * (kernel // 2)
        conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, bias=False)
        super().__init__(conv, nn.BatchNorm2d(outputs), *([nn.ReLU(inplace=True)] if relu else []))


class _Bottleneck(nn.Module):
    def __init__(self, inputs: int, width: int, stride: int, dilation: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _Unit(inputs, width, 1),
            _Unit(width, width, 3, stride, dilation),
            _Unit(width, 4 * width, 1, relu=False),
        )
        same = stride == 1 and inputs == 4 * width
        self.shortcut = nn.Identity() if same else _Unit(inputs, 4 * width, 1, stride, relu=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.shortcut(x) + self.body(x))


class ResNetSegmenter(nn.Module):
    """The paper's form: ResNet-101 with output stride 8 by dilation, 52 million parameters.

    Maps float (N, 3, H, W) to logits (N, categories, H / 8, W / 8). A stem of three 3x3 convolutions, stages of 3, 4,
    23 and 3 bottlenecks of which the last two are dilated by 2 and 4, and a head of 3x3 and 1x1.

    Args:
        categories: how many.
    """

    def __init__(self, categories: int = len(CATEGORIES)) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            _Unit(3, 64, 3, 2), _Unit(64, 64, 3), _Unit(64, 128, 3), nn.MaxPool2d(3, stride=2, padding=1)
        )
        stages, inputs = [], 128
        for blocks, width, stride, dilation in ((3, 64, 1, 1), (4, 128, 2, 1), (23, 256, 1, 2), (3, 512, 1, 4)):
            for number in range(blocks):
                stages.append(_Bottleneck(inputs, width, stride if number == 0 else 1, dilation))
                inputs = 4 * width
        self.stages = nn.Sequential(*stages)
        self.head = nn.Sequential(_Unit(inputs, 512, 3), nn.Dropout(0.1), nn.Conv2d(512, categories, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Logits of a batch in [0, 1]."""
        mean = images.new_tensor((0.485, 0.456, 0.406)).view(3, 1, 1)
        std = images.new_tensor((0.229, 0.224, 0.225)).view(3, 1, 1)
        return self.head(self.stages(self.stem((images - mean) / std)))


NETWORKS: dict[str, Callable[[int], nn.Module]] = {"lite": LiteSegmenter, "resnet101": ResNetSegmenter}


def build_segmenter(network: str, categories: int) -> nn.Module:
    """A fresh network by name: "lite" or "resnet101"."""
    if network not in NETWORKS:
        raise UnknownName("network", network, NETWORKS)
    return NETWORKS[network](categories)


class Segmenter:
    """A trained network and the names of its categories."""

    def __init__(self, network: nn.Module, categories: Sequence[str]) -> None:
        self.network = network.eval().requires_grad_(False)
        self.categories = tuple(categories)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """The share of each category at each pixel.

        Args:
            images: float (N, 3, H, W) in [0, 1], at least 16 pixels high and wide. For super-resolution, the
                bicubic-enlarged low-resolution images.

        Returns:
            float32 (N, categories, H, W), which sums to one over the categories.

        Raises:
            InvalidArgument: for images of another shape or smaller ones.
        """
        shape = tuple(images.shape)
        if len(shape) != 4 or shape[1] != 3 or min(shape[2:]) < SMALLEST:
            expected = f"of shape (N, 3, H, W), at least {SMALLEST} pixels high and wide"
            raise InvalidArgument("images", expected, shape)
        logits = self.network(images.contiguous(memory_format=torch.channels_last)).float()
        return F.interpolate(logits, shape[2:], mode="bilinear").softmax(1)


def load_segmenter(weights: str | os.PathLike[str] | None = None, device: torch.device | str = "cpu") -> Segmenter:
    """A trained segmenter: the light one that ships, or the file that ``restoration-env train segmenter`` wrote.

    Raises:
        InvalidArgument: if there is no such file, or it holds no segmenter.
    """
    path = WEIGHTS / "segmenter.safetensors" if weights is None else Path(weights)
    return _loaded(str(path), path.stat().st_mtime_ns if path.is_file() else 0, str(device))


# The time of change is part of what is asked for, so a changed file is read again.
@lru_cache(maxsize=4)
def _loaded(path: str, changed: int, device: str) -> Segmenter:
    tensors, card = read_weights(path)
    categories: Any = card.get("categories")
    if card.get("network") not in NETWORKS or not isinstance(categories, list):
        raise InvalidArgument("weights", "those of a segmenter", path)
    network = build_segmenter(card["network"], len(categories))
    network.load_state_dict({name: t.float() if t.is_floating_point() else t for name, t in tensors.items()})
    return Segmenter(network.to(device).to(memory_format=torch.channels_last), categories)  # type: ignore[call-overload]
