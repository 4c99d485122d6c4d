"""The command ``restoration-env magnitudes``."""

from __future__ import annotations

from pathlib import Path

import click
import torch
from rich.console import Console
from rich.table import Table

from restoration_env.benchmarks.magnitudes import SWEEP, sweep
from restoration_env.cli import progress_bar
from restoration_env.devices import keep_freed_memory
from restoration_env.errors import check_at_least
from restoration_env.files import write_json
from restoration_env.images import load_images
from restoration_env.provenance import provenance


@click.command()
@click.option("--images", default="bundled", show_default=True, help="Clean images: a folder or a name.")
@click.option("--out", default="runs/magnitudes", show_default=True, help="Folder of the tools that are trained.")
@click.option("--iterations", default=300, show_default=True, help="Optimiser steps of each tool.")
@click.option("--count", default=96, show_default=True, help="Validation patches of each severity and band.")
@click.option("--precision", default="float32", show_default=True, help="float32 or bfloat16.")
@click.option("--threads", default=0, help="CPU threads; 0 leaves torch's choice.")
@click.option("--json", "json_path", type=click.Path(), help="Write the numbers here.")
def magnitudes(
    images: str, out: str, iterations: int, count: int, precision: str, threads: int, json_path: str | None
) -> None:
    """Sweep the further damage in the tools' training data, judged by the oracle of mixed damage.

    The shipped tools are trained on with each magnitude. A killed run goes on where it stopped.
    """
    check_at_least(1, iterations=iterations, count=count)
    keep_freed_memory()
    if threads:
        torch.set_num_threads(threads)
    pool, validation = load_images(images, "train"), load_images(images, "validation")
    with progress_bar() as bar:
        task = bar.add_task("magnitudes", total=None, note="")
        rows = sweep(
            SWEEP,
            iterations,
            pool,
            validation,
            out,
            count=count,
            precision=precision,
            tell=lambda text: bar.update(task, note=text),
        )
    if json_path:
        words = f"restoration-env magnitudes --images {Path(images).name} --iterations {iterations} --count {count}"
        words += f" --precision {precision}" if precision != "float32" else ""
        data = f"{Path(images).name}: {len(pool)} images train, {len(validation)} measure (validation)"
        write_json(json_path, {**provenance(words), "data": data, "rows": rows})
    table = Table("further damage", title=f"PSNR gain in dB; each tool trained on for {iterations} steps")
    for heading in (*rows[0]["oracle"], "mean", "own band"):
        table.add_column(heading, justify="right")
    for row in rows:
        numbers = (*row["oracle"].values(), row["oracle_mean"], row["own_band"])
        table.add_row(row["magnitudes"], *(f"{number:+.2f}" for number in numbers))
    Console().print(table)
