"""The commands of this folder: ``restoration-env restore`` and ``restoration-env demo``."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from restoration_env.agents.agent import DEFAULT_AGENT
from restoration_env.agents.demo import contact_sheet_of, play
from restoration_env.agents.jobs import check, plan, write_steps
from restoration_env.agents.photo import check_target, find_agent, restore_file
from restoration_env.cli import progress_bar
from restoration_env.errors import InvalidArgument
from restoration_env.rendering import save_png

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_device = click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:N or auto.")
_precision = click.option(
    "--precision", type=click.Choice(["float32", "bfloat16", "int8"]), default="float32", show_default=True
)
_backend = click.option(
    "--backend", default="torch", show_default=True, help="What computes the tools: torch or openvino."
)
_agent = click.option(
    "--agent", default=DEFAULT_AGENT, show_default=True, help="Its name or its weights; AGENT@TOOLBOX for other tools."
)
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")


@click.command()
@click.argument("photos", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="A file, or a folder for several.")
@click.option("--steps", type=click.Path(path_type=Path), help="Folder for the photograph after each step.")
@click.option("--overwrite", is_flag=True, help="Replace files that are there.")
@_device
@_precision
@_backend
@_agent
@_json
def restore(
    photos: tuple[Path, ...],
    output: Path,
    steps: Path | None,
    overwrite: bool,
    device: str,
    precision: str,
    backend: str,
    agent: str,
    as_json: bool,
) -> None:
    """Restore damaged photographs of any size.

    PHOTOS are image files or folders of them. One file may be written to a file of any name; several, and
    those in folders, are written as PNG of the same name into the folder that -o names.
    """
    jobs = plan(photos, output, steps)
    loaded = find_agent(agent, device, precision, backend)
    check(jobs, overwrite)
    done: list[dict[str, Any]] = []
    skipped: list[str] = []
    with progress_bar() as bar:
        task = bar.add_task("", total=None, note="")
        for number, job in enumerate(jobs, 1):
            bar.reset(task, description=escape(f"{number}/{len(jobs)} {job.source.name}"), note="tiles")
            began = time.perf_counter()
            try:
                result = restore_file(
                    job.source,
                    job.target,
                    loaded,
                    overwrite=overwrite,
                    keep_frames=steps is not None,
                    progress=_shown(bar, task),
                )
                written = write_steps(job, result)
            except InvalidArgument as error:
                if job.named:
                    raise
                skipped.append(str(error))
                bar.console.print(Text(f"skipped: {error}"), soft_wrap=True)
                continue
            except OSError as error:  # as on a full disk
                raise click.ClickException(f"{job.target} could not be written: {error}") from None
            done.append(
                {
                    "photo": str(job.source),
                    "restored": str(job.target),
                    "width": result.image.shape[1],
                    "height": result.image.shape[0],
                    "toolchain": list(result.toolchain),
                    "steps": written,
                    "seconds": round(time.perf_counter() - began, 2),
                }
            )
    if as_json:
        click.echo(json.dumps({"agent": agent, "photos": done, "skipped": skipped}, indent=2))
    elif done:
        table = Table("photo", "size", "tools", "seconds", "restored")
        for row in done:
            tools, size = " > ".join(row["toolchain"]) or "none", f"{row['width']}x{row['height']}"
            table.add_row(*map(Text, (row["photo"], size, tools, f"{row['seconds']:.1f}", row["restored"])))
        Console().print(table)
    if not done:
        raise InvalidArgument("photos", "readable", f"{len(skipped)} that are not")


def _shown(bar: Progress, task: TaskID) -> Callable[[int, int], None]:
    return lambda done, total: bar.update(task, completed=done, total=total)


@click.command()
@click.option(
    "-o", "--output", default="demo.png", show_default=True, help="The contact sheet (PNG), replaced if there."
)
@click.option("--severity", default="moderate", show_default=True, help="mild, moderate, severe, ...")
@click.option("--seed", default=0, show_default=True, help="Of the damage.")
@_device
@_precision
@_backend
@_agent
@_json
def demo(
    output: str, severity: str, seed: int, device: str, precision: str, backend: str, agent: str, as_json: bool
) -> None:
    """Damage bundled photographs, restore them, draw a contact sheet.

    The photographs are none of those that the tools and the agent were trained on.
    """
    if not output.lower().endswith(".png"):
        raise InvalidArgument("--output", "a path that ends in .png", repr(output))
    check_target(output, overwrite=True)
    rows = play(find_agent(agent, device, precision, backend), severity, seed)
    save_png(output, contact_sheet_of(rows, f"{severity} damage, seed {seed}"))
    if as_json:
        result = {"severity": severity, "seed": seed, "agent": agent, "picture": output}
        click.echo(json.dumps({**result, "photographs": [row.as_json() for row in rows]}, indent=2))
        return
    table = Table("photograph", "damage", "steps", "gain", title=f"{severity} damage, PSNR in dB")
    for row in rows:
        steps = "\n".join(f"{tool:<10} {value:.2f}" for tool, value in row.steps())
        table.add_row(row.name, row.damage(), steps, f"{row.gain:+.2f}")
    console = Console()
    console.print(table)
    console.print(Text(f"contact sheet: {output}"), soft_wrap=True)
