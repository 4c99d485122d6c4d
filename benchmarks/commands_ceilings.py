"""The command ``restoration-env ceilings``."""

from __future__ import annotations

from pathlib import Path

import click
import torch
from rich.console import Console
from rich.table import Table

from restoration_env.agents.agent import load_agent
from restoration_env.benchmarks.ceilings import KNOWN, measure_ceilings, table_cells
from restoration_env.benchmarks.leaderboard import PATCH_SUITES
from restoration_env.cli import progress_bar
from restoration_env.devices import keep_freed_memory
from restoration_env.files import write_json
from restoration_env.provenance import provenance


@click.command()
@click.option("--images", default="bundled", show_default=True, help="Folder or name of the test images.")
@click.option("--split", default="test", show_default=True, help="Part of the test images, or all.")
@click.option("--others", default="bundled", show_default=True, help="Other photographs, damaged likewise.")
@click.option("--agent", "agents", multiple=True, default=("toolchain",), show_default=True, help="By name or path.")
@click.option("--count", default=300, show_default=True, help="Patches of each severity.")
@click.option("--draws", default=12, show_default=True, help="Other draws of each patch to take the mean of.")
@click.option("--precision", default="float32", show_default=True, help="float32 or bfloat16.")
@click.option("--threads", default=0, help="CPU threads; 0 leaves torch's choice.")
@click.option("--json", "json_path", type=click.Path(), help="Write the numbers here.")
def ceilings(
    images: str,
    split: str,
    others: str,
    agents: tuple[str, ...],
    count: int,
    draws: int,
    precision: str,
    threads: int,
    json_path: str | None,
) -> None:
    """Measure what knowing less than the oracle costs: the noise drawn, the image, and what only agents must judge."""
    if threads:
        torch.set_num_threads(threads)
    keep_freed_memory()
    players = {Path(name).stem: load_agent(name, precision=precision) for name in agents}
    with progress_bar() as bar:
        task = bar.add_task("ceilings", total=len(players) * len(PATCH_SUITES) * len(KNOWN), note="")
        rows, suites = measure_ceilings(
            players,
            images,
            split,
            others,
            count=count,
            draws=draws,
            note=lambda text: bar.update(task, advance=1, note=text),
        )
    words = f"restoration-env ceilings --images {Path(images).name} --split {split} --others {Path(others).name}"
    words += "".join(f" --agent {Path(name).name}" for name in agents) + f" --count {count} --draws {draws}"
    words += f" --precision {precision}" if precision != "float32" else ""
    if json_path:
        facts = {"source": suites["mild"].source, "others": f"{Path(others).name} (train)", "count": count}
        digests = {name: suite.digest for name, suite in suites.items()}
        write_json(json_path, {**provenance(words), **facts, "draws": draws, "digests": digests, "rows": rows})
    title = f"PSNR gain in dB, its share of the oracle's, images made worse; {count} patches a severity"
    table = Table("tools", "known", *PATCH_SUITES, title=title)
    for row, cells in zip(rows, table_cells(rows), strict=True):
        table.add_row(row["toolbox"], *cells)
    Console().print(table)
