"""How a tool is trained: damage of its own band in, the clean patch out, until the budget is spent.

The task is RL-Restore's (Yu et al., CVPR 2018, Section 4.1): each tool learns its own band, and slight noise
and JPEG are added to the training data of all tools, because in a toolchain no tool ever sees pure damage.
The recipe is this project's: AdamW with a cosine schedule, the mean PSNR itself as the objective, weight
averaging, and a JPEG grid of random phase in half of the samples.

The data of iteration i depends on the seed and on i alone, so training that was killed and resumed ends with
the same weights, bit for bit, as training that was never interrupted.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from restoration_env.distortions import KERNEL_RADIUS, Recipe, distort, recipe
from restoration_env.errors import InvalidArgument, UnknownName, check_at_least
from restoration_env.files import read_weights, save_weights
from restoration_env.images import ImagePool, damaged_patches
from restoration_env.randomness import generator as seeded_generator
from restoration_env.runs import resumed
from restoration_env.schedules import cosine
from restoration_env.toolbox import PRECISIONS
from restoration_env.tools.catalogue import ToolSpec, load_network, specification, toolbox_specification
from restoration_env.tools.networks import begin_gently, build_network
from restoration_env.tools.optimizers import OPTIMIZERS
from restoration_env.tools.restoring import ENOUGH, RestoringRun, mean_gain
from restoration_env.turning import turned
from restoration_env.winograd import check_convolutions

_GRID = 16  # phases of a 4:2:0 JPEG grid


@dataclass(frozen=True)
class TrainingConfig:
    """Everything that decides the outcome of a training run, apart from the images.

    Attributes:
        tool: a name of the catalogue.
        toolbox: the toolbox it is trained for, which decides its network.
        iterations: optimiser steps of the whole schedule.
        batch: patches a step.
        crop: side of the patches in pixels.
        learning_rate: at the peak of the cosine schedule.
        optimizer: "adamw", or "muon" (`restoration_env.tools.optimizers`).
        muon_rate: Muon's learning rate at the peak.
        damage: a recipe to train on instead of the tool's own band, or "".
        slight: share of the samples that carry slight further damage.
        slight_blur: its greatest blur sigma, in pixels.
        slight_noise: its greatest noise sigma, on the 0-255 scale.
        slight_quality: its lowest JPEG quality.
        averaging: decay of the weight average.
        evaluate_every: iterations between two validations.
        patience: validations without a gain of 0.005 dB before stopping early; 0 never stops.
        start: a tool of the same network whose weights to start from (found in the folder trained into, else
            shipped), or "".
        precision: "float32", or "bfloat16" for autocast.
        convolutions: "direct", or "winograd" where a processor computes in float32.
        seed: of the first weights and of the data.
    """

    tool: str
    toolbox: str = "cnn12"
    iterations: int = 6000
    batch: int = 16
    crop: int = 48
    learning_rate: float = 2e-3
    optimizer: str = "adamw"
    muon_rate: float = 4e-3
    damage: str = ""
    slight: float = 0.7
    slight_blur: float = 0.0
    slight_noise: float = 8.0
    slight_quality: float = 50.0
    averaging: float = 0.995
    evaluate_every: int = 250
    patience: int = 0
    start: str = ""
    precision: str = "float32"
    convolutions: str = "direct"
    seed: int = 0

    def __post_init__(self) -> None:
        specification(self.tool)
        toolbox_specification(self.toolbox)
        if self.damage:
            recipe(self.damage)
        if self.precision not in PRECISIONS:
            raise UnknownName("precision", self.precision, PRECISIONS)
        if self.optimizer not in OPTIMIZERS:
            raise UnknownName("optimizer", self.optimizer, OPTIMIZERS)
        check_convolutions(self.convolutions)
        check_at_least(1, iterations=self.iterations, batch=self.batch, evaluate_every=self.evaluate_every)
        check_at_least(16, crop=self.crop)
        check_at_least(
            0, learning_rate=self.learning_rate, muon_rate=self.muon_rate, patience=self.patience, seed=self.seed
        )


@dataclass(frozen=True)
class Progress:
    """What a training run reports after every step."""

    iteration: int
    iterations: int
    loss: float
    validation_gain: float | None


def training_damage(spec: ToolSpec, config: TrainingConfig) -> Recipe:
    """Damage of the tool's own band and, in some of the samples, slight damage of the other kinds."""
    if config.damage:
        return recipe(config.damage)

    def draw(u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        blur, noise, quality = spec.band.draw(u)
        slightly, other = u[:, 0] < config.slight, (u[:, 0] * 997.0) % 1.0
        if spec.removes != "Gaussian blur":
            blur = torch.where(slightly, other * config.slight_blur, blur)
        if spec.removes != "Gaussian noise":
            noise = torch.where(slightly, u[:, 2] * config.slight_noise, noise)
        if spec.removes != "JPEG artifacts":
            lowest = config.slight_quality
            quality = torch.where(slightly, (lowest + u[:, 3] * (100.0 - lowest)).round(), quality)
        return blur, noise, quality

    return Recipe(f"{spec.name} training", draw)


def training_batch(
    pool: ImagePool, spec: ToolSpec, config: TrainingConfig, iteration: int, device: torch.device | str
) -> tuple[Tensor, Tensor]:
    """Clean and damaged patches (batch, 3, crop, crop) of one iteration."""
    generator = seeded_generator(config.seed, iteration)
    n, size = config.batch, config.crop
    u = torch.rand(n, 10, generator=generator, dtype=torch.float64)
    strengths = training_damage(spec, config).draw(u[:, 6:])
    lead = KERNEL_RADIUS if bool((strengths[0] > 0).any()) else 0
    phase = (u[:, 3:5] * _GRID).long() * (u[:, 5:6] < 0.5)
    crops, _ = pool.crops(u[:, :3], size + 2 * lead + _GRID - 1, "random")
    crops = crops.to(device).float() / 255.0
    crops = turned(crops, sum(bit for bit in (1, 4, 2) if torch.rand((), generator=generator) < 0.5))
    drawn = torch.randn(crops.shape, generator=generator)
    damaged = distort(crops, *strengths, noise=drawn.to(device))
    corners = (lead + phase).tolist()

    def cut(batch: Tensor) -> Tensor:
        return torch.stack([p[:, y : y + size, x : x + size] for p, (y, x) in zip(batch, corners, strict=True)])

    return cut(crops), cut(damaged)


def validation_patches(
    pool: ImagePool, spec: ToolSpec, config: TrainingConfig, count: int = 128
) -> tuple[Tensor, Tensor]:
    """Clean and damaged 63x63 patches like those of training, always the same; none that needs no tool."""
    clean, damaged = damaged_patches(pool.fitting(63), torch.arange(count), training_damage(spec, config), 63)
    hurt = (damaged - clean).square().mean(dim=(1, 2, 3)) > ENOUGH
    return clean[hurt], damaged[hurt]


def train_tool(
    config: TrainingConfig,
    train: ImagePool,
    validation: ImagePool,
    folder: str | Path,
    *,
    device: torch.device | str = "cpu",
    checkpoint_seconds: float = 120.0,
    report: Callable[[Progress], None] = lambda progress: None,
    card: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Train one tool, or go on where a killed run of the same configuration stopped.

    Args:
        config: what to train and how.
        train: images to learn from.
        validation: other images; the weights with the best validation gain are kept.
        folder: receives ``<tool>.checkpoint`` on the way and ``<tool>.safetensors`` with its card at the end.
        device: where everything runs.
        checkpoint_seconds: time between two checkpoints.
        report: called after every iteration.
        card: further entries of the weights' card (what data, which commit).

    Returns:
        The card of the finished weights.

    Raises:
        InvalidArgument: if the folder holds a checkpoint of another configuration.
        TrainingDiverged: if the loss explodes; the last good checkpoint stays.
    """
    spec, folder = specification(config.tool), Path(folder)
    checkpoint = folder / f"{config.tool}.checkpoint"
    run = _Run(config, spec, folder, device)
    train = train.fitting(config.crop + 2 * KERNEL_RADIUS + _GRID - 1)
    clean, damaged = (part.to(device) for part in validation_patches(validation, spec, config))

    with resumed(run, checkpoint, checkpoint_seconds) as stepped:
        while run.iteration < config.iterations and not run.out_of_patience():
            batch = training_batch(train, spec, config, run.iteration, device)
            loss = run.descend(*batch, cosine(run.iteration, config.iterations, warmup=200))
            gain = None
            if run.iteration % config.evaluate_every == 0 or run.iteration == config.iterations:
                gain = mean_gain(run.average.module, clean, damaged)
                run.judge(gain)
            stepped(loss)
            report(Progress(run.iteration, config.iterations, loss, gain))
    final = run.card(card or {}, str(device))
    save_weights(folder / f"{config.tool}.safetensors", run.best, final)
    checkpoint.unlink(missing_ok=True)
    return final


class _Run(RestoringRun):
    """The state of a training run of a tool."""

    def __init__(self, config: TrainingConfig, spec: ToolSpec, folder: Path, device: torch.device | str) -> None:
        self.config, self.spec = config, spec
        torch.manual_seed(config.seed)
        toolbox = toolbox_specification(config.toolbox)
        self.architecture = toolbox.network(config.tool)
        network = build_network(self.architecture)
        self.origin: dict[str, Any] | None = None
        if config.start:
            if toolbox.network(config.start) != self.architecture:
                raise InvalidArgument("start", f"a tool with a {self.architecture} network", repr(config.start))
            here = folder if (folder / f"{config.start}.safetensors").exists() else toolbox.folder
            network.load_state_dict(load_network(config.start, config.toolbox, here).state_dict())
            origin = read_weights(here / f"{config.start}.safetensors")[1]
            self.origin = {key: origin.get(key) for key in ("name", "sha256", "command", "commit", "seconds")}
        else:
            begin_gently(network)
        super().__init__(network.requires_grad_(True), config, asdict(config), device, config.precision)

    def out_of_patience(self) -> bool:
        """Whether validation has stopped improving."""
        without, best = 0, -math.inf
        for _, gain in self.history:
            without, best = 0 if gain > best + 0.005 else without + 1, max(best, gain)
        return 0 < self.config.patience <= without

    def card(self, extra: dict[str, Any], device: str) -> dict[str, Any]:
        """The card of the best weights."""
        return {
            "name": self.spec.name,
            "description": self.spec.description,
            "network": self.architecture,
            "parameters": sum(value.numel() for value in self.best.values()),
            "licence": "MIT",
            "training": {**asdict(self.config), "iterations_done": self.iteration},
            "started_from": self.origin,
            "seconds": round(self.seconds, 1),
            "device": device,
            "validation_gain_db": round(self.best_gain, 4),
            **extra,
        }
