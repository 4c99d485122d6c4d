"""How the lookahead agent learns to judge: its critic learns to restore damage of every kind in a single pass.

No tool is run in training, and no agent plays. What is learned is what a clean image looks like, given a damaged one;
how near a tool's outcome comes to that is for the agent to see when it decides.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from restoration_env.agents.agent import WEIGHTS, agent_names, save_agent
from restoration_env.agents.critic import RestoringCritic
from restoration_env.agents.lookahead import LookaheadAgent
from restoration_env.agents.validation import mean_gains, validation_batches
from restoration_env.distortions import recipe
from restoration_env.errors import InvalidArgument, TrainingDiverged, UnknownName, check_at_least
from restoration_env.files import check_same_configuration, read_weights
from restoration_env.images import ImagePool, damaged_patches
from restoration_env.metrics import psnr
from restoration_env.runs import resumed
from restoration_env.schedules import cosine
from restoration_env.toolbox import Toolbox
from restoration_env.tools.optimizers import OPTIMIZERS, ToolOptimizer
from restoration_env.tools.training import ENOUGH, backward

_FIRST_KEY = 1 << 46  # of the training patches, so that no other training draws the same
_PART = 32  # images at once, on a processor


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
            loss = run.step(*damaged_patches(train, keys, damage, size, device=device, turns=True))
            if not math.isfinite(loss):
                message = f"the critic diverged after {run.images} images (loss {loss})"
                raise TrainingDiverged(f"{message}; the last good checkpoint is kept in {checkpoint}")
            judged = None
            if run.images >= config.episodes or (run.images // config.batch) % config.evaluate_every == 0:
                judged = run.judge(held_out)
                run.history.append({"images": run.images, **{name: round(gain, 4) for name, gain in judged.items()}})
            stepped()
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


class _Run:
    """The state of a training run."""

    def __init__(self, config: LookaheadConfig, toolbox: Toolbox, device: torch.device | str, precision: str) -> None:
        self.config, self.toolbox, self.device, self.precision = config, toolbox, torch.device(device), precision
        torch.manual_seed(config.seed)
        self.critic, self.seen_before, self.seconds = RestoringCritic(config.critic_width), 0, 0.0
        self.origin: dict[str, Any] | None = None
        if config.start:
            self._start_from(config.start)
        self.critic.to(self.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        decay = torch.optim.swa_utils.get_ema_multi_avg_fn(config.averaging)
        self.average = torch.optim.swa_utils.AveragedModel(self.critic, multi_avg_fn=decay).eval()
        rates = config.learning_rate, config.muon_rate
        self.optimizer = ToolOptimizer(self.critic.restorer, config.optimizer, *rates, weight_decay=1e-4)
        self.images, self.history = 0, list[dict[str, float]]()

    def _start_from(self, start: str) -> None:
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
        self.seconds = card.get("seconds", 0.0)

    def step(self, clean: Tensor, damaged: Tensor) -> float:
        """One step; returns the loss, the negative mean PSNR in dB."""
        self.optimizer.zero_grad()
        part = _PART if self.device.type == "cpu" else len(clean)
        value = backward(self.critic.restorer, clean, damaged, part, self.precision)
        if math.isfinite(value):
            torch.nn.utils.clip_grad_norm_(self.critic.restorer.parameters(), 20.0)
            self.optimizer.step(cosine(self.images, self.config.episodes, warmup=100 * self.config.batch))
            self.average.update_parameters(self.critic)
        self.images += len(clean)
        return value

    @torch.no_grad()
    def judge(self, held_out: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, float]:
        """The mean gain in dB of what the averaged critic makes of held-out images itself."""
        return {
            name: (psnr(self._made(worse), clean) - psnr(worse, clean)).mean().item()
            for name, (clean, worse) in held_out.items()
        }

    def _made(self, damaged: Tensor) -> Tensor:
        return torch.cat([self._averaged().restorer(part).clamp(0.0, 1.0) for part in damaged.split(_PART)])

    def _averaged(self) -> RestoringCritic:
        return cast(RestoringCritic, self.average.module)

    @torch.no_grad()
    def agent(self, held_out: Mapping[str, tuple[Tensor, Tensor]]) -> LookaheadAgent:
        """The agent of the averaged weights; what its critic cannot know is measured on held-out images."""
        critic = self._averaged()
        errors = [(self._made(damaged) - clean).square().mean((1, 2, 3)) for clean, damaged in held_out.values()]
        critic.unknown.copy_((torch.cat(errors) + ENOUGH).log().mean().exp())
        agent = LookaheadAgent(critic.requires_grad_(False), self.toolbox, self.config.max_steps)
        agent.width = self.config.width
        return agent

    def state(self) -> dict[str, Any]:
        """All that `restore` needs."""
        return {
            "config": self._identity(),
            **{name: getattr(self, name).state_dict() for name in ("critic", "average", "optimizer")},
            **{name: getattr(self, name) for name in ("images", "seconds", "history")},
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint of the same configuration and tools; another one is refused."""
        check_same_configuration(state["config"], self._identity())
        for name in ("critic", "average", "optimizer"):
            getattr(self, name).load_state_dict(state[name])
        for name in ("images", "seconds", "history"):
            setattr(self, name, state[name])

    def _identity(self) -> dict[str, Any]:
        return {**asdict(self.config), "precision": self.precision, "tools": ", ".join(self.toolbox.names)}
