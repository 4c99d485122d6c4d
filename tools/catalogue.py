"""The twelve tools of RL-Restore in one table (Yu et al., CVPR 2018, Table 1), and their toolbox."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from restoration_env.distortions import Recipe, band
from restoration_env.errors import InvalidArgument, UnknownName
from restoration_env.files import read_weights
from restoration_env.toolbox import Tool, Toolbox
from restoration_env.tools.networks import EightLayer, ThreeLayer, build_network

WEIGHTS = Path(__file__).parent / "weights"


@dataclass(frozen=True)
class ToolSpec:
    """One row of the table: what a tool removes, how much of it, and with which network."""

    name: str
    removes: str
    low: float
    high: float
    unit: str
    network: str

    @property
    def description(self) -> str:
        """What the tool does, in words."""
        return f"removes {self.removes}, {self.unit} {self.low:g} to {self.high:g}"

    @property
    def band(self) -> Recipe:
        """Pure damage of the tool's own band."""
        kind = {"Gaussian blur": "blur", "Gaussian noise": "noise", "JPEG artifacts": "jpeg"}[self.removes]
        return band(kind, self.low, self.high)


# Blur sigma in pixels, noise sigma on the 0-255 scale. Action k applies row k; action 12 stops.
CATALOGUE = (
    ToolSpec("deblur-1", "Gaussian blur", 0.0, 1.25, "sigma", "3-layer"),
    ToolSpec("deblur-2", "Gaussian blur", 1.25, 2.5, "sigma", "3-layer"),
    ToolSpec("deblur-3", "Gaussian blur", 2.5, 3.75, "sigma", "8-layer"),
    ToolSpec("deblur-4", "Gaussian blur", 3.75, 5.0, "sigma", "8-layer"),
    ToolSpec("denoise-1", "Gaussian noise", 0.0, 12.5, "sigma", "3-layer"),
    ToolSpec("denoise-2", "Gaussian noise", 12.5, 25.0, "sigma", "3-layer"),
    ToolSpec("denoise-3", "Gaussian noise", 25.0, 37.5, "sigma", "8-layer"),
    ToolSpec("denoise-4", "Gaussian noise", 37.5, 50.0, "sigma", "8-layer"),
    ToolSpec("dejpeg-1", "JPEG artifacts", 60.0, 100.0, "quality", "3-layer"),
    ToolSpec("dejpeg-2", "JPEG artifacts", 35.0, 60.0, "quality", "3-layer"),
    ToolSpec("dejpeg-3", "JPEG artifacts", 20.0, 35.0, "quality", "8-layer"),
    ToolSpec("dejpeg-4", "JPEG artifacts", 10.0, 20.0, "quality", "8-layer"),
)
NAMES = tuple(spec.name for spec in CATALOGUE)


def specification(name: str) -> ToolSpec:
    """The row of the table with this name.

    Raises:
        UnknownName: if there is none; the message lists the twelve.
    """
    if name not in NAMES:
        raise UnknownName("tool", name, NAMES)
    return CATALOGUE[NAMES.index(name)]


def load_network(name: str, folder: Path = WEIGHTS) -> ThreeLayer | EightLayer:
    """A tool's trained network, in evaluation mode.

    Raises:
        InvalidArgument: if the weights are missing, changed, or of another architecture.
    """
    spec = specification(name)
    tensors, card = read_weights(folder / f"{name}.safetensors")
    if card["network"] != spec.network:
        raise InvalidArgument("weights", f"of a {spec.network} network for {name}", f"a {card['network']} one")
    network = build_network(spec.network)
    network.load_state_dict(tensors)
    return network.eval().requires_grad_(False)


def cnn_tool(name: str, *, device: torch.device | str = "cpu", precision: str = "float32") -> Tool:
    """One of the twelve as a tool, with the trained weights that ship in the package."""
    network = load_network(name).to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Tool(name, specification(name).description, network, network.cost, network.halo, precision)


def cnn12(*, device: torch.device | str = "cpu", precision: str = "float32") -> Toolbox:
    """The published toolbox: the twelve tools in the table's order."""
    return Toolbox("cnn12", [cnn_tool(name, device=device, precision=precision) for name in NAMES])
