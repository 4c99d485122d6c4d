"""The command ``restoration-env train chains``."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import click
import torch

from restoration_env.cli import progress_bar
from restoration_env.devices import find_device, keep_freed_memory
from restoration_env.images import load_images
from restoration_env.provenance import provenance
from restoration_env.tools.catalogue import TOOLBOXES
from restoration_env.tools.chain_training import ChainConfig, ChainProgress, train_in_chains
from restoration_env.tools.optimizers import OPTIMIZERS
from restoration_env.tools.together import first_tools

_DEFAULTS: dict[str, Any] = {field.name: field.default for field in fields(ChainConfig)}


@click.command()
@click.option("--images", default="bundled", show_default=True, help="Clean images: a folder or a name.")
@click.option("--out", default="runs/chains", show_default=True, help="Folder of weights, cards and the checkpoint.")
@click.option("--toolbox", type=click.Choice(list(TOOLBOXES)), default="cnn12-joint", show_default=True)
@click.option("--start-tools", default="cnn12", show_default=True, help="A toolbox of the same networks, or a folder.")
@click.option("--through/--separately", default=True, show_default=True, help="Do gradients pass from tool to tool?")
@click.option("--iterations", default=_DEFAULTS["iterations"], show_default=True, help="Batches of images.")
@click.option("--batch", default=_DEFAULTS["batch"], show_default=True, help="Images in each.")
@click.option("--severity", default=_DEFAULTS["severity"], show_default=True, help="The damage to train on.")
@click.option("--learning-rate", default=_DEFAULTS["learning_rate"], show_default=True, help="At its peak.")
@click.option("--optimizer", type=click.Choice(OPTIMIZERS), default=_DEFAULTS["optimizer"], show_default=True)
@click.option("--muon-rate", default=_DEFAULTS["muon_rate"], show_default=True, help="Learning rate of Muon.")
@click.option("--candidates", default=_DEFAULTS["candidates"], show_default=True, help="Chains to choose from.")
@click.option("--stronger", default=_DEFAULTS["stronger"], show_default=True, help="Share moved a band up.")
@click.option("--weaker", default=_DEFAULTS["weaker"], show_default=True, help="Share moved a band down.")
@click.option("--shuffled", default=_DEFAULTS["shuffled"], show_default=True, help="Share of chains in another order.")
@click.option("--earlier", default=_DEFAULTS["earlier"], show_default=True, help="Weight of the earlier steps.")
@click.option("--precision", default="float32", show_default=True, help="float32 or bfloat16.")
@click.option("--seed", default=0, show_default=True)
@click.option("--device", default="auto", show_default=True)
@click.option("--threads", default=0, help="CPU threads; 0 leaves torch's choice.")
def chains(
    images: str, out: str, toolbox: str, start_tools: str, precision: str, device: str, threads: int, **settings: Any
) -> None:
    """Train all tools in toolchains that match the damage. A killed run goes on where it stopped."""
    where = find_device(device)
    keep_freed_memory()
    if threads:
        torch.set_num_threads(threads)
    pool, validation = load_images(images, "train"), load_images(images, "validation")
    words = {"images": Path(images).name, "toolbox": toolbox, "start-tools": Path(start_tools).name}
    words |= {name.replace("_", "-"): value for name, value in settings.items() if value != _DEFAULTS[name]}
    words |= {"precision": precision} if precision != "float32" else {}
    separately = words.pop("through", None) is False
    command = "restoration-env train chains" + "".join(f" --{name} {value}" for name, value in words.items())
    card = {
        "data": f"{Path(images).name}: {len(pool)} images train, {len(validation)} validate",
        **provenance(command + (" --separately" if separately else ""), where),
    }
    tools, cards = first_tools(toolbox, start_tools, device=where, precision=precision)
    with progress_bar() as bar:
        task = bar.add_task(toolbox, total=settings["iterations"], note="")

        def report(progress: ChainProgress) -> None:
            bar.update(task, completed=progress.iteration)
            if progress.validation is not None:
                gains = " ".join(f"{name} {gain:+.2f}" for name, gain in progress.validation.items())
                bar.update(task, note=f"validation {gains} dB")

        train_in_chains(
            ChainConfig(**settings),
            tools,
            pool,
            validation,
            out,
            device=where,
            report=report,
            cards=cards,
            card=card,
        )
