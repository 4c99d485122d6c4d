"""What training cost: the patches that tools and agents saw, and the seconds, as their cards say."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

from restoration_env.tools.catalogue import NAMES, TOOLBOXES
from restoration_env.tools.training import TrainingConfig

Card = Mapping[str, Any]
_ALONE = "each tool alone"
_TOOL_DEFAULTS = {field.name: field.default for field in fields(TrainingConfig)}


def agent_cost(card: Card) -> tuple[int | None, float | None]:
    """Patches that an agent saw with tools, and seconds, with those of what it started from; None if unknown."""
    training = card.get("training", {})
    seen = card.get("images_seen", training.get("episodes_done", training.get("steps_done")))
    if seen is None and "iterations_done" in training:
        seen = training["iterations_done"] * training.get("batch", 1)
    origin = card.get("started_from") or {}
    seconds = card.get("seconds")
    return seen, seconds if seconds is None else seconds + (origin.get("seconds") or 0.0)


def toolbox_cost(name: str, folder: Path | None = None) -> tuple[int | None, float | None]:
    """Patches that the tools of a toolbox of twelve saw in training, and seconds; joint training counts once.

    Args:
        name: of the toolbox.
        folder: holds the tools' cards; those that ship in the package if None.

    Returns:
        None and None if there are no such cards.
    """
    stages = toolbox_stages(name, folder)
    if not stages:
        return None, None
    return sum(stage.patches for stage in stages), round(sum(stage.seconds for stage in stages), 1)


class Stage(NamedTuple):
    """What was done with all tools of a toolbox: in words, patches they saw, seconds, and the gain in dB they reached.

    The gain is the agent's on validation images, where the cards say it.
    """

    words: str
    patches: int
    seconds: float
    gain: float | None = None


def toolbox_stages(name: str, folder: Path | None = None) -> list[Stage]:
    """The stages of a toolbox's training, from first to last; none if there are no such cards."""
    if name not in TOOLBOXES:
        return []
    paths = [(folder or TOOLBOXES[name].folder) / f"{tool}.json" for tool in NAMES]
    if not all(path.is_file() for path in paths):
        return []
    runs = {key: run for path in paths for key, run in _runs(path.stem, json.loads(path.read_text(encoding="utf-8")))}
    alone = [stage for stage in runs.values() if stage.words == _ALONE]
    first = Stage(_ALONE, sum(stage.patches for stage in alone), sum(stage.seconds for stage in alone))
    return [first, *(stage for stage in reversed(runs.values()) if stage.words != _ALONE)]


def _runs(tool: str, card: Card) -> Iterator[tuple[str, Stage]]:
    """The training runs behind a tool, the last one first, with what tells them apart: tools may share one."""
    node: Card | None = card
    for place in itertools.count():
        if not node:
            return
        training = node.get("training") or {}
        alone = "tool" in training or not training
        iterations = training.get("iterations_done", training.get("iterations"))
        if iterations is None:
            found = re.search(r"--iterations (\d+)", node.get("command") or "")
            iterations = int(found[1]) if found else _TOOL_DEFAULTS["iterations"]
        patches = iterations * (training.get("batch", _TOOL_DEFAULTS["batch"]) + training.get("own", 0))
        seconds = float(node.get("seconds") or 0.0)
        words = [_ALONE]
        if not alone:
            words = ["in chains" if "lesson" in training else "with the agent"]
            words += ["one network of each size"] if "--tied" in (node.get("command") or "") else []
            words += [f"{training['severity']} damage"] if "severity" in training else []
            words += [f"step {training['learning_rate']:g}"] if "learning_rate" in training else []
        known = json.dumps(training, sort_keys=True) if training else f"{tool} {place}"
        yield known, Stage(", ".join(words), patches, seconds, None if alone else node.get("validation_gain_db"))
        node = _whole(tool, node.get("started_from"))


def _whole(tool: str, origin: Card | None) -> Card | None:
    """The card of what a tool started from: the whole one, with its own beginnings, if those weights ship."""
    for spec in TOOLBOXES.values() if origin else ():
        path = spec.folder / f"{tool}.json"
        card = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        if origin and card.get("sha256") == origin.get("sha256", ""):
            return card
    return origin
