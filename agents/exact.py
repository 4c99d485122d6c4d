"""How the toolchain agent is trained on exact values: every tool run on every image at every step.

The learner, and why it needs so few images, is in `restoration_env.agents.exact_values`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from restoration_env.agents.agent import ToolchainAgent, load_agent, save_agent
from restoration_env.agents.exact_values import ExactValues
from restoration_env.agents.network import NETWORKS, UNIT, ToolchainNetwork, build_network
from restoration_env.agents.pretraining import pretrain
from restoration_env.agents.validation import mean_gains, validation_batches
from restoration_env.distortions import recipe
from restoration_env.errors import InvalidArgument, UnknownName, check_at_least
from restoration_env.files import check_same_configuration
from restoration_env.images import ImagePool, damaged_patches
from restoration_env.runs import resumed
from restoration_env.schedules import cosine
from restoration_env.toolbox import Toolbox
from restoration_env.tools.together import copied


@dataclass(frozen=True)
class ExactConfig:
    """Everything that decides the outcome of a training run, apart from images and tools.

    Attributes:
        network: "statistics", "spectral", or "published" for the paper's.
        episodes: damaged images to see; every tool is run on each, at every step.
        batch: images side by side.
        updates: updates after each batch.
        sample: remembered episodes in an update.
        warmup: episodes before the first update: few are learned by heart, and an agent that knew better forgets.
        memory: episodes remembered.
        severity: the damage to train on.
        max_steps: actions of an episode.
        learning_rate: at the start; falls to a fiftieth along a cosine.
        explore: share of actions drawn near the learner's choice instead of taking it.
        temperature: in dB, how near.
        closeness: in dB, how far behind the best an action may be before its value no longer matters.
        discount: of what follows a step; the agent that ships was trained without one (1.0).
        returns: "played" plays what follows each branch to the end, "estimated" trusts the target network.
        promising: with "played", branches that are played at each state, those of the best estimates; 0 plays all.
        start: an agent, by name or path, whose weights to start from, or ""; the toolbox may have further tools after
            those it knows.
        pretraining: iterations in which the convolutions first learn to tell the strengths of damage
            (`restoration_env.agents.pretraining`), on images that are not counted as episodes.
        evaluate_every: batches between two validations.
        validation_images: images of each severity in a validation.
        seed: of the first weights and of everything random.
    """

    network: str = "statistics"
    episodes: int = 8_000
    batch: int = 8
    updates: int = 6
    sample: int = 32
    warmup: int = 0
    memory: int = 20_000
    severity: str = "every"
    max_steps: int = 3
    learning_rate: float = 1e-3
    explore: float = 0.3
    temperature: float = 0.5
    closeness: float = 1.0
    discount: float = 0.95
    returns: str = "played"
    promising: int = 0
    start: str = ""
    pretraining: int = 1_500
    evaluate_every: int = 100
    validation_images: int = 128
    seed: int = 0

    def __post_init__(self) -> None:
        recipe(self.severity)
        if self.network not in NETWORKS:
            raise UnknownName("network", self.network, NETWORKS)
        counts = {name: getattr(self, name) for name in ("episodes", "batch", "updates", "sample", "max_steps")}
        check_at_least(1, **counts, evaluate_every=self.evaluate_every, validation_images=self.validation_images)
        check_at_least(self.batch, memory=self.memory)
        check_at_least(0, warmup=self.warmup, promising=self.promising)


@dataclass(frozen=True)
class ExactProgress:
    """What training reports after every batch; ``validation`` is the gain in dB for each severity."""

    images: int
    total: int
    loss: float
    validation: Mapping[str, float] | None


def train_exact(
    config: ExactConfig,
    toolbox: Toolbox,
    train: ImagePool,
    validation: ImagePool,
    path: str | Path,
    *,
    device: torch.device | str = "cpu",
    checkpoint_seconds: float = 120.0,
    report: Callable[[ExactProgress], None] = lambda progress: None,
    card: Mapping[str, Any] | None = None,
    views: int = 1,
    caution: float = 0.0,
) -> dict[str, Any]:
    """Train an agent on exact values, or go on where a killed run of the same configuration stopped.

    Args:
        config: how to train.
        toolbox: what the actions do.
        train: clean images to learn from.
        validation: other clean images; the weights with the best gain on their damage are kept.
        path: the safetensors file to write; the checkpoint stands beside it on the way.
        device: where everything runs.
        checkpoint_seconds: time between two checkpoints; a Ctrl-C writes one too. The replay memory is not in them.
        report: called after every batch.
        card: further entries of the weights' card.
        views: of the agent that is judged and written, see `restoration_env.agents.agent.ToolchainAgent`.
        caution: of the same, in dB.

    Returns:
        The card of the finished weights.

    Raises:
        InvalidArgument: if there is a checkpoint of another configuration or toolbox.
    """
    path = Path(path)
    run = _Run(config, toolbox, device, views, caution)
    learner, size = run.learner, run.learner.network.patch_size
    train, damage = train.fitting(size), recipe(config.severity)
    held_out = validation_batches(validation, config.validation_images, size, device, config.severity)
    checkpoint = path.with_suffix(".checkpoint")
    with resumed(run, checkpoint, checkpoint_seconds) as stepped:
        if config.pretraining and not learner.images:

            def tell(iteration: int, error: float) -> None:
                report(ExactProgress(0, config.episodes, error, None))

            run.pretrain(train, tell)
        if config.start and not run.history:
            run.judge(held_out)  # what it knew before is kept if nothing better comes
        while learner.images < config.episodes:
            keys = torch.arange(config.batch) + (config.seed << 32) + learner.images
            loss = run.step(*damaged_patches(train, keys, damage, size, device=device))
            due = learner.images >= config.episodes or (learner.images // config.batch) % config.evaluate_every == 0
            judged = run.judge(held_out) if due else None
            stepped(loss)
            report(ExactProgress(learner.images, config.episodes, loss, judged))
    facts = {**run.facts(), **(card or {})}
    save_agent(path, run.finished(), facts)
    checkpoint.unlink(missing_ok=True)
    return facts


class _Run:
    """The state of a training run: all that a checkpoint holds."""

    def __init__(
        self, config: ExactConfig, toolbox: Toolbox, device: torch.device | str, views: int, caution: float
    ) -> None:
        self.config, self.toolbox, self.device = config, toolbox, torch.device(device)
        self.manner = {"views": views, "caution": caution}
        torch.manual_seed(config.seed)
        network, self.origin = build_network(config.network, len(toolbox)).to(device), dict[str, Any]()
        if config.start:
            network, self.origin = started(config.start, toolbox, device)
            network.scale_values(1.0 / UNIT)
        self.learner = ExactValues(
            network,
            max_steps=config.max_steps,
            learning_rate=config.learning_rate,
            memory=config.memory,
            explore=config.explore,
            temperature=config.temperature,
            closeness=config.closeness,
            discount=config.discount,
            returns=config.returns,
            promising=config.promising,
            seed=config.seed,
        )
        # An average of the learner, and steadier. While it learns its values, and so its caution, are in other units.
        judged_as = {**self.manner, "caution": caution / UNIT}
        self.agent = ToolchainAgent(self.learner.target, toolbox, config.max_steps, judged_as)
        self.seconds, self.history = 0.0, list[dict[str, float]]()
        self.best_gain, self.best = -math.inf, copied(self.learner.target.state_dict())

    def pretrain(self, train: ImagePool, tell: Callable[[int, float], None]) -> None:
        """Let the convolutions learn to tell the strengths of damage."""
        network, how, seed = self.learner.network, recipe(self.config.severity), self.config.seed
        count = self.config.pretraining
        pretrain(network, train, how, iterations=count, seed=seed, device=self.device, report=tell)
        self.learner.target.load_state_dict(network.state_dict())

    def step(self, clean: Tensor, damaged: Tensor) -> float:
        """Run all tools on a batch, then learn; returns the mean loss."""
        config, learner = self.config, self.learner
        for group in learner.optimizer.param_groups:
            group["lr"] = config.learning_rate * cosine(learner.images, config.episodes, floor=0.02)
        learner.visit(self.toolbox, clean, damaged)
        updates = config.updates if len(learner.replay) >= min(config.warmup, config.memory) else 0
        return sum(learner.learn(config.sample) for _ in range(updates)) / max(1, updates)

    def judge(self, held_out: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, float]:
        """The gain in dB on each severity; kept if the mean is the best."""
        gains = mean_gains(self.agent, held_out)
        mean = sum(gains.values()) / len(gains)
        self.history.append({"images": self.learner.images, **{k: round(v, 4) for k, v in gains.items()}})
        if mean > self.best_gain:
            self.best_gain, self.best = mean, copied(self.learner.target.state_dict())
        return gains

    def finished(self) -> ToolchainAgent:
        """The best agent, its values in dB."""
        self.learner.target.load_state_dict(self.best)
        self.learner.target.scale_values(UNIT)
        return ToolchainAgent(self.learner.target, self.toolbox, self.config.max_steps, self.manner)

    def facts(self) -> dict[str, Any]:
        """What the card says of the training."""
        kept = ("sha256", "command", "training", "seconds")
        return {
            "training": {"algorithm": "exact values", **asdict(self.config)},
            "started_from": {key: self.origin[key] for key in kept if key in self.origin},
            "images_seen": self.config.episodes + self.origin.get("images_seen", 0),
            "seconds": round(self.seconds, 1),
            "device": str(self.device),
            "validation_gain_db": round(self.best_gain, 4),
            "history": self.history,
        }

    def state(self) -> dict[str, Any]:
        """All that `restore` needs; the replay memory fills again."""
        return {
            "config": {**asdict(self.config), **self.manner, "tools": ", ".join(self.toolbox.names)},
            "learner": self.learner.state(),
            "best": self.best,
            "best_gain": self.best_gain,
            "seconds": self.seconds,
            "history": self.history,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint of the same configuration and tools; another one is refused."""
        check_same_configuration(state["config"], self.state()["config"])
        self.learner.restore(state["learner"])
        self.best_gain, self.best = state["best_gain"], state["best"]
        self.seconds, self.history = state["seconds"], state["history"]


def started(start: str, toolbox: Toolbox, device: torch.device | str) -> tuple[ToolchainNetwork, dict[str, Any]]:
    """The network of an agent of these tools, or of the first of them, and its card."""
    try:
        known = load_agent(start, toolbox=toolbox, device=str(device))
        return known.network.requires_grad_(True), known.card
    except InvalidArgument:  # of another number of tools; anything else comes up again
        known = load_agent(start, device=str(device))
    if known.toolbox.names != toolbox.names[: len(known.toolbox)]:
        raise InvalidArgument("start", f"an agent of the first tools of {toolbox.name}", f"one of {known.toolbox.name}")
    return known.network.with_more_tools(len(toolbox)).to(device).requires_grad_(True), known.card
