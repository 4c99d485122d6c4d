"""The command ``restoration-env train sb3``."""

from __future__ import annotations

import json
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import torch

from restoration_env.agents.sb3 import algorithm_names, find_algorithm
from restoration_env.agents.sb3_training import SB3Config, SB3Progress, train_sb3
from restoration_env.cli import progress_bar
from restoration_env.devices import find_device, keep_freed_memory
from restoration_env.provenance import provenance

_DEFAULTS: dict[str, Any] = {field.name: field.default for field in fields(SB3Config)}


@click.command()
@click.option("--algo", default=_DEFAULTS["algo"], show_default=True, help=f"One of {', '.join(algorithm_names())}.")
@click.option("--toolbox", default="cnn12", show_default=True)
@click.option("--images", default="bundled", show_default=True, help="Clean images: a folder or a name.")
@click.option("--severity", default=_DEFAULTS["severity"], show_default=True, help="The damage to train on.")
@click.option("--max-steps", default=_DEFAULTS["max_steps"], show_default=True, help="Actions of an episode.")
@click.option("--patch-size", default=_DEFAULTS["patch_size"], show_default=True, help="Side of the images.")
@click.option("--steps", default=_DEFAULTS["steps"], show_default=True, help="Actions to take in training.")
@click.option("--envs", default=_DEFAULTS["envs"], show_default=True, help="Episodes side by side.")
@click.option("--evaluate-every", default=_DEFAULTS["evaluate_every"], show_default=True, help="In steps.")
@click.option("--validation-images", default=_DEFAULTS["validation_images"], show_default=True)
@click.option("--seed", default=_DEFAULTS["seed"], show_default=True)
@click.option("--precision", default="float32", show_default=True, help="Of the tools: float32 or bfloat16.")
@click.option("--device", default="auto", show_default=True)
@click.option("--threads", default=0, help="CPU threads; 0 leaves torch's choice.")
@click.option("--checkpoint-minutes", default=2.0, show_default=True, help="Time between two checkpoints.")
@click.option("--out", default="", help="The model to write; its suffix does not matter.  [default: runs/ALGO]")
@click.option("--json", "as_json", is_flag=True, help="Print the model's card as JSON.")
def train(
    toolbox: str,
    images: str,
    precision: str,
    device: str,
    threads: int,
    checkpoint_minutes: float,
    out: str,
    as_json: bool,
    **settings: Any,
) -> None:
    """Train a policy with an algorithm of Stable-Baselines3.

    Writes the model (.zip), its policy (.safetensors) with a card (.json) and, where tensorboard is installed,
    logs for it (.tensorboard). A killed or interrupted run goes on where it stopped.
    """
    config = SB3Config(**settings)
    where = find_device(device)
    keep_freed_memory()
    if threads:
        torch.set_num_threads(threads)
    path = Path(out or f"runs/{find_algorithm(config.algo).name}").with_suffix(".zip")
    logs = path.with_suffix(".tensorboard") if find_spec("tensorboard") else None
    changed = [f" --{k.replace('_', '-')} {v}" for k, v in settings.items() if v != _DEFAULTS[k]]
    command = f"restoration-env train sb3 --toolbox {toolbox} --images {Path(images).name}" + "".join(changed)
    with progress_bar() as bar:
        task = bar.add_task(config.algo, total=config.steps, note="")
        judged = ""

        def report(progress: SB3Progress) -> None:
            nonlocal judged
            if progress.validation_gain is not None:
                judged = f", validation {progress.validation_gain:+.2f} dB"
            now = "" if progress.gain is None else f"training {progress.gain:+.2f} dB"
            bar.update(task, completed=min(progress.steps, config.steps), note=now + judged)

        card = train_sb3(
            config,
            path,
            images=images,
            toolbox=toolbox,
            precision=precision,
            device=str(where),
            tensorboard=logs,
            checkpoint_seconds=60.0 * checkpoint_minutes,
            report=report,
            card={"data": Path(images).name, **provenance(command, where)},
        )
    if as_json:
        click.echo(json.dumps({"model": str(path), "tensorboard": logs and str(logs), **card}, indent=2))
        return
    click.echo(f"{path}: {card['validation_gain_db']:+.2f} dB on validation patches, {card['seconds']:.0f} s")
    click.echo(f"logs: {logs}" if logs else "no logs: the package tensorboard is not installed")
