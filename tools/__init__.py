"""Floor 2: the twelve CNN tools, their networks, their training and their weights."""

import lazy_loader as _lazy

from restoration_env.registry import load_tool, load_toolbox, register_tool, register_toolbox

__getattr__, __dir__, _names = _lazy.attach(
    __name__,
    submodules=["catalogue", "classical", "networks", "training"],
    submod_attrs={"catalogue": ["CATALOGUE", "ToolSpec", "cnn_tool"]},
)
__all__ = [*_names, "load_tool", "load_toolbox", "register_tool", "register_toolbox"]
