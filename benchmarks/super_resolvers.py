"""The super-resolvers that SFT-GAN is compared with (Wang et al., CVPR 2018, Section 4), by four.

Each maps float RGB (N, 3, h, w) in [0, 1] to (N, 3, 4h, 4w), not clipped. Five work on luma alone, as published: they
see and predict the Y of BT.601, and the colours come from bicubic interpolation. Four work on RGB. What the papers'
tables count as parameters is what `SPECS` holds beside each network, and a test compares. SFT-Net itself is there in
the width that ships, so that it can be trained under the budget of the others.

DRRN and MemNet are described with batch normalisation before each ReLU; here, as in their later re-implementations
and in the published counts, there is none.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from restoration_env.errors import UnknownName
from restoration_env.resizing import SCALE, bicubic
from restoration_env.sft.generator import SFTNet
from restoration_env.sft.segmenter import load_segmenter

_LUMA = (65.481 / 255, 128.553 / 255, 24.966 / 255)  # MATLAB's rgb2ycbcr: black is 16/255, white 235/255


def luma(images: Tensor) -> Tensor:
    """The Y of BT.601 in [16/255, 235/255], as MATLAB's ``rgb2ycbcr`` has it.

    Args:
        images: float (N, 3, H, W) in [0, 1].

    Returns:
        The same type, (N, 1, H, W).
    """
    red, green, blue = (weight * images[:, i : i + 1] for i, weight in enumerate(_LUMA))
    return red + green + blue + 16 / 255


def _conv(inputs: int, outputs: int, kernel: int = 3, *, bias: bool = True, edge: bool = False) -> nn.Conv2d:
    conv = nn.Conv2d(
        inputs, outputs, kernel, padding=kernel // 2, bias=bias, padding_mode="replicate" if edge else "zeros"
    )
    nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv


def _begin_at_zero(*convs: nn.Conv2d) -> None:
    """A network that adds to an interpolation begins as the interpolation."""
    for conv in convs:
        nn.init.zeros_(conv.weight)


class SuperResolver(nn.Module):
    """Enlarges float RGB (N, 3, h, w) in [0, 1] to (N, 3, 4h, 4w), not clipped. A subclass says how."""

    on_luma = False  # what is predicted and trained: the luma alone, or RGB

    def judged(self, images: Tensor) -> Tensor:
        """What of RGB images the network is trained on: their luma (N, 1, H, W), or all."""
        return luma(images) if self.on_luma else images


class LumaResolver(SuperResolver, ABC):
    """Predicts the luma; the colours are interpolated bicubically, which changes R, G and B by the same amount."""

    on_luma = True

    def forward(self, images: Tensor) -> Tensor:
        """Enlarge by four."""
        wide = bicubic(images, SCALE)
        interpolated = luma(wide)
        found = self.enlarge(luma(images), interpolated)
        return wide + (found - interpolated).to(wide.dtype) * (255 / 219)

    @abstractmethod
    def enlarge(self, small: Tensor, interpolated: Tensor) -> Tensor:
        """The luma (N, 1, 4h, 4w), from that of the image (N, 1, h, w) and its bicubic interpolation."""


class SRCNN(LumaResolver):
    """Three convolutions, 9-5-5 with 64 and 32 channels (Dong, Loy, He and Tang, TPAMI 2016). Luma.

    As in the authors' code, the image's outermost pixels go on beyond its border.
    """

    def __init__(self) -> None:
        super().__init__()
        shapes = ((1, 64, 9), (64, 32, 5), (32, 1, 5))
        self.convs = nn.ModuleList(_conv(*shape, edge=True) for shape in shapes)
        with torch.no_grad():  # begin as the identity, or minutes go by on learning to copy
            for conv in self.convs:
                nn.init.normal_(conv.get_parameter("weight"), std=0.01)
                first = conv.get_parameter("weight")[0]
                first.zero_()
                first[0, first.shape[1] // 2, first.shape[2] // 2] = 1.0

    def enlarge(self, small: Tensor, interpolated: Tensor) -> Tensor:
        """The luma (N, 1, 4h, 4w)."""
        x = interpolated
        for conv in self.convs[:-1]:
            x = F.relu(conv(x))
        return self.convs[-1](x)


class VDSR(LumaResolver):
    """Twenty convolutions of 64 channels that predict what bicubic lacks (Kim, Lee and Lee, CVPR 2016). Luma."""

    def __init__(self) -> None:
        super().__init__()
        widths = (1, *(64,) * 19, 1)
        self.convs = nn.ModuleList(_conv(a, b) for a, b in itertools.pairwise(widths))
        _begin_at_zero(self.convs[-1])  # type: ignore[arg-type]

    def enlarge(self, small: Tensor, interpolated: Tensor) -> Tensor:
        """The luma (N, 1, 4h, 4w)."""
        x = interpolated
        for conv in self.convs[:-1]:
            x = F.relu(conv(x))
        return interpolated + self.convs[-1](x)


class LapSRN(LumaResolver):
    """A Laplacian pyramid: two levels of ten convolutions, each doubles (Lai, Huang, Ahuja, Yang, CVPR 2017). Luma.

    The paper's count, 812 thousand, has the transposed 4x4 convolutions of the features as 3x3; this has what the
    text describes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.first = _conv(1, 64, bias=False)
        self.levels = nn.ModuleList(
            nn.ModuleList(
                [*(_conv(64, 64, bias=False) for _ in range(10)), nn.ConvTranspose2d(64, 64, 4, 2, 1, bias=False)]
            )
            for _ in range(2)
        )
        self.image_up = nn.ModuleList(nn.ConvTranspose2d(1, 1, 4, 2, 1, bias=False) for _ in range(2))
        self.residual = nn.ModuleList(_conv(64, 1, bias=False) for _ in range(2))
        tent = torch.tensor((0.25, 0.75, 0.75, 0.25))
        with torch.no_grad():  # both kinds of transposed convolution begin as bilinear interpolation, as published
            for up, level in zip(self.image_up, self.levels, strict=True):
                up.get_parameter("weight").copy_(torch.outer(tent, tent))
                weight = level[-1].weight  # type: ignore[index]
                weight.zero_()
                weight[range(64), range(64)] = torch.outer(tent, tent)
        _begin_at_zero(*self.residual)

    def enlarge(self, small: Tensor, interpolated: Tensor) -> Tensor:
        """The luma (N, 1, 4h, 4w)."""
        x, image = F.leaky_relu(self.first(small), 0.2), small
        for level, up, residual in zip(self.levels, self.image_up, self.residual, strict=True):
            for conv in level:  # type: ignore[attr-defined]
                x = F.leaky_relu(conv(x), 0.2)
            image = up(image) + residual(x)
        return image


class DRRN(LumaResolver):
    """One recursive block of nine residual units that share their weights, B1U9 (Tai, Yang, Liu, CVPR 2017). Luma."""

    def __init__(self, units: int = 9) -> None:
        super().__init__()
        self.units = units
        self.entry = _conv(1, 128, bias=False)
        self.conv1, self.conv2 = _conv(128, 128, bias=False), _conv(128, 128, bias=False)
        self.last = _conv(128, 1, bias=False)
        with torch.no_grad():
            self.conv2.weight.mul_(0.1)  # added nine times
        _begin_at_zero(self.last)

    def enlarge(self, small: Tensor, interpolated: Tensor) -> Tensor:
        """The luma (N, 1, 4h, 4w)."""
        entry = self.entry(interpolated)
        x = entry
        for _ in range(self.units):  # every unit adds to the output of the entry, not to the unit before
            x = entry + self.conv2(F.relu(self.conv1(F.relu(x))))
        return interpolated + self.last(F.relu(x))


class _MemoryBlock(nn.Module):
    """Six recursions of one residual unit; a gate of 1x1 chooses among them and all earlier memories."""

    def __init__(self, earlier: int, recursions: int = 6, width: int = 64) -> None:
        super().__init__()
        self.recursions = recursions
        self.conv1, self.conv2 = _conv(width, width, bias=False), _conv(width, width, bias=False)
        with torch.no_grad():
            self.conv2.weight.mul_(0.1)
        self.gate = _conv((recursions + earlier) * width, width, 1, bias=False)

    def forward(self, memories: list[Tensor]) -> Tensor:
        x, short = memories[-1], list[Tensor]()
        for _ in range(self.recursions):
            x = x + self.conv2(F.relu(self.conv1(F.relu(x))))
            short.append(x)
        return self.gate(F.relu(torch.cat((*short, *memories), 1)))


class MemNet(LumaResolver):
    """Six memory blocks of six recursions, M6R6, all of whose predictions are averaged with learned weights.

    Tai, Yang, Liu and Xu, ICCV 2017: densely connected, multi-supervised. Luma.
    """

    def __init__(self, blocks: int = 6) -> None:
        super().__init__()
        self.first = _conv(1, 64, bias=False)
        self.blocks = nn.ModuleList(_MemoryBlock(earlier + 1) for earlier in range(blocks))
        self.last = _conv(64, 1, bias=False)
        self.shares = nn.Parameter(torch.full((blocks,), 1.0 / blocks))
        _begin_at_zero(self.last)

    def enlarge(self, small: Tensor, interpolated: Tensor) -> Tensor:
        """The luma (N, 1, 4h, 4w)."""
        memories = [self.first(interpolated)]
        correction = torch.zeros_like(interpolated)
        for share, block in zip(self.shares, self.blocks, strict=True):
            memories.append(block(memories))
            correction = correction + share * self.last(F.relu(memories[-1]))
        return interpolated + correction


class SRResNet(SuperResolver):
    """SRGAN's generator: sixteen residual blocks with batch normalisation, sub-pixel upsampling. RGB.

    Ledig et al., CVPR 2017, Figure 4. PReLU with one slope a layer. The image's range here is [0, 1], and what is
    predicted is what bicubic lacks: in an hour on a processor that is worth more than a decibel.
    """

    def __init__(self, blocks: int = 16) -> None:
        super().__init__()

        def block() -> nn.Sequential:
            return nn.Sequential(
                _conv(64, 64), nn.BatchNorm2d(64), nn.PReLU(), _conv(64, 64), nn.BatchNorm2d(64)
            )  # fmt: skip

        self.first, self.prelu = _conv(3, 64, 9), nn.PReLU()
        self.blocks = nn.ModuleList(block() for _ in range(blocks))
        self.middle, self.norm = _conv(64, 64), nn.BatchNorm2d(64)
        self.up = nn.ModuleList(
            nn.Sequential(_conv(64, 256), nn.PixelShuffle(2), nn.PReLU()) for _ in range(2)
        )  # fmt: skip
        self.last = _conv(64, 3, 9)
        _begin_at_zero(self.last)

    def forward(self, images: Tensor) -> Tensor:
        """Enlarge by four."""
        shallow = self.prelu(self.first(images))
        x = shallow
        for block in self.blocks:
            x = x + block(x)
        x = shallow + self.norm(self.middle(x))
        for up in self.up:
            x = up(x)
        return bicubic(images, SCALE) + self.last(x)


class EnhanceNet(SuperResolver):
    """Ten residual blocks and nearest-neighbour upsampling, added to bicubic (Sajjadi et al., ICCV 2017). RGB."""

    def __init__(self, blocks: int = 10) -> None:
        super().__init__()
        self.first = _conv(3, 64)
        self.blocks = nn.ModuleList(
            nn.Sequential(_conv(64, 64), nn.ReLU(), _conv(64, 64)) for _ in range(blocks)
        )  # fmt: skip
        with torch.no_grad():
            for block in self.blocks:
                block.get_parameter("2.weight").mul_(0.1)
        self.up = nn.ModuleList(_conv(64, 64) for _ in range(2))
        self.detail, self.last = _conv(64, 64), _conv(64, 3)
        _begin_at_zero(self.last)

    def forward(self, images: Tensor) -> Tensor:
        """Enlarge by four."""
        x = F.relu(self.first(images))
        for block in self.blocks:
            x = x + block(x)
        for up in self.up:
            x = F.relu(up(F.interpolate(x, scale_factor=2.0, mode="nearest")))
        return bicubic(images, SCALE) + self.last(F.relu(self.detail(x)))


class SFTNetWithSegmenter(SuperResolver):
    """SFT-Net of a width that a processor trains, told what is where by the segmenter that ships. RGB.

    Wang et al., CVPR 2018; 32 channels and 8 blocks where the paper has 64 and 16, added to bicubic. The segmenter
    learns nothing here, and is neither counted nor written.
    """

    def __init__(self) -> None:
        super().__init__()
        self.network = SFTNet(width=32, blocks=8, on_bicubic=True)
        for parameter in self.network.last.parameters():
            nn.init.zeros_(parameter)

    def forward(self, images: Tensor) -> Tensor:
        """Enlarge by four."""
        segmenter = load_segmenter(None, images.device)
        with torch.no_grad():
            maps = segmenter(bicubic(images.float(), SCALE).clamp(0.0, 1.0))
        return self.network(images, maps)


@dataclass(frozen=True)
class ResolverSpec:
    """One row of the table.

    Attributes:
        name: what commands call it.
        title: how tables name it.
        build: makes the network.
        published: parameters, in thousands, as the papers' tables have them.
        losses: what it is trained for after the pixels: "" for nothing, or a name of
            `restoration_env.benchmarks.super_resolution_losses.LOSSES`.
        crop: side of its training patches at high resolution: about what its paper took.
    """

    name: str
    title: str
    build: Callable[[], SuperResolver]
    published: float
    losses: str = ""
    crop: int = 96


SPECS = {
    spec.name: spec
    for spec in (
        ResolverSpec("srcnn", "SRCNN", SRCNN, 57, crop=36),
        ResolverSpec("vdsr", "VDSR", VDSR, 665, crop=40),
        ResolverSpec("lapsrn", "LapSRN", LapSRN, 812, crop=96),
        ResolverSpec("drrn", "DRRN", DRRN, 297, crop=32),
        ResolverSpec("memnet", "MemNet", MemNet, 677, crop=32),
        ResolverSpec("srresnet", "SRResNet", SRResNet, 1_543),
        ResolverSpec("srgan", "SRGAN", SRResNet, 1_543, losses="srgan"),
        ResolverSpec("enhancenet-e", "EnhanceNet-E", EnhanceNet, 850),
        ResolverSpec("enhancenet", "EnhanceNet", EnhanceNet, 850, losses="enhancenet"),
        ResolverSpec("sft-net", "SFT-Net, same budget", SFTNetWithSegmenter, 329),
    )
}


def specification(name: str) -> ResolverSpec:
    """A row of the table.

    Raises:
        UnknownName: if there is none of this name.
    """
    if name not in SPECS:
        raise UnknownName("super-resolver", name, SPECS)
    return SPECS[name]


def build_resolver(name: str) -> SuperResolver:
    """A fresh network of the table.

    Raises:
        UnknownName: if there is none of this name.
    """
    return specification(name).build()
