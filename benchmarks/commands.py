"""The commands of this folder: ``restoration-env gains`` and ``restoration-env compare``."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from restoration_env.agents.agent import load_agent
from restoration_env.agents.policies import RandomPolicy, StopAtOnce
from restoration_env.agents.reference import best_fixed_chain
from restoration_env.benchmarks.comparison import Entry, Rows
from restoration_env.benchmarks.comparison import compare as compare_on
from restoration_env.benchmarks.gain_matrix import as_json, diagonal, draw_matrices, gain_matrix
from restoration_env.benchmarks.owan import load_owan
from restoration_env.benchmarks.published import load_published
from restoration_env.benchmarks.suites import patch_suite
from restoration_env.cli import progress_bar
from restoration_env.distortions import SEVERITY_RANGES, recipe
from restoration_env.files import write_json
from restoration_env.provenance import provenance
from restoration_env.registry import load_toolbox
from restoration_env.rendering import save_png
from restoration_env.tools.catalogue import CATALOGUE, WEIGHTS

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
            text = Path(value).name if option in ("images", "published", "owan", "choose_on") else value
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
    toolboxes = {"ours" if name == "cnn12" else name: load_toolbox(name) for name in names}
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
    options = {"images": images, "split": split, "count": count, "toolbox": ",".join(names), "published": published}
    if json_path:
        write_json(json_path, {**provenance(_command("gains", **options)), **result})
    if picture:
        save_png(picture, draw_matrices(matrices, tools_in_order, [band.name for band in bands]))
    if update_cards and "ours" in matrices:
        for name, gain in zip(tools_in_order, diagonal(matrices["ours"]), strict=True):
            path = WEIGHTS / "cnn12" / f"{name}.json"
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


@click.command()
@_images
@_split
@_published
@_json
@click.option("--count", default=1000, show_default=True, help="Patches of each severity.")
@click.option("--choose-on", default="bundled", show_default=True, help="Other images, to choose fixed chains.")
@click.option("--agent", "agents", multiple=True, default=["toolchain"], help="A name or a path; may be repeated.")
@click.option("--owan", type=click.Path(), help="OWAN's model_best.pth, to measure beside ours.")
@click.option("--chains", default=1, show_default=True, help="The longest fixed chain to search (1, 2 or 3 tools).")
@click.option("--oracle", type=click.Choice(["greedy", "exhaustive", "none"]), default="greedy", show_default=True)
@click.option("--rows", "rows_path", type=click.Path(path_type=Path), help="Keep measured rows here, and use them.")
@click.option("--looks", is_flag=True, help="Also measure LPIPS.")
def compare(
    images: str,
    split: str,
    published: str | None,
    json_path: str | None,
    count: int,
    choose_on: str,
    agents: tuple[str, ...],
    owan: str | None,
    chains: int,
    oracle: str,
    rows_path: Path | None,
    looks: bool,
) -> None:
    """Measure policies on mild, moderate and severe damage, and their regret to the oracle of their tools.

    With --json, a comparison that was interrupted goes on where it stopped.
    """
    entries = list(_entries(agents, published, owan, choose_on, chains))
    options = {
        "images": images,
        "split": split,
        "count": count,
        "choose_on": choose_on,
        "agent": ",".join(Path(agent).stem for agent in agents),
        "chains": chains,
        "oracle": oracle,
        "published": published,
        "owan": owan,
        "looks": looks,
    }
    made = provenance(_command("compare", **options))
    part = rows_path or (Path(f"{json_path}.part") if json_path else None)
    rows = Rows(part)
    suites: dict[str, Any] = {}
    with progress_bar() as bar:
        boxes = len({entry.toolbox.name for entry in entries if len(entry.toolbox) > 1}) if oracle != "none" else 0
        task = bar.add_task("suites", total=len(SEVERITY_RANGES) * (len(entries) + boxes), note="")

        def note(text: str) -> None:
            bar.update(task, note=text)
            bar.advance(task)

        for severity in SEVERITY_RANGES:
            suite = patch_suite(images, split, recipe(severity), count)
            facts = {"patches": count, "images": suite.source, "sha256": suite.digest}
            suites[severity] = {
                **facts,
                "rows": compare_on(entries, suite, rows, oracle=oracle, looks=looks, note=note),
            }
    if json_path:
        write_json(json_path, {**made, "suites": suites})
        if part and part != rows_path:
            part.unlink(missing_ok=True)
    Console().print(comparison_table(suites))


def _entries(
    agents: Sequence[str], published: str | None, owan: str | None, choose_on: str, chains: int
) -> Iterator[Entry]:
    """The input, chance and fixed chains with the first agent's tools, the agents, the published system."""
    loaded = [load_agent(agent) for agent in agents]
    tools = loaded[0].toolbox
    yield Entry("input", StopAtOnce(tools), tools)
    yield Entry("random", RandomPolicy(tools), tools)
    if chains:
        chosen_on = patch_suite(choose_on, "train", recipe("any"), 200)
        for length in range(1, chains + 1):
            width = None if length == 1 else 6
            chain = best_fixed_chain(tools, chosen_on.clean, chosen_on.damaged, length=length, width=width)
            yield Entry(chain.name, chain, tools, len(chosen_on.clean))
    for name, agent in zip(agents, loaded, strict=True):
        training = agent.card.get("training", {})
        seen = agent.card.get("images_seen", training.get("episodes_done"))
        yield Entry(f"{Path(name).stem} ({agent.toolbox.name})", agent, agent.toolbox, seen, agent.card.get("seconds"))
    if published:
        theirs = load_published(published)
        yield Entry(theirs.name, theirs, theirs.toolbox)
    if owan:
        single = load_owan(owan)
        yield Entry(single.name, single, single.toolbox)


def comparison_table(suites: dict[str, Any]) -> Table:
    """Gain, harm and tools used of each policy on each severity."""
    table = Table(title="PSNR gain over the input in dB (share of the oracle's gain, harmed images, mean tools)")
    table.add_column("policy")
    for severity, suite in suites.items():
        table.add_column(f"{severity}\ninput {suite['rows'][0]['psnr_in']:.2f}", justify="right")
    for group in zip(*(suite["rows"] for suite in suites.values()), strict=True):
        cells = [
            f"{row['gain']:+.2f} ({row.get('captured') or 0:.0%}, {row['harmed']:.1%}, {row['mean_tools']:.1f})"
            for row in group
        ]
        table.add_row(group[0]["policy"], *cells)
    return table


def read_result(path: str | Path) -> dict[str, Any]:
    """A result file."""
    return json.loads(Path(path).read_text(encoding="utf-8"))
