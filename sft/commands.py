"""The command ``restoration-env train sft``."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor

from restoration_env.cli import progress_bar
from restoration_env.devices import keep_freed_memory
from restoration_env.files import replacing
from restoration_env.images import ImagePool, load_images
from restoration_env.provenance import provenance
from restoration_env.sft.conditioning import CATEGORIES
from restoration_env.sft.crops import Batch, Crops, whole_maps
from restoration_env.sft.lost import LostResolution
from restoration_env.sft.runs import Progress, make_fabric
from restoration_env.sft.scenes import load_scenes
from restoration_env.sft.segmenter import Segmenter, load_segmenter
from restoration_env.sft.training import SFTConfig, train_sft

_DEFAULTS: dict[str, Any] = {field.name: field.default for field in fields(SFTConfig)}
_VALIDATION = 48  # crops of the pixel error and of LPIPS
_VALIDATION_SEED = 77


@click.command()
@click.option("--scenes", required=True, help="Folder of labelled scenes.")
@click.option("--images", default="bundled", show_default=True, help="Further clean images: a folder or a name.")
@click.option("--out", default="runs/sft", show_default=True, help="Folder of weights, cards, maps and checkpoints.")
@click.option("--name", help="Of the weights.  [default: the stage and the conditioning]")
@click.option("--segmenter", help="A segmenter's weights.  [default: the one that ships]")
@click.option("--stage", default="pixel", show_default=True, help="pixel, adversarial or sft.")
@click.option("--conditioning", help="sft, film, concat, compositional or none.  [default: sft in the sft stage]")
@click.option("--start", default="", help="Weights to go on from.")
@click.option("--upsampling", default=_DEFAULTS["upsampling"], show_default=True, help="nearest or pixel-shuffle.")
@click.option("--width", default=_DEFAULTS["width"], show_default=True, help="Channels of the generator.")
@click.option("--blocks", default=_DEFAULTS["blocks"], show_default=True, help="Its residual blocks.")
@click.option("--on-bicubic/--alone", default=False, show_default=True, help="Add the output to the enlargement.")
@click.option("--iterations", default=_DEFAULTS["iterations"], show_default=True, help="Optimiser steps.")
@click.option("--damage", default="", help="Train the tool: on photographs of such damage, x4, shrunk as it does.")
@click.option("--batch", default=_DEFAULTS["batch"], show_default=True, help="Crops a step.")
@click.option("--crop", default=_DEFAULTS["crop"], show_default=True, help="Side of the crops.")
@click.option("--scenes-share", default=_DEFAULTS["scenes_share"], show_default=True, help="Of the crops.")
@click.option("--background", default=_DEFAULTS["background"], show_default=True, help="Its crops for one of another.")
@click.option("--learning-rate", default=_DEFAULTS["learning_rate"], show_default=True)
@click.option("--inserted-rate", default=_DEFAULTS["inserted_rate"], show_default=True)
@click.option("--cosine/--halved", default=False, show_default=True, help="How the rates of the last two stages fall.")
@click.option("--perceptual", default=_DEFAULTS["perceptual"], show_default=True, help="vgg19, vgg16, alex or none.")
@click.option("--perceptual-weights", default="", help="The file of VGG19's weights.")
@click.option("--pixel-weight", default=_DEFAULTS["pixel_weight"], show_default=True, help="In the last two stages.")
@click.option("--discriminator-width", default=_DEFAULTS["discriminator_width"], show_default=True)
@click.option("--judge", default="", help="A discriminator to go on with, of the folder judges.")
@click.option("--averaging", default=_DEFAULTS["averaging"], show_default=True, help="Decay of the weight average.")
@click.option("--evaluate-every", default=_DEFAULTS["evaluate_every"], show_default=True)
@click.option("--precision", default=_DEFAULTS["precision"], show_default=True, help="float32 or bfloat16.")
@click.option("--seed", default=0, show_default=True)
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda.")
@click.option("--devices", default=1, show_default=True, help="GPUs, or processes on the CPU.")
@click.option("--threads", default=0, help="CPU threads; 0 leaves torch's choice.")
@click.option("--stop-after", type=float, help="Minutes after which to stop, with weights and a checkpoint.")
def train(
    scenes: str,
    images: str,
    out: str,
    name: str | None,
    segmenter: str | None,
    device: str,
    devices: int,
    threads: int,
    stop_after: float | None,
    **settings: Any,
) -> None:
    """Train the super-resolver, one stage of three. A stopped run goes on where it was."""
    if settings["conditioning"] is None:
        settings["conditioning"] = "sft" if settings["stage"] == "sft" else "none"
    config = SFTConfig(**settings)
    keep_freed_memory()
    if threads:
        torch.set_num_threads(threads)
    fabric = make_fabric(device, devices, config.precision)
    eyes = load_segmenter(segmenter, fabric.device)
    known, held = load_scenes(scenes, "train"), load_scenes(scenes, "validation")
    photographs = load_images(images, "train").fitting(config.crop)
    name = name or f"{config.stage}-{config.conditioning}"
    changed = {key: value for key, value in settings.items() if value != _DEFAULTS[key] and key != "start"}
    command = f"restoration-env train sft --scenes {Path(scenes).name} --images {Path(images).name}"
    command += f" --start {Path(config.start).name}" if config.start else ""
    command += "".join(_written(key, value) for key, value in changed.items())
    data = f"{Path(scenes).name}: {len(known)} scenes train; {Path(images).name}: {len(photographs)} images train"
    with progress_bar() as bar:

        def maps_of(which: str, pixels: Sequence[Tensor]) -> list[Tensor]:
            if config.conditioning == "none":  # nobody looks
                return [torch.full((len(CATEGORIES), -(-i.shape[1] // 4), -(-i.shape[2] // 4)), 32) for i in pixels]
            task = bar.add_task(f"maps, {which}", total=len(pixels), note="")
            return _kept_maps(
                Path(out), eyes, which, pixels, lambda done, total: bar.update(task, completed=done), fabric.device
            )

        with fabric.rank_zero_first(), fabric.autocast():
            scene_maps, photograph_maps = maps_of("scenes", known.images), maps_of("images", photographs.images)
            held_maps = maps_of("validation", held.images)
        if config.damage:
            crops: Crops | LostResolution = LostResolution([known.pool(), photographs], config.crop, config.damage)
            validation = LostResolution([held.pool()], config.crop, config.damage).batch(
                _VALIDATION, _VALIDATION_SEED, 0
            )
        else:
            crops = Crops(
                known, photographs, scene_maps, photograph_maps, config.crop, config.scenes_share, config.background
            )
            validation = _validation(held.pool(), held_maps, held, config.crop)
        task = bar.add_task(name, total=config.iterations, note="")

        def report(progress: Progress) -> None:
            bar.update(task, completed=progress.iteration)
            if progress.validation:
                gain, ours, theirs = progress.validation.values()
                bar.update(task, note=f"{gain:+.2f} dB over bicubic, LPIPS {ours:.3f} (bicubic {theirs:.3f})")

        train_sft(
            config,
            crops,
            validation,
            Path(out) / f"{name}.safetensors",
            fabric,
            stop_after=math.inf if stop_after is None else 60 * stop_after,
            report=report,
            card={"data": data, **provenance(command, fabric.device)},
        )


def _written(key: str, value: Any) -> str:
    if value is True:
        return f" --{key.replace('_', '-')}"
    return f" --{key.replace('_', '-')} {Path(value).name if key in ('perceptual_weights', 'judge') else value}"


def _validation(pool: ImagePool, maps: Sequence[Tensor], held: Any, side: int) -> Batch:
    """The same crops of held-out scenes for every run, as many of each category."""
    crops = Crops(held, pool, maps, maps, side, scenes_share=1.0)
    return crops.batch(_VALIDATION, _VALIDATION_SEED, 0)


def _kept_maps(
    folder: Path, segmenter: Segmenter, which: str, images: Sequence[Tensor], report: Any, device: Any
) -> list[Tensor]:
    """The maps of images, computed once for each segmenter and set of images and kept in a file."""
    from safetensors.torch import load_file, save_file

    digest = hashlib.sha256()
    for image in images:
        digest.update(image.numpy().tobytes())
    for value in segmenter.network.state_dict().values():
        digest.update(value.cpu().numpy().tobytes())
    path = folder / f"maps-{which}-{digest.hexdigest()[:12]}.safetensors"
    if not path.is_file():
        maps = whole_maps(segmenter, images, device, report)
        with replacing(path) as temporary:
            save_file({str(number): one.contiguous() for number, one in enumerate(maps)}, temporary)
    found = load_file(path)
    report(len(images), len(images))
    return [found[str(number)] for number in range(len(images))]
