"""The decision process of RL-Restore (Yu et al., CVPR 2018, Section 3), for a batch of images at once.

State: the image as restored so far, the previous action, the steps left. Action: a tool, or stop. Reward: the
gain in PSNR. An episode ends with the stop action or when its steps are used up. Everything that steps in
this project, environments, agents, oracles and the restoration of photographs, stands on this one class.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from restoration_env.devices import has_loops, loops, to_device
from restoration_env.errors import InvalidArgument, UnknownName
from restoration_env.metrics import METRICS, decibels, metric, psnr
from restoration_env.pixels import eight_bit
from restoration_env.toolbox import Toolbox
from restoration_env.workers import by_parts

NO_ACTION = -1  # in a toolchain: a step not taken


class Episodes:
    """N restoration episodes on one device; `begin` comes first.

    Attributes:
        toolbox: what the actions do.
        max_steps: the most actions of an episode; stop counts as one.
        images: float (N, 3, H, W), as restored so far, not clipped (as published).
        pixels: uint8 (N, H, W, 3), the same as an agent sees them.
        damaged: float (N, 3, H, W), as the episode began.
        clean: float (N, 3, H, W); NaN where there is no reference, as for real photographs.
        psnr: float64 (N,), of the images.
        psnr_initial: float64 (N,), of the damaged ones.
        score: float64 (N,), of the images in the metric whose gain is the reward.
        last_action: int64 (N,), the action taken last; ``len(toolbox)``, stop, before the first.
        steps_left: int64 (N,).
        done: bool (N,).
        toolchain: int64 (N, max_steps), the actions taken, then ``NO_ACTION``.
    """

    images: Tensor
    pixels: Tensor
    damaged: Tensor
    clean: Tensor
    psnr: Tensor
    psnr_initial: Tensor
    score: Tensor
    last_action: Tensor
    steps_left: Tensor
    done: Tensor
    toolchain: Tensor

    def __init__(self, toolbox: Toolbox, *, max_steps: int = 3, reward: str = "psnr") -> None:
        if not isinstance(max_steps, int) or max_steps < 1:
            raise InvalidArgument("max_steps", "an integer of 1 or more", repr(max_steps))
        if reward not in METRICS:
            raise UnknownName("reward", reward, METRICS)
        self.toolbox, self.max_steps = toolbox, max_steps
        self.metric = metric(reward)

    def __len__(self) -> int:
        return len(self.images)

    def begin(
        self,
        damaged: Tensor,
        clean: Tensor | None = None,
        rows: Tensor | None = None,
        *,
        where: Tensor | None = None,
    ) -> None:
        """Begin new episodes, in all rows or in the given ones.

        Args:
            damaged: float (N, 3, H, W) in [0, 1].
            clean: the references, the same shape; without them every PSNR and reward is NaN.
            rows: int64 (N,), the rows to begin anew; None replaces the whole batch.
            where: bool (N,) instead: of a whole batch, the rows to begin anew. No one has to know how many they are.
        """
        if rows is None and where is None:  # the caller's own stay as they are when single rows begin anew
            damaged, clean = damaged.clone(), None if clean is None else clean.clone()
        self.begin_at(start(damaged, clean), rows, where=where)

    def begin_at(
        self, begun: Start, rows: Tensor | None = None, *, where: Tensor | None = None, laid: bool = False
    ) -> None:
        """`begin` with what `start` made of images, which are the episodes' own from now on.

        ``laid``: `lay` was called with the same.
        """
        damaged, clean, images, pixels, quality = begun
        count, device = len(damaged), damaged.device
        large = {} if laid else {"images": images, "damaged": damaged, "clean": clean}
        fresh = {
            **large,
            "pixels": pixels,
            "psnr": quality,
            "psnr_initial": quality.clone(),
            "score": quality.clone() if self.metric is psnr else self.metric(damaged, clean),
            "last_action": torch.full((count,), self.toolbox.stop, device=device),
            "steps_left": torch.full((count,), self.max_steps, device=device),
            "done": torch.zeros(count, dtype=torch.bool, device=device),
            "toolchain": torch.full((count, self.max_steps), NO_ACTION, device=device),
        }
        for name, value in fresh.items():
            if where is not None:
                wide = where.view(-1, *(1,) * (value.ndim - 1))
                setattr(self, name, torch.where(wide, value, getattr(self, name)))
            elif rows is None:
                setattr(self, name, value)
            else:
                getattr(self, name).index_copy_(0, rows, value)

    def lay(self, begun: Start, rows: Tensor) -> None:
        """The first part of `begin_at` in rows that are done: what nobody looks at in them any more, and is large."""
        for old, new in ((self.images, begun.images), (self.damaged, begun.damaged), (self.clean, begun.clean)):
            old.index_copy_(0, rows, new)

    def step(self, actions: Tensor, beside: Sequence[Callable[[], Any]] = ()) -> Tensor:
        """Take one action in every episode; an episode that is done stays as it is, with reward 0.

        Args:
            actions: int64 (N,), 0 .. len(toolbox); the last one stops.
            beside: what else to call while tools are applied.

        Returns:
            Rewards, float64 (N,): the gain in PSNR (or the chosen metric), exactly 0 for stop.
        """
        stop, given = self.toolbox.stop, actions
        actions = to_device(actions, self.images.device)
        chosen = torch.where(self.done, stop, actions)
        if given.device == self.images.device:
            self.images = self.toolbox.apply(self.images, chosen, check=False, beside=beside)
        else:  # what the host knows already is not asked of the device
            made = self.toolbox.apply(self.images, given, check=False, beside=beside)
            self.images = torch.where(self.done.view(-1, 1, 1, 1), self.images, made)

        ending, before = self.ending(chosen), self.score
        quality, self.pixels = by_parts(_seen, self.images, self.clean)
        self.psnr = torch.where(chosen == stop, self.psnr, quality)
        if self.metric is psnr:
            self.score = self.psnr.clone()
        else:
            self.score = torch.where(chosen == stop, before, self.metric(self.images, self.clean))
        rewards = torch.where(chosen == stop, 0.0, self.score - before)

        taken = (self.max_steps - self.steps_left).clamp_max(self.max_steps - 1)[:, None]
        record = torch.where(self.done, self.toolchain.gather(1, taken)[:, 0], actions)
        self.toolchain = self.toolchain.scatter(1, taken, record[:, None])
        self.last_action = torch.where(self.done, self.last_action, chosen)
        self.steps_left = torch.where(self.done, self.steps_left, self.steps_left - 1)
        self.done = self.done | ending
        return rewards

    def ending(self, actions: Tensor) -> Tensor:
        """Which episodes end with these actions, int64 (N,), bool (N,): known before any tool is applied."""
        return ~self.done & ((actions == self.toolbox.stop) | (self.steps_left == 1))

    def observation(self, rows: Tensor | None = None, *, channels_last: bool = False) -> dict[str, Tensor]:
        """What a policy sees: ``image`` uint8 (N, 3, H, W), ``last_action`` and ``steps_left`` int64 (N,).

        Args:
            rows: int64 (M,), to see only these episodes; None for all.
            channels_last: images as (N, H, W, 3) instead.
        """
        parts = (self.pixels, self.last_action, self.steps_left)
        pixels, last_action, steps_left = (part.clone() if rows is None else part[rows] for part in parts)
        image = pixels if channels_last else pixels.permute(0, 3, 1, 2).contiguous()
        return {"image": image, "last_action": last_action, "steps_left": steps_left}

    def action_mask(self) -> Tensor:
        """Which actions can change anything, int8 (N, len(toolbox) + 1): all, and only stop when done."""
        mask = (~self.done).to(torch.int8)[:, None].repeat(1, len(self.toolbox) + 1)
        mask[:, -1].fill_(1)
        return mask

    def info(self) -> dict[str, Tensor]:
        """Numbers about the episodes, a row each."""
        return {
            "psnr": self.psnr.clone(),
            "psnr_initial": self.psnr_initial.clone(),
            "psnr_gain": self.psnr - self.psnr_initial,
            "toolchain": self.toolchain.clone(),
            "action_mask": self.action_mask(),
        }


class Start(NamedTuple):
    """What episodes begin with, a row each; attributes as those of `Episodes`."""

    damaged: Tensor
    clean: Tensor
    images: Tensor
    pixels: Tensor
    psnr: Tensor


def start(damaged: Tensor, clean: Tensor | None = None) -> Start:
    """Prepare episodes of images, float (N, 3, H, W), for `Episodes.begin_at`; without references, clean is NaN."""
    clean = torch.full_like(damaged, torch.nan) if clean is None else clean
    if damaged.device.type == "cpu":  # as tools leave images there
        images, clean = (x.contiguous(memory_format=torch.channels_last) for x in (damaged, clean))
        images = images.clone() if images is damaged else images
    else:
        images = damaged.clone()
    quality, pixels = by_parts(_seen, images, clean)
    return Start(damaged, clean, images, pixels, quality)


def joined(parts: Sequence[Start]) -> Start:
    """The rows of several starts, one after the other."""
    return parts[0] if len(parts) == 1 else Start(*map(torch.cat, zip(*parts, strict=True)))


def _seen(images: Tensor, clean: Tensor) -> tuple[Tensor, Tensor]:
    """The PSNR of images, float64 (N,), and their pixels in eight bits, rounded and clipped: uint8 (N, H, W, 3)."""
    seen = images.permute(0, 2, 3, 1)
    if not seen.is_contiguous():
        return psnr(images, clean), torch.stack(eight_bit(images).unbind(1), -1)
    wanted, learned = clean.permute(0, 2, 3, 1), images.requires_grad or clean.requires_grad
    plain = images.dtype == torch.float32 and wanted.is_contiguous() and not learned
    if plain and has_loops(images.device):
        errors, pixels = torch.empty(len(images), dtype=torch.float64), torch.empty(seen.shape, dtype=torch.uint8)
        loops().seen(*(part.flatten(1).numpy() for part in (seen, wanted)), errors.numpy(), pixels.flatten(1).numpy())
        return decibels(errors), pixels
    return psnr(seen, wanted), eight_bit(seen)
