"""The commands ``restoration-env study ...``: which picture people find more natural."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from restoration_env.benchmarks.study import Study, make_study
from restoration_env.benchmarks.study_analysis import analysis
from restoration_env.benchmarks.study_chart import draw_study
from restoration_env.benchmarks.study_server import study_server
from restoration_env.cli import progress_bar
from restoration_env.files import write_json
from restoration_env.provenance import provenance
from restoration_env.rendering import save_png

PHOTOGRAPH = "photograph"  # the method that is no method
_study = click.argument("path", metavar="STUDY", type=click.Path(path_type=Path))


@click.command()
@click.argument("names", nargs=-1, required=True)
@click.option("--scenes", required=True, type=click.Path(), help="Labelled scenes: their held-out part is taken.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder for method/category/scene.png.")
@click.option("--per-category", default=5, show_default=True, help="Scenes of each category.")
@click.option("--weights", type=click.Path(path_type=Path), help="Folder of the super-resolvers' weights.")
@click.option("--threads", default=0, help="CPU threads; 0 leaves torch's choice.")
def pictures(
    names: tuple[str, ...], scenes: str, out: Path, per_category: int, weights: Path | None, threads: int
) -> None:
    """Shrink held-out scenes by four, enlarge them by the super-resolvers NAMES, and write them beside the photographs.

    A scene counts to the category that most of it shows, background aside.
    """
    import torch

    from restoration_env.benchmarks.study_scenes import scenes_by_category
    from restoration_env.benchmarks.super_resolution import WEIGHTS, load_resolver
    from restoration_env.benchmarks.super_resolution_data import make_pairs
    from restoration_env.pixels import eight_bit

    if threads:
        torch.set_num_threads(threads)
    resolvers = [load_resolver(name, weights or WEIGHTS) for name in names]
    chosen = scenes_by_category(scenes, per_category)
    pairs = make_pairs([image for _, _, image in chosen], [name for name, _, _ in chosen])
    with progress_bar() as bar:
        task = bar.add_task("pictures", total=len(pairs) * len(resolvers), note="")
        for (name, category, _), large, small in zip(chosen, pairs.large, pairs.small, strict=True):
            file = Path(category) / f"{Path(name).stem}.png"
            save_png(out / PHOTOGRAPH / file, large.permute(1, 2, 0).numpy())
            for resolver in resolvers:
                made = eight_bit(resolver(small[None].float() / 255.0))[0]
                save_png(out / Path(resolver.name).stem / file, made.permute(1, 2, 0).numpy())
                bar.update(task, advance=1, note=f"{category}: {name}")
    methods = ", ".join((PHOTOGRAPH, *(Path(resolver.name).stem for resolver in resolvers)))
    Console().print(f"{len(pairs)} scenes by {methods} in {out}")


@click.command()
@_study
@click.option("--pictures", "folder", required=True, type=click.Path(path_type=Path), help="method/category/scene.png.")
@click.option("--ours", required=True, help="The method of part I.")
@click.option("--against", multiple=True, help="Another method of part I, against ours; may be repeated.")
@click.option("--ranked", multiple=True, help="A method of part II; repeat it for each.")
@click.option("--title", default="Which picture looks more natural?", show_default=True)
@click.option("--per-category", default=0, help="Scenes of each category.  [default: all]")
@click.option("--seed", default=0, show_default=True, help="Of the order in which everything is shown.")
def make(
    path: Path,
    folder: Path,
    ours: str,
    against: tuple[str, ...],
    ranked: tuple[str, ...],
    title: str,
    per_category: int,
    seed: int,
) -> None:
    """Make STUDY, one file that holds pictures, questions and, later, answers.

    The paper's: --ours sft-gan --against srgan --against enhancenet, and --ranked photograph --ranked sft-gan --ranked
    memnet --ranked srcnn.
    """
    study = make_study(path, folder, ours, against, ranked, title=title, per_category=per_category, seed=seed)
    Console().print(f"{study.questions} questions in {path}; show them with: restoration-env study serve {path}")


@click.command()
@_study
@click.option("--host", default="127.0.0.1", show_default=True, help="This machine only, unless another is named.")
@click.option("--port", default=8000, show_default=True)
def serve(path: Path, host: str, port: int) -> None:
    """Show the page of STUDY to raters until Ctrl-C. Every answer is kept at once."""
    study = Study(path)
    with study_server(study, host, port) as server:
        Console().print(f"{study.questions} questions at http://{host}:{server.server_port}/ (Ctrl-C ends)")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            Console().print(f"{len(study.answers())} answers in {path}")


@click.command()
@_study
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="The CSV file.")
def export(path: Path, out: Path) -> None:
    """Write the answers of STUDY as CSV."""
    Console().print(f"{Study(path).export(out)} answers in {out}")


@click.command()
@_study
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write the numbers here.")
@click.option("--chart", type=click.Path(path_type=Path), help="Draw the chart here (PNG).")
@click.option("--draws", default=1000, show_default=True, help="Of raters, for the intervals of the strengths.")
def analyse(path: Path, json_path: Path | None, chart: Path | None, draws: int) -> None:
    """Shares by category, shares of ranks, and Bradley-Terry strengths of STUDY."""
    study = Study(path)
    result = analysis(study.answers(), study.ours, draws=draws)
    if json_path:
        write_json(json_path, {**provenance(f"restoration-env study analyse {path.name}"), **result})
    if chart:
        save_png(chart, draw_study(result))
    console = Console()
    console.print(f"{result['raters']} raters, {json.dumps(result['answers'])} answers by part")
    for table in study_tables(result):
        console.print(table)


def study_tables(result: dict[str, Any]) -> list[Table]:
    """Part I, part II and the strengths, as far as there are answers."""
    tables = []
    if result["preferred"]:
        table = Table(title=f"Part I: {result['ours']} preferred (95 % interval)")
        table.add_column("category")
        others = list(result["preferred"])
        for other in others:
            table.add_column(f"to {other}", justify="right")
        categories = list(dict.fromkeys(name for rows in result["preferred"].values() for name in rows))
        for category in categories:
            cells = []
            for other in others:
                row = result["preferred"][other].get(category)
                share = f"{row['share']:.1%} ({row['low']:.0%} to {row['high']:.0%}) of {row['votes']}" if row else ""
                cells.append(share)
            table.add_row(category, *cells)
        tables.append(table)
    if result["ranks"]:
        table = Table(title="Part II: share of places")
        table.add_column("method")
        for place in range(len(next(iter(result["ranks"].values())))):
            table.add_column(f"{place + 1}.", justify="right")
        for method, shares in result["ranks"].items():
            table.add_row(method, *(f"{share:.1%}" for share in shares))
        tables.append(table)
    table = Table(title="Strength (Bradley-Terry, log odds; 95 % interval from drawing raters anew)")
    for heading in ("method", "strength", "interval"):
        table.add_column(heading, justify="left" if heading == "method" else "right")
    for method, row in result["strengths"].items():
        interval = f"{row['low']:+.2f} to {row['high']:+.2f}" if "low" in row else "one rater"
        table.add_row(method, f"{row['strength']:+.2f}", interval)
    return [*tables, table]
