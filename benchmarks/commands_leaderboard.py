"""The commands ``restoration-env leaderboard run|validate|show|add|submit|template|suites``."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console

from restoration_env.benchmarks.board import BOARD, latency_path, markdown, read_board, read_result, suite_table
from restoration_env.benchmarks.entries import Sources, entry_names, load_entry
from restoration_env.benchmarks.keeping import with_board
from restoration_env.benchmarks.latency import latencies
from restoration_env.benchmarks.leaderboard import PATCH_SUITES, Protocol, Store, Tell, one_by_one
from restoration_env.benchmarks.leaderboard import run as run_jobs
from restoration_env.benchmarks.ray_jobs import ray_cluster
from restoration_env.benchmarks.submission import write_submission, write_template
from restoration_env.benchmarks.suites import SUITES, build_suite
from restoration_env.benchmarks.validate import InvalidSubmission, add_to_board, check_suites
from restoration_env.benchmarks.validate import validate as recompute
from restoration_env.cli import progress_bar
from restoration_env.devices import keep_freed_memory
from restoration_env.files import write_json
from restoration_env.provenance import provenance

_STORE = "runs/leaderboard"
_PATHS = ("images", "real", "published", "owan", "weights", "choose_on")


def _options(*options: Callable[..., Any]) -> Callable[..., Any]:
    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


suite_options = _options(
    click.option("--suite", "suites", multiple=True, type=click.Choice(list(SUITES)), help="May be repeated."),
    click.option("--images", default="bundled", show_default=True, help="Clean images: a folder, bundled or div2k."),
    click.option("--split", default="test", show_default=True, help="Part of the images, or all."),
    click.option("--count", type=int, help="Images of each suite.  [default: 1000 patches, 8 whole images]"),
    click.option("--seeds", default=1, show_default=True, help="Suites of each kind, each with damage of its own."),
    click.option("--real", default="bundled-real", show_default=True, help="Photographs of the suite real."),
    click.option("--looks/--no-looks", default=True, show_default=True, help="Measure LPIPS."),
)
source_options = _options(
    click.option("--published", default="", help="RL-Restore's weights.npz, to measure beside ours."),
    click.option("--owan", default="", help="OWAN's model_best.pth, to measure beside ours."),
    click.option("--weights", default="", help="Folder of single networks, instead of those that ship."),
    click.option("--choose-on", default="bundled", show_default=True, help="Other images, to choose fixed chains."),
    click.option("--oracle", default="greedy", show_default=True, help="greedy, beam, exhaustive or none."),
    click.option("--max-steps", default=3, show_default=True, help="Actions of an episode."),
    click.option("--precision", default="float32", show_default=True, help="Of the tools: float32 or bfloat16."),
)
store_option = click.option("--store", default=_STORE, show_default=True, help="Folder of what has been measured.")
ray_options = _options(
    click.option(
        "--ray", is_flag=False, flag_value="local", help="Do the jobs on a Ray cluster: local, or its address."
    ),
    click.option("--workers", type=int, help="Jobs at once on a local cluster.  [default: one a core]"),
)
_board = click.argument("board", type=click.Path(path_type=Path), default=BOARD)
_SOURCES = ("published", "owan", "weights", "choose_on", "oracle", "max_steps", "precision")


def given(settings: dict[str, Any]) -> tuple[Protocol, Sources]:
    """The protocol and the sources that the options of a command name."""
    sources = Sources(**{name: settings.pop(name) for name in _SOURCES})
    settings["suites"] = tuple(settings["suites"]) or PATCH_SUITES
    return Protocol(**settings), sources


def command_line(words: str, protocol: Protocol, sources: Sources, entries: tuple[str, ...]) -> str:
    """The command line with folders shortened to their names, so that it reads the same on every machine."""
    parts = [f"restoration-env leaderboard {words}", *(Path(e).name if "/" in e else e for e in entries)]
    for given, default in ((protocol, Protocol()), (sources, Sources())):
        for name, value in asdict(given).items():
            if value == getattr(default, name):
                continue
            if name == "suites":
                parts += [f"--suite {suite}" for suite in value]
            elif name == "looks":
                parts.append("--no-looks")
            else:
                text = Path(str(value)).name if name in _PATHS else str(value)
                parts.append(f"--{name.replace('_', '-')} {text}")
    return " ".join(parts)


def asdict_short(protocol: Protocol) -> dict[str, Any]:
    """A protocol as tables hold it, with folders shortened to their names."""
    return {**asdict(protocol), **{name: Path(getattr(protocol, name)).name for name in ("images", "real")}}


def timed(names: Sequence[str], sources: Sources, path: Path, made: Mapping[str, Any], tell: Tell) -> None:
    """Time entries on bundled patches, and keep it beside the table."""
    loaded, seen = {name: load_entry(name, sources) for name in names}, 0

    def note(label: str) -> None:
        nonlocal seen
        tell(seen, len(loaded), f"timing {label}")
        seen += 1

    latencies(loaded, build_suite("moderate", count=64), path, made, note)
    tell(len(loaded), len(loaded), "")


@click.command()
@click.argument("entries", nargs=-1)
@suite_options
@source_options
@store_option
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write the table here.")
@click.option(
    "--keep", type=click.Path(path_type=Path), help="Take over the other rows of this earlier table; nothing is timed."
)
@click.option("--latency/--no-latency", default=True, show_default=True, help="Time entries, beside the table.")
@ray_options
@click.option("--threads", default=1, show_default=True, help="CPU threads.")
def run(
    entries: tuple[str, ...],
    store: str,
    json_path: Path | None,
    keep: Path | None,
    latency: bool,
    ray: str | None,
    workers: int | None,
    threads: int,
    **settings: Any,
) -> None:
    """Measure ENTRIES (all there are, if none is named) on suites, and the oracles of their toolboxes.

    What has been measured is kept in the store: a run that was interrupted goes on, and ends with the same table.
    """
    torch.set_num_threads(threads)
    keep_freed_memory()
    protocol, sources = given(settings)
    names = entries or entry_names(sources)
    earlier = read_result(keep) if keep else None
    words = command_line("run", protocol, sources, entries) + (f" --keep {keep.name}" if keep else "")
    made = provenance(words)
    with progress_bar() as bar, ExitStack() as stack:
        task = bar.add_task("jobs", total=None, note="loading")
        spread = stack.enter_context(ray_cluster(ray, workers)) if ray else one_by_one

        def tell(done: int, total: int, note: str) -> None:
            bar.update(task, completed=done, total=total, note=note)

        table = run_jobs(names, protocol, sources, store, spread=spread, tell=tell)
        board = {**made, "protocol": asdict_short(protocol), "suites": table}
        if earlier:
            board = with_board(board, earlier, sources)
        if json_path:
            write_json(json_path, board)
        if json_path and latency and not keep:  # times of different runs do not compare
            timed(names, sources, latency_path(json_path), made, tell)
    shown, console = read_board(json_path) if json_path else board, Console()
    for name, suite in shown["suites"].items():
        console.print(suite_table(name, suite, width=console.width))


@click.command()
@_board
@click.option("--suite", "suites", multiple=True, help="Only this one; may be repeated.")
@click.option("--sort", default="gain", show_default=True, help="Column to sort by, as it is called in the JSON.")
@click.option("--markdown", "as_markdown", is_flag=True, help="Print Markdown.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with the milliseconds in it.")
def show(board: Path, suites: tuple[str, ...], sort: str, as_markdown: bool, as_json: bool) -> None:
    """Show the table in BOARD, or that of the checkout."""
    table, console = read_board(board), Console()
    table["suites"] = {name: suite for name, suite in table["suites"].items() if not suites or name in suites}
    if as_json:
        click.echo(json.dumps(table, indent=2))
    elif as_markdown:
        click.echo(markdown(table))
    else:
        for name, suite in table["suites"].items():
            console.print(suite_table(name, suite, sort, console.width))


@click.command()
@click.argument("entry")
@click.option("-o", "--output", required=True, help="Folder to write.")
@click.option("--authors", default="", help="Who made it.")
@click.option("--link", default="", help="Paper or code.")
@suite_options
@source_options
@store_option
def submit(entry: str, output: str, authors: str, link: str, store: str, **settings: Any) -> None:
    """Measure ENTRY and write its submission: card, results, actions, and weights."""
    protocol, sources = given(settings)
    with progress_bar() as bar:
        task = bar.add_task(entry, total=None, note="")
        run_jobs(
            [entry], protocol, sources, store, tell=lambda done, total, _: bar.update(task, completed=done, total=total)
        )
    about = {"authors": authors, "link": link, **provenance(command_line("submit", protocol, sources, (entry,)))}
    folder = write_submission(entry, protocol, sources, Store(store), output, about)
    Console().print(f"written to {folder}; check it with `restoration-env leaderboard validate {folder}`")


@click.command()
@click.argument("folder")
@suite_options
def template(folder: str, **settings: Any) -> None:
    """Write a submission to fill in: the damaged images, and a card with blanks."""
    settings["suites"] = tuple(settings["suites"]) or PATCH_SUITES
    protocol = Protocol(**settings)
    written = write_template(folder, protocol)
    Console().print(f"restore {written}/input/SUITE/*.png into {written}/images/SUITE/, and fill in card.json")


@click.command()
@click.argument("folder")
@click.option("--images", default="", help="The clean images, where they are not bundled.")
@click.option("--real", default="", help="The photographs of the suite real.")
@click.option("--published", default="", help="RL-Restore's weights.npz.")
@click.option("--owan", default="", help="OWAN's model_best.pth.")
@click.option("--json", "as_json", is_flag=True, help="Print the recomputed numbers.")
def validate(folder: str, images: str, real: str, published: str, owan: str, as_json: bool) -> None:
    """Recompute every number of the submission in FOLDER from images, and refuse it if one differs."""
    rows = _validated(folder, images, real, Sources(published=published, owan=owan))
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    console = Console()
    for name, row in rows.items():
        shown = {"rows": [row], "patches": row["images"], "images": folder}
        console.print(suite_table(name, shown, width=console.width))
    console.print("valid: suites, weights, actions, rewards and numbers are what the submission says")


@click.command()
@click.argument("folder")
@_board
@click.option("--images", default="", help="The clean images, where they are not bundled.")
@click.option("--real", default="", help="The photographs of the suite real.")
@click.option("--published", default="", help="RL-Restore's weights.npz.")
@click.option("--owan", default="", help="OWAN's model_best.pth.")
@click.option("--replace", "replace_row", is_flag=True, help="Take the place of the row of this name.")
def add(folder: str, board: Path, images: str, real: str, published: str, owan: str, replace_row: bool) -> None:
    """Validate the submission in FOLDER, and add it to the table in BOARD."""
    table = read_result(board)
    check_suites(folder, table)
    rows = _validated(folder, images, real, Sources(published=published, owan=owan))
    write_json(board, add_to_board(table, rows, replace_row=replace_row))
    Console().print(f"added to {board}: {next(iter(rows.values()))['policy']}")


def _validated(folder: str, images: str, real: str, sources: Sources) -> dict[str, Any]:
    try:
        return recompute(folder, images=images, real=real, sources=sources)
    except InvalidSubmission as error:
        for problem in error.problems:
            click.echo(f"refused: {problem}", err=True)
        raise


@click.command()
@suite_options
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write the digests here.")
def suites(json_path: Path | None, suites: tuple[str, ...], **settings: Any) -> None:
    """Build suites and print the sha256 of their bytes."""
    protocol = Protocol(suites=tuple(suites) or tuple(SUITES), **settings)
    found = {}
    for name in protocol.suites:
        suite = protocol.build(name)
        found[name] = {"images": suite.source, "count": len(suite), "sha256": suite.digest}
        if not json_path:
            click.echo(f"{suite.digest}  {name}, {len(suite)} images from {suite.source}")
    if json_path:
        write_json(json_path, {**provenance(command_line("suites", protocol, Sources(), ())), "suites": found})
