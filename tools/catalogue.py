"""The twelve tools of RL-Restore in one table (Yu et al., CVPR 2018, Table 1), and the toolboxes made of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from restoration_env.distortions import Recipe, band
from restoration_env.errors import InvalidArgument, UnknownName
from restoration_env.files import read_weights
from restoration_env.toolbox import Tool, Toolbox
from restoration_env.tools.networks import ToolNetwork, build_network

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


@dataclass(frozen=True)
class ToolboxSpec:
    """Twelve tools for the twelve rows: which networks they have and how they were trained.

    Attributes:
        name: what users call the toolbox.
        description: how its tools were trained.
        networks: the network that stands for each of the table's.
    """

    name: str
    description: str
    networks: Mapping[str, str]

    @property
    def folder(self) -> Path:
        """Where the weights that ship in the package lie."""
        return WEIGHTS / self.name

    def network(self, tool: str) -> str:
        """The name of a tool's network."""
        return self.networks[specification(tool).network]


_PUBLISHED = {"3-layer": "3-layer", "8-layer": "8-layer"}
_MODERN = {"3-layer": "modern-small", "8-layer": "modern-large"}
# Those whose weights ship can be loaded by name (restoration_env.registry); all can be trained.
TOOLBOXES = {
    spec.name: spec
    for spec in (
        ToolboxSpec("cnn12", "the published networks, each tool trained on its own band", _PUBLISHED),
        ToolboxSpec("cnn12-joint", "the published networks, trained through whole toolchains", _PUBLISHED),
        ToolboxSpec(
            "cnn12-gan", "the published networks, trained with a perceptual and an adversarial loss", _PUBLISHED
        ),
        ToolboxSpec("cnn12-modern", "gated networks of the same cost, trained jointly with an agent", _MODERN),
    )
}


def toolbox_specification(name: str) -> ToolboxSpec:
    """A toolbox of twelve by name.

    Raises:
        UnknownName: if there is none; the message lists those there are.
    """
    if name not in TOOLBOXES:
        raise UnknownName("toolbox", name, TOOLBOXES)
    return TOOLBOXES[name]


def load_network(
    name: str, toolbox: str = "cnn12", folder: str | Path | None = None, weights_of: str = ""
) -> ToolNetwork:
    """A tool's trained network, in evaluation mode.

    Args:
        name: a name of the table.
        toolbox: the toolbox it belongs to.
        folder: holds the weights; those that ship in the package if None.
        weights_of: the tool whose weights it takes; its own if not given.

    Raises:
        InvalidArgument: if the weights are missing, changed, or of another architecture.
    """
    spec = toolbox_specification(toolbox)
    expected = spec.network(name)
    tensors, card = read_weights(Path(folder or spec.folder) / f"{weights_of or name}.safetensors")
    if card["network"] != expected:
        raise InvalidArgument("weights", f"of a {expected} network for {name}", f"a {card['network']} one")
    network = build_network(expected)
    network.load_state_dict(tensors)
    return network.eval().requires_grad_(False)


def cnn_tool(
    name: str,
    toolbox: str = "cnn12",
    folder: str | Path | None = None,
    *,
    device: torch.device | str = "cpu",
    precision: str = "float32",
    weights_of: str = "",
) -> Tool:
    """One of the twelve as a tool, with the trained weights that ship in the package or those in a folder."""
    network = load_network(name, toolbox, folder, weights_of).to(device)
    network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Tool(name, specification(name).description, network, network.cost, network.halo, precision, network.grid)


def cnn_toolbox(
    name: str = "cnn12",
    folder: str | Path | None = None,
    *,
    device: torch.device | str = "cpu",
    precision: str = "float32",
) -> Toolbox:
    """The twelve tools in the table's order, with the weights that ship in the package or those in a folder."""
    return Toolbox(name, [cnn_tool(tool, name, folder, device=device, precision=precision) for tool in NAMES])


def cnn12(*, device: torch.device | str = "cpu", precision: str = "float32") -> Toolbox:
    """The published networks, each tool trained on its own band."""
    return cnn_toolbox("cnn12", device=device, precision=precision)


def cnn12_joint(*, device: torch.device | str = "cpu", precision: str = "float32") -> Toolbox:
    """The published networks, trained through whole toolchains."""
    return cnn_toolbox("cnn12-joint", device=device, precision=precision)


def cnn12_gan(*, device: torch.device | str = "cpu", precision: str = "float32") -> Toolbox:
    """The same networks, trained on from `cnn12_joint` for how images look, for inference."""
    return cnn_toolbox("cnn12-gan", device=device, precision=precision)


def cnn12_modern(*, device: torch.device | str = "cpu", precision: str = "float32") -> Toolbox:
    """Gated networks of the same cost, trained jointly with an agent."""
    return cnn_toolbox("cnn12-modern", device=device, precision=precision)
