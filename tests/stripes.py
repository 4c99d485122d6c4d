"""An identity-style environment: images of stripes, and a tool for each of their directions.

Each image has stripes in one direction, and noise. A tool averages along its direction, which removes noise and
nothing else from stripes that run so, and leaves all other images alone. So every image has one obviously right tool,
the image says which, and no tool costs anything. Registered under "stripes" on import.
"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from restoration_env.registry import register_toolbox
from restoration_env.toolbox import Tool, Toolbox

DIRECTIONS = {"across": (0, 1), "down": (1, 0), "falling": (1, 1), "rising": (-1, 1)}  # rows, columns of a step


class Average(nn.Module):
    """Gives every pixel the mean of the line it lies on, if such lines explain the image."""

    def __init__(self, down: int, right: int) -> None:
        super().__init__()
        self.down, self.right = down, right
        self.strength = nn.Parameter(torch.ones(()))

    def forward(self, images):
        n, c, h, w = images.shape
        line = torch.arange(h)[:, None] * self.right - torch.arange(w) * self.down  # the same all along a line
        line = (line - line.min()).flatten()
        pixels = images.reshape(n * c, h * w)
        sums = pixels.new_zeros(n * c, int(line.max()) + 1).index_add(1, line, pixels)
        means = (sums / torch.bincount(line))[:, line].view(n, c, h, w)
        explained = means.var(dim=(1, 2, 3)) / images.var(dim=(1, 2, 3))
        fits = (explained > 0.25).view(n, 1, 1, 1)
        return torch.where(fits, images + self.strength * (means - images), images)


def stripes(*, device="cpu", precision="float32"):
    return Toolbox(
        "stripes", [Tool(name, "the mean along a line", Average(*step)) for name, step in DIRECTIONS.items()]
    )


register_toolbox("stripes", "stripes:stripes")


def write_stripes(folder: Path, count: int = 60, side: int = 160) -> Path:
    """PNG files of stripes in two colours, as many of each direction; the same files on every call."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:side, :side]
    for number in range(count):
        down, right = list(DIRECTIONS.values())[number % len(DIRECTIONS)]
        phase = 2 * np.pi * (rows * right - columns * down) / rng.uniform(5, 7) + rng.uniform(0, 6)
        weight = (0.5 + 0.5 * np.sin(phase))[..., None]
        dark, light = rng.uniform(40, 100, 3), rng.uniform(150, 215, 3)
        picture = (dark + weight * (light - dark)).round().astype(np.uint8)
        Image.fromarray(picture).save(folder / f"{number:02d}.png")
    return folder
