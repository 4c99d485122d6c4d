"""Winograd's convolutions: the results and gradients of torch's own, in whatever network, on however many threads."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from restoration_env import winograd
from restoration_env.benchmarks.networks import NETWORKS, build_network
from restoration_env.benchmarks.train_single import SingleConfig, train_single
from restoration_env.cli import main
from restoration_env.errors import InvalidArgument
from restoration_env.files import read_weights
from restoration_env.images import ImagePool
from restoration_env.winograd import WinogradConv2d, with_winograd

compiled = pytest.mark.skipif(not winograd.has_compiler(), reason="needs a C++ compiler")


def by_winograd(direct: nn.Module) -> nn.Module:
    """A copy of a network that computes its convolutions by Winograd's algorithm."""
    made = copy.deepcopy(direct)
    with_winograd(made)
    return made


def stack(inputs=32, between=32, outputs=48, bias=True):
    """Two convolutions with a rectifier between them, whose input is far from zero if images are whole numbers.

    Next to zero rounding decides whether a gradient passes, and then there is nothing to compare.
    """
    torch.manual_seed(0)
    first = nn.Conv2d(inputs, between, 3, padding=1)
    first.weight.data = torch.randint(-2, 3, first.weight.shape) / 8.0
    first.bias.data.fill_(1.0 / 16.0)
    return nn.Sequential(first, nn.ReLU(inplace=True), nn.Conv2d(between, outputs, 3, padding=1, bias=bias))


def everything(network, images):
    """Result, gradient of the images and gradients of the weights."""
    images = images.clone().requires_grad_()
    made = network(images)
    weight = torch.linspace(-1, 1, made.numel(), dtype=made.dtype).view(made.shape)
    return [made.detach(), *torch.autograd.grad((made * weight).sum(), [images, *network.parameters()])]


def off(found, wanted):
    """The largest differences, in parts of the largest value."""
    pairs = zip(found, wanted, strict=True)
    return max(((one - other).abs().max() / other.abs().max().clamp_min(1e-6)).item() for one, other in pairs)


@compiled
@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 3),
    st.integers(1, 14),
    st.integers(1, 14),
    st.sampled_from([16, 32, 48, 64]),
    st.booleans(),
    st.booleans(),
)
def test_results_and_gradients_are_those_of_the_direct_way(count, height, width, channels, bias, last) -> None:
    direct = stack(between=channels, bias=bias)
    made = by_winograd(direct)
    assert [type(made[place]) for place in (0, 2)] == [WinogradConv2d, WinogradConv2d]
    images = torch.randint(-3, 4, (count, 32, height, width), generator=torch.Generator().manual_seed(1)).float()
    images = images.contiguous(memory_format=torch.channels_last) if last else images
    assert off(everything(made, images), everything(direct.double(), images.double())) < 1e-4


def normalised(channels=48):
    """Two convolutions with batch normalisation between them, which has seen other images before."""
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(channels)
    norm.weight.data.uniform_(-1.0, 1.0)
    norm.bias.data.uniform_(-1.0, 1.0)
    norm.running_mean.uniform_(-1.0, 1.0)
    norm.running_var.uniform_(0.5, 2.0)
    first, last = nn.Conv2d(32, channels, 3, padding=1), nn.Conv2d(channels, 32, 3, padding=1, bias=False)
    return nn.Sequential(first, norm, nn.ReLU(inplace=True), last)


@compiled
@settings(max_examples=15, deadline=None)
@given(st.integers(1, 2), st.integers(2, 14), st.integers(2, 10), st.booleans())
def test_batch_normalisation_before_it_is_that_of_torch(count, height, width, training) -> None:
    direct = normalised().train(training)
    made = by_winograd(direct)
    made = copy.deepcopy(made)  # what is averaged is a copy
    direct.double()
    images = torch.randn(count, 32, height, width, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assume(copy.deepcopy(direct[:2])(images.double()).abs().min() > 2e-5)  # rounding must not decide what passes
    found, wanted = everything(made, images), everything(direct, images.double())
    bias = 3  # of the first convolution: taken away again by the images' own mean, so its gradient is nothing
    if training:
        assert found.pop(bias).abs().max() < 1e-3 * wanted[bias - 1].abs().max() and wanted.pop(bias) is not None
    assert off(found, wanted) < 2e-4
    assert list(made.state_dict()) == list(direct.state_dict())
    for name, value in direct.named_buffers():
        torch.testing.assert_close(made.get_buffer(name), value.to(made.get_buffer(name).dtype), atol=1e-5, rtol=1e-5)


@compiled
def test_batch_normalisation_sums_over_all_pieces_of_a_batch() -> None:
    direct = normalised()
    made = by_winograd(direct)
    images = torch.randn(9, 32, 61, 50)
    for one, other in zip(everything(made, images), everything(direct, images), strict=True):
        if other.ndim != 1 or other.abs().max() > 1.0:  # not the bias that the images' own mean takes away again
            assert (one - other).norm() < 2e-3 * other.norm()
    for name, value in direct.named_buffers():
        torch.testing.assert_close(made.get_buffer(name), value, atol=1e-5, rtol=1e-5)


@compiled
def test_batch_normalisation_is_left_to_torch_where_the_convolution_is() -> None:
    direct = normalised()
    made = by_winograd(direct)
    images = torch.randn(2, 32, 9, 9)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(made(images), direct(images))
    assert torch.equal(made.double()(images.double()), direct.double()(images.double()))


@compiled
@pytest.mark.parametrize("network", [stack(), normalised()])
def test_the_sums_do_not_depend_on_the_threads(network) -> None:
    threads = torch.get_num_threads()
    with_winograd(network)
    images = torch.randn(9, 32, 61, 50)
    results = []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            results.append(everything(network, images))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


@compiled
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_keeps_its_names_and_what_it_does(name) -> None:
    torch.manual_seed(0)
    direct = build_network(name).eval()
    for parameter in direct.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)  # not the identity that it begins as
    made = by_winograd(direct)
    again = copy.deepcopy(made)
    assert list(again.state_dict()) == list(direct.state_dict())
    images = torch.rand(1, 3, 24, 24)
    with torch.no_grad():
        torch.testing.assert_close(again(images), direct(images), atol=2e-4, rtol=0.0)
    used = sum(isinstance(module, WinogradConv2d) for module in made.modules())
    assert used == {"dncnn": 18, "vdsr": 18, "vdsr-s": 0, "equal-parameters": 12, "equal-multiply-adds": 11}[name]


@compiled
def test_what_it_cannot_compute_is_left_to_torch() -> None:
    network = nn.ModuleList(
        [
            nn.Conv2d(32, 32, 3),
            nn.Conv2d(32, 32, 3, padding=1, stride=2),
            nn.Conv2d(32, 32, 5, padding=2),
            nn.Conv2d(32, 32, 3, padding=1, groups=2),
            nn.Conv2d(32, 20, 3, padding=1),
            nn.Conv2d(32, 32, 3, padding=1, padding_mode="reflect"),
        ]
    )
    with_winograd(network)
    assert {type(module) for module in network} == {nn.Conv2d}
    half = stack()
    plain = copy.deepcopy(half)
    with_winograd(half)
    images = torch.randn(1, 32, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(half(images), plain(images))  # torch's own bfloat16
    assert torch.equal(half.double()(images.double()), plain.double()(images.double()))


@compiled
def test_training_by_it_ends_with_the_weights_of_the_direct_way(tmp_path) -> None:
    rng = np.random.default_rng(0)
    pool = ImagePool(list(rng.integers(0, 256, (2, 72, 72, 3), dtype=np.uint8)), ["one", "two"])
    ends = {}
    for way in ("direct", "winograd"):
        config = SingleConfig("equal-parameters", 4, batch=12, patch=24, validation_images=2, convolutions=way)
        card = train_single(config, pool, pool, tmp_path / way)
        assert card["training"]["convolutions"] == way
        ends[way] = read_weights(tmp_path / way / "equal-parameters.safetensors")[0]
    for name, wanted in ends["direct"].items():
        torch.testing.assert_close(ends["winograd"][name], wanted, atol=1e-4, rtol=1e-2)


def test_without_a_compiler_it_says_so(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(winograd, "_library", winograd._library.__wrapped__)
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InvalidArgument, match='convolutions must be "direct" where there is no C\\+\\+ compiler'):
        SingleConfig("vdsr", convolutions="winograd")
    monkeypatch.setenv("CXX", str(tmp_path / "none"))
    with pytest.raises(InvalidArgument, match='convolutions must be "direct" with a compiler like .*none'):
        SingleConfig("vdsr", convolutions="winograd")


@pytest.mark.parametrize("command", (["single", "vdsr"], ["tools", "deblur-1"], ["agent", "--algo", "lookahead"]))
def test_another_way_is_refused(command, capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["train", *command, "--convolutions", "fast"])
    assert ended.value.code == 2
    assert "convolutions must be one of direct, winograd, got 'fast'" in capsys.readouterr().err
