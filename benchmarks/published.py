"""The published RL-Restore system: its twelve tools and its agent, from the authors' weights.

The weights are not part of this project. ``weights.npz`` is the authors' checkpoint (Yu et al., CVPR 2018,
MIT licence) converted to NumPy arrays without change.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from restoration_env.agents.agent import ToolchainAgent
from restoration_env.agents.network import ToolchainNetwork
from restoration_env.errors import InvalidArgument
from restoration_env.toolbox import Tool, Toolbox
from restoration_env.tools.catalogue import CATALOGUE
from restoration_env.tools.networks import build_network

# The authors' layer names in the order of ours.
_LAYERS = {
    "3-layer": {"conv1": "conv1", "conv2": "conv2", "conv3": "conv3"},
    "8-layer": {
        "conv1": "conv1",
        "conv1_2": "squeeze",
        "conv2": "block1.0",
        "conv2a": "block1.1",
        "conv2c": "block2.0",
        "conv2d": "block2.1",
        "conv2_2": "expand",
        "conv3": "conv8",
    },
}
_AGENT = {
    "c1": "convs.0",
    "c2": "convs.1",
    "c3": "convs.2",
    "c4": "convs.3",
    "fc": "fc",
    "gates": "gates",
    "q": "q",
}


class _Swapped(nn.Module):
    """The authors trained on images with height and width swapped; so must their weights be used."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images.transpose(-1, -2)).transpose(-1, -2)


class _SwappedAgentNetwork(ToolchainNetwork):
    def features(self, images: Tensor) -> Tensor:
        return super().features(images.transpose(-1, -2))


def load_published(path: str | Path, *, device: torch.device | str = "cpu") -> ToolchainAgent:
    """The authors' agent with the authors' toolbox.

    Raises:
        InvalidArgument: if the file is missing or does not hold the weights.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: torch.from_numpy(file[name]) for name in file.files}
    except (OSError, ValueError) as error:
        raise InvalidArgument("published", "the path of the authors' weights.npz", f"{path}: {error}") from None
    tools = []
    for number, spec in enumerate(CATALOGUE, 1):
        network = build_network(spec.network)
        network.load_state_dict(_renamed(arrays, f"tool{number:02d}.", _LAYERS[spec.network]))
        swapped = _Swapped(network.to(device).eval().requires_grad_(False))
        tools.append(Tool(spec.name, spec.description, swapped, network.cost, network.halo))
    brain = _SwappedAgentNetwork()
    brain.load_state_dict(_renamed(arrays, "agent.", _AGENT))
    agent = ToolchainAgent(brain.to(device).requires_grad_(False), Toolbox("published", tools))
    agent.name = "published system"
    return agent


def _renamed(arrays: dict[str, Tensor], prefix: str, layers: dict[str, str]) -> dict[str, Tensor]:
    try:
        return {
            f"{ours}.{part}": arrays[f"{prefix}{theirs}.{part}"]
            for theirs, ours in layers.items()
            for part in ("weight", "bias")
        }
    except KeyError as error:
        raise InvalidArgument("published", "the path of the authors' weights.npz", f"a file without {error}") from None
