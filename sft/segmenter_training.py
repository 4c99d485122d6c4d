"""How a segmenter is trained, and how good it is: intersection over union on low and high resolution."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from restoration_env.errors import InvalidArgument, UnknownName, check_at_least
from restoration_env.files import read_weights, save_weights
from restoration_env.randomness import generator
from restoration_env.resizing import SCALE, enlarged_again
from restoration_env.schedules import cosine
from restoration_env.sft.backbone import pretrained_backbone
from restoration_env.sft.runs import Progress, train
from restoration_env.sft.scenes import VOID, Scenes
from restoration_env.sft.segmenter import NETWORKS, LiteSegmenter, Segmenter, build_segmenter

if TYPE_CHECKING:
    from lightning_fabric import Fabric

_STRIDE = 4  # labels are compared at every fourth pixel


@dataclass(frozen=True)
class SegmenterConfig:
    """Everything that decides the outcome, apart from the scenes.

    Attributes:
        network: "lite" or "resnet101".
        start: "pretrained" (lite only: the backbone trained on ImageNet), "none", or a file of weights, of which all
            that fits is taken.
        frozen: blocks of the lite backbone that are left as they are.
        iterations: optimiser steps.
        batch: crops a step, in each process.
        crop: their side in pixels, a multiple of 32.
        learning_rate: of what is new, at its peak.
        backbone_rate: of the pretrained backbone.
        low_resolution: share of the crops that are shrunk by four and enlarged again.
        averaging: decay of the weight average.
        evaluate_every: iterations between two validations.
        precision: "float32", or "bfloat16" for mixed precision.
        seed: of everything random.
    """

    network: str = "lite"
    start: str = "pretrained"
    frozen: int = 3
    iterations: int = 900
    batch: int = 8
    crop: int = 224
    learning_rate: float = 1e-3
    backbone_rate: float = 2.5e-4
    low_resolution: float = 0.75
    averaging: float = 0.99
    evaluate_every: int = 150
    precision: str = "float32"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.network not in NETWORKS:
            raise UnknownName("network", self.network, NETWORKS)
        if self.start == "pretrained" and self.network != "lite":
            raise InvalidArgument(
                "start", f"'none' or a file of weights for the network {self.network!r}", "pretrained"
            )
        if self.crop < 32 or self.crop % 32:
            raise InvalidArgument("crop", "a multiple of 32", self.crop)
        check_at_least(1, iterations=self.iterations, batch=self.batch, evaluate_every=self.evaluate_every)
        check_at_least(0, learning_rate=self.learning_rate, low_resolution=self.low_resolution, seed=self.seed)


def training_crops(scenes: Scenes, config: SegmenterConfig, iteration: int, rank: int = 0) -> tuple[Tensor, Tensor]:
    """Crops (batch, 3, crop, crop) in [0, 1], scaled by 0.75 to 1.5 and flipped, and their labels."""
    random = generator(config.seed, rank, iteration)
    images, labels = [], []
    for _ in range(config.batch):
        which, scale, down, right, flip, low, light = torch.rand(7, generator=random).tolist()
        index = int(which * len(scenes))
        image, label = scenes.images[index], scenes.labels[index]
        scale = 0.75 * 2**scale
        # A window of the photograph that becomes the crop; beyond its border there is void.
        side = round(config.crop / scale)
        height, width = label.shape
        top, left = (int(u * (max(0, length - side) + 1)) for u, length in ((down, height), (right, width)))
        rows, columns = slice(top, top + side), slice(left, left + side)
        pad = (0, side - min(side, width), 0, side - min(side, height))
        window = F.pad(image[:, rows, columns].float()[None] / 255, pad, value=0.5)
        window = F.interpolate(window, (config.crop,) * 2, mode="bilinear", antialias=True)
        names = F.pad(label[rows, columns].float()[None, None], pad, value=VOID)
        names = F.interpolate(names, (config.crop,) * 2, mode="nearest-exact")
        window = (window * (0.8 + 0.4 * light)).clamp(0, 1)
        if low < config.low_resolution:
            window = enlarged_again(window)
        if flip < 0.5:
            window, names = window.flip(3), names.flip(3)
        images.append(window)
        labels.append(names[0].long())
    return torch.cat(images), torch.cat(labels)


def category_weights(scenes: Scenes) -> Tensor:
    """What a pixel of each category counts in the loss: more where the category is rare, within 0.5 and 4."""
    counts = torch.stack([torch.bincount(label.flatten().long(), minlength=256) for label in scenes.labels]).sum(0)
    counts = counts[: len(scenes.categories)].double().clamp_min(1)
    return (counts.median() / counts).sqrt().clamp(0.5, 4.0).float()


@torch.no_grad()
def intersection_over_union(
    segmenter: Segmenter, scenes: Scenes, *, low_resolution: bool, device: torch.device | str = "cpu"
) -> dict[str, float]:
    """Intersection over union of each category over all pixels of all scenes, NaN for one that is not there.

    Args:
        segmenter: for the scenes' categories.
        scenes: labelled photographs, cut at the end to multiples of four pixels.
        low_resolution: shrink and enlarge them by four first.
        device: where the segmenter is.

    Raises:
        InvalidArgument: if the segmenter has other categories.
    """
    if segmenter.categories != scenes.categories:
        raise InvalidArgument("scenes", f"of the categories {segmenter.categories}", scenes.categories)
    count = len(scenes.categories)
    confusion = torch.zeros(count * count, dtype=torch.long)
    for image, label in zip(scenes.images, scenes.labels, strict=True):
        height, width = (side // SCALE * SCALE for side in label.shape)
        pixels = image[None, :, :height, :width].to(device).float() / 255
        found = segmenter(enlarged_again(pixels) if low_resolution else pixels).argmax(1)[0].cpu()
        label = label[:height, :width].long()
        known = label != VOID
        confusion += torch.bincount(label[known] * count + found[known], minlength=count * count)
    table = confusion.view(count, count).double()
    both = table.diag()
    iou = both / (table.sum(0) + table.sum(1) - both)
    return dict(zip(scenes.categories, iou.tolist(), strict=True))


def mean_of(iou: dict[str, float]) -> float:
    """The mean over the categories that are there."""
    values = [value for value in iou.values() if not math.isnan(value)]
    return sum(values) / len(values)


class _Run:
    """The state of a training run."""

    def __init__(self, config: SegmenterConfig, scenes: Scenes, validation: Scenes, fabric: Fabric) -> None:
        self.config, self.scenes, self.validation, self.fabric = config, scenes, validation, fabric
        self.iteration, self.seconds, self.best_iou = 0, 0.0, -1.0
        torch.manual_seed(config.seed)
        plain = _started(config, len(scenes.categories))
        groups, frozen = _groups(plain, config)
        optimizer = torch.optim.AdamW(groups, weight_decay=1e-4)
        self.peaks = [group["lr"] for group in optimizer.param_groups]
        for parameter in frozen:
            parameter.requires_grad_(False)
        plain = plain.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.network, self.optimizer = fabric.setup(plain, optimizer)
        decay = torch.optim.swa_utils.get_ema_multi_avg_fn(config.averaging)
        self.average = torch.optim.swa_utils.AveragedModel(self.network.module, multi_avg_fn=decay, use_buffers=True)
        self.weights = category_weights(scenes).to(fabric.device)
        self.best = self._averaged()

    def _averaged(self) -> dict[str, Tensor]:
        return {name: value.detach().cpu().clone() for name, value in self.average.module.state_dict().items()}

    def step(self) -> dict[str, float]:
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak * cosine(self.iteration, self.config.iterations, warmup=100)
        images, labels = training_crops(self.scenes, self.config, self.iteration, self.fabric.global_rank)
        images, labels = images.to(self.fabric.device), labels.to(self.fabric.device)
        logits = self.network(images.contiguous(memory_format=torch.channels_last)).float()
        labels = labels[:, _STRIDE // 2 :: _STRIDE, _STRIDE // 2 :: _STRIDE]
        logits = F.interpolate(logits, labels.shape[1:], mode="bilinear")
        loss = F.cross_entropy(logits, labels, self.weights, ignore_index=VOID)
        self.optimizer.zero_grad(set_to_none=True)
        self.fabric.backward(loss)
        self.fabric.clip_gradients(self.network, self.optimizer, max_norm=5.0)
        self.optimizer.step()
        self.average.update_parameters(self.network.module)
        return {"loss": loss.item()}

    def evaluate(self) -> dict[str, float]:
        segmenter = Segmenter(self.average.module, self.scenes.categories)
        with self.fabric.autocast():
            iou = intersection_over_union(segmenter, self.validation, low_resolution=True, device=self.fabric.device)
        if mean_of(iou) > self.best_iou:
            self.best_iou, self.best = mean_of(iou), self._averaged()
        return {"mean IoU": mean_of(iou)}

    def state(self) -> dict[str, Any]:
        modules = {"network": self.network.state_dict(), "average": self.average.state_dict()}
        return {**modules, "optimizer": self.optimizer.state_dict(), "best": self.best, "best_iou": self.best_iou}

    def restore(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.best, self.best_iou = state["best"], state["best_iou"]


def _started(config: SegmenterConfig, categories: int) -> nn.Module:
    network = build_segmenter(config.network, categories)
    if config.start == "pretrained" and isinstance(network, LiteSegmenter):
        network.backbone = pretrained_backbone()
    elif config.start != "none":
        tensors, _ = read_weights(config.start)
        ours = network.state_dict()
        fitting = {n: t.to(ours[n].dtype) for n, t in tensors.items() if n in ours and t.shape == ours[n].shape}
        if not fitting:
            raise InvalidArgument("start", f"weights of the network {config.network!r}", config.start)
        network.load_state_dict(fitting, strict=False)
    return network


def _groups(network: nn.Module, config: SegmenterConfig) -> tuple[list[dict[str, Any]], list[nn.Parameter]]:
    """The parameters with their learning rates, and those that stay as they are."""
    if not isinstance(network, LiteSegmenter) or config.start == "none":
        return [{"params": list(network.parameters()), "lr": config.learning_rate}], []
    backbone = network.backbone
    frozen = list(backbone.stem.parameters()) if config.frozen else []
    frozen += [p for block in backbone.blocks[: config.frozen] for p in block.parameters()]
    still = {id(p) for p in frozen}
    known = [p for p in backbone.parameters() if id(p) not in still]
    inside = {id(p) for p in backbone.parameters()}
    new = [p for p in network.parameters() if id(p) not in inside]
    return [{"params": new, "lr": config.learning_rate}, {"params": known, "lr": config.backbone_rate}], frozen


def train_segmenter(
    config: SegmenterConfig,
    scenes: Scenes,
    validation: Scenes,
    path: str | Path,
    fabric: Fabric,
    *,
    stop_after: float = math.inf,
    report: Callable[[Progress], None] = lambda progress: None,
    card: dict[str, Any] | None = None,
) -> dict[str, Any] | None:
    """Train a segmenter, or go on where a run of the same configuration stopped.

    Args:
        config: what to train and how.
        scenes: to learn from.
        validation: of the same categories; the weights with the best mean IoU at low resolution are kept.
        path: the safetensors file to write, in half precision, with its card; the checkpoint lies beside it.
        fabric: from `restoration_env.sft.runs.make_fabric`.
        stop_after: seconds after which the run is put by in its checkpoint.
        report: called after every step.
        card: further entries of the card.

    Returns:
        The card, or None if the run was put by.
    """
    path = Path(path)
    checkpoint = path.with_suffix(".checkpoint")
    run = _Run(config, scenes, validation, fabric)
    if not train(run, fabric, checkpoint, stop_after=stop_after, report=report):
        return None
    finished = {
        "name": path.stem,
        "network": config.network,
        "categories": list(scenes.categories),
        "parameters": sum(p.numel() for p in run.average.module.parameters()),
        "licence": "Apache-2.0" if config.start == "pretrained" else "MIT",
        "training": asdict(config),
        "seconds": round(run.seconds, 1),
        "validation_mean_iou": round(run.best_iou, 4),
        **(card or {}),
    }
    if fabric.is_global_zero:
        halves = {n: v.half() if v.is_floating_point() else v for n, v in run.best.items()}
        save_weights(path, halves, finished)
        checkpoint.unlink(missing_ok=True)
    return finished
