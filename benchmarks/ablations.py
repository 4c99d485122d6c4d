"""The ablations of the paper (Yu et al., CVPR 2018, Section 4.3): joint training, the stop action, tools, steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from restoration_env.agents.agent import load_agent
from restoration_env.benchmarks.board import written
from restoration_env.benchmarks.entries import Sources
from restoration_env.benchmarks.leaderboard import Protocol, Spread, Tell, one_by_one, run

STEPS = (1, 2, 3, 4)
# Six more for a toolbox of eighteen. No agent has been trained for eighteen tools, so that row is the oracle's.
SIX_MORE = tuple(
    f"classical/{name}" for name in ("tv-light", "tv-strong", "bilateral", "wiener-1.5", "wiener-3", "unsharp")
)
TITLES = {
    "joint": "Tools trained alone and jointly",
    "stop": "With the stop action and without",
    "tools": "A toolbox of six, twelve and eighteen tools",
    "steps": "One to four steps",
}


def ablations(
    agent: str,
    joint: str,
    protocol: Protocol,
    sources: Sources,
    folder: str | Path,
    *,
    spread: Spread = one_by_one,
    tell: Callable[[str], Tell] = lambda title: lambda done, total, note: None,
) -> dict[str, Any]:
    """Measure all of them.

    Args:
        agent: the agent whose tools were trained alone.
        joint: the one whose tools were trained jointly; "" if there is none, which leaves that ablation out.
        protocol: the suites.
        sources: as for the leaderboard; their oracle bounds what the tools can do.
        folder: keeps what was measured.
        spread: does the jobs.
        tell: makes what is told of progress, for each title.

    Returns:
        By name: a title and, for each variant in words, the rows of each suite.
    """
    best = joint or agent
    known = load_agent(best)
    box, trained = known.toolbox.name, known.max_steps
    variants: dict[str, dict[str, tuple[str, Sources]]] = {
        "stop": {"with stop": (best, sources), "without": (f"{best}%no-stop", sources)},
        "tools": {
            "six, agent": (f"{best}%six", sources),
            "twelve, agent": (best, sources),
            "six, oracle": (f"oracle:{box}%six", sources),
            "twelve, oracle": (f"oracle:{box}", sources),
            "eighteen, oracle": (f"oracle:{'+'.join((box, *SIX_MORE))}", sources),
        },
        "steps": {
            **{f"{count}, agent (trained for {trained})": (best, replace(sources, max_steps=count)) for count in STEPS},
            **{f"{count}, oracle": (f"oracle:{box}", replace(sources, max_steps=count)) for count in STEPS},
        },
    }
    if joint:
        alone = load_agent(agent).toolbox.name
        variants["joint"] = {
            "alone, its agent": (agent, sources),
            "joint, its agent": (joint, sources),
            "alone, oracle": (f"oracle:{alone}", sources),
            "joint, oracle": (f"oracle:{box}", sources),
        }
    results: dict[str, Any] = {}
    for name in sorted(variants, key=list(TITLES).index):
        rows = {}
        for words, (entry, how) in variants[name].items():
            quiet = replace(how, oracle="none") if not entry.startswith("oracle:") else how
            suites = run([entry], protocol, quiet, folder, spread=spread, tell=tell(f"{TITLES[name]}: {words}"))
            rows[words] = {suite: table["rows"][0] for suite, table in suites.items()}
        results[name] = {"title": TITLES[name], "rows": rows}
    return results


def ablation_table(ablation: Mapping[str, Any]) -> str:
    """One ablation as Markdown: gain, harmed images and tools on each suite."""
    suites = list(next(iter(ablation["rows"].values())))
    lines = [f"| {ablation['title']} | {' | '.join(suites)} | harmed | tools |", "|---|" + "---|" * (len(suites) + 2)]
    for words, rows in ablation["rows"].items():
        gains = " | ".join(
            f"{row['gain']:+.2f} ± {(row['gain_high'] - row['gain_low']) / 2:.2f}" for row in rows.values()
        )
        harmed = " / ".join(f"{row['harmed']:.1%}" for row in rows.values())
        tools = " / ".join(f"{row['mean_tools']:.1f}" for row in rows.values())
        lines.append(f"| {words} | {gains} | {harmed} | {tools} |")
    return "\n".join(lines)


def difference_table(label: str, differences: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """How far an entry is above others, image by image, as Markdown."""
    suites = list(dict.fromkeys(suite for rows in differences.values() for suite in rows))
    lines = [f"| {label} minus | {' | '.join(suites)} |", "|---|" + "---|" * len(suites)]
    for other, rows in differences.items():
        cells = [f"{row['difference']:+.2f} ({row['low']:+.2f} to {row['high']:+.2f})" for row in rows.values()]
        lines.append(f"| {other} | {' | '.join(cells)} |")
    return "\n".join((*lines, "", "PSNR in dB, mean over the same images and its 95 % bootstrap interval."))


def runtime_table(board: Mapping[str, Any], suite: str = "moderate") -> str:
    """What each entry costs, as Markdown: parameters, multiply-adds, milliseconds, beside its gain on one suite."""
    keys = ("gain", "parameters", "multiply_adds", "batch_1", "batch_256", "training_patches", "training_seconds")
    lines = [
        f"| {suite} | gain dB | parameters | M multiply-adds | ms, batch 1 | batch 256 | training patches | hours |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in board["suites"][suite]["rows"]:
        if row.get("gain") is not None and row["family"] != "oracle":
            lines.append(f"| {row['policy']} | {' | '.join(written(row, key) for key in keys)} |")
    return "\n".join(lines)
