"""The command ``restoration-env speed``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console
from rich.table import Table

from restoration_env.benchmarks import speed as measures
from restoration_env.benchmarks.speed_convolutions import muon_steps, training_steps
from restoration_env.benchmarks.speed_photo import photograph
from restoration_env.benchmarks.speed_picture import draw_speed
from restoration_env.benchmarks.speed_training import training
from restoration_env.cli import progress_bar
from restoration_env.devices import find_device, has_loops, imitates_bfloat16, keep_freed_memory, processor_units
from restoration_env.errors import InvalidArgument
from restoration_env.files import write_json
from restoration_env.provenance import provenance
from restoration_env.rendering import save_png
from restoration_env.winograd import check_convolutions

SIZES = (1, 8, 64, 256, 1024, 4096)
ON_A_GPU = (
    "steps a second at N = 4,096 (100,000 wanted) and share of the GPU's own rate (50 % wanted)",
    "resets a second (200,000 wanted)",
    "cost of a step flat from N = 1,024 to 16,384",
    "no synchronisation within a step, under torch.cuda.set_sync_debug_mode('error')",
)


@click.command()
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:N or auto.")
@click.option("--threads", type=int, help="Threads of torch; all cores if not given.")
@click.option("--quick", is_flag=True, help="Only the ratio at N = 64, in well under a minute.")
@click.option("--training-step", is_flag=True, help="Only a training step, by each way to compute convolutions.")
@click.option("--images", default="bundled", show_default=True, help="Test images for the agreement of the results.")
@click.option("--split", default="test", show_default=True, help="Part of the test images, or all.")
@click.option("--count", type=int, help="Patches of each severity for the agreement.  [default: 300, quick: 32]")
@click.option("--json", "json_path", type=click.Path(), help="Write the numbers here.")
@click.option("--picture", type=click.Path(), help="Draw steps a second against N, and the growth, here (PNG).")
def speed(
    device: str,
    threads: int | None,
    quick: bool,
    training_step: bool,
    images: str,
    split: str,
    count: int | None,
    json_path: str | None,
    picture: str | None,
) -> None:
    """Measure how fast the environments are on this machine, and how near to its limit."""
    if threads is not None and threads < 1:
        raise InvalidArgument("--threads", "1 or more", threads)
    if count is not None and count < 1:
        raise InvalidArgument("--count", "1 or more", count)
    if picture and not picture.lower().endswith(".png"):
        raise InvalidArgument("--picture", "a path that ends in .png", repr(picture))
    if picture and (quick or training_step):
        raise InvalidArgument("--picture", "left out with --quick and --training-step, which measure one N or none")
    torch.set_num_threads(threads or torch.get_num_threads())
    where = find_device(device)
    if training_step:
        if where.type != "cpu":
            raise InvalidArgument("--device", "cpu with --training-step", repr(device))
        check_convolutions("winograd")
    keep_freed_memory()
    words = ["restoration-env speed", f"--device {where}", f"--threads {torch.get_num_threads()}"]
    words += ["--quick"] if quick else []
    words += ["--training-step"] if training_step else [f"--images {Path(images).name} --split {split}"]
    words += [f"--count {count}"] if count else []
    result: dict[str, Any] = {
        **provenance(" ".join(words), where),
        "processor": processor_units(),
        "numba": has_loops(where),
    }
    with progress_bar() as bar:
        task = bar.add_task("speed", total=None, note="")

        def note(text: str) -> None:
            bar.update(task, note=text)

        if training_step:
            result["training_steps"] = training_steps(note=note)
            result["muon_steps"] = muon_steps(note=note)
        else:
            result.update(_measure(str(where), quick, (images, split, count), note))
    if json_path:
        write_json(json_path, result)
    if picture:
        save_png(picture, draw_speed(result))
    console = Console()
    for table in tables(result):
        console.print(table)


def _measure(device: str, quick: bool, suite: tuple[str, str, int | None], note: measures.Note) -> dict[str, Any]:
    ways = measures.contenders(device)
    if quick:
        precision = "float32" if imitates_bfloat16(device) else "bfloat16"
        ways = [way for way in ways if way.name in (f"torch {precision}", "openvino int8")]
    images, split, count = suite
    result: dict[str, Any] = {
        "agreement_db": measures.agreement(ways, images, split, count or (32 if quick else 300), device, note)
    }
    on_gpu = device.startswith("cuda")
    turns = {"rounds": 3, "seconds": 0.8} if quick or on_gpu else {"rounds": 7, "seconds": 1.5}
    rates = measures.against_naive(ways, 64, device, note=note, **turns)  # type: ignore[arg-type]
    best = measures.fastest_that_agrees(rates, result["agreement_db"])
    result |= {"environments": 64, "rates": rates, "fastest": best, "ratio_to_naive": rates[best]["ratio_to_naive"]}
    if not quick:
        fastest = next(way for way in ways if way.name == best)
        shown = [way for way in ways if way.name in (best, "torch float32")]
        seconds = 0.7 if on_gpu else 2.0
        result["sweep"] = {way.name: measures.sweep(way, SIZES, device, seconds=seconds, note=note) for way in shown}
        result["growth"] = measures.growth(fastest, device, quick=False, note=note)
        tiled = [way.name for way in ways]
        result["photograph"] = photograph(tiled, device, turns=1 if on_gpu else 2, note=note)
        result["training"] = training(fastest, device, note=note)
        if on_gpu:
            sizes = (*SIZES, 16_384)
            result["sweep"][best] |= measures.sweep(fastest, sizes[-1:], device, seconds=seconds, note=note)
            result["graphs"] = measures.recorded(fastest, sizes)
            result["synchronisations_in_8_steps"] = measures.synchronisations(fastest)
    result["not_run"] = [] if on_gpu else [f"on a GPU: {what}" for what in ON_A_GPU]
    return result


def tables(result: dict[str, Any]) -> list[Table]:
    """What was measured, for a terminal."""
    if "training_steps" in result:
        return [_steps_table(result)]
    rates, agree = result["rates"], result["agreement_db"]
    title = f"{result['device']}, {result['threads']} threads, N = {result['environments']}"
    table = Table("environments", "steps/s", "times naive", "share of limit", "largest dB off", title=title)
    for name, row in rates.items():
        cells = [f"{row['steps_per_second']:,.0f}"]
        if name != "naive":
            off = agree.get(name, {}).get("largest")
            cells += [
                f"{row['ratio_to_naive']:.2f}",
                f"{row['share_of_limit']:.0%}",
                "" if off is None else f"{off:.4f}",
            ]
        table.add_row(name, *cells)
    shown = [table]
    if "sweep" in result:
        shown.append(_sweep_table(result["sweep"]))
        growth = Table("a step's time grows with", "exponent", "that of the work", title="growth")
        for what, row in result["growth"].items():
            growth.add_row(what, f"{row['exponent']:.2f}", f"{row['exponent_of_the_work']:.0f}")
        photo = Table("1920x1080, three tools", "seconds", "times faster", "peak MiB", "times less", title="photograph")
        for way, row in result["photograph"].items():
            if isinstance(row, dict):
                ratios = (row.get("times_faster", ""), row.get("times_less_memory", ""))
                photo.add_row(way, f"{row['seconds']:.2f}", str(ratios[0]), f"{row['peak_mib']:.0f}", str(ratios[1]))
        train = Table("training", "frames/s", "environments", "policy", "copies", title="learning loops")
        for name, row in result["training"].items():
            shares = [f"{row['shares'][part]:.0%}" for part in ("environments", "policy", "copies")]
            train.add_row(name, f"{row['frames_per_second']:,.0f}", *shares)
        shown += [growth, photo, train]
    return shown


def _steps_table(result: dict[str, Any]) -> Table:
    title = f"milliseconds a patch | times as fast as direct\n{result['device']}, {result['threads']} threads"
    steps = result["training_steps"]
    muon = result["muon_steps"]
    heads = [*next(iter(steps.values())), *(f"Muon, ms a step: {kind}" for kind in next(iter(muon.values())))]
    table = Table("a training step of", *heads, title=title)
    for name, ways in steps.items():
        cells = [f"{way['milliseconds_per_patch']:.1f} | {way['times_faster']:.2f}" for way in ways.values()]
        table.add_row(name, *cells, *(f"{milliseconds:.0f}" for milliseconds in muon[name].values()))
    return table


def _sweep_table(sweep: dict[str, Any]) -> Table:
    table = Table("N", *(f"{name}\nsteps/s | resets/s" for name in sweep), title="environments side by side")
    for count in max(sweep.values(), key=len):
        cells = [rows.get(count) for rows in sweep.values()]
        shown = [f"{c['steps_per_second']:,.0f} | {c['resets_per_second']:,.0f}" if c else "" for c in cells]
        table.add_row(count, *shown)
    return table
