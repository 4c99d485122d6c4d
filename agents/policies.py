"""What a policy is, the simplest ones, and how any of them restores a batch of images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from restoration_env.distortions import check_images
from restoration_env.episodes import NO_ACTION, Episodes
from restoration_env.errors import InvalidArgument
from restoration_env.toolbox import Toolbox


class Policy(Protocol):
    """Chooses an action for each image of a batch, step after step."""

    name: str

    def reset(self, count: int) -> None:
        """Forget what was seen: ``count`` new episodes begin."""

    def act(self, observation: Mapping[str, Tensor]) -> Tensor:
        """Actions int64 (N,) for an observation as `Episodes.observation` gives it."""
        ...


class StopAtOnce:
    """Leaves every image as it is."""

    name = "input"

    def __init__(self, toolbox: Toolbox) -> None:
        self.stop = toolbox.stop

    def reset(self, count: int) -> None:
        """Nothing to forget."""

    def act(self, observation: Mapping[str, Tensor]) -> Tensor:
        """Stop."""
        return torch.full_like(observation["last_action"], self.stop)


class RandomPolicy:
    """Any action with the same probability; the same ones for the same seed."""

    name = "random"

    def __init__(self, toolbox: Toolbox, seed: int = 0) -> None:
        self.actions = len(toolbox) + 1
        self.generator = torch.Generator().manual_seed(seed)

    def reset(self, count: int) -> None:
        """Nothing to forget."""

    def act(self, observation: Mapping[str, Tensor]) -> Tensor:
        """Random actions."""
        last = observation["last_action"]
        return torch.randint(self.actions, last.shape, generator=self.generator).to(last.device)


class FixedChain:
    """The same tools for every image, then stop."""

    def __init__(self, toolbox: Toolbox, tools: Sequence[str]) -> None:
        known = toolbox.action_names()
        for tool in tools:
            if tool not in known:
                raise InvalidArgument("tools", "names among " + ", ".join(known), repr(tool))
        self.name = " > ".join(tools) or "stop"
        self.chain = [known.index(tool) for tool in tools]
        self.stop, self.taken = toolbox.stop, 0

    def reset(self, count: int) -> None:
        """Begin the chain again."""
        self.taken = 0

    def act(self, observation: Mapping[str, Tensor]) -> Tensor:
        """The chain's next tool."""
        action = self.chain[self.taken] if self.taken < len(self.chain) else self.stop
        self.taken += 1
        return torch.full_like(observation["last_action"], action)


@dataclass(frozen=True)
class Restorations:
    """What a policy made of a batch.

    Attributes:
        images: float (N, 3, H, W) in [0, 1], restored.
        actions: int64 (N, max_steps), the actions taken, then -1.
        names: the names of the actions.
        frames: the batch before the first step and after each, float (N, 3, H, W); empty unless asked for.
    """

    images: Tensor
    actions: Tensor
    names: tuple[str, ...]
    frames: tuple[Tensor, ...] = ()

    def toolchains(self) -> list[tuple[str, ...]]:
        """The names of the actions taken, image by image."""
        return [tuple(self.names[a] for a in row if a != NO_ACTION) for row in self.actions.tolist()]


def roll_out(policy: Policy, episodes: Episodes) -> None:
    """Let a policy play the episodes that have begun to their end."""
    policy.reset(len(episodes))
    while not bool(episodes.done.all()):
        episodes.step(policy.act(episodes.observation()))


def restore_batch(
    policy: Policy, toolbox: Toolbox, images: Tensor, *, max_steps: int = 3, keep_frames: bool = False
) -> Restorations:
    """Restore a batch of damaged images, each with the toolchain that the policy chooses for it.

    Args:
        policy: chooses the tools.
        toolbox: holds them.
        images: float (N, 3, H, W) in [0, 1].
        max_steps: the most tools an image gets.
        keep_frames: also return the images after each step.

    Raises:
        InvalidArgument: for images of another shape, type or range.
    """
    check_images(images)
    episodes = Episodes(toolbox, max_steps=max_steps)
    episodes.begin(images)
    policy.reset(len(images))
    frames = [images]
    while not bool(episodes.done.all()):
        episodes.step(policy.act(episodes.observation()))
        if keep_frames:
            frames.append(episodes.images.clamp(0.0, 1.0))
    kept = tuple(frames) if keep_frames else ()
    return Restorations(episodes.images.clamp(0.0, 1.0), episodes.toolchain, toolbox.action_names(), kept)
