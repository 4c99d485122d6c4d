"""3x3 convolutions by Winograd's minimal filtering, compiled for this processor by its C++ compiler.

A processor without bfloat16 trains in float32, where torch computes every product of a convolution. Winograd's
F(6x6, 3x3) (Lavin and Gray, CVPR 2016) needs a fifth of them: forwards, for the gradients of the images, and for
those of the filters. Results differ from torch's by rounding, some hundred-thousandths of the largest.
"""

from __future__ import annotations

import ctypes
import functools
import os
import shlex
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from restoration_env.errors import InvalidArgument, UnknownName
from restoration_env.workers import in_parallel

CONVOLUTIONS = ("direct", "winograd")
_SOURCE = Path(__file__).with_suffix(".cpp")
_OPTIONS = ("-O3", "-march=native", "-std=gnu++17", "-ffp-contract=fast", "-shared", "-fPIC")
_TILE, _PLACES = 6, 64  # results on a side, and products of a tile for a pair of channels, as in the source
_PIXELS = 1 << 14  # of a piece of what is done pixel by pixel
_PIECE = 484  # tiles: the order of sums does not depend on how many threads there are
_FILTER = (  # G of the paper: three weights to what eight pixels are multiplied by
    (1, 0, 0),
    (-2 / 9, -2 / 9, -2 / 9),
    (-2 / 9, 2 / 9, -2 / 9),
    (1 / 90, 1 / 45, 2 / 45),
    (1 / 90, -1 / 45, 2 / 45),
    (32 / 45, 16 / 45, 8 / 45),
    (32 / 45, -16 / 45, 8 / 45),
    (0, 0, 1),
)


class WinogradConv2d(nn.Conv2d):
    """A 3x3 convolution that computes float32 on a processor by Winograd's algorithm, and anything else as torch does.

    Made of those of a network by `with_winograd`; weights, names and copies are those of `torch.nn.Conv2d`.

    Attributes:
        rectifies: apply a rectifier to the input, which takes no time of its own.
        normalises: the batch normalisation to apply before that, if any, which then does nothing itself.
    """

    rectifies = False
    normalises: tuple[nn.BatchNorm2d, ...] = ()  # of one; a module as attribute would be a part of this one
    _transforms: tuple[Any, ...] = (None,)  # of the weights, behind what they were made of

    def forward(self, input: Tensor) -> Tensor:
        """Images (N, C, H, W) to (N, outputs, H, W)."""
        if not _computes(input):
            return super().forward(F.relu(input) if self.rectifies else input)
        images = input.contiguous(memory_format=torch.channels_last)
        norm = [(*_statistics(norm, images), norm.weight, norm.bias) for norm in self.normalises]
        given = (self.weight, self.bias, self.rectifies, *self._filters(), *sum(norm, ()))
        result: Tensor = _Convolution.apply(images, *given)
        return result

    @torch.no_grad()
    def _filters(self) -> tuple[Tensor, Tensor]:
        """The weights transformed, for results and for gradients; computed again when they have changed."""
        weight = self.weight
        state, *filters = self._transforms
        if state != (weight._version, weight.data_ptr()):
            filters = [_transformed(weight), _transformed(weight.flip(2, 3).transpose(0, 1))]
            self._transforms = ((weight._version, weight.data_ptr()), *filters)
        return filters[0], filters[1]


class _BatchNorm2d(nn.BatchNorm2d):
    """One that leaves its work to the convolution after it, where that computes by Winograd's algorithm."""

    def forward(self, input: Tensor) -> Tensor:
        return input if _computes(input) else super().forward(input)


def _computes(images: Tensor) -> bool:
    """Whether convolutions of these images are computed here, not by torch."""
    return images.device.type == "cpu" and images.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")


@torch.no_grad()
def _statistics(norm: nn.BatchNorm2d, images: Tensor) -> tuple[Tensor, Tensor, bool]:
    """Mean and inverse deviation (C,) to normalise by, and whether they are those of the images themselves."""
    kept_mean, kept_variance = norm.get_buffer("running_mean"), norm.get_buffer("running_var")
    if not norm.training:
        return kept_mean, (kept_variance + norm.eps).rsqrt(), False
    channels, count = images.shape[1], images[:, 0].numel()
    pieces = _split(count, _PIXELS)
    sums = torch.empty(len(pieces), 2, channels)
    calls = zip(sums, pieces, strict=True)
    list(in_parallel([partial(_library().moments, _address(images), _address(s), channels, *p) for s, p in calls]))
    mean, squares = sums.double().sum(0) / count
    variance = (squares - mean * mean).clamp_min(0.0)
    norm.get_buffer("num_batches_tracked").add_(1)
    kept_mean.lerp_(mean.float(), norm.momentum or 0.0)
    kept_variance.lerp_((variance * count / max(count - 1, 1)).float(), norm.momentum or 0.0)
    return mean.float(), (variance + norm.eps).rsqrt().float(), True


def check_convolutions(name: str) -> None:
    """Refuse what is no way to compute convolutions, and "winograd" where there is no compiler for it."""
    if name not in CONVOLUTIONS:
        raise UnknownName("convolutions", name, CONVOLUTIONS)
    if name == "winograd":
        _library()


def has_compiler() -> bool:
    """Whether there is a C++ compiler to compile it."""
    return _compiler() is not None


def with_winograd(network: nn.Module) -> None:
    """Let a network compute its 3x3 convolutions by Winograd's algorithm, where their channels allow it.

    Raises:
        InvalidArgument: if there is no C++ compiler, or it refuses the source.
    """
    lanes = _library().lanes()
    for module in network.modules():
        if type(module) is nn.Conv2d and _plain(module) and not (module.in_channels | module.out_channels) % lanes:
            module.__class__ = WinogradConv2d
    for row in network.modules():
        names = list(row._modules) if type(row) is nn.Sequential else []
        for place, (first, second) in enumerate(pairwise(names)):
            rectifier, conv = row.get_submodule(first), row.get_submodule(second)
            if isinstance(rectifier, nn.ReLU) and isinstance(conv, WinogradConv2d):
                conv.rectifies = True
                setattr(row, first, nn.Identity())
                norm = row.get_submodule(names[place - 1]) if place else None
                if type(norm) is nn.BatchNorm2d and norm.affine and norm.track_running_stats and norm.momentum:
                    norm.__class__ = _BatchNorm2d
                    conv.normalises = (norm,)


def _plain(conv: nn.Conv2d) -> bool:
    shape = (conv.kernel_size, conv.stride, conv.padding, conv.dilation)
    return shape == ((3, 3), (1, 1), (1, 1), (1, 1)) and conv.groups == 1 and conv.padding_mode == "zeros"


class _Convolution(torch.autograd.Function):
    """Of images, channels last, that are rectified or not, and normalised before or not.

    What they are normalised by is a function of them if ``batch``, and the gradients go through it.
    """

    @staticmethod
    def forward(
        ctx: Any,
        images: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        rectifies: bool,
        filters: Tensor,
        turned: Tensor,
        mean: Tensor | None = None,
        inverse: Tensor | None = None,
        batch: bool = False,
        gain: Tensor | None = None,
        offset: Tensor | None = None,
    ) -> Tensor:
        seen = _Seen(rectifies)
        if gain is not None and offset is not None and mean is not None and inverse is not None:
            seen = _Seen(rectifies, gain * inverse, offset - mean * gain * inverse)
        ctx.save_for_backward(images, turned, mean, inverse, seen.scale, seen.shift)
        ctx.rectifies, ctx.batch = rectifies, batch
        return _convolved(images, seen, filters, len(weight), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradients: Tensor) -> tuple[Tensor | None, ...]:
        images, turned, mean, inverse, scale, shift = ctx.saved_tensors
        gradients = gradients.contiguous(memory_format=torch.channels_last)
        needed, seen = ctx.needs_input_grad, _Seen(ctx.rectifies, scale, shift)
        of_weight = _correlated(images, seen, gradients) if needed[1] else None
        of_bias = gradients.sum((0, 2, 3)) if needed[2] else None
        if scale is None:
            others = images if ctx.rectifies else None
            of_images = _convolved(gradients, _Seen(), turned, images.shape[1], None, others) if needed[0] else None
            return of_images, of_weight, of_bias, *[None] * 8
        sums = torch.zeros(len(_pieces(images, len(turned))), 2, len(scale))
        of_images = _convolved(gradients, _Seen(), turned, len(scale), None, images, seen, sums)
        of_offset, mixed = sums.double().sum(0)
        of_gain = (mixed - mean * of_offset) * inverse
        count = images[:, 0].numel() if ctx.batch else torch.inf
        by_images = -scale * inverse * of_gain / count
        constant = -scale * of_offset / count - by_images * mean
        _blend(of_images, images, scale, by_images.float(), constant.float())
        return of_images, of_weight, of_bias, *[None] * 6, of_gain.float(), of_offset.float()


@dataclass(frozen=True)
class _Seen:
    """How a convolution sees images: rectified or not, and before that normalised by these (C,) or not."""

    rectified: bool = False
    scale: Tensor | None = None
    shift: Tensor | None = None

    def norm(self) -> list[int | None]:
        """The addresses of both."""
        return [_address(self.scale), _address(self.shift)]


def _convolved(
    images: Tensor,
    seen: _Seen,
    filters: Tensor,
    outputs: int,
    bias: Tensor | None,
    others: Tensor | None = None,
    seen_others: _Seen | None = None,
    sums: Tensor | None = None,
) -> Tensor:
    """Images (N, C, H, W), channels last, with transformed filters to (N, outputs, H, W), channels last.

    Results are zero where ``others``, of their shape, are not positive, as they are seen. If these are normalised,
    ``sums`` (pieces, 2, outputs), zeros, become those of the results and of their products with ``others``.
    """
    count, _, height, width = images.shape
    made = torch.empty(count, outputs, height, width, memory_format=torch.channels_last)
    bias = None if bias is None else bias.contiguous()
    given = (_address(images), seen.rectified, *seen.norm(), *map(_address, (filters, bias, others)))
    norm = (seen_others or _Seen()).norm()
    pieces = _pieces(images, outputs)
    parts = [None] * len(pieces) if sums is None else list(sums)
    calls = [
        partial(_library().convolve, *given, *norm, _address(part), _address(made), *piece)
        for part, piece in zip(parts, pieces, strict=True)
    ]
    list(in_parallel(calls))
    return made


def _blend(images: Tensor, others: Tensor, a: Tensor, b: Tensor, c: Tensor) -> None:
    """Images (N, C, H, W), channels last, become ``a * images + b * others + c``, with numbers (C,) of the channels."""
    count = images[:, 0].numel()
    given = (*map(_address, (images, others, a, b, c)), images.shape[1])
    list(in_parallel([partial(_library().blend, *given, *some) for some in _split(count, _PIXELS)]))


def _transformed(weight: Tensor) -> Tensor:
    """Weights (outputs, C, 3, 3) as filters (64, outputs / panel, C, panel)."""
    outputs, inputs = weight.shape[:2]
    panel = _library().panel(outputs)
    by_place = weight.reshape(outputs // panel, panel, inputs, 9).permute(3, 0, 2, 1)
    return (_both_sides() @ by_place.reshape(9, -1)).view(_PLACES, outputs // panel, inputs, panel)


def _correlated(images: Tensor, seen: _Seen, gradients: Tensor) -> Tensor:
    """The gradients (outputs, C, 3, 3) of the weights, of images and of the results' gradients, channels last."""
    inputs, outputs = images.shape[1], gradients.shape[1]
    panel = _library().panel(outputs)
    pieces = _pieces(images, outputs)
    made = torch.empty(len(pieces), _PLACES, outputs // panel, inputs, panel)
    given = (_address(images), seen.rectified, *seen.norm(), _address(gradients))
    calls = [
        partial(_library().correlate, *given, _address(part), *piece) for part, piece in zip(made, pieces, strict=True)
    ]
    list(in_parallel(calls))
    by_place = _both_sides().T @ made.sum(0).view(_PLACES, -1)
    return by_place.view(9, outputs // panel, inputs, panel).permute(1, 3, 2, 0).reshape(outputs, inputs, 3, 3)


def _both_sides() -> Tensor:
    """The transform of whole filters: nine weights to 64."""
    transform = torch.tensor(_FILTER)
    return torch.kron(transform, transform)


def _pieces(images: Tensor, outputs: int) -> list[tuple[int, ...]]:
    """What the compiled functions have to know of each piece of the work."""
    count, inputs, height, width = images.shape
    tiles = count * -(-height // _TILE) * -(-width // _TILE)
    return [(height, width, inputs, outputs, *ends) for ends in _split(tiles, _PIECE)]


def _split(count: int, most: int) -> list[tuple[int, int]]:
    """Where pieces of so many at most begin and end."""
    return list(pairwise([*range(0, count, most), count]))


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _compiler() -> str | None:
    return os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")


@functools.cache
def _library() -> ctypes.CDLL:
    """The compiled source; compiling takes about two seconds, once a process."""
    compiler = _compiler()
    if compiler is None:
        raise InvalidArgument("convolutions", '"direct" where there is no C++ compiler', '"winograd"')
    with tempfile.TemporaryDirectory() as folder:
        made = str(Path(folder) / "winograd.so")
        try:
            words = [*shlex.split(compiler), *_OPTIONS, "-o", made, str(_SOURCE)]
            subprocess.run(words, check=True, capture_output=True, text=True)
        except (OSError, subprocess.CalledProcessError) as error:
            why = getattr(error, "stderr", "") or str(error)
            raise InvalidArgument("convolutions", f'"direct" with a compiler like {compiler}', why.strip()) from error
        library = ctypes.CDLL(made)
    pointer, whether, number = ctypes.c_void_p, ctypes.c_bool, ctypes.c_long
    library.convolve.argtypes = [pointer, whether, *[pointer] * 9, *[number] * 6]
    library.correlate.argtypes = [pointer, whether, *[pointer] * 4, *[number] * 6]
    library.moments.argtypes = [pointer, pointer, *[number] * 3]
    library.blend.argtypes = [*[pointer] * 5, *[number] * 3]
    for function in (library.convolve, library.correlate, library.moments, library.blend):
        function.restype = None
    library.panel.argtypes, library.panel.restype = [number], number
    return library
