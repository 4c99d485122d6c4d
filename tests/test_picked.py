"""Convolutions whose weights each image picks: what is fused, how weights lie, and, with Triton, the kernel."""

import pytest
import torch
import torch.nn.functional as F
from helpers import interpreted, needs_triton
from torch import nn

from restoration_env.picked import Picked, PickedConv2d, knows
from restoration_env.tools.networks import NETWORKS, build_network

INTERPRETED = """
import torch
from restoration_env.picked import Picked
from restoration_env.tools.networks import NETWORKS, build_network

for name in NETWORKS:
    networks = [build_network(name).eval() for _ in range(3)]
    for parameter in torch.nn.ModuleList(networks).parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    images, which = torch.rand(4, 3, 17, 23), torch.tensor([2, -1, 0, 1], dtype=torch.int32)
    with torch.no_grad():
        made = Picked(networks, torch.float32)(which, images)
        for row, network in enumerate(which.tolist()):
            if network >= 0:
                torch.testing.assert_close(made[row], networks[network](images[row : row + 1])[0])
print("as alone")
"""


def random_networks(name: str, count: int = 3) -> list[nn.Module]:
    torch.manual_seed(5)
    networks: list[nn.Module] = [build_network(name).eval().requires_grad_(False) for _ in range(count)]
    for parameter in nn.ModuleList(networks).parameters():
        nn.init.normal_(parameter, std=0.05)
    return networks


def plainly(self: PickedConv2d, images: torch.Tensor, added: torch.Tensor | None = None) -> torch.Tensor:
    """What the kernel computes, from the weights as it finds them."""
    k, rows = self.kernel, []
    for image, tool in zip(images, self._shared.which.tolist(), strict=True):
        arranged = self.weights[tool, :, : k * self.inputs if self.packed else self.inputs, : self.outputs]
        weight = arranged.reshape(k, k, self.inputs, self.outputs).permute(3, 2, 0, 1)
        seen = F.relu(image) if self.rectifies else image
        bias = self.biases[tool, : self.outputs]
        rows.append(F.conv2d(seen[None], weight, bias, self.stride, self.padding)[0])
    made = torch.stack(rows) if added is None else torch.stack(rows) + added
    return F.relu(made) if self.rectified else made


@pytest.mark.parametrize("name", NETWORKS)
def test_weights_are_laid_out_and_neighbours_fused_as_each_network_says(name: str, monkeypatch) -> None:
    networks, images = random_networks(name), torch.rand(4, 3, 18, 21)
    assert knows(networks[0])
    picked, which = Picked(networks, torch.float32), torch.tensor([1, 0, 2, 1], dtype=torch.int32)
    monkeypatch.setattr(PickedConv2d, "forward", plainly)
    with torch.no_grad():
        made = picked(which, images)
        expected = torch.cat([networks[n](images[i : i + 1]) for i, n in enumerate(which.tolist())])
    torch.testing.assert_close(made, expected)


@pytest.mark.parametrize(("name", "convolutions"), [("3-layer", 3), ("8-layer", 8)])
def test_of_the_published_networks_only_convolutions_are_left(name: str, convolutions: int) -> None:
    network = Picked(random_networks(name)).network
    assert isinstance(network, torch.fx.GraphModule)
    calls = [node.op for node in network.graph.nodes if node.op not in ("placeholder", "output")]
    assert calls == ["call_module"] * convolutions


class Unusual(nn.Module):
    """Does everything that looks as if it could be fused, but must not."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.twice, self.last = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.first(images)
        seen = F.relu(features, inplace=True)  # so the sum below sees it too
        features = features + self.twice(seen)
        features = torch.add(images, self.twice(features), alpha=0.5)  # without the rectifier, and only half
        early = self.last(features)
        late = features * 2.0
        return late + early  # the first of the two is made last


def test_what_only_looks_as_if_it_could_be_fused_is_not(monkeypatch) -> None:
    torch.manual_seed(6)
    networks, images = [Unusual().requires_grad_(False) for _ in range(2)], torch.rand(2, 3, 18, 21)
    monkeypatch.setattr(PickedConv2d, "forward", plainly)
    picked = Picked(networks, torch.float32)
    assert isinstance(picked.network, torch.fx.GraphModule)
    made = picked(torch.tensor([1, 0], dtype=torch.int32), images)
    expected = torch.cat([networks[1](images[:1]), networks[0](images[1:])])
    torch.testing.assert_close(made, expected)


def test_what_is_not_a_plain_convolution_is_left_to_others() -> None:
    unknown = [
        nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)),
        nn.Conv2d(4, 4, 3, padding=1, groups=2),
        nn.Conv2d(3, 3, (5, 1), padding=(2, 0)),
        nn.Conv2d(3, 3, 3, padding=1, bias=False),
        nn.Conv2d(3, 3, 3, padding="same"),
        nn.Conv2d(3, 3, 3, padding=1, padding_mode="reflect"),
        nn.ReLU(),
    ]
    assert not any(knows(network) for network in unknown)
    assert knows(nn.Sequential(nn.Conv2d(3, 8, 4, stride=2, padding=1), nn.ReLU()))


@needs_triton
def test_the_kernel_computes_what_each_network_does_alone() -> None:
    assert interpreted(INTERPRETED) == "as alone"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("name", NETWORKS)
def test_on_a_gpu_images_get_what_their_own_network_makes(name: str) -> None:
    networks = [network.cuda() for network in random_networks(name)]
    images = torch.rand(40, 3, 63, 63, device="cuda")
    which = torch.arange(40, device="cuda", dtype=torch.int32) % 4 - 1
    with torch.no_grad():
        made = Picked(networks)(which, images)
        for number, network in enumerate(networks):
            alone = network(images[which == number])
            error = torch.linalg.vector_norm(made[which == number] - alone) / torch.linalg.vector_norm(alone)
            assert error < 1e-2
