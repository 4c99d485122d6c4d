"""3x3 convolutions by Winograd's minimal filtering, compiled for this processor by its C++ compiler.

A processor without bfloat16 trains in float32, where torch computes every product of a convolution. Winograd's
F(6x6, 3x3) (Lavin and Gray, CVPR 2016) needs a fifth of them: forwards, for the gradients of the images, and for
those of the filters. Results differ from torch's by rounding, about a hundred-thousandth of the largest.
"""

from __future__ import annotations

import ctypes
import functools
import os
import shlex
import shutil
import subprocess
import tempfile
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
_TILE = 6  # results on a side, as in the source
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
    """

    rectifies = False
    _seen: tuple[Any, ...] = (None,)

    def forward(self, input: Tensor) -> Tensor:
        """Images (N, C, H, W) to (N, outputs, H, W)."""
        if input.device.type != "cpu" or input.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
            return super().forward(F.relu(input) if self.rectifies else input)
        result: Tensor = _Convolution.apply(input, self.weight, self.bias, self.rectifies, *self._filters())
        return result

    @torch.no_grad()
    def _filters(self) -> tuple[Tensor, Tensor]:
        """The weights transformed, for results and for gradients; computed again when they have changed."""
        weight = self.weight
        state, *filters = self._seen
        if state != (weight._version, weight.data_ptr()):
            filters = [_transformed(weight), _transformed(weight.flip(2, 3).transpose(0, 1))]
            self._seen = ((weight._version, weight.data_ptr()), *filters)
        return filters[0], filters[1]


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
        for first, second in pairwise(names):
            rectifier, conv = row.get_submodule(first), row.get_submodule(second)
            if isinstance(rectifier, nn.ReLU) and isinstance(conv, WinogradConv2d):
                conv.rectifies = True
                setattr(row, first, nn.Identity())


def _plain(conv: nn.Conv2d) -> bool:
    shape = (conv.kernel_size, conv.stride, conv.padding, conv.dilation)
    return shape == ((3, 3), (1, 1), (1, 1), (1, 1)) and conv.groups == 1 and conv.padding_mode == "zeros"


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, images: Tensor, weight: Tensor, bias: Tensor | None, rectifies: bool, filters: Tensor, turned: Tensor
    ) -> Tensor:
        images = images.contiguous(memory_format=torch.channels_last)
        ctx.save_for_backward(images, turned)
        ctx.rectifies = rectifies
        return _convolved(images, rectifies, filters, len(weight), bias, None)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradients: Tensor) -> tuple[Tensor | None, ...]:
        images, turned = ctx.saved_tensors
        gradients = gradients.contiguous(memory_format=torch.channels_last)
        of_images, of_weight, of_bias = ctx.needs_input_grad[:3]
        others = images if ctx.rectifies else None
        return (
            _convolved(gradients, False, turned, images.shape[1], None, others) if of_images else None,
            _correlated(images, ctx.rectifies, gradients) if of_weight else None,
            gradients.sum((0, 2, 3)) if of_bias else None,
            *[None] * 3,
        )


def _convolved(
    images: Tensor, rectified: bool, filters: Tensor, outputs: int, bias: Tensor | None, others: Tensor | None
) -> Tensor:
    """Images (N, C, H, W), rectified or not, with transformed filters to (N, outputs, H, W), channels last.

    Results are zero where ``others``, of their shape, are not positive.
    """
    count, _, height, width = images.shape
    made = torch.empty(count, outputs, height, width, memory_format=torch.channels_last)
    bias = None if bias is None else bias.contiguous()
    given = (_address(images), rectified, *map(_address, (filters, bias, others, made)))
    list(in_parallel([partial(_library().convolve, *given, *piece) for piece in _pieces(images, outputs)]))
    return made


def _transformed(weight: Tensor) -> Tensor:
    """Weights (outputs, C, 3, 3) as filters (64, outputs / panel, C, panel)."""
    outputs, inputs = weight.shape[:2]
    panel = _library().panel(outputs)
    by_place = weight.reshape(outputs // panel, panel, inputs, 9).permute(3, 0, 2, 1)
    return (_both_sides() @ by_place.reshape(9, -1)).view(64, outputs // panel, inputs, panel)


def _correlated(images: Tensor, rectified: bool, gradients: Tensor) -> Tensor:
    """The gradients (outputs, C, 3, 3) of the weights, of images and of the results' gradients, channels last."""
    inputs, outputs = images.shape[1], gradients.shape[1]
    panel = _library().panel(outputs)
    pieces = _pieces(images, outputs)
    made = torch.empty(len(pieces), 64, outputs // panel, inputs, panel)
    given = (_address(images), rectified, _address(gradients))
    calls = [
        partial(_library().correlate, *given, _address(part), *piece) for part, piece in zip(made, pieces, strict=True)
    ]
    list(in_parallel(calls))
    by_place = _both_sides().T @ made.sum(0).view(64, -1)
    return by_place.view(9, outputs // panel, inputs, panel).permute(1, 3, 2, 0).reshape(outputs, inputs, 3, 3)


def _both_sides() -> Tensor:
    """The transform of whole filters: nine weights to 64."""
    transform = torch.tensor(_FILTER)
    return torch.kron(transform, transform)


def _pieces(images: Tensor, outputs: int) -> list[tuple[int, ...]]:
    """What the compiled functions have to know of each piece of the work."""
    count, inputs, height, width = images.shape
    tiles = count * -(-height // _TILE) * -(-width // _TILE)
    ends = [*range(0, tiles, _PIECE), tiles]
    return [(height, width, inputs, outputs, *ends[n : n + 2]) for n in range(len(ends) - 1)]


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
    library.convolve.argtypes, library.convolve.restype = [pointer, whether, *[pointer] * 4, *[number] * 6], None
    library.correlate.argtypes, library.correlate.restype = [pointer, whether, *[pointer] * 2, *[number] * 6], None
    library.panel.argtypes, library.panel.restype = [number], number
    return library
