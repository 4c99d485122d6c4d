"""How a single network is trained for the comparison: damage of every kind in, the clean patch out.

The recipe is that of the tools (restoration_env.tools.restoring): AdamW or Muon with a warm-up and a cosine schedule,
the mean PSNR as the objective, weight averaging. The images are those of joint training: its patches, its damage, its
validation. So a network can lose to a toolchain only by what it is.

No network may lose because it was trained less. It has been trained enough if it saw at least as many patches as the
toolbox and the agent it is held against, or if its validation PSNR moved less than 0.02 dB in the last quarter of its
budget. While neither holds, rounds of a third of the budget so far are added (so that each is a quarter of the new
budget), with new patches and a smaller step. The card says which of the two held, and how many patches were seen.

Nor because most of it is dead: without normalisation, channels that a high rate has pushed below every rectifier learn
no more. The card counts them, and training on can begin by reviving them (`restoration_env.benchmarks.dead_channels`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from restoration_env.agents.validation import validation_batches
from restoration_env.benchmarks.dead_channels import dead_channels, is_plain, revive, widen
from restoration_env.benchmarks.networks import NETWORKS, build_network
from restoration_env.distortions import recipe
from restoration_env.errors import InvalidArgument, UnknownName, check_at_least
from restoration_env.files import read_weights, save_weights
from restoration_env.images import ImagePool, damaged_patches
from restoration_env.runs import resumed
from restoration_env.schedules import cosine
from restoration_env.toolbox import PRECISIONS
from restoration_env.tools.optimizers import OPTIMIZERS
from restoration_env.tools.restoring import RestoringRun, mean_gain
from restoration_env.tools.training import Progress
from restoration_env.winograd import check_convolutions

STILL = 0.02  # dB: what counts as no movement of the validation PSNR
_LATER = 0.4  # of the learning rate: the peak in the rounds that are added
_LOOK = 64  # patches with which dead channels are looked for and revived
_FIRST_KEY = 1 << 37  # of the training patches, so that no other training draws the same


@dataclass(frozen=True)
class SingleConfig:
    """Everything that decides the outcome of a training run, apart from images and first weights.

    Attributes:
        network: a name of `restoration_env.benchmarks.networks.NETWORKS`.
        iterations: optimiser steps of the first schedule: the budget, if it is enough.
        rounds: the most rounds that are added while the network has not been trained enough.
        system_patches: patches that a toolbox and its agent saw in training; as many are enough. 0 asks for
            convergence alone.
        batch: patches a step.
        severity: the damage to train on.
        patch: side of the patches in pixels.
        learning_rate: at the peak of the cosine schedule.
        optimizer: "adamw", or "muon" (`restoration_env.tools.optimizers`).
        muon_rate: Muon's learning rate at the peak.
        averaging: decay of the weight average, which is what is judged and kept.
        evaluate_every: iterations between two validations.
        validation_images: patches of each severity in a validation.
        multiply_adds: per pixel, of the network "equal-multiply-adds" alone; None is its default.
        precision: "float32", or "bfloat16" for autocast.
        convolutions: "direct", or "winograd" where a processor computes in float32.
        revive: give dead channels of the weights it starts from new ones, before the first step.
        seed: of the first weights and of the data.
    """

    network: str
    iterations: int = 40_000
    rounds: int = 0
    system_patches: int = 0
    batch: int = 32
    severity: str = "every"
    patch: int = 63
    learning_rate: float = 5e-4
    optimizer: str = "adamw"
    muon_rate: float = 4e-3
    averaging: float = 0.995
    evaluate_every: int = 500
    validation_images: int = 96
    multiply_adds: int | None = None
    precision: str = "float32"
    convolutions: str = "direct"
    revive: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        network = build_network(self.network, self.multiply_adds)
        if self.revive and not is_plain(network):
            raise InvalidArgument("revive", "left out for every network but vdsr and vdsr-s", self.network)
        recipe(self.severity)
        if self.precision not in PRECISIONS:
            raise UnknownName("precision", self.precision, PRECISIONS)
        if self.optimizer not in OPTIMIZERS:
            raise UnknownName("optimizer", self.optimizer, OPTIMIZERS)
        check_convolutions(self.convolutions)
        counts = {name: getattr(self, name) for name in ("iterations", "batch", "evaluate_every")}
        check_at_least(1, **counts, validation_images=self.validation_images)
        check_at_least(16, patch=self.patch)
        counts = {name: getattr(self, name) for name in ("rounds", "system_patches", "seed")}
        check_at_least(0, learning_rate=self.learning_rate, muon_rate=self.muon_rate, **counts)

    def ends(self) -> list[int]:
        """The iterations at which the schedule may end: after the first budget, and after each round."""
        ends = [self.iterations]
        for _ in range(self.rounds):
            ends.append(ends[-1] + -(-ends[-1] // 3))
        return ends


def training_patches(
    pool: ImagePool, config: SingleConfig, first: int, *, device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor]:
    """Clean and damaged patches (batch, 3, patch, patch) of one iteration: a function of the seed and of ``first``.

    As in joint training: every other batch is cut anywhere, the rest at multiples of 8, as the patches of an episode
    are; each clean patch is turned and mirrored in one of the eight ways before it is damaged.

    Args:
        pool: clean images at least as large as a patch.
        config: the damage, the sizes and the seed.
        first: patches drawn before these.
        device: where they are damaged and returned.
    """
    start = (config.seed << 40) + _FIRST_KEY + first
    grid = "random" if first // config.batch % 2 == 0 else "aligned"
    keys = torch.arange(start, start + config.batch)
    return damaged_patches(pool, keys, recipe(config.severity), config.patch, grid=grid, device=device, turns=True)


def converged(history: Sequence[tuple[int, float]], budget: int) -> bool:
    """Whether the validation PSNR moved less than 0.02 dB in the last quarter of the budget.

    What moves is the best so far, because that is what is kept; but a network that ends lower than it was has moved.

    Args:
        history: pairs of iteration and validation gain in dB, in order.
        budget: iterations of the whole schedule.

    Returns:
        False also if no validation was made before the last quarter, or none at the end: then nothing is known.
    """
    before = [gain for iteration, gain in history if iteration <= 0.75 * budget]
    after = [gain for iteration, gain in history if iteration > 0.75 * budget]
    if not before or not after or history[-1][0] < budget:
        return False
    return max(after) - max(before) < STILL and max(before) - after[-1] < STILL


def train_single(
    config: SingleConfig,
    train: ImagePool,
    validation: ImagePool,
    folder: str | Path,
    *,
    start: str | Path | None = None,
    device: torch.device | str = "cpu",
    checkpoint_seconds: float = 120.0,
    report: Callable[[Progress], None] = lambda progress: None,
    card: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Train a single network, or go on where a killed run of the same configuration stopped.

    Args:
        config: what to train and how.
        train: clean images to learn from.
        validation: other clean images; the weights with the best gain on their damage are kept.
        folder: receives ``<network>.checkpoint`` on the way and ``<network>.safetensors`` with its card at the end.
        start: weights that this function made, to train on from; the patches are new ones. Where dead channels are
            revived, those of vdsr-s may be where vdsr begins, the channels that it lacks being dead.
        device: where everything runs.
        checkpoint_seconds: time between two checkpoints.
        report: called after every iteration.
        card: further entries of the weights' card (what data, which commit).

    Returns:
        The card of the finished weights. Its ``patches_seen`` and ``seconds`` include those of ``start``.

    Raises:
        InvalidArgument: if the folder holds a checkpoint of another configuration, ``start`` is another network, or
            dead channels are to be revived without a ``start``.
        TrainingDiverged: if the loss is no longer a number; the last good checkpoint stays.
    """
    folder = Path(folder)
    checkpoint = folder / f"{config.network}.checkpoint"
    if config.revive and start is None:
        raise InvalidArgument("revive", "used with weights to start from: fresh ones have no dead channels", start)
    run = _Run(config, start, device)
    train = train.fitting(config.patch)
    held_out = validation_batches(validation, config.validation_images, config.patch, device).values()
    clean, damaged = (torch.cat(parts) for parts in zip(*held_out, strict=True))
    fastest = torch.backends.cudnn.flags(
        enabled=True, benchmark=run.device.type == "cuda"
    )  # all batches are of one shape
    with fastest, resumed(run, checkpoint, checkpoint_seconds) as stepped:
        if start is not None and not run.history:
            if config.revive:
                run.revive(training_patches(train, replace(config, batch=_LOOK), run.patches_seen, device=device)[1])
            run.judge(mean_gain(run.average.module, clean, damaged))  # training on must not end with less

        while not run.ended():
            batch = training_patches(train, config, run.patches_seen, device=device)
            loss = run.descend(*batch, run.rate())
            gain = None
            if run.iteration % config.evaluate_every == 0 or run.iteration in config.ends():
                gain = mean_gain(run.average.module, clean, damaged)
                run.judge(gain)
            stepped(loss)
            report(Progress(run.iteration, run.budget(), loss, gain))
    final = {**run.card(damaged), "device": str(device), **(card or {})}
    save_weights(folder / f"{config.network}.safetensors", run.best, final)
    checkpoint.unlink(missing_ok=True)
    return final


class _Run(RestoringRun):
    """The state of a training run of a single network."""

    def __init__(self, config: SingleConfig, start: str | Path | None, device: torch.device | str) -> None:
        self.config = config
        torch.manual_seed(config.seed)
        network = build_network(config.network, config.multiply_adds)
        self.multiply_adds, self.patches_before, seconds = network.cost, 0, 0.0
        self.origin: dict[str, Any] | None = None
        if start is not None:
            tensors, origin = read_weights(start)
            same = ("network", "multiply_adds_per_pixel")
            if config.revive and is_plain(network) and origin.get("network") == "vdsr-s":
                widen(network, tensors)
            elif [origin.get(key) for key in same] == [config.network, network.cost]:
                network.load_state_dict(tensors)
            else:
                raise InvalidArgument("start", f"weights of {config.network} of {network.cost} multiply-adds", start)
            self.origin = {key: origin.get(key) for key in ("sha256", "command", "commit", "patches_seen", "seconds")}
            self.patches_before, seconds = origin["patches_seen"], origin["seconds"]
        identity = {**asdict(config), "start": self.origin and self.origin["sha256"]}
        super().__init__(network, config, identity, device, config.precision)
        self.seconds, self.revived = seconds, 0

    def state(self) -> dict[str, Any]:
        """All that `restore` needs."""
        return {**super().state(), "revived": self.revived}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint of the same configuration; another one is refused."""
        super().restore(state)
        self.revived = state["revived"]

    def revive(self, images: Tensor) -> None:
        """Give the channels that are dead on these images new weights, before the first step."""
        generator = torch.Generator().manual_seed(self.config.seed)
        assert is_plain(self.network)
        self.revived = revive(self.network, images, generator)
        self.average.module.load_state_dict(self.network.state_dict())

    @property
    def patches_seen(self) -> int:
        """Training patches so far, with those of the weights it started from."""
        return self.patches_before + self.iteration * self.config.batch

    def budget(self) -> int:
        """The iteration at which the current round ends."""
        return next(end for end in self.config.ends() if end >= self.iteration)

    def enough(self) -> str:
        """Which of the two conditions for having been trained enough holds now; "" if neither does."""
        if 0 < self.config.system_patches <= self.patches_seen:
            return "as many patches as the toolbox and its agent"
        return "the validation PSNR moved less than 0.02 dB" if converged(self.history, self.budget()) else ""

    def ended(self) -> bool:
        """Whether a round has just ended, and there is no need for another one or none left."""
        ends = self.config.ends()
        return self.iteration in ends and (self.iteration == ends[-1] or bool(self.enough()))

    def rate(self) -> float:
        """The share of the peak learning rates now: a short warm-up, a cosine to zero, in each round anew and lower."""
        ends = [0, *self.config.ends()]
        number = next(n for n, end in enumerate(ends[1:]) if self.iteration < end)
        length, done = ends[number + 1] - ends[number], self.iteration - ends[number]
        return (_LATER if number else 1.0) * cosine(done, length, warmup=200)

    def card(self, images: Tensor) -> dict[str, Any]:
        """The card of the best weights; damaged images (N, 3, H, W) show which of their channels are dead."""
        return {
            "name": self.config.network,
            "description": NETWORKS[self.config.network].description,
            "network": self.config.network,
            "parameters": sum(parameter.numel() for parameter in self.network.parameters()),
            "multiply_adds_per_pixel": self.multiply_adds,
            "licence": "MIT",
            "training": {**asdict(self.config), "iterations_done": self.iteration},
            "started_from": self.origin,
            "patches_seen": self.patches_seen,
            "seconds": round(self.seconds, 3),
            "validation_gain_db": round(self.best_gain, 4),
            "converged": converged(self.history, self.budget()),
            "trained_enough": self.enough() or "no",
            "history": self.history,
            **self._channels(images),
        }

    def _channels(self, images: Tensor) -> dict[str, int]:
        best = build_network(self.config.network, self.config.multiply_adds).to(self.device)
        if not is_plain(best):
            return {}
        best.load_state_dict(self.best)
        return {"revived_channels": self.revived, "dead_channels": sum(dead_channels(best, images))}
