"""An identity-style environment: chequered images, and a tool for each size of their checks.

Each image repeats itself every 2, 3, 5 or 7 pixels, and has noise. A tool averages all pixels that lie a multiple of
its period apart, which removes noise and nothing else from images that repeat themselves so, and leaves all others
alone. So every image has one obviously right tool, the image says which, turned or mirrored or not, and no tool costs
anything. Registered under "checks" on import.
"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from restoration_env.registry import register_toolbox
from restoration_env.toolbox import Tool, Toolbox

PERIODS = (2, 3, 5, 7)


class Repeat(nn.Module):
    """Gives every pixel the mean of those a multiple of the period away, if the image repeats itself so."""

    def __init__(self, period: int) -> None:
        super().__init__()
        self.period = period

    def forward(self, images):
        n, c, h, w = images.shape
        place = torch.arange(h)[:, None] % self.period * self.period + torch.arange(w) % self.period
        place, pixels = place.flatten(), images.reshape(n, c, h * w)
        sums = pixels.new_zeros(n, c, self.period**2).index_add(2, place, pixels)
        means = sums / torch.bincount(place)
        explained = means.var(2).sum(1) / pixels.var(2).sum(1)
        return torch.where((explained > 0.5).view(n, 1, 1, 1), means[..., place].view(n, c, h, w), images)


def checks(*, device="cpu", precision="float32"):
    return Toolbox("checks", [Tool(f"every-{period}", "the mean of a lattice", Repeat(period)) for period in PERIODS])


register_toolbox("checks", "checks:checks")


def write_checks(folder: Path, count: int = 60, side: int = 160) -> Path:
    """PNG files of checks in two colours, as many of each size; the same files on every call."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:side, :side]
    for number in range(count):
        period = PERIODS[number % len(PERIODS)]
        odd = (rows % period >= period / 2) ^ (columns % period >= period / 2)
        dark, light = rng.integers(20, 70, 3), rng.integers(180, 235, 3)
        Image.fromarray(np.where(odd[..., None], dark, light).astype(np.uint8)).save(folder / f"{number:02d}.png")
    return folder
