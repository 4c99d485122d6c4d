"""The commands ``restoration-env sr`` and ``restoration-env train sr``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from restoration_env.benchmarks.super_resolution import WEIGHTS, Resolver, about, load_resolver, measure, strip_rows
from restoration_env.benchmarks.super_resolution_data import Pairs, load_pairs
from restoration_env.benchmarks.super_resolution_losses import CROP
from restoration_env.benchmarks.super_resolvers import SPECS
from restoration_env.benchmarks.train_super_resolution import (
    ResolverConfig,
    ResolverProgress,
    parse_budget,
    train_resolver,
)
from restoration_env.cli import progress_bar
from restoration_env.devices import find_device, keep_freed_memory
from restoration_env.errors import InvalidArgument
from restoration_env.files import write_json
from restoration_env.provenance import provenance
from restoration_env.rendering import Strip, contact_sheet, save_png

_DEFAULTS: dict[str, Any] = {item.name: item.default for item in fields(ResolverConfig)}
_COLUMNS = (("psnr_rgb", "PSNR RGB", 2), ("psnr_luma", "PSNR luma", 2), ("ssim", "SSIM", 4), ("lpips", "LPIPS", 4))


@click.command()
@click.argument("name", type=click.Choice(list(SPECS)))
@click.option("--images", multiple=True, help="Photographs: a folder or a name; may be repeated.  [default: bundled]")
@click.option("--scenes", type=click.Path(), help="Labelled scenes, of which the train part is learned too.")
@click.option("--out", default="runs/sr", show_default=True, help="Folder of weights, card and checkpoint.")
@click.option("--budget", default=_DEFAULTS["budget"], show_default=True, help="Of everything: 90s, 40m, 2h or 20000p.")
@click.option("--batch", default=_DEFAULTS["batch"], show_default=True, help="Patches a step.")
@click.option("--crop", default=0, help="Side of the patches in pixels.  [default: about the paper's]")
@click.option("--learning-rate", default=_DEFAULTS["learning_rate"], show_default=True, help="Peak of the schedule.")
@click.option("--precision", default="float32", show_default=True, help="float32 or bfloat16.")
@click.option("--seed", default=0, show_default=True)
@click.option("--device", default="auto", show_default=True)
@click.option("--threads", default=0, help="CPU threads; 0 leaves torch's choice.")
def train(
    name: str, images: tuple[str, ...], scenes: str | None, out: str, device: str, threads: int, **settings: Any
) -> None:
    """Train the super-resolver NAME of the leaderboard. A killed run goes on where it stopped.

    The budget is one for all networks: seconds (of a processor core, or of a GPU's clock) or training patches.
    """
    config = ResolverConfig(name, **settings)
    sources = images or ("bundled",)
    words = f"restoration-env train sr {name}" + "".join(f" --images {Path(source).name}" for source in sources)
    words += f" --scenes {Path(scenes).name}" if scenes else ""
    given = {key: settings[key] for key in _DEFAULTS if key in settings and settings[key] != _DEFAULTS[key]}
    words += f" --budget {config.budget}" if "budget" not in given else ""
    words += "".join(f" --{key.replace('_', '-')} {value}" for key, value in given.items())
    if _finished(config, Path(out), words):
        Console(stderr=True).print(f"{name} is already trained so in {out}")
        return
    where = find_device(device)
    keep_freed_memory()
    if threads:
        torch.set_num_threads(threads)
    pairs = load_pairs(sources, scenes, "train", rescaled=True, least=config.side)
    validation = load_pairs(sources, scenes, "validation", least=CROP)
    data = f"{pairs.label}: {len(set(pairs.names))} photographs train, {len(set(validation.names))} validate"
    amount, unit = parse_budget(config.budget)
    with progress_bar() as bar:
        task = bar.add_task(f"{name} ({unit})", total=round(amount), note="")

        def report(progress: ResolverProgress) -> None:
            bar.update(task, completed=round(progress.spent))
            if progress.validation_psnr is not None:
                bar.update(task, note=f"{progress.stage}, validation {progress.validation_psnr:.2f} dB")

        card = {"data": data, **provenance(words, where)}
        done = train_resolver(config, pairs, validation, out, device=where, report=report, card=card)
    print_line = f"{name}: {done['validation_psnr_db']:.2f} dB ({done['works_on']}) on validation"
    Console().print(f"{print_line} after {done['patches_seen']:,} patches and {done['seconds']:.0f} s")


def _finished(config: ResolverConfig, out: Path, words: str) -> bool:
    """Whether an earlier run of the same command has written its weights."""
    path = out / f"{config.network}.json"
    if not path.exists() or not path.with_suffix(".safetensors").exists():
        return False
    card = json.loads(path.read_text(encoding="utf-8"))
    training = {**card.get("training", {})}
    training.pop("iterations_done", None)
    return training == asdict(config) and card.get("command") == words


@click.command()
@click.argument("names", nargs=-1)
@click.option("--images", multiple=True, help="A test set: a folder, all of it; may be repeated.")
@click.option("--scenes", type=click.Path(), help="Labelled scenes, of which the held-out part is measured.")
@click.option("--weights", default=str(WEIGHTS), help="Folder of weights.  [default: those that come with the package]")
@click.option("--published", multiple=True, metavar="NAME=PATH", help="Someone else's weights; may be repeated.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write the numbers here, and go on there.")
@click.option("--strips", type=click.Path(path_type=Path), help="Draw comparison strips into this folder.")
@click.option("--strip-count", default=4, show_default=True, help="Photographs of each set in its strips.")
@click.option("--limit", type=int, help="Measure so many photographs of each set at most.")
@click.option("--device", default="auto", show_default=True)
@click.option("--threads", default=0, help="CPU threads; 0 leaves torch's choice.")
def sr(
    names: tuple[str, ...],
    images: tuple[str, ...],
    scenes: str | None,
    weights: str,
    published: tuple[str, ...],
    json_path: Path | None,
    strips: Path | None,
    strip_count: int,
    limit: int | None,
    device: str,
    threads: int,
) -> None:
    """Measure the super-resolvers NAMES (all that are trained, if none is named): PSNR, SSIM, LPIPS, size and time.

    A name may be "module:callable", a function from float RGB (N, 3, h, w) in [0, 1] to (N, 3, 4h, 4w). With --json, a
    measurement that was interrupted goes on where it stopped, and rows of other super-resolvers stay.
    """
    if threads:
        torch.set_num_threads(threads)
    where = find_device(device)
    resolvers = _resolvers(names, Path(weights), published, where)
    sets = [_limited(load_pairs([source]), limit) for source in images or (() if scenes else ("bundled",))]
    if scenes:
        sets.append(_limited(load_pairs([], scenes, "test"), limit))
    words = " ".join(
        ["restoration-env sr", *names, *(f"--images {Path(source).name}" for source in images)]
        + ([f"--scenes {Path(scenes).name}"] if scenes else [])
        + ([f"--limit {limit}"] if limit else [])
    )
    result = _earlier(json_path)
    with progress_bar() as bar:
        task = bar.add_task("photographs", total=len(resolvers) * sum(map(len, sets)), note="")
        for pairs in sets:
            entry = result["sets"].setdefault(pairs.label, {"rows": {}})
            if entry.get("digest") != pairs.digest:
                entry.update(images=len(pairs), digest=pairs.digest, rows={})
            for resolver in resolvers:
                facts = about(resolver)
                known = entry["rows"].get(resolver.title, {})
                if known and known.get("weights") == facts.get("sha256") and ":" not in resolver.name:
                    bar.advance(task, len(pairs))
                    continue

                def note(name: str, label: str = resolver.title) -> None:
                    bar.update(task, advance=1, note=f"{label}: {name}")

                row = measure(resolver, pairs, device=where, note=note)
                entry["rows"][resolver.title] = {**row, "weights": facts.get("sha256")}
                result["resolvers"][resolver.title] = facts
                result["commands"] = list(dict.fromkeys((*result["commands"], words)))
                if json_path:
                    write_json(json_path, {**provenance(words, where), **result})
        for pairs in sets if strips is not None else ():
            bar.update(task, note=f"strips of {pairs.label}")
            assert strips is not None
            save_png(strips / f"{pairs.label}.png", draw_strips(resolvers, pairs, strip_count))
    for pairs in sets:
        Console().print(set_table(result, pairs.label))


def _resolvers(names: Sequence[str], folder: Path, published: Sequence[str], device: torch.device) -> list[Resolver]:
    """Those asked for, or bicubic and all whose weights are there; then those with published weights."""
    chosen = list(names) or ["bicubic", *(name for name in SPECS if (folder / f"{name}.safetensors").is_file())]
    loaded = [load_resolver(name, folder, device=device) for name in chosen]
    for given in published:
        name, equals, path = given.partition("=")
        if not equals:
            raise InvalidArgument("--published", "a name, =, and the path of its weights", repr(given))
        loaded.append(load_resolver(name, folder, published=path, device=device))
    return loaded


def _limited(pairs: Pairs, limit: int | None) -> Pairs:
    if limit is None:
        return pairs
    if limit < 1:
        raise InvalidArgument("--limit", "1 or more", limit)
    return Pairs(pairs.large[:limit], pairs.small[:limit], pairs.names[:limit], pairs.label)


def _earlier(path: Path | None) -> dict[str, Any]:
    """What a result file of this command holds already, and the commands that measured it."""
    if path is None or not path.exists():
        return {"commands": [], "resolvers": {}, "sets": {}}
    held = json.loads(path.read_text(encoding="utf-8"))
    if not {"resolvers", "sets"} <= set(held):
        raise InvalidArgument("--json", "a file that this command wrote, or none yet", path)
    commands = held.get("commands", [held["command"]] if "command" in held else [])
    return {"commands": commands, "resolvers": held["resolvers"], "sets": held["sets"]}


def set_table(result: dict[str, Any], label: str) -> Table:
    """The rows of one set, best LPIPS and PSNR in bold."""
    entry = result["sets"][label]
    table = Table(title=f"x4 on {label} ({entry['images']} photographs)")
    table.add_column("by", no_wrap=True)
    for heading in (*(title for _, title, _ in _COLUMNS), "1000 parameters", "ms / megapixel", "1000 patches seen"):
        table.add_column(heading, justify="right")
    best = {key: (min if key == "lpips" else max)(row[key] for row in entry["rows"].values()) for key, _, _ in _COLUMNS}
    for title, row in entry["rows"].items():
        facts = result["resolvers"][title]
        cells = [
            f"[bold]{row[key]:.{digits}f}[/bold]" if row[key] == best[key] else f"{row[key]:.{digits}f}"
            for key, _, digits in _COLUMNS
        ]
        seen = f"{facts['patches_seen'] / 1000:,.1f}" if "patches_seen" in facts else ""
        size = f"{facts['parameters'] / 1000:,.0f}" if facts["parameters"] else ""
        table.add_row(title, *cells, size, f"{row['ms_per_megapixel']:,.0f}", seen)
    table.caption = "PSNR RGB: no border left out; PSNR luma: 4 pixels left out; LPIPS (AlexNet): lower is better"
    return table


def draw_strips(resolvers: Sequence[Resolver], pairs: Pairs, count: int) -> np.ndarray:
    """A sheet: one photograph a row, one super-resolver a column, the photograph itself at the right."""
    rows = []
    for row in strip_rows(resolvers, pairs, count):
        captions = [(title, f"{value:.2f} dB") for title, value, _ in row["parts"]]
        frames = [frame for _, _, frame in row["parts"]]
        rows.append(
            Strip(frames, captions, label=row["name"], reference=(row["clean"], ("photograph", "")), steps=False)
        )
    return contact_sheet(rows, title=f"Super-resolution by four: {pairs.label}", scale=2)
