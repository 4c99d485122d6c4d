"""Exact-value learning: at a visited state every tool is run, so the reward of every action is known exactly.

The environment is deterministic and cheap to branch. Where Q-learning sees the reward of the one action it took,
this runs all tools on the image and regresses the Q values of all actions at once. What follows is played: from each of
the branches the slowly following target network plays the steps that are left, and what it gains there is added. So an
image teaches as much as an episode for every action at every step would.

With ``returns="estimated"`` what follows is the value that the target gives to the action the learner prefers, as in
double Q-learning, for half the tool runs. But of twelve estimates the best is mostly one that promises too much.
``promising`` stands between the two: only so many branches of each image, those of the best estimates, are played.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from restoration_env.agents.network import UNIT, State, ToolchainNetwork
from restoration_env.agents.replay import EpisodeReplay
from restoration_env.errors import TrainingDiverged, UnknownName
from restoration_env.metrics import psnr
from restoration_env.pixels import eight_bit
from restoration_env.toolbox import Toolbox
from restoration_env.turning import turned

RETURNS = ("played", "estimated")


class Labelled(NamedTuple):
    """Visited states with the value of every action: N episodes of T steps.

    Attributes:
        images: uint8 (N, T, 3, H, W), what was seen.
        last_actions: int64 (N, T), what had been done before it.
        values: float32 (N, T, tools + 1), the return in dB of each action; 0 for stop, NaN where not known.
        valid: bool (N, T), whether the episode came so far.
    """

    images: Tensor
    last_actions: Tensor
    values: Tensor
    valid: Tensor


class Step(NamedTuple):
    """One step of a batch of episodes: what was seen, what was done, what it brought; a row for each episode."""

    image: Tensor
    last_action: Tensor
    action: Tensor
    reward: Tensor
    going: Tensor


def near_choice(q: Tensor, explore: float, temperature: float, generator: torch.Generator) -> Tensor:
    """Actions (N,): the best by Q, or in a share ``explore`` one drawn by how good it seems.

    ``temperature`` is in the units of ``q``. A twentieth of the drawn ones are uniform, so that no tool starves. What
    is of no value at all, minus infinity, is never taken.

    Raises:
        TrainingDiverged: if a value is no number.
    """
    if q.isnan().any():
        raise TrainingDiverged("training diverged: a Q value is no number")
    greedy, possible = q.argmax(1), torch.isfinite(q)
    chances = 0.95 * torch.softmax(q / temperature, 1) + 0.05 * possible / possible.sum(1, keepdim=True)
    drawn = torch.multinomial(chances.cpu(), 1, generator=generator)[:, 0].to(q.device)
    explores = torch.rand(len(q), generator=generator).to(q.device) < explore
    return torch.where(explores, drawn, greedy)


class ExactValues:
    """Learns the Q values of a network from branches.

    Attributes:
        network: the learner.
        target: follows the learner slowly and values what comes after a branch.
        images: how many images it has seen.
    """

    def __init__(
        self,
        network: ToolchainNetwork,
        *,
        max_steps: int = 3,
        learning_rate: float = 1e-3,
        memory: int = 2_000,
        unit: float = UNIT,
        explore: float = 0.3,
        temperature: float = 0.5,
        following: float = 0.99,
        closeness: float = 1.0,
        discount: float = 0.95,
        returns: str = "played",
        promising: int = 0,
        seed: int = 0,
    ) -> None:
        if returns not in RETURNS:
            raise UnknownName("returns", returns, RETURNS)
        self.network, self.max_steps, self.unit, self.returns = network, max_steps, unit, returns
        self.promising = promising
        self.explore, self.temperature = explore, temperature / unit
        self.following, self.closeness, self.discount = following, closeness, discount
        self.target = copy.deepcopy(network).requires_grad_(False).eval()
        self.optimizer = torch.optim.AdamW(network.parameters(), learning_rate, weight_decay=1e-4)
        self.replay: EpisodeReplay[Labelled] = EpisodeReplay(memory)
        self.generator = torch.Generator().manual_seed(seed)
        self.images = 0

    @torch.no_grad()
    def visit(self, toolbox: Toolbox, clean: Tensor, damaged: Tensor) -> None:
        """Play a batch near the learner's choice, running every tool at every step, and remember the values."""
        n, device, steps = len(clean), clean.device, []
        images, quality = damaged, psnr(damaged, clean)
        last = torch.full((n,), toolbox.stop, device=device)
        going = torch.ones(n, dtype=torch.bool, device=device)
        own, theirs = self.network.initial_state(n), self.target.initial_state(n)
        for left in range(self.max_steps - 1, -1, -1):
            seen = eight_bit(images)
            features = self.network.features(seen)
            q, own = self.network.advance(features, last, own)
            branches = torch.stack([tool(images) for tool in toolbox])  # (tools, N, 3, H, W)
            qualities = torch.stack([psnr(branch, clean) for branch in branches])
            values = qualities - quality
            if left:
                _, theirs = self.target(seen, last, theirs)
                values += self._following(toolbox, clean, branches, qualities, values, own, theirs, left)
            stop = torch.zeros(1, n, dtype=values.dtype, device=device)
            steps.append((seen, last, torch.cat((values, stop)).T.float(), going))
            actions = near_choice(q, self.explore, self.temperature, self.generator)
            going = going & (actions != toolbox.stop)
            taken, rows = actions.clamp_max(toolbox.stop - 1), torch.arange(n, device=device)
            images = torch.where(going.view(-1, 1, 1, 1), branches[taken, rows], images)
            quality = torch.where(going, qualities[taken, rows], quality)
            last = torch.where(going, actions, last)
        self.replay.add(Labelled(*(torch.stack(parts, 1) for parts in zip(*steps, strict=True))))
        self.images += n

    def _following(
        self,
        toolbox: Toolbox,
        clean: Tensor,
        branches: Tensor,
        qualities: Tensor,
        rewards: Tensor,
        own: State,
        theirs: State,
        left: int,
    ) -> Tensor:
        """What follows each branch in the steps that are left, (tools, N), in dB."""
        tools = len(branches)
        if self.returns == "played" and not 0 < self.promising < tools:
            which = torch.ones_like(rewards, dtype=torch.bool)
            return self._played(toolbox, clean, branches, qualities, theirs, left, which)
        last = torch.arange(tools, device=clean.device)[:, None].expand(rewards.shape)
        worth = [self._worth(eight_bit(b), used, own, theirs) for b, used in zip(branches, last, strict=True)]
        estimated = torch.stack(worth).to(rewards)
        if self.returns == "estimated":
            return estimated
        best = (rewards + estimated).topk(self.promising, dim=0).indices
        which = torch.zeros_like(rewards, dtype=torch.bool).scatter_(0, best, True)
        played = self._played(toolbox, clean, branches, qualities, theirs, left, which)
        return torch.where(which, played, estimated)

    def _played(
        self,
        toolbox: Toolbox,
        clean: Tensor,
        branches: Tensor,
        qualities: Tensor,
        theirs: State,
        left: int,
        which: Tensor,
    ) -> Tensor:
        """What the target gains from some branches, bool (tools, N), by playing them: (tools, N), in dB, 0 elsewhere.

        Never less than nothing: stopping at once is always possible, and a target that knows nothing yet should not
        make good tools look bad.
        """
        last, rows = which.nonzero(as_tuple=True)
        images, wanted, before = branches[last, rows], clean[rows], qualities[last, rows]
        state: State = (theirs[0][rows], theirs[1][rows])
        stopped = torch.zeros_like(last, dtype=torch.bool)
        for _ in range(left):
            q, state = self.target(eight_bit(images), last, state)
            last = torch.where(stopped, toolbox.stop, q.argmax(1))
            stopped = last == toolbox.stop
            images = toolbox.apply(images, last, check=False)
        gained = (psnr(images, wanted) - before).clamp_min(0.0) * self.discount
        return torch.zeros_like(qualities).masked_scatter_(which, gained)

    def _worth(self, images: Tensor, last: Tensor, own: State, theirs: State) -> Tensor:
        """What an image is still worth in dB: the target's value of the action that the learner prefers.

        Taking the target's own best would take its errors for gains (double Q-learning). The discount is there so that
        a tool that changes nothing, and only puts off what is to be done, is worth less than doing it.
        """
        preferred, _ = self.network(images, last, own)
        valued, _ = self.target(images, last, theirs)
        best = valued.gather(1, preferred.argmax(1, keepdim=True))[:, 0]
        return best.clamp_min(0.0) * self.unit * self.discount

    @torch.no_grad()
    def remember(self, steps: Sequence[Step]) -> None:
        """Remember a played batch, of which only the value of the actions taken is known.

        Args:
            steps: what was seen, the last action, the action taken, its reward in dB and whether the episode went
                so far; a row of each for every episode of the batch.
        """
        n, device = len(steps[0].last_action), steps[0].image.device
        images = torch.stack([step.image for step in steps], 1)
        last_actions = torch.stack([step.last_action for step in steps], 1)
        preferred = unroll(self.network, images, last_actions).argmax(2, keepdim=True)
        worth = unroll(self.target, images, last_actions).gather(2, preferred)[..., 0].clamp_min(0.0)
        worth = worth * self.unit * self.discount
        parts = []
        for number, step in enumerate(steps):
            following = torch.zeros(n, device=device)
            if number + 1 < len(steps):
                following = torch.where(steps[number + 1].going, worth[:, number + 1], 0.0)
            values = torch.full((n, self.network.tools + 1), torch.nan, device=device)
            values[torch.arange(n, device=device), step.action] = step.reward.float() + following
            values[:, -1] = 0.0
            parts.append((step.image, step.last_action, values, step.going))
        self.replay.add(Labelled(*(torch.stack(columns, 1) for columns in zip(*parts, strict=True))))

    def _turned(self, images: Tensor) -> Tensor:
        """Images (..., H, W) turned and mirrored at random, all alike: their values stay what they are."""
        return turned(images, int(torch.randint(self.network.ways, (1,), generator=self.generator)))

    def learn(self, count: int = 32) -> float:
        """One update on remembered episodes; returns the loss."""
        batch = self.replay.sample(count, self.generator)
        self.network.train()
        q = unroll(self.network, self._turned(batch.images), batch.last_actions)[batch.valid]
        self.network.eval()
        loss = value_loss(q, batch.values[batch.valid], self.closeness, self.unit)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        for mine, theirs in zip(self.network.parameters(), self.target.parameters(), strict=True):
            theirs.lerp_(mine.detach(), 1.0 - self.following)
        for counted, copied in zip(self.network.buffers(), self.target.buffers(), strict=True):
            copied.copy_(counted)
        return loss.item()

    def state(self) -> dict[str, Any]:
        """All that `restore` needs; the replay memory fills again."""
        return {
            "network": self.network.state_dict(),
            "target": self.target.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "images": self.images,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken."""
        self.network.load_state_dict(state["network"])
        self.target.load_state_dict(state["target"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"])
        self.images = state["images"]


def value_loss(q: Tensor, values: Tensor, closeness: float, unit: float = UNIT) -> Tensor:
    """The Huber loss of predicted values, mean over states.

    What decides is which action is best: those that are, and seem, far below the best need no exact value.

    Args:
        q: float (N, actions), predicted, in units.
        values: float (N, actions), in dB; NaN where not known.
        closeness: in dB, how far behind the best an action may be before its value no longer matters.
        unit: dB of one unit.
    """
    goal = values / unit
    known = torch.isfinite(goal)
    goal = torch.where(known, goal, q.detach())
    behind = (goal.max(1, keepdim=True).values - torch.maximum(goal, q.detach())).clamp_min(0.0) * unit
    weight = known * (0.05 + torch.exp(-behind / closeness))
    return (weight * F.smooth_l1_loss(q, goal, reduction="none", beta=0.1)).sum(1).mean()


def unroll(network: ToolchainNetwork, images: Tensor, last_actions: Tensor) -> Tensor:
    """Q values of every step of episodes, float (N, T, actions)."""
    return unroll_features(network, network.features(images.flatten(0, 1)), last_actions)


def unroll_features(network: ToolchainNetwork, features: Tensor, last_actions: Tensor) -> Tensor:
    """The same of the features (N * T, F) of all that was seen."""
    n, steps = last_actions.shape
    features = features.view(n, steps, -1)
    state, values = network.initial_state(n), []
    for step in range(steps):
        q, state = network.advance(features[:, step], last_actions[:, step], state)
        values.append(q)
    return torch.stack(values, 1)
