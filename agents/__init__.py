"""Floor 3: agents and policies, how they are trained, and the restoration of whole photographs."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach(
    __name__,
    submodules=["agent", "drqn", "network", "photo", "policies", "replay"],
    submod_attrs={
        "agent": ["ToolchainAgent", "agent_names", "load_agent", "save_agent"],
        "photo": ["Restoration", "restore", "restore_file"],
        "policies": ["FixedChain", "RandomPolicy", "StopAtOnce", "restore_batch", "roll_out"],
    },
)
