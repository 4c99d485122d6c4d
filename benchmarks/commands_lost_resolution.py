"""The command ``restoration-env lost-resolution``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console
from rich.table import Table

from restoration_env.agents.agent import load_agent
from restoration_env.benchmarks.lost_resolution import HALVES, TOOL, measure
from restoration_env.benchmarks.suites import patch_suite
from restoration_env.cli import progress_bar
from restoration_env.devices import keep_freed_memory
from restoration_env.distortions import recipe
from restoration_env.files import write_json
from restoration_env.provenance import provenance
from restoration_env.registry import load_toolbox

_LIMIT = 50.0  # dB above which an image is as good as clean, and no family's


@click.command()
@click.option("--images", default="bundled", show_default=True, help="Folder or name of the test images.")
@click.option("--split", default="test", show_default=True, help="Part of the test images, or all.")
@click.option("--toolbox", default="cnn12", show_default=True, help="To measure without and with the super-resolver.")
@click.option("--agent", "agents", multiple=True, help="An agent by name or path, to measure beside the oracles.")
@click.option("--sb3", multiple=True, type=click.Path(), help="The weights of a policy that `train sb3` wrote.")
@click.option("--count", default=100, show_default=True, help="Patches of each half of the family.")
@click.option("--threads", default=0, help="CPU threads; 0 leaves torch's choice.")
@click.option("--json", "json_path", type=click.Path(), help="Write the numbers here.")
def lost_resolution(
    images: str,
    split: str,
    toolbox: str,
    agents: tuple[str, ...],
    sb3: tuple[str, ...],
    count: int,
    threads: int,
    json_path: str | None,
) -> None:
    """Measure what the super-resolver adds, and on which images it is used."""
    if threads:
        torch.set_num_threads(threads)
    keep_freed_memory()
    toolboxes = [load_toolbox(toolbox), load_toolbox(toolbox, [TOOL])]
    players: dict[str, Any] = {f"agent {Path(name).stem}": load_agent(name) for name in agents}
    if sb3:
        from restoration_env.agents.sb3_policy import load_sb3_policy  # an extra brings what it needs

        players |= {f"{Path(name).stem}, Stable-Baselines3": load_sb3_policy(name) for name in sb3}
    suites = {name: patch_suite(images, split, recipe(name), count, limit=_LIMIT) for name in HALVES}
    with progress_bar() as bar:
        task = bar.add_task("lost resolution", total=len(suites) * (len(toolboxes) + len(players)), note="")
        rows = measure(suites, toolboxes, players, lambda text: bar.update(task, advance=1, note=text))
    words = f"restoration-env lost-resolution --images {Path(images).name} --split {split} --toolbox {toolbox}"
    words += "".join(f" --agent {Path(name).name}" for name in agents)
    words += "".join(f" --sb3 {Path(name).name}" for name in sb3) + f" --count {count}"
    if json_path:
        facts = {"source": suites["x4"].source, "count": count}
        facts |= {"digests": {name: suite.digest for name, suite in suites.items()}}
        write_json(json_path, {**provenance(words), **facts, "rows": rows})
    table = Table("policy", "toolbox", title=f"PSNR gain in dB, and where {TOOL} is used; {count} patches a half")
    for heading in ("both", *(f"{name}: {what}" for name in HALVES for what in ("gain", "used on"))):
        table.add_column(heading, justify="right")
    for row in rows:
        cells = [text for name in HALVES for text in (f"{row[name]['gain']:+.2f}", f"{row[name]['share']:.0%}")]
        table.add_row(row["policy"], row["toolbox"], f"{row['gain']:+.2f}", *cells)
    Console().print(table)
