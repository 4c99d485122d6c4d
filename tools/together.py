"""Tools that learn together, from toolchains: a step of every tool that took part, averaged weights, their files."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from restoration_env.errors import InvalidArgument, TrainingDiverged
from restoration_env.files import read_weights, save_weights
from restoration_env.toolbox import Tool, Toolbox
from restoration_env.tools.catalogue import NAMES, TOOLBOXES, cnn_tool, toolbox_specification
from restoration_env.tools.optimizers import ToolOptimizer

_CARRIED = ("name", "description", "network", "parameters", "licence")  # of a tool's card, whatever it learns
_ORIGIN = ("sha256", "command", "commit", "seconds", "training", "validation_gain_db", "started_from")


def first_tools(
    toolbox: str,
    start: str,
    *,
    tied: bool = False,
    mean: bool = False,
    device: torch.device | str = "cpu",
    precision: str = "float32",
) -> tuple[Toolbox, dict[str, dict[str, Any]]]:
    """Tools to train on, with the weights that another toolbox has or a folder holds, and the cards of these.

    A folder needs one tool of each network: those that it lacks begin with the weights of the first that has theirs.

    Args:
        toolbox: the toolbox to be trained.
        start: a toolbox of the same networks, by name, or a folder.
        tied: tools of the same network are one: the first that is held, under all their names.
        mean: that one has the mean of the weights of all that are held, which makes sense for tools that were one
            before. The cards are the first one's.
        device: of the tools.
        precision: of the tools.

    Raises:
        InvalidArgument: if a folder holds no tool of a network that is needed.
    """
    spec = toolbox_specification(toolbox)
    folder = toolbox_specification(start).folder if start in TOOLBOXES else Path(start)
    held = {name: folder / f"{name}.safetensors" for name in NAMES if (folder / f"{name}.safetensors").exists()}
    cards = {name: read_weights(path)[1] for name, path in held.items()}
    tools: list[Tool] = []
    chosen: dict[str, dict[str, Any]] = {}
    one: dict[str, Tool] = {}
    for name in NAMES:
        fit = [other for other in cards if cards[other]["network"] == spec.network(name)]
        if not fit and name not in cards:
            raise InvalidArgument("start", f"a toolbox or a folder with a {spec.network(name)} tool", repr(start))
        of = name if name in cards and not (tied and fit) else fit[0]
        tool = cnn_tool(name, toolbox, folder, device=device, precision=precision, weights_of=of)
        if tied:
            if mean and of not in one:
                weights = [read_weights(held[other])[0] for other in fit]
                averages = {key: torch.stack([w[key].float() for w in weights]).mean(0) for key in weights[0]}
                cast("nn.Module", tool.function).load_state_dict(averages)
            tool = replace(tool, function=one.setdefault(of, tool).function)
        tools.append(tool)
        chosen[name] = {**cards[of], "name": name, "description": tool.description}
    return Toolbox(toolbox, tools), chosen


class ToolsTogether:
    """The tools of a toolbox in training; the averages of their weights are what is judged and kept.

    Args:
        toolbox: tools whose functions are networks (`torch.nn.Module`), trained in place. Tools with the same one
            learn as one.
        averaging: decay of the average of the weights.
        learning_rate: of AdamW, at the peak.
        optimizer: "adamw" or "muon".
        muon_rate: of Muon, at the peak.
        common: share of each step that all networks of one kind take together, along their mean gradient: a tool
            that is seldom used learns with it what the others see.

    Attributes:
        networks: the networks by the tools' names.
        shared: the numbers of the tools that share a network, by the name of the first.
        kinds: the names of the networks of one architecture, by the first of them.
        average: the averages of all their weights.
        used: int64 (tools,), how often each tool took part.
    """

    def __init__(
        self,
        toolbox: Toolbox,
        averaging: float,
        learning_rate: float,
        optimizer: str = "adamw",
        muon_rate: float = 0.0,
        common: float = 0.0,
    ) -> None:
        self.averaging, self.common, self.steps = averaging, common, 0
        self.networks = nn.ModuleDict({tool.name: cast("nn.Module", tool.function) for tool in toolbox})
        self.networks.requires_grad_(True)
        sharing: dict[int, list[int]] = {}
        for number, network in enumerate(self.networks.values()):
            sharing.setdefault(id(network), []).append(number)
        self.shared = {toolbox.names[numbers[0]]: numbers for numbers in sharing.values()}
        self.optimizers = {
            name: ToolOptimizer(self.networks[name], optimizer, learning_rate, muon_rate) for name in self.shared
        }
        self.kinds: dict[str, list[str]] = {}
        first: dict[tuple[Any, ...], str] = {}
        for name in self.shared if common else ():
            network = self.networks[name]
            kind = (type(network), *(parameter.shape for parameter in network.parameters()))
            self.kinds.setdefault(first.setdefault(kind, name), []).append(name)
        self.walkers = {name: deepcopy(self.networks[name]) for name in self.kinds}  # only how they move counts
        for name, walker in self.walkers.items():
            self.optimizers[f"all as {name}"] = ToolOptimizer(walker, optimizer, learning_rate, muon_rate)
        self.used = torch.zeros(len(toolbox), dtype=torch.long)
        self.average = copied(self.networks.state_dict())

    def descend(self, loss: Tensor, toolchains: Tensor, share: float) -> None:
        """Step every tool that took part, its gradient divided by its uses (RL-Restore, Algorithm 1).

        Args:
            loss: mean of the images' losses.
            toolchains: integers (N, steps); what is no tool, stop or a step not taken, does not count.
            share: of the peak learning rates.

        Raises:
            TrainingDiverged: if the loss is no number; nothing was stepped.
        """
        value = loss.item()
        if not math.isfinite(value):
            raise TrainingDiverged(f"training in toolchains diverged at iteration {self.steps} (loss {value})")
        for optimizer in self.optimizers.values():
            optimizer.zero_grad()
        if loss.requires_grad:  # else no image of the batch was given a tool
            loss.backward()
        taken = toolchains[(toolchains >= 0) & (toolchains < len(self.used))]
        uses = torch.bincount(taken.flatten(), minlength=len(self.used)).cpu()
        self.used += uses
        for first, names in self.kinds.items():
            self._step_all(first, names, len(toolchains), uses, share * self.common)
        for name, numbers in self.shared.items():
            count, network = int(uses[numbers].sum()), self.networks[name]
            if not count:
                continue
            for parameter in network.parameters():
                if parameter.grad is not None:
                    parameter.grad.mul_(len(toolchains) / count)
            nn.utils.clip_grad_norm_(network.parameters(), 20.0)
            self.optimizers[name].step(share * (1.0 - self.common))
        self.steps += 1
        decay = min(self.averaging, self.steps / (self.steps + 10))
        for name, weights in self.networks.state_dict().items():
            self.average[name].lerp_(weights, 1.0 - decay)

    @torch.no_grad()
    def _step_all(self, first: str, names: Sequence[str], images: int, uses: Tensor, share: float) -> None:
        """Move all networks of one kind alike, along the mean gradient of their uses."""
        count = int(sum(uses[self.shared[name]].sum() for name in names))
        if not count:
            return
        walker, optimizer = self.walkers[first], self.optimizers[f"all as {first}"]
        each = [list(self.networks[name].parameters()) for name in names]
        for walked, *others in zip(walker.parameters(), *each, strict=True):
            gradients = [parameter.grad for parameter in others if parameter.grad is not None]
            walked.grad = torch.stack(gradients).sum(0).mul_(images / count) if gradients else None
        nn.utils.clip_grad_norm_(walker.parameters(), 20.0)
        before = copied(dict(walker.named_parameters()))
        optimizer.step(share)
        for (name, moved), *others in zip(walker.named_parameters(), *each, strict=True):
            for parameter in others:
                parameter += moved - before[name]

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the networks have the averages of their weights."""
        current = copied(self.networks.state_dict())
        self.networks.load_state_dict(self.average)
        try:
            yield
        finally:
            self.networks.load_state_dict(current)

    def state(self) -> dict[str, Any]:
        """All that `restore` needs."""
        return {
            "networks": self.networks.state_dict(),
            "average": self.average,
            "walkers": {name: walker.state_dict() for name, walker in self.walkers.items()},
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "used": self.used,
            "steps": self.steps,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken."""
        self.networks.load_state_dict(state["networks"])
        for name, average in self.average.items():
            average.copy_(state["average"][name])
        for name, walker in self.walkers.items():
            walker.load_state_dict(state["walkers"][name])
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        self.used, self.steps = state["used"], state["steps"]

    def write(
        self,
        folder: Path,
        weights: Mapping[str, Tensor],
        cards: Mapping[str, Mapping[str, Any]],
        facts: Mapping[str, Any],
    ) -> None:
        """Write weights and a card of every tool.

        Args:
            folder: receives ``<tool>.safetensors`` and ``<tool>.json``.
            weights: of all tools, as `average` holds them.
            cards: the tools' cards before, by name.
            facts: what all new cards say.
        """
        self.networks.load_state_dict(weights)
        for number, (name, network) in enumerate(self.networks.items()):
            before = cards.get(name, {})
            kept = {key: before[key] for key in _CARRIED if key in before}
            origin = {key: before[key] for key in _ORIGIN if key in before}
            card = {**kept, "started_from": origin, "uses": int(self.used[number]), **facts}
            save_weights(folder / f"{name}.safetensors", network.state_dict(), card)


def copied(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors that later steps leave as they are."""
    return {name: value.detach().clone() for name, value in state.items()}
