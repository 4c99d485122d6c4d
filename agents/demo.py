"""The demonstration: photographs nobody trained on, damaged with a seed and restored step by step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from restoration_env.agents.agent import RestorationAgent
from restoration_env.agents.photo import Restoration, restore
from restoration_env.distortions import distort, recipe
from restoration_env.errors import InvalidArgument
from restoration_env.images import load_images
from restoration_env.metrics import psnr
from restoration_env.randomness import draw_keys, normal, uniform
from restoration_env.rendering import Strip, contact_sheet

_SIDE = 288
# Photograph, its split, and the corner (top, left) of the square that shows its subject.
_SCENES = (
    ("chelsea", "test", (4, 80)),
    ("coffee", "test", (56, 136)),
    ("rocket", "validation", (104, 172)),
)


@dataclass(frozen=True, eq=False)
class Scene:
    """One photograph of the demonstration.

    Attributes:
        name: of the photograph.
        clean: uint8 (H, W, 3).
        strengths: blur sigma in pixels, noise sigma on the 0-255 scale, JPEG quality.
        restoration: what the agent made of the damaged photograph.
        psnr: in dB, of the damaged photograph and after each step.
    """

    name: str
    clean: np.ndarray
    strengths: tuple[float, float, float]
    restoration: Restoration
    psnr: tuple[float, ...]

    @property
    def gain(self) -> float:
        """Of all steps together, in dB."""
        return self.psnr[-1] - self.psnr[0]

    def damage(self) -> str:
        """The damage in words."""
        blur, noise, quality = self.strengths
        return f"blur {blur:.1f}, noise {noise:.0f}, JPEG {quality:.0f}"

    def steps(self) -> list[tuple[str, float]]:
        """Each step's name, the first one "damaged", and the PSNR after it in dB."""
        return list(zip(("damaged", *self.restoration.toolchain), self.psnr, strict=True))

    def as_json(self) -> dict[str, Any]:
        """The numbers; no JPEG compression is quality null."""
        blur, noise, quality = self.strengths
        return {
            "photograph": self.name,
            "blur_sigma": blur,
            "noise_sigma": noise,
            "jpeg_quality": quality if np.isfinite(quality) else None,
            "steps": [{"name": name, "psnr": value} for name, value in self.steps()],
            "gain": self.gain,
        }


def play(agent: RestorationAgent, severity: str = "moderate", seed: int = 0) -> list[Scene]:
    """Damage and restore the demonstration's photographs.

    Args:
        agent: restores them.
        severity: a recipe's name, as `recipe` knows it.
        seed: of the damage, 0 or more; the same seed gives the same damage on every machine.

    Raises:
        InvalidArgument: for an unknown severity and a negative seed.
    """
    if seed < 0:
        raise InvalidArgument("seed", "0 or more", seed)
    keys = torch.from_numpy(draw_keys(np.random.default_rng(seed), len(_SCENES)))
    how, drawn = recipe(severity), uniform(keys, 4, stream=2)
    strengths = how.draw(drawn)
    clean = torch.stack([_scene(*scene) for scene in _SCENES])
    noise = normal(keys, tuple(clean.shape[1:]), stream=3)
    damaged = distort(clean.float() / 255.0, *strengths, noise=noise, lost=how.lost(drawn))
    scenes = []
    for i, (name, _, _) in enumerate(_SCENES):
        result = restore(_pixels((damaged[i] * 255.0).round().to(torch.uint8)), agent)
        quality = [psnr(_float(frame), clean[i : i + 1] / 255.0).item() for frame in result.frames]
        blur, noise_sigma, jpeg = (values[i].item() for values in strengths)
        scenes.append(Scene(name, _pixels(clean[i]), (blur, noise_sigma, jpeg), result, tuple(quality)))
    return scenes


def contact_sheet_of(scenes: list[Scene], title: str) -> np.ndarray:
    """A row for each photograph: damaged, after each step, and clean; uint8 (H, W, 3)."""
    strips = []
    for scene in scenes:
        (_, first), *steps = scene.steps()
        captions = [("damaged", f"{first:.2f} dB")]
        for before, (tool, value) in zip(scene.psnr, steps, strict=False):
            captions.append((tool, f"{value:.2f} dB {value - before:+z.2f}"))
        label = f"{scene.name}: {scene.damage()}, together {scene.gain:+z.2f} dB"
        strips.append(Strip(scene.restoration.frames, captions, label, (scene.clean, ("clean", ""))))
    return contact_sheet(strips, title=title)


def _scene(name: str, split: str, corner: tuple[int, int]) -> Tensor:
    pool = load_images("bundled", split)
    which = [file.partition(".")[0] for file in pool.names].index(name)
    top, left = corner
    return pool.images[which][:, top : top + _SIDE, left : left + _SIDE]


def _pixels(image: Tensor) -> np.ndarray:
    return np.ascontiguousarray(image.permute(1, 2, 0).numpy())


def _float(frame: np.ndarray) -> Tensor:
    return torch.from_numpy(frame).permute(2, 0, 1)[None] / 255.0
