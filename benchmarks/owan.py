"""The published OWAN, one network that weighs eight operations forty times, from the authors' weights.

Suganuma, Liu and Okatani, "Attention-Based Adaptive Selection of Operations for Image Restoration in the Presence
of Unknown Combined Distortions", CVPR 2019, Section 3. The weights are not part of this project:
``model_best.pth`` is the authors' state dict (MIT licence), trained on RL-Restore's data.
"""

from __future__ import annotations

import hashlib
import pickle
import re
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from restoration_env.benchmarks.networks import SingleTool
from restoration_env.errors import InvalidArgument
from restoration_env.toolbox import Tool

WIDTH, GROUPS, STEPS, OPERATIONS = 16, 10, 4, 8

# The authors' names, and ours for the same tensors. Their layers are attention and group by turns.
_NAMES = (
    (r"^FEB\.0\.", lambda found: "head."),
    (r"^FEB\.(\d+)\.conv([12])\.", lambda found: f"blocks.{int(found[1]) - 1}.conv{found[2]}."),
    (r"^layers\.(\d+)\.ca_fc\.", lambda found: f"groups.{int(found[1]) // 2}.attention."),
    (r"^layers\.(\d+)\.preprocess\.op\.0\.", lambda found: f"groups.{int(found[1]) // 2}.enter."),
    (
        r"^layers\.(\d+)\._ops\.(\d+)\._ops\.(\d+)\.op\.",
        lambda found: f"groups.{int(found[1]) // 2}.steps.{found[2]}.convolutions.{found[3]}.",
    ),
    (r"^layers\.(\d+)\._ops\.(\d+)\._out\.0\.", lambda found: f"groups.{int(found[1]) // 2}.steps.{found[2]}.mix."),
    (r"^conv2\.", lambda found: "tail."),
)


def _depthwise(kernel: int, dilation: int = 1) -> nn.Conv2d:
    reach = dilation * (kernel // 2)
    return nn.Conv2d(WIDTH, WIDTH, kernel, padding=reach, dilation=dilation, groups=WIDTH, bias=False)


class _Scale(nn.Module):
    """A depth-wise 1x1 convolution: a factor for each channel."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(WIDTH, 1, 1, 1))

    def forward(self, features: Tensor) -> Tensor:
        """Features (N, 16, H, W) to the same shape."""
        return features * self.weight.view(WIDTH, 1, 1)


def _pointwise(inputs: int = WIDTH) -> nn.Conv2d:
    return nn.Conv2d(inputs, WIDTH, 1, bias=False)


class _Block(nn.Module):
    """A residual block of two depth-wise convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = _depthwise(3), _depthwise(3)

    def forward(self, features: Tensor) -> Tensor:
        """Features (N, 16, H, W) to the same shape."""
        return F.relu(features + self.conv2(F.relu(self.conv1(features))))


class _Step(nn.Module):
    """Eight operations side by side, each scaled by its attention, mixed and added to what came in."""

    def __init__(self) -> None:
        super().__init__()
        separable = [
            nn.Sequential(first, _pointwise(), nn.ReLU(), second, _pointwise())
            for first, second in ((_Scale(), _Scale()), *((_depthwise(k), _depthwise(k)) for k in (3, 5, 7)))
        ]
        dilated = [nn.Sequential(_depthwise(k, dilation=2), _pointwise()) for k in (3, 5, 7)]
        self.convolutions = nn.ModuleList((*separable, *dilated))
        self.mix = _pointwise(OPERATIONS * WIDTH)

    def forward(self, features: Tensor, attention: Tensor) -> Tensor:
        """Features (N, 16, H, W) and attention (N, 8) to features."""
        results = [operation(features) for operation in self.convolutions]
        results.append(F.avg_pool2d(features, 3, stride=1, padding=1, count_include_pad=False))
        weights = attention[..., None, None, None].unbind(1)
        scaled = torch.cat([result * weight for result, weight in zip(results, weights, strict=True)], 1)
        return F.relu(features + F.relu(self.mix(scaled)))


class _Group(nn.Module):
    """An attention layer that looks at the features once, and the four steps it decides on."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.Sequential(nn.Linear(WIDTH, 64), nn.ReLU(), nn.Linear(64, STEPS * OPERATIONS))
        self.enter = _pointwise()
        self.steps = nn.ModuleList(_Step() for _ in range(STEPS))

    def forward(self, features: Tensor) -> Tensor:
        """Features (N, 16, H, W) to the same shape."""
        attention = self.attention(features.mean((2, 3))).view(-1, STEPS, OPERATIONS).softmax(2)
        features = F.relu(self.enter(features))
        for step, weights in zip(self.steps, attention.unbind(1), strict=True):
            features = step(features, weights)
        return features


class OWAN(nn.Module):
    """The Operation-wise Attention Network: float (N, 3, H, W) to the same shape, not clipped. 391,456 parameters.

    The attention averages over the whole image, so a tile of a photograph is not treated as the photograph is.

    Attributes:
        cost: multiply-adds per pixel of the convolutions. The attention adds 30,720 for each image, whatever its size;
            scaling by it and average pooling are not counted.
        halo: pixels on each side that an output pixel depends on, beside the attention.
    """

    cost = 359_776
    halo = 250

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, WIDTH, 3, padding=1, bias=False)
        self.blocks = nn.Sequential(*(_Block() for _ in range(4)))
        self.groups = nn.Sequential(*(_Group() for _ in range(GROUPS)))
        self.tail = nn.Conv2d(WIDTH, 3, 3, padding=1, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        """Restore float (N, 3, H, W) in [0, 1]."""
        return self.tail(self.groups(self.blocks(self.head(images))))


class _Swapped(nn.Module):
    """OWAN on images with height and width swapped, as its training data are and its authors' test code does."""

    def __init__(self, network: OWAN) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images.transpose(-1, -2)).transpose(-1, -2)


def load_owan(path: str | Path, *, device: torch.device | str = "cpu", precision: str = "float32") -> SingleTool:
    """The authors' network, as a policy with a toolbox of one tool.

    Blue and red must not be exchanged (0.2 dB); height and width swapped or not makes no difference that 144 patches
    show, and is as the authors do it.

    Args:
        path: the authors' ``model_best.pth``, a state dict; nothing in the file is executed.
        device: where it computes.
        precision: "float32" or "bfloat16".

    Raises:
        InvalidArgument: if the file is missing or does not hold the weights.
    """
    expected = "the path of the authors' model_best.pth"
    try:
        content = Path(path).read_bytes()
        state = torch.load(path, map_location="cpu", weights_only=True)
        network = OWAN()
        network.load_state_dict({_renamed(name): value for name, value in state.items()})
    except (OSError, RuntimeError, EOFError, AttributeError, pickle.UnpicklingError) as error:
        why = str(error).partition("\n")[0]
        raise InvalidArgument("owan", expected, f"{path}: {why}") from None
    swapped = _Swapped(network.eval().requires_grad_(False)).to(device)
    card = {"name": "owan", "licence": "MIT", "sha256": hashlib.sha256(content).hexdigest()}
    description = "the published Operation-wise Attention Network"
    policy = SingleTool(Tool("owan", description, swapped, OWAN.cost, OWAN.halo, precision), card)
    policy.name = "published OWAN"
    return policy


def _renamed(name: str) -> str:
    """Our name of a tensor of the authors'."""
    for pattern, ours in _NAMES:
        if re.match(pattern, name):
            return re.sub(pattern, ours, name)
    return name
