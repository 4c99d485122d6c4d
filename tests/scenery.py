"""Labelled scenes that cost nothing: striped, chequered and plain areas, each a category of its own."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from restoration_env.sft.conditioning import CATEGORIES

SHARED = Path(__file__).resolve().parent.parent.parent / "shared"
needs_scenes = pytest.mark.skipif(not (SHARED / "data" / "scenes").is_dir(), reason="no labelled scenes beside it")
COLOURS = np.array(
    [
        (90, 90, 90),
        (120, 160, 230),
        (30, 60, 140),
        (80, 190, 60),
        (120, 100, 80),
        (190, 90, 70),
        (20, 90, 20),
        (210, 170, 120),
    ]
)


def write_scenes(folder: Path, count: int = 12, height: int = 112, width: int = 128, categories: int = 8) -> Path:
    """PNG scenes of an upper and a lower half of different categories; the same files on every call."""
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for number in range(count):
        label = np.empty((height, width), np.uint8)
        label[: height // 2], label[height // 2 :] = number % categories, (number + 3) % categories
        texture = rng.integers(-20, 20, (height, width, 1)) * (label[..., None] % 3)
        image = np.clip(COLOURS[label] + texture, 0, 255).astype(np.uint8)
        label[:2] = 255
        Image.fromarray(image).save(folder / "images" / f"scene{number:02d}.png")
        Image.fromarray(label).save(folder / "labels" / f"scene{number:02d}.png")
    if categories != len(CATEGORIES):
        names = "\n".join(f"kind{number}" for number in range(categories))
        (folder / "categories.txt").write_text(names + "\n", encoding="utf-8")
    return folder
