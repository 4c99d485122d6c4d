"""How the lookahead agent learns to judge: its critic learns to restore damage of every kind in a single pass.

No tool is run in training, and no agent plays. What is learned is what a clean image looks like, given a damaged one;
how near a tool's outcome comes to that is for the agent to see when it decides.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from restoration_env.agents.agent import WEIGHTS, agent_names, save_agent
from restoration_env.agents.critic import RestoringCritic
from restoration_env.agents.lookahead import LookaheadAgent
from restoration_env.agents.validation import mean_gains, validation_batches
from restoration_env.distortions import recipe
from restoration_env.errors import InvalidArgument, UnknownName, check_at_least
from restoration_env.files import read_weights
from restoration_env.images import ImagePool, damaged_patches
from restoration_env.runs import resumed
from restoration_env.schedules import cosine
from restoration_env.toolbox import Toolbox
from restoration_env.tools.optimizers import OPTIMIZERS
from restoration_env.tools.restoring import ENOUGH, RestoringRun, mean_gain

_FIRST_KEY = 1 << 46  # of the training patches, so that no other training draws the same


@dataclass(frozen=True)
class LookaheadConfig:
    """Everything that decides the outcome of a training run, apart from images and tools.

    Attributes:
        episodes: damaged images to see; 0 with a ``start`` that is to be taken as it is.
        batch: images of a step.
        severity: the damage to train on.
        max_steps: tools of a chain of the finished agent.
        critic_width: channels of the critic's network.
        learning_rate: at the peak of the cosine schedule.
        optimizer: "adamw", or "muon" (`restoration_env.tools.optimizers`).
        muon_rate: Muon's learning rate at the peak.
        averaging: decay of the weight average, which is what is judged and kept.
        start: weights to start from, or "": those of a lookahead agent, or of the single network
            equal-multiply-adds (``restoration-env train single``).
        width: of the beam of the finished agent: how many chains it follows from step to step.
        evaluate_every: steps between two validations.
        validation_images: images of each severity in a validation.
        seed: of the first weights and of everything random.
    """

    episodes: int = 200_000
    batch: int = 64
    severity: str = "every"
    max_steps: int = 3
    critic_width: int = 48
    learning_rate: float = 1e-3
    optimizer: str = "muon"
    muon_rate: float = 4e-3
    averaging: float = 0.995
    start: str = ""
    width: int = 2
    evaluate_every: int = 200
    validation_images: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        recipe(self.severity)
        if self.optimizer not in OPTIMIZERS:
            raise UnknownName("optimizer", self.optimizer, OPTIMIZERS)
        counts = {name: getattr(self, name) for name in ("batch", "max_steps", "critic_width", "width")}
        check_at_least(1, **counts, evaluate_every=self.evaluate_every, validation_images=self.validation_images)
        check_at_least(0 if self.start else 1, episodes=self.episodes)
        check_at_least(0, learning_rate=self.learning_rate, muon_rate=self.muon_rate, seed=self.seed)


@dataclass(frozen=True)
class LookaheadProgress:
    """What training reports after every step; ``validation`` is the critic's own mean gain in dB on each severity."""

    images: int
    total: int
    loss: float
    validation: Mapping[str, float] | None


def train_lookahead(
    config: LookaheadConfig,
    toolbox: Toolbox,
    train: ImagePool,
    validation: ImagePool,
    path: str | Path,
    *,
    device: torch.device | str = "cpu",
    precision: str = "float32",
    checkpoint_seconds: float = 120.0,
    report: Callable[[LookaheadProgress], None] = lambda progress: None,
    card: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Train a lookahead agent, or go on where a killed run of the same configuration stopped.

    Args:
        config: how to train.
        toolbox: what the actions of the finished agent do.
        train: clean images to learn from.
        validation: other clean images, to judge on.
        path: the safetensors file to write; the checkpoint stands beside it on the way.
        device: where everything runs.
        precision: "float32", or "bfloat16" for autocast of the critic in training.
        checkpoint_seconds: time between two checkpoints; a Ctrl-C writes one too.
        report: called after every step.
        card: further entries of the weights' card.

    Returns:
        The card of the finished weights.

    Raises:
        InvalidArgument: if there is a checkpoint of another configuration or toolbox, or ``start`` is of another kind.
        TrainingDiverged: if the loss is no longer a number; the last good checkpoint stays.
    """
    path = Path(path)
    checkpoint = path.with_suffix(".checkpoint")
    run = _Run(config, toolbox, device, precision)
    size, damage = run.critic.patch_size, recipe(config.severity)
    train = train.fitting(size)
    held_out = validation_batches(validation, config.validation_images, size, device)
    with resumed(run, checkpoint, checkpoint_seconds) as stepped:
        while run.images < config.episodes:
            keys = torch.arange(config.batch) + (config.seed << 32) + _FIRST_KEY + run.images
            share = cosine(run.images, config.episodes, warmup=100 * config.batch)
            loss = run.descend(*damaged_patches(train, keys, damage, size, device=device, turns=True), share)
            judged = None
            if run.images >= config.episodes or run.iteration % config.evaluate_every == 0:
                judged = {name: mean_gain(run.average.module, *batch) for name, batch in held_out.items()}
                run.judge(sum(judged.values()) / len(judged))
            stepped(loss)
            report(LookaheadProgress(run.images, config.episodes, loss, judged))
    agent = run.agent(held_out)
    gains = mean_gains(agent, held_out)
    facts = {
        "training": {"algorithm": "lookahead", **asdict(config)},
        "started_from": run.origin,
        "images_seen": run.images + run.seen_before,
        "seconds": round(run.seconds, 1),
        "device": str(device),
        "validation_gain_db": round(sum(gains.values()) / len(gains), 4),
        "validation_gains_db": {name: round(gain, 4) for name, gain in gains.items()},
        "history": run.history,
        **(card or {}),
    }
    save_agent(path, agent, facts)
    checkpoint.unlink(missing_ok=True)
    return facts


class _Run(RestoringRun):
    """The state of a training run of a critic's network."""

    def __init__(self, config: LookaheadConfig, toolbox: Toolbox, device: torch.device | str, precision: str) -> None:
        self.config, self.toolbox = config, toolbox
        torch.manual_seed(config.seed)
        self.critic, self.seen_before, seconds = RestoringCritic(config.critic_width), 0, 0.0
        self.origin: dict[str, Any] | None = None
        if config.start:
            seconds = self._start_from(config.start)
        identity = {**asdict(config), "precision": precision, "tools": ", ".join(toolbox.names)}
        super().__init__(self.critic.restorer, config, identity, device, precision)
        self.seconds = seconds

    def _start_from(self, start: str) -> float:
        tensors, card = read_weights(WEIGHTS / f"{start}.safetensors" if start in agent_names() else start)
        if card.get("network") == "equal-multiply-adds":
            tensors = {"unknown": self.critic.unknown, **{f"restorer.{name}": value for name, value in tensors.items()}}
        elif card.get("network") != RestoringCritic.kind:
            got = f"{start}, whose network is {card.get('network')!r}"
            raise InvalidArgument("start", "a lookahead agent or a single network equal-multiply-adds", got)
        width = len(tensors["restorer.head.weight"])
        if width != self.config.critic_width:
            raise InvalidArgument("start", f"a critic of width {self.config.critic_width}", f"one of width {width}")
        self.critic.load_state_dict({name: value.float() for name, value in tensors.items()})
        self.origin = {key: card.get(key) for key in ("name", "sha256", "command", "commit", "seconds")}
        self.seen_before = card.get("images_seen", card.get("patches_seen", 0))
        return card.get("seconds", 0.0)

    @property
    def images(self) -> int:
        """Images seen, without those of the weights it started from."""
        return self.iteration * self.config.batch

    @torch.no_grad()
    def agent(self, held_out: Mapping[str, tuple[Tensor, Tensor]]) -> LookaheadAgent:
        """The agent of the best weights; what its critic cannot know is measured on held-out images."""
        critic = RestoringCritic(self.config.critic_width).to(self.device).eval()
        critic.restorer.load_state_dict(self.best)
        errors = []
        for clean, damaged in held_out.values():
            made = torch.cat([critic.restorer(part).clamp(0.0, 1.0) for part in damaged.split(32)])
            errors.append((made - clean).square().mean((1, 2, 3)))
        critic.unknown.copy_((torch.cat(errors) + ENOUGH).log().mean().exp())
        agent = LookaheadAgent(critic.requires_grad_(False), self.toolbox, self.config.max_steps)
        agent.width = self.config.width
        return agent
