"""Single networks to hold toolchains against: those of the paper, one as large, and one as costly as a toolchain.

RL-Restore (Yu et al., CVPR 2018, Section 4.2) is compared with DnCNN, VDSR and a smaller VDSR. To these come a plain
residual network as large as a toolbox and a modern one as costly as a toolchain, of the blocks of the modern tools: a
toolchain that is worth its agent should not lose to one network of its own size or cost.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from restoration_env.agents.policies import FixedChain
from restoration_env.errors import InvalidArgument, UnknownName, check_at_least
from restoration_env.files import read_weights
from restoration_env.toolbox import Tool, Toolbox
from restoration_env.tools.networks import GateUNet, ToolNetwork, begin_gently, restorer

# Multiply-adds per pixel of the agent "toolchain-modern" and its tools, mean of the three severities.
MEAN_TOOLCHAIN = 121_400


def _conv(inputs: int, outputs: int, *, bias: bool = True) -> nn.Conv2d:
    """A 3x3 convolution with He et al.'s first weights: twenty layers without normalisation need them."""
    conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=bias)
    nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv


class ConvolutionStack(ToolNetwork):
    """Convolutions of 3x3 one after the other, ReLU between them, that predict the correction of an image.

    VDSR (Kim, Lee and Lee, CVPR 2016) without batch normalisation, DnCNN (Zhang et al., TIP 2017) with it, both on
    RGB. DnCNN subtracts what it predicts; here it is added, which only turns the last layer's sign. Zero padding,
    output not clipped.

    Args:
        layers: convolutions, the first and the last included.
        width: channels between them.
        normalise: batch normalisation after all but the first and the last.
    """

    def __init__(self, layers: int, width: int, *, normalise: bool = False) -> None:
        super().__init__()
        self.head = _conv(3, width)
        inner: list[nn.Module] = []
        for _ in range(layers - 2):
            norm = [nn.BatchNorm2d(width)] if normalise else []
            inner += [_conv(width, width, bias=not normalise), *norm, nn.ReLU(inplace=True)]
        self.inner = nn.Sequential(*inner)
        self.tail = _conv(width, 3)
        begin_gently(self)
        self.cost = 9 * (6 * width + (layers - 2) * width**2)
        self.halo = layers

    def residual(self, images: Tensor) -> Tensor:
        """The correction (N, 3, H, W) that `forward` adds to the images."""
        return self.tail(self.inner(F.relu(self.head(images), inplace=True)))


class ResidualStack(ToolNetwork):
    """Residual blocks of two 3x3 convolutions without normalisation, as in EDSR (Lim et al., CVPRW 2017, Section 3.1).

    Zero padding, output not clipped.

    Args:
        blocks: residual blocks.
        width: their channels.
    """

    def __init__(self, blocks: int, width: int) -> None:
        super().__init__()
        self.head = _conv(3, width)
        self.first = nn.ModuleList(_conv(width, width) for _ in range(blocks))
        self.second = nn.ModuleList(_conv(width, width) for _ in range(blocks))
        self.tail = _conv(width, 3)
        for conv in self.second:
            nn.init.zeros_(conv.get_parameter("weight"))  # begin as the identity
        begin_gently(self)
        self.cost = 9 * (6 * width + 2 * blocks * width**2)
        self.halo = 2 + 2 * blocks

    def residual(self, images: Tensor) -> Tensor:
        """The correction (N, 3, H, W) that `forward` adds to the images."""
        features = self.head(images)
        for first, second in zip(self.first, self.second, strict=True):
            features = features + second(F.relu(first(features), inplace=True))
        return self.tail(features)


def equal_multiply_adds(multiply_adds: float = MEAN_TOOLCHAIN) -> GateUNet:
    """A gated U-Net of the width, a multiple of four, that comes nearest to so many multiply-adds per pixel.

    Raises:
        InvalidArgument: for fewer multiply-adds than the narrowest of these networks has.
    """
    check_at_least(restorer(4).cost, multiply_adds=multiply_adds)
    width = 4
    while abs(restorer(width + 4).cost - multiply_adds) <= abs(restorer(width).cost - multiply_adds):
        width += 4
    return restorer(width)


@dataclass(frozen=True)
class NetworkSpec:
    """One row of the table: a network, what it is, and how it is built."""

    name: str
    description: str
    build: Callable[..., ToolNetwork]


# The paper gives VDSR-s by its size alone: it is VDSR's depth here, with fewer channels. The size of a toolbox,
# 448 thousand parameters, is that of the single network in an independent re-implementation, which beat its
# toolchains; the twelve published tools have 436,068 and their agent 87,863.
NETWORKS = {
    spec.name: spec
    for spec in (
        NetworkSpec("dncnn", "DnCNN, 20 layers", lambda: ConvolutionStack(20, 64, normalise=True)),
        NetworkSpec("vdsr", "VDSR, 20 layers", lambda: ConvolutionStack(20, 64)),
        NetworkSpec("vdsr-s", "VDSR, 20 layers of 36 channels", lambda: ConvolutionStack(20, 36)),
        NetworkSpec("equal-parameters", "as many parameters as a toolbox", lambda: ResidualStack(6, 64)),
        NetworkSpec("equal-multiply-adds", "as many multiply-adds as a mean toolchain", equal_multiply_adds),
    )
}


def build_network(name: str, multiply_adds: float | None = None) -> ToolNetwork:
    """A fresh network of the table.

    Args:
        name: "dncnn", "vdsr", "vdsr-s", "equal-parameters" or "equal-multiply-adds".
        multiply_adds: per pixel, of "equal-multiply-adds" alone; None is `MEAN_TOOLCHAIN`.

    Raises:
        UnknownName: if there is none of this name.
        InvalidArgument: for multiply-adds of a network that has its own.
    """
    if name not in NETWORKS:
        raise UnknownName("network", name, NETWORKS)
    if multiply_adds is None:
        return NETWORKS[name].build()
    if name != "equal-multiply-adds":
        raise InvalidArgument("multiply_adds", "left out for every network but equal-multiply-adds", multiply_adds)
    return NETWORKS[name].build(multiply_adds)


class SingleTool(FixedChain):
    """One tool, applied once to every image, as a policy: how a single network enters a comparison.

    Attributes:
        toolbox: holds the tool alone, under its name.
        card: what trained it, or an empty dictionary.
        parameters: of the tool, or None if it has none to count.
    """

    def __init__(self, tool: Tool, card: Mapping[str, Any] | None = None) -> None:
        self.toolbox, self.card = Toolbox(tool.name, [tool]), dict(card or {})
        super().__init__(self.toolbox, [tool.name])
        function = tool.function
        self.parameters = sum(p.numel() for p in function.parameters()) if isinstance(function, nn.Module) else None


def load_single(path: str | Path, *, device: torch.device | str = "cpu", precision: str = "float32") -> SingleTool:
    """A trained single network, from its safetensors file with the card beside it.

    Raises:
        InvalidArgument: if the weights are missing, changed, or of no network of the table.
    """
    tensors, card = read_weights(path)
    name = card.get("network", "")
    cost = card.get("multiply_adds_per_pixel") if name == "equal-multiply-adds" else None
    network = build_network(name, cost)  # of the cost it was trained with, whatever the default is now
    if {name: value.shape for name, value in tensors.items()} != {
        name: value.shape for name, value in network.state_dict().items()
    }:
        raise InvalidArgument("weights", f"of the network {card['network']} that their card names", path)
    network.load_state_dict(tensors)
    network = network.eval().requires_grad_(False).to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    spec = NETWORKS[card["network"]]
    return SingleTool(Tool(spec.name, spec.description, network, network.cost, network.halo, precision), card)
