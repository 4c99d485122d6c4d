"""The command ``restoration-env gains``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from restoration_env.benchmarks.board import read_result
from restoration_env.benchmarks.gain_matrix import as_json, diagonal, draw_matrices, gain_matrix
from restoration_env.benchmarks.published import load_published
from restoration_env.benchmarks.suites import patch_suite
from restoration_env.cli import progress_bar
from restoration_env.files import write_json
from restoration_env.provenance import provenance
from restoration_env.registry import load_toolbox
from restoration_env.rendering import save_png
from restoration_env.tools.catalogue import CATALOGUE, TOOLBOXES

_images = click.option("--images", default="bundled", show_default=True, help="Folder or name of the test images.")
_split = click.option("--split", default="test", show_default=True, help="Part of the test images, or all.")
_published = click.option("--published", type=click.Path(), help="The authors' weights.npz, to measure beside ours.")
_json = click.option("--json", "json_path", type=click.Path(), help="Write the numbers here.")


def _command(name: str, **options: Any) -> str:
    """The command line with folders shortened to their names, so that it reads the same on every machine."""
    words = ["restoration-env", name]
    for option, value in options.items():
        if value is True:
            words.append(f"--{option.replace('_', '-')}")
        elif value is not None and value is not False:
            for one in value if isinstance(value, tuple) else (value,):
                text = Path(one).name if option in ("images", "published") else one
                words += [f"--{option.replace('_', '-')}", str(text)]
    return " ".join(words)


@click.command()
@_images
@_split
@_published
@_json
@click.option("--count", default=100, show_default=True, help="Patches of each band.")
@click.option("--toolbox", "names", multiple=True, default=["cnn12"], help="A toolbox of twelve; may be repeated.")
@click.option("--picture", type=click.Path(), help="Draw the matrix here (PNG).")
@click.option("--update-cards", is_flag=True, help="Write each tool's own-band gain into its card.")
def gains(
    images: str,
    split: str,
    published: str | None,
    json_path: str | None,
    count: int,
    names: tuple[str, ...],
    picture: str | None,
    update_cards: bool,
) -> None:
    """Apply every tool to every band of pure damage and report the gain matrix."""
    toolboxes = {name: load_toolbox(name) for name in names}
    if published:
        toolboxes["published"] = load_published(published).toolbox
    tools_in_order = [spec.name for spec in CATALOGUE]
    with progress_bar() as bar:
        task = bar.add_task("bands", total=len(CATALOGUE), note="")
        bands = []
        for spec in CATALOGUE:
            bands.append(patch_suite(images, split, spec.band, count, limit=50.0))
            bar.advance(task)
        matrices = {}
        for name, tools in toolboxes.items():
            bar.update(task, note=f"tools of {name}")
            matrices[name] = gain_matrix(tools, bands)
    result = as_json(matrices, tools_in_order, bands)
    options = {"images": images, "split": split, "count": count, "toolbox": names, "published": published}
    if json_path:
        write_json(json_path, {**provenance(_command("gains", **options)), **result})
    if picture:
        save_png(picture, draw_matrices(matrices, tools_in_order, [band.name for band in bands]))
    for toolbox in set(names) & set(TOOLBOXES) if update_cards else ():
        for name, gain in zip(tools_in_order, diagonal(matrices[toolbox]), strict=True):
            path = TOOLBOXES[toolbox].folder / f"{name}.json"
            write_json(path, {**read_result(path), "held_out_gain_db": gain, "held_out_images": bands[0].source})
    table = Table(title=f"Gain on the own band, dB ({bands[0].source})")
    for heading in ("tool", "band", *matrices):
        table.add_column(heading, justify="left" if heading in ("tool", "band") else "right")
    for row, (name, band) in enumerate(zip(tools_in_order, bands, strict=True)):
        table.add_row(name, band.name, *(f"{matrix[row][row]:+.2f}" for matrix in matrices.values()))
    table.add_section()
    means = [entry["mean_own_band"] for entry in result["toolboxes"].values()]
    table.add_row("mean", "", *(f"{mean:+.2f}" for mean in means))
    Console().print(table)
