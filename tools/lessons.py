"""What each tool is trained on, after which other tool, how long and with which step: the recipes of the toolboxes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from restoration_env.errors import InvalidArgument, UnknownName
from restoration_env.tools.catalogue import specification
from restoration_env.tools.training import TrainingConfig


@dataclass(frozen=True)
class Lesson:
    """A row of the recipe: a tool, what it starts from ("" is nothing) and how it is trained."""

    tool: str
    start: str
    learning_rate: float
    iterations: int
    slight_blur: float = 0.0
    slight_noise: float = 8.0
    slight_quality: float = 50.0
    damage: str = ""
    optimizer: str = "adamw"


# In the order of training. Neighbours share what they know of images, so a tool that starts from another needs
# fewer iterations; the deblurring tools, whose task is delicate, need small steps. The second lessons prepare the
# tools for toolchains: what they see there is far more damaged than their own band, and their target is clean.
RECIPE = (
    Lesson("denoise-4", "", 2e-3, 5500),
    Lesson("denoise-3", "denoise-4", 2e-3, 3000),
    Lesson("dejpeg-4", "denoise-3", 2e-3, 5000),
    Lesson("dejpeg-3", "dejpeg-4", 2e-3, 3500),
    Lesson("deblur-4", "dejpeg-4", 6e-4, 4500),
    Lesson("deblur-3", "dejpeg-4", 5e-4, 4000),
    Lesson("denoise-2", "", 2e-3, 5000),
    Lesson("denoise-1", "denoise-2", 5e-4, 4500),
    Lesson("dejpeg-2", "denoise-2", 6e-4, 5000),
    Lesson("dejpeg-1", "dejpeg-2", 4e-4, 4000),
    Lesson("deblur-2", "", 1e-3, 6000),
    Lesson("deblur-1", "", 3e-4, 4500),
    *(
        Lesson(tool, tool, 6e-4, iterations, slight_blur=2.0, slight_noise=20.0, slight_quality=20.0)
        for tool, iterations in (
            ("denoise-4", 1500),
            ("deblur-4", 1500),
            ("dejpeg-4", 1500),
            ("denoise-3", 800),
            ("deblur-3", 800),
            ("dejpeg-3", 800),
            ("denoise-2", 2000),
            ("deblur-2", 2000),
            ("dejpeg-2", 2000),
        )
    ),
)

# The modern networks learn what images are like once for each size, from damage of every kind. All tools begin there,
# and learn what is their own in toolchains (restoration_env.tools.together.first_tools).
MODERN_RECIPE = tuple(
    Lesson(tool, "", 2e-3, 7000, damage="every", optimizer="muon") for tool in ("denoise-4", "denoise-2")
)
RECIPES = {"cnn12": RECIPE, "cnn12-modern": MODERN_RECIPE}


def lessons(tools: Sequence[str], toolbox: str = "cnn12", times: float = 1.0, **changes: Any) -> list[TrainingConfig]:
    """The configurations that train the tools of these names alone, in order, with changes.

    Args:
        tools: names of the table.
        toolbox: a toolbox with a recipe.
        times: multiplies the recipe's iterations.
        changes: settings that replace the recipe's.

    Raises:
        UnknownName: for an unknown tool, or a toolbox whose tools are not trained alone.
        InvalidArgument: if none of the tools is trained alone.
    """
    if toolbox not in RECIPES:
        raise UnknownName("toolbox of tools trained alone", toolbox, RECIPES)
    names = {specification(name).name for name in tools}
    rows = [asdict(lesson) for lesson in RECIPES[toolbox] if lesson.tool in names]
    if not rows:
        alone = ", ".join(dict.fromkeys(lesson.tool for lesson in RECIPES[toolbox]))
        raise InvalidArgument("tools", f"among those of {toolbox} that are trained alone, {alone}", ", ".join(tools))
    for row in rows:
        row["iterations"] = max(1, round(row["iterations"] * times))
    return [TrainingConfig(**{**row, "toolbox": toolbox, **changes}) for row in rows]


def lessons_done(configs: Sequence[TrainingConfig], folder: Path) -> int:
    """How many lessons an earlier, killed run of the same ones has behind it, by the cards in a folder."""
    done = 0
    for number, config in enumerate(configs, 1):
        card = folder / f"{config.tool}.json"
        if card.exists():
            training = json.loads(card.read_text(encoding="utf-8"))["training"]
            training.pop("iterations_done", None)
            if training == asdict(config):
                done = number
    return done
