"""How the toolchain agent is trained: deep recurrent Q-learning on whole episodes.

The method is RL-Restore's (Yu et al., CVPR 2018, Section 3.2; Hausknecht and Stone 2015): act with an epsilon
of random actions, remember whole episodes, and fit the Q values of random remembered ones to
r + gamma * max Q_target. Three things differ from the released code. The memory of the network is advanced
on random steps too, as replay will unroll it. Many images are restored at once, so a tool runs once a batch.
And the target takes the action that the learning network prefers (double Q-learning), which does not
overestimate.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from restoration_env.agents.agent import ToolchainAgent, load_agent, save_agent
from restoration_env.agents.network import ToolchainNetwork
from restoration_env.agents.policies import roll_out
from restoration_env.agents.replay import EpisodeBatch, EpisodeReplay
from restoration_env.distortions import recipe
from restoration_env.episodes import Episodes
from restoration_env.errors import InvalidArgument, check_at_least
from restoration_env.files import check_same_configuration, load_checkpoint, save_checkpoint
from restoration_env.images import ImagePool, damaged_patches
from restoration_env.toolbox import Toolbox


@dataclass(frozen=True)
class DRQNConfig:
    """Everything that decides the outcome of a training run, apart from images and tools.

    Attributes:
        episodes: images to restore in training.
        batch: episodes side by side.
        updates: updates after each batch of episodes.
        sample: episodes in an update.
        warmup: episodes before the first update.
        replay: episodes remembered.
        severity: the damage to train on; "mixed" adds single distortions, as the authors advise.
        max_steps: actions of an episode.
        discount: of the next step's value, as published.
        reward_unit: dB of one unit of what the network learns to predict. Values near one keep the recurrent
            memory out of saturation; the shipped weights predict dB.
        learning_rate: Adam's at the start; falls to a twentieth along a cosine.
        epsilon_start: share of random actions at the start.
        epsilon_end: share of random actions from ``epsilon_share`` of the episodes on.
        epsilon_share: part of the training in which epsilon falls.
        start: an agent, by name or path, whose weights to start from, or "".
        target_every: updates between two copies of the target network.
        end_on_harm: end an episode whose PSNR falls under the input's, as published.
        too_good: skip images whose PSNR is above this many dB, as published.
        evaluate_every: batches between two validations.
        validation_images: images of moderate damage in a validation.
        seed: of the first weights and of everything random.
    """

    episodes: int = 60_000
    batch: int = 64
    updates: int = 3
    sample: int = 64
    warmup: int = 1_024
    replay: int = 12_000
    severity: str = "mixed"
    max_steps: int = 3
    discount: float = 0.99
    reward_unit: float = 10.0
    learning_rate: float = 5e-4
    epsilon_start: float = 1.0
    epsilon_end: float = 0.1
    epsilon_share: float = 0.4
    start: str = ""
    target_every: int = 200
    end_on_harm: bool = True
    too_good: float = 50.0
    evaluate_every: int = 50
    validation_images: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        recipe(self.severity)
        counts = {name: getattr(self, name) for name in ("episodes", "batch", "sample", "warmup", "max_steps")}
        check_at_least(1, **counts, evaluate_every=self.evaluate_every, validation_images=self.validation_images)
        check_at_least(0, updates=self.updates, learning_rate=self.learning_rate, seed=self.seed)
        check_at_least(self.batch, replay=self.replay)


@dataclass(frozen=True)
class DRQNProgress:
    """What training reports after every batch of episodes."""

    episodes: int
    total: int
    epsilon: float
    loss: float
    gain: float
    validation_gain: float | None


def train_drqn(
    config: DRQNConfig,
    toolbox: Toolbox,
    train: ImagePool,
    validation: ImagePool,
    path: str | Path,
    *,
    device: torch.device | str = "cpu",
    checkpoint_seconds: float = 120.0,
    report: Callable[[DRQNProgress], None] = lambda progress: None,
    card: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Train an agent, or go on where a killed run of the same configuration stopped.

    Args:
        config: how to train.
        toolbox: what the actions do.
        train: clean images to learn from.
        validation: other clean images; the weights with the best gain on their damage are kept.
        path: the safetensors file to write; the checkpoint stands beside it on the way.
        device: where everything runs.
        checkpoint_seconds: time between two checkpoints. The replay memory is not in them: it is filled
            again after a resume.
        report: called after every batch of episodes.
        card: further entries of the weights' card.

    Returns:
        The card of the finished weights.

    Raises:
        InvalidArgument: if there is a checkpoint of another configuration or toolbox.
    """
    path = Path(path)
    checkpoint = path.with_suffix(".checkpoint")
    run = _Run(config, toolbox, device)
    if checkpoint.exists():
        run.restore(load_checkpoint(checkpoint))
    size = run.learner.patch_size
    train, validation = train.fitting(size), validation.fitting(size)
    held_out = damaged_patches(
        validation, torch.arange(config.validation_images), recipe("moderate"), size, device=device
    )

    began = saved = time.monotonic()
    while run.episodes < config.episodes:
        key = (config.seed << 32) + run.episodes
        batch = damaged_patches(
            train, torch.arange(key, key + config.batch), recipe(config.severity), size, device=device
        )
        gain = run.play(*batch)
        run.episodes += config.batch
        losses = [run.learn() for _ in range(config.updates)] if len(run.replay) >= config.warmup else []
        judged = None
        if (run.episodes // config.batch) % config.evaluate_every == 0 or run.episodes >= config.episodes:
            judged = run.judge(*held_out)
        if time.monotonic() - saved > checkpoint_seconds:
            run.seconds += time.monotonic() - began
            began = saved = time.monotonic()
            save_checkpoint(checkpoint, run.state())
        loss = sum(losses) / len(losses) if losses else 0.0
        report(DRQNProgress(run.episodes, config.episodes, run.epsilon(), loss, gain, judged))
    run.seconds += time.monotonic() - began
    facts = {
        "training": {**asdict(config), "episodes_done": run.episodes, "updates_done": run.updates},
        "seconds": round(run.seconds, 1),
        "device": str(device),
        "validation_gain_db": round(run.best_gain, 4),
        **(card or {}),
    }
    run.learner.load_state_dict(run.best)
    run.learner.scale_values(config.reward_unit)
    save_agent(path, run.agent, facts)
    checkpoint.unlink(missing_ok=True)
    return facts


class _Run:
    """The state of a training run."""

    def __init__(self, config: DRQNConfig, toolbox: Toolbox, device: torch.device | str) -> None:
        self.config, self.toolbox, self.device = config, toolbox, torch.device(device)
        torch.manual_seed(config.seed)
        self.learner = ToolchainNetwork(len(toolbox)).to(self.device)
        if config.start:
            known = load_agent(config.start, toolbox=toolbox).network
            if known.kind != self.learner.kind:
                got = "a lookahead agent" if known.kind == "critic" else f"one with the network {known.kind!r}"
                raise InvalidArgument("start", f"an agent with the network {self.learner.kind!r}", got)
            self.learner.load_state_dict(known.state_dict())
            self.learner.scale_values(1.0 / config.reward_unit)
        self.target = ToolchainNetwork(len(toolbox)).to(self.device).requires_grad_(False)
        self.target.load_state_dict(self.learner.state_dict())
        self.agent = ToolchainAgent(self.learner, toolbox, config.max_steps)
        self.optimizer = torch.optim.Adam(self.learner.parameters(), config.learning_rate)
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
            self.optimizer,
            max(1, (config.episodes - config.warmup) // config.batch * config.updates),
            config.learning_rate / 20,
        )
        self.replay: EpisodeReplay[EpisodeBatch] = EpisodeReplay(config.replay)
        self.generator = torch.Generator().manual_seed(config.seed)
        self.episodes, self.updates, self.seconds = 0, 0, 0.0
        self.best_gain, self.best = -float("inf"), self._weights()

    def _weights(self) -> dict[str, Tensor]:
        return {name: value.detach().clone() for name, value in self.learner.state_dict().items()}

    def epsilon(self) -> float:
        """The share of random actions now."""
        share = self.episodes / max(1.0, self.config.episodes * self.config.epsilon_share)
        first, last = self.config.epsilon_start, self.config.epsilon_end
        return max(last, first - (first - last) * share)

    @torch.no_grad()
    def play(self, clean: Tensor, damaged: Tensor) -> float:
        """Restore a batch with epsilon-greedy actions and remember it; returns the mean gain in dB."""
        episodes = Episodes(self.toolbox, max_steps=self.config.max_steps)
        episodes.begin(damaged, clean)
        episodes.done = episodes.psnr > self.config.too_good
        self.agent.reset(len(clean))
        steps: list[tuple[Tensor, ...]] = []
        for _ in range(self.config.max_steps):
            seen, valid = episodes.observation(), ~episodes.done
            greedy = self.agent.act(seen)
            explore = torch.rand(len(greedy), generator=self.generator) < self.epsilon()
            random = torch.randint(self.toolbox.stop + 1, (len(greedy),), generator=self.generator)
            actions = torch.where(explore.to(self.device), random.to(self.device), greedy)
            rewards = episodes.step(actions)
            if self.config.end_on_harm:
                episodes.done |= episodes.psnr < episodes.psnr_initial
            steps.append((seen["image"], seen["last_action"], actions, rewards.float(), valid))
        batch = EpisodeBatch(*(torch.stack(parts, 1) for parts in zip(*steps, strict=True)))
        used = batch.valid[:, 0]
        self.replay.add(EpisodeBatch(*(part[used] for part in batch)))
        return (episodes.psnr - episodes.psnr_initial).mean().item()

    def learn(self) -> float:
        """One update on remembered episodes; returns the Huber loss."""
        batch = self.replay.sample(self.config.sample, self.generator)
        q = unroll(self.learner, batch)
        chosen = q.gather(2, batch.actions[..., None])[..., 0]
        with torch.no_grad():
            best = q.argmax(2, keepdim=True)
            following = unroll(self.target, batch).gather(2, best)[..., 0]
            goes_on = torch.zeros_like(batch.rewards)
            goes_on[:, :-1] = batch.valid[:, 1:].float()
            value = torch.cat((following[:, 1:], following[:, :1] * 0), 1)
            goal = batch.rewards / self.config.reward_unit + self.config.discount * goes_on * value
        loss = F.smooth_l1_loss(chosen[batch.valid], goal[batch.valid])
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.learner.parameters(), 10.0)
        self.optimizer.step()
        self.schedule.step()
        self.updates += 1
        if self.updates % self.config.target_every == 0:
            self.target.load_state_dict(self.learner.state_dict())
        return loss.item()

    def judge(self, clean: Tensor, damaged: Tensor) -> float:
        """The greedy agent's mean gain in dB; its weights are kept if they are the best so far."""
        episodes = Episodes(self.toolbox, max_steps=self.config.max_steps)
        episodes.begin(damaged, clean)
        roll_out(self.agent, episodes)
        gain = (episodes.psnr - episodes.psnr_initial).mean().item()
        if gain > self.best_gain:
            self.best_gain, self.best = gain, self._weights()
        return gain

    def state(self) -> dict[str, Any]:
        """All that `restore` needs."""
        return {
            "config": {**asdict(self.config), "tools": ", ".join(self.toolbox.names)},
            "learner": self.learner.state_dict(),
            "target": self.target.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "generator": self.generator.get_state(),
            "best": self.best,
            "best_gain": self.best_gain,
            "episodes": self.episodes,
            "updates": self.updates,
            "seconds": self.seconds,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint of the same configuration and tools; another one is refused."""
        check_same_configuration(state["config"], self.state()["config"])
        for name in ("learner", "target", "optimizer", "schedule"):
            getattr(self, name).load_state_dict(state[name])
        self.generator.set_state(state["generator"])
        self.best, self.best_gain = state["best"], state["best_gain"]
        self.episodes, self.updates, self.seconds = state["episodes"], state["updates"], state["seconds"]


def unroll(network: ToolchainNetwork, batch: EpisodeBatch) -> Tensor:
    """Q values of every step of remembered episodes, float (N, T, actions)."""
    n, steps = batch.actions.shape
    features = network.features(batch.images.flatten(0, 1)).view(n, steps, -1)
    state, values = network.initial_state(n), []
    for step in range(steps):
        q, state = network.advance(features[:, step], batch.last_actions[:, step], state)
        values.append(q)
    return torch.stack(values, 1)
