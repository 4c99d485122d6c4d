"""Tools and toolboxes: what an action does to an image."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from restoration_env import devices
from restoration_env.distortions import check_images
from restoration_env.errors import InvalidArgument, UnknownName
from restoration_env.workers import in_parallel

PRECISIONS = ("float32", "bfloat16", "int8")
_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
SIDES = (63, 63)  # of the published patches
_ROUND = 16  # images of one tool on a GPU, in steps of so many
_CHUNK, _CHUNK_IN_TRAINING = 8 * 63 * 63, 32 * 63 * 63  # pixels at once: activations that stay in a core's cache


@dataclass(frozen=True)
class Tool:
    """Anything that maps a float RGB batch (N, 3, H, W) in [0, 1] to a batch of the same shape.

    Attributes:
        name: what users call it.
        description: one line.
        function: the callable.
        cost: multiply-adds per pixel.
        halo: pixels on each side that an output pixel depends on; photographs are tiled with it.
        precision: "float32", or "bfloat16" to run the function under bfloat16 autocast.
        grid: pixels after which what the function does repeats; tiles begin at multiples of it.
        backend: "torch", or what else computes the function, in the precision given ("int8" too).
    """

    name: str
    description: str
    function: Callable[[Tensor], Tensor]
    cost: float = 0.0
    halo: int = 0
    precision: str = "float32"
    grid: int = 1
    backend: str = "torch"

    def __post_init__(self) -> None:
        known = PRECISIONS if self.backend != "torch" else PRECISIONS[:2]
        if self.precision not in known:
            raise UnknownName("precision", self.precision, known)

    def __call__(self, images: Tensor) -> Tensor:
        """Apply the tool to float (N, 3, H, W)."""
        if self.backend == "torch":
            images = images.contiguous(memory_format=torch.channels_last)
        if self.backend != "torch" or self.precision == "float32":
            result = self.function(images)
        else:
            with torch.autocast(images.device.type, torch.bfloat16):
                result = self.function(images)
        if result.shape != images.shape:
            expected = f"a function that keeps the shape {tuple(images.shape)}"
            raise InvalidArgument(f"tool {self.name!r}", expected, tuple(result.shape))
        return result


class Toolbox:
    """An ordered set of tools: action k applies tool k, and the last action stops (changes nothing).

    Attributes:
        name: the name it is registered under.
        tools: the tools in the order of the actions.
        names: their names.
        stop: the number of the stop action, equal to ``len(toolbox)``.
    """

    def __init__(self, name: str, tools: Sequence[Tool]) -> None:
        self.name = name
        self.tools = tuple(tools)
        self.names = tuple(tool.name for tool in tools)
        self.stop = len(self.tools)
        self._stack: Any = None
        first: dict[Any, int] = {}  # tools that are one network learn together
        alike = [first.setdefault((id(t.function), t.precision, t.backend), k) for k, t in enumerate(self.tools)]
        self._alike = torch.tensor([*alike, self.stop]) if len(first) < len(self.tools) else None
        if not self.tools or len(set(self.names)) < len(self.names) or "stop" in self.names:
            expected = "at least one tool, no two of the same name, none named 'stop'"
            raise InvalidArgument("tools", expected, self.names)

    def __len__(self) -> int:
        return len(self.tools)

    def __iter__(self) -> Iterator[Tool]:
        return iter(self.tools)

    def __getitem__(self, name: str) -> Tool:
        """A tool by name; an unknown name is refused with the right ones."""
        if name not in self.names:
            raise UnknownName("tool", name, self.names)
        return self.tools[self.names.index(name)]

    def action_names(self) -> tuple[str, ...]:
        """The names of all actions: the tools, then "stop"."""
        return (*self.names, "stop")

    def extended(self, tools: Sequence[Tool]) -> Toolbox:
        """This toolbox with more tools after its own (and stop after them)."""
        return Toolbox("+".join((self.name, *(tool.name for tool in tools))), (*self.tools, *tools))

    def _stacked(self) -> Any:
        """The tools stacked by architecture, anew when their weights have changed; None if not all are networks."""
        from restoration_env.stacked import StackedTools, can_stack, versions

        if not can_stack(self.tools):
            return None
        if self._stack is None or self._stack.versions != versions(self.tools):
            self._stack = StackedTools(self.tools)
        return self._stack

    def apply(
        self, images: Tensor, actions: Tensor, *, check: bool = True, beside: Sequence[Callable[[], Any]] = ()
    ) -> Tensor:
        """Apply to each image the tool of its action, all images of one tool together.

        Args:
            images: float (N, 3, H, W) in [0, 1]. What earlier tools returned may lie a little outside.
            actions: integers (N,), 0 .. len(toolbox); the last one stops. With images on a GPU, actions on the host
                are grouped there, exactly; actions on the GPU are never waited for if all tools are networks.
            check: refuse bad arguments. Callers that made the arguments themselves switch it off.
            beside: what else to call, on a processor on the same threads.

        Returns:
            float (N, 3, H, W), not clipped, a new tensor; on a processor, without gradients, channels last in memory.

        Raises:
            InvalidArgument: for images of another shape, type or range, or actions out of range.
        """
        if check:
            check_images(images, low=-1.0, high=2.0)
            check_actions(actions, len(images), len(self))
        training = torch.is_grad_enabled()
        stacked = self._stacked() if devices.must_not_wait(actions.device) and not training else None
        if stacked is not None:
            for one in beside:
                one()
            return stacked.apply_again(images, actions)  # without waiting for the actions
        on_cpu = images.device.type == "cpu"
        dense = on_cpu and not training  # then images lie as networks see them and leave them, channels last
        if dense:
            images = images.contiguous(memory_format=torch.channels_last)
        result = torch.empty_like(images)
        chunk = max(1, (_CHUNK_IN_TRAINING if training else _CHUNK) // math.prod(images.shape[-2:]))
        if not on_cpu:
            chunk = len(images)
        taken, put = (x.permute(0, 2, 3, 1) if dense else x for x in (images, result))

        def piece(tool: Tool, rows: Tensor) -> None:
            some = taken.index_select(0, rows if on_cpu else _rounded_up(rows))
            made = tool(some.permute(0, 3, 1, 2) if dense else some)[: len(rows)]
            put.index_copy_(0, rows, (made.permute(0, 2, 3, 1) if dense else made).to(result.dtype))

        if training and self._alike is not None:
            actions = self._alike.to(actions.device)[actions.long()]
        order = torch.argsort(actions, stable=True)
        counts = torch.bincount(actions, minlength=self.stop + 1).tolist()
        *rows, stopped = devices.to_device(order, images.device).split(counts)

        def stay() -> None:
            put.index_copy_(0, stopped, taken.index_select(0, stopped))

        groups = zip(self.tools, rows, strict=True)
        chunks = [(tool, rows) for tool, group in groups if len(group) for rows in group.split(chunk)]
        chunks.sort(key=lambda one: -one[0].cost * len(one[1]))
        if not dense:
            for tool, rows in chunks:
                piece(tool, rows)
            stay()
            for one in beside:
                one()
            return result
        # Smaller ones at the end: then all cores end together. What is compiled is faster if one thread has it alone.
        last = len(chunks) - len(chunks) // 3
        parts = [(tool, rows.chunk(2 if tool.backend == "torch" else 1)) for tool, rows in chunks[last:]]
        smaller = [(tool, some) for tool, rows in parts for some in rows]
        pieces: list[Callable[[], Any]] = [*beside]
        pieces += [partial(piece, tool, rows) for tool, rows in chunks[:last] + smaller]
        pieces += [stay] if len(stopped) else []
        deque(in_parallel(pieces), maxlen=0)
        return result


def _rounded_up(rows: Tensor) -> Tensor:
    """The rows and some of them again, so that few different numbers occur: a GPU's library plans for each of them."""
    more = -len(rows) % _ROUND
    return torch.cat((rows, rows[:1].expand(more))) if more else rows


def check_actions(actions: Tensor, count: int, stop: int) -> None:
    """Refuse anything but ``count`` integers between 0 and ``stop``."""
    integer = isinstance(actions, Tensor) and actions.dtype in _INTEGERS
    if not integer or actions.shape != (count,):
        got = f"{actions.dtype} {tuple(actions.shape)}" if isinstance(actions, Tensor) else type(actions).__name__
        raise InvalidArgument("actions", f"an integer tensor of shape ({count},)", got)
    if devices.must_not_wait(
        actions.device
    ):  # looking would mean waiting; the device refuses, at the latest when asked
        torch._assert_async(((actions >= 0) & (actions <= stop)).all())
    elif count and (int(actions.min()) < 0 or int(actions.max()) > stop):
        raise InvalidArgument("actions", f"between 0 and {stop} (stop)", actions.tolist())
