"""The command ``restoration-env train single``."""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console

from restoration_env.benchmarks.networks import MEAN_TOOLCHAIN, NETWORKS
from restoration_env.benchmarks.train_single import SingleConfig, train_single
from restoration_env.cli import progress_bar
from restoration_env.devices import find_device, keep_freed_memory
from restoration_env.files import read_weights
from restoration_env.images import load_images, with_more
from restoration_env.provenance import provenance
from restoration_env.tools.training import Progress

_DEFAULTS: dict[str, Any] = {field.name: field.default for field in fields(SingleConfig)}


@click.command()
@click.argument("name", type=click.Choice(sorted(NETWORKS)))
@click.option("--images", default="bundled", show_default=True, help="Clean images: a folder or a name.")
@click.option("--also", type=click.Path(), help="A folder of which all images are trained on as well.")
@click.option("--out", default="runs/single", show_default=True, help="Folder of weights, card and checkpoint.")
@click.option("--start", type=click.Path(), help="Weights that this command made, to train on from.")
@click.option("--iterations", default=_DEFAULTS["iterations"], show_default=True, help="Optimiser steps.")
@click.option("--rounds", default=_DEFAULTS["rounds"], show_default=True, help="The most rounds added until enough.")
@click.option("--system-patches", default=0, show_default=True, help="What a toolbox and its agent saw: enough.")
@click.option("--batch", default=_DEFAULTS["batch"], show_default=True, help="Patches a step.")
@click.option("--severity", default=_DEFAULTS["severity"], show_default=True, help="The damage to train on.")
@click.option("--learning-rate", default=_DEFAULTS["learning_rate"], show_default=True, help="Peak of the schedule.")
@click.option("--optimizer", default=_DEFAULTS["optimizer"], show_default=True, help="adamw or muon.")
@click.option("--muon-rate", default=_DEFAULTS["muon_rate"], show_default=True, help="Peak of Muon's schedule.")
@click.option("--evaluate-every", default=_DEFAULTS["evaluate_every"], show_default=True, help="Steps to validation.")
@click.option("--multiply-adds", type=int, help=f"Per pixel, of equal-multiply-adds.  [default: {MEAN_TOOLCHAIN}]")
@click.option("--precision", default="float32", show_default=True, help="float32 or bfloat16.")
@click.option("--convolutions", default="direct", show_default=True, help="direct or, on a processor, winograd.")
@click.option("--revive", is_flag=True, help="Give dead channels of --start new weights (vdsr, vdsr-s).")
@click.option("--seed", default=0, show_default=True)
@click.option("--device", default="auto", show_default=True)
@click.option("--threads", default=0, help="CPU threads; 0 leaves torch's choice.")
def train(
    name: str,
    images: str,
    also: str | None,
    out: str,
    start: str | None,
    device: str,
    threads: int,
    **settings: Any,
) -> None:
    """Train the single network NAME, to hold toolchains against. A killed run goes on where it stopped."""
    config = SingleConfig(name, **settings)
    if _finished(config, Path(out), start):
        Console(stderr=True).print(f"{name} is already trained so in {out}; --start trains it on")
        return
    where = find_device(device)
    keep_freed_memory()
    if threads:
        torch.set_num_threads(threads)
    pool, validation = load_images(images, "train"), load_images(images, "validation")
    words = f"restoration-env train single {name} --images {Path(images).name}"
    words += f" --also {Path(also).name}" if also else ""
    words += f" --start {Path(start).name}" if start else ""
    given = {key: settings[key] for key in _DEFAULTS if key in settings and settings[key] != _DEFAULTS[key]}
    flags = {key: "" if value is True else f" {value}" for key, value in given.items()}
    words += "".join(f" --{key.replace('_', '-')}{value}" for key, value in flags.items())
    data = f"{Path(images).name}: {len(pool)} images train, {len(validation)} validate"
    pool, further = with_more(pool, also)
    with progress_bar() as bar:
        task = bar.add_task(name, total=config.iterations, note="")

        def report(progress: Progress) -> None:
            bar.update(task, completed=progress.iteration, total=progress.iterations)
            if progress.validation_gain is not None:
                bar.update(task, note=f"validation {progress.validation_gain:+.2f} dB")

        card = {"data": data + further, **provenance(words, where)}
        done = train_single(config, pool, validation, out, start=start, device=where, report=report, card=card)
    enough = done["trained_enough"]
    said = "not trained enough: --start trains it on" if enough == "no" else f"trained enough: {enough}"
    Console().print(f"{name}: {done['validation_gain_db']:+.2f} dB after {done['patches_seen']:,} patches; {said}")


def _finished(config: SingleConfig, out: Path, start: str | None) -> bool:
    """Whether an earlier run of the same command has written its weights."""
    path = out / f"{config.network}.json"
    if not path.exists():
        return False
    card = json.loads(path.read_text(encoding="utf-8"))
    training = {**card["training"]}
    training.pop("iterations_done", None)
    origin = read_weights(start)[1]["sha256"] if start else None
    return training == asdict(config) and (card["started_from"] or {}).get("sha256") == origin
