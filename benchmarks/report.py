"""The leaderboard as a static web page: sortable tables, gain against cost, and pictures side by side."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from restoration_env.benchmarks.board import COLUMNS, sorted_rows, written
from restoration_env.benchmarks.scenes import Scene
from restoration_env.files import replacing
from restoration_env.rendering import save_png

_PAGE = Path(__file__).with_name("report.html")
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 860, 430, 60, 190, 20, 50


def write_report(
    folder: str | Path, board: Mapping[str, Any], scenes: Sequence[Scene], tables: Sequence[tuple[str, str]] = ()
) -> Path:
    """Write ``index.html`` and the pictures it shows.

    Args:
        folder: to write into; made if need be.
        board: as `restoration_env.benchmarks.board.read_board` reads it.
        scenes: the pictures to look at side by side.
        tables: further tables, each a title and Markdown.

    Returns:
        The path of the page.
    """
    folder = Path(folder)
    shown = []
    for number, scene in enumerate(scenes):
        pictures = []
        for step, picture in enumerate(scene.pictures):
            file = f"images/{number}-{step}.png"
            save_png(folder / file, picture.image)
            pictures.append({"name": picture.name, "caption": picture.caption, "file": file})
        shown.append({"name": scene.name, "pictures": pictures})
    names = list(board["suites"])
    made = (
        f"Made by {board['command']}, version {board['version']}, commit {board['commit']}, {board['device']}, "
        f"{board['threads']} thread(s)."
    )
    parts = {
        "made": escape(made),
        "buttons": " ".join(_button(name, name == names[0]) for name in names),
        "suites": "\n".join(_section(name, board["suites"][name], name != names[0]) for name in names),
        "further": "\n".join(f"<h2>{escape(title)}</h2>{_html_table(text)}" for title, text in tables),
        "scenes": json.dumps(shown).replace("<", "\\u003c"),
    }
    page = _PAGE.read_text(encoding="utf-8")
    for name, text in parts.items():
        page = page.replace("{{" + name + "}}", text)
    with replacing(folder / "index.html") as temporary:
        temporary.write_text(page, encoding="utf-8")
    return folder / "index.html"


def _button(name: str, pressed: bool) -> str:
    return f'<button value="{name}" aria-pressed="{str(pressed).lower()}">{escape(name)}</button>'


def _section(name: str, suite: Mapping[str, Any], hidden: bool) -> str:
    rows = suite["rows"]
    digests = ", ".join(digest[:16] for digest in suite["sha256"])
    about = f"{suite['patches']:,} images from {suite['images']}; sha256 {digests}"
    return (
        f'<section class="suite" id="{name}"{" hidden" if hidden else ""}><h2>{escape(name)}</h2>'
        f'<p class="muted">{escape(about)}</p>{_table(rows)}{pareto(rows)}</section>'
    )


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    shown = [column for column in COLUMNS if any(row.get(column[1]) is not None for row in rows)]
    ranked = sorted_rows(rows, "gain" if any(key == "gain" for _, key, _, _ in shown) else "mean_tools")
    head = '<th data-key="policy" data-less="true"><button>entry</button></th>' + "".join(
        f'<th data-key="{key}" data-less="{str(less).lower()}"><button>{escape(title)}</button></th>'
        for title, key, _, less in shown
    )
    body = "".join(
        f'<tr class="{_family(row)}"><td data-value="{escape(row["policy"])}">{escape(row["policy"])}</td>'
        + "".join(f'<td data-value="{_value(row, key)}">{written(row, key)}</td>' for _, key, _, _ in shown)
        + "</tr>"
        for row in ranked
    )
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _value(row: Mapping[str, Any], key: str) -> str:
    value = row.get(key)
    return "" if value is None else repr(value)


def _family(row: Mapping[str, Any]) -> str:
    return str(row.get("family", "")).partition(" ")[0]


def pareto(rows: Sequence[Mapping[str, Any]]) -> str:
    """Gain against multiply-adds as SVG, with the front of the entries that nothing cheaper beats; oracles apart."""
    points = [row for row in rows if row.get("gain") is not None and (row.get("multiply_adds") or 0) > 0]
    if not points:
        return ""
    logs = [math.log10(row["multiply_adds"]) for row in points]
    gains = [row["gain"] for row in points]
    low, high = math.floor(min(logs) * 2) / 2, math.ceil(max(logs) * 2 + 0.01) / 2
    least, most = math.floor(min(gains)), max(gains) + 0.3

    def place(row: Mapping[str, Any]) -> tuple[float, float]:
        x = _LEFT + (math.log10(row["multiply_adds"]) - low) / (high - low) * (_WIDTH - _LEFT - _RIGHT)
        height = (row["gain"] - least) / (most - least) * (_HEIGHT - _TOP - _BOTTOM)
        return round(x, 1), round(_HEIGHT - _BOTTOM - height, 1)

    parts = [_axes(low, high, least, most)]
    front = [place(row) for row in pareto_front(points)]
    if len(front) > 1:
        parts.append(f'<polyline class="front" points="{" ".join(f"{x},{y}" for x, y in front)}"/>')
    taken: list[tuple[float, float]] = []
    for row in sorted(points, key=lambda row: -row["gain"]):
        x, y = place(row)
        text = _free(x + 8, y + 4, taken)
        title = f"{row['policy']}: {row['gain']:+.2f} dB, {written(row, 'multiply_adds')} M multiply-adds"
        parts.append(f'<g><title>{escape(title)}</title><circle class="dot {_family(row)}" cx="{x}" cy="{y}" r="5"/>')
        parts.append(f'<text x="{text[0]}" y="{text[1]}">{escape(row["policy"])}</text></g>')
    label = "Gain against multiply-adds per image; the dashed line joins what nothing cheaper beats"
    size = f'viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{label}">{"".join(parts)}</svg>'


def pareto_front(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The rows that no cheaper or equally cheap one matches, from cheap to dear; oracles, which cheat, left out."""
    front: list[Mapping[str, Any]] = []
    for row in sorted(rows, key=lambda row: (row["multiply_adds"], -row["gain"])):
        if row.get("family") != "oracle" and (not front or row["gain"] > front[-1]["gain"]):
            front.append(row)
    return front


def _free(x: float, y: float, taken: list[tuple[float, float]]) -> tuple[float, float]:
    """A place for a label where none is yet, moved down if need be."""
    while any(abs(x - a) < 150 and abs(y - b) < 13 for a, b in taken):
        y += 13
    taken.append((x, y))
    return x, y


def _axes(low: float, high: float, least: float, most: float) -> str:
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    parts = [f'<line class="axis" x1="{_LEFT}" y1="{bottom}" x2="{right}" y2="{bottom}"/>']
    step = 1.0 if most - least < 8 else 2.0
    for number in range(math.ceil(least / step), math.floor(most / step) + 1):
        y = bottom - (number * step - least) / (most - least) * (bottom - _TOP)
        parts.append(f'<line class="axis" x1="{_LEFT}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{number * step:+.0f}</text>')
    for half in range(round(low * 2), round(high * 2) + 1):
        x, value = _LEFT + (half / 2 - low) / (high - low) * (right - _LEFT), 10 ** (half / 2 - 6)
        text = f"{value:,.0f} M" if value >= 10 else f"{value:.1f} M"
        parts.append(f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{text}</text>')
    middle = (_LEFT + right) / 2
    parts.append(f'<text x="{middle}" y="{bottom + 40}" text-anchor="middle">multiply-adds per image</text>')
    parts.append(f'<text x="{_LEFT}" y="{_TOP - 6}" text-anchor="middle">gain in dB</text>')
    return "".join(parts)


def _html_table(markdown: str) -> str:
    """A Markdown table as HTML; lines that are none become paragraphs."""
    lines = [line for line in markdown.splitlines() if line.strip() and not line.startswith("|---")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    html = "".join(
        "<tr>" + "".join(f"<t{'dh'[n == 0]}>{escape(cell.strip('*'))}</t{'dh'[n == 0]}>" for cell in row) + "</tr>"
        for n, row in enumerate(rows)
    )
    notes = "".join(f"<p>{escape(line)}</p>" for line in lines if not line.startswith("|"))
    return f'<div class="wide"><table>{html}</table></div>{notes}'
