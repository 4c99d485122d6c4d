"""What the generator and the discriminator are trained on (Wang et al., CVPR 2018, Section 3.3).

The perceptual loss is the mean absolute difference of a last convolution's features, before the ReLU. The paper's are
VGG19's, which torchvision publishes; VGG16's are a close stand-in that a package registry has, and AlexNet's come with
this package and cost a thirtieth. The weight of a stand-in is chosen so that its loss of a bicubic enlargement is 1,
so that it stands to the adversarial loss as the paper's does.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from restoration_env.errors import InvalidArgument, UnknownName
from restoration_env.perceptual import AlexFeatures, VGGFeatures

BACKGROUND = 0
_VGG19 = (64, 64, 0, 128, 128, 0, 256, 256, 256, 256, 0, 512, 512, 512, 512, 0, 512, 512, 512, 512)  # 0: pooling


class VGG19Features(nn.Module):
    """VGG19 up to conv5_4, before its ReLU, from the file that torchvision publishes.

    Args:
        path: ``vgg19-dcbb9e9d.pth``; nothing in it is executed.

    Raises:
        InvalidArgument: if there is no such file, or it holds something else.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        if not Path(path).is_file():
            expected = (
                "the file vgg19-dcbb9e9d.pth that torchvision publishes at https://download.pytorch.org/models/ "
                "(or train without it: --perceptual vgg16, alex or none)"
            )
            raise InvalidArgument("the weights of VGG19", expected, f"no {path}")
        layers: list[nn.Module] = []
        inputs = 3
        for width in _VGG19:
            if width:
                layers += [nn.Conv2d(inputs, width, 3, padding=1), nn.ReLU()]
                inputs = width
            else:
                layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers[:-1])
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            ours = self.state_dict()
            self.load_state_dict({name: state[name] for name in ours})
        except Exception as error:  # torch raises many kinds for a file that is not its own
            raise InvalidArgument("the weights of VGG19", "torchvision's", f"{path}: {error}") from None
        self.requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        """Features (N, 512, H / 16, W / 16) of images (N, 3, H, W) in [0, 1]."""
        mean = images.new_tensor((0.485, 0.456, 0.406)).view(3, 1, 1)
        std = images.new_tensor((0.229, 0.224, 0.225)).view(3, 1, 1)
        return self.features((images - mean) / std)


class _Layer(nn.Module):
    """One layer of a network that gives out many."""

    def __init__(self, network: nn.Module, layer: str) -> None:
        super().__init__()
        self.network, self.layer = network, layer

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images, [self.layer])[0]


_FEATURES: dict[str, Callable[[str], nn.Module]] = {
    "vgg19": VGG19Features,
    "vgg16": lambda path: _Layer(VGGFeatures(path or None), "conv5_3"),
    "alex": lambda path: _Layer(AlexFeatures(path or None), "conv5"),
}
PERCEPTUAL = (*_FEATURES, "none")


class PerceptualLoss(nn.Module):
    """The mean absolute difference of features.

    Args:
        features: "vgg19" (needs ``weights``), "vgg16", "alex", or "none" (always zero).
        weights: the file of the features' weights; "" for where `restoration_env.perceptual` keeps them.

    Raises:
        UnknownName: for other features.
        InvalidArgument: without the weights; the message says where they come from.
    """

    def __init__(self, features: str = "vgg16", weights: str = "") -> None:
        super().__init__()
        if features not in PERCEPTUAL:
            raise UnknownName("perceptual", features, PERCEPTUAL)
        self.network = None if features == "none" else _FEATURES[features](weights)
        self.scale = 1.0

    @torch.no_grad()
    def calibrate(self, images: Tensor, references: Tensor) -> None:
        """Choose the scale so that the loss of these images is 1, except for the paper's own features."""
        if self.network is not None and not isinstance(self.network, VGG19Features):
            self.scale /= max(1e-6, self(images, references).item())

    def hold_bfloat16(self) -> None:
        """Hold the weights as autocast would cast them anew in every step; from now on only called under it."""
        for parameter in self.parameters():
            parameter.data = parameter.data.bfloat16()
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, images: Tensor, references: Tensor) -> Tensor:
        """The loss, a scalar, of float (N, 3, H, W); gradients flow to the images only."""
        if self.network is None:
            return images.new_zeros(())
        with torch.no_grad():
            target = self.network(references)
        return self.scale * F.l1_loss(self.network(images).float(), target.float())


def adversarial_loss(logits: Tensor, real: bool) -> Tensor:
    """Binary cross-entropy of logits (N,) against all real or all made."""
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, float(real)))


def category_loss(logits: Tensor, categories: Tensor) -> Tensor:
    """Cross-entropy of logits (N, 8), images of the background category left out; zero if all are."""
    known = categories != BACKGROUND
    if not bool(known.any()):
        return logits.sum() * 0.0
    return F.cross_entropy(logits[known], categories[known])
