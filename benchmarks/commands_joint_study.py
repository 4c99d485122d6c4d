"""The command ``restoration-env joint-study``."""

from __future__ import annotations

from pathlib import Path

import click
import torch
from rich.console import Console
from rich.table import Table

from restoration_env.benchmarks.joint_study import IDEAS, joint_study
from restoration_env.cli import progress_bar
from restoration_env.devices import keep_freed_memory
from restoration_env.errors import check_at_least
from restoration_env.files import write_json
from restoration_env.images import load_images
from restoration_env.provenance import provenance


@click.command()
@click.option("--images", default="bundled", show_default=True, help="Clean images: a folder or a name.")
@click.option("--out", default="runs/joint-study", show_default=True, help="Folder of the tools that are trained.")
@click.option("--iterations", default=800, show_default=True, help="Batches of each training.")
@click.option("--count", default=96, show_default=True, help="Validation patches of each severity and band.")
@click.option("--precision", default="float32", show_default=True, help="float32 or bfloat16.")
@click.option("--threads", default=0, help="CPU threads; 0 leaves torch's choice.")
@click.option("--json", "json_path", type=click.Path(), help="Write the numbers here.")
def study(
    images: str, out: str, iterations: int, count: int, precision: str, threads: int, json_path: str | None
) -> None:
    """Ablation of joint training: each idea left out once, on equal budgets from the same tools and agent.

    A killed run goes on where it stopped.
    """
    check_at_least(1, iterations=iterations, count=count)
    keep_freed_memory()
    if threads:
        torch.set_num_threads(threads)
    pool, validation = load_images(images, "train"), load_images(images, "validation")
    with progress_bar() as bar:
        task = bar.add_task("joint training", total=None, note="")
        rows = joint_study(
            IDEAS,
            iterations,
            pool,
            validation,
            out,
            count=count,
            precision=precision,
            tell=lambda text: bar.update(task, note=text),
        )
    if json_path:
        words = f"restoration-env joint-study --images {Path(images).name} --iterations {iterations} --count {count}"
        words += f" --precision {precision}" if precision != "float32" else ""
        data = f"{Path(images).name}: {len(pool)} images train, {len(validation)} measure (validation)"
        write_json(json_path, {**provenance(words), "data": data, "rows": rows})
    table = Table("joint training", title=f"Gain in dB after {iterations} batches, validation images")
    for heading in (*(f"agent, {name}" for name in rows[0]["agent"]), "agent", "oracle", "own bands", "least used"):
        table.add_column(heading, justify="right")
    for row in rows:
        gains = (*row["agent"].values(), row["agent_mean"], row["oracle_mean"], row["own_band"])
        least = f"{row['least_used']} {row['least_share']:.1%}" if "least_used" in row else ""
        table.add_row(row["words"], *(f"{gain:+.2f}" for gain in gains), least)
    Console().print(table)
