"""Image restoration as a reinforcement learning problem.

>>> import gymnasium as gym
>>> import restoration_env
>>> env = gym.make("Restore-v0", severity="moderate")

The environments are registered on import. Everything else is found on first use, so the import is cheap:
``restoration_env.restore("photo.jpg")``, ``restoration_env.tools.load_toolbox("cnn12")``,
``restoration_env.agents.load_agent("toolchain")``.
"""

from pathlib import Path as _Path

import gymnasium as _gymnasium
import lazy_loader as _lazy

__version__ = "0.1.0"

# In a bare checkout tools, sft, agents and benchmarks stand beside this folder; see docs/architecture.md.
_checkout = _Path(__file__).resolve().parent.parent
if (_checkout / "pyproject.toml").is_file() and (_checkout / "tools" / "catalogue.py").is_file():
    __path__.append(str(_checkout))

if "Restore-v0" not in _gymnasium.registry:
    _gymnasium.register(
        "Restore-v0",
        entry_point="restoration_env.env:RestoreEnv",
        vector_entry_point="restoration_env.vector_env:RestoreVectorEnv",
    )

if "RestoreSR-v0" not in _gymnasium.registry:
    _gymnasium.register(
        "RestoreSR-v0",
        entry_point="restoration_env.env:RestoreEnv",
        vector_entry_point="restoration_env.vector_env:RestoreVectorEnv",
        kwargs={"extra_tools": ["sft-x4"], "severity": "with-x4"},
    )

__getattr__, _dir, _names = _lazy.attach(
    __name__,
    submodules=[
        "agents",
        "benchmarks",
        "distortions",
        "env",
        "episodes",
        "images",
        "metrics",
        "perceptual",
        "registry",
        "sft",
        "tools",
        "vector_env",
    ],
    submod_attrs={
        "agents.photo": ["Restoration", "restore"],
        "env": ["RestoreEnv"],
        "registry": ["load_tool", "load_toolbox", "register_tool", "register_toolbox"],
        "vector_env": ["RestoreVectorEnv"],
    },
)
__all__ = [*_names, "__version__"]


def __dir__() -> list[str]:
    return sorted(__all__)
