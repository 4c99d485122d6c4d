"""The command ``restoration-env train classifier``."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import click
import torch

from restoration_env.agents.classifier import ClassifierConfig, ClassifierProgress, train_classifier
from restoration_env.cli import progress_bar
from restoration_env.devices import find_device, keep_freed_memory
from restoration_env.images import load_images
from restoration_env.provenance import provenance

_DEFAULTS: dict[str, Any] = {field.name: field.default for field in fields(ClassifierConfig)}


@click.command()
@click.option("--images", default="bundled", show_default=True, help="Clean images: a folder or a name.")
@click.option("--out", default="runs/classifier.safetensors", show_default=True, help="The weights to write.")
@click.option("--iterations", default=_DEFAULTS["iterations"], show_default=True, help="Optimiser steps.")
@click.option("--batch", default=_DEFAULTS["batch"], show_default=True, help="Patches a step.")
@click.option("--severity", default=_DEFAULTS["severity"], show_default=True, help="The damage to learn.")
@click.option("--learning-rate", default=_DEFAULTS["learning_rate"], show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--device", default="auto", show_default=True)
@click.option("--threads", default=0, help="CPU threads; 0 leaves torch's choice.")
def train(images: str, out: str, device: str, threads: int, **settings: Any) -> None:
    """Train the classifier of damage, the policy without RL. A killed run goes on where it stopped."""
    where = find_device(device)
    keep_freed_memory()
    if threads:
        torch.set_num_threads(threads)
    config = ClassifierConfig(**settings)
    pool, validation = load_images(images, "train"), load_images(images, "validation")
    changed = [f" --{k.replace('_', '-')} {v}" for k, v in settings.items() if v != _DEFAULTS[k]]
    card = {
        "data": f"{Path(images).name}: {len(pool)} images train, {len(validation)} validate",
        **provenance(f"restoration-env train classifier --images {Path(images).name}" + "".join(changed), where),
    }
    with progress_bar() as bar:
        task = bar.add_task("classifier", total=config.iterations, note="")

        def report(progress: ClassifierProgress) -> None:
            bar.update(task, completed=progress.iteration)
            if progress.accuracy is not None:
                shares = ", ".join(f"{kind} {share:.0%}" for kind, share in progress.accuracy.items())
                bar.update(task, note=f"right on validation: {shares}")

        train_classifier(config, pool, validation, out, device=where, report=report, card=card)
