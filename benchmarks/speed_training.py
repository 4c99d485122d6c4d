"""Where the time of a learning loop goes: the environments, the policy, or copies between them."""

from __future__ import annotations

import cProfile
import pstats
import time
from collections.abc import Callable
from typing import Any

import torch

from restoration_env.agents.drqn import DRQNConfig, _Run
from restoration_env.agents.sb3 import make_model
from restoration_env.agents.sb3_vec_env import SB3VecEnv, ScaledRewards
from restoration_env.benchmarks.speed import Contender
from restoration_env.distortions import recipe
from restoration_env.images import damaged_patches, load_images

# Functions, by the end of their file's path and their name. Copies are counted apart from what calls them.
_COPIES = {
    ("restoration_env/observations.py", "to_numpy"),
    ("restoration_env/episodes.py", "observation"),
    ("common/utils.py", "obs_as_tensor"),
    ("common/buffers.py", "add"),
    ("common/buffers.py", "_get_samples"),
    ("common/buffers.py", "swap_and_flatten"),
    ("common/vec_env/vec_transpose.py", "transpose_observations"),
    ("agents/replay.py", "add"),
    ("agents/replay.py", "sample"),
}
_ENVIRONMENTS = {
    ("agents/sb3_vec_env.py", "step_wait"),
    ("agents/sb3_vec_env.py", "reset"),
    ("restoration_env/episodes.py", "step"),
    ("restoration_env/episodes.py", "begin"),
    ("restoration_env/images.py", "damaged_patches"),
}
_WITHIN = {
    "agents/sb3_vec_env.py": {
        ("restoration_env/observations.py", "to_numpy"),
        ("restoration_env/episodes.py", "observation"),
    }
}


def training(way: Contender, device: str, *, note: Callable[[str], None]) -> dict[str, Any]:
    """Frames a second of PPO and of recurrent Q-learning, and the shares of environments, policy and copies."""
    note("training: PPO")
    envs = SB3VecEnv(way.envs(64, device))
    model = make_model("ppo", ScaledRewards(envs), device=device)
    steps = 64 * model.n_steps  # type: ignore[attr-defined]
    model.learn(steps)
    ppo = _shares(lambda: model.learn(2 * steps, reset_num_timesteps=False), 2 * steps, sb3=True)
    note("training: recurrent Q-learning")
    run = _Run(DRQNConfig(warmup=64), way.toolbox(device), device)
    pool = load_images("bundled", "train").fitting(63)

    def loop(batches: int) -> None:
        for number in range(batches):
            keys = torch.arange(64 * number, 64 * number + 64)
            run.play(*damaged_patches(pool, keys, recipe("moderate"), 63, device=device))
            run.episodes += 64
            for _ in range(run.config.updates):
                run.learn()

    loop(1)
    drqn = _shares(lambda: loop(4), 4 * 64 * run.config.max_steps, sb3=False)
    return {"ppo": ppo, "drqn": drqn}


def _shares(work: Callable[[], Any], frames: int, *, sb3: bool) -> dict[str, Any]:
    profile = cProfile.Profile()
    began = time.perf_counter()
    profile.enable()
    work()
    profile.disable()
    seconds = time.perf_counter() - began
    spent: dict[tuple[str, str], float] = {}
    for (file, _, name), row in pstats.Stats(profile).stats.items():  # type: ignore[attr-defined]
        spent[file, name] = spent.get((file, name), 0.0) + row[3]

    def total(wanted: set[tuple[str, str]]) -> float:
        return sum(
            value for (file, name), value in spent.items() if any(file.endswith(e) and name == n for e, n in wanted)
        )

    inside = {key for keys in _WITHIN.values() for key in keys} if sb3 else set()
    # An SB3 step holds the steps of the episodes; they are counted once.
    outer = {key for key in _ENVIRONMENTS if key[0].startswith("agents") == sb3}
    copies, environments = total(_COPIES), total(outer) - total(inside)
    shares = {"environments": environments, "copies": copies, "policy": seconds - environments - copies}
    return {
        "frames_per_second": round(frames / seconds, 1),
        "shares": {name: round(value / seconds, 3) for name, value in shares.items()},
    }
