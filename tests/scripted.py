"""An agent that needs no training: its network is built to choose a given toolchain for every image."""

import itertools
from collections.abc import Sequence

import torch
from torch import nn

from restoration_env.agents.agent import ToolchainAgent
from restoration_env.agents.network import ToolchainNetwork
from restoration_env.toolbox import Tool, Toolbox


def quick(*, device: torch.device | str = "cpu", precision: str = "float32") -> Toolbox:
    """Two small random networks that see 5 and 3 pixels around, and two that change the light."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        wide = nn.Sequential(nn.Conv2d(3, 4, 7, padding=3), nn.ReLU(), nn.Conv2d(4, 3, 5, padding=2))
        narrow = nn.Sequential(nn.Conv2d(3, 4, 5, padding=2), nn.Tanh(), nn.Conv2d(4, 3, 3, padding=1))
    wide.requires_grad_(False)
    narrow.requires_grad_(False)
    tools = [
        Tool("wide", "two layers", lambda x: x + wide(x).to(x), halo=5, precision=precision),
        Tool("narrow", "two layers", lambda x: x + narrow(x).to(x), halo=3, precision=precision),
        Tool("brighter", "adds 8 grey levels", lambda x: x + 8 / 255),
        Tool("redder", "adds red", lambda x: x + torch.tensor([0.1, 0.0, 0.0]).view(3, 1, 1).to(x)),
    ]
    return Toolbox("quick", tools)


def scripted_agent(chain: Sequence[str], toolbox: Toolbox | None = None) -> ToolchainAgent:
    """An agent that applies these tools, each at most once, and stops."""
    toolbox = toolbox or quick()
    network = ToolchainNetwork(len(toolbox)).requires_grad_(False)
    for parameter in network.parameters():
        parameter.zero_()
    actions = [*(toolbox.names.index(tool) for tool in chain), toolbox.stop]
    bias, memory = network.gates.bias.view(4, -1), network.gates.weight.view(4, 50, -1)
    bias[0], bias[2], bias[3] = 10.0, -20.0, 10.0  # take in everything, forget everything, show everything
    for tool in range(toolbox.stop):
        memory[1, tool, 32 + tool] = 10.0
    network.q.bias[actions[0]] = 1.0
    for before, after in itertools.pairwise(actions):
        network.q.weight[after, before] = 10.0
    return ToolchainAgent(network, toolbox)
