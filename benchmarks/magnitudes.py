"""How much further damage a tool's training data should carry: a sweep, judged by what the toolbox can do together.

RL-Restore adds slight noise and JPEG to the training data of all tools (Yu et al., CVPR 2018, Section 4.1), and does
not say how much. Here all twelve tools are trained on from the same weights with each of several magnitudes, and the
greedy oracle says what the toolbox gains on mixed damage; beside it, what the tools gain on pure damage of their own
bands. Everything is judged on validation images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from restoration_env.agents.oracles import greedy
from restoration_env.agents.validation import validation_batches
from restoration_env.files import read_weights
from restoration_env.images import ImagePool
from restoration_env.tools.catalogue import CATALOGUE, NAMES, WEIGHTS, cnn_toolbox
from restoration_env.tools.lessons import lessons_done
from restoration_env.tools.restoring import mean_gain
from restoration_env.tools.training import TrainingConfig, train_tool, validation_patches

SIDE = 63
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Magnitudes:
    """The most further damage of a training sample: blur sigma in pixels, noise sigma of 255, lowest JPEG quality."""

    blur: float
    noise: float
    quality: float

    @property
    def name(self) -> str:
        """What tables and folders call it."""
        return "none" if self == NONE else f"blur {self.blur:g}, noise {self.noise:g}, JPEG {self.quality:g}"


NONE = Magnitudes(0.0, 0.0, 100.0)
SWEEP = (NONE, Magnitudes(0, 8, 50), Magnitudes(0, 20, 20), Magnitudes(2, 20, 20), Magnitudes(4, 40, 10))


def configurations(how: Magnitudes, iterations: int, precision: str) -> list[TrainingConfig]:
    """How the twelve tools are trained on with these magnitudes."""
    slight = {"slight_blur": how.blur, "slight_noise": how.noise, "slight_quality": how.quality}
    slight |= {"slight": 0.0} if how == NONE else {}
    return [
        TrainingConfig(
            tool,
            iterations=iterations,
            learning_rate=6e-4,
            start=tool,
            evaluate_every=iterations,
            precision=precision,
            **slight,  # type: ignore[arg-type]
        )
        for tool in NAMES
    ]


def sweep(
    settings: Sequence[Magnitudes],
    iterations: int,
    train: ImagePool,
    validation: ImagePool,
    folder: str | Path,
    *,
    count: int = 96,
    precision: str = "float32",
    tell: Tell = lambda text: None,
) -> list[dict[str, Any]]:
    """Train the shipped tools on with each of some magnitudes, and measure all of these toolboxes and the first.

    What a killed run finished is not trained again.

    Args:
        settings: the magnitudes.
        iterations: optimiser steps of each tool.
        train: images to learn from.
        validation: other images, to measure on.
        folder: keeps the tools, a folder for each setting.
        count: patches of each severity, and of each band.
        precision: of training and of the oracle's tools.
        tell: called before each tool and each measurement.

    Returns:
        A row for the shipped tools and for each setting: the oracle's mean gain in dB on each severity, their mean,
        and the mean over the tools of the gain on pure damage of the own band.
    """
    held_out = validation_batches(validation, count, SIDE, "cpu")
    bands = [validation_patches(validation, spec, TrainingConfig(spec.name, slight=0.0), count) for spec in CATALOGUE]
    rows = []
    for how in (None, *settings):
        title, where = ("as shipped", None) if how is None else (how.name, Path(folder) / how.name)
        if how is not None and where is not None:
            configs = configurations(how, iterations, precision)
            for config in configs[lessons_done(configs, where) :]:
                tell(f"{title}: {config.tool}")
                train_tool(config, train, validation, where)
        tell(f"{title}: the oracle")
        box = cnn_toolbox("cnn12", where, precision=precision)
        gains = {name: greedy(box, *batch).gain.mean().item() for name, batch in held_out.items()}
        with torch.no_grad():
            own = [mean_gain(tool, *band) for tool, band in zip(box, bands, strict=True)]  # type: ignore[arg-type]
        rows.append(
            {
                "magnitudes": title,
                **({} if how is None else asdict(how)),
                "oracle": {name: round(gain, 4) for name, gain in gains.items()},
                "oracle_mean": round(sum(gains.values()) / len(gains), 4),
                "own_band": round(sum(own) / len(own), 4),
                "weights": {tool: read_weights(_file(tool, where))[1]["sha256"] for tool in NAMES},
            }
        )
    return rows


def _file(tool: str, folder: Path | None) -> Path:
    return (folder or WEIGHTS / "cnn12") / f"{tool}.safetensors"


def magnitudes_table(result: dict[str, Any]) -> str:
    """The sweep as Markdown."""
    suites = list(result["rows"][0]["oracle"])
    lines = [f"| further damage up to | {' | '.join(suites)} | mean | own band |", "|---|" + "---|" * (len(suites) + 2)]
    for row in result["rows"]:
        gains = [*(row["oracle"][name] for name in suites), row["oracle_mean"], row["own_band"]]
        lines.append(f"| {row['magnitudes']} | {' | '.join(f'{gain:+.2f}' for gain in gains)} |")
    return "\n".join(lines)
