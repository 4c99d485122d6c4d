"""The command ``restoration-env train agent``."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import click
import torch

from restoration_env.agents.drqn import DRQNConfig, DRQNProgress, train_drqn
from restoration_env.cli import progress_bar
from restoration_env.devices import find_device, keep_freed_memory
from restoration_env.images import load_images
from restoration_env.provenance import provenance
from restoration_env.registry import load_toolbox

_DEFAULTS: dict[str, Any] = {field.name: field.default for field in fields(DRQNConfig)}


@click.command()
@click.option("--images", default="bundled", show_default=True, help="Clean images: a folder or a name.")
@click.option("--out", default="runs/toolchain.safetensors", show_default=True, help="The weights to write.")
@click.option("--toolbox", default="cnn12", show_default=True)
@click.option("--episodes", default=_DEFAULTS["episodes"], show_default=True, help="Images to restore in training.")
@click.option("--severity", default=_DEFAULTS["severity"], show_default=True, help="The damage to train on.")
@click.option("--max-steps", default=_DEFAULTS["max_steps"], show_default=True, help="Actions of an episode.")
@click.option("--learning-rate", default=_DEFAULTS["learning_rate"], show_default=True)
@click.option("--updates", default=_DEFAULTS["updates"], show_default=True, help="Updates a batch of episodes.")
@click.option("--start", default="", help="An agent, by name or path, whose weights to start from.")
@click.option("--epsilon-start", default=1.0, show_default=True, help="Share of random actions at the start.")
@click.option("--seed", default=0, show_default=True)
@click.option("--precision", default="float32", show_default=True, help="Of the tools: float32 or bfloat16.")
@click.option("--device", default="auto", show_default=True)
@click.option("--threads", default=0, help="CPU threads; 0 leaves torch's choice.")
def train(images: str, out: str, toolbox: str, precision: str, device: str, threads: int, **settings: Any) -> None:
    """Train the toolchain agent. A killed run goes on where it stopped."""
    where = find_device(device)
    keep_freed_memory()
    if threads:
        torch.set_num_threads(threads)
    tools = load_toolbox(toolbox, device=where, precision=precision)
    pool, validation = load_images(images, "train"), load_images(images, "validation")
    config = DRQNConfig(**settings)
    changed = [f" --{k.replace('_', '-')} {v}" for k, v in settings.items() if v != _DEFAULTS[k]]
    card = {
        "data": f"{Path(images).name}: {len(pool)} images train, {len(validation)} validate",
        **provenance(f"restoration-env train agent --images {Path(images).name}" + "".join(changed), where),
    }
    with progress_bar() as bar:
        task = bar.add_task("toolchain agent", total=config.episodes, note="")

        def report(progress: DRQNProgress) -> None:
            bar.update(task, completed=progress.episodes)
            if progress.validation_gain is not None:
                bar.update(
                    task,
                    note=f"epsilon {progress.epsilon:.2f}, validation {progress.validation_gain:+.2f} dB",
                )

        train_drqn(config, tools, pool, validation, out, device=where, report=report, card=card)
