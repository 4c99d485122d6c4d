"""What each tool does to each band of damage: the 12 x 12 gain matrix, as numbers and as a picture."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from restoration_env.benchmarks.suites import Suite
from restoration_env.metrics import psnr
from restoration_env.toolbox import Toolbox

CELL, LEFT, TOP = 58, 150, 96


@torch.no_grad()
def gain_matrix(toolbox: Toolbox, bands: list[Suite]) -> list[list[float]]:
    """Mean PSNR gain in dB: a row for each tool, a column for each band."""
    rows = []
    for tool in toolbox:
        gains = []
        for band in bands:
            clean, damaged = band.patches()
            restored = torch.cat([tool(part) for part in damaged.split(32)])
            gains.append((psnr(restored, clean) - psnr(damaged, clean)).mean().item())
        rows.append([round(gain, 4) for gain in gains])
    return rows


def diagonal(matrix: list[list[float]]) -> list[float]:
    """Each tool's gain on its own band."""
    return [row[i] for i, row in enumerate(matrix)]


def draw_matrices(matrices: dict[str, list[list[float]]], tools: list[str], bands: list[str]) -> np.ndarray:
    """Heat maps above each other, uint8 (H, W, 3): green helps, red harms, the tool's own band is framed."""
    height = TOP + CELL // 2 * len(tools) + 40
    canvas = Image.new("RGB", (LEFT + CELL * len(bands) + 24, height * len(matrices)), "#fbfaf7")
    draw = ImageDraw.Draw(canvas)
    small, bold = ImageFont.load_default(size=12), ImageFont.load_default(size=16)
    for number, (name, matrix) in enumerate(matrices.items()):
        top = number * height
        mean = sum(diagonal(matrix)) / len(matrix)
        title = f"{name}: PSNR gain in dB of each tool (rows) on each band (columns); own band {mean:.2f} dB on average"
        draw.text((16, top + 14), title, "#222222", font=bold)
        for column, band in enumerate(bands):
            kind, _, values = band.partition(" ")
            centre = LEFT + CELL * column + CELL // 2
            draw.text((centre, top + 54), kind, "#555555", font=small, anchor="mm")
            draw.text((centre, top + 72), values, "#222222", font=small, anchor="mm")
        for row, tool in enumerate(tools):
            y = top + TOP + CELL // 2 * row
            draw.text((LEFT - 12, y + CELL // 4), tool, "#222222", font=small, anchor="rm")
            for column, gain in enumerate(matrix[row]):
                x = LEFT + CELL * column
                box = (x, y, x + CELL - 2, y + CELL // 2 - 2)
                draw.rectangle(box, fill=_colour(gain), outline="#222222" if row == column else None, width=2)
                text = "0.00" if abs(gain) < 0.005 else f"{gain:.2f}"
                draw.text((x + CELL // 2, y + CELL // 4), text, "#111111", font=small, anchor="mm")
    return np.array(canvas)


def _colour(gain: float) -> tuple[int, int, int]:
    strength = min(1.0, abs(gain) / 6.0) ** 0.6
    end = (86, 170, 110) if gain > 0 else (214, 96, 88)
    red, green, blue = (round(246 + (channel - 246) * strength) for channel in end)
    return red, green, blue


def as_json(matrices: dict[str, list[list[float]]], tools: list[str], bands: list[Suite]) -> dict[str, Any]:
    """The result as it is written to disk."""
    return {
        "unit": "mean PSNR gain in dB, rows are tools, columns are bands; inputs above 50 dB left out",
        "tools": tools,
        "bands": [{"band": b.name, "patches": len(b.clean), "images": b.source, "sha256": b.digest} for b in bands],
        "toolboxes": {
            name: {
                "matrix": matrix,
                "own_band": diagonal(matrix),
                "mean_own_band": round(sum(diagonal(matrix)) / len(matrix), 4),
            }
            for name, matrix in matrices.items()
        },
    }
