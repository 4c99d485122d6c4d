"""How the super-resolvers of the leaderboard are trained: all under one budget, of seconds or of patches.

The pixel family learns the mean PSNR itself (of luma, where the network works on luma). The adversarial family does
so for half of the budget and then learns its published loss, as its papers begin from a pixel-trained generator.
Adam with a warm-up and a cosine schedule over the share of the budget that is spent, and averaged weights, which are
what is judged and kept: of the pixel family the best on validation, of the adversarial family the last.

Seconds are those of a processor core (of the clock, on a GPU), so that a busy machine takes longer but gives no less.
How much is learned in them depends on the machine; the card says how many patches were seen. With a budget of patches
a killed run that goes on ends bit for bit as one that was never killed.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from restoration_env.agents.objectives import Decibels, Objective
from restoration_env.benchmarks.super_resolution_data import Pairs, training_patches, validation_patches
from restoration_env.benchmarks.super_resolution_losses import CROP, LOSSES
from restoration_env.benchmarks.super_resolvers import SuperResolver, build_resolver, specification
from restoration_env.benchmarks.train_single import converged
from restoration_env.errors import InvalidArgument, UnknownName, check_at_least
from restoration_env.files import check_same_configuration, save_weights
from restoration_env.metrics import psnr
from restoration_env.resizing import SCALE
from restoration_env.runs import resumed
from restoration_env.toolbox import PRECISIONS

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}
_JUDGEMENTS = 12  # validations in a budget


def parse_budget(text: str) -> tuple[float, str]:
    """A budget such as "90s", "40m", "2h" or "20000p" as an amount of "seconds" or "patches".

    Raises:
        InvalidArgument: for anything else, and for nothing.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhp])", text.strip())
    if match is None or float(match[1]) <= 0:
        raise InvalidArgument("budget", "a time such as 90s, 40m or 2h, or patches such as 20000p", repr(text))
    if match[2] == "p":
        return float(match[1]), "patches"
    return float(match[1]) * _UNITS[match[2]], "seconds"


@dataclass(frozen=True)
class ResolverConfig:
    """Everything that decides the outcome of a training run, apart from the images.

    Attributes:
        network: a name of `restoration_env.benchmarks.super_resolvers.SPECS`.
        budget: as `parse_budget` takes it.
        batch: patches a step.
        crop: side of the patches at high resolution, a multiple of four; 0 is about what the network's paper took.
        learning_rate: for the pixels, at the peak of the schedule.
        adversarial_rate: for the adversarial loss, at the peak of its schedule.
        pixel_share: share of the budget for the pixels, of a network that then learns an adversarial loss.
        averaging: decay of the weight average.
        validation_images: patches of 96 pixels in a validation.
        precision: "float32", or "bfloat16" for autocast.
        seed: of the first weights and of the data.
    """

    network: str
    budget: str = "40m"
    batch: int = 16
    crop: int = 0
    learning_rate: float = 5e-4
    adversarial_rate: float = 1e-4
    pixel_share: float = 0.5
    averaging: float = 0.99
    validation_images: int = 16
    precision: str = "float32"
    seed: int = 0

    def __post_init__(self) -> None:
        spec = specification(self.network)
        parse_budget(self.budget)
        if self.precision not in PRECISIONS:
            raise UnknownName("precision", self.precision, PRECISIONS)
        check_at_least(1, batch=self.batch, validation_images=self.validation_images)
        check_at_least(0, learning_rate=self.learning_rate, adversarial_rate=self.adversarial_rate, seed=self.seed)
        if self.crop and (self.crop % SCALE or self.crop < 24):
            raise InvalidArgument("crop", "a multiple of 4, at least 24", self.crop)
        if spec.losses and self.side != CROP:
            raise InvalidArgument("crop", f"{CROP} for a network with an adversarial loss", self.crop)
        if not 0.0 <= self.pixel_share <= 1.0:
            raise InvalidArgument("pixel_share", "from 0 to 1", self.pixel_share)

    @property
    def side(self) -> int:
        """Side of the training patches in pixels."""
        return self.crop or specification(self.network).crop


@dataclass(frozen=True)
class ResolverProgress:
    """What training reports after every step; ``spent`` and ``budget`` in seconds or patches."""

    spent: float
    budget: float
    stage: str
    loss: float
    validation_psnr: float | None


def train_resolver(
    config: ResolverConfig,
    train: Pairs,
    validation: Pairs,
    folder: str | Path,
    *,
    device: torch.device | str = "cpu",
    checkpoint_seconds: float = 120.0,
    report: Callable[[ResolverProgress], None] = lambda progress: None,
    card: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Train a super-resolver, or go on where a killed run of the same configuration stopped.

    Args:
        config: what to train and how.
        train: photographs to learn from, each at least as large as a patch.
        validation: other photographs, of 96 pixels or more.
        folder: receives ``<network>.checkpoint`` on the way and ``<network>.safetensors`` with its card at the end.
        device: where everything runs.
        checkpoint_seconds: time between two checkpoints.
        report: called after every step.
        card: further entries of the weights' card (what data, which commit).

    Returns:
        The card of the finished weights.

    Raises:
        InvalidArgument: if the folder holds a checkpoint of another configuration, or VGG16's weights are needed and
            have not been made.
        TrainingDiverged: if the loss is no longer a number; the last good checkpoint stays.
    """
    folder = Path(folder)
    checkpoint = folder / f"{config.network}.checkpoint"
    run = _Run(config, device)
    large, small = (part.to(device) for part in validation_patches(validation, config.validation_images, CROP))
    clock = time.process_time if run.device.type == "cpu" else time.monotonic
    with resumed(run, checkpoint, checkpoint_seconds, clock) as stepped:
        while run.share() < 1.0:
            pair = training_patches(train, config.batch, config.side, run.iteration, seed=config.seed, device=device)
            loss = run.step(*pair)
            value = run.judge(large, small) if run.due() else None
            stepped(loss)
            report(ResolverProgress(run.spent(), run.budget, run.stage(), loss, value))
        if run.due():  # the seconds of the last step are counted after it
            run.judge(large, small)
    final = {**run.card(), "device": str(device), **(card or {})}
    halves = {name: value.half() if value.is_floating_point() else value for name, value in run.kept().items()}
    save_weights(folder / f"{config.network}.safetensors", halves, final)
    checkpoint.unlink(missing_ok=True)
    return final


class _Run:
    """The state of a training run: all that a checkpoint holds."""

    def __init__(self, config: ResolverConfig, device: torch.device | str) -> None:
        self.config, self.spec, self.device = config, specification(config.network), torch.device(device)
        self.budget, self.unit = parse_budget(config.budget)
        torch.manual_seed(config.seed)
        network: SuperResolver = build_resolver(config.network)
        self.network = network.train().to(self.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        decay = torch.optim.swa_utils.get_ema_multi_avg_fn(config.averaging)
        self.average = torch.optim.swa_utils.AveragedModel(self.network, multi_avg_fn=decay, use_buffers=True).eval()
        self.optimizer = torch.optim.Adam(self.network.parameters(), config.learning_rate)
        self.pixels, self.looks = Decibels(), None
        if self.spec.losses:
            self.looks = LOSSES[self.spec.losses]().to(self.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.iteration, self.seconds, self.history = 0, 0.0, list[tuple[float, float]]()
        self.judged, self.best_value, self.best = 0, -math.inf, self._averaged()

    def _averaged(self) -> dict[str, Tensor]:
        return {name: value.detach().clone() for name, value in self.average.module.state_dict().items()}

    def patches_seen(self) -> int:
        """Training patches so far."""
        return self.iteration * self.config.batch

    def spent(self) -> float:
        """How much of the budget is gone, in its unit."""
        return min(self.budget, self.seconds if self.unit == "seconds" else float(self.patches_seen()))

    def share(self) -> float:
        """How much of the budget is gone, from 0 to 1."""
        return self.spent() / self.budget

    def stage(self) -> str:
        """What is learned now: "pixels", or the name of an adversarial loss."""
        return self.spec.losses if self.looks is not None and self.share() >= self.config.pixel_share else "pixels"

    def learning_rate(self) -> float:
        """The learning rate now: a cosine down to a fiftieth over each stage, with a short warm-up before the first."""
        share, middle = self.share(), self.config.pixel_share if self.looks is not None else 1.0
        first = self.stage() == "pixels"
        within = share / middle if first else (share - middle) / (1.0 - middle)
        rate = self.config.learning_rate if first else self.config.adversarial_rate
        warm = min(1.0, (self.iteration + 1) / 50) if first else 1.0
        return rate * warm * (0.02 + 0.98 * 0.5 * (1.0 + math.cos(math.pi * min(1.0, within))))

    def step(self, large: Tensor, small: Tensor) -> float:
        """One optimiser step; returns the mean loss."""
        adversarial = self.stage() != "pixels"
        objective: Objective = self.looks if adversarial and self.looks is not None else self.pixels
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bfloat16"):
            made = self.network(small.contiguous(memory_format=torch.channels_last)).float()
            if adversarial:
                loss = objective(made, large).mean()
            else:  # the outermost pixels see a border that the photograph does not have
                inner = (..., slice(SCALE, -SCALE), slice(SCALE, -SCALE))
                loss = objective(self.network.judged(made)[inner], self.network.judged(large)[inner]).mean()
            value = loss.item()
            if math.isfinite(value):
                self.optimizer.zero_grad(set_to_none=True)
                loss.backward()
                nn.utils.clip_grad_norm_(self.network.parameters(), 20.0)
                self.optimizer.step()
                self.average.update_parameters(self.network)
                objective.learn(made.detach(), large)
        self.iteration += 1
        return value

    def due(self) -> bool:
        """Whether a validation is due: twelve times in a budget, and at its end."""
        return self.share() * _JUDGEMENTS >= self.judged + 1

    @torch.no_grad()
    def judge(self, large: Tensor, small: Tensor) -> float:
        """The PSNR in dB of the averaged weights, of luma where the network works on luma."""
        network = cast("SuperResolver", self.average.module)
        values = []
        for pair in zip(large.split(4), small.split(4), strict=True):
            values.append(psnr(network.judged(network(pair[1])), network.judged(pair[0])))
        value = torch.cat(values).mean().item()
        self.judged = int(self.share() * _JUDGEMENTS)
        self.history.append((round(self.spent(), 1), round(value, 4)))
        if value > self.best_value:
            self.best_value, self.best = value, self._averaged()
        return value

    def kept(self) -> dict[str, Tensor]:
        """The weights that the run gives out."""
        return self._averaged() if self.looks is not None else self.best

    def state(self) -> dict[str, Any]:
        """All that `restore` needs."""
        return {
            "config": asdict(self.config),
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "looks": self.looks.state() if self.looks is not None else {},
            "best": self.best,
            "best_value": self.best_value,
            "history": self.history,
            "judged": self.judged,
            "iteration": self.iteration,
            "seconds": self.seconds,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint of the same configuration; another one is refused."""
        check_same_configuration(state["config"], asdict(self.config))
        for name in ("network", "average", "optimizer"):
            getattr(self, name).load_state_dict(state[name])
        if self.looks is not None:
            self.looks.restore(state["looks"])
        for name in ("best", "best_value", "history", "judged", "iteration", "seconds"):
            setattr(self, name, state[name])

    def card(self) -> dict[str, Any]:
        """The card of the weights that are kept."""
        return {
            "name": self.config.network,
            "description": f"{self.spec.title}, super-resolution by four",
            "network": self.config.network,
            "parameters": sum(parameter.numel() for parameter in self.network.parameters()),
            "works_on": "luma" if self.network.on_luma else "RGB",
            "precision": "float16",
            "licence": "MIT",
            "training": {**asdict(self.config), "iterations_done": self.iteration},
            "patches_seen": self.patches_seen(),
            "seconds": round(self.seconds, 1),
            "validation_psnr_db": round(self.history[-1][1] if self.looks is not None else self.best_value, 4),
            "converged": self.looks is None and converged(self.history, int(self.budget)),  # type: ignore[arg-type]
            "history": self.history,
        }
