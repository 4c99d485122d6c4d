"""What an engineer would use without reinforcement learning: one chain for all images, and a classifier.

The chain is searched on training patches, the classifier names each image's damage and the tools for it follow in
the reverse order of the damage. An agent has to beat both.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from restoration_env.agents.chains import Chain, Progress, Report, check_search, count_chains, parts, run_tool, walk
from restoration_env.agents.classifier import KINDS, WEIGHTS, DistortionClassifier, read_classifier, tool_for
from restoration_env.agents.policies import FixedChain
from restoration_env.devices import find_device
from restoration_env.errors import InvalidArgument
from restoration_env.toolbox import Toolbox

_UNDONE_IN_ORDER = ("jpeg", "noise", "blur")  # images are blurred, then noisy, then compressed


@torch.no_grad()
def best_fixed_chain(
    toolbox: Toolbox,
    clean: Tensor,
    damaged: Tensor,
    *,
    length: int = 3,
    width: int | None = None,
    report: Report = lambda done, total: None,
) -> FixedChain:
    """The chain of ``length`` tools with the highest mean gain on patches that it is not judged on later.

    Args:
        toolbox: holds the tools.
        clean: float (N, 3, H, W) in [0, 1].
        damaged: the same shape.
        length: tools of the chain, exactly.
        width: follow this many prefixes, those with the highest mean gain, from step to step; memory holds the
            images of twice as many. None tries every chain.
        report: called with the tool runs done and in all.

    Raises:
        InvalidArgument: for images of other shapes, types or ranges, and for no tools or prefixes.
    """
    check_search(clean, damaged, length=length, width=1 if width is None else width)
    if width is None:
        chain = _best_of_all(toolbox, clean, damaged, length, report)
    else:
        chain = _best_in_beam(toolbox, clean, damaged, length, width, report)
    policy = FixedChain(toolbox, [toolbox.names[tool] for tool in chain])
    policy.name = f"best chain of {length} ({policy.name})"
    return policy


def _best_of_all(toolbox: Toolbox, clean: Tensor, damaged: Tensor, length: int, report: Report) -> Chain:
    progress = Progress(report, len(damaged) * count_chains(len(toolbox), length))
    sums: dict[Chain, float] = {}
    for part in parts(damaged, held=length + 4):
        for chain, quality in walk(toolbox, clean[part], damaged[part], length):
            if len(chain) == length:
                sums[chain] = sums.get(chain, 0.0) + quality.sum().item()
            progress.add(len(part))
    return max(sums, key=lambda chain: sums[chain])


def _best_in_beam(toolbox: Toolbox, clean: Tensor, damaged: Tensor, length: int, width: int, report: Report) -> Chain:
    tools = len(toolbox)
    followed = sum(min(width, tools**step) for step in range(length))
    progress = Progress(report, len(damaged) * tools * followed)
    beam: list[tuple[float, Chain, Tensor]] = [(0.0, (), damaged)]
    for _ in range(length):
        best: list[tuple[float, Chain, Tensor]] = []
        for _, prefix, images in beam:
            for tool in range(tools):
                result, quality = run_tool(toolbox, tool, images, clean)
                best.append((quality.mean().item(), (*prefix, tool), result))
                best = sorted(best, key=lambda entry: -entry[0])[:width]
                progress.add(len(images))
        beam = best
    return beam[0][1]


class ClassifierPolicy:
    """Looks once at the input, and takes the tool of each kind and strength of damage that it sees.

    The tools follow in the reverse order of the damage: against JPEG artifacts, noise, blur; then it stops. It
    plans anew for every batch, and an episode of fewer steps ends before the later tools.

    Attributes:
        network: the classifier.
        toolbox: what its actions do; any with the twelve tools of the catalogue.
        card: what trained it, or an empty dictionary.

    Raises:
        InvalidArgument: for a toolbox that lacks a tool of the catalogue.
    """

    name = "classifier"

    def __init__(self, network: DistortionClassifier, toolbox: Toolbox, card: Mapping[str, Any] | None = None) -> None:
        self.network, self.toolbox, self.card = network.eval(), toolbox, dict(card or {})
        needed = [[tool_for(kind, level) for level in range(1, 5)] for kind in KINDS]
        missing = [tool for tools in needed for tool in tools if tool not in toolbox.names]
        if missing:
            raise InvalidArgument("toolbox", "one with " + ", ".join(missing), repr(toolbox.name))
        self._actions = torch.tensor([[toolbox.stop, *map(toolbox.names.index, tools)] for tools in needed])
        self._plan: Tensor | None = None
        self._taken = 0

    def reset(self, count: int) -> None:
        """Forget the plan: new images come."""
        self._plan, self._taken = None, 0

    @torch.no_grad()
    def act(self, observation: Mapping[str, Tensor]) -> Tensor:
        """The next tool of each image's plan, int64 (N,)."""
        images, last = observation["image"], observation["last_action"]
        if self._plan is None:
            self._plan = self.plan(self.network(images).argmax(2))
        if self._taken == self._plan.shape[1]:
            return torch.full_like(last, self.toolbox.stop)
        self._taken += 1
        return self._plan[:, self._taken - 1]

    def plan(self, levels: Tensor) -> Tensor:
        """The toolchains, int64 (N, 3), for levels 0..4 (N, 3) of blur, noise and JPEG; stop fills what is left."""
        actions = self._actions.to(levels.device)
        chosen = torch.stack([actions[KINDS.index(kind), levels[:, KINDS.index(kind)]] for kind in _UNDONE_IN_ORDER], 1)
        used_first = (chosen == self.toolbox.stop).to(torch.uint8).sort(dim=1, stable=True).indices
        return chosen.gather(1, used_first)


def load_classifier(
    toolbox: Toolbox, path: str | Path = WEIGHTS / "classifier.safetensors", *, device: str = "cpu"
) -> ClassifierPolicy:
    """The classifier that ships in the package, or that of a safetensors file with its card, as a policy.

    Raises:
        InvalidArgument: if the weights are missing, damaged, or not a classifier of the catalogue's bands, and for
            a toolbox that lacks a tool of the catalogue.
    """
    network, card = read_classifier(path)
    return ClassifierPolicy(network.to(find_device(device)).requires_grad_(False), toolbox, card)
