"""What computes the tools: torch, or OpenVINO, which also computes in eight-bit integers."""

from __future__ import annotations

import importlib.util
from dataclasses import replace

import torch
from torch import nn

from restoration_env.errors import InvalidArgument, UnknownName
from restoration_env.folding import folded
from restoration_env.fusion import can_pack, packed
from restoration_env.toolbox import Tool, Toolbox

# The precisions that each backend knows.
BACKENDS = {"torch": ("float32", "bfloat16"), "openvino": ("float32", "bfloat16", "int8")}


def check_backend(backend: str, precision: str, device: torch.device | str = "cpu") -> None:
    """Refuse a backend that is unknown, not installed, or cannot do what is asked of it.

    Raises:
        UnknownName: for an unknown backend, or a precision that no backend knows.
        InvalidArgument: for a precision or a device that this backend does not know, and for OpenVINO where it is
            not installed.
    """
    if not isinstance(backend, str) or backend not in BACKENDS:
        raise UnknownName("backend", backend, BACKENDS)
    known = {name for names in BACKENDS.values() for name in names}
    if precision in known and precision not in BACKENDS[backend]:
        able = [name for name, names in BACKENDS.items() if precision in names]
        raise InvalidArgument("backend", f"{' or '.join(able)} for the precision {precision!r}", repr(backend))
    if precision not in known:
        raise UnknownName("precision", precision, BACKENDS[backend])
    if backend == "openvino":
        if torch.device(device).type != "cpu":
            raise InvalidArgument("backend", f"'torch' on the device {str(device)!r}", repr(backend))
        if not openvino_installed():
            expected = "one that is installed; pip install 'restoration-env[openvino]' brings OpenVINO"
            raise InvalidArgument("backend", expected, repr(backend))


def openvino_installed() -> bool:
    """Whether the extra ``openvino`` is installed."""
    return importlib.util.find_spec("openvino") is not None


def prepared(toolbox: Toolbox, backend: str, precision: str) -> Toolbox:
    """A toolbox of networks for inference with a backend; the given one stays as it is.

    Args:
        toolbox: its tools compute with torch. For OpenVINO each must be a torch module.
        backend: "torch" or "openvino".
        precision: "float32", "bfloat16", or with OpenVINO "int8". In eight bits the ranges of what the networks
            compute are measured once, on damaged bundled photographs.

    Raises:
        InvalidArgument: for a tool that OpenVINO cannot compute because it is no torch module.
    """
    if backend == "openvino":
        from restoration_env.openvino_backend import compiled

        return compiled(toolbox, precision)
    if precision == "float32":
        return toolbox  # bit for bit what was published
    return Toolbox(toolbox.name, [_for_a_processor(tool) for tool in toolbox])


def _for_a_processor(tool: Tool) -> Tool:
    """A tool as a processor computes it fastest in bfloat16; one that is on another device as it is."""
    network = tool.function
    here = isinstance(network, nn.Module) and all(p.device.type == "cpu" for p in network.parameters())
    if not isinstance(network, nn.Module) or not here:
        return tool
    network = folded(network)
    return replace(tool, function=packed(network) if can_pack(network) else network)
