"""How the algorithms of Stable-Baselines3 are trained here: judged, kept at their best, resumed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.vec_env import VecMonitor

from restoration_env.agents.policies import roll_out
from restoration_env.agents.sb3 import find_algorithm, make_model
from restoration_env.agents.sb3_policy import SB3Policy, policy_weights, save_sb3_policy
from restoration_env.agents.sb3_vec_env import SB3VecEnv, ScaledRewards
from restoration_env.distortions import recipe
from restoration_env.episodes import Episodes
from restoration_env.errors import check_at_least
from restoration_env.files import check_same_configuration
from restoration_env.images import damaged_patches, load_images
from restoration_env.runs import resumed
from restoration_env.vector_env import RestoreVectorEnv

_NEVER = 1 << 60  # Stable-Baselines3 logs by its own counts; here it logs with every validation


@dataclass(frozen=True)
class SB3Config:
    """Everything that decides the outcome of a training run, apart from images and tools.

    Attributes:
        algo: the algorithm's name in the table.
        steps: actions to take in training.
        envs: episodes side by side.
        severity: the damage to train on, and to validate on.
        max_steps: actions of an episode.
        patch_size: side of the images in pixels.
        reward_unit: dB of one unit of reward.
        evaluate_every: steps between two validations.
        validation_images: images in each.
        seed: of the first weights and of everything random.
    """

    algo: str = "ppo"
    steps: int = 100_000
    envs: int = 16
    severity: str = "moderate"
    max_steps: int = 3
    patch_size: int = 63
    reward_unit: float = 10.0
    evaluate_every: int = 5_000
    validation_images: int = 128
    seed: int = 0

    def __post_init__(self) -> None:
        find_algorithm(self.algo)
        recipe(self.severity)
        check_at_least(1, **{name: getattr(self, name) for name in ("steps", "envs", "max_steps", "evaluate_every")})
        check_at_least(1, validation_images=self.validation_images)
        check_at_least(0, seed=self.seed)


@dataclass(frozen=True)
class SB3Progress:
    """What training reports after every step of all environments; gains are means in dB."""

    steps: int
    total: int
    gain: float | None
    validation_gain: float | None


def train_sb3(
    config: SB3Config,
    path: str | Path,
    *,
    images: str = "bundled",
    toolbox: str = "cnn12",
    precision: str = "float32",
    device: str = "cpu",
    tensorboard: str | Path | None = None,
    checkpoint_seconds: float = 120.0,
    report: Callable[[SB3Progress], None] = lambda progress: None,
    card: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Train a policy, or go on where a killed run of the same configuration stopped.

    Args:
        config: what to train, and how.
        path: receives the best policy found, as `save_sb3_policy` writes it. While training runs, a checkpoint
            stands beside it, without the replay memory of DQN and QR-DQN, which fills again.
        images: clean images by name or folder; their validation split is judged on.
        toolbox: by name.
        precision: of the tools.
        device: where tools and networks compute.
        tensorboard: folder for TensorBoard's logs; needs the package ``tensorboard``.
        checkpoint_seconds: time between two checkpoints; a Ctrl-C writes one too.
        report: called after every step.
        card: further entries of the weights' card.

    Returns:
        The card of the finished policy.

    Raises:
        InvalidArgument: for an unknown name, a package that is not installed, or a checkpoint of another
            configuration; the message says what changed.
    """
    path = Path(path)
    checkpoint = path.with_suffix(".checkpoint")
    run = _Run(config, images, toolbox, precision, device, tensorboard)
    with resumed(run, checkpoint, checkpoint_seconds) as stepped:

        def after_step(validation_gain: float | None) -> None:
            stepped()
            report(SB3Progress(run.model.num_timesteps, config.steps, run.training_gain(), validation_gain))

        run.learn(after_step)
    facts = save_sb3_policy(path, run.model, config.algo, run.toolbox, {**run.facts(), **(card or {})})
    checkpoint.unlink(missing_ok=True)
    return facts


class _Run:
    """The state of a training run."""

    def __init__(
        self,
        config: SB3Config,
        images: str,
        toolbox: str,
        precision: str,
        device: str,
        tensorboard: str | Path | None,
    ) -> None:
        self.config, self.images, self.device = config, Path(images).name, device
        batched = RestoreVectorEnv(
            config.envs,
            images=images,
            severity=config.severity,
            toolbox=toolbox,
            max_steps=config.max_steps,
            patch_size=config.patch_size,
            precision=precision,
            device=device,
        )
        self.toolbox = batched.episodes.toolbox
        size, pool = config.patch_size, load_images(images, "validation").fitting(config.patch_size)
        keys = torch.arange(config.validation_images)
        self.held_out = damaged_patches(pool, keys, recipe(config.severity), size, device=batched.source.device)
        self.model = make_model(
            config.algo,
            ScaledRewards(VecMonitor(SB3VecEnv(batched)), config.reward_unit),
            device=str(batched.source.device),
            tensorboard_log=None if tensorboard is None else str(tensorboard),
            seed=self._drawn_seed(0),
        )
        self.best_gain, self.best = -float("inf"), policy_weights(self.model.policy)
        self.history: list[dict[str, float]] = []
        self.seconds, self.images_seen = 0.0, 0

    def _drawn_seed(self, steps: int) -> int:
        """A seed that has nothing in common with other runs' and with those of other places to go on from."""
        return int(np.random.SeedSequence([self.config.seed, steps]).generate_state(1)[0])

    def learn(self, after_step: Callable[[float | None], None]) -> None:
        """Take the steps that are left, and keep the best weights."""
        left = self.config.steps - self.model.num_timesteps
        if left > 0:
            callback = _Callback(self, after_step)
            self.model.learn(left, callback, _NEVER, tb_log_name=self.config.algo, reset_num_timesteps=False)
        if not self.history or self.history[-1]["steps"] < self.model.num_timesteps:
            after_step(self.judge())
        self.model.policy.load_state_dict(self.best, strict=False)  # what they share is in it once

    @torch.no_grad()
    def judge(self) -> float:
        """The deterministic policy's mean gain in dB; its weights are kept if they are the best so far."""
        clean, damaged = self.held_out
        episodes = Episodes(self.toolbox, max_steps=self.config.max_steps)
        episodes.begin(damaged, clean)
        roll_out(SB3Policy(self.model, self.toolbox), episodes)
        gain = (episodes.psnr - episodes.psnr_initial).mean().item()
        self.history.append({"steps": self.model.num_timesteps, "gain": round(gain, 4)})
        if gain > self.best_gain:
            self.best_gain, self.best = gain, policy_weights(self.model.policy)
        return gain

    def training_gain(self) -> float | None:
        """Mean gain in dB of the last hundred training episodes."""
        buffer = self.model.ep_info_buffer
        return float(np.mean([episode["r"] for episode in buffer])) if buffer else None

    def facts(self) -> dict[str, Any]:
        """What the card says of the training."""
        return {
            "training": {**asdict(self.config), "steps_done": self.model.num_timesteps},
            "images_seen": self.images_seen,
            "seconds": round(self.seconds, 1),
            "device": self.device,
            "validation_gain_db": round(self.best_gain, 4),
            "history": self.history,
        }

    def state(self) -> dict[str, Any]:
        """All that `restore` needs."""
        return {
            "config": {**asdict(self.config), "images": self.images, "tools": ", ".join(self.toolbox.names)},
            "model": self.model.get_parameters(),
            "steps": self.model.num_timesteps,
            "updates": self.model._n_updates,
            "best": self.best,
            "best_gain": self.best_gain,
            "history": self.history,
            "seconds": self.seconds,
            "images_seen": self.images_seen,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint of the same configuration, images and tools; another one is refused."""
        check_same_configuration(state["config"], self.state()["config"])
        self.model.set_parameters(state["model"], device=self.model.device)
        self.model.num_timesteps, self.model._n_updates = state["steps"], state["updates"]
        if isinstance(self.model, OffPolicyAlgorithm):
            self.model.learning_starts += state["steps"]  # the replay memory is empty
        self.model.set_random_seed(self._drawn_seed(state["steps"]))
        self.best, self.best_gain = state["best"], state["best_gain"]
        self.history, self.seconds, self.images_seen = state["history"], state["seconds"], state["images_seen"]


class _Callback(BaseCallback):
    """Validates every so many steps, logs, and says that a step is done."""

    def __init__(self, run: _Run, after_step: Callable[[float | None], None]) -> None:
        super().__init__()
        self.run, self.after_step = run, after_step

    def _on_step(self) -> bool:
        every, gain = self.run.config.evaluate_every, None
        before = self.num_timesteps - self.training_env.num_envs
        self.run.images_seen += int(self.locals["dones"].sum())
        if self.num_timesteps // every > before // every:
            gain = self.run.judge()
            self.logger.record("validation/gain_db", gain)
            self.logger.record("rollout/gain_db", self.run.training_gain())
            self.logger.dump(self.num_timesteps)
        self.after_step(gain)
        return True
