"""How the lookahead agent learns to judge: its critic learns to restore damage of every kind in a single pass.

No tool is run in training, and no agent plays. What is learned is what a clean image looks like, given a damaged one;
how near a tool's outcome comes to that is for the agent to see when it decides. In the end it restores some more
images, half of them of mild damage, where there is most to spoil, and learns when it makes one worse.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from restoration_env.agents.agent import WEIGHTS, agent_names, save_agent
from restoration_env.agents.critic import RestoringCritic
from restoration_env.agents.doubt import experience, teach_doubt
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
from restoration_env.winograd import check_convolutions

_FIRST_KEY = 1 << 46  # of the training patches, so that no other training draws the same
_FIRST_DOUBT = 1 << 47  # of those on which it learns to doubt


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
        doubts: damaged images on which it learns when restoration makes an image worse; 0 to have those
            of the ``start`` if it is a lookahead agent, else none.
        risk: the greatest chance of that which the finished agent takes; it leaves an image alone if it is greater.
        evaluate_every: steps between two validations.
        validation_images: images of each severity in a validation.
        convolutions: "direct", or "winograd" where a processor computes in float32.
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
    doubts: int = 65_536
    risk: float = 0.1
    evaluate_every: int = 200
    validation_images: int = 64
    convolutions: str = "direct"
    seed: int = 0

    def __post_init__(self) -> None:
        recipe(self.severity)
        if self.optimizer not in OPTIMIZERS:
            raise UnknownName("optimizer", self.optimizer, OPTIMIZERS)
        check_convolutions(self.convolutions)
        counts = {name: getattr(self, name) for name in ("batch", "max_steps", "critic_width", "width")}
        check_at_least(1, **counts, evaluate_every=self.evaluate_every, validation_images=self.validation_images)
        check_at_least(0 if self.start else 1, episodes=self.episodes)
        check_at_least(0, doubts=self.doubts, risk=self.risk, seed=self.seed)
        check_at_least(0, learning_rate=self.learning_rate, muon_rate=self.muon_rate)


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
    total = config.episodes + config.doubts
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
            report(LookaheadProgress(run.images, total, loss, judged))
        critic = run.critic_of_best(held_out)
        while run.restored < config.doubts:
            keys = torch.arange(config.batch) + (config.seed << 32) + _FIRST_DOUBT + run.restored
            kind = damage if run.restored // config.batch % 2 == 0 else recipe("mild")
            run.experience(critic, *damaged_patches(train, keys, kind, size, device=device, turns=True))
            stepped()
            report(LookaheadProgress(run.images + run.restored, total, 0.0, None))
    agent = run.agent(critic)
    gains = mean_gains(agent, held_out)
    facts = {
        "training": {"algorithm": "lookahead", **asdict(config)},
        "started_from": run.origin,
        "images_seen": run.seen_before + run.images + run.restored,
        "seconds": round(run.seconds, 1),
        "device": str(device),
        "made_worse_in_training": round(torch.cat(run.worse).float().mean().item(), 4) if run.worse else None,
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
        self.summaries, self.worse = list[Tensor](), list[Tensor]()

    def _start_from(self, start: str) -> float:
        tensors, card = read_weights(WEIGHTS / f"{start}.safetensors" if start in agent_names() else start)
        if card.get("network") == "equal-multiply-adds":
            of_restorer = {f"restorer.{name}": value for name, value in tensors.items()}
            tensors = {**self.critic.state_dict(), **of_restorer}
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

    @property
    def restored(self) -> int:
        """Images on which it has seen what restoration does."""
        return sum(map(len, self.worse))

    def experience(self, critic: RestoringCritic, clean: Tensor, damaged: Tensor) -> None:
        """See what restoration does to a batch."""
        summaries, worse = experience(critic, clean, damaged, self.precision)
        self.summaries.append(summaries)
        self.worse.append(worse)

    def state(self) -> dict[str, Any]:
        """All that `restore` needs."""
        return {**super().state(), "summaries": self.summaries, "worse": self.worse}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint of the same configuration and tools; another one is refused."""
        super().restore(state)
        self.summaries, self.worse = state["summaries"], state["worse"]

    @torch.no_grad()
    def critic_of_best(self, held_out: Mapping[str, tuple[Tensor, Tensor]]) -> RestoringCritic:
        """A critic of the best weights; what it cannot know is measured on held-out images."""
        critic = copy.deepcopy(self.critic).to(self.device).eval()
        critic.restorer.load_state_dict(self.best)
        errors = []
        for clean, damaged in held_out.values():
            made = torch.cat([critic.restorer(part).clamp(0.0, 1.0) for part in damaged.split(32)])
            errors.append((made - clean).square().mean((1, 2, 3)))
        critic.unknown.copy_((torch.cat(errors) + ENOUGH).log().mean().exp())
        return critic.requires_grad_(False)

    def agent(self, critic: RestoringCritic) -> LookaheadAgent:
        """The agent of a critic, which has learned to doubt itself from what was seen."""
        if self.worse:
            teach_doubt(critic, torch.cat(self.summaries), torch.cat(self.worse), self.config.seed)
        manner = {"width": self.config.width, "risk": self.config.risk}
        return LookaheadAgent(critic, self.toolbox, self.config.max_steps, manner)
