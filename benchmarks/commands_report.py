"""The commands ``restoration-env leaderboard report`` and ``restoration-env leaderboard paper``."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console

from restoration_env.agents.agent import agent_names
from restoration_env.benchmarks.ablations import ablation_table, ablations, difference_table, runtime_table
from restoration_env.benchmarks.board import BOARD, latency_path, markdown, read_board, read_result
from restoration_env.benchmarks.commands_leaderboard import (
    asdict_short,
    command_line,
    given,
    ray_options,
    source_options,
    store_option,
    suite_options,
    timed,
)
from restoration_env.benchmarks.comparison import Entry
from restoration_env.benchmarks.entries import Sources, entry_names, load_entry
from restoration_env.benchmarks.leaderboard import Tell, one_by_one, paired_differences, run
from restoration_env.benchmarks.networks import NETWORKS
from restoration_env.benchmarks.ray_jobs import ray_cluster
from restoration_env.benchmarks.report import pareto, write_report
from restoration_env.benchmarks.scenes import damaged_scenes, real_scenes, strips
from restoration_env.cli import progress_bar
from restoration_env.devices import keep_freed_memory
from restoration_env.errors import InvalidArgument
from restoration_env.files import replacing, write_json
from restoration_env.provenance import provenance
from restoration_env.rendering import save_png


@click.command()
@click.argument("board", type=click.Path(path_type=Path), default=BOARD)
@click.option("-o", "--output", default="report", show_default=True, help="Folder of the page.")
@click.option("--entry", "names", multiple=True, help="What to show pictures of; may be repeated; the first in steps.")
@click.option("--images", default="bundled", show_default=True, help="Clean images of the pictures.")
@click.option("--split", default="test", show_default=True, help="Part of the images, or all.")
@click.option("--real", default="bundled-real", show_default=True, help="Real photographs to show.")
@click.option("--ablations", "ablated", type=click.Path(path_type=Path), help="A file of ablations, to show as tables.")
@source_options
def report(
    board: Path,
    output: str,
    names: tuple[str, ...],
    images: str,
    split: str,
    real: str,
    ablated: Path | None,
    **settings: Any,
) -> None:
    """Write the table in BOARD as a web page: sortable, with plots of gain against cost and zoomable pictures."""
    _, sources = given({**settings, "suites": (), "images": images, "split": split, "real": real})
    table = read_board(board)
    further = read_result(ablated)["ablations"] if ablated else {}
    entries = _shown(names, sources)
    with progress_bar() as bar:
        bar.add_task("pictures", total=None, note="")
        scenes = [*damaged_scenes(entries, images, split), *real_scenes(entries, real)]
    tables = [(part["title"], ablation_table(part)) for part in further.values()]
    Console().print(f"written: {write_report(output, table, scenes, tables)}")


def _shown(names: tuple[str, ...], sources: Sources) -> list[Entry]:
    """The entries that pictures are made of: those named, or an agent, single networks and the published ones."""
    known = entry_names(sources)
    wanted = ("toolchain-modern", "toolchain-joint", "toolchain", "published", "owan", *NETWORKS)
    entries = [load_entry(name, sources) for name in names or [name for name in wanted if name in known]]
    for entry in entries:
        if hasattr(entry.policy, "model"):
            raise InvalidArgument("--entry", "one that takes images of any size", repr(entry.label))
    return entries


@click.command()
@click.argument("entries", nargs=-1)
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Folder of tables and figures.")
@click.option("--agent", default="toolchain", show_default=True, help="The agent whose tools were trained alone.")
@click.option("--joint", default="", help="The agent whose tools were trained jointly.  [default: of cnn12-joint]")
@click.option("--ablation-count", default=200, show_default=True, help="Patches of each suite in the ablations.")
@suite_options
@source_options
@store_option
@ray_options
@click.option("--latency/--no-latency", default=True, show_default=True, help="Time the entries.")
@click.option("--threads", default=1, show_default=True, help="CPU threads.")
def paper(
    entries: tuple[str, ...],
    output: Path,
    agent: str,
    joint: str,
    ablation_count: int,
    store: str,
    ray: str | None,
    workers: int | None,
    latency: bool,
    threads: int,
    **settings: Any,
) -> None:
    """Make the tables and figures of the paper again, from ENTRIES (all there are, if none is named).

    Writes the quantitative table, runtime and parameters, ablations (joint training, stop, tools, steps), strips of
    steps, real photographs, and the web page. What the store holds is not measured again.
    """
    torch.set_num_threads(threads)
    keep_freed_memory()
    protocol, sources = given(settings)
    names = entries or entry_names(sources)
    joint = joint or next((name for name in agent_names() if name.endswith("joint")), "")
    made = provenance(command_line("paper", protocol, sources, entries))
    with progress_bar() as bar, ExitStack() as stack:
        task = bar.add_task("table", total=None, note="loading")
        spread = stack.enter_context(ray_cluster(ray, workers)) if ray else one_by_one

        def telling(title: str) -> Tell:
            def tell(done: int, total: int, note: str) -> None:
                bar.update(task, description=title, completed=done, total=total, note=note)

            return tell

        suites = run(names, protocol, sources, store, spread=spread, tell=telling("table"))
        write_json(output / "leaderboard.json", {**made, "protocol": asdict_short(protocol), "suites": suites})
        few = type(protocol)(**{**asdict(protocol), "count": min(ablation_count, protocol.count or ablation_count)})
        found = ablations(agent, joint, few, sources, store, spread=spread, tell=telling)
        write_json(output / "ablations.json", {**made, "protocol": asdict_short(few), "ablations": found})
        if latency:
            timed(names, sources, latency_path(output / "leaderboard.json"), made, telling("timing"))
        telling("pictures")(0, 1, "")
        shown = _shown(tuple(n for n in names if n in (agent, joint, *NETWORKS, "published", "owan")), sources)
        scenes, real = damaged_scenes(shown), real_scenes(shown, protocol.real)
    board = read_board(output / "leaderboard.json")
    tables = [(part["title"], ablation_table(part)) for part in found.values()]
    best = joint or agent
    others = [name for name in names if name in (agent, *NETWORKS, "published", "owan") and name != best]
    if best in names and others:
        apart = paired_differences(best, others, protocol, sources, store)
        write_json(output / "differences.json", {**made, "entry": best, "differences": apart})
        tables.insert(0, ("Image by image", difference_table(load_entry(best, sources).label, apart)))
    singles = [entry.label for entry in shown if entry.family == "single network"]
    title = f"Each step of {shown[0].label}" + (f", and {singles[0]}" if singles else "")
    save_png(output / "strips.png", strips(scenes, singles[:1], title))
    save_png(output / "real.png", strips(real, singles[:1], "Photographs as they are"))
    write_report(output, board, [*scenes, *real], tables)
    for name, suite in board["suites"].items():
        _write(output / f"pareto-{name}.svg", pareto(suite["rows"]))
    runtime = [("Runtime and parameters", runtime_table(board))] if "moderate" in board["suites"] else []
    sections = [("Quantitative results", markdown(board)), *runtime, *tables]
    _write(output / "tables.md", "\n\n".join(f"## {title}\n\n{text}" for title, text in sections) + "\n")
    Console().print(f"written: {', '.join(sorted(path.name for path in output.iterdir() if path.is_file()))}")


def _write(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
