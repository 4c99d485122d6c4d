"""The commands of this folder: ``restoration-env train tools`` and ``restoration-env tools``."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console
from rich.table import Table

from restoration_env.cli import progress_bar
from restoration_env.devices import find_device, keep_freed_memory
from restoration_env.files import read_weights
from restoration_env.images import load_images
from restoration_env.provenance import provenance
from restoration_env.tools.catalogue import CATALOGUE, NAMES, toolbox_specification
from restoration_env.tools.lessons import lessons, lessons_done
from restoration_env.tools.training import Progress, TrainingConfig, train_tool

_DEFAULTS: dict[str, Any] = {field.name: field.default for field in fields(TrainingConfig)}


@click.command()
@click.argument("names", nargs=-1)
@click.option("--images", default="bundled", show_default=True, help="Clean images: a folder or a name.")
@click.option("--out", default="runs/tools", show_default=True, help="Folder of weights, cards and checkpoints.")
@click.option("--toolbox", default="cnn12", show_default=True, help="cnn12 or cnn12-modern.")
@click.option("--iterations", type=int, help="Optimiser steps.  [default: as in the recipe]")
@click.option("--batch", default=_DEFAULTS["batch"], show_default=True, help="Patches a step.")
@click.option("--crop", default=_DEFAULTS["crop"], show_default=True, help="Side of the patches.")
@click.option("--learning-rate", type=float, help="Peak of the schedule.  [default: as in the recipe]")
@click.option("--optimizer", default=_DEFAULTS["optimizer"], show_default=True, help="adamw or muon.")
@click.option("--muon-rate", default=_DEFAULTS["muon_rate"], show_default=True, help="Peak of Muon's schedule.")
@click.option("--damage", help="Train on this recipe alone, such as every.  [default: as in the recipe]")
@click.option("--start", help="A shipped tool to start from, or '' for none.  [default: as in the recipe]")
@click.option("--patience", default=0, show_default=True, help="Validations without gain before stopping; 0: never.")
@click.option("--precision", default="float32", show_default=True, help="float32 or bfloat16.")
@click.option("--convolutions", default="direct", show_default=True, help="direct or, on a processor, winograd.")
@click.option("--seed", default=0, show_default=True)
@click.option("--device", default="auto", show_default=True)
@click.option("--threads", default=0, help="CPU threads; 0 leaves torch's choice.")
def train(
    names: tuple[str, ...],
    images: str,
    out: str,
    device: str,
    threads: int,
    **settings: Any,
) -> None:
    """Train the tools NAMES, or all twelve. A killed run goes on where it stopped."""
    changes = {name: value for name, value in settings.items() if value is not None}
    configs = lessons(names or NAMES, **changes)
    where = find_device(device)
    keep_freed_memory()
    if threads:
        torch.set_num_threads(threads)
    pool, validation = load_images(images, "train"), load_images(images, "validation")
    data = f"{Path(images).name}: {len(pool)} images train, {len(validation)} validate"
    command = f"restoration-env train tools {' '.join(names)} --images {Path(images).name}"
    command += "".join(
        f" --{name.replace('_', '-')} {value!r}" for name, value in changes.items() if value != _DEFAULTS[name]
    )
    with progress_bar() as bar:
        for config in configs[lessons_done(configs, Path(out)) :]:
            task = bar.add_task(config.tool, total=config.iterations, note="")

            def report(progress: Progress, task: Any = task) -> None:
                bar.update(task, completed=progress.iteration)
                if progress.validation_gain is not None:
                    bar.update(task, note=f"validation {progress.validation_gain:+.2f} dB")

            card = {"data": data, **provenance(command, where)}
            train_tool(config, pool, validation, out, device=where, report=report, card=card)


@click.command()
@click.option("--toolbox", default="cnn12", show_default=True, help="A toolbox of twelve.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def table(toolbox: str, as_json: bool) -> None:
    """Show the twelve tools as the paper's Table 1, with what their cards say."""
    box = toolbox_specification(toolbox)
    cards = {spec.name: read_weights(box.folder / f"{spec.name}.safetensors")[1] for spec in CATALOGUE}
    if as_json:
        click.echo(json.dumps(cards, indent=2))
        return
    shown = Table(title="Action k applies row k; action 12 stops")
    for heading in ("action", "tool", "removes", "band", "network", "parameters", "validation gain"):
        shown.add_column(heading, justify="right" if heading in ("action", "parameters", "validation gain") else "left")
    for action, spec in enumerate(CATALOGUE):
        card = cards[spec.name]
        band = f"{spec.unit} {spec.low:g} to {spec.high:g}"
        gain = f"{card['validation_gain_db']:+.2f} dB"
        shown.add_row(str(action), spec.name, spec.removes, band, card["network"], f"{card['parameters']:,}", gain)
    Console().print(shown)
