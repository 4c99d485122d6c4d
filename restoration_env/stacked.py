"""Tools applied on a GPU without the host knowing which: no step waits for the actions to be read back.

The networks of one architecture are stacked. In bfloat16 every image picks its own weights inside the convolutions
(`restoration_env.picked`). Otherwise the images are sorted by tool and cut into blocks of one size, so many that they
suffice whatever was chosen, and each block is computed with the weights of its tool; what a tool's images do not fill
is thrown away. All shapes are known beforehand, so the tools can also be recorded as a CUDA graph, which is done for
batches that are small and come often.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from restoration_env.devices import constant
from restoration_env.picked import Picked, can_pick
from restoration_env.toolbox import Tool

_BLOCK = 256  # images that fill a GPU
_FEW = 256  # up to so many images, launching takes longer than computing
_OFTEN, _MOST = 16, 8  # a number of images that came so often is recorded; so many numbers are, at most


class _Family:
    """Tools of one architecture and precision.

    Attributes:
        numbers: the tools' actions.
        network: one of their modules; the weights of all are in ``weights``, (tools, ...) each.
        picked: the same for images that pick their weights; None where that is not possible.
    """

    def __init__(self, tools: Sequence[Tool], numbers: Sequence[int]) -> None:
        self.numbers, self.tool = tuple(numbers), tools[0]
        self.network = cast("nn.Module", tools[0].function)
        networks = [cast("nn.Module", tool.function) for tool in tools]
        self.picked = Picked(networks) if self.tool.precision == "bfloat16" and can_pick(networks) else None
        states = [cast("nn.Module", tool.function).state_dict(keep_vars=True) for tool in tools]
        self.weights = {name: torch.stack([state[name].detach() for state in states]) for name in states[0]}

    def __call__(self, which: Tensor, images: Tensor) -> Tensor:
        """The images (B, 3, H, W) after tool ``which``, int64 (1,), a number within the family."""
        picked = {name: stack.index_select(0, which)[0] for name, stack in self.weights.items()}
        images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.tool.precision == "bfloat16"):
            return functional_call(self.network, picked, (images,))


class StackedTools:
    """All tools of a toolbox, for actions that stay on the device. For inference: the weights are copies.

    Args:
        tools: torch modules, each without a state that calling changes.
    """

    def __init__(self, tools: Sequence[Tool]) -> None:
        kinds: dict[object, list[int]] = {}
        for number, tool in enumerate(tools):
            kinds.setdefault(_kind(tool), []).append(number)
        self.families = [_Family([tools[n] for n in numbers], numbers) for numbers in kinds.values()]
        self.stop = len(tools)
        self.versions = versions(tools)
        self.can_record = all(family.picked is not None for family in self.families)
        self._came: dict[tuple[torch.Size, torch.dtype], int] = {}
        self._recorded: dict[tuple[torch.Size, torch.dtype], RecordedTools] = {}

    def apply_again(self, images: Tensor, actions: Tensor) -> Tensor:
        """`apply` for environments, which step equally many images again and again: few of them as a CUDA graph."""
        kind = images.shape, images.dtype
        inside = images.is_cuda and torch.cuda.is_current_stream_capturing()  # the caller records
        if not self.can_record or len(images) > _FEW or inside:
            return self.apply(images, actions)
        if kind not in self._recorded:
            self._came[kind] = self._came.get(kind, 0) + 1
            if self._came[kind] < _OFTEN or len(self._recorded) >= _MOST:
                return self.apply(images, actions)
            self._recorded[kind] = RecordedTools(self, images, actions)
        return self._recorded[kind].apply(images, actions)

    def apply(self, images: Tensor, actions: Tensor) -> Tensor:
        """As `Toolbox.apply`, without gradients.

        Args:
            images: float (N, 3, H, W).
            actions: int64 (N,) on the same device.
        """
        result = images
        for family in self.families:
            if family.picked is not None:
                which = self._within(family, actions, -1).to(torch.int32)
                made = family.picked(which, images).to(images.dtype)
                result = torch.where((which >= 0).view(-1, 1, 1, 1), made, result)
            else:
                result = self._in_blocks(family, result, images, actions)
        return images.clone() if result is images else result

    def _in_blocks(self, family: _Family, result: Tensor, images: Tensor, actions: Tensor) -> Tensor:
        """The result with the family's own images replaced."""
        result = torch.cat((result, images[:1]))  # the last row takes what is thrown away
        block = max(1, min(_BLOCK, len(images) // self.stop))
        chosen = self._within(family, actions, len(family.numbers))
        which, rows, targets = _blocks(chosen, len(family.numbers), block)
        for number in range(len(which)):
            made = family(which[number : number + 1], images.index_select(0, rows[number]))
            result.index_copy_(0, targets[number], made.to(images.dtype))
        return result[:-1]

    def _within(self, family: _Family, actions: Tensor, other: int) -> Tensor:
        """Each image's tool as a number within the family; ``other`` if it is none of them."""
        places = [other] * (self.stop + 1)
        for place, number in enumerate(family.numbers):
            places[number] = place
        return constant(tuple(places), actions.device)[actions]


class RecordedTools:
    """`StackedTools` as a CUDA graph, for batches of one shape: one launch instead of hundreds.

    Args:
        tools: what is recorded; later changes of their weights are not seen.
        images: float (N, 3, H, W) on a GPU, of the shape to come.
        actions: int64 (N,), there too.
    """

    def __init__(self, tools: StackedTools, images: Tensor, actions: Tensor) -> None:
        self._images, self._actions = images.clone(), actions.clone()
        beside = torch.cuda.Stream()
        beside.wait_stream(torch.cuda.current_stream())
        with torch.no_grad(), torch.cuda.stream(beside):
            for _ in range(3):  # what is made once is made now
                tools.apply(self._images, self._actions)
        torch.cuda.current_stream().wait_stream(beside)
        self._graph = torch.cuda.CUDAGraph()
        with torch.no_grad(), torch.cuda.graph(self._graph):
            self._result = tools.apply(self._images, self._actions)

    def apply(self, images: Tensor, actions: Tensor) -> Tensor:
        """As `StackedTools.apply`."""
        self._images.copy_(images)
        self._actions.copy_(actions)
        self._graph.replay()
        return self._result.clone()


def _kind(tool: Tool) -> object:
    module = cast("nn.Module", tool.function)
    shapes = tuple((name, tuple(value.shape)) for name, value in module.state_dict().items())
    return type(module), str(module), shapes, tool.precision


def can_stack(tools: Sequence[Tool]) -> bool:
    """Whether all tools are torch modules that torch computes."""
    return all(isinstance(tool.function, nn.Module) and tool.backend == "torch" for tool in tools)


def versions(tools: Sequence[Tool]) -> tuple[int, ...]:
    """Changes with every change of the tools' weights."""
    modules = (cast("nn.Module", tool.function) for tool in tools)
    return tuple(value._version for module in modules for value in module.state_dict(keep_vars=True).values())


def _blocks(chosen: Tensor, tools: int, block: int) -> tuple[Tensor, Tensor, Tensor]:
    """Cut the images of each tool into blocks.

    Args:
        chosen: int64 (N,), 0 .. tools; ``tools`` takes no part.
        tools: how many there are.
        block: images in a block.

    Returns:
        For ``N // block + tools`` blocks: the tool of each, int64 (blocks,); the rows it computes, int64 (blocks,
        block); and the rows that take the results, where N is that of what is thrown away.
    """
    count, device = len(chosen), chosen.device
    blocks = count // block + tools
    order = torch.argsort(chosen, stable=True)
    counts = (chosen[:, None] == torch.arange(tools, device=device)).sum(0)
    needed = torch.div(counts + (block - 1), block, rounding_mode="floor")
    first_row, last_block = counts.cumsum(0) - counts, needed.cumsum(0)
    numbers = torch.arange(blocks, device=device)
    which = torch.searchsorted(last_block, numbers, right=True).clamp_max(tools - 1)
    within = (numbers - (last_block - needed)[which])[:, None] * block + torch.arange(block, device=device)
    used = within < counts[which, None]
    rows = order[(first_row[which, None] + within).clamp(0, count - 1)]
    return which, rows, torch.where(used, rows, count)
