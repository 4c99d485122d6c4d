"""The command ``restoration-env label``."""

from __future__ import annotations

from pathlib import Path

import click
import torch
from rich.console import Console

from restoration_env.agents.agent import DEFAULT_AGENT, ToolchainAgent, load_agent
from restoration_env.agents.labelling import LabelConfig, label
from restoration_env.cli import progress_bar
from restoration_env.devices import find_device, keep_freed_memory
from restoration_env.errors import InvalidArgument
from restoration_env.images import load_images
from restoration_env.provenance import provenance

_DEFAULTS = LabelConfig()


@click.command("label")
@click.option("--images", default="bundled", show_default=True, help="Clean images: a folder or a name.")
@click.option("--agent", "player", default=DEFAULT_AGENT, show_default=True, help="Who plays, by name or path.")
@click.option("--out", default="runs/labelled", show_default=True, help="Folder of the labelled episodes.")
@click.option("--count", default=4_096, show_default=True, help="Episodes of this seed.")
@click.option("--seed", default=0, show_default=True, help="Another one for each process that writes there.")
@click.option("--severity", default=_DEFAULTS.severity, show_default=True, help="The damage.")
@click.option("--explore", default=_DEFAULTS.explore, show_default=True, help="Share of actions near the choice.")
@click.option("--temperature", default=_DEFAULTS.temperature, show_default=True, help="In dB, how near.")
@click.option("--promising", default=_DEFAULTS.promising, show_default=True, help="Branches played to the end; 0: all.")
@click.option("--soft", default=_DEFAULTS.soft, show_default=True, help="Share put out of focus before damage.")
@click.option("--precision", default="float32", show_default=True, help="Of the tools: float32 or bfloat16.")
@click.option("--device", default="auto", show_default=True)
@click.option("--threads", default=0, help="CPU threads; 0 leaves torch's choice.")
def command(
    images: str,
    player: str,
    out: str,
    count: int,
    seed: int,
    severity: str,
    explore: float,
    temperature: float,
    promising: int,
    soft: float,
    precision: str,
    device: str,
    threads: int,
) -> None:
    """Play episodes, run every tool at every step, and keep the value of every action, to learn from them later.

    A killed run goes on where it stopped; several may write into one folder, each with a seed of its own.
    """
    config = LabelConfig(severity, explore, temperature, promising, soft=soft)
    where = find_device(device)
    keep_freed_memory()
    if threads:
        torch.set_num_threads(threads)
    agent = load_agent(player, device=str(where), precision=precision)
    if not isinstance(agent, ToolchainAgent):
        raise InvalidArgument("--agent", "a toolchain agent", player)
    words = f"restoration-env label --images {Path(images).name} --agent {Path(player).name} --severity {severity}"
    words += f" --explore {explore:g} --temperature {temperature:g} --promising {promising}"
    words += f" --soft {soft:g}" if soft else ""
    words += f" --precision {precision}" if precision != "float32" else ""
    pool = load_images(images, "train")
    facts = {"data": f"{Path(images).name}: {len(pool)} images train", **provenance(words, where)}
    with progress_bar() as bar:
        task = bar.add_task("labelled episodes", total=count, note="")
        label(
            config,
            agent,
            pool,
            out,
            count,
            seed=seed,
            report=lambda done: bar.update(task, completed=done),
            facts=facts,
        )
    Console().print(f"labelled episodes in {out}; train agent --algo fit --labelled {out} learns from them")
