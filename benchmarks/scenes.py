"""Pictures of entries at work: a damaged patch, what each entry makes of it step by step, and real photographs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from restoration_env.agents.policies import restore_batch
from restoration_env.benchmarks.comparison import Entry
from restoration_env.benchmarks.suites import patch_suite, real_suite
from restoration_env.distortions import recipe
from restoration_env.episodes import NO_ACTION
from restoration_env.metrics import psnr
from restoration_env.rendering import Strip, contact_sheet

SIDE = 190  # pixels of a scene


@dataclass(frozen=True, eq=False)
class Picture:
    """One picture of a scene: uint8 (H, W, 3), its name, and a line about it."""

    image: np.ndarray
    name: str
    caption: str


@dataclass(frozen=True, eq=False)
class Scene:
    """A damaged image and what became of it.

    Attributes:
        name: what it is.
        pictures: the damaged one, what entries made of it, and the clean one if there is one.
        steps: the damaged image and what the first entry made of it, step by step.
    """

    name: str
    pictures: tuple[Picture, ...]
    steps: tuple[Picture, ...]


def damaged_scenes(
    entries: Sequence[Entry],
    images: str = "bundled",
    split: str = "test",
    *,
    severities: Sequence[str] = ("mild", "moderate", "severe"),
    seed: int = 31,
    side: int = SIDE,
) -> list[Scene]:
    """A scene of each severity, each another part of another image.

    Args:
        entries: what restores; the first one's steps are kept.
        images: a source of clean images.
        split: which part of it.
        severities: recipes of damage.
        seed: of the part and the damage of the first scene; the others follow.
        side: of the scenes in pixels.
    """
    scenes = []
    for number, severity in enumerate(severities):
        clean, damaged = patch_suite(images, split, recipe(severity), 1, size=side, seed=seed + number).patches()
        scenes.append(_scene(severity, damaged, clean, entries))
    return scenes


def real_scenes(entries: Sequence[Entry], images: str = "bundled-real", count: int = 4) -> list[Scene]:
    """Photographs as they are, of which nobody has a better version."""
    suite = real_suite(images, count)
    return [_scene(f"photograph {n}", damaged, None, entries) for n, (_, damaged) in enumerate(suite.batches(1), 1)]


@torch.no_grad()
def _scene(name: str, damaged: Tensor, clean: Tensor | None, entries: Sequence[Entry]) -> Scene:
    pictures = [_picture(damaged, clean, "as it is" if clean is None else "damaged")]
    steps: list[Picture] = []
    for entry in entries:
        done = restore_batch(entry.policy, entry.toolbox, damaged, max_steps=entry.max_steps, keep_frames=True)
        chain = " > ".join(tool for tool in done.toolchains()[0] if tool != "stop") or "stop at once"
        pictures.append(_picture(done.images, clean, entry.label, chain))
        if not steps:
            tools = [done.names[action] for action in done.actions[0].tolist() if action != NO_ACTION]
            steps = [_picture(damaged, clean, "input")]
            steps += [
                _picture(frame, clean, tool)
                for frame, tool in zip(done.frames[1:], tools, strict=False)
                if tool != "stop"
            ]
    if clean is not None:
        pictures.append(_picture(clean, None, "clean"))
    return Scene(name, tuple(pictures), tuple(steps))


def _picture(image: Tensor, clean: Tensor | None, name: str, chain: str = "") -> Picture:
    pixels = (image[0].clamp(0.0, 1.0) * 255.0).round().to(torch.uint8).permute(1, 2, 0).numpy()
    quality = "" if clean is None else f"{psnr(image, clean).item():.2f} dB"
    return Picture(pixels, name, "; ".join(filter(None, (quality, "" if chain == name else chain))))


def strips(scenes: Sequence[Scene], singles: Sequence[str] = (), title: str | None = None) -> np.ndarray:
    """The paper's qualitative figure: the input, each step, a single network, and the clean image; uint8 (H, W, 3).

    Where a toolchain stops early, what it ended with stands in the places of the steps it did not take.

    Args:
        scenes: a row each.
        singles: labels of entries to show after the steps.
        title: of the figure.
    """
    rows = []
    longest = max((len(scene.steps) for scene in scenes), default=0)
    for scene in scenes:
        shown = list(scene.steps)
        shown += [replace(picture, name="stop") for picture in shown[-1:]] * (longest - len(shown))
        shown += [Picture(p.image, p.name.partition(" (")[0], p.caption) for p in scene.pictures if p.name in singles]
        last = scene.pictures[-1]
        reference = (last.image, ("clean", "")) if last.name == "clean" else None
        captions = [(picture.name, picture.caption.partition(";")[0]) for picture in shown]
        rows.append(Strip([picture.image for picture in shown], captions, scene.name, reference))
    return contact_sheet(rows, title=title)
