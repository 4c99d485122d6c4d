"""Floor 3: agents and policies, how they are trained, and the restoration of whole photographs."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach(
    __name__,
    submodules=[
        "agent",
        "chains",
        "classifier",
        "critic",
        "drqn",
        "lookahead",
        "lookahead_training",
        "network",
        "oracles",
        "photo",
        "policies",
        "reference",
        "replay",
        "sb3",
        "sb3_hub",
        "sb3_policy",
        "sb3_training",
        "sb3_vec_env",
    ],
    submod_attrs={
        "agent": ["RestorationAgent", "ToolchainAgent", "agent_names", "load_agent", "save_agent"],
        "classifier": ["ClassifierConfig", "DistortionClassifier", "train_classifier"],
        "lookahead": ["LookaheadAgent"],
        "lookahead_training": ["LookaheadConfig", "train_lookahead"],
        "oracles": ["OracleResult", "beam", "exhaustive", "greedy", "regret"],
        "photo": ["Restoration", "restore", "restore_file"],
        "policies": ["FixedChain", "RandomPolicy", "StopAtOnce", "restore_batch", "roll_out"],
        "reference": ["ClassifierPolicy", "best_fixed_chain", "load_classifier"],
        "sb3": ["RestoreFeatures", "algorithm_names", "make_model"],
        "sb3_hub": ["load_from_hub", "push_to_hub"],
        "sb3_policy": ["SB3Policy", "load_sb3_policy", "save_sb3_policy"],
        "sb3_training": ["SB3Config", "train_sb3"],
        "sb3_vec_env": ["SB3VecEnv", "ScaledRewards"],
    },
)
