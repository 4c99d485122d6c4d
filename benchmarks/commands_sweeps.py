"""The commands ``restoration-env magnitudes`` and ``restoration-env joint-study``: sweeps of how tools are trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console
from rich.table import Table

from restoration_env.benchmarks.joint_study import IDEAS, joint_study
from restoration_env.benchmarks.magnitudes import SWEEP, sweep
from restoration_env.cli import progress_bar
from restoration_env.devices import keep_freed_memory
from restoration_env.errors import check_at_least
from restoration_env.files import write_json
from restoration_env.images import load_images
from restoration_env.provenance import provenance

Rows = list[dict[str, Any]]


def _shared(command: Callable[..., None]) -> Callable[..., None]:
    for option in (
        click.option("--json", "json_path", type=click.Path(), help="Write the numbers here."),
        click.option("--threads", default=0, help="CPU threads; 0 leaves torch's choice."),
        click.option("--precision", default="float32", show_default=True, help="float32 or bfloat16."),
        click.option("--count", default=96, show_default=True, help="Validation patches of each severity and band."),
        click.option("--images", default="bundled", show_default=True, help="Clean images: a folder or a name."),
    ):
        command = option(command)
    return command


def _swept(
    name: str,
    measure: Callable[..., Rows],
    settings: Any,
    images: str,
    out: str,
    iterations: int,
    count: int,
    precision: str,
    threads: int,
    json_path: str | None,
) -> Rows:
    """Train and measure all settings with a progress bar, and write what was measured."""
    check_at_least(1, iterations=iterations, count=count)
    keep_freed_memory()
    if threads:
        torch.set_num_threads(threads)
    pool, validation = load_images(images, "train"), load_images(images, "validation")
    with progress_bar() as bar:
        task = bar.add_task(name, total=None, note="")
        how: dict[str, Any] = {"count": count, "precision": precision, "tell": lambda text: bar.update(task, note=text)}
        rows = measure(settings, iterations, pool, validation, out, **how)
    if json_path:
        words = f"restoration-env {name} --images {Path(images).name} --iterations {iterations} --count {count}"
        words += f" --precision {precision}" if precision != "float32" else ""
        data = f"{Path(images).name}: {len(pool)} images train, {len(validation)} measure (validation)"
        write_json(json_path, {**provenance(words), "data": data, "rows": rows})
    return rows


@click.command()
@click.option("--out", default="runs/magnitudes", show_default=True, help="Folder of the tools that are trained.")
@click.option("--iterations", default=300, show_default=True, help="Optimiser steps of each tool.")
@_shared
def magnitudes(**options: Any) -> None:
    """Sweep the further damage in the tools' training data, judged by the oracle of mixed damage.

    The shipped tools are trained on with each magnitude. A killed run goes on where it stopped.
    """
    rows = _swept("magnitudes", sweep, SWEEP, **options)
    title = f"PSNR gain in dB; each tool trained on for {options['iterations']} steps"
    table = Table("further damage", title=title)
    for heading in (*rows[0]["oracle"], "mean", "own band"):
        table.add_column(heading, justify="right")
    for row in rows:
        numbers = (*row["oracle"].values(), row["oracle_mean"], row["own_band"])
        table.add_row(row["magnitudes"], *(f"{number:+.2f}" for number in numbers))
    Console().print(table)


@click.command()
@click.option("--out", default="runs/joint-study", show_default=True, help="Folder of the tools that are trained.")
@click.option("--iterations", default=400, show_default=True, help="Batches of each training.")
@_shared
def study(**options: Any) -> None:
    """Ablation of joint training: each idea left out once, on equal budgets from the same tools and agent.

    A killed run goes on where it stopped.
    """
    rows = _swept("joint-study", joint_study, IDEAS, **options)
    table = Table("joint training", title=f"Gain in dB after {options['iterations']} batches, validation images")
    for heading in (*(f"agent, {name}" for name in rows[0]["agent"]), "agent", "oracle", "own bands", "least used"):
        table.add_column(heading, justify="right")
    for row in rows:
        gains = (*row["agent"].values(), row["agent_mean"], row["oracle_mean"], row["own_band"])
        least = f"{row['least_used']} {row['least_share']:.1%}" if "least_used" in row else ""
        table.add_row(row["words"], *(f"{gain:+.2f}" for gain in gains), least)
    Console().print(table)
