"""Learning an agent from labelled episodes alone: no tool is run, and every episode is learned from many times.

The values are those that another agent's play had (`restoration_env.agents.labelling`). Beside them the features learn
to tell the strengths of damage, of other patches that cost nothing but their making, as in
`restoration_env.agents.pretraining`. What the network computes before anything learned is computed once.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from restoration_env.agents.agent import ToolchainAgent, save_agent
from restoration_env.agents.exact import started
from restoration_env.agents.exact_values import Labelled, unroll_features, value_loss
from restoration_env.agents.network import NETWORKS, UNIT, ToolchainNetwork, build_network
from restoration_env.agents.pretraining import strengths
from restoration_env.agents.validation import mean_gains, validation_batches
from restoration_env.distortions import recipe
from restoration_env.errors import UnknownName, check_at_least
from restoration_env.files import check_same_configuration
from restoration_env.images import ImagePool, damaged_patches
from restoration_env.pixels import eight_bit
from restoration_env.runs import resumed
from restoration_env.schedules import cosine
from restoration_env.toolbox import Toolbox
from restoration_env.tools.together import copied

_AT_ONCE = 128  # images that are looked at together
_KEPT = ("sha256", "command", "training", "seconds")  # of the card of what was started from


@dataclass(frozen=True)
class FitConfig:
    """Everything that decides the outcome of a fit, apart from the labelled episodes, images and tools.

    Attributes:
        network: "spectral", "statistics" or "published".
        iterations: optimiser steps.
        sample: episodes, and patches of known damage, in each.
        learning_rate: of AdamW at its peak; falls to zero along a cosine.
        weight_decay: of AdamW.
        closeness: in dB, how far behind the best an action may be before its value no longer matters.
        known_damage: patches of known damage.
        beside: weight of telling their damage.
        averaging: decay of the weight average, which is what is judged and kept.
        severity: the damage of those patches, and of validation.
        start: an agent, by name or path, whose weights to start from, or ""; its network is taken.
        evaluate_every: iterations between two validations.
        validation_images: images of each severity in a validation.
        seed: of the first weights and of everything random.
    """

    network: str = "spectral"
    iterations: int = 12_000
    sample: int = 64
    learning_rate: float = 2e-3
    weight_decay: float = 1e-3
    closeness: float = 1.0
    known_damage: int = 40_960
    beside: float = 0.3
    averaging: float = 0.999
    severity: str = "every"
    start: str = ""
    evaluate_every: int = 2_000
    validation_images: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        recipe(self.severity)
        if self.network not in NETWORKS:
            raise UnknownName("network", self.network, NETWORKS)
        counts = {name: getattr(self, name) for name in ("iterations", "sample", "known_damage", "evaluate_every")}
        check_at_least(1, **counts, validation_images=self.validation_images)


@dataclass(frozen=True)
class FitProgress:
    """What a fit reports after every step; ``validation`` is the gain in dB for each severity."""

    iteration: int
    total: int
    loss: float
    validation: Mapping[str, float] | None


def train_fit(
    config: FitConfig,
    toolbox: Toolbox,
    labelled: tuple[Labelled, Sequence[Mapping[str, Any]]],
    train: ImagePool,
    validation: ImagePool,
    path: str | Path,
    *,
    device: torch.device | str = "cpu",
    checkpoint_seconds: float = 120.0,
    report: Callable[[FitProgress], None] = lambda progress: None,
    card: Mapping[str, Any] | None = None,
    views: int = 1,
    caution: float = 0.0,
) -> dict[str, Any]:
    """Fit an agent to labelled episodes, or go on where a killed run of the same configuration stopped.

    Args:
        config: how to fit.
        toolbox: the tools that the labels are about.
        labelled: from `restoration_env.agents.labelling.read_labels`.
        train: clean images, for the patches of known damage.
        validation: other clean images; the weights with the best gain on their damage are kept.
        path: the safetensors file to write; the checkpoint stands beside it on the way.
        device: where everything runs.
        checkpoint_seconds: time between two checkpoints; a Ctrl-C writes one too.
        report: called after every step.
        card: further entries of the weights' card.
        views: of the agent that is judged and written, see `restoration_env.agents.agent.ToolchainAgent`.
        caution: of the same, in dB.

    Returns:
        The card of the finished weights.

    Raises:
        InvalidArgument: if there is a checkpoint of another configuration, other tools or other labels.
    """
    path, (episodes, known) = Path(path), labelled
    run = _Run(config, toolbox, episodes, known, device, {"views": views, "caution": caution})
    size = run.network.patch_size
    held_out = validation_batches(validation, config.validation_images, size, device, config.severity)
    checkpoint = path.with_suffix(".checkpoint")
    with resumed(run, checkpoint, checkpoint_seconds) as stepped:
        run.look(train.fitting(size))
        if config.start and not run.history:
            run.judge(held_out)  # what it knew before is kept if nothing better comes
        while run.iteration < config.iterations:
            loss = run.step()
            due = run.iteration == config.iterations or run.iteration % config.evaluate_every == 0
            judged = run.judge(held_out) if due else None
            stepped(loss)
            report(FitProgress(run.iteration, config.iterations, loss, judged))
    facts = {**run.facts(), **(card or {})}
    save_agent(path, run.finished(), facts)
    checkpoint.unlink(missing_ok=True)
    return facts


class _Run:
    """The state of a fit: all that a checkpoint holds, and what is computed of the images anew."""

    def __init__(
        self,
        config: FitConfig,
        toolbox: Toolbox,
        episodes: Labelled,
        known: Sequence[Mapping[str, Any]],
        device: torch.device | str,
        manner: Mapping[str, Any],
    ) -> None:
        self.config, self.toolbox, self.device, self.manner = config, toolbox, torch.device(device), dict(manner)
        self.episodes, self.known = episodes, [dict(facts) for facts in known]
        torch.manual_seed(config.seed)
        network, self.origin = build_network(config.network, len(toolbox)).to(device), dict[str, Any]()
        if config.start:
            network, self.origin = started(config.start, toolbox, device)
            network.scale_values(1.0 / UNIT)
        self.network: ToolchainNetwork = network
        self.head = nn.Linear(self.network.fc.out_features, 3).to(device)
        self.average = copy.deepcopy(self.network).requires_grad_(False).eval()
        learned = [*self.network.parameters(), *self.head.parameters()]
        self.optimizer = torch.optim.AdamW(learned, config.learning_rate, weight_decay=config.weight_decay)
        judged_as = {**self.manner, "caution": self.manner["caution"] / UNIT}
        self.agent = ToolchainAgent(self.average, toolbox, episodes.last_actions.shape[1], judged_as)
        self.generator = torch.Generator().manual_seed(config.seed)
        self.iteration, self.seconds, self.history = 0, 0.0, list[dict[str, float]]()
        self.best_gain, self.best = -math.inf, copied(self.average.state_dict())

    @torch.no_grad()
    def look(self, pool: ImagePool) -> None:
        """Compute of all images what is computed before anything learned."""
        size, damage = self.network.patch_size, recipe(self.config.severity)
        self.seen = self._fixed(self.episodes.images.flatten(0, 1)).unflatten(0, self.episodes.last_actions.shape)
        keys = torch.arange(self.config.known_damage) + (self.config.seed << 40) + (1 << 38)
        self.damaged = torch.cat(
            [
                self._fixed(eight_bit(damaged_patches(pool, few, damage, size, device=self.device)[1]))
                for few in keys.split(_AT_ONCE)
            ]
        )
        self.strengths = strengths(damage, keys).to(self.device)

    def _fixed(self, images: Tensor) -> Tensor:
        return torch.cat([self.network.fixed(few.to(self.device)) for few in images.split(_AT_ONCE)])

    def step(self) -> float:
        """One update; returns the loss of the values."""
        config, network = self.config, self.network
        rate = config.learning_rate * cosine(self.iteration, config.iterations, warmup=100)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        network.train()
        rows = torch.randint(len(self.damaged), (config.sample,), generator=self.generator).to(self.device)
        found = self.head(network.learned(self._transposed(self.damaged[rows])))
        told = F.smooth_l1_loss(found, self.strengths[rows], beta=0.05)
        rows = torch.randint(len(self.seen), (config.sample,), generator=self.generator)
        here, valid = rows.to(self.device), self.episodes.valid[rows].to(self.device)
        last_actions = self.episodes.last_actions[rows].to(self.device)
        seen = self._transposed(self.seen[here].flatten(0, 1))
        q = unroll_features(network, network.learned(seen), last_actions)[valid]
        loss = value_loss(q, self.episodes.values[rows].to(self.device)[valid], config.closeness)
        network.eval()
        self.optimizer.zero_grad(set_to_none=True)
        (loss + config.beside * told).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        self.optimizer.step()
        self.iteration += 1
        decay = min(config.averaging, self.iteration / (self.iteration + 10))
        for mine, theirs in zip(network.parameters(), self.average.parameters(), strict=True):
            theirs.lerp_(mine.detach(), 1.0 - decay)
        for counted, kept in zip(network.buffers(), self.average.buffers(), strict=True):
            kept.copy_(counted)
        return loss.item()

    def _transposed(self, fixed: Tensor) -> Tensor:
        """Images (N, 3, H, W), transposed at random: JPEG's grid stays where it is. What is no image stays as it is."""
        turn = fixed.ndim == 4 and bool(torch.rand((), generator=self.generator) < 0.5)
        return fixed.transpose(-1, -2) if turn else fixed

    def judge(self, held_out: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, float]:
        """The gain in dB on each severity; kept if the mean is the best."""
        gains = mean_gains(self.agent, held_out)
        mean = sum(gains.values()) / len(gains)
        self.history.append({"iteration": self.iteration, **{k: round(v, 4) for k, v in gains.items()}})
        if mean > self.best_gain:
            self.best_gain, self.best = mean, copied(self.average.state_dict())
        return gains

    def finished(self) -> ToolchainAgent:
        """The best agent, its values in dB."""
        self.average.load_state_dict(self.best)
        self.average.scale_values(UNIT)
        return ToolchainAgent(self.average, self.toolbox, self.agent.max_steps, self.manner)

    def facts(self) -> dict[str, Any]:
        """What the card says of the training."""
        return {
            "training": {"algorithm": "fit", **asdict(self.config)},
            "labelled": self.known,
            "started_from": {key: self.origin[key] for key in _KEPT if key in self.origin},
            "images_seen": len(self.episodes.last_actions) + self.origin.get("images_seen", 0),
            "patches_of_known_damage": self.config.known_damage,
            "seconds": round(self.seconds, 1),
            "device": str(self.device),
            "validation_gain_db": round(self.best_gain, 4),
            "history": self.history,
        }

    def configuration(self) -> dict[str, Any]:
        """What a checkpoint must agree on."""
        tools = ", ".join(self.toolbox.names)
        return {**asdict(self.config), **self.manner, "tools": tools, "labelled": self.known}

    def state(self) -> dict[str, Any]:
        """All that `restore` needs."""
        return {
            "config": self.configuration(),
            "network": self.network.state_dict(),
            "head": self.head.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "iteration": self.iteration,
            "seconds": self.seconds,
            "best": self.best,
            "best_gain": self.best_gain,
            "history": self.history,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint of the same configuration, tools and labels; another one is refused."""
        check_same_configuration(state["config"], self.configuration())
        for name in ("network", "head", "average", "optimizer"):
            getattr(self, name).load_state_dict(state[name])
        self.generator.set_state(state["generator"])
        self.iteration, self.seconds = state["iteration"], state["seconds"]
        self.best, self.best_gain, self.history = state["best"], state["best_gain"], state["history"]
