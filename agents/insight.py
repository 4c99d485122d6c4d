"""What a policy does, in numbers: which action at which step for which damage, when it stops, what it harms."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from restoration_env.agents.agent import RestorationAgent
from restoration_env.agents.chains import Report
from restoration_env.agents.demo import Scene
from restoration_env.agents.photo import restore
from restoration_env.agents.policies import Policy
from restoration_env.distortions import BLUR_EDGES, JPEG_EDGES, NOISE_EDGES, Recipe, recipe
from restoration_env.episodes import NO_ACTION, Episodes
from restoration_env.errors import check_at_least
from restoration_env.images import ImagePool, damaged_patches
from restoration_env.metrics import psnr
from restoration_env.randomness import draw_keys, uniform
from restoration_env.toolbox import Toolbox

_BATCH = 64
_HARM = -1e-6  # dB; less is rounding, as in the comparison of policies
_LEVELS = ("low", "middle", "high")
# A kind of damage, the edges of its levels, and its thirds in words; JPEG qualities are whole numbers.
_KINDS = (
    ("blur", BLUR_EDGES, ("0-1.7", "1.7-3.3", "3.3-5")),
    ("noise", NOISE_EDGES, ("0-17", "17-33", "33-50")),
    ("JPEG", JPEG_EDGES, ("100-47", "46-27", "26-10")),
)


@dataclass(frozen=True, eq=False)
class PlayRecord:
    """What a policy did with N damaged patches.

    Attributes:
        policy: its name.
        names: of the actions, the last one "stop".
        severity: the recipe of the damage.
        blur: float64 (N,), sigma in pixels.
        noise: float64 (N,), sigma on the 0-255 scale.
        quality: float64 (N,), of the JPEG compression; infinite where there was none.
        actions: int64 (N, steps), the actions taken, then ``NO_ACTION``.
        step_gains: float64 (N, steps), of each step in dB of PSNR; 0 for stop and for steps not taken.
        gain: float64 (N,), of all steps together, in dB.
    """

    policy: str
    names: tuple[str, ...]
    severity: str
    blur: Tensor
    noise: Tensor
    quality: Tensor
    actions: Tensor
    step_gains: Tensor
    gain: Tensor

    def __len__(self) -> int:
        return len(self.gain)

    @property
    def steps(self) -> int:
        """The most actions of an episode."""
        return self.actions.shape[1]

    def going(self) -> Tensor:
        """Which images had not stopped before each step, bool (N, steps)."""
        return self.actions != NO_ACTION


@dataclass(frozen=True, eq=False)
class DamageThird:
    """The images whose blur, noise or compression lies in one third of its range.

    Attributes:
        kind: "blur", "noise" or "JPEG".
        level: "low", "middle" or "high"; high compression is low quality.
        label: the strengths, for example "1.7-3.3".
        members: bool (N,).
    """

    kind: str
    level: str
    label: str
    members: Tensor


@torch.no_grad()
def play_record(
    policy: Policy,
    toolbox: Toolbox,
    pool: ImagePool,
    severity: str = "moderate",
    count: int = 256,
    seed: int = 0,
    *,
    max_steps: int = 3,
    size: int = 63,
    device: torch.device | str = "cpu",
    report: Report = lambda done, total: None,
) -> PlayRecord:
    """Let a policy play ``count`` episodes and keep what it did.

    Args:
        policy: chooses the actions.
        toolbox: what they do.
        pool: clean images, of which those are used that hold a patch.
        severity: a recipe's name, as `recipe` knows it.
        count: episodes.
        seed: of the episodes; the same seed gives the same ones on every machine.
        max_steps: the most actions of an episode.
        size: side of the patches in pixels.
        device: where the policy and the tools compute; the record is on the CPU.
        report: called with the episodes played and their number.

    Raises:
        InvalidArgument: for an unknown severity, no episodes, a negative seed, and images that are too small.
    """
    check_at_least(1, count=count)
    check_at_least(0, seed=seed)
    damage, pool = recipe(severity), pool.fitting(size)
    keys = torch.from_numpy(draw_keys(np.random.default_rng(seed), count))
    actions, gains, totals = [], [], []
    for part in keys.split(_BATCH):
        clean, damaged = damaged_patches(pool, part, damage, size, device=device)
        episodes = Episodes(toolbox, max_steps=max_steps)
        episodes.begin(damaged, clean)
        policy.reset(len(part))
        earned = torch.zeros(len(part), max_steps, dtype=torch.float64)
        step = 0
        while not bool(episodes.done.all()):
            earned[:, step] = episodes.step(policy.act(episodes.observation())).cpu()
            step += 1
        actions.append(episodes.toolchain.cpu())
        gains.append(earned)
        totals.append((episodes.psnr - episodes.psnr_initial).cpu())
        report(sum(map(len, totals)), count)
    blur, noise, quality = (strength.double() for strength in damage.draw(uniform(keys, 4, stream=2)))
    played = torch.cat(actions), torch.cat(gains), torch.cat(totals)
    return PlayRecord(policy.name, toolbox.action_names(), severity, blur, noise, quality, *played)


def action_shares(record: PlayRecord, among: Tensor | None = None) -> Tensor:
    """Share of each action at each step, among the images that had not stopped before it.

    Args:
        record: of a policy.
        among: bool (N,), the images to count; None for all.

    Returns:
        float64 (steps, actions). A row sums to one; it is NaN where no image was left.
    """
    actions = record.actions if among is None else record.actions[among]
    counts = torch.stack([(actions == action).sum(0) for action in range(len(record.names))], 1).double()
    return counts / counts.sum(1, keepdim=True)


def stop_rates(record: PlayRecord) -> Tensor:
    """Share of stop at each step among the images that had not stopped before it, float64 (steps,) or NaN."""
    return action_shares(record)[:, -1]


def damage_thirds(record: PlayRecord) -> tuple[DamageThird, ...]:
    """Nine groups of images: low, middle and high blur, then noise, then compression.

    The thirds of a kind hold as many of its ten levels each (RL-Restore, Section 4), so they mean the same for every
    severity, and mild, moderate and severe damage fills them about evenly. An image without that kind of damage is in
    the low third.
    """
    thirds = []
    for (kind, edges, labels), strengths in zip(_KINDS, (record.blur, record.noise, record.quality), strict=True):
        sign = 1.0 if edges[0] < edges[-1] else -1.0  # the lower the quality, the more damage
        levels = np.interp(sign * strengths.numpy(), sign * np.array(edges), np.arange(len(edges)))
        third = torch.from_numpy(np.minimum(levels * 3 // (len(edges) - 1), 2))
        thirds += [DamageThird(kind, _LEVELS[i], labels[i], third == i) for i in range(3)]
    return tuple(thirds)


def shares_by_damage(record: PlayRecord) -> Tensor:
    """`action_shares` of each of the `damage_thirds`, float64 (9, steps, actions), NaN where no image was left."""
    return torch.stack([action_shares(record, third.members) for third in damage_thirds(record)])


def harm_rate(record: PlayRecord) -> float:
    """Share of images that the policy made worse than they were."""
    return (record.gain < _HARM).double().mean().item()


def tools_used(record: PlayRecord) -> Tensor:
    """How many tools each image got, int64 (N,); stop is none."""
    return (record.going() & (record.actions != len(record.names) - 1)).sum(1)


def mean_tools(record: PlayRecord) -> float:
    """Tools an image got on average."""
    return tools_used(record).double().mean().item()


def mean_step_gains(record: PlayRecord) -> Tensor:
    """Mean gain of each step in dB over the images that had not stopped before it, float64 (steps,) or NaN."""
    return record.step_gains.sum(0) / record.going().sum(0)


def summary(record: PlayRecord) -> dict[str, Any]:
    """All of these numbers for JSON; what no image was left for is null."""
    gains, stops, everyone = mean_step_gains(record), stop_rates(record), torch.ones(len(record), dtype=torch.bool)
    steps = []
    for step in range(record.steps):
        thirds = [
            {"kind": third.kind, "level": third.level, "strength": third.label, **_shares(record, third.members, step)}
            for third in damage_thirds(record)
        ]
        facts = {"stop_rate": _number(stops[step].item()), "gain": _number(gains[step].item())}
        steps.append({"step": step + 1, **_shares(record, everyone, step), **facts, "by_damage": thirds})
    return {
        "policy": record.policy,
        "severity": record.severity,
        "patches": len(record),
        "gain": _number(record.gain.mean().item()),
        "harmed": _number(harm_rate(record)),
        "mean_tools": _number(mean_tools(record)),
        "steps": steps,
    }


def _shares(record: PlayRecord, members: Tensor, step: int) -> dict[str, Any]:
    shares = map(_number, action_shares(record, members)[step].tolist())
    return {
        "images": int(record.going()[members, step].sum()),
        "shares": dict(zip(record.names, shares, strict=True)),
    }


def _number(value: float) -> float | None:
    return round(value, 4) if np.isfinite(value) else None


def restored_scenes(
    agent: RestorationAgent,
    pool: ImagePool,
    severity: str = "moderate",
    count: int = 4,
    seed: int = 0,
    *,
    side: int = 208,
    report: Report = lambda done, total: None,
) -> list[Scene]:
    """Squares of photographs, damaged and restored by an agent; each has the Q values before every step.

    Args:
        agent: restores them.
        pool: clean images; another one for each scene as long as there are any.
        severity: a recipe's name, as `recipe` knows it.
        count: scenes.
        seed: of the places and the damage.
        side: of the squares in pixels, or less if all images are smaller.
        report: called with the scenes done and their number.

    Raises:
        InvalidArgument: for an unknown severity, no scenes, a negative seed, and images under 16 pixels.
    """
    check_at_least(1, count=count)
    check_at_least(0, seed=seed)
    damage = recipe(severity)
    side = min(side, max(min(image.shape[-2:]) for image in pool.images))
    pool = pool.fitting(side)
    drawn = torch.from_numpy(draw_keys(np.random.default_rng(seed), 16 * count))
    which = (uniform(drawn, 1, stream=0)[:, 0] * len(pool)).long().tolist()
    turns = [which[:i].count(image) for i, image in enumerate(which)]  # how often it was drawn before
    order = sorted(range(len(which)), key=turns.__getitem__)[:count]
    scenes = []
    for number in order:
        scenes.append(_scene(agent, pool, damage, drawn[number : number + 1], side))
        report(len(scenes), count)
    return scenes


def harmed_scenes(
    agent: RestorationAgent, pool: ImagePool, record: PlayRecord, seed: int = 0, count: int = 4
) -> list[Scene]:
    """The patches that an agent made most worse, the worst first, played again.

    Args:
        agent: whose record it is.
        pool: the clean images it was made from.
        record: as `play_record` makes it.
        seed: of the record.
        count: at most so many.
    """
    size, keys = agent.network.patch_size, torch.from_numpy(draw_keys(np.random.default_rng(seed), len(record)))
    worst = [row for row in record.gain.argsort()[:count].tolist() if record.gain[row] < _HARM]
    return [_scene(agent, pool.fitting(size), recipe(record.severity), keys[row : row + 1], size) for row in worst]


def _scene(agent: RestorationAgent, pool: ImagePool, damage: Recipe, key: Tensor, side: int) -> Scene:
    """One square, damaged as its key (1,) says and restored."""
    clean, damaged = ((part[0] * 255.0).round() for part in damaged_patches(pool, key, damage, side))
    blur, noise, quality = (strength.item() for strength in damage.draw(uniform(key, 4, stream=2)))
    result = restore(_pixels(damaged), agent)
    values = tuple(psnr(_batch(frame), clean[None] / 255.0).item() for frame in result.frames)
    name = Path(pool.names[int(pool.places(uniform(key, 3, stream=0), side)[0])]).stem
    return Scene(name, _pixels(clean), (blur, noise, quality), result, values)


def _pixels(image: Tensor) -> np.ndarray:
    return np.ascontiguousarray(image.to(torch.uint8).permute(1, 2, 0).numpy())


def _batch(frame: np.ndarray) -> Tensor:
    return torch.from_numpy(frame).permute(2, 0, 1)[None] / 255.0
