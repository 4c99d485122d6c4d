"""Tools learn in toolchains: each where an engineer who knew the damage would use it.

A tool trained alone has never seen what another tool leaves behind. Here every image is restored by a chain drawn
from its own damage: the denoiser of its noise, the JPEG tool of its quality, the deblurring tool of its blur, now
and then a neighbouring band or another order, so that tools become broad. No agent is needed, no tool starves, and
each keeps its meaning. Two ways to learn in such chains:

- ``through=False``: every tool answers for its own result only; what comes before it in the chain is data.
  So tools are still trained one by one, on the inputs that toolchains give them.
- ``through=True``: the gradient of the last image goes through the whole chain into every tool, divided by its
  uses, as in the joint training of RL-Restore (Yu et al., CVPR 2018, Algorithm 1), whose authors let an agent draw
  the chains. `restoration_env.agents.joint` does that; this is its curriculum.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from restoration_env.distortions import Recipe, recipe
from restoration_env.episodes import Episodes
from restoration_env.errors import UnknownName, check_at_least
from restoration_env.files import check_same_configuration
from restoration_env.images import ImagePool, damaged_patches
from restoration_env.randomness import uniform
from restoration_env.runs import resumed
from restoration_env.schedules import cosine
from restoration_env.toolbox import Toolbox
from restoration_env.tools.catalogue import CATALOGUE, NAMES
from restoration_env.tools.optimizers import OPTIMIZERS
from restoration_env.tools.restoring import ENOUGH
from restoration_env.tools.together import ToolsTogether, copied

_SIZE = 63


@dataclass(frozen=True)
class ChainConfig:
    """Everything that decides the outcome of training in chains, apart from images and first weights.

    Attributes:
        through: let gradients pass from tool to tool; else each tool learns from its own result.
        iterations: batches of images.
        batch: images in each.
        severity: the damage to train on.
        learning_rate: at the peak of a cosine schedule.
        optimizer: "adamw" or "muon" (`restoration_env.tools.optimizers`).
        muon_rate: Muon's learning rate at the peak.
        stronger: share of choices moved to the next stronger band.
        weaker: share moved to the next weaker band.
        shuffled: share of chains in another order.
        candidates: chains drawn for each image, of which the best one teaches.
        earlier: weight of the earlier steps' results against the last, if gradients pass through.
        averaging: decay of the average of the weights, which is what is judged and kept.
        evaluate_every: iterations between two validations.
        validation_images: images of each severity in a validation.
        seed: of the data and the chains.
    """

    through: bool = True
    iterations: int = 6_000
    batch: int = 32
    severity: str = "every"
    learning_rate: float = 5e-4
    optimizer: str = "adamw"
    muon_rate: float = 2e-3
    stronger: float = 0.2
    weaker: float = 0.1
    shuffled: float = 0.15
    candidates: int = 1
    earlier: float = 0.3
    averaging: float = 0.998
    evaluate_every: int = 250
    validation_images: int = 96
    seed: int = 0

    def __post_init__(self) -> None:
        recipe(self.severity)
        if self.optimizer not in OPTIMIZERS:
            raise UnknownName("optimizer", self.optimizer, OPTIMIZERS)
        counts = {name: getattr(self, name) for name in ("iterations", "batch", "candidates", "evaluate_every")}
        check_at_least(1, **counts, validation_images=self.validation_images)
        check_at_least(0, learning_rate=self.learning_rate, earlier=self.earlier, seed=self.seed)


@dataclass(frozen=True)
class ChainProgress:
    """What training reports after every iteration; ``validation`` is the gain in dB for each severity."""

    iteration: int
    iterations: int
    gain: float
    validation: dict[str, float] | None


def matching_chains(strengths: tuple[Tensor, Tensor, Tensor], u: Tensor, config: ChainConfig) -> Tensor:
    """The tools that match the damage: first noise, then JPEG, then blur; those that are not needed left out.

    Args:
        strengths: blur sigma, noise sigma and JPEG quality, each (N,).
        u: uniforms (N, 8) that decide who gets a neighbouring band or another order.
        config: how often that is.

    Returns:
        int64 (N, 3), actions; ``len(NAMES)``, stop, where no tool is needed.
    """
    blur, noise, quality = strengths
    columns = []
    for number, (kind, amount, least) in enumerate(
        (("Gaussian noise", noise, 1.0), ("JPEG artifacts", -quality, -98.0), ("Gaussian blur", blur, 0.3))
    ):
        tools = [spec for spec in CATALOGUE if spec.removes == kind]
        edges = [-spec.low if kind == "JPEG artifacts" else spec.high for spec in tools[:-1]]  # the less, the worse
        band = torch.bucketize(amount, torch.tensor(edges, dtype=amount.dtype, device=amount.device))
        moved = (u[:, number] < config.stronger).long() - (u[:, number] >= 1.0 - config.weaker).long()
        band = (band + moved).clamp(0, len(tools) - 1)
        columns.append(torch.where(amount <= least, len(NAMES), NAMES.index(tools[0].name) + band))
    chains = torch.stack(columns, 1)
    order = torch.where((u[:, 3] < config.shuffled)[:, None], u[:, 4:7].argsort(1), torch.arange(3, device=u.device))
    chains = chains.gather(1, order)
    # Stop ends an episode, so it goes to the end.
    return chains.gather(1, (chains == len(NAMES)).long().argsort(dim=1, stable=True))


class ChainRun:
    """Tools in training, and all that a checkpoint holds.

    Args:
        config: how to train.
        toolbox: tools whose functions are networks; trained in place.
    """

    def __init__(self, config: ChainConfig, toolbox: Toolbox) -> None:
        self.config, self.toolbox = config, toolbox
        rates = config.learning_rate, config.optimizer, config.muon_rate
        self.tools = ToolsTogether(toolbox, config.averaging, *rates)
        self.iteration, self.seconds = 0, 0.0
        self.best_gain, self.best = -math.inf, copied(self.tools.average)
        self.history: list[dict[str, float]] = []

    def step(self, clean: Tensor, damaged: Tensor, chains: Tensor) -> float:
        """One iteration on images and their chains, int64 (N, C, 3); returns the mean gain in dB."""
        episodes = Episodes(self.toolbox)
        actions = self._best_of(clean, damaged, chains)
        episodes.begin(damaged, clean)
        results, stop = [], self.toolbox.stop
        for action in actions.unbind(1):
            episodes.step(action)
            error = (episodes.images - clean).square().mean(dim=(1, 2, 3))
            results.append(10.0 * torch.log10(error + ENOUGH))
            if not self.config.through:
                episodes.images = episodes.images.detach()
        taken = (actions != stop).float()
        if self.config.through:
            weight = taken[:, :-1] * self.config.earlier / max(1, len(results) - 1)
            loss = results[-1] + (torch.stack(results[:-1], 1) * weight).sum(1)
        else:
            loss = (torch.stack(results, 1) * taken).sum(1)
        share = cosine(self.iteration, self.config.iterations, warmup=200, floor=0.01)
        self.tools.descend(loss.mean(), actions, share)
        self.iteration += 1
        return (episodes.psnr - episodes.psnr_initial).mean().item()

    @torch.no_grad()
    def _best_of(self, clean: Tensor, damaged: Tensor, chains: Tensor) -> Tensor:
        """The best of each image's candidate chains, (N, 3)."""
        if chains.shape[1] == 1:
            return chains[:, 0]
        gains = torch.stack([self._played(clean, damaged, chain) for chain in chains.unbind(1)], 1)
        return chains[torch.arange(len(chains)), gains.argmax(1)]

    def _played(self, clean: Tensor, damaged: Tensor, chains: Tensor) -> Tensor:
        """The gains in dB of chains (N, 3)."""
        episodes = Episodes(self.toolbox)
        episodes.begin(damaged, clean)
        for action in chains.unbind(1):
            episodes.step(action)
        return episodes.psnr - episodes.psnr_initial

    @torch.no_grad()
    def judge(self, held_out: Mapping[str, tuple[Tensor, Tensor, Tensor]]) -> dict[str, float]:
        """The averaged tools' gain in dB with matching chains, by severity; kept if the mean is the best."""
        with self.tools.averaged():
            gains = {name: self._played(*batch).mean().item() for name, batch in held_out.items()}
        mean = sum(gains.values()) / len(gains)
        self.history.append({"iteration": self.iteration, **{k: round(v, 4) for k, v in gains.items()}})
        if mean > self.best_gain:
            self.best_gain, self.best = mean, copied(self.tools.average)
        return gains

    def state(self) -> dict[str, Any]:
        """All that `restore` needs."""
        return {
            "config": {**asdict(self.config), "toolbox": self.toolbox.name},
            "tools": self.tools.state(),
            "iteration": self.iteration,
            "seconds": self.seconds,
            "best": self.best,
            "best_gain": self.best_gain,
            "history": self.history,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint of the same configuration; another one is refused."""
        check_same_configuration(state["config"], self.state()["config"])
        self.tools.restore(state["tools"])
        for name in ("iteration", "seconds", "best", "best_gain", "history"):
            setattr(self, name, state[name])


def chain_batch(
    pool: ImagePool,
    config: ChainConfig,
    keys: Tensor,
    how: Recipe,
    grid: str,
    device: torch.device | str,
    *,
    turns: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Clean and damaged patches (N, 3, 63, 63) and their candidate chains (N, candidates, 3); to learn from, turned."""
    clean, damaged = damaged_patches(pool, keys, how, _SIZE, grid=grid, device=device, turns=turns)
    strengths = how.draw(uniform(keys, 4, stream=2))
    u = uniform(keys, 8 * config.candidates, stream=7).view(len(keys), config.candidates, 8)
    chains = torch.stack([matching_chains(strengths, part, config) for part in u.unbind(1)], 1)
    return clean, damaged, chains.to(device)


def train_in_chains(
    config: ChainConfig,
    toolbox: Toolbox,
    train: ImagePool,
    validation: ImagePool,
    folder: str | Path,
    *,
    device: torch.device | str = "cpu",
    checkpoint_seconds: float = 120.0,
    report: Callable[[ChainProgress], None] = lambda progress: None,
    cards: Mapping[str, Mapping[str, Any]] | None = None,
    card: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Train all tools in chains, or go on where a killed run of the same configuration stopped.

    Args:
        config: how to train.
        toolbox: the twelve tools, their functions networks (`torch.nn.Module`); trained in place.
        train: clean images to learn from.
        validation: other clean images; the weights with the best gain on their damage are kept.
        folder: receives a safetensors file and a card for every tool, and on the way ``chains.checkpoint``.
        device: where everything runs.
        checkpoint_seconds: time between two checkpoints.
        report: called after every iteration.
        cards: the tools' cards before, by name.
        card: further entries of all cards.

    Returns:
        What all the cards say.

    Raises:
        InvalidArgument: if there is a checkpoint of another configuration or toolbox.
        TrainingDiverged: if the loss is no longer a number; the last good checkpoint stays.
    """
    folder, how = Path(folder), recipe(config.severity)
    checkpoint = folder / "chains.checkpoint"
    run = ChainRun(config, toolbox)
    train, held_out = train.fitting(_SIZE), _held_out(validation.fitting(_SIZE), config, device)
    with resumed(run, checkpoint, checkpoint_seconds) as stepped:
        while run.iteration < config.iterations:
            first = (config.seed << 40) + (3 << 37) + run.iteration * config.batch
            keys = torch.arange(first, first + config.batch)
            grid = "aligned" if run.iteration % 2 else "random"
            clean, damaged, chains = chain_batch(train, config, keys, how, grid, device, turns=True)
            gain, judged = run.step(clean, damaged, chains), None
            if run.iteration % config.evaluate_every == 0 or run.iteration == config.iterations:
                judged = run.judge(held_out)
            stepped()
            report(ChainProgress(run.iteration, config.iterations, gain, judged))
    return _write(run, folder, str(device), cards or {}, card or {})


def _held_out(
    pool: ImagePool, config: ChainConfig, device: torch.device | str
) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """Validation patches of each severity with the chains that match them, always the same."""
    plain = ChainConfig(stronger=0.0, weaker=0.0, shuffled=0.0)
    batches = {}
    for severity in ("mild", "moderate", "severe"):
        keys = torch.arange(config.validation_images)
        clean, damaged, chains = chain_batch(pool, plain, keys, recipe(severity), "aligned", device)
        batches[severity] = clean, damaged, chains[:, 0]
    return batches


def _write(
    run: ChainRun, folder: Path, device: str, cards: Mapping[str, Mapping[str, Any]], extra: Mapping[str, Any]
) -> dict[str, Any]:
    """Write the best weights of all tools."""
    facts = {
        "training": {"lesson": "in chains", **asdict(run.config), "iterations_done": run.iteration},
        "seconds": round(run.seconds, 1),
        "device": device,
        "chain_gain_db": round(run.best_gain, 4),
        "history": run.history,
        **extra,
    }
    run.tools.write(folder, run.best, cards, facts)
    (folder / "chains.checkpoint").unlink(missing_ok=True)
    return facts
