"""Channels of a plain network that are never active: counting them, and giving them a new life.

A rectifier whose input is negative for every image passes no gradient, so the filter before it no longer learns: the
network is narrower than it was meant to be, whatever its parameters say (Lu et al., Dying ReLU and Initialization,
CiCP 2020). Revived as in ReDo (Sokar et al., The Dormant Neuron Phenomenon, ICML 2023, Section 4), a channel gets new
incoming weights and zeros as outgoing ones: what the network computes stays as it was, and training can use the channel
again. In the same way a wider network can begin as a narrower one, its further channels dead at first (as in Net2Net,
Chen, Goodfellow and Shlens, ICLR 2016). New weights are scaled by what they answer to images, as in LSUV (Mishkin and
Matas, All You Need Is a Good Init, ICLR 2016): so strongly as the layer's living channels, and active at half of the
pixels or so.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from restoration_env.benchmarks.networks import ConvolutionStack
from restoration_env.errors import InvalidArgument

_DEAD = 1e-4  # share of the pixels: a channel that is active at fewer does nothing that can be seen


def is_plain(network: nn.Module) -> TypeGuard[ConvolutionStack]:
    """Whether a network is a stack of convolutions without normalisation, the only kind that is looked into here."""
    return isinstance(network, ConvolutionStack) and not any(
        isinstance(module, nn.BatchNorm2d) for module in network.modules()
    )


@torch.no_grad()
def dead_channels(network: ConvolutionStack, images: Tensor) -> list[int]:
    """How many channels are dead after each rectifier, first layer first.

    Args:
        network: a plain stack (`is_plain`).
        images: float (N, 3, H, W) in [0, 1], to look with.
    """
    counts = []
    for convolution in _rectified(network):
        images = F.relu(_answers(convolution, images))
        counts.append(int(_dead(images).sum()))
    return counts


@torch.no_grad()
def revive(network: ConvolutionStack, images: Tensor, generator: torch.Generator) -> int:
    """Give every dead channel new incoming weights, and zeros as outgoing ones.

    What the network makes of these images changes by no more than what channels that are active at less than one pixel
    in ten thousand add to it; if they are never active, it does not change.

    Args:
        network: a plain stack (`is_plain`), changed in place.
        images: float (N, 3, H, W) in [0, 1], to look with.
        generator: of the new weights, on the processor.

    Returns:
        How many channels were dead.
    """
    revived = 0
    convolutions = [*_rectified(network), network.tail]
    for convolution, following in pairwise(convolutions):
        answers = _answers(convolution, images)
        dead = _dead(F.relu(answers))
        if dead.any():
            strength = answers[:, ~dead].std() if not dead.all() else answers.new_ones(())
            _renew(convolution, dead, images, strength, generator)
            following.weight[:, dead] = 0.0
            answers = _answers(convolution, images)
            revived += int(dead.sum())
        images = F.relu(answers)
    return revived


@torch.no_grad()
def widen(network: ConvolutionStack, narrower: Mapping[str, Tensor]) -> None:
    """Let a network begin as a narrower one: what it computes is the same, and its further channels are dead.

    Args:
        network: a plain stack (`is_plain`), changed in place.
        narrower: the weights of a plain stack of as many layers and no more channels.

    Raises:
        InvalidArgument: if the weights are of no such stack.
    """
    own = network.state_dict()
    fits = set(own) == set(narrower) and all(
        len(value.shape) == len(own[name].shape)
        and all(few <= many for few, many in zip(value.shape, own[name].shape, strict=True))
        for name, value in narrower.items()
    )
    if not fits:
        raise InvalidArgument("start", "weights of a network of as many layers and no more channels", "others")
    for name, value in narrower.items():
        own[name].zero_()[tuple(slice(size) for size in value.shape)] = value


def _rectified(network: ConvolutionStack) -> list[nn.Conv2d]:
    inner = [module for module in network.inner if isinstance(module, nn.Conv2d)]
    return [network.head, *inner]


def _answers(convolution: nn.Conv2d, images: Tensor) -> Tensor:
    return F.conv2d(images, convolution.weight, convolution.bias, padding=1)


def _dead(features: Tensor) -> Tensor:
    return (features > 0).float().mean(dim=(0, 2, 3)) < _DEAD


def _renew(
    convolution: nn.Conv2d, channels: Tensor, images: Tensor, strength: Tensor, generator: torch.Generator
) -> None:
    """New filters for these channels: random, then shifted and scaled so that their answers have mean 0."""
    shape = (int(channels.sum()), *convolution.weight.shape[1:])
    filters = torch.randn(shape, generator=generator).to(convolution.weight)
    answers = F.conv2d(images, filters, padding=1)
    scale = strength / answers.std(dim=(0, 2, 3)).clamp_min(1e-12)
    convolution.weight[channels] = filters * scale.view(-1, 1, 1, 1)
    assert convolution.bias is not None
    convolution.bias[channels] = -scale * answers.mean(dim=(0, 2, 3))
