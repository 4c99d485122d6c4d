"""Tools and toolboxes by name.

A name stands for a ``"module:callable"`` string, imported only when asked for, so that this floor knows no
toolbox and another package adds one in a line of its pyproject::

    [project.entry-points."restoration_env.tools"]
    my-denoiser = "my_package:denoiser"

The callable takes the keywords ``device`` and ``precision`` and returns a `Tool` (group
``restoration_env.tools``) or a `Toolbox` (group ``restoration_env.toolboxes``).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from importlib.metadata import entry_points
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from restoration_env.errors import InvalidArgument, UnknownName

if TYPE_CHECKING:
    import torch

    from restoration_env.toolbox import Tool, Toolbox

_TOOLBOXES = {
    "cnn12": "restoration_env.tools.catalogue:cnn12",
    "cnn12-joint": "restoration_env.tools.catalogue:cnn12_joint",
    "cnn12-gan": "restoration_env.tools.catalogue:cnn12_gan",
    "cnn12-modern": "restoration_env.tools.catalogue:cnn12_modern",
    "classical": "restoration_env.tools.classical:classical",
}
_TOOLS: dict[str, str] = {}


def register_tool(name: str, target: str) -> None:
    """Make a tool known under a name; ``target`` is ``"module:callable"``."""
    _register(_TOOLS, "tool", name, target)


def register_toolbox(name: str, target: str) -> None:
    """Make a toolbox known under a name; ``target`` is ``"module:callable"``."""
    _register(_TOOLBOXES, "toolbox", name, target)


def _register(table: dict[str, str], kind: str, name: str, target: str) -> None:
    module, _, attribute = target.partition(":")
    if not module or not attribute:
        raise InvalidArgument("target", "a string 'module:callable'", repr(target))
    if not name or "/" in name:
        raise InvalidArgument("name", "a word without '/', which stands between toolbox and tool", repr(name))
    if table.get(name, target) != target:
        raise InvalidArgument("name", f"not yet the name of another {kind}", repr(name))
    table[name] = target


def tool_names() -> tuple[str, ...]:
    """The tools that can be loaded on their own, beside ``"toolbox/tool"`` for the tools of a toolbox."""
    return tuple(_targets(_TOOLS, "restoration_env.tools"))


def toolbox_names() -> tuple[str, ...]:
    """The toolboxes that can be loaded."""
    return tuple(_targets(_TOOLBOXES, "restoration_env.toolboxes"))


def load_tool(name: str, *, device: torch.device | str = "cpu", precision: str = "float32") -> Tool:
    """A registered tool, or ``"toolbox/tool"``, one tool of a toolbox.

    Raises:
        UnknownName: if there is none; the message lists those there are.
    """
    toolbox, slash, tool = name.partition("/")
    if slash:
        return load_toolbox(toolbox, device=device, precision=precision)[tool]
    targets = _targets(_TOOLS, "restoration_env.tools")
    if name not in targets:
        in_toolboxes = [f"{toolbox}/<tool>" for toolbox in toolbox_names()]
        raise UnknownName("tool", name, [*targets, *in_toolboxes])
    return find_target(targets[name])(device=device, precision=precision)


def load_toolbox(
    name: str = "cnn12",
    extra_tools: Sequence[str] = (),
    *,
    device: torch.device | str = "cpu",
    precision: str = "float32",
    backend: str = "torch",
) -> Toolbox:
    """A toolbox by name, with further tools after its own.

    Args:
        name: "cnn12" (the twelve CNNs), "classical" (scikit-image), or any registered name; "cnn12+sft-x4" adds a tool,
            as the name of a toolbox with further tools says.
        extra_tools: names as `load_tool` takes them.
        device: where the tools compute.
        precision: "float32", or "bfloat16" where speed counts more than the last hundredth of a dB; with OpenVINO
            "int8" too.
        backend: what computes the tools: "torch", or "openvino" (the extra of that name) on a processor.

    Raises:
        UnknownName: for an unknown toolbox, tool, precision or backend; the message lists the known ones.
        InvalidArgument: for a backend that is not installed, or does not know the precision or the device.
    """
    from restoration_env.backends import check_backend, prepared

    check_backend(backend, precision, device)
    targets = _targets(_TOOLBOXES, "restoration_env.toolboxes")
    if isinstance(extra_tools, str):  # else each of its letters would be a tool
        raise InvalidArgument("extra_tools", "a sequence of names", repr(extra_tools))
    made = precision if backend == "torch" else "float32"
    if isinstance(name, str) and name not in targets:
        name, *added = name.split("+")
        extra_tools = (*added, *extra_tools)
    if not isinstance(name, str) or name not in targets:
        raise UnknownName("toolbox", name, targets)
    toolbox: Toolbox = find_target(targets[name])(device=device, precision=made)
    if extra_tools:
        toolbox = toolbox.extended([load_tool(tool, device=device, precision=made) for tool in extra_tools])
    return prepared(toolbox, backend, precision)


def find_target(target: str) -> Callable[..., Any]:
    """Import what a ``"module:callable"`` string names."""
    module, _, attribute = target.partition(":")
    return attrgetter(attribute)(importlib.import_module(module))


def _targets(table: dict[str, str], group: str) -> dict[str, str]:
    return {**{entry.name: entry.value for entry in entry_points(group=group)}, **table}
