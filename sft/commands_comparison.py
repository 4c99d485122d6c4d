"""The command ``restoration-env sft-compare``."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from restoration_env.cli import progress_bar
from restoration_env.devices import find_device
from restoration_env.files import read_weights, write_json
from restoration_env.provenance import provenance
from restoration_env.sft.comparison import compare
from restoration_env.sft.scenes import load_scenes
from restoration_env.sft.segmenter import WEIGHTS
from restoration_env.sft.super_resolver import SuperResolver, load_super_resolver, shipped

_TOLD = ("sha256", "conditioning", "stage", "iterations_done", "command", "commit")  # of a card


def _facts(name: str) -> dict[str, object]:
    path = WEIGHTS / f"{name}.safetensors" if name in shipped() else Path(name)
    card = read_weights(path)[1]
    return {key: card[key] for key in _TOLD if key in card}


def _resolved(resolver: SuperResolver, device: torch.device, low: Tensor) -> Tensor:
    return resolver(low.to(device))


@click.command()
@click.argument("weights", nargs=-1)
@click.option("--scenes", required=True, help="Folder of labelled scenes.")
@click.option("--split", default="test", show_default=True, help="train, validation, test or all.")
@click.option("--limit", type=int, help="So many scenes at most.")
@click.option("--device", default="auto", show_default=True)
@click.option("--threads", default=0, help="CPU threads; 0 leaves torch's choice.")
@click.option("-o", "--output", help="A JSON file for the result.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def measure(
    weights: tuple[str, ...],
    scenes: str,
    split: str,
    limit: int | None,
    device: str,
    threads: int,
    output: str | None,
    as_json: bool,
) -> None:
    """Compare super-resolvers, by name or file, on labelled scenes: PSNR and LPIPS for each category.

    Without WEIGHTS, those that ship.
    """
    if threads:
        torch.set_num_threads(threads)
    where = find_device(device)
    names = weights or shipped()
    resolvers = {Path(name).stem: load_super_resolver(name, where) for name in names}
    held = load_scenes(scenes, split, limit=limit)
    with progress_bar() as bar:
        task = bar.add_task("scenes", total=len(held), note="")
        rows = compare(
            held,
            {name: partial(_resolved, resolver, where) for name, resolver in resolvers.items()},
            lambda done, total: bar.update(task, completed=done),
        )
    words = f"restoration-env sft-compare {' '.join(resolvers)} --scenes {Path(scenes).name} --split {split}"
    words += "" if limit is None else f" --limit {limit}"
    facts = {Path(name).stem: _facts(name) for name in names}
    result = {**provenance(words, where), "weights": facts, "scenes": len(held), "rows": rows}
    if output:
        write_json(output, result)
    if as_json:
        click.echo(json.dumps(result, indent=2))
        return
    _print("", [group for group in rows[0] if group not in ("method", "regions")], rows, rows)
    _print(", all that is labelled with a category", list(rows[0]["regions"]), rows, [row["regions"] for row in rows])


def _print(title: str, groups: list[str], rows: list[dict[str, Any]], values: list[dict[str, Any]]) -> None:
    """A table of a row for each method and a column for each group of pixels or scenes."""
    table = Table("method", title=f"PSNR in dB, LPIPS (lower is better), by the number of scenes{title}")
    for group in groups:
        table.add_column(f"{group} ({values[0][group]['scenes']})", justify="right")
    for row, value in zip(rows, values, strict=True):
        table.add_row(row["method"], *(f"{value[group]['psnr']:.2f} {value[group]['lpips']:.3f}" for group in groups))
    Console().print(table)
