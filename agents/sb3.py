"""The algorithms of Stable-Baselines3 and sb3-contrib on this problem: their settings, their eyes, their making."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from restoration_env.agents.network import StatisticsNetwork, build_network
from restoration_env.errors import InvalidArgument, UnknownName
from restoration_env.registry import find_target


@dataclass(frozen=True)
class Algorithm:
    """A row of the table.

    Attributes:
        name: what users call it.
        target: "module:class".
        policy: the class of its policy, by the name the algorithm knows it under.
        learning_rate: at the start; falls to a twentieth along a line.
        steps: of all environments together, between two rounds of updates.
        settings: what differs from the defaults of Stable-Baselines3.
        network: what differs from the defaults of the policy, beside the features.
    """

    name: str
    target: str
    policy: str
    learning_rate: float
    steps: int
    settings: Mapping[str, Any]
    network: Mapping[str, Any]


_REPLAY = {
    "buffer_size": 20_000,  # 24 kB each: the memory holds the image before and the one after a step
    "learning_starts": 500,
    "batch_size": 32,
    "gradient_steps": 16,
    "target_update_interval": 1_000,
    "exploration_fraction": 0.4,
    "exploration_final_eps": 0.05,
    "gamma": 1.0,
}
_ROLLOUT = {
    "gamma": 1.0,
    "gae_lambda": 0.95,
    "ent_coef": 0.03,  # with less, all images soon get one chain, and nothing is learned from the others
    "vf_coef": 5.0,  # returns are a third of a unit apart: with less, the eyes learn nothing from foreseeing them
    "normalize_advantage": True,
}
_CLIPPED = {**_ROLLOUT, "batch_size": 32, "n_epochs": 4}
_RECURRENT = {**_CLIPPED, "vf_coef": 2.0}  # with more it learned unsteadily
_ADAM = {**_ROLLOUT, "use_rms_prop": False}
_VALUES = {"net_arch": [64]}
_ACTOR_CRITIC = {"net_arch": [64], "ortho_init": False}  # orthogonal weights would replace those of the features
# A critic behind the actor's memory would send nothing back to the eyes: it has none, and looks for itself.
_MEMORY = {**_ACTOR_CRITIC, "lstm_hidden_size": 64, "shared_lstm": False, "enable_critic_lstm": False}
_QUANTILES = {**_VALUES, "n_quantiles": 50}

# Rewards are in units of ten dB. Small batches of few steps: what takes long here is to learn to see.
ALGORITHMS = (
    Algorithm("dqn", "stable_baselines3:DQN", "MultiInputPolicy", 5e-4, 64, _REPLAY, _VALUES),
    Algorithm("qrdqn", "sb3_contrib:QRDQN", "MultiInputPolicy", 5e-4, 64, _REPLAY, _QUANTILES),
    Algorithm("a2c", "stable_baselines3:A2C", "MultiInputPolicy", 2e-3, 48, _ADAM, _ACTOR_CRITIC),
    Algorithm("ppo", "stable_baselines3:PPO", "MultiInputPolicy", 1e-3, 256, _CLIPPED, _ACTOR_CRITIC),
    Algorithm("maskable-ppo", "sb3_contrib:MaskablePPO", "MultiInputPolicy", 1e-3, 256, _CLIPPED, _ACTOR_CRITIC),
    Algorithm("recurrent-ppo", "sb3_contrib:RecurrentPPO", "MultiInputLstmPolicy", 1e-3, 256, _RECURRENT, _MEMORY),
)


class RestoreFeatures(BaseFeaturesExtractor):
    """What a policy makes of an observation: the toolchain agent's view of the image, last action, steps left.

    The eyes are those of `StatisticsNetwork`. How its maps are normalised is decided by the first images seen and
    then stays: algorithms that compare a policy with what it was a moment ago cannot have it change by itself.

    Args:
        observation_space: that of `Restore-v0`, the image with channels first.
    """

    def __init__(self, observation_space: spaces.Dict) -> None:
        actions, steps = _size(observation_space, "last_action"), _size(observation_space, "steps_left")
        eyes = build_network("statistics", actions - 1, _patch_size(observation_space))
        assert isinstance(eyes, StatisticsNetwork)
        super().__init__(observation_space, eyes.fc.out_features + actions + steps)
        del eyes.gates, eyes.q
        for norm in eyes.norms:
            assert isinstance(norm, torch.nn.BatchNorm2d)
            norm.momentum = None  # what is seen while the mode is training decides alone
        self.eyes = eyes

    def train(self, mode: bool = True) -> RestoreFeatures:
        """Change the mode of everything but the normalisation."""
        super().train(mode)
        self.eyes.norms.eval()
        return self

    def forward(self, observations: Mapping[str, Tensor]) -> Tensor:
        """Features, float (N, 32 + actions + steps): images float (N, 3, H, W) in [0, 1], the others one-hot."""
        images = observations["image"]
        if not self.eyes.norms[0].num_batches_tracked:
            self.eyes.norms.train()
            with torch.no_grad():
                self.eyes.features(images)
            self.eyes.norms.eval()
        said = [observations[name].flatten(1) for name in ("last_action", "steps_left")]  # buffers hold (N, 1, n)
        return torch.cat((self.eyes.features(images), *said), 1)


def _size(space: spaces.Dict, name: str) -> int:
    part = space[name]
    if not isinstance(part, spaces.Discrete):
        raise InvalidArgument("observation_space", f"that of Restore-v0, {name!r} Discrete", part)
    return int(part.n)


def _patch_size(space: spaces.Dict) -> int:
    shape = space["image"].shape
    if shape is None or len(shape) != 3 or shape[0] != 3 or shape[1] != shape[2]:
        raise InvalidArgument("observation_space", "that of Restore-v0, 'image' (3, size, size)", shape)
    return int(shape[1])


def algorithm_names() -> tuple[str, ...]:
    """The names of the algorithms in the table."""
    return tuple(row.name for row in ALGORITHMS)


def find_algorithm(name: str) -> Algorithm:
    """A row of the table by name.

    Raises:
        UnknownName: if there is none; the message lists those there are.
    """
    for row in ALGORITHMS:
        if row.name == name:
            return row
    raise UnknownName("algo", name, algorithm_names())


def algorithm_class(row: Algorithm) -> type[BaseAlgorithm]:
    """The class of an algorithm.

    Raises:
        InvalidArgument: if its package is not installed.
    """
    try:
        found: Any = find_target(row.target)
    except ModuleNotFoundError as error:
        package = row.target.partition(":")[0]
        if error.name != package:
            raise
        expected = f"one whose package is installed ({package}: pip install 'restoration-env[baselines]')"
        raise InvalidArgument("algo", expected, repr(row.name)) from None
    return found


def make_model(name: str, envs: VecEnv, *, device: str = "cpu", **settings: Any) -> BaseAlgorithm:
    """An untrained model with the settings of the table.

    Args:
        name: of the algorithm.
        envs: what to learn on; its rewards should be near one (`ScaledRewards`).
        device: where the networks compute.
        settings: arguments of the algorithm, in place of those of the table.
    """
    row = find_algorithm(name)
    maker: Any = algorithm_class(row)
    replays = issubclass(maker, OffPolicyAlgorithm)
    batch = 1 if replays else row.settings.get("batch_size", 1)
    chosen: dict[str, Any] = {
        "learning_rate": LinearSchedule(row.learning_rate, row.learning_rate / 20, 1.0),
        "train_freq" if replays else "n_steps": _each(row.steps, envs.num_envs, batch),
        **row.settings,
        **settings,
    }
    return maker(row.policy, envs, policy_kwargs=policy_settings(row.network), device=device, **chosen)


def _each(steps: int, envs: int, batch: int) -> int:
    """The share of each environment in about so many steps, which shall be whole batches together."""
    least = batch // math.gcd(envs, batch)
    return least * max(1, round(steps / envs / least))


def policy_settings(network: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a policy with these settings of its network and with `RestoreFeatures`."""
    return {"features_extractor_class": RestoreFeatures, **network}
