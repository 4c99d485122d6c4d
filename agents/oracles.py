"""Oracles: the best toolchain of each image by the clean image itself, which no policy sees.

They bound what a policy can gain with a toolbox, and the distance to the bound is the policy's regret. The tools
of many chains begin alike, so each prefix is computed once, for a batch of images at a time. PSNR is measured
after every tool, and an image may keep what any prefix made of it: stopping is always allowed.

The gains reported are those of the chosen chains played again as episodes on the whole batch. Convolutions round
differently in batches of another size, so of two oracles that choose equally good chains one may seem better by a
millionth of a dB.

Several images may be made to share a chain, the best one in the mean: so one finds out what it is worth to know less
than everything (`restoration_env.benchmarks.ceilings`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from restoration_env.agents.chains import Progress, Report, check_search, count_chains, parts, run_tool, walk
from restoration_env.episodes import NO_ACTION, Episodes
from restoration_env.errors import InvalidArgument
from restoration_env.metrics import psnr
from restoration_env.toolbox import Toolbox


@dataclass(frozen=True)
class OracleResult:
    """The toolchains an oracle chose for N images, and what they gain.

    Attributes:
        gain: float64 (N,), the gain in PSNR over the damaged images, in dB.
        toolchains: int64 (N, max_steps), the tools chosen, then ``NO_ACTION``; stop is not among them.
        psnr: float64 (N,), of the restored images, in dB.
    """

    gain: Tensor
    toolchains: Tensor
    psnr: Tensor


@torch.no_grad()
def greedy(
    toolbox: Toolbox,
    clean: Tensor,
    damaged: Tensor,
    *,
    max_steps: int = 3,
    together: int = 1,
    report: Report = lambda done, total: None,
) -> OracleResult:
    """The best next tool, step after step, as long as there is a gain.

    Args:
        toolbox: holds the tools.
        clean: float (N, 3, H, W) in [0, 1].
        damaged: the same shape.
        max_steps: the most tools of a chain.
        together: so many consecutive images get one chain, and what counts is their mean gain.
        report: called with the tool runs done and their number if no image stops early.

    Raises:
        InvalidArgument: for images of other shapes, types or ranges, no steps, and groups that do not come out even.
    """
    check_search(clean, damaged, max_steps=max_steps, together=together)
    tools = len(toolbox)
    progress = Progress(report, len(damaged) * tools * max_steps)
    found = _Best(damaged, clean, max_steps, together)
    for part in parts(damaged, 3, together):
        going, images, target = part, *(_members(side, part, together) for side in (damaged, clean))
        for step in range(max_steps):
            best, action, after = found.psnr[going], torch.full_like(going, NO_ACTION), images
            for tool in range(tools):
                result, quality = run_tool(toolbox, tool, images, target)
                quality = _mean(quality, together)
                better = quality > best
                best, action = torch.where(better, quality, best), torch.where(better, tool, action)
                after = torch.where(better.repeat_interleave(together).view(-1, 1, 1, 1), result, after)
                progress.add(len(images))
            gains = action != NO_ACTION
            progress.add(int((~gains).sum()) * together * tools * (max_steps - step - 1))
            kept = gains.repeat_interleave(together)
            going, images, target = going[gains], after[kept], target[kept]
            found.chains[going, step], found.psnr[going] = action[gains], best[gains]
            if not len(going):
                break
    return play(toolbox, clean, damaged, found.chains.repeat_interleave(together, 0))


@torch.no_grad()
def beam(
    toolbox: Toolbox,
    clean: Tensor,
    damaged: Tensor,
    *,
    width: int = 4,
    max_steps: int = 3,
    report: Report = lambda done, total: None,
) -> OracleResult:
    """The best chain found when ``width`` prefixes of each image are followed from step to step.

    With plain beam search a wider beam can end worse, because what it finds crowds out the prefix that would have
    led on. Here slot k takes the best prefix that continues one of the slots 1 to k and is in none of those before
    it (Lemons et al., "Beam Search: Faster and Monotonic", ICAPS 2022). So a beam holds every narrower one, the
    narrowest holds the greedy chain, and one of ``len(toolbox) ** (max_steps - 1)`` slots holds all chains.

    Args:
        toolbox: holds the tools.
        clean: float (N, 3, H, W) in [0, 1].
        damaged: the same shape.
        width: slots of the beam.
        max_steps: the most tools of a chain.
        report: called with the tool runs done and in all.

    Raises:
        InvalidArgument: for images of other shapes, types or ranges, no slots and no steps.
    """
    check_search(clean, damaged, max_steps=max_steps, width=width)
    tools = len(toolbox)
    slots = [min(width, tools**step) for step in range(max_steps)]
    progress = Progress(report, len(damaged) * tools * sum(slots))
    found = _Best(damaged, clean, max_steps)
    held = max(6 * count + (count * tools if step < max_steps - 1 else 0) for step, count in enumerate(slots))
    for part in parts(damaged, held):
        prefixes, chains = damaged[part][:, None], found.chains.new_empty(len(part), 1, 0)
        for step, count in enumerate(slots):
            last = step == max_steps - 1
            target, children, qualities = clean[part].repeat_interleave(count, 0), [], []
            for tool in range(tools):
                result, quality = run_tool(toolbox, tool, prefixes.flatten(0, 1), target)
                qualities.append(quality)
                children += [] if last else [result]
                progress.add(len(quality))
            values = torch.stack(qualities, 1).view(len(part), count * tools)
            actions = torch.arange(tools, device=chains.device).repeat(len(part), count)[..., None]
            chains = torch.cat((chains.repeat_interleave(tools, 1), actions), 2)
            rows, best = torch.arange(len(part), device=part.device), values.argmax(1)
            found.offer(part, values[rows, best], chains[rows, best])
            if last:
                break
            kept = _fill_slots(values, tools, slots[step + 1])
            prefixes = torch.stack(children, 1).unflatten(0, (len(part), count)).flatten(1, 2)[rows[:, None], kept]
            chains = chains[rows[:, None], kept]
    return play(toolbox, clean, damaged, found.chains)


@torch.no_grad()
def exhaustive(
    toolbox: Toolbox,
    clean: Tensor,
    damaged: Tensor,
    *,
    max_steps: int = 3,
    together: int = 1,
    report: Report = lambda done, total: None,
) -> OracleResult:
    """The best of all chains: of twelve tools and three steps, 1 + 12 + 144 + 1,728 for each image.

    The chains are walked depth first, so no more than ``max_steps`` images are held for each one of a batch. Of
    equally good chains the shortest is chosen.

    Args:
        toolbox: holds the tools.
        clean: float (N, 3, H, W) in [0, 1].
        damaged: the same shape.
        max_steps: the most tools of a chain.
        together: so many consecutive images get one chain, and what counts is their mean gain.
        report: called with the tool runs done and in all.

    Raises:
        InvalidArgument: for images of other shapes, types or ranges, no steps, and groups that do not come out even.
    """
    check_search(clean, damaged, max_steps=max_steps, together=together)
    progress = Progress(report, len(damaged) * count_chains(len(toolbox), max_steps))
    found = _Best(damaged, clean, max_steps, together)
    for part in parts(damaged, max_steps + 4, together):
        images, target = (_members(side, part, together) for side in (damaged, clean))
        for chain, quality in walk(toolbox, target, images, max_steps):
            found.offer(part, _mean(quality, together), torch.tensor(chain, device=part.device))
            progress.add(len(images))
    return play(toolbox, clean, damaged, found.chains.repeat_interleave(together, 0))


def regret(oracle: OracleResult, gain: Tensor) -> Tensor:
    """How far gains stay behind an oracle's on the same images, in dB.

    Args:
        oracle: what the oracle found.
        gain: (N,), a policy's gains in dB.

    Returns:
        float64 (N,).

    Raises:
        InvalidArgument: if the gains are not those of as many images.
    """
    if gain.shape != oracle.gain.shape:
        raise InvalidArgument("gain", f"of the oracle's shape {tuple(oracle.gain.shape)}", tuple(gain.shape))
    return oracle.gain - gain.to(oracle.gain)


class _Best:
    """The best chain of each image, or of each group of them, so far; at first it is left alone."""

    def __init__(self, damaged: Tensor, clean: Tensor, max_steps: int, together: int = 1) -> None:
        if len(damaged) % together:
            raise InvalidArgument("together", f"a number that divides that of the images, {len(damaged)}", together)
        self.psnr = _mean(psnr(damaged, clean), together)
        self.chains = torch.full((len(self.psnr), max_steps), NO_ACTION, device=damaged.device)

    def offer(self, part: Tensor, quality: Tensor, chains: Tensor) -> None:
        """Take chains, (steps,) or one for each image, where they are better, or as good and shorter."""
        before, steps = self.psnr[part], chains.shape[-1]
        shorter = (self.chains[part] != NO_ACTION).sum(1) > steps
        better = (quality > before) | ((quality == before) & shorter)
        padded = torch.full_like(self.chains[part], NO_ACTION)
        padded[:, :steps] = chains
        self.psnr[part] = torch.where(better, quality, before)
        self.chains[part] = torch.where(better[:, None], padded, self.chains[part])


def _fill_slots(quality: Tensor, tools: int, count: int) -> Tensor:
    """Which continuations (N, slots * tools) take the slots of the next step, int64 (N, count)."""
    left, kept = quality.clone(), []
    for slot in range(count):
        kept.append(left[:, : (slot + 1) * tools].argmax(1))
        left.scatter_(1, kept[-1][:, None], -torch.inf)
    return torch.stack(kept, 1)


def _members(images: Tensor, groups: Tensor, together: int) -> Tensor:
    """The images of some groups of ``together`` consecutive ones."""
    return images.unflatten(0, (-1, together))[groups].flatten(0, 1)


def _mean(quality: Tensor, together: int) -> Tensor:
    """The mean of each group."""
    return quality.view(-1, together).mean(1)


@torch.no_grad()
def play(toolbox: Toolbox, clean: Tensor, damaged: Tensor, chains: Tensor) -> OracleResult:
    """The result of toolchains, by playing them.

    Args:
        toolbox: holds the tools.
        clean: float (N, 3, H, W) in [0, 1].
        damaged: the same shape.
        chains: int64 (N, max_steps), tools, then ``NO_ACTION``.
    """
    episodes = Episodes(toolbox, max_steps=chains.shape[1])
    episodes.begin(damaged, clean)
    for actions in torch.where(chains == NO_ACTION, toolbox.stop, chains).unbind(1):
        episodes.step(actions)
    return OracleResult(episodes.psnr - episodes.psnr_initial, chains, episodes.psnr)
