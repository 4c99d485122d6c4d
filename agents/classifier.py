"""A network that names the damage of an image, and how it is trained: supervised, from damage that is known.

It answers with the bands of RL-Restore's tools (Yu et al., CVPR 2018, Table 1): how strong blur, noise and JPEG
are, each none or one of four. The network is no larger and costs no more than the agent's, so that what separates
the two policies is what they learned.

The data of iteration i depends on the seed and on i alone, so training that was killed and resumed ends with the
same weights, bit for bit, as training that was never interrupted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from restoration_env.distortions import recipe
from restoration_env.errors import InvalidArgument, check_at_least
from restoration_env.files import (
    check_same_configuration,
    read_weights,
    save_weights,
)
from restoration_env.images import ImagePool, damaged_patches
from restoration_env.randomness import uniform
from restoration_env.runs import resumed
from restoration_env.tools.catalogue import ToolSpec, specification

WEIGHTS = Path(__file__).parent / "weights"
KINDS = ("blur", "noise", "jpeg")
LEVELS = 5  # none, and the four bands
PATCH = 63


def tool_for(kind: str, level: int) -> str:
    """The tool of the catalogue for a kind of damage and its level 1..4."""
    return f"de{kind}-{level}"


def bands() -> dict[str, list[list[float]]]:
    """The catalogue's bands: for each kind of damage four pairs [low, high]."""
    return {kind: [[spec.low, spec.high] for spec in _specifications(kind)] for kind in KINDS}


def _specifications(kind: str) -> list[ToolSpec]:
    return [specification(tool_for(kind, level)) for level in range(1, LEVELS)]


def levels(blur_sigma: Tensor, noise_sigma: Tensor, jpeg_quality: Tensor) -> Tensor:
    """The level of each damage: 0 for none, else that of its band; where two bands meet, the milder.

    Args:
        blur_sigma: (N,), in pixels; 0 is none.
        noise_sigma: (N,), on the 0-255 scale; 0 is none.
        jpeg_quality: (N,); infinite is none.

    Returns:
        int64 (N, 3), in the order of `KINDS`.
    """
    strengths = (blur_sigma, noise_sigma, -jpeg_quality)  # higher is worse
    nothing = (0.0, 0.0, -torch.inf)
    found = []
    for kind, strength, none in zip(KINDS, strengths, nothing, strict=True):
        inner = [-spec.low if kind == "jpeg" else spec.high for spec in _specifications(kind)[:-1]]
        edges = torch.tensor(inner, dtype=torch.float64, device=strength.device)
        band = 1 + (strength.double()[:, None] > edges).sum(1)
        found.append(torch.where(strength == none, 0, band))
    return torch.stack(found, 1)


class DistortionClassifier(nn.Module):
    """Five convolutions, their features averaged over the image, and a softmax head for each kind of damage.

    86,447 parameters; 11.7 M multiply-adds for 63x63 pixels. Damage shows in the statistics of neighbouring
    pixels, wherever they are, so images of any size may be looked at; it is trained on 63x63.
    """

    def __init__(self) -> None:
        super().__init__()
        widths, strides = (3, 16, 24, 32, 64, 96), (1, 2, 2, 2, 1)
        self.convs = nn.ModuleList(
            nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
            for (inputs, outputs), stride in zip(pairwise(widths), strides, strict=True)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in widths[1:])
        self.heads = nn.Linear(widths[-1], len(KINDS) * LEVELS)
        with torch.no_grad():  # begin with contrast: brightness says nothing of the damage
            first = self.convs[0].get_parameter("weight")
            first.sub_(first.mean(dim=(1, 2, 3), keepdim=True))

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, 3, 5) of the levels of blur, noise and JPEG, for images uint8 or float in [0, 1] (N, 3, H, W)."""
        x = images.float() / 255.0 if images.dtype == torch.uint8 else images
        x = x.contiguous(memory_format=torch.channels_last)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.relu(norm(conv(x)), inplace=True)
        return self.heads(x.mean((2, 3))).view(-1, len(KINDS), LEVELS)


@dataclass(frozen=True)
class ClassifierConfig:
    """Everything that decides the outcome of a training run, apart from the images.

    Attributes:
        iterations: optimiser steps of the whole schedule.
        batch: patches a step.
        severity: the damage to learn.
        learning_rate: AdamW's at the start; falls to a fiftieth along a cosine.
        evaluate_every: iterations between two validations.
        validation_images: patches in a validation.
        seed: of the first weights and of the data.
    """

    iterations: int = 4_000
    batch: int = 64
    severity: str = "every"
    learning_rate: float = 3e-3
    evaluate_every: int = 250
    validation_images: int = 1_024
    seed: int = 0

    def __post_init__(self) -> None:
        recipe(self.severity)
        counts = {name: getattr(self, name) for name in ("iterations", "batch", "evaluate_every")}
        check_at_least(1, **counts, validation_images=self.validation_images)
        check_at_least(0, learning_rate=self.learning_rate, seed=self.seed)


@dataclass(frozen=True)
class ClassifierProgress:
    """What training reports after every iteration; ``accuracy`` is the share of right answers by kind of damage."""

    iteration: int
    iterations: int
    loss: float
    accuracy: dict[str, float] | None


def labelled_patches(
    pool: ImagePool, keys: Tensor, severity: str, *, device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor]:
    """Damaged patches uint8 (N, 3, 63, 63), as a policy sees them, and their levels int64 (N, 3)."""
    _, damaged = damaged_patches(pool, keys, recipe(severity), PATCH, device=device)
    drawn = recipe(severity).draw(uniform(keys, 4, stream=2))  # as damaged_patches draws them
    return (damaged * 255.0).round().to(torch.uint8), levels(*drawn).to(device)


def train_classifier(
    config: ClassifierConfig,
    train: ImagePool,
    validation: ImagePool,
    path: str | Path,
    *,
    device: torch.device | str = "cpu",
    checkpoint_seconds: float = 120.0,
    report: Callable[[ClassifierProgress], None] = lambda progress: None,
    card: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Train the classifier, or go on where a killed run of the same configuration stopped.

    Args:
        config: how to train.
        train: clean images to learn from.
        validation: other clean images; the weights with the lowest loss on their damage are kept.
        path: the safetensors file to write; the checkpoint stands beside it on the way.
        device: where everything runs.
        checkpoint_seconds: time between two checkpoints.
        report: called after every iteration.
        card: further entries of the weights' card.

    Returns:
        The card of the finished weights.

    Raises:
        InvalidArgument: if there is a checkpoint of another configuration.
    """
    path = Path(path)
    checkpoint = path.with_suffix(".checkpoint")
    run = _Run(config, device)
    train, validation = train.fitting(PATCH), validation.fitting(PATCH)
    held_out = labelled_patches(validation, torch.arange(config.validation_images), config.severity, device=device)

    with resumed(run, checkpoint, checkpoint_seconds) as stepped:
        while run.iteration < config.iterations:
            key = (config.seed << 32) + run.iteration * config.batch
            batch = labelled_patches(train, torch.arange(key, key + config.batch), config.severity, device=device)
            loss = run.step(*batch)
            accuracy = None
            if run.iteration % config.evaluate_every == 0 or run.iteration == config.iterations:
                accuracy = run.judge(*held_out)
            stepped(loss)
            report(ClassifierProgress(run.iteration, config.iterations, loss, accuracy))
    facts = {
        "bands": bands(),
        "patch_size": PATCH,
        "parameters": sum(parameter.numel() for parameter in run.network.parameters()),
        "licence": "MIT",
        "training": {**asdict(config), "iterations_done": run.iteration},
        "seconds": round(run.seconds, 1),
        "device": str(device),
        "validation_accuracy": {kind: round(share, 4) for kind, share in run.best_accuracy.items()},
        "validation_loss": round(run.best_loss, 4),
        **(card or {}),
    }
    save_weights(path, run.best, facts)
    checkpoint.unlink(missing_ok=True)
    return facts


def read_classifier(path: str | Path) -> tuple[DistortionClassifier, dict[str, Any]]:
    """A trained classifier and its card.

    Raises:
        InvalidArgument: if the weights are missing, damaged, or not a classifier of the catalogue's bands.
    """
    tensors, card = read_weights(path)
    if card.get("bands") != bands():
        raise InvalidArgument("weights", "of a classifier of the catalogue's bands", path)
    network = DistortionClassifier()
    network.load_state_dict(tensors)
    return network.eval(), card


class _Run:
    """The state of a training run: all that a checkpoint holds."""

    def __init__(self, config: ClassifierConfig, device: torch.device | str) -> None:
        self.config = config
        torch.manual_seed(config.seed)
        self.network = DistortionClassifier().to(device)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), config.learning_rate, weight_decay=1e-4)
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
            self.optimizer, config.iterations, config.learning_rate / 50
        )
        self.iteration, self.seconds = 0, 0.0
        self.best_loss, self.best = math.inf, self._weights()
        self.best_accuracy: dict[str, float] = {}

    def _weights(self) -> dict[str, Tensor]:
        return {name: value.detach().clone() for name, value in self.network.state_dict().items()}

    def step(self, images: Tensor, target: Tensor) -> float:
        """One optimiser step; returns the cross-entropy, the mean over the kinds of damage."""
        self.network.train()
        loss = F.cross_entropy(self.network(images).flatten(0, 1), target.flatten())
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 5.0)
        self.optimizer.step()
        self.schedule.step()
        self.iteration += 1
        return loss.item()

    @torch.no_grad()
    def judge(self, images: Tensor, target: Tensor) -> dict[str, float]:
        """The share of right answers for each kind; the weights are kept if their loss is the lowest so far."""
        self.network.eval()
        logits = torch.cat([self.network(part) for part in images.split(256)])
        loss = F.cross_entropy(logits.flatten(0, 1), target.flatten()).item()
        right = (logits.argmax(2) == target).double().mean(0).tolist()
        accuracy = dict(zip(KINDS, right, strict=True))
        if loss < self.best_loss:
            self.best_loss, self.best_accuracy, self.best = loss, accuracy, self._weights()
        return accuracy

    def state(self) -> dict[str, Any]:
        """All that `restore` needs."""
        return {
            "config": asdict(self.config),
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "best": self.best,
            "best_loss": self.best_loss,
            "best_accuracy": self.best_accuracy,
            "iteration": self.iteration,
            "seconds": self.seconds,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint of the same configuration; another one is refused."""
        check_same_configuration(state["config"], asdict(self.config))
        for name in ("network", "optimizer", "schedule"):
            getattr(self, name).load_state_dict(state[name])
        self.best, self.best_loss, self.best_accuracy = state["best"], state["best_loss"], state["best_accuracy"]
        self.iteration, self.seconds = state["iteration"], state["seconds"]
