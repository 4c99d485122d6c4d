"""The table of the leaderboard as it is read: sorted, on a terminal, and as Markdown."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from restoration_env.errors import InvalidArgument

RESULTS = Path(__file__).resolve().parent / "results"
BOARD = RESULTS / "leaderboard.json"
Row = dict[str, Any]
# What a column is called, the key of a row, how a number of it is written, and whether less is better.
COLUMNS: tuple[tuple[str, str, str, bool], ...] = (
    ("PSNR in", "psnr_in", "{:.2f}", False),
    ("PSNR out", "psnr_out", "{:.2f}", False),
    ("gain dB", "gain", "{:+.2f}", False),
    ("95 % from", "gain_low", "{:+.2f}", False),
    ("to", "gain_high", "{:+.2f}", False),
    ("SSIM", "ssim", "{:.3f}", False),
    ("LPIPS", "lpips", "{:.3f}", True),
    ("regret dB", "regret", "{:.2f}", True),
    ("harmed", "harmed", "{:.1%}", True),
    ("tools", "mean_tools", "{:.1f}", True),
    ("parameters", "parameters", "{:,}", True),
    ("M multiply-adds", "multiply_adds", "{:,.0f}", True),
    ("ms, batch 1", "batch_1", "{:,.1f}", True),
    ("ms, batch 256", "batch_256", "{:,.1f}", True),
    ("training patches", "training_patches", "{:,}", True),
    ("training hours", "training_seconds", "{:,.1f}", True),
)
_UNITS = {"multiply_adds": 1e-6, "training_seconds": 1 / 3600}


def read_result(path: str | Path) -> dict[str, Any]:
    """A result file.

    Raises:
        InvalidArgument: if it is missing or no JSON object.
    """
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidArgument("board", "a file that `restoration-env leaderboard run` wrote", error) from None
    if not isinstance(value, dict):
        raise InvalidArgument("board", "a JSON object", path)
    return value


def read_board(path: str | Path = BOARD, latency: str | Path | None = None) -> dict[str, Any]:
    """A table, with the milliseconds of its latency file in the rows.

    Args:
        path: of the table.
        latency: of the file; None for the one beside the table, if there is one.

    Raises:
        InvalidArgument: if the file holds no table.
    """
    board = read_result(path)
    if not isinstance(board.get("suites"), dict) or not board["suites"]:
        raise InvalidArgument("board", "a file with suites", path)
    beside = Path(latency) if latency else latency_path(path)
    times = read_result(beside)["rows"] if beside.is_file() else {}
    for suite in board["suites"].values():
        for row in suite["rows"]:
            row |= {key: times.get(row["policy"], {}).get(key) for key in ("batch_1", "batch_256")}
    return board


def latency_path(path: str | Path) -> Path:
    """The latency file beside a table."""
    return Path(path).with_name(f"{Path(path).stem}_latency.json")


def written(row: Mapping[str, Any], key: str) -> str:
    """A number of a row as it is shown; empty where there is none."""
    value = row.get(key)
    if value is None:
        return ""
    form = next(form for _, column, form, _ in COLUMNS if column == key)
    return form.format(value * _UNITS[key] if key in _UNITS else value)


def sorted_rows(rows: Sequence[Mapping[str, Any]], key: str) -> list[Mapping[str, Any]]:
    """Rows by a column, the best first, those without a number last.

    Raises:
        InvalidArgument: for an unknown column.
    """
    known = {column: less for _, column, _, less in COLUMNS}
    if key not in known:
        raise InvalidArgument("sort", "one of " + ", ".join(known), repr(key))
    sign = 1.0 if known[key] else -1.0
    return sorted(rows, key=lambda row: (row.get(key) is None, sign * (row.get(key) or 0.0)))


# What a terminal shows first, as far as it is wide enough; the rest is in the JSON and on the page.
_FIRST = ("gain", "lpips", "harmed", "mean_tools", "regret", "multiply_adds", "parameters", "ssim", "batch_1")


def suite_table(name: str, suite: Mapping[str, Any], sort: str = "gain", width: int = 120) -> Table:
    """One suite for a terminal, with as many columns as fit into its width."""
    rows = suite["rows"]
    titles = {key: title for title, key, _, _ in COLUMNS if any(row.get(key) is not None for row in rows)}
    room = width - 4 - max(len(row["policy"]) for row in rows)
    kept = set[str]()
    for key in (*(key for key in _FIRST if key in titles), *(key for key in titles if key not in _FIRST)):
        room -= 3 + max(len(titles[key]), *(len(written(row, key)) for row in rows))
        if room < 0:
            break
        kept.add(key)
    shown = [(title, key) for key, title in titles.items() if key in kept]
    table = Table(title=f"{name}: {suite['patches']:,} images from {suite['images']}")
    table.add_column("entry", no_wrap=True)
    for title, _ in shown:
        table.add_column(title, justify="right", no_wrap=True)
    has_gain = any(row.get("gain") is not None for row in suite["rows"])
    for row in sorted_rows(suite["rows"], sort if has_gain or sort != "gain" else "mean_tools"):
        table.add_row(row["policy"], *(written(row, key) for _, key in shown))
    return table


def markdown(board: Mapping[str, Any], families: tuple[str, ...] = ()) -> str:
    """The table as Markdown: gains on the suites of patches that it holds, and what each entry costs.

    Args:
        board: as `read_board` reads it.
        families: which entries; all if empty.
    """
    suites = {name: suite for name, suite in board["suites"].items() if suite["rows"][0].get("gain") is not None}
    first = next(iter(suites.values()))
    regret = any("regret" in row for suite in suites.values() for row in suite["rows"])
    columns = [*(["regret"] if regret else []), "LPIPS", "harmed", "tools", "parameters", "M multiply-adds"]
    columns += ["ms, batch 1 / 256", "training patches"]
    inputs = [*(_input(suite) for suite in suites.values()), *([""] if regret else []), _looks(suites)]
    lines = [
        f"| PSNR gain in dB | {' | '.join((*suites, *columns))} |",
        "|---|" + "---|" * (len(suites) + len(columns)),
        f"| *the input* | {' | '.join(inputs)} |" + " |" * (len(suites) + len(columns) - len(inputs)),
    ]
    mean = {row["policy"]: _mean_gain(suites, row["policy"]) for suite in suites.values() for row in suite["rows"]}
    for label in sorted(mean, key=lambda label: -mean[label]):
        found = [_named(suite, label) for suite in suites.values()]
        rows = [row for row in found if row]
        if label == "input" or (families and rows[0]["family"] not in families):
            continue
        gains = [f"{row['gain']:+.2f} ± {(row['gain_high'] - row['gain_low']) / 2:.2f}" if row else "" for row in found]
        times = " / ".join(filter(None, (written(rows[0], key) for key in ("batch_1", "batch_256"))))
        name = f"*{label}*" if rows[0]["family"] == "oracle" else label
        cells = [_joined(rows, "regret") if rows[0]["family"] != "oracle" else ""] if regret else []
        cells += [_joined(rows, "lpips"), _joined(rows, "harmed"), _joined(rows, "mean_tools")]
        cells += [written(rows[0], "parameters"), _joined(rows, "multiply_adds"), times]
        lines.append(f"| {name} | {' | '.join((*gains, *cells, written(rows[0], 'training_patches')))} |")
    lines += [
        "",
        f"{first['patches']:,} patches of 63x63 for each severity, from {first['images']}; ± half the 95 % bootstrap "
        f"interval. Where there are several numbers, they are for {', '.join(suites)}; harmed: images made worse"
        + ("; regret: how far behind the greedy oracle of the same tools, in dB." if regret else "."),
    ]
    return "\n".join(lines)


def _looks(suites: Mapping[str, Any]) -> str:
    known = [row for suite in suites.values() if (row := _named(suite, "input"))]
    return f"*{_joined(known, 'lpips')}*" if known else ""


def _input(suite: Mapping[str, Any]) -> str:
    return f"*PSNR {suite['rows'][0]['psnr_in']:.2f}*"


def _named(suite: Mapping[str, Any], label: str) -> Row | None:
    return next((row for row in suite["rows"] if row["policy"] == label), None)


def _mean_gain(suites: Mapping[str, Any], label: str) -> float:
    gains = [row["gain"] for suite in suites.values() for row in suite["rows"] if row["policy"] == label]
    return sum(gains) / len(gains)


def _joined(rows: list[Row], key: str) -> str:
    """The numbers of several suites in one cell; one, if they are all the same."""
    texts = [written(row, key) for row in rows]
    return texts[0] if len(set(texts)) == 1 else " / ".join(texts)
