"""The command ``restoration-env agent-study``."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console
from rich.table import Table

from restoration_env.benchmarks.agent_study import (
    STUDIES,
    Workshop,
    contestants,
    curve,
    images_needed,
    mean_curve,
    over_seeds,
)
from restoration_env.benchmarks.board import read_result
from restoration_env.benchmarks.curves import draw_curves
from restoration_env.benchmarks.keeping import with_study
from restoration_env.benchmarks.suites import patch_suite
from restoration_env.cli import progress_bar
from restoration_env.devices import find_device, keep_freed_memory
from restoration_env.distortions import SEVERITY_RANGES, recipe
from restoration_env.files import write_json
from restoration_env.provenance import provenance
from restoration_env.rendering import save_png

_REFERENCE = "exact values"  # how many fewer images it needs is what the study of variants asks


@click.command()
@click.argument("name", type=click.Choice(list(STUDIES)))
@click.option("--images", default="bundled", show_default=True, help="Clean images to train on: a folder or a name.")
@click.option("--test", default="bundled", show_default=True, help="Clean images to judge on.")
@click.option("--split", default="test", show_default=True, help="Part of the test images, or all.")
@click.option("--count", default=300, show_default=True, help="Patches of each severity to judge on.")
@click.option("--seeds", default=3, show_default=True, help="Runs of each.")
@click.option("--only", multiple=True, help="One of the study's contestants; may be repeated.")
@click.option("--episodes", type=int, help="Images to train on, in place of the study's own numbers.")
@click.option("--steps", type=int, help="Actions to train on (baselines), in place of the study's own number.")
@click.option("--envs", type=int, help="Episodes side by side (baselines).")
@click.option("--evaluate-every", type=int, help="Batches (or steps) between two validations.")
@click.option("--validation-images", type=int, help="Images in a validation.")
@click.option("--patch-size", type=int, help="Side of the patches (baselines).")
@click.option("--severity", help="The damage to train on.")
@click.option("--toolbox", default="cnn12", show_default=True)
@click.option("--precision", type=click.Choice(["float32", "bfloat16"]), default="float32", show_default=True)
@click.option("--device", default="auto", show_default=True)
@click.option("--threads", default=0, help="CPU threads; 0 leaves torch's choice.")
@click.option("--folder", default="", help="Of the runs; those in it are not made again.  [default: runs/NAME]")
@click.option("--keep", type=click.Path(path_type=Path), help="Take over the other rows of this earlier result.")
@click.option("--json", "json_path", type=click.Path(), help="Write the numbers here.")
@click.option("--picture", type=click.Path(), help="Draw the learning curves here (PNG).")
def study(
    name: str,
    images: str,
    test: str,
    split: str,
    count: int,
    seeds: int,
    only: tuple[str, ...],
    toolbox: str,
    precision: str,
    device: str,
    threads: int,
    folder: str,
    keep: Path | None,
    json_path: str | None,
    picture: str | None,
    **changes: Any,
) -> None:
    """Train agents on equal budgets with several seeds, and compare them on the same suites.

    variants: deep recurrent Q-learning and what was added to it since, beside exact values. horizons: episodes of one
    to six actions. baselines: the algorithms of Stable-Baselines3. Interrupted, the study goes on where it stopped.
    """
    where = find_device(device)
    keep_freed_memory()
    if threads:
        torch.set_num_threads(threads)
    changed = {option: value for option, value in changes.items() if value is not None}
    runs = Workshop(Path(folder or f"runs/{name}"), images, toolbox, precision, str(where), changed)
    chosen, earlier = contestants(name, only), read_result(keep) if keep else None
    size = changed.get("patch_size", 63)
    suites = {severity: patch_suite(test, split, recipe(severity), count, size=size) for severity in SEVERITY_RANGES}
    facts = {s: {"patches": count, "images": suite.source, "sha256": suite.digest} for s, suite in suites.items()}
    if earlier:  # what cannot be taken over is refused before anything is trained
        with_study({"suites": facts, "rows": {c.label: {} for c in chosen}}, earlier, STUDIES[name], changed, seeds)
    cards: dict[str, list[dict[str, Any]]] = {}
    measured: dict[str, list[dict[str, Any]]] = {}
    with progress_bar() as bar:
        whole = bar.add_task(name, total=len(chosen) * seeds, note="")
        task = bar.add_task("", total=None, note="")
        for contestant in chosen:
            for seed in range(seeds):
                bar.reset(task, description=f"{contestant.label}, seed {seed}", note="")
                card = runs.train(
                    contestant, seed, lambda done, total: bar.update(task, completed=min(done, total), total=total)
                )
                bar.update(task, note="judged")
                cards.setdefault(contestant.label, []).append(card)
                measured.setdefault(contestant.label, []).append(runs.judge(contestant, seed, suites))
                bar.advance(whole)
    rows = {
        label: {
            "training": cards[label][0]["training"],
            "seeds": seeds,
            "training_images": _mean(cards[label], "images_seen"),
            "training_seconds": _mean(cards[label], "seconds"),
            "suites": over_seeds(measured[label]),
            "curve": [[round(value, 4) for value in point] for point in mean_curve([curve(card) for card in found])],
        }
        for label, found in cards.items()
    }
    options = {"images": images, "test": test, "split": split, "count": count, "seeds": seeds, **changed}
    options |= {"toolbox": toolbox, "precision": precision, "keep": keep}
    words = [f"--{k.replace('_', '-')} {Path(str(v)).name}" for k, v in options.items() if v is not None]
    words += [f"--only {shlex.quote(label)}" for label in only]
    result = {
        **provenance(f"restoration-env agent-study {name} {' '.join(words)}", where),
        "suites": facts,
        "rows": rows,
    }
    if earlier:
        result = with_study(result, earlier, STUDIES[name], changed, seeds)
    curves = {label: [(x, mean, dev) for x, mean, dev in row["curve"]] for label, row in result["rows"].items()}
    if _REFERENCE in curves:
        result["images_for_the_same_gain"] = _fewer(curves)
    if json_path:
        write_json(json_path, result)
    if picture:
        across = "actions taken in training" if name == "baselines" else "images restored in training"
        title = f"{name}: gain on held-out patches, mean and deviation of {seeds} seeds"
        save_png(picture, draw_curves(curves, title, across, "gain in dB", logarithmic=name == "variants"))
    Console().print(study_table(result))
    for label, row in result.get("images_for_the_same_gain", {}).items():
        needed = "never reached" if row["exact values"] is None else f"{row['exact values']:.0f} images"
        times = "" if row["times_fewer"] is None else f", {row['times_fewer']:.1f} times fewer"
        click.echo(f"{row['gain']:+.2f} dB of {label} after {row['images']:.0f} images: {_REFERENCE} {needed}{times}")


def _mean(cards: list[dict[str, Any]], entry: str) -> float | None:
    values = [card[entry] for card in cards if entry in card]
    return round(sum(values) / len(values), 1) if values else None


def _fewer(curves: dict[str, list[tuple[float, float, float]]]) -> dict[str, dict[str, float | None]]:
    """For the best mean gain of each other curve, the images that it and exact values needed to reach it."""
    table: dict[str, dict[str, float | None]] = {}
    for label, points in curves.items():
        if label == _REFERENCE:
            continue
        images, gain, _ = max(points, key=lambda point: point[1])
        needed = images_needed(curves[_REFERENCE], gain)
        times = round(images / needed, 2) if needed else None
        table[label] = {"gain": round(gain, 4), "images": images, _REFERENCE: needed, "times_fewer": times}
    return table


def study_table(result: dict[str, Any]) -> Table:
    """Gain, harm and tools used of each contestant on each severity, with the deviation over seeds."""
    seeds = {row["seeds"] for row in result["rows"].values()}
    table = Table(title=f"PSNR gain in dB, mean ± deviation of {max(seeds)} seeds (harmed images, mean tools)")
    table.add_column("agent")
    for severity in result["suites"]:
        table.add_column(severity, justify="right")
    table.add_column("images", justify="right")
    table.add_column("seconds", justify="right")
    for label, row in result["rows"].items():
        cells = [
            f"{said['gain']:+.2f} ± {said['gain_std']:.2f} ({said['harmed']:.1%}, {said['mean_tools']:.1f})"
            for said in row["suites"].values()
        ]
        images = "" if row["training_images"] is None else f"{row['training_images']:,.0f}"
        table.add_row(label, *cells, images, f"{row['training_seconds']:.0f}")
    return table
