"""Floor 3: agents and policies, how they are trained, and the restoration of whole photographs."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach(
    __name__,
    submodules=[
        "agent",
        "chains",
        "classifier",
        "drqn",
        "network",
        "oracles",
        "photo",
        "policies",
        "reference",
        "replay",
        "sb3",
        "sb3_vec_env",
    ],
    submod_attrs={
        "agent": ["ToolchainAgent", "agent_names", "load_agent", "save_agent"],
        "classifier": ["ClassifierConfig", "DistortionClassifier", "train_classifier"],
        "oracles": ["OracleResult", "beam", "exhaustive", "greedy", "regret"],
        "photo": ["Restoration", "restore", "restore_file"],
        "policies": ["FixedChain", "RandomPolicy", "StopAtOnce", "restore_batch", "roll_out"],
        "reference": ["ClassifierPolicy", "best_fixed_chain", "load_classifier"],
        "sb3_vec_env": ["SB3VecEnv"],
    },
)
