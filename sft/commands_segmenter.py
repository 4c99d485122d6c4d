"""The commands ``restoration-env train segmenter`` and ``restoration-env segments``."""

from __future__ import annotations

import json
import math
from dataclasses import fields
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console
from rich.table import Table

from restoration_env.cli import progress_bar
from restoration_env.devices import find_device, keep_freed_memory
from restoration_env.files import write_json
from restoration_env.provenance import provenance
from restoration_env.sft.runs import Progress, make_fabric
from restoration_env.sft.scenes import load_scenes
from restoration_env.sft.segmenter import load_segmenter
from restoration_env.sft.segmenter_training import SegmenterConfig, intersection_over_union, mean_of, train_segmenter

_DEFAULTS: dict[str, Any] = {field.name: field.default for field in fields(SegmenterConfig)}


@click.command()
@click.option("--scenes", required=True, help="Folder of labelled scenes (images/, labels/, perhaps categories.txt).")
@click.option("--out", default="runs/sft/segmenter.safetensors", show_default=True, help="The weights to write.")
@click.option("--network", default=_DEFAULTS["network"], show_default=True, help="lite or resnet101.")
@click.option("--start", default=_DEFAULTS["start"], show_default=True, help="pretrained, none or a file of weights.")
@click.option("--frozen", default=_DEFAULTS["frozen"], show_default=True, help="Blocks of the backbone left alone.")
@click.option("--iterations", default=_DEFAULTS["iterations"], show_default=True, help="Optimiser steps.")
@click.option("--batch", default=_DEFAULTS["batch"], show_default=True, help="Crops a step.")
@click.option("--crop", default=_DEFAULTS["crop"], show_default=True, help="Side of the crops.")
@click.option("--learning-rate", default=_DEFAULTS["learning_rate"], show_default=True)
@click.option("--backbone-rate", default=_DEFAULTS["backbone_rate"], show_default=True)
@click.option("--low-resolution", default=_DEFAULTS["low_resolution"], show_default=True, help="Share of such crops.")
@click.option("--evaluate-every", default=_DEFAULTS["evaluate_every"], show_default=True)
@click.option("--precision", default=_DEFAULTS["precision"], show_default=True, help="float32 or bfloat16.")
@click.option("--seed", default=0, show_default=True)
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda.")
@click.option("--devices", default=1, show_default=True, help="GPUs, or processes on the CPU.")
@click.option("--threads", default=0, help="CPU threads; 0 leaves torch's choice.")
@click.option("--stop-after", type=float, help="Minutes after which to stop and keep a checkpoint.")
def train(
    scenes: str, out: str, device: str, devices: int, threads: int, stop_after: float | None, **settings: Any
) -> None:
    """Train a segmenter of scenes, the paper's eight categories or your own. A stopped run goes on."""
    config = SegmenterConfig(**settings)
    keep_freed_memory()
    if threads:
        torch.set_num_threads(threads)
    known, held = load_scenes(scenes, "train"), load_scenes(scenes, "validation")
    fabric = make_fabric(device, devices, config.precision)
    changed = {name: value for name, value in settings.items() if value != _DEFAULTS[name]}
    command = f"restoration-env train segmenter --scenes {Path(scenes).name}"
    command += "".join(f" --{name.replace('_', '-')} {value}" for name, value in changed.items())
    card = {"data": f"{Path(scenes).name}: {len(known)} scenes train, {len(held)} validate"}
    with progress_bar() as bar:
        task = bar.add_task("segmenter", total=config.iterations, note="")

        def report(progress: Progress) -> None:
            bar.update(task, completed=progress.iteration)
            if progress.validation:
                bar.update(task, note=f"mean IoU {progress.validation['mean IoU']:.3f}")

        train_segmenter(
            config,
            known,
            held,
            out,
            fabric,
            stop_after=math.inf if stop_after is None else 60 * stop_after,
            report=report,
            card={**card, **provenance(command, fabric.device)},
        )


@click.command()
@click.option("--scenes", required=True, help="Folder of labelled scenes.")
@click.option("--split", default="test", show_default=True, help="train, validation, test or all.")
@click.option("--weights", help="A segmenter's weights.  [default: the one that ships]")
@click.option("--device", default="auto", show_default=True)
@click.option("--threads", default=0, help="CPU threads; 0 leaves torch's choice.")
@click.option("-o", "--output", help="A JSON file for the result.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def measure(
    scenes: str, split: str, weights: str | None, device: str, threads: int, output: str | None, as_json: bool
) -> None:
    """Measure a segmenter on labelled scenes: intersection over union at low and high resolution."""
    where = find_device(device)
    if threads:
        torch.set_num_threads(threads)
    segmenter, held = load_segmenter(weights, where), load_scenes(scenes, split)
    rows = {
        name: intersection_over_union(segmenter, held, low_resolution=low, device=where)
        for name, low in (("low resolution", True), ("high resolution", False))
    }
    used = "" if weights is None else f" --weights {Path(weights).name}"
    command = f"restoration-env segments --scenes {Path(scenes).name} --split {split}{used}"
    iou = {name: {"mean": mean_of(row), **row} for name, row in rows.items()}
    result = {"scenes": len(held), "iou": iou, **provenance(command, where)}
    if output:
        write_json(output, result)
    if as_json:
        click.echo(json.dumps(result, indent=2))
        return
    table = Table("category", title=f"Intersection over union, {len(held)} {split} scenes")
    for name in rows:
        table.add_column(name, justify="right")
    for name in ("mean", *held.categories):
        table.add_row(name, *(f"{row[name]:.3f}" for row in iou.values()))
    Console().print(table)
