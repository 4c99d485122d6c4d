"""The toolchain agent: the trained network with its toolbox, ready to restore."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from restoration_env.agents.network import State, ToolchainNetwork, build_network
from restoration_env.agents.policies import Restorations, restore_batch
from restoration_env.devices import find_device
from restoration_env.episodes import Episodes
from restoration_env.errors import InvalidArgument, UnknownName
from restoration_env.files import read_weights, save_weights
from restoration_env.registry import find_target, load_toolbox
from restoration_env.toolbox import Toolbox
from restoration_env.turning import turned

WEIGHTS = Path(__file__).parent / "weights"
DEFAULT_AGENT = "toolchain-modern"  # whoever names none gets the best one for noise, blur and JPEG
# Agents that do not stand on a toolchain network, by the kind of what they learned.
_BUILDERS = {"critic": "restoration_env.agents.lookahead:build_agent"}


class RestorationAgent(ABC):
    """What all agents share: they restore batches by patches of their size, and whole photographs.

    An image larger than the network's patch is judged by patches spread over it, which take every action together.
    A smaller one is extended by its own edge for the judgement.

    Attributes:
        network: what was learned; it has a ``patch_size``.
        toolbox: what the actions do.
        max_steps: the horizon it was trained for.
        caution: in dB, how much more than stop a tool must promise to be used. Above 0 fewer images are harmed.
        card: what trained it, or an empty dictionary.
        q_values: float (N, actions), those of the latest `act`.
    """

    name = "agent"
    patches_per_side = 8

    def __init__(self, network: Any, toolbox: Toolbox, max_steps: int, card: Mapping[str, Any] | None) -> None:
        self.network, self.toolbox, self.max_steps = network.eval(), toolbox, max_steps
        self.card = dict(card or {})
        self.caution = float(self.card.get("caution", 0.0))
        self.q_values = torch.empty(0)

    @abstractmethod
    def reset(self, count: int) -> None:
        """Forget what was seen: ``count`` new images come."""

    @abstractmethod
    def act(self, observation: Mapping[str, Tensor]) -> Tensor:
        """The next action for each image, int64 (N,)."""

    @abstractmethod
    def decide(self, image: Tensor) -> tuple[tuple[int, ...], Tensor]:
        """The toolchain for one image of any size, chosen by the patches spread over it.

        Nothing of this is remembered; several threads may call it at once.

        Args:
            image: uint8 (3, H, W).

        Returns:
            The actions, stop included if it was chosen, and the mean Q values before each, float
            (steps, actions).
        """

    def facts(self) -> dict[str, Any]:
        """What the card must say for the agent to be built again."""
        return {
            "toolbox": self.toolbox.name,
            "tools": len(self.toolbox),
            "tool_names": list(self.toolbox.names),
            "network": self.network.kind,
            "patch_size": self.network.patch_size,
            "max_steps": self.max_steps,
            "caution": self.caution,
            "parameters": sum(p.numel() for p in self.network.parameters()),
            "licence": "MIT",
        }

    def patches(self, images: Tensor) -> Tensor:
        """Patches (N * P, 3, S, S) spread over images (N, 3, H, W), at most 64 an image."""
        size, (height, width) = self.network.patch_size, images.shape[-2:]
        if (height, width) == (size, size):
            return images
        down, right = max(0, size - height), max(0, size - width)
        if down or right:
            padded = F.pad(images.float(), (0, right, 0, down), mode="replicate")
            images = padded.to(images.dtype)
        tops, lefts = (_spread(side, size, self.patches_per_side) for side in images.shape[-2:])
        pieces = [images[:, :, y : y + size, x : x + size] for y in tops for x in lefts]
        return torch.stack(pieces, 1).flatten(0, 1)

    def restore(self, images: Tensor, *, keep_frames: bool = False) -> Restorations:
        """Restore damaged images.

        Args:
            images: float (N, 3, H, W) in [0, 1], of any size.
            keep_frames: also return the images after each step.

        Returns:
            ``.images`` float (N, 3, H, W) in [0, 1] and ``.actions`` int64 (N, max_steps), padded with -1.

        Raises:
            InvalidArgument: for images of another shape, type or range.
        """
        return restore_batch(self, self.toolbox, images, max_steps=self.max_steps, keep_frames=keep_frames)


class ToolchainAgent(RestorationAgent):
    """Looks at an image and picks the next tool by the highest Q value, or stops.

    Attributes:
        views: 1, or 8 to judge each patch turned and mirrored in all ways: steadier, for 8 times the agent's cost,
            which is small beside a tool's.
    """

    def __init__(
        self,
        network: ToolchainNetwork,
        toolbox: Toolbox,
        max_steps: int = 3,
        card: Mapping[str, Any] | None = None,
    ) -> None:
        if network.tools != len(toolbox):
            expected = f"of an agent for the {len(toolbox)} tools of {toolbox.name}"
            raise InvalidArgument("weights", expected, f"one for {network.tools} tools")
        super().__init__(network, toolbox, max_steps, card)
        self.views = int(self.card.get("views", 1))
        self._state: State = network.initial_state(0)

    def reset(self, count: int) -> None:
        """Forget what was seen: ``count`` new images come."""
        self._state = self.network.initial_state(0)

    def facts(self) -> dict[str, Any]:
        """What the card must say for the agent to be built again."""
        return {**super().facts(), "views": self.views}

    @torch.no_grad()
    def act(self, observation: Mapping[str, Tensor]) -> Tensor:
        """The action with the highest Q value for each image, int64 (N,)."""
        last = observation["last_action"]
        patches = self._turned(self.patches(observation["image"]))
        per_image = len(patches) // len(last)
        if len(self._state[0]) != len(patches):
            self._state = self.network.initial_state(len(patches))
        q, self._state = self.network(patches, last.repeat_interleave(per_image), self._state)
        self.q_values = q.view(len(last), per_image, -1).mean(1)
        return self._choice(self.q_values)

    def _choice(self, q: Tensor) -> Tensor:
        """The action for Q values (..., actions): the best, or stop if no tool promises enough."""
        best = q[..., :-1].max(-1)
        return torch.where(best.values > q[..., -1] + self.caution, best.indices, q.shape[-1] - 1)

    @torch.no_grad()
    def decide(self, image: Tensor) -> tuple[tuple[int, ...], Tensor]:
        """As `RestorationAgent.decide`: all patches take the action with the highest mean Q value."""
        device = next(self.network.parameters()).device
        patches = self.patches(image[None]).to(device).float() / 255.0
        episodes = Episodes(self.toolbox, max_steps=self.max_steps)
        episodes.begin(patches)
        state, actions, values = self.network.initial_state(len(patches) * self.views), [], []
        while not bool(episodes.done.all()):
            seen = episodes.observation()
            last = seen["last_action"].repeat_interleave(self.views)
            q, state = self.network(self._turned(seen["image"]), last, state)
            values.append(q.mean(0))
            actions.append(int(self._choice(values[-1])))
            episodes.step(torch.full_like(seen["last_action"], actions[-1]))
        return tuple(actions), torch.stack(values)

    def _turned(self, patches: Tensor) -> Tensor:
        """Each patch (P, 3, S, S) in all its views (P * views, 3, S, S)."""
        if self.views == 1:
            return patches
        return torch.stack([turned(patches, way) for way in range(self.views)], 1).flatten(0, 1)


def _spread(side: int, size: int, most: int) -> list[int]:
    """Starts of at most ``most`` patches along a side, at multiples of 8 (the JPEG grid), even in space."""
    steps = (side - size) // 8
    count = min(most, steps + 1)
    return sorted({8 * round(i * steps / max(1, count - 1)) for i in range(count)})


def agent_names(folder: Path = WEIGHTS) -> tuple[str, ...]:
    """The agents that ship in the package."""
    cards = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}
    return tuple(name for name, card in cards.items() if "max_steps" in card)


def played_with(name: str | Path) -> tuple[str, str | None]:
    """``AGENT@TOOLBOX`` taken apart: the name or path of an agent, and the tools to play with, None for its own."""
    agent, at, toolbox = str(name).rpartition("@")
    known = at and (agent in agent_names() or Path(agent).suffix == ".safetensors")
    return (agent, toolbox) if known else (str(name), None)


def load_agent(
    name: str | Path = DEFAULT_AGENT,
    *,
    device: str = "cpu",
    precision: str = "float32",
    backend: str = "torch",
    toolbox: Toolbox | None = None,
) -> RestorationAgent:
    """A trained agent with its toolbox.

    Args:
        name: an agent that ships in the package, or the path of a safetensors file with its card; with ``@TOOLBOX``
            after it, to play with other tools.
        device: where it computes: "cpu", "cuda", "cuda:N" or "auto".
        precision: of the tools, "float32" or "bfloat16", with OpenVINO also "int8".
        backend: what computes the tools, "torch" or "openvino".
        toolbox: the tools to use; those it was trained with if None.

    Raises:
        UnknownName: if no such agent ships; the message lists those that do.
        InvalidArgument: if the weights are damaged or were trained for another number of actions.
    """
    where = find_device(device)
    agent, others = played_with(name)
    if others is not None and toolbox is None:
        toolbox = load_toolbox(others, device=where, precision=precision, backend=backend)
    path = Path(agent)
    if path.suffix != ".safetensors":
        if agent not in agent_names():
            raise UnknownName("agent", agent, agent_names())
        path = WEIGHTS / f"{agent}.safetensors"
    tensors, card = read_weights(path)
    if "max_steps" not in card:
        raise InvalidArgument("weights", "those of an agent", f"the card of {card.get('name', path)}")
    tools = toolbox or load_toolbox(card["toolbox"], device=where, precision=precision, backend=backend)
    kind = card.get("network", "published")
    if kind in _BUILDERS:
        found: RestorationAgent = find_target(_BUILDERS[kind])(tensors, tools, card, where)
        return found
    network = build_network(kind, card["tools"], card["patch_size"])
    network.load_state_dict(tensors)
    return ToolchainAgent(network.to(where).requires_grad_(False), tools, card["max_steps"], card)


def save_agent(path: str | Path, agent: RestorationAgent, card: Mapping[str, Any]) -> None:
    """Write an agent's weights and card; ``card`` says what trained it and how well it does."""
    save_weights(path, agent.network.state_dict(), {**agent.facts(), **card})
