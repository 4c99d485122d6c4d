"""The lookahead agent: runs the tools, lets a critic judge what they made, and keeps the best toolchain it saw.

The environment can be tried out: a tool gives at decision time what it will give. So the agent need not foresee
outcomes; it searches chains with a beam, as the oracles do (`restoration_env.agents.oracles`), with a learned
critic (`RestoringCritic`) in the place of the clean image. A beam of two runs sixty tools an image where a toolchain
runs three.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from restoration_env.agents.agent import RestorationAgent
from restoration_env.agents.chains import parts
from restoration_env.agents.critic import RestoringCritic
from restoration_env.episodes import NO_ACTION
from restoration_env.pixels import eight_bit
from restoration_env.toolbox import Toolbox


class Plan(NamedTuple):
    """Toolchains for N images, and why.

    Attributes:
        actions: int64 (N, steps), stop where a chain has ended.
        values: float (N, steps, actions), what the best chain found through each action is expected to gain on what
            the steps before it have gained, in dB; 0 for stop, NaN for what was not tried.
    """

    actions: Tensor
    values: Tensor


class LookaheadAgent(RestorationAgent):
    """Plans the toolchain of an image by running tools and judging the outcomes, then follows the plan.

    Attributes:
        width: of the beam: how many chains are followed from step to step; 1 is greedy.
        caution: in dB, what a chain must promise more for every tool it uses.
        risk: the greatest chance of making an image worse that is taken; if it is greater, no tool is used.
    """

    patches_per_side = 4  # of a photograph: a plan runs many tools on each

    def __init__(
        self, network: RestoringCritic, toolbox: Toolbox, max_steps: int = 3, card: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(network, toolbox, max_steps, card)
        self.width = int(self.card.get("width", 2))
        self.risk = float(self.card.get("risk", 1.0))
        self._plan: Plan | None = None
        self._taken = 0

    @property
    def name(self) -> str:  # type: ignore[override]
        """Of the policy in tables; a beam of another width is another policy."""
        return f"lookahead, beam of {self.width}"

    def facts(self) -> dict[str, Any]:
        """What the card must say for the agent to be built again."""
        return {**super().facts(), "width": self.width, "risk": self.risk, "critic_width": self.network.width}

    def reset(self, count: int) -> None:
        """Forget the plan: new images come."""
        self._plan, self._taken = None, 0

    def act(self, observation: Mapping[str, Tensor]) -> Tensor:
        """The next tool of each image's plan, int64 (N,); the plan is made when the images are first seen."""
        last = observation["last_action"]
        if self._plan is None:
            patches = self.patches(observation["image"])
            self._plan = self.plan(patches.unflatten(0, (len(last), -1)), int(observation["steps_left"].max()))
        if self._taken >= self._plan.actions.shape[1]:
            return torch.full_like(last, self.toolbox.stop)
        self.q_values = self._plan.values[:, self._taken]
        self._taken += 1
        return self._plan.actions[:, self._taken - 1]

    def decide(self, image: Tensor) -> tuple[tuple[int, ...], Tensor]:
        """As `RestorationAgent.decide`: the chain with the highest mean of what its patches are expected to gain."""
        device = next(self.network.parameters()).device
        plan = self.plan(self.patches(image[None])[None].to(device), self.max_steps)
        actions = plan.actions[0].tolist()
        count = actions.index(self.toolbox.stop) + 1 if self.toolbox.stop in actions else len(actions)
        return tuple(actions[:count]), plan.values[0, :count]

    @torch.no_grad()
    def plan(self, images: Tensor, steps: int) -> Plan:
        """The toolchains that promise most.

        Args:
            images: uint8 (N, P, 3, S, S), P patches of each image, which get one toolchain together.
            steps: the most tools of a chain.
        """
        held = images.shape[1] * self.width * 2 * len(self.toolbox)
        plans = [self._search(images[rows], steps) for rows in parts(images[:, 0], held)]
        return Plan(*(torch.cat(columns) for columns in zip(*plans, strict=True)))

    def _search(self, images: Tensor, steps: int) -> Plan:
        (n, patches), tools, device = images.shape[:2], len(self.toolbox), images.device
        damaged = images.flatten(0, 1)
        seen = self.network.see_before(damaged)
        prefixes = (damaged.float() / 255.0).view(n, 1, *images.shape[1:])
        chains = torch.full((n, 1, steps), NO_ACTION, device=device)
        found, promised = [], []  # chains (n, M, steps) and what they promise (n, M)
        for step in range(steps):
            beam = prefixes.shape[1]
            flat = prefixes.flatten(0, 2)
            outcomes = torch.stack([tool(flat).to(flat.dtype) for tool in self.toolbox], 1)
            owner = torch.arange(n * patches, device=device).view(n, 1, patches).expand(n, beam, patches).flatten()
            judged = self.network(seen[owner], self.network.see_after(damaged[owner], eight_bit(outcomes)))
            gains = judged.view(n, beam, patches, tools).mean(2)
            grown = chains[:, :, None].repeat(1, 1, tools, 1)
            grown[..., step] = torch.arange(tools, device=device)
            found.append(grown.flatten(1, 2))
            promised.append(gains.flatten(1))
            if step < steps - 1:
                kept = promised[-1].topk(min(self.width, beam * tools), 1).indices
                rows = torch.arange(n, device=device)[:, None]
                outcomes = outcomes.view(n, beam, patches, tools, *images.shape[2:]).transpose(2, 3).flatten(1, 2)
                prefixes, chains = outcomes[rows, kept], found[-1][rows, kept]
        dared = self.network.risk(damaged).view(n, patches).mean(1) <= self.risk
        return self._best(torch.cat(found, 1), torch.cat(promised, 1), dared)

    def _best(self, chains: Tensor, promised: Tensor, dared: Tensor) -> Plan:
        """The plan of each image, of chains (N, M, steps) that promise (N, M) dB; shorter ones come first.

        Where nothing is dared, bool (N,), it is to stop at once.
        """
        stop, steps = self.toolbox.stop, chains.shape[2]
        worth = promised - self.caution * (chains != NO_ACTION).sum(2)
        best = worth.max(1)
        rows = torch.arange(len(chains), device=chains.device)
        actions = torch.where(((best.values > 0.0) & dared)[:, None], chains[rows, best.indices], NO_ACTION)
        values = promised.new_full((len(chains), steps, stop + 1), -torch.inf)
        agree, gained = torch.ones_like(promised, dtype=torch.bool), promised.new_zeros(len(chains))
        for step in range(steps):
            # What continues the plan's first tools, and promises most through each next one.
            goes_on = agree & (chains[..., step] != NO_ACTION)
            offered = torch.where(goes_on, promised - gained[:, None], -torch.inf)
            values[:, step].scatter_reduce_(1, chains[..., step].clamp_min(0), offered, "amax")
            values[:, step, stop] = 0.0
            agree = agree & (chains[..., step] == actions[:, step, None])
            ends_here = agree & (chains[..., step + 1 :] == NO_ACTION).all(2)
            gained = torch.where(ends_here, promised, -torch.inf).amax(1)
        values = torch.where(values == -torch.inf, torch.nan, values)
        return Plan(torch.where(actions == NO_ACTION, stop, actions), values)


def build_agent(
    tensors: Mapping[str, Tensor], toolbox: Toolbox, card: Mapping[str, Any], device: torch.device
) -> LookaheadAgent:
    """The agent that a card describes, with these weights of its critic; it may use any toolbox."""
    critic = RestoringCritic(card["critic_width"], card["patch_size"])
    critic.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    return LookaheadAgent(critic.to(device).requires_grad_(False), toolbox, card["max_steps"], card)
