"""Tools computed by OpenVINO on the processor, in float32, bfloat16 or eight-bit integers.

Any tool that is a torch module can be compiled, at its first use. In eight bits every convolution's weights have a
scale for each output channel and its input a range that was measured (`quantization`); sums, and the residual that
is added to the image, are floating-point.
"""

from __future__ import annotations

import math
import threading
import warnings
from collections import Counter, defaultdict, deque
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import openvino as ov
import torch
import torch.nn.functional as F
from openvino import opset13 as ops
from openvino.frontend import FrontEndManager
from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder
from openvino.preprocess import PrePostProcessor
from torch import Tensor, nn

from restoration_env.errors import InvalidArgument
from restoration_env.folding import FoldedConv, folded
from restoration_env.quantization import LEVELS, Range, bears_rounding, calibration_images, input_ranges
from restoration_env.toolbox import SIDES, Tool, Toolbox

_HINTS = {"float32": "f32", "bfloat16": "bf16", "int8": "bf16"}  # int8: of what is not a convolution
_SMALL, _OFTEN, _SHAPES = 128 * 128, 16, 4  # pixels, images and shapes up to which a shape has a model of its own
_one_at_a_time = threading.Lock()
Shape = tuple[int, int]


class CompiledNetwork:
    """A torch module as OpenVINO computes it; compiled when it is called first.

    Attributes:
        network: the module, for whoever wants its weights.
        grid: what sides are multiples of, where it computes.
    """

    def __init__(self, network: nn.Module, precision: str, calibration: Callable[[], Tensor]) -> None:
        self.network, self.precision, self._calibration = network, precision, calibration
        self.grid = getattr(network, "grid", 1)
        self._free = defaultdict[Shape | None, deque[Any]](deque)  # None: of what takes images of any shape
        self._came = Counter[Shape]()
        self._model: Any = None

    def __call__(self, images: Tensor) -> Tensor:
        """Float (N, 3, H, W) to the same shape, computed by the calling thread.

        One image after the other: where the number of images changes from call to call, OpenVINO prepares every layer
        anew, which costs more than many images at once win. What is compiled knows no sides but multiples of the
        network's grid: others are extended by their last pixels, and cut again.
        """
        height, width = images.shape[-2:]
        images, missing = images.detach().float(), (0, -width % self.grid, 0, -height % self.grid)
        images = F.pad(images, missing, mode="replicate") if any(missing) else images
        images = images.contiguous(memory_format=torch.channels_last)
        result = torch.empty_like(images)
        shape = self._known((images.shape[-2], images.shape[-1]), len(images))
        try:
            request = self._free[shape].pop()
        except IndexError:  # as many at a time as there are threads that call
            request = self._compile(shape)
        seen, made_there = (part.permute(0, 2, 3, 1)[:, None].numpy() for part in (images, result))
        for image, made in zip(seen, made_there, strict=True):
            request.set_input_tensor(ov.Tensor(image, shared_memory=True))
            request.set_output_tensor(ov.Tensor(made, shared_memory=True))
            request.infer()
        self._free[shape].append(request)
        return result[..., :height, :width]

    def _known(self, shape: Shape, count: int) -> Shape | None:
        """The shape of images, if they are small and came often enough to be worth a model of their own."""
        if math.prod(shape) > _SMALL or (shape not in self._came and len(self._came) >= _SHAPES):
            return None
        self._came[shape] += count
        return shape if self._came[shape] > _OFTEN else None

    def _compile(self, shape: Shape | None) -> Any:
        """What computes the network for one thread at a time: of one compiled model, one thread waits for another.

        Args:
            shape: height and width of the images; None for any, which is slower, the more so the more the network
                rearranges pixels.
        """
        settings = {
            "INFERENCE_PRECISION_HINT": _HINTS[self.precision],
            # With one stream of one thread, OpenVINO computes in the thread that asks. Threads of its own would have to
            # be woken for every tool, and on few cores each waits for a core where another thread just went to sleep.
            "NUM_STREAMS": "1",
            "INFERENCE_NUM_THREADS": "1",
            "ENABLE_CPU_PINNING": "NO",
        }
        # Memory that two threads get at the same time lies interleaved, and makes everything in it slower ever after.
        with _one_at_a_time:
            if self._model is None:
                self._model = self._converted()
            model = self._model if shape is None else self._model.clone()
            if shape is not None:
                model.reshape([1, *shape, 3])
            request = _core().compile_model(model, "CPU", settings).create_infer_request()
            height, width = shape or (side + -side % self.grid for side in SIDES)
            request.infer([np.zeros((1, height, width, 3), np.float32)])
            return request

    def _converted(self) -> Any:
        network = folded(self.network.cpu())
        model = _as_model(network)
        if self.precision == "int8":
            images = self._calibration()
            _quantize(model, input_ranges(network, _quantized_layers(network, images), images))
        return _channels_last(model)


@lru_cache(maxsize=1)
def _core() -> Any:
    return ov.Core()


def compiled(toolbox: Toolbox, precision: str) -> Toolbox:
    """A toolbox whose tools are computed by OpenVINO; each must be a torch module.

    Raises:
        InvalidArgument: if one is not.
    """
    calibration = lru_cache(maxsize=1)(lambda: calibration_images(toolbox))
    tools: list[Tool] = []
    for tool in toolbox:
        if not isinstance(tool.function, nn.Module):
            expected = f"'torch' for tool {tool.name!r}, which is a function and no torch module"
            raise InvalidArgument("backend", expected, "'openvino'")
        function = CompiledNetwork(tool.function, precision, calibration)
        tools.append(replace(tool, function=function, precision=precision, backend="openvino"))
    return Toolbox(toolbox.name, tools)


def _as_model(network: nn.Module) -> Any:
    """The module as an OpenVINO graph for images of any size (1, 3, H, W)."""
    example = torch.zeros(1, 3, 64, 64)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # what OpenVINO reads is a trace
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # of sides, which are multiples of the grid
        traced = torch.jit.trace(network, example, check_trace=False)
    decoder = TorchScriptPythonDecoder(traced, example_input=example)
    frontend = FrontEndManager().load_by_framework("pytorch")
    model = frontend.convert(frontend.load(decoder))
    model.reshape([1, 3, -1, -1])
    return model


def _channels_last(model: Any) -> Any:
    """The same graph for images (1, H, W, 3), as convolutions like them."""
    outside = PrePostProcessor(model)
    for end in (outside.input(), outside.output()):
        end.tensor().set_layout(ov.Layout("NHWC"))
        end.model().set_layout(ov.Layout("NCHW"))
    return outside.build()


def _quantized_layers(network: nn.Module, images: Tensor) -> list[str]:
    """The convolutions to compute in eight bits.

    Those that only mix channels cost little and lose most: they stay in bfloat16, like the sums of shifted columns,
    which have no weights to speak of, and those that see the image itself in a network that does not bear its rounding.
    """
    image_channels = 0 if bears_rounding(network, images) else images.shape[1]
    sums = {f"{name}.shifts" for name, layer in network.named_modules() if isinstance(layer, FoldedConv)}
    layers = ((name, layer) for name, layer in network.named_modules() if isinstance(layer, nn.Conv2d))
    return [n for n, c in layers if n not in sums and max(c.kernel_size) > 1 and c.in_channels > image_channels]


def _quantize(model: Any, ranges: dict[str, Range]) -> None:
    """Put the ranges before the convolutions, and the weights in eight bits with a scale for each output."""
    for node in model.get_ordered_ops():
        layer = node.get_friendly_name().removeprefix("__module.").partition("/")[0]
        if node.get_type_name() != "Convolution" or layer not in ranges:
            continue
        low, high = (np.float32(edge) for edge in ranges[layer])
        rounded = ops.fake_quantize(node.input_value(0), low, high, low, high, LEVELS)
        weights = node.input_value(1).get_node().data
        scale = np.maximum(np.abs(weights).max(axis=(1, 2, 3), keepdims=True) / 127.0, 1e-12).astype(np.float32)
        whole = ops.constant(np.clip(np.round(weights / scale), -127, 127).astype(np.int8))
        node.input(0).replace_source_output(rounded.output(0))
        node.input(1).replace_source_output(ops.multiply(ops.convert(whole, "f32"), ops.constant(scale)).output(0))
