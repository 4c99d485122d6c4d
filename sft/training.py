"""SFT-Net's training in three stages (Wang et al., CVPR 2018, Section 3.4): pixel, adversarial, SFT inserted.

``pixel`` trains a generator on the pixel error. ``adversarial`` goes on from one without conditions, with perceptual
and adversarial losses. ``sft`` inserts conditions of any kind (`restoration_env.sft.generator.CONDITIONING`) into such
a one; for a while only what was inserted learns. The losses' weights and the schedule's shape are the paper's; widths,
crops and iterations are settings, because the paper's 600,000 iterations are days of a GPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from restoration_env.distortions import recipe, recipe_names
from restoration_env.errors import InvalidArgument, UnknownName, check_at_least
from restoration_env.files import read_weights, save_weights
from restoration_env.metrics import psnr
from restoration_env.perceptual import load_lpips
from restoration_env.resizing import SCALE, bicubic
from restoration_env.schedules import cosine
from restoration_env.sft.crops import Batch, Crops
from restoration_env.sft.discriminator import Discriminator
from restoration_env.sft.generator import CONDITIONING, UPSAMPLING, SFTNet
from restoration_env.sft.losses import PERCEPTUAL, PerceptualLoss, adversarial_loss, category_loss
from restoration_env.sft.lost import LostResolution
from restoration_env.sft.runs import Progress, train

if TYPE_CHECKING:
    from lightning_fabric import Fabric

STAGES = ("pixel", "adversarial", "sft")
_HALVED = (1 / 12, 1 / 6, 1 / 4, 1 / 3)  # 50, 100, 150 and 200 of the paper's 600 thousand iterations
_SHAPE = ("upsampling", "width", "blocks", "on_bicubic")


@dataclass(frozen=True)
class SFTConfig:
    """Everything that decides the outcome, apart from the images.

    Attributes:
        stage: "pixel", "adversarial" or "sft".
        conditioning: how the generator is told what is where; "none" in the adversarial stage.
        start: weights to go on from, or "" (only the pixel stage begins with nothing).
        upsampling: "nearest" or "pixel-shuffle".
        width: channels of the generator.
        blocks: its residual blocks.
        on_bicubic: its output is added to the bicubic enlargement.
        iterations: optimiser steps.
        damage: in the pixel stage, a recipe that loses resolution: learn what the tool is to make of such images; ""
            for clean low resolution.
        batch: crops a step, in each process.
        crop: side of the crops at high resolution.
        scenes_share: share of the crops that come from labelled scenes, the rest from photographs.
        background: crops of the background for each one of another category, among those from scenes.
        learning_rate: of the generator; 1e-4 in the paper's last two stages.
        inserted_rate: of inserted conditions, 5e-4 in the paper.
        cosine: let the rates of the last two stages fall along a cosine; the paper's four halvings in the first third
            leave a short training a sixteenth of them for the rest. The pixel stage always has a cosine.
        alone: share of the sft stage in which only what was inserted learns (20 of 600 thousand iterations).
        perceptual: features of the perceptual loss: "vgg19", "vgg16", "alex" or "none".
        perceptual_weights: the features' file, needed for "vgg19".
        perceptual_weight: of the perceptual loss.
        adversarial_weight: of the adversarial loss.
        category_weight: of the category loss.
        pixel_weight: of the pixel loss in the last two stages; the paper has none.
        discriminator_width: channels of the discriminator's first pair.
        judge: a discriminator to go on with, as the last two stages leave one in the folder ``judges``; a new one first
            has to learn what the old one knew, and the generator forgets some of it meanwhile.
        averaging: decay of the weight average.
        evaluate_every: iterations between two validations.
        precision: "float32", or "bfloat16" for mixed precision.
        seed: of everything random.
    """

    stage: str = "pixel"
    conditioning: str = "none"
    start: str = ""
    upsampling: str = "nearest"
    width: int = 64
    blocks: int = 16
    on_bicubic: bool = False
    iterations: int = 100_000
    damage: str = ""
    batch: int = 16
    crop: int = 96
    scenes_share: float = 0.5
    background: float = 1.0
    learning_rate: float = 1e-4
    inserted_rate: float = 5e-4
    cosine: bool = False
    alone: float = 1 / 30
    perceptual: str = "vgg16"
    perceptual_weights: str = ""
    perceptual_weight: float = 1.0
    adversarial_weight: float = 5e-3
    category_weight: float = 5e-3
    pixel_weight: float = 0.0
    discriminator_width: int = 64
    judge: str = ""
    averaging: float = 0.999
    evaluate_every: int = 1000
    precision: str = "float32"
    seed: int = 0

    def __post_init__(self) -> None:
        tables = {"stage": STAGES, "conditioning": CONDITIONING, "upsampling": UPSAMPLING, "perceptual": PERCEPTUAL}
        for name, known in tables.items():
            if getattr(self, name) not in known:
                raise UnknownName(name, getattr(self, name), known)
        if self.stage == "adversarial" and self.conditioning != "none":
            raise InvalidArgument("conditioning", "'none' in the adversarial stage", repr(self.conditioning))
        if self.stage == "sft" and self.conditioning == "none":
            raise InvalidArgument("conditioning", "what the sft stage is to insert", repr(self.conditioning))
        if self.stage != "pixel" and not self.start:
            raise InvalidArgument("start", f"weights of the stage before {self.stage!r}", "none")
        if self.judge and self.stage == "pixel":
            raise InvalidArgument("judge", "given only in the last two stages", repr(self.judge))
        if self.damage and not recipe(self.damage).loses:
            losing = [name for name in recipe_names() if recipe(name).loses]
            raise InvalidArgument("damage", f"a recipe that loses resolution, {' or '.join(losing)}", repr(self.damage))
        if self.damage and (self.stage, self.conditioning) != ("pixel", "none"):
            raise InvalidArgument("damage", "given only in the pixel stage without conditions", repr(self.damage))
        if self.crop < 16 or self.crop % 16:
            raise InvalidArgument("crop", "a multiple of 16", self.crop)
        if not 0 <= self.scenes_share <= 1:
            raise InvalidArgument("scenes_share", "a share from 0 to 1", self.scenes_share)
        check_at_least(0, background=self.background)
        check_at_least(1, width=self.width, blocks=self.blocks, iterations=self.iterations, batch=self.batch)
        check_at_least(1, evaluate_every=self.evaluate_every, discriminator_width=self.discriminator_width)
        check_at_least(0, learning_rate=self.learning_rate, inserted_rate=self.inserted_rate, seed=self.seed)

    def generator(self) -> SFTNet:
        """A fresh generator of this shape."""
        return SFTNet(self.upsampling, self.width, self.blocks, self.conditioning, self.on_bicubic)


def _names(config: SFTConfig) -> dict[str, str]:
    """What a run began with, for its card: names without folders."""
    return {"start": Path(config.start).stem, "judge": Path(config.judge).stem}


def shape_of(card: dict[str, Any]) -> dict[str, Any]:
    """The arguments of `SFTNet` that a card of weights names."""
    return {name: card[name] for name in ("upsampling", "width", "blocks", "conditioning", "on_bicubic")}


def rate_share(config: SFTConfig, iteration: int) -> float:
    """The share of the peak learning rates at an iteration."""
    if config.stage == "pixel":
        return cosine(iteration, config.iterations, warmup=100)
    if config.cosine:
        return cosine(iteration, config.iterations)
    return 0.5 ** sum(iteration >= at * config.iterations for at in _HALVED)


class _Run:
    """The state of a training run."""

    def __init__(self, config: SFTConfig, crops: Crops | LostResolution, validation: Batch, fabric: Fabric) -> None:
        self.config, self.crops, self.fabric = config, crops, fabric
        self.validation = validation.to(fabric.device)
        self.iteration, self.seconds, self.best_gain = 0, 0.0, -math.inf
        self.figures: dict[str, float] = {}
        torch.manual_seed(config.seed)
        plain, self.origin = config.generator(), None
        if config.start:
            tensors, card = read_weights(config.start)
            for name in _SHAPE:
                if card.get(name) != getattr(config, name):
                    raise InvalidArgument("start", f"weights with {name} {getattr(config, name)!r}", card.get(name))
            plain.begin_from({name: value.float() for name, value in tensors.items()})
            self.origin = {key: card.get(key) for key in ("name", "stage", "sha256", "command", "commit", "seconds")}
        elif config.on_bicubic:
            for parameter in plain.last.parameters():
                nn.init.zeros_(parameter)  # begin as the bicubic enlargement
        old, new = self._parts(plain)
        groups = [{"params": old, "lr": config.learning_rate}]
        groups += [{"params": new, "lr": config.inserted_rate}] if new else []
        optimizer = torch.optim.Adam(groups, betas=(0.9, 0.99))
        self.peaks = [group["lr"] for group in optimizer.param_groups]
        plain = plain.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.network, self.optimizer = fabric.setup(plain, optimizer)
        decay = torch.optim.swa_utils.get_ema_multi_avg_fn(config.averaging)
        self.average = torch.optim.swa_utils.AveragedModel(self.network.module, multi_avg_fn=decay)
        self.best = self._averaged()
        self.judge: _Judge | None = None if config.stage == "pixel" else _Judge(config, crops, fabric)

    def _parts(self, network: SFTNet) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """The generator's own parameters, and those that the sft stage inserted."""
        named = list(network.named_parameters())
        if self.config.stage != "sft":
            return [p for _, p in named], []
        own, new = ([p for n, p in named if network.is_inserted(n) is inserted] for inserted in (False, True))
        return own, new

    def _averaged(self) -> dict[str, Tensor]:
        return {name: value.detach().cpu().clone() for name, value in self.average.module.state_dict().items()}

    def _schedule(self) -> None:
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak * rate_share(self.config, self.iteration)
        if self.config.stage == "sft" and self.iteration < self.config.alone * self.config.iterations:
            self.optimizer.param_groups[0]["lr"] = 0.0

    def step(self) -> dict[str, float]:
        self._schedule()
        batch = self.crops.batch(self.config.batch, self.config.seed, self.iteration, self.fabric.global_rank)
        batch = batch.to(self.fabric.device)
        made = self.network(batch.low, batch.maps).float()
        if self.judge is None:
            # Charbonnier: the mean absolute error that is smooth at zero.
            losses = {"pixel": torch.sqrt((made - batch.high).square() + 1e-6).mean()}
        else:
            losses = self.judge.losses(made, batch)
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.stack(list(losses.values())).sum()
        self.fabric.backward(total)
        self.fabric.clip_gradients(self.network, self.optimizer, max_norm=1.0)
        self.optimizer.step()
        self.average.update_parameters(self.network.module)
        values = {name: loss.item() for name, loss in losses.items()}
        if self.judge is not None:
            values["discriminator"] = self.judge.learn(made.detach(), batch)
        return values

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """The gain over bicubic in PSNR and LPIPS on validation crops; the pixel stage keeps its best weights."""
        network, batch = self.average.module, self.validation
        with self.fabric.autocast():
            parts = [network(low, maps) for low, maps in zip(batch.low.split(8), batch.maps.split(8), strict=True)]
        made = torch.cat(parts).float().clamp(0, 1)
        plain = bicubic(batch.low, SCALE).clamp(0, 1)
        distance = load_lpips("alex", self.fabric.device)
        ours, theirs = distance(made, batch.high).mean().item(), distance(plain, batch.high).mean().item()
        gain = (psnr(made, batch.high) - psnr(plain, batch.high)).mean().item()
        figures = {"psnr_gain_db": round(gain, 4), "lpips": round(ours, 4), "lpips_bicubic": round(theirs, 4)}
        if self.config.stage != "pixel" or gain > self.best_gain:
            self.best_gain, self.best, self.figures = gain, self._averaged(), figures
        return figures

    def state(self) -> dict[str, Any]:
        modules = {"network": self.network.state_dict(), "average": self.average.state_dict()}
        kept = {"best": self.best, "best_gain": self.best_gain, "figures": self.figures}
        judge = {} if self.judge is None else self.judge.state()
        return {**modules, **kept, "optimizer": self.optimizer.state_dict(), "judge": judge}

    def restore(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.best, self.best_gain, self.figures = state["best"], state["best_gain"], state["figures"]
        if self.judge is not None:
            self.judge.restore(state["judge"])


class _Judge:
    """The discriminator and the perceptual loss of the last two stages."""

    def __init__(self, config: SFTConfig, crops: Crops | LostResolution, fabric: Fabric) -> None:
        self.config, self.fabric = config, fabric
        plain = Discriminator(config.discriminator_width, config.crop)
        if config.judge:
            try:
                plain.load_state_dict(read_weights(config.judge)[0])
            except RuntimeError:
                expected = f"a discriminator of width {config.discriminator_width} for crops of {config.crop}"
                raise InvalidArgument("judge", expected, repr(config.judge)) from None
        plain = plain.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        optimizer = torch.optim.Adam(plain.parameters(), config.learning_rate, betas=(0.9, 0.99))
        self.network, self.optimizer = fabric.setup(plain, optimizer)
        self.perceptual = PerceptualLoss(config.perceptual, config.perceptual_weights).to(fabric.device)
        first = crops.batch(32, config.seed, 0).to(fabric.device)
        self.perceptual.calibrate(bicubic(first.low, SCALE), first.high)
        if config.precision == "bfloat16":
            self.perceptual.hold_bfloat16()

    def losses(self, made: Tensor, batch: Batch) -> dict[str, Tensor]:
        """The generator's losses, weighted."""
        config = self.config
        judge = self.network.module  # not what gathers gradients over processes: it learns nothing here
        judge.requires_grad_(False)
        with self.fabric.autocast():
            logits, categories = judge(made)
            perceptual = self.perceptual(made, batch.high)
        judge.requires_grad_(True)
        found = {
            "perceptual": config.perceptual_weight * perceptual,
            "adversarial": config.adversarial_weight * adversarial_loss(logits.float(), True),
            "category": config.category_weight * category_loss(categories.float(), batch.categories),
        }
        return {**found, "pixel": config.pixel_weight * F.l1_loss(made, batch.high)}

    def learn(self, made: Tensor, batch: Batch) -> float:
        """One step of the discriminator; returns its loss."""
        real, real_categories = self.network(batch.high)
        fake, fake_categories = self.network(made)
        loss = adversarial_loss(real.float(), True) + adversarial_loss(fake.float(), False)
        named = category_loss(real_categories.float(), batch.categories)
        loss = loss + named + category_loss(fake_categories.float(), batch.categories)
        self.optimizer.zero_grad(set_to_none=True)
        self.fabric.backward(loss)
        self.optimizer.step()
        return loss.item()

    def weights(self) -> dict[str, Tensor]:
        return {name: value.detach().cpu() for name, value in self.network.module.state_dict().items()}

    def state(self) -> dict[str, Any]:
        modules = {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict()}
        return {**modules, "scale": self.perceptual.scale}

    def restore(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.perceptual.scale = state["scale"]


def train_sft(
    config: SFTConfig,
    crops: Crops | LostResolution,
    validation: Batch,
    path: str | Path,
    fabric: Fabric,
    *,
    stop_after: float = math.inf,
    report: Callable[[Progress], None] = lambda progress: None,
    card: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Train one stage, or go on where a run of the same configuration stopped.

    Args:
        config: what to train and how.
        crops: the training data.
        validation: crops that are judged, the pixel stage's best weights are kept.
        path: the safetensors file to write, with its card; the checkpoint lies beside it.
        fabric: from `restoration_env.sft.runs.make_fabric`.
        stop_after: seconds after which the run is put by: its weights are written, and the checkpoint stays.
        report: called after every step.
        card: further entries of the card.

    Returns:
        The card.

    Raises:
        InvalidArgument: for a checkpoint of another configuration and a start of another shape.
        TrainingDiverged: if a loss is no number.
    """
    path = Path(path)
    checkpoint = path.with_suffix(".checkpoint")
    run = _Run(config, crops, validation, fabric)
    done = train(run, fabric, checkpoint, stop_after=stop_after, report=report)
    if not done:
        run.evaluate()
    finished = {
        "name": path.stem,
        **{name: getattr(config, name) for name in (*_SHAPE, "conditioning", "stage")},
        "parameters": sum(value.numel() for value in run.best.values()),
        "licence": "MIT",
        "training": {**asdict(config), **_names(config), "perceptual_weights": ""},
        "iterations_done": run.iteration,
        "started_from": run.origin,
        "seconds": round(run.seconds, 1),
        "validation": run.figures,
        **(card or {}),
    }
    if fabric.is_global_zero:
        if run.judge is not None:
            kept = {"name": path.stem, "discriminator_width": config.discriminator_width, "crop": config.crop}
            save_weights(path.parent / "judges" / path.name, run.judge.weights(), kept)
        save_weights(path, run.best, finished)
        if done:
            checkpoint.unlink(missing_ok=True)
    return finished
