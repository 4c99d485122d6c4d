"""An agent that needs no training: its network is built to choose a given toolchain for every image."""

import itertools
from collections.abc import Sequence

import torch

from restoration_env.agents.agent import ToolchainAgent
from restoration_env.agents.network import ToolchainNetwork
from restoration_env.toolbox import Tool, Toolbox
from restoration_env.tools.networks import EightLayer, ThreeLayer


def quick(*, device: torch.device | str = "cpu", precision: str = "float32") -> Toolbox:
    """Two untrained networks that see 8 pixels around, one that turns the light up, and one for grey."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        small, large = ThreeLayer(), EightLayer()
    for parameter in (*small.parameters(), *large.parameters()):
        parameter.data.mul_(1.5)  # so that what lies at a border matters
    tools = [
        Tool("small", "three layers", small, small.cost, small.halo, precision),
        Tool("large", "eight layers", large, large.cost, large.halo, precision),
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
