"""Convolutions with few outputs, written so that a processor's vector units stay full.

A unit computes 16 output channels at once, whether they are needed or not, so the last convolution of a tool,
which has three, wastes four fifths of its work. A k x k convolution with three outputs is also a k x 1 convolution
with 3 k outputs, one for each column of the kernel, and a sum of those, each shifted to its place.
"""

from __future__ import annotations

import copy
from typing import cast

import torch
from torch import Tensor, nn

_WIDTH = 16  # output channels that a vector unit computes together


class FoldedConv(nn.Module):
    """The same function as a convolution with few outputs, by the columns of its kernel.

    Args:
        conv: stride 1, zero padding that keeps the size, kernel of odd height and width.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        outputs, inputs, height, width = conv.weight.shape
        self.columns = nn.Conv2d(inputs, width * outputs, (height, 1), padding=(height // 2, 0), bias=False)
        self.shifts = nn.Conv2d(
            width * outputs, outputs, (1, width), padding=(0, width // 2), bias=conv.bias is not None
        )
        place = torch.eye(outputs)[:, None, :, None] * torch.eye(width)[None, :, None, :]  # 1 at column and shift
        with torch.no_grad():
            self.columns.weight.copy_(conv.weight.permute(3, 0, 1, 2).reshape(-1, inputs, height, 1))
            self.shifts.weight.copy_(place.reshape(outputs, width * outputs, 1, width))
            if conv.bias is not None:
                cast("Tensor", self.shifts.bias).copy_(conv.bias)

    def forward(self, features: Tensor) -> Tensor:
        """Features (N, C, H, W) to (N, outputs, H, W)."""
        return self.shifts(self.columns(features))


def folded(network: nn.Module) -> nn.Module:
    """A copy of a network for inference, its convolutions with few outputs folded; it computes the same."""
    network = copy.deepcopy(network).requires_grad_(False).eval()
    for name, layer in list(network.named_modules()):
        if isinstance(layer, nn.Conv2d) and _worth_it(layer):
            parent, _, last = name.rpartition(".")
            where = layer.weight
            replaced = FoldedConv(layer).to(where.device, where.dtype).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            setattr(network.get_submodule(parent), last, replaced.requires_grad_(False).eval())
    return network


def _worth_it(conv: nn.Conv2d) -> bool:
    height, width = conv.kernel_size
    plain = conv.stride == (1, 1) and conv.dilation == (1, 1) and conv.groups == 1 and conv.padding_mode == "zeros"
    odd = height % 2 == width % 2 == 1 and conv.padding == (height // 2, width // 2)
    return plain and odd and width > 1 and conv.out_channels * width <= _WIDTH
