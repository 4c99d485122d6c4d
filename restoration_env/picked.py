"""Convolutions whose weights every image picks for itself, on a GPU: tools without grouping images by tool.

A Triton kernel computes a tile of one image with the weights of the tool that this image chose, read on the device.
An image that chose another architecture, or to stop, costs a kernel's first instruction and nothing more. So there is
no sorting, no padding of groups, no waiting for the actions, and a step of any number of images is a few launches.
Rectifiers and sums beside a convolution are computed with it, in its accumulators.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from restoration_env.devices import has_kernels, kernels
from restoration_env.fusion import Fusible, only_convolutions, with_convolutions

_SMALLEST = 16  # the least channels a tensor core multiplies at once


def can_pick(networks: Sequence[nn.Module]) -> bool:
    """Whether `Picked` can compute these: on a GPU with Triton, all weights in plain convolutions."""
    on_gpu = all(p.is_cuda for network in networks for p in network.parameters())
    return on_gpu and has_kernels() and knows(networks[0])


def knows(network: nn.Module) -> bool:
    """Whether all weights of a network are in convolutions that `PickedConv2d` computes, and it has no other state."""
    convolutions = only_convolutions(network)
    return bool(convolutions) and all(_known(conv) for conv in convolutions)


def _known(conv: nn.Conv2d) -> bool:
    square = conv.kernel_size[0] == conv.kernel_size[1] and conv.stride[0] == conv.stride[1]
    plain = conv.groups == 1 and conv.dilation == (1, 1) and conv.padding_mode == "zeros" and conv.bias is not None
    return square and plain and not isinstance(conv.padding, str) and conv.padding[0] == conv.padding[1]


class Picked:
    """Networks of one architecture as one, whose images pick their weights. For inference; the weights are copies.

    Args:
        networks: which `knows`, of one architecture.
        dtype: what the convolutions multiply and return, bfloat16 or float32; they sum in float32.
    """

    def __init__(self, networks: Sequence[nn.Module], dtype: torch.dtype = torch.bfloat16) -> None:
        self._shared = _Shared()

        def of_all(name: str, _: nn.Conv2d) -> PickedConv2d:
            same = [cast(nn.Conv2d, network.get_submodule(name)) for network in networks]
            return PickedConv2d(same, self._shared, dtype)

        self.network = with_convolutions(networks[0], of_all)

    def __call__(self, which: Tensor, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) after network ``which``, int32 (N,); where that is negative the result is arbitrary."""
        self._shared.which = which
        return cast(Tensor, self.network(images))


class _Shared:
    """What all convolutions of a network read: which weights each image picks."""

    which: Tensor


class PickedConv2d(Fusible):
    """A convolution with one of several weights for each image.

    Args:
        convolutions: of one shape.
        shared: which of them each image picks.
        dtype: what it multiplies and returns; it sums in float32.
    """

    weights: Tensor
    biases: Tensor

    def __init__(self, convolutions: Sequence[nn.Conv2d], shared: _Shared, dtype: torch.dtype) -> None:
        super().__init__()
        first = convolutions[0]
        self._shared, self.dtype = shared, dtype
        self.outputs, self.inputs, self.kernel = first.out_channels, first.in_channels, first.kernel_size[0]
        self.stride, self.padding = first.stride[0], int(first.padding[0])
        weights = torch.stack([conv.weight.detach().float() for conv in convolutions])  # (T, O, I, K, K)
        biases = torch.stack([cast(Tensor, conv.bias).detach().float() for conv in convolutions])
        self.register_buffer("weights", self._arranged(weights).to(dtype), persistent=False)
        more = _power(self.outputs) - self.outputs
        self.register_buffer("biases", F.pad(biases, (0, more)).contiguous(), persistent=False)

    @property
    def packed(self) -> bool:
        """Whether a whole row of the kernel, all channels of it, is multiplied at once: where channels are few."""
        return self.inputs < _SMALLEST

    def _arranged(self, weights: Tensor) -> Tensor:
        """(T, O, I, K, K) to (T, products, terms of each, O), both ends padded to powers of two."""
        tools = len(weights)
        taps = weights.permute(0, 3, 4, 2, 1)  # (T, K, K, I, O)
        terms = taps.flatten(2, 3) if self.packed else taps.flatten(1, 2)
        terms = terms.reshape(tools, -1, terms.shape[-2], self.outputs)
        more, wider = _power(terms.shape[2]) - terms.shape[2], _power(self.outputs) - self.outputs
        return F.pad(terms, (0, wider, 0, more)).contiguous()

    def forward(self, images: Tensor, added: Tensor | None = None) -> Tensor:
        """The convolution of images (N, I, H, W), plus ``added``: (N, O, H', W'), channels last."""
        height, width = ((side + 2 * self.padding - self.kernel) // self.stride + 1 for side in images.shape[-2:])
        made = torch.empty(
            (len(images), self.outputs, height, width),
            dtype=torch.float32 if self.exact else self.dtype,
            device=images.device,
            memory_format=torch.channels_last,
        )
        high, wide = (8, 32) if width > 16 else (16, 16)
        tiles_wide = -(-width // wide)
        tiles = -(-height // high) * tiles_wide
        extra = made if added is None else added
        kernels().picked_convolution[(tiles * len(images),)](
            images, self.weights, self.biases, self._shared.which, extra, made,
            images.shape[2], images.shape[3], height, width, tiles, tiles_wide,
            *images.stride(), *extra.stride(), *made.stride(),
            INPUTS=self.inputs, OUTPUTS=self.outputs, KERNEL=self.kernel, STRIDE=self.stride, PADDING=self.padding,
            TERMS=self.weights.shape[2], WIDE_OUTPUTS=self.weights.shape[3],
            PACKED=self.packed, ADDED=added is not None, RECTIFIES=self.rectifies, RECTIFIED=self.rectified,
            HIGH=high, WIDE=wide, num_warps=8,
        )  # fmt: skip
        return made


def _power(number: int) -> int:
    """The least power of two that is no less, and no less than what a tensor core multiplies."""
    return max(_SMALLEST, 1 << (number - 1).bit_length())
