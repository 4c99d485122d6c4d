"""Convolutions that do their neighbours' work: rectifiers and sums beside them are computed before they are stored."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from restoration_env.devices import multiplies_bfloat16

_RECTIFIERS, _SUMS = (F.relu, torch.relu, "relu"), (torch.add, operator.add)


class Fusible(nn.Module):
    """A convolution that can be told to do more. Called with images, and with what is added to its result.

    Attributes:
        rectified: apply a rectifier to the result (after the sum).
        rectifies: apply one to the input.
        exact: the result in float32.
        overwrites: nobody else will read what is added: the result may take its place.
    """

    def __init__(self) -> None:
        super().__init__()
        self.rectified = self.rectifies = self.exact = self.overwrites = False


def with_convolutions(network: nn.Module, make: Callable[[str, nn.Conv2d], Fusible]) -> nn.Module:
    """A copy of a network for inference with other convolutions, which do what is beside them too.

    Args:
        network: stays as it is.
        make: the convolution in place of one that is there, by its name within the network.

    Returns:
        The copy; one that cannot be traced, because what it does depends on the image's size, has its convolutions
        replaced and nothing fused.
    """
    made = copy.deepcopy(network).eval().requires_grad_(False)
    for name, module in list(made.named_modules()):
        if type(module) is nn.Conv2d:
            setattr(made.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2], make(name, module))
    try:
        traced = fx.GraphModule(made, _Tracer().trace(made))
    except (fx.proxy.TraceError, TypeError, RuntimeError):
        return made
    return _fused(traced)


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, Fusible)


def _fused(traced: fx.GraphModule) -> fx.GraphModule:
    """Put rectifiers, sums and the change to the images' precision into the convolutions beside them."""
    calls = [str(node.target) for node in traced.graph.nodes if node.op == "call_module"]
    place = {node: number for number, node in enumerate(traced.graph.nodes)}

    def conv(node: Any) -> Fusible | None:
        """The convolution that a node calls and no other does."""
        if not isinstance(node, fx.Node) or node.op != "call_module" or calls.count(str(node.target)) > 1:
            return None
        module = traced.get_submodule(str(node.target))
        return module if isinstance(module, Fusible) else None

    def replace(node: fx.Node, by: fx.Node) -> None:
        node.replace_all_uses_with(by)
        traced.graph.erase_node(node)

    for node in list(traced.graph.nodes):
        if node.op not in ("call_function", "call_method") or not isinstance(node.args[0], fx.Node):
            continue
        source, alone = node.args[0], len(node.args[0].users) == 1
        made = conv(source) if alone else None
        if node.target in _RECTIFIERS:
            if made is not None and not made.exact:
                made.rectified = True
                replace(node, source)
            elif len(node.users) == 1 and (alone or not node.kwargs.get("inplace")):
                user = conv(next(iter(node.users)))
                if user is not None and next(iter(node.users)).args[0] is node:
                    user.rectifies = True
                    replace(node, source)
        elif node.target == "to" and made is not None and not made.rectified:
            made.exact = True
            replace(node, source)
        elif node.target in _SUMS and isinstance(last := node.args[1], fx.Node) and not node.kwargs:
            made = conv(last) if len(last.users) == 1 and place[source] < place[last] else None
            if made is not None and not made.rectified and len(last.args) == 1:
                last.args = (last.args[0], source)
                replace(node, last)
                read = [user for user in source.users if user is not last]
                before = all(conv(user) is not None and place[user] < place[last] for user in read)
                made.overwrites = conv(source) is not None and last.args[0] is not source and before
    traced.graph.eliminate_dead_code()
    traced.graph.lint()
    traced.recompile()
    return traced


def only_convolutions(network: nn.Module) -> list[nn.Conv2d]:
    """The plain convolutions of a network with weights in nothing else and no other state; of any other, none."""
    convolutions = [module for module in network.modules() if type(module) is nn.Conv2d]
    owned = sum(p.numel() for conv in convolutions for p in conv.parameters())
    whole = owned == sum(p.numel() for p in network.parameters()) and not list(network.buffers())
    return convolutions if whole else []


def can_pack(network: nn.Module) -> bool:
    """Whether `packed` can compute a network: on a processor that multiplies bfloat16, where torch has oneDNN."""
    convolutions = only_convolutions(network)
    padded = all(conv.padding_mode == "zeros" and not isinstance(conv.padding, str) for conv in convolutions)
    here = all(p.device.type == "cpu" for p in network.parameters())
    return bool(convolutions) and padded and here and multiplies_bfloat16()


def packed(network: nn.Module) -> nn.Module:
    """A copy of a network as a processor computes it in bfloat16: called with float32 images, it returns such.

    What torch's own compiler would make of it, without the compiler: weights lie as the processor wants them, and
    rectifiers and sums are done while a result is still in its cache.

    Args:
        network: which `can_pack`; maps float (N, C, H, W) to the same.
    """
    return with_convolutions(network, lambda _, conv: PackedConv2d(conv))


class PackedConv2d(Fusible):
    """A convolution in bfloat16 with sums in float32, its weights laid out for the processor.

    Args:
        conv: with zero padding.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.bias = conv.weight, conv.bias  # as they were, for networks that look at them
        self._geometry = list(conv.padding), list(conv.stride), list(conv.dilation), conv.groups
        self._packed_bias = None if conv.bias is None else conv.bias.detach().bfloat16()
        weight, typical = conv.weight.detach().bfloat16(), [8, conv.in_channels, 63, 63]
        self._packed = torch.ops.mkldnn._reorder_convolution_weight(weight, *self._geometry, typical)

    def forward(self, images: Tensor, added: Tensor | None = None) -> Tensor:
        """The convolution of images (N, I, H, W), plus ``added`` (N, O, H', W')."""
        images = images.to(torch.bfloat16)
        images = F.relu(images) if self.rectifies else images
        what, after = (self._packed, self._packed_bias, *self._geometry), "relu" if self.rectified else "none"
        if added is None:
            made = torch.ops.mkldnn._convolution_pointwise(images, *what, after, [], "")
        elif not self.exact:
            how: Any = ("add", 1.0, "relu" if self.rectified else None, [], None)
            added = added.to(torch.bfloat16)
            if self.overwrites:
                made = torch.ops.mkldnn._convolution_pointwise_.binary(added, images, *what, *how)
            else:
                made = torch.ops.mkldnn._convolution_pointwise.binary(images, added, *what, *how)
        else:
            made = torch.ops.mkldnn._convolution_pointwise(images, *what, "none", [], "") + added
            made = F.relu(made) if self.rectified else made
        return made.float() if self.exact else made
