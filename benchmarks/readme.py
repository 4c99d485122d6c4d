"""The measured tables of the README, drawn from the result files: ``python -m restoration_env.benchmarks.readme``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from restoration_env.agents.system import BUDGETS, Budget
from restoration_env.benchmarks.ablations import ablation_table
from restoration_env.benchmarks.board import RESULTS, markdown, read_board, read_result
from restoration_env.benchmarks.ceilings import ceilings_table
from restoration_env.benchmarks.joint_study import joint_study_table
from restoration_env.benchmarks.leaderboard import PATCH_SUITES
from restoration_env.benchmarks.magnitudes import magnitudes_table
from restoration_env.benchmarks.speed_tables import (
    speed_gpu_sentence,
    speed_gpu_table,
    speed_table,
    training_steps_table,
)
from restoration_env.benchmarks.study_tables import contestants_table, fewer_images_table, policies_table
from restoration_env.benchmarks.training_cost import Stage, toolbox_stages
from restoration_env.files import replacing

ROOT = Path(__file__).resolve().parent.parent
PAGES = tuple(
    ROOT / page
    for page in (
        "README.md",
        "agents/README.md",
        "tools/README.md",
        "sft/README.md",
        "docs/speed.md",
        "docs/leaderboard.md",
    )
)


def _drawn(name: str, draw: Callable[[dict[str, Any]], str]) -> str:
    return draw(read_result(RESULTS / f"{name}.json"))


def leaderboard_table(result: dict[str, Any]) -> str:
    """The rows of the main page: everything but the classical chains other than the best one of them."""
    best = _best_classical(result)
    suites = {
        name: {**suite, "rows": [row for row in suite["rows"] if row["family"] != "classical" or row["policy"] == best]}
        for name, suite in result["suites"].items()
        if name in PATCH_SUITES
    }
    return markdown({**result, "suites": suites})


def _best_classical(result: dict[str, Any]) -> str:
    gains: dict[str, float] = {}
    for name in PATCH_SUITES:
        for row in result["suites"][name]["rows"]:
            if row["family"] == "classical":
                gains[row["policy"]] = gains.get(row["policy"], 0.0) + row["gain"]
    return max(gains, key=lambda label: gains[label], default="")


def before_and_after(result: dict[str, Any]) -> str:
    """Gain of each policy and oracle on the suites there are, a row for each toolbox, as Markdown."""
    suites = result["suites"]
    lines = ["| PSNR gain in dB | tools | " + " | ".join(suites) + " |", "|---|---|" + "---|" * len(suites)]
    for rows in zip(*(suite["rows"] for suite in suites.values()), strict=True):
        if rows[0]["policy"] not in ("input", "random"):
            name = "greedy oracle" if "oracle" in rows[0]["policy"] else rows[0]["policy"]
            lines.append(
                f"| {name} | {rows[0]['toolbox']} | " + " | ".join(f"{row['gain']:+.2f}" for row in rows) + " |"
            )
    return "\n".join(lines)


def captured_table(result: dict[str, Any]) -> str:
    """How much of the exhaustive oracle's gain each agent has, as Markdown."""
    suites = result["suites"]
    lines = [
        f"| gain in dB, of the oracle's, images made worse | {' | '.join(suites)} |",
        "|---" * (1 + len(suites)) + "|",
    ]
    for rows in zip(*(suite["rows"] for suite in suites.values()), strict=True):
        cells = (f"{row['gain']:+.2f}, {_captured(row):.1%}, {row['harmed']:.1%}" for row in rows)
        lines.append(f"| {rows[0]['policy']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _captured(row: Mapping[str, Any]) -> float:
    """The share of its oracle's gain that a policy has; regret is the rest."""
    return float(row["gain"] / (row["gain"] + row["regret"]))


def harm_table(result: dict[str, Any]) -> str:
    """Gain and harm of each policy on the suites there are, as Markdown."""
    suites = result["suites"]
    lines = [f"| PSNR gain in dB, images made worse | {' | '.join(suites)} |", "|---|" + "---|" * len(suites)]
    for rows in zip(*(suite["rows"] for suite in suites.values()), strict=True):
        if rows[0]["policy"] != "input":
            cells = (f"{row['gain']:+.2f}, {row['harmed']:.1%}" for row in rows)
            lines.append(f"| {rows[0]['policy']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def losses_table(result: dict[str, Any]) -> str:
    """Of each toolbox, what its agent loses against its oracle, and its oracle against a single network: Markdown."""
    suites = result["suites"]
    lines = [
        "| PSNR gain in dB, " + " / ".join(suites) + " | agent | lost by its choices | oracle | then by its tools |"
    ]
    lines.append("|---|---|---|---|---|")
    rows = [{row["policy"]: row for row in suite["rows"]} for suite in suites.values()]
    for policy, first in rows[0].items():
        if first["family"] == "oracle" or "oracle" not in (toolbox_rows := _of_toolbox(rows[0], first["toolbox"])):
            continue
        oracle = toolbox_rows["oracle"]
        pairs = [(row[policy]["gain"], row[oracle]["gain"], row["published OWAN"]["gain"]) for row in rows]
        columns = (
            [agent for agent, _, _ in pairs],
            [agent - best for agent, best, _ in pairs],
            [best for _, best, _ in pairs],
            [best - single for _, best, single in pairs],
        )
        lines.append(f"| {policy} | {' | '.join(' / '.join(f'{x:+.2f}' for x in column) for column in columns)} |")
    return "\n".join(lines)


def ablation_tables(result: dict[str, Any]) -> str:
    """All ablations, one below the other, as Markdown."""
    return "\n\n".join(ablation_table(part) for part in result["ablations"].values())


def _of_toolbox(rows: Mapping[str, Any], toolbox: str) -> dict[str, str]:
    return {row["family"]: policy for policy, row in rows.items() if row["toolbox"] == toolbox}


def looks_table(result: dict[str, Any]) -> str:
    """Gain and LPIPS of each policy, and its mean LPIPS against that of the first with tools, as Markdown."""
    suites = result["suites"]
    lines = [
        "| PSNR gain in dB, LPIPS | tools | " + " | ".join(suites) + " | mean gain | mean LPIPS |",
        "|---|---|" + "---|" * (len(suites) + 2),
    ]
    reference = 0.0
    for rows in zip(*(suite["rows"] for suite in suites.values()), strict=True):
        gain, lpips = (sum(row[key] for row in rows) / len(rows) for key in ("gain", "lpips"))
        is_input = rows[0]["policy"] == "input"
        reference = reference or (0.0 if is_input else lpips)
        cells = [f"{row['gain']:+.2f}, {row['lpips']:.3f}" for row in rows]
        change = f" ({lpips / reference - 1.0:+.0%})" if reference and lpips != reference else ""
        tools = "" if is_input else rows[0]["toolbox"]
        lines.append(f"| {rows[0]['policy']} | {tools} | {' | '.join(cells)} | {gain:+.2f} | {lpips:.3f}{change} |")
    return "\n".join(lines)


def tools_table(result: dict[str, Any]) -> str:
    """Each tool's gain on its own band, ours and the published one's, as Markdown."""
    boxes = result["toolboxes"]
    lines = ["| tool | band | " + " | ".join(boxes) + " |", "|---|---|" + "---|" * len(boxes)]
    for row, (tool, band) in enumerate(zip(result["tools"], result["bands"], strict=True)):
        cells = " | ".join(f"{box['own_band'][row]:+.2f}" for box in boxes.values())
        lines.append(f"| {tool} | {band['band']} | {cells} |")
    means = " | ".join(f"**{box['mean_own_band']:+.2f}**" for box in boxes.values())
    return "\n".join((*lines, f"| **mean** | | {means} |"))


def segmenter_table(result: dict[str, Any]) -> str:
    """Intersection over union of each category, as Markdown."""
    iou = result["iou"]
    names = list(next(iter(iou.values())))
    lines = ["| intersection over union | " + " | ".join(names) + " |", "|---|" + "---|" * len(names)]
    return "\n".join(
        [*lines, *(f"| {name} | {' | '.join(f'{v:.2f}' for v in row.values())} |" for name, row in iou.items())]
    )


def super_resolution_table(result: dict[str, Any]) -> str:
    """PSNR and LPIPS of each super-resolver, a column for each category that fills whole scenes, as Markdown."""
    rows = result["rows"]
    return _by_category([row["method"] for row in rows], [{**row, "regions": None} for row in rows])


def regions_table(result: dict[str, Any]) -> str:
    """The same of all that is labelled with each category, in whatever scene."""
    rows = result["rows"]
    return _by_category([row["method"] for row in rows], [row["regions"] for row in rows])


def trainings_table(*trainings: dict[str, Any]) -> str:
    """LPIPS of each kind of conditioning within each category: the mean of some trainings, and each, as Markdown."""
    groups = list(trainings[0]["rows"][0]["regions"])
    lines = [f"| LPIPS, mean (each training) | {' | '.join(groups)} |", "|---|" + "---|" * len(groups)]
    for rows in zip(*(training["rows"] for training in trainings), strict=True):
        name = rows[0]["method"]
        if name.startswith("gan-"):
            cells = []
            for group in groups:
                each = [row["regions"][group]["lpips"] for row in rows]
                cells.append(f"{sum(each) / len(each):.3f} ({', '.join(f'{value:.3f}' for value in each)})")
            lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _by_category(methods: list[str], values: list[dict[str, Any]]) -> str:
    groups = [group for group, value in values[0].items() if isinstance(value, dict)]
    heads = " | ".join(f"{group} ({values[0][group]['scenes']})" for group in groups)
    lines = [f"| PSNR in dB, LPIPS | {heads} |", "|---|" + "---|" * len(groups)]
    for method, value in zip(methods, values, strict=True):
        cells = (f"{value[group]['psnr']:.2f}, {value[group]['lpips']:.3f}" for group in groups)
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


def super_resolvers_table(result: dict[str, Any]) -> str:
    """PSNR (RGB and luma), SSIM and LPIPS of each super-resolver on each set, with size and time, as Markdown."""
    sets, titles = result["sets"], list(result["resolvers"])
    heads = " | ".join(f"{name} ({entry['images']})" for name, entry in sets.items())
    lines = [f"| PSNR RGB / luma, SSIM, LPIPS | {heads} | parameters | s per megapixel | patches seen |"]
    lines.append("|---|" + "---|" * (len(sets) + 3))
    for title in titles:
        facts, cells, times = result["resolvers"][title], [], []
        for entry in sets.values():
            row = entry["rows"].get(title)
            if row and row.get("weights") != facts.get("sha256"):  # measured before these weights were trained
                row = None
            cells.append(
                f"{row['psnr_rgb']:.2f} / {row['psnr_luma']:.2f}, {row['ssim']:.3f}, {row['lpips']:.3f}" if row else ""
            )
            times += [row["ms_per_megapixel"] / 1000] if row else []
        size = f"{facts['parameters']:,}" if facts["parameters"] else ""
        seen = f"{facts['patches_seen']:,}" if "patches_seen" in facts else ""
        lines.append(f"| {title} | {' | '.join(cells)} | {size} | {min(times, default=0.0):.2f} | {seen} |")
    return "\n".join(lines)


def lost_resolution_table(result: dict[str, Any]) -> str:
    """The gain with and without the super-resolver, and where it is used, as Markdown."""
    lines = ["| policy | tools | gain, both | x4: gain, used on | mixed: gain, used on |", "|---|---|---|---|---|"]
    for row in result["rows"]:
        halves = (f"{row[half]['gain']:+.2f} dB, {row[half]['share']:.0%}" for half in ("x4", "mixed"))
        lines.append(f"| {row['policy']} | {row['toolbox']} | {row['gain']:+.2f} dB | {' | '.join(halves)} |")
    return "\n".join(lines)


def stages_table(cards: str) -> str:
    """What was done with the tools of a toolbox, from first to last, as Markdown."""
    stages = toolbox_stages(cards)
    total = Stage("**all**", sum(stage.patches for stage in stages), sum(stage.seconds for stage in stages))
    judged = sum(stage.gain is not None for stage in stages) > 1
    lines = [f"| stage | patches | hours of one core |{' agent, validation |' if judged else ''}"]
    lines.append("|---" * (3 + judged) + "|")
    for stage in (*stages, total):
        gain = "" if stage.gain is None else f"{stage.gain:+.2f} dB"
        line = f"| {stage.words} | {stage.patches:,} | {stage.seconds / 3600:.1f} |"
        lines.append(f"{line} {gain} |" if judged else line)
    return "\n".join(lines)


def budgets_table(budgets: Mapping[str, Budget]) -> str:
    """How much of each stage ``restoration-env train system`` does, as Markdown."""
    rows = {
        "tools, each alone: times its recipe x patches a step": lambda b: f"{b.tools:g} x {b.tool_batch}",
        "in chains: batches x images": lambda b: f"{b.chains:,} x {b.chain_batch}",
        "agent: images": lambda b: f"{b.episodes:,}",
        "tools and agent together: batches x images": lambda b: f"{b.joint:,} x {b.joint_batch}",
        "agent again: images": lambda b: f"{b.episodes:,}",
    }
    shown = [name for name in budgets if name != "trial"]
    lines = [f"| stage | {' | '.join(shown)} |", "|---" * (1 + len(shown)) + "|"]
    return "\n".join(
        (*lines, *(f"| {what} | {' | '.join(say(budgets[name]) for name in shown)} |" for what, say in rows.items()))
    )


_TABLES: dict[str, Callable[[], str]] = {
    "leaderboard": lambda: leaderboard_table(read_board(RESULTS / "leaderboard.json")),
    "stages": lambda: stages_table("cnn12-joint"),
    "budgets": lambda: budgets_table(BUDGETS),
    "sft_regions": partial(_drawn, "sft_comparison", regions_table),
    "sft_trainings": lambda: trainings_table(
        *(read_result(RESULTS / f"sft_comparison{training}.json") for training in ("_first", "_second", ""))
    ),
    "losses": partial(_drawn, "chains", losses_table),
    "stages_modern": lambda: stages_table("cnn12-modern"),
    "policies": lambda: policies_table(read_result(RESULTS / "baselines.json"), read_result(RESULTS / "policies.json")),
    "speed_gpu_sentence": partial(_drawn, "speed_gpu", speed_gpu_sentence),
    "fewer_images": partial(_drawn, "variants", fewer_images_table),
    **{
        name: partial(_drawn, name, draw)
        for name, draw in (
            ("variants", contestants_table),
            ("horizons", contestants_table),
            ("gain_matrix", tools_table),
            ("chains", before_and_after),
            ("looks", looks_table),
            ("magnitudes", magnitudes_table),
            ("joint_study", joint_study_table),
            ("ablations", ablation_tables),
            ("ceilings", ceilings_table),
            ("exhaustive", captured_table),
            ("single_distortions", harm_table),
            ("chains_gains", tools_table),
            ("segmenter", segmenter_table),
            ("sft_comparison", super_resolution_table),
            ("lost_resolution", lost_resolution_table),
            ("super_resolution", super_resolvers_table),
            ("speed", speed_table),
            ("speed_zen5", speed_table),
            ("speed_zen4", speed_table),
            ("training_steps_zen3", training_steps_table),
            ("speed_gpu", speed_gpu_table),
        )
    },
}


def with_tables(text: str) -> str:
    """A page with what stands between its ``<!-- name -->`` and ``<!-- end -->`` marks drawn anew."""
    for name, draw in _TABLES.items():
        if f"<!-- {name} -->" in text:
            head, _, rest = text.partition(f"<!-- {name} -->\n")
            text = f"{head}<!-- {name} -->\n{draw()}\n{rest[rest.index('<!-- end -->') :]}"
    return text


def main() -> None:
    """Draw the tables of every page that has marks for them."""
    for page in PAGES:
        text = with_tables(page.read_text(encoding="utf-8"))
        with replacing(page) as temporary:
            temporary.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
