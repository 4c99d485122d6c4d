"""How the toolchain agent is trained: deep recurrent Q-learning on whole episodes.

The method is RL-Restore's (Yu et al., CVPR 2018, Section 3.2; Hausknecht and Stone 2015): act with an epsilon
of random actions, remember whole episodes, and fit the Q values of random remembered ones to
r + gamma * max Q_target. Three things differ from the released code. The memory of the network is advanced
on random steps too, as replay will unroll it. Many images are restored at once, so a tool runs once a batch.
And the target takes the action that the learning network prefers (double Q-learning), which does not
overestimate. That and what else became usual since are options, to be switched off and on one by one.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from restoration_env.agents.agent import ToolchainAgent, load_agent, save_agent
from restoration_env.agents.network import NETWORKS, DuelingHead, ToolchainNetwork, build_network
from restoration_env.agents.policies import roll_out
from restoration_env.agents.replay import EpisodeBatch, EpisodeReplay, PrioritisedReplay
from restoration_env.distortions import recipe
from restoration_env.episodes import Episodes
from restoration_env.errors import InvalidArgument, UnknownName, check_at_least
from restoration_env.files import check_same_configuration
from restoration_env.images import ImagePool, damaged_patches
from restoration_env.runs import resumed
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
        network: "published" for the paper's, or "statistics".
        double: let the learner choose the action whose value the target network gives (van Hasselt et al., 2016).
        dueling: learn values of states and advantages of actions (Wang et al., 2016).
        n_step: rewards that are summed before a value is estimated; with as many as ``max_steps``, none is.
        prioritised: how much more often episodes with large errors are remembered (Schaul et al., 2016); 0 not at
            all, 0.6 as published.
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
    network: str = "published"
    double: bool = True
    dueling: bool = False
    n_step: int = 1
    prioritised: float = 0.0
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
        if self.network not in NETWORKS:
            raise UnknownName("network", self.network, NETWORKS)
        names = ("episodes", "batch", "sample", "warmup", "max_steps", "n_step")
        counts = {name: getattr(self, name) for name in names}
        check_at_least(1, **counts, evaluate_every=self.evaluate_every, validation_images=self.validation_images)
        check_at_least(0, updates=self.updates, learning_rate=self.learning_rate, seed=self.seed)
        check_at_least(0, prioritised=self.prioritised)
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
    size = run.learner.patch_size
    train, validation = train.fitting(size), validation.fitting(size)
    held_out = damaged_patches(
        validation, torch.arange(config.validation_images), recipe("moderate"), size, device=device
    )

    with resumed(run, checkpoint, checkpoint_seconds) as stepped:
        while run.episodes < config.episodes:
            keys = torch.arange(config.batch) + (config.seed << 32) + run.episodes
            gain = run.play(*damaged_patches(train, keys, recipe(config.severity), size, device=device))
            run.episodes += config.batch
            losses = [run.learn() for _ in range(config.updates)] if len(run.replay) >= config.warmup else []
            judged = None
            if (run.episodes // config.batch) % config.evaluate_every == 0 or run.episodes >= config.episodes:
                judged = run.judge(*held_out)
            loss = sum(losses) / len(losses) if losses else 0.0
            stepped(loss)
            report(DRQNProgress(run.episodes, config.episodes, run.epsilon(), loss, gain, judged))
    facts = {
        "training": {**asdict(config), "episodes_done": run.episodes, "updates_done": run.updates},
        "images_seen": run.episodes,
        "seconds": round(run.seconds, 1),
        "device": str(device),
        "validation_gain_db": round(run.best_gain, 4),
        "history": run.history,
        **(card or {}),
    }
    save_agent(path, run.finished(), facts)
    checkpoint.unlink(missing_ok=True)
    return facts


class _Run:
    """The state of a training run."""

    def __init__(self, config: DRQNConfig, toolbox: Toolbox, device: torch.device | str) -> None:
        self.config, self.toolbox, self.device = config, toolbox, torch.device(device)
        torch.manual_seed(config.seed)
        self.learner = build_network(config.network, len(toolbox)).to(self.device)
        if config.start:
            known = load_agent(config.start, toolbox=toolbox).network
            if known.kind != self.learner.kind:
                got = "a lookahead agent" if known.kind == "critic" else f"one with the network {known.kind!r}"
                raise InvalidArgument("start", f"an agent with the network {self.learner.kind!r}", got)
            self.learner.load_state_dict(known.state_dict())
            self.learner.scale_values(1.0 / config.reward_unit)
        if config.dueling:
            assert isinstance(self.learner.q, torch.nn.Linear)
            self.learner.q = DuelingHead(self.learner.q).to(self.device)
        self.target = copy.deepcopy(self.learner).requires_grad_(False).eval()
        self.agent = ToolchainAgent(self.learner, toolbox, config.max_steps)
        self.optimizer = torch.optim.Adam(self.learner.parameters(), config.learning_rate)
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
            self.optimizer,
            max(1, (config.episodes - config.warmup) // config.batch * config.updates),
            config.learning_rate / 20,
        )
        self.replay: EpisodeReplay[EpisodeBatch] = EpisodeReplay(config.replay)
        if config.prioritised:
            self.replay = PrioritisedReplay(config.replay, config.prioritised)
        self.generator = torch.Generator().manual_seed(config.seed)
        self.episodes, self.updates, self.seconds = 0, 0, 0.0
        self.best_gain, self.best = -float("inf"), self._weights()
        self.history: list[dict[str, float]] = []

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
        config = self.config
        rows = self.replay.draw(config.sample, self.generator)
        batch = self.replay.take(rows)
        self.learner.train()
        q = unroll(self.learner, batch)
        self.learner.eval()
        chosen = q.gather(2, batch.actions[..., None])[..., 0]
        with torch.no_grad():
            ahead = unroll(self.target, batch)
            best = (q if config.double else ahead).argmax(2, keepdim=True)
            values = ahead.gather(2, best)[..., 0]
            goal = n_step_returns(
                batch.rewards / config.reward_unit, values, batch.valid, config.discount, config.n_step
            )
        errors = F.smooth_l1_loss(chosen, goal, reduction="none")
        if isinstance(self.replay, PrioritisedReplay):
            self.replay.update(rows, (chosen - goal).masked_fill(~batch.valid, torch.nan))
            correction = 0.4 + 0.6 * min(1.0, self.episodes / config.episodes)
            errors = errors * self.replay.weights(rows, correction).to(errors)[:, None]
        loss = errors[batch.valid].mean()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.learner.parameters(), 10.0)
        self.optimizer.step()
        self.schedule.step()
        self.updates += 1
        if self.updates % config.target_every == 0:
            self.target.load_state_dict(self.learner.state_dict())
        return loss.item()

    def judge(self, clean: Tensor, damaged: Tensor) -> float:
        """The greedy agent's mean gain in dB; its weights are kept if they are the best so far."""
        episodes = Episodes(self.toolbox, max_steps=self.config.max_steps)
        episodes.begin(damaged, clean)
        roll_out(self.agent, episodes)
        gain = (episodes.psnr - episodes.psnr_initial).mean().item()
        self.history.append({"images": self.episodes, "gain": round(gain, 4)})
        if gain > self.best_gain:
            self.best_gain, self.best = gain, self._weights()
        return gain

    def finished(self) -> ToolchainAgent:
        """The agent of the best weights, whose Q values are in dB."""
        self.learner.load_state_dict(self.best)
        if isinstance(self.learner.q, DuelingHead):
            self.learner.q = self.learner.q.folded()
        self.learner.scale_values(self.config.reward_unit)
        return self.agent

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
            "history": self.history,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint of the same configuration and tools; another one is refused."""
        check_same_configuration(state["config"], self.state()["config"])
        for name in ("learner", "target", "optimizer", "schedule"):
            getattr(self, name).load_state_dict(state[name])
        self.generator.set_state(state["generator"])
        self.best, self.best_gain = state["best"], state["best_gain"]
        self.episodes, self.updates, self.seconds = state["episodes"], state["updates"], state["seconds"]
        self.history = state["history"]


def n_step_returns(rewards: Tensor, values: Tensor, valid: Tensor, discount: float, steps: int) -> Tensor:
    """What to regress Q values on: so many rewards, then the value of the state that they lead to.

    Args:
        rewards: float (N, T).
        values: float (N, T), of the state before each step.
        valid: bool (N, T), whether the step was taken; where it was not, the episode had ended.
        discount: of each step.
        steps: rewards to sum, 1 or more.

    Returns:
        float (N, T).
    """
    counted, worth = torch.where(valid, rewards, 0.0), torch.where(valid, values, 0.0)
    returns = torch.zeros_like(rewards)
    for ahead in range(min(steps, rewards.shape[1])):
        returns = returns + discount**ahead * F.pad(counted[:, ahead:], (0, ahead))
    beyond = min(steps, rewards.shape[1])
    return returns + discount**steps * F.pad(worth[:, beyond:], (0, beyond))


def unroll(network: ToolchainNetwork, batch: EpisodeBatch) -> Tensor:
    """Q values of every step of remembered episodes, float (N, T, actions)."""
    n, steps = batch.actions.shape
    features = network.features(batch.images.flatten(0, 1)).view(n, steps, -1)
    state, values = network.initial_state(n), []
    for step in range(steps):
        q, state = network.advance(features[:, step], batch.last_actions[:, step], state)
        values.append(q)
    return torch.stack(values, 1)
