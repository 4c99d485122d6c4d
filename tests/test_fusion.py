"""Convolutions that do their neighbours' work on a processor: the same images as the network makes alone."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from restoration_env.folding import folded
from restoration_env.fusion import PackedConv2d, can_pack, packed
from restoration_env.tools.networks import NETWORKS, build_network

packs = pytest.mark.skipif(
    not can_pack(nn.Conv2d(3, 3, 3)), reason="torch computes no bfloat16 convolutions on this processor"
)


def far_from(network: nn.Module, other: nn.Module, images: torch.Tensor) -> float:
    """The error of what the other adds to images, relative to what the network adds."""
    with torch.no_grad():
        exact = network(images) - images
        return (torch.linalg.vector_norm(other(images) - images - exact) / torch.linalg.vector_norm(exact)).item()


def randomly(network: nn.Module) -> nn.Module:
    for number, parameter in enumerate(network.parameters()):
        nn.init.normal_(parameter, std=0.05, generator=torch.Generator().manual_seed(number))
    return network


@packs
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("sides", [(63, 63), (17, 22)])
def test_a_packed_network_adds_what_the_network_adds(name: str, sides: tuple[int, int]) -> None:
    network, images = randomly(build_network(name)), torch.rand(3, 3, *sides)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    made = packed(folded(network))
    assert isinstance(made, torch.fx.GraphModule)
    assert far_from(network, made, images) < 1e-2
    assert far_from(network, made, images) < 1e-2, "what it computed has changed its weights"
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())


@packs
@pytest.mark.parametrize("name", ["3-layer", "8-layer"])
def test_of_the_published_networks_only_convolutions_are_left(name: str) -> None:
    graph = packed(build_network(name)).graph
    assert {node.op for node in graph.nodes} == {"placeholder", "call_module", "output"}


class Overwritten(nn.Module):
    """Sums whose terms somebody reads later, or at the same time."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three, self.four = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(4))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        first = self.one(images)
        second = first + self.two(first)  # its own input
        third = second + self.three(F.relu(second))
        return first + third + (third + self.four(images)) - images.mean()


@packs
def test_nothing_is_overwritten_that_is_read_again() -> None:
    network, images = randomly(Overwritten()), torch.rand(2, 3, 12, 15)
    made, seen = packed(network), images.clone()
    assert far_from(network, made, images) < 2e-2
    assert torch.equal(images, seen)


@packs
def test_what_cannot_be_traced_is_computed_as_it_says() -> None:
    class ByBrightness(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images + (self.conv(images) if images.mean() > 0.5 else F.relu(self.conv(images)))

    network = randomly(ByBrightness())
    made = packed(network)
    assert isinstance(made.conv, PackedConv2d)
    for images in (torch.rand(1, 3, 9, 9) / 2, torch.rand(1, 3, 9, 9) / 2 + 0.5):
        assert far_from(network, made, images) < 1e-2


@packs
def test_a_network_may_look_at_the_weights_of_its_convolutions() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images + F.conv2d(self.conv(images).float(), self.conv.weight, padding=1)

    network, images = randomly(Twice()), torch.rand(2, 3, 9, 11)
    made = packed(network)
    assert far_from(network, made, images) < 2e-2
    assert made.state_dict().keys() == network.state_dict().keys()


class Doubled(nn.Conv2d):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(images)


def test_networks_with_other_weights_or_padding_are_left_alone() -> None:
    others = [
        nn.Sequential(Doubled(3, 3, 3, padding=1), nn.ReLU()),
        nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)),
        nn.Conv2d(3, 3, 3, padding="same"),
        nn.Conv2d(3, 3, 3, padding=1, padding_mode="reflect"),
        nn.ReLU(),
    ]
    assert not any(can_pack(network) for network in others)
