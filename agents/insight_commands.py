"""The command ``restoration-env look``."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from restoration_env.agents.agent import DEFAULT_AGENT
from restoration_env.agents.insight import (
    PlayRecord,
    action_shares,
    harm_rate,
    harmed_scenes,
    mean_step_gains,
    mean_tools,
    play_record,
    restored_scenes,
    summary,
)
from restoration_env.agents.insight_figures import draw_policy, draw_toolchains, percent
from restoration_env.agents.photo import check_target, find_agent
from restoration_env.cli import progress_bar
from restoration_env.errors import InvalidArgument
from restoration_env.images import load_images
from restoration_env.rendering import save_png

_PHOTOGRAPHS = 4


@click.command()
@click.option("--agent", default=DEFAULT_AGENT, show_default=True, help="Its name or its weights.")
@click.option("--images", default="bundled", show_default=True, help="Clean images: a folder or a name.")
@click.option("--split", default="test", show_default=True, help="Part of the images, or all.")
@click.option("--severity", default="moderate", show_default=True, help="mild, moderate, severe, ...")
@click.option("--count", default=256, show_default=True, help="Patches to play.")
@click.option("--seed", default=0, show_default=True, help="Of patches and damage.")
@click.option("-o", "--output", default="policy.png", show_default=True, help="What it does (PNG), replaced if there.")
@click.option("--strips", default="strips.png", show_default=True, help="Toolchains (PNG), replaced if there.")
@click.option("--harmed", default="", help="Also draw the patches it made most worse (PNG), replaced if there.")
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:N or auto.")
@click.option("--precision", type=click.Choice(["float32", "bfloat16"]), default="float32", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def look(
    agent: str,
    images: str,
    split: str,
    severity: str,
    count: int,
    seed: int,
    output: str,
    strips: str,
    harmed: str,
    device: str,
    precision: str,
    as_json: bool,
) -> None:
    """Look at an agent: what it does with which damage, when it stops, what it harms.

    Draws two pictures: the share of every action at each step for weak and strong blur, noise and compression,
    and toolchains on photographs with the Q values before every step. With --harmed also what it made worse.
    """
    pictures = {"--output": output, "--strips": strips, **({"--harmed": harmed} if harmed else {})}
    for option, path in pictures.items():
        if not path.lower().endswith(".png"):
            raise InvalidArgument(option, "a path that ends in .png", repr(path))
        check_target(path, overwrite=True)
        earlier = [other for other, known in pictures.items() if Path(known).resolve() == Path(path).resolve()]
        if earlier[0] != option:
            raise InvalidArgument(option, f"another file than {earlier[0]}", repr(path))
    loaded = find_agent(agent, device, precision)
    pool = load_images(images, split)
    name, source = Path(agent).stem, f"{Path(images).name} ({split}, {len(pool)} images)"
    with progress_bar() as bar:
        task = bar.add_task("patches", total=count, note="")
        record = play_record(
            loaded,
            loaded.toolbox,
            pool,
            severity,
            count,
            seed,
            max_steps=loaded.max_steps,
            size=loaded.network.patch_size,
            device=next(loaded.network.parameters()).device,
            report=lambda done, total: bar.update(task, completed=done),
        )
        last = bar.add_task("photographs", total=_PHOTOGRAPHS, note="")
        scenes = restored_scenes(
            loaded, pool, severity, _PHOTOGRAPHS, seed, report=lambda done, total: bar.update(last, completed=done)
        )
        worst = harmed_scenes(loaded, pool, record, seed, _PHOTOGRAPHS) if harmed else []
    record = dataclasses.replace(record, policy=name)
    save_png(output, draw_policy(record, f"of {source}"))
    title = f"{name}, {severity} damage, seed {seed}: toolchains, and the Q values in dB that chose them"
    save_png(strips, draw_toolchains(scenes, record.names, title))
    if worst:
        title = f"{name}, {severity} damage: the patches it made most worse of {count}, and the Q values in dB"
        save_png(harmed, draw_toolchains(worst, record.names, title))
    drawn = {output: "policy", strips: "toolchains", **({harmed: "harmed"} if worst else {})}
    if as_json:
        photographs = [{**scene.as_json(), "q_values": scene.restoration.q_values.tolist()} for scene in scenes]
        facts = {"agent": agent, "images": source, "seed": seed, "actions": record.names, **summary(record)}
        most = [scene.as_json() for scene in worst]
        about = {**facts, "pictures": list(drawn), "photographs": photographs, "most_harmed": most}
        click.echo(json.dumps(about, indent=2))
        return
    console = Console()
    console.print(policy_table(record))
    console.print(Text(f"{record.gain.mean():+.2f} dB, {percent(harm_rate(record))} made worse,"), end=" ")
    console.print(Text(f"{mean_tools(record):.2f} tools on average; {len(record)} patches of {source}"), soft_wrap=True)
    console.print(Text("\n".join(f"{what}: {path}" for path, what in drawn.items())), soft_wrap=True)


def policy_table(record: PlayRecord) -> Table:
    """Shares of the actions at each step, of the images that had not stopped before, and what the step gains."""
    steps = range(record.steps)
    table = Table("action", title=f"{record.policy}, {record.severity} damage: share of each action")
    for step in steps:
        table.add_column(f"step {step + 1}", justify="right")
    shares, gains, going = action_shares(record), mean_step_gains(record), record.going().sum(0).tolist()
    for action, name in enumerate(record.names):
        table.add_row(name, *(percent(shares[s, action].item()) if going[s] else "" for s in steps))
        if action >= len(record.names) - 2:
            table.add_section()
    table.add_row("patches", *map(str, going))
    table.add_row("gain, dB", *(f"{gains[s]:+.2f}" if going[s] else "" for s in steps))
    return table
