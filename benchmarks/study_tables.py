"""The tables of the studies of agents, as Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from restoration_env.errors import InvalidArgument


def policies_table(study: Mapping[str, Any], board: Mapping[str, Any]) -> str:
    """Trained with several seeds, beside the entries of a leaderboard of the same patches, in one table.

    Args:
        study: what `restoration-env agent-study` wrote.
        board: what `restoration-env leaderboard run` wrote, with the greedy oracle of the study's tools.

    Raises:
        InvalidArgument: if the two were measured on other patches, or there is no oracle.
    """
    suites = list(study["suites"])
    for suite in suites:
        digests = study["suites"][suite]["sha256"], *board["suites"][suite]["sha256"]
        if len(set(digests)) > 1:
            raise InvalidArgument("board", f"measured on the {suite} patches of the study", digests)
    entries = {
        label: {suite: _row(board, suite, label) for suite in suites}
        for label in (row["policy"] for row in board["suites"][suites[0]]["rows"])
    }
    oracles = [rows for rows in entries.values() if rows[suites[0]]["family"] == "oracle"]
    if len(oracles) != 1:
        raise InvalidArgument("board", "one with one oracle", f"{len(oracles)}")
    best = {suite: row["gain"] for suite, row in oracles[0].items()}
    lines = [
        f"| policy | {' | '.join(suites)} | regret | harmed | tools | images | seconds |",
        "|---|" + "---|" * (len(suites) + 5),
    ]
    for label, rows in entries.items():
        cost = [_count(rows[suites[0]].get(key)) for key in ("training_patches", "training_seconds")]
        lines.append(_line(label, [f"{row['gain']:+.2f}" for row in rows.values()], rows, best, cost))
    for label, row in study["rows"].items():
        gains = [f"{said['gain']:+.2f} ± {said['gain_std']:.2f}" for said in row["suites"].values()]
        cost = [_count(row["training_images"]), _count(row["training_seconds"])]
        lines.append(_line(label, gains, row["suites"], best, cost))
    return "\n".join(lines)


def _row(board: Mapping[str, Any], suite: str, label: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = next(row for row in board["suites"][suite]["rows"] if row["policy"] == label)
    return found


def _count(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"


def _line(
    label: str, gains: list[str], rows: Mapping[str, Mapping[str, Any]], best: Mapping[str, float], cost: list[str]
) -> str:
    regret = " / ".join(f"{best[suite] - row['gain']:.2f}" for suite, row in rows.items())
    harmed = " / ".join(f"{row['harmed']:.1%}" for row in rows.values())
    tools = " / ".join(f"{row['mean_tools']:.1f}" for row in rows.values())
    return f"| {label} | {' | '.join((*gains, regret, harmed, tools, *cost))} |"


def contestants_table(study: Mapping[str, Any]) -> str:
    """A study alone: gain with its deviation over seeds, harmed images and tools used."""
    suites = list(study["suites"])
    lines = [
        f"| agent | {' | '.join(suites)} | harmed | tools | images | seconds |",
        "|---|" + "---|" * (len(suites) + 4),
    ]
    for label, row in study["rows"].items():
        said = row["suites"].values()
        gains = [f"{suite['gain']:+.2f} ± {suite['gain_std']:.2f}" for suite in said]
        harmed = " / ".join(f"{suite['harmed']:.1%}" for suite in said)
        tools = " / ".join(f"{suite['mean_tools']:.1f}" for suite in said)
        cost = _count(row["training_images"]), _count(row["training_seconds"])
        lines.append(f"| {label} | {' | '.join((*gains, harmed, tools, *cost))} |")
    return "\n".join(lines)


def fewer_images_table(study: Mapping[str, Any]) -> str:
    """How many images exact values needed for the best gain of each other variant."""
    lines = ["| variant | its best gain | after images | exact values after | times fewer |", "|---|---|---|---|---|"]
    for label, row in study["images_for_the_same_gain"].items():
        needed, times = row["exact values"], row["times_fewer"]
        cells = f"{row['gain']:+.2f} dB", _count(row["images"]), _count(needed) or "never"
        lines.append(f"| {label} | {' | '.join(cells)} | {'' if times is None else f'{times:.1f}'} |")
    return "\n".join(lines)
