"""The agents' networks: RL-Restore's (Yu et al., CVPR 2018, Section 3.2), and two that see damage more easily."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from restoration_env.agents.statistics import (
    GRID_STATISTICS,
    STATISTICS,
    grid_statistics,
    spectrum,
    spectrum_size,
    statistics,
)
from restoration_env.errors import UnknownName, check_at_least
from restoration_env.turning import WAYS

State = tuple[Tensor, Tensor]
_PART = 32  # images that a processor looks at together: what it needs on the way stays in its cache
UNIT = 10.0  # dB of one unit of what training predicts; values near one keep the memory out of saturation


class ToolchainNetwork(nn.Module):
    """Four strided convolutions, a recurrent memory of the toolchain so far, and a Q value per action.

    87,863 parameters for 12 tools and 63x63 patches; 14.1 M multiply-adds a patch. The convolutions pad as
    TensorFlow's SAME does, (4, 4) and then (1, 2), and the features are flattened in the order height,
    width, channel, so that the published weights fit.

    Args:
        tools: how many tools there are; one more action stops.
        patch_size: side of the patches in pixels.
    """

    kind = "published"
    memory = 50
    ways = WAYS  # the first so many ways of turning an image leave its damage as it looks

    def __init__(self, tools: int = 12, patch_size: int = 63) -> None:
        super().__init__()
        self.tools, self.patch_size = tools, patch_size
        self.convs = nn.ModuleList(
            nn.Conv2d(inputs, outputs, kernel, stride=2)
            for inputs, outputs, kernel in ((3, 32, 9), (32, 24, 5), (24, 24, 5), (24, 24, 5))
        )
        side = patch_size
        for _ in self.convs:
            side = -(-side // 2)
        self.fc = nn.Linear(24 * side * side, 32)
        self.gates = nn.Linear(32 + tools + 50, 4 * 50)
        self.q: nn.Linear | DuelingHead = nn.Linear(50, tools + 1)
        self._initialise()

    def _initialise(self) -> None:
        """Keep the variance of what is seen through all layers, and begin with contrast, not brightness.

        With torch's default, four convolutions shrink an image's differences to nothing, and the first thing
        learned is the mean value of each action, whatever the image.
        """
        for layer in (*self.convs, self.fc):
            nn.init.kaiming_normal_(layer.get_parameter("weight"), nonlinearity="relu")
            nn.init.zeros_(layer.get_parameter("bias"))
        nn.init.orthogonal_(self.gates.weight)
        nn.init.zeros_(self.gates.bias)
        with torch.no_grad():
            first = self.convs[0].get_parameter("weight")
            first.sub_(first.mean(dim=(1, 2, 3), keepdim=True))

    def initial_state(self, count: int) -> State:
        """The memory before the first step: two float (count, ``memory``)."""
        zeros = self.q.weight.new_zeros(count, self.memory)
        return zeros, zeros

    def features(self, images: Tensor) -> Tensor:
        """Images, uint8 or float in [0, 1] (N, 3, H, W), to features (N, 32)."""
        if self.training or torch.is_grad_enabled() or images.device.type != "cpu":
            return self._features(images)
        return torch.cat([self._features(few) for few in images.split(_PART)])

    def fixed(self, images: Tensor) -> Tensor:
        """What is computed of images before anything learned, a row each: `learned` makes features of it."""
        return images

    def learned(self, fixed: Tensor) -> Tensor:
        """The features of images of which `fixed` is known."""
        return self._features(fixed)

    def _features(self, images: Tensor) -> Tensor:
        x = images.float() / 255.0 if images.dtype == torch.uint8 else images
        x = x.contiguous(memory_format=torch.channels_last)
        for conv in self.convs:
            kernel = conv.get_parameter("weight").shape[-1]
            x = F.relu(conv(_pad_same(x, kernel)), inplace=True)
        return F.relu(self.fc(x.permute(0, 2, 3, 1).flatten(1)))

    def advance(self, features: Tensor, last_action: Tensor, state: State) -> tuple[Tensor, State]:
        """One step of the memory: Q values (N, tools + 1) and the next state.

        ``last_action`` int64 (N,) is the tool used last, or ``tools`` before the first.
        """
        hidden, cell = state
        previous = F.one_hot(last_action, self.tools + 1)[:, : self.tools].to(features)
        i, j, f, o = self.gates(torch.cat((features, previous, hidden), 1)).chunk(4, 1)
        cell = cell * torch.sigmoid(f + 1.0) + torch.sigmoid(i) * torch.tanh(j)
        hidden = torch.tanh(cell) * torch.sigmoid(o)
        return self.q(hidden), (hidden, cell)

    @torch.no_grad()
    def scale_values(self, factor: float) -> None:
        """Multiply all Q values, from dB to the units that training predicts or back."""
        for parameter in self.q.parameters():
            parameter.mul_(factor)

    @torch.no_grad()
    def with_more_tools(self, tools: int) -> ToolchainNetwork:
        """The same network for a toolbox with further tools after the known ones.

        Each of them is worth as much as stopping is, and remembering it changes nothing, until that is learned.

        Raises:
            InvalidArgument: for fewer tools.
        """
        check_at_least(self.tools, tools=tools)
        grown, known = build_network(self.kind, tools, self.patch_size), self.state_dict()
        seen = self.fc.out_features
        gates = known["gates.weight"]
        new = gates.new_zeros(len(gates), tools - self.tools)
        known["gates.weight"] = torch.cat((gates[:, : seen + self.tools], new, gates[:, seen + self.tools :]), 1)
        for name in ("q.weight", "q.bias"):
            stop = known[name][self.tools :]
            known[name] = torch.cat((known[name][: self.tools], *([stop] * (tools - self.tools + 1))))
        grown.load_state_dict(known)
        return grown.to(gates)

    def forward(self, images: Tensor, last_action: Tensor, state: State) -> tuple[Tensor, State]:
        """Q values (N, tools + 1) of what is seen now, and the next state."""
        return self.advance(self.features(images), last_action, state)


class DuelingHead(nn.Module):
    """Q values as a value of the state plus an advantage of each action (Wang et al., ICML 2016).

    Both are linear in the same features, so what was learned folds into one linear layer, and a trained agent is the
    same with and without; only learning differs.

    Args:
        head: the linear layer to go on from.
    """

    def __init__(self, head: nn.Linear) -> None:
        super().__init__()
        self.value, self.advantage = nn.Linear(head.in_features, 1), nn.Linear(head.in_features, head.out_features)
        with torch.no_grad():
            for name in ("weight", "bias"):
                known = getattr(head, name)
                getattr(self.advantage, name).copy_(known)
                getattr(self.value, name).copy_(known.mean(0, keepdim=True))

    @property
    def weight(self) -> Tensor:
        """Of the value; for its type and place."""
        return self.value.weight

    def forward(self, features: Tensor) -> Tensor:
        """Features (N, F) to Q values (N, actions)."""
        advantage = self.advantage(features)
        return self.value(features) + advantage - advantage.mean(1, keepdim=True)

    @torch.no_grad()
    def folded(self) -> nn.Linear:
        """One linear layer that does the same."""
        head = nn.Linear(self.value.in_features, self.advantage.out_features).to(self.value.weight)
        for name in ("weight", "bias"):
            advantage = getattr(self.advantage, name)
            getattr(head, name).copy_(getattr(self.value, name) + advantage - advantage.mean(0, keepdim=True))
        return head


class StatisticsNetwork(ToolchainNetwork):
    """The same memory and Q values behind other eyes: normalised 3x3 convolutions, averaged over the image.

    Damage shows in the statistics of neighbouring pixels, wherever they are. The published convolutions have to
    find that out from faint differences of bright images; normalising each map brings them out, and averaging says
    that the place does not matter. 107,759 parameters for 12 tools; 11.7 M multiply-adds a patch. In training mode
    (`torch.nn.Module.train`) a batch is normalised by itself, as usual.

    Args:
        tools: how many tools there are; one more action stops.
        patch_size: side of the patches in pixels that it is trained on.
    """

    kind = "statistics"

    def __init__(self, tools: int = 12, patch_size: int = 63) -> None:
        nn.Module.__init__(self)
        self.tools, self.patch_size = tools, patch_size
        widths, strides = (3, 16, 24, 32, 64, 96), (1, 2, 2, 2, 1)
        self.convs = nn.ModuleList(
            nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
            for (inputs, outputs), stride in zip(pairwise(widths), strides, strict=True)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in widths[1:])
        self.fc = nn.Linear(widths[-1], 32)
        self.gates = nn.Linear(32 + tools + 50, 4 * 50)
        self.q = nn.Linear(50, tools + 1)
        nn.init.orthogonal_(self.gates.weight)
        nn.init.zeros_(self.gates.bias)
        with torch.no_grad():  # begin with contrast: brightness says nothing of the damage
            first = self.convs[0].get_parameter("weight")
            first.sub_(first.mean(dim=(1, 2, 3), keepdim=True))

    def _features(self, images: Tensor) -> Tensor:
        x = images.float() / 255.0 if images.dtype == torch.uint8 else images
        x = x.contiguous(memory_format=torch.channels_last)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.relu(norm(conv(x)), inplace=True)
        return F.relu(self.fc(x.mean((2, 3))))


class SpectralNetwork(ToolchainNetwork):
    """The same memory and Q values behind statistics that nobody has to learn (`restoration_env.agents.statistics`).

    Two layers on the spectra of the blocks and of the whole image, and on what JPEG's grid left: 166,925 parameters for
    12 tools and next to no multiply-adds. Noise, blur and compression show there at once, so it needs few images, and
    what is computed of an image can be kept while it is learned from many times. It sees where JPEG's grid lies: an
    image that is mirrored looks otherwise to it, one that is transposed does not.

    Args:
        tools: how many tools there are; one more action stops.
        patch_size: side of the patches in pixels, whose corners lie on JPEG's grid.
    """

    kind = "spectral"
    memory = 64
    ways = 2
    _SEEN, _DROPPED = 64, 0.1

    def __init__(self, tools: int = 12, patch_size: int = 63) -> None:
        nn.Module.__init__(self)
        self.tools, self.patch_size = tools, patch_size
        widths = (STATISTICS + GRID_STATISTICS + spectrum_size(patch_size), 256, 128)
        self.norm = nn.BatchNorm1d(widths[0], affine=False)
        self.layers = nn.ModuleList(nn.Linear(inputs, outputs) for inputs, outputs in pairwise(widths))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for width in widths[1:])
        self.fc = nn.Linear(widths[-1], self._SEEN)
        self.gates = nn.Linear(self._SEEN + tools + self.memory, 4 * self.memory)
        self.q = nn.Linear(self.memory, tools + 1)
        nn.init.orthogonal_(self.gates.weight)
        nn.init.zeros_(self.gates.bias)

    def fixed(self, images: Tensor) -> Tensor:
        """The statistics (N, S) of images, uint8 or float in [0, 1] (N, 3, H, W)."""
        x = images.float() / 255.0 if images.dtype == torch.uint8 else images
        with torch.no_grad():
            return torch.cat((statistics(x), grid_statistics(x), spectrum(x)), 1)

    def learned(self, fixed: Tensor) -> Tensor:
        """Features (N, 64) of statistics (N, S)."""
        x = self.norm(fixed)
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = F.dropout(F.relu(norm(layer(x))), self._DROPPED, self.training)
        return F.relu(self.fc(x))

    def _features(self, images: Tensor) -> Tensor:
        return self.learned(self.fixed(images))


NETWORKS: dict[str, type[ToolchainNetwork]] = {
    n.kind: n for n in (ToolchainNetwork, StatisticsNetwork, SpectralNetwork)
}


def build_network(kind: str, tools: int = 12, patch_size: int = 63) -> ToolchainNetwork:
    """A fresh network: "published", "statistics" or "spectral".

    Raises:
        UnknownName: for any other name.
    """
    if kind not in NETWORKS:
        raise UnknownName("network", kind, NETWORKS)
    network: ToolchainNetwork = NETWORKS[kind](tools, patch_size)
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _pad_same(x: Tensor, kernel: int) -> Tensor:
    """TensorFlow's SAME padding for stride 2: what is odd goes to the bottom and the right."""
    height, width = (max(0, (-(-side // 2) - 1) * 2 + kernel - side) for side in x.shape[-2:])
    return F.pad(x, (width // 2, width - width // 2, height // 2, height - height // 2))
