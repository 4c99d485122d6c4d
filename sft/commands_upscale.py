"""The commands ``restoration-env upscale`` and ``restoration-env sft-pictures``."""

from __future__ import annotations

import json
import time
from pathlib import Path

import click
import torch
from rich.console import Console
from rich.table import Table

from restoration_env.cli import progress_bar
from restoration_env.devices import find_device
from restoration_env.errors import InvalidArgument
from restoration_env.photos import check_suffix
from restoration_env.rendering import save_png
from restoration_env.sft import pictures as drawn
from restoration_env.sft.conditioning import CATEGORIES
from restoration_env.sft.super_resolver import load_super_resolver
from restoration_env.sft.upscale import upscale_file

_DEFAULT = "sft-psnr"


@click.command()
@click.argument("photo", type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The file to write.")
@click.option("--weights", default=_DEFAULT, show_default=True, help="A super-resolver by name, or its weights.")
@click.option("--segmenter", help="A segmenter's weights.  [default: the one that ships]")
@click.option("--category", help=f"Say what all of it is, without looking: {', '.join(CATEGORIES)}.")
@click.option("--overwrite", is_flag=True, help="Replace the file if it is there.")
@click.option("--device", default="auto", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def upscale(
    photo: Path,
    output: Path,
    weights: str,
    segmenter: str | None,
    category: str | None,
    overwrite: bool,
    device: str,
    as_json: bool,
) -> None:
    """Enlarge a photograph four times with the semantic super-resolver."""
    check_suffix(output, "output")
    if output.exists() and not overwrite:
        raise InvalidArgument("output", "a new file unless --overwrite is given", repr(str(output)))
    if category is not None and category not in CATEGORIES:
        raise InvalidArgument("category", f"one of {', '.join(CATEGORIES)}", repr(category))
    where = find_device(device)
    resolver = load_super_resolver(weights, where, segmenter)
    began = time.perf_counter()
    with progress_bar() as bar:
        task = bar.add_task(photo.name, total=None, note="tiles")
        made = upscale_file(
            photo,
            output,
            resolver,
            category=category,
            device=where,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    height, width = made.rgb.shape[:2]
    result = {
        "photo": str(photo),
        "enlarged": str(output),
        "width": width,
        "height": height,
        "weights": weights,
        "seconds": round(time.perf_counter() - began, 2),
    }
    if as_json:
        click.echo(json.dumps(result, indent=2))
        return
    table = Table("photo", "enlarged", "size", "weights", "seconds")
    table.add_row(str(photo), str(output), f"{width}x{height}", weights, f"{result['seconds']:.1f}")
    Console().print(table)


@click.command()
@click.argument("photos", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-o", "--output", default="runs/pictures", show_default=True, help="A folder for the pictures.")
@click.option("--weights", default=_DEFAULT, show_default=True, help="A super-resolver with modulation layers.")
@click.option("--against", multiple=True, help="Further weights for the comparison strips.")
@click.option("--side", default=192, show_default=True, help="Pixels of the middle of each photograph to show.")
@click.option("--channel", type=int, help="Of the modulation maps.  [default: the one that varies most]")
@click.option("--device", default="auto", show_default=True)
@click.option("--threads", default=0, help="CPU threads; 0 leaves torch's choice.")
def pictures(
    photos: tuple[Path, ...],
    output: str,
    weights: str,
    against: tuple[str, ...],
    side: int,
    channel: int | None,
    device: str,
    threads: int,
) -> None:
    """Draw the paper's figures of PHOTOS, which are shrunk by four first.

    priors.png: each photograph under each of the eight priors. modulation.png: gamma and beta of a channel beside the
    shares of the categories. comparison.png: bicubic, the resolvers, and the original. Photographs of no category of
    the paper's may be among them: they are enlarged as background too. What the resolver does not have is left out.
    """
    if threads:
        torch.set_num_threads(threads)
    where = find_device(device)
    first, *others = (load_super_resolver(name, where) for name in (weights, *against))
    crops = [drawn.middle(photo, side) for photo in photos]
    folder, conditioning = Path(output), getattr(first.network, "conditioning", "sft")
    figures = {"comparison": lambda: drawn.comparison(crops, [first, *others])}
    if conditioning != "none":
        figures["priors"] = lambda: drawn.prior_swap(crops, first)
    if conditioning == "sft":
        figures["modulation"] = lambda: drawn.modulation(crops, first, channel)
    with progress_bar() as bar:
        task = bar.add_task("pictures", total=len(figures), note="")
        for done, (name, draw) in enumerate(figures.items(), 1):
            save_png(folder / f"{name}.png", draw())
            bar.update(task, completed=done, note=name)
    for name in ("comparison", "priors", "modulation"):
        if name in figures:
            click.echo(folder / f"{name}.png")
        else:
            click.echo(f"{name}.png left out: the conditioning of {first.name} is {conditioning!r}", err=True)
