"""Tools computed by other means give the same images: folded convolutions, OpenVINO, eight bits."""

import threading

import gymnasium
import numpy as np
import pytest
import skimage.data
import torch
from helpers import needs_cnn12
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import restoration_env
from restoration_env import backends
from restoration_env.backends import check_backend, openvino_installed, prepared
from restoration_env.distortions import recipe
from restoration_env.errors import InvalidArgument, UnknownName
from restoration_env.folding import FoldedConv, folded
from restoration_env.images import damaged_patches, load_images
from restoration_env.metrics import psnr
from restoration_env.quantization import LEVELS, bears_rounding, best_range
from restoration_env.registry import load_toolbox
from restoration_env.tiling import apply_tools
from restoration_env.toolbox import Tool, Toolbox
from restoration_env.tools.networks import NETWORKS, build_network

needs_openvino = pytest.mark.skipif(not openvino_installed(), reason="the extra openvino is not installed")


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 6), st.integers(1, 5), st.sampled_from([1, 3, 5]), st.sampled_from([3, 5]), st.booleans())
def test_a_folded_convolution_is_the_same_function(inputs, outputs, height, width, bias) -> None:
    torch.manual_seed(inputs + 10 * outputs)
    padding = (height // 2, width // 2)
    conv = nn.Conv2d(inputs, outputs, (height, width), padding=padding, bias=bias).requires_grad_(False)
    images = torch.rand(2, inputs, 7, 9)
    torch.testing.assert_close(FoldedConv(conv)(images), conv(images))


@pytest.mark.parametrize("name", NETWORKS)
def test_a_folded_network_computes_the_same_and_leaves_the_given_one_alone(name) -> None:
    network = build_network(name).eval()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    images = torch.rand(2, 3, 24, 20)
    with torch.no_grad():
        torch.testing.assert_close(folded(network)(images), network(images))
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    assert any(parameter.requires_grad for parameter in network.parameters())


def test_float32_of_torch_is_not_touched() -> None:
    box = Toolbox("one", [Tool("net", "", build_network("3-layer"))])
    assert prepared(box, "torch", "float32") is box


@settings(max_examples=30, deadline=None)
@given(st.floats(-5, 5), st.floats(0.01, 5), st.integers(0, 100))
def test_a_range_holds_zero_and_represents_values_well(centre, spread, seed) -> None:
    values = torch.randn(4000, generator=torch.Generator().manual_seed(seed)) * spread + centre
    least, most = min(values.min().item(), 0.0), max(values.max().item(), 0.0)
    low, high = best_range(torch.histc(values, 500, least, most).double(), least, most)
    step = (high - low) / (LEVELS - 1)
    assert low <= 1e-9 and high >= -1e-9 and abs(low / step - round(low / step)) < 1e-6
    rounded = ((values.clamp(low, high) - low) / step).round() * step + low
    assert (rounded - values).square().mean() <= 1.5 * ((most - least) / (LEVELS - 1)) ** 2 / 12


def test_a_range_of_nothing_but_zeros_is_one() -> None:
    assert best_range(torch.zeros(10), 0.0, 0.0) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("tensorrt", "float32"), "backend must be one of torch, openvino, got 'tensorrt'"),
        ((None, "float32"), "backend must be one of"),
        (("torch", "int8"), "backend must be openvino for the precision 'int8', got 'torch'"),
        (("openvino", "int4"), "precision must be one of float32, bfloat16, int8, got 'int4'"),
        (("torch", "float16"), "precision must be one of float32, bfloat16, got 'float16'"),
        (("openvino", "int8", "cuda"), "backend must be 'torch' on the device 'cuda'"),
    ],
)
def test_what_a_backend_cannot_do_is_refused(arguments, message) -> None:
    with pytest.raises(InvalidArgument, match=message):
        check_backend(*arguments)


def test_without_the_extra_the_message_says_how_to_install_it(monkeypatch) -> None:
    monkeypatch.setattr(backends, "openvino_installed", lambda: False)
    for call in (
        lambda: load_toolbox("tiny", backend="openvino"),
        lambda: gymnasium.make("Restore-v0", backend="openvino", precision="int8"),
        lambda: gymnasium.make_vec("Restore-v0", 2, backend="openvino"),
        lambda: restoration_env.restore(skimage.data.astronaut()[:40, :40], backend="openvino"),
    ):
        with pytest.raises(InvalidArgument, match=r"pip install 'restoration-env\[openvino\]'"):
            call()


def test_a_tool_refuses_a_precision_that_torch_does_not_have() -> None:
    with pytest.raises(UnknownName, match="float32, bfloat16"):
        Tool("t", "", lambda x: x, precision="int8")


@needs_openvino
def test_a_tool_that_is_no_network_is_refused_by_name() -> None:
    with pytest.raises(InvalidArgument, match="backend must be 'torch' for tool 'brighten', which is a function"):
        load_toolbox("tiny", backend="openvino")


@needs_openvino
@needs_cnn12
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
def test_the_results_agree_with_float32(precision) -> None:
    """Mean PSNR within 0.02 dB on every severity, each tool on as many images, then another tool on the results."""
    plain, other = load_toolbox("cnn12"), load_toolbox("cnn12", backend="openvino", precision=precision)
    assert {(tool.backend, tool.precision) for tool in other} == {("openvino", precision)}
    actions = [torch.arange(36) % 12, torch.arange(36) * 5 % 13]
    with torch.no_grad():
        for severity in ("mild", "moderate", "severe"):
            clean, damaged = damaged_patches(load_images("bundled", "test"), torch.arange(36), recipe(severity), 63)
            one, two = damaged, damaged
            for chosen in actions:
                one, two = plain.apply(one, chosen), other.apply(two, chosen)
            assert two.dtype == torch.float32
            difference = (psnr(two, clean) - psnr(one, clean)).mean().item()
            assert abs(difference) < (1e-3 if precision == "float32" else 0.02)


@needs_openvino
@needs_cnn12
def test_environments_and_photographs_take_a_backend() -> None:
    arguments = {"backend": "openvino", "precision": "bfloat16"}
    envs = gymnasium.make_vec("Restore-v0", 5, **arguments)
    slow = gymnasium.make_vec("Restore-v0", 5)
    for each in (envs, slow):
        each.reset(seed=3)
    one, two = (each.step(np.array([0, 3, 6, 9, 12])) for each in (envs, slow))
    np.testing.assert_allclose(one[1], two[1], atol=0.05)
    assert one[1][4] == 0.0
    photo = skimage.data.astronaut()[:70, 100:190]
    result, expected = restoration_env.restore(photo, **arguments), restoration_env.restore(photo)
    assert result.toolchain == expected.toolchain
    assert np.abs(result.image.astype(int) - expected.image).max() <= 3


@needs_openvino
def test_tiles_of_a_compiled_network_have_no_seams() -> None:
    torch.manual_seed(0)
    box = prepared(Toolbox("one", [Tool("net", "", build_network("8-layer").eval(), halo=8)]), "openvino", "float32")
    photo = skimage.data.astronaut()[:90, 100:201]
    (tiled,), (whole,) = (apply_tools(photo, box.tools, tile=side) for side in (32, 500))
    assert np.abs(tiled.astype(int) - whole).max() <= 1


@needs_openvino
@pytest.mark.parametrize("name", sorted(NETWORKS))
@pytest.mark.parametrize("sides", [(63, 63), (64, 64), (38, 101)], ids=str)
def test_a_compiled_network_takes_sides_of_any_length(name, sides) -> None:
    torch.manual_seed(0)
    network, images = build_network(name).eval(), torch.rand(2, 3, *sides)
    for parameter in network.parameters():  # also those that begin at zero
        nn.init.normal_(parameter, std=0.05)
    compiled = prepared(Toolbox("one", [Tool("net", "", network)]), "openvino", "float32")
    with torch.no_grad():
        expected = network(images)
        assert (expected - images).abs().max() > 1e-3
        for _ in range(10):  # a shape that comes often gets a model of its own
            torch.testing.assert_close(compiled["net"](images), expected, atol=1e-4, rtol=1e-4)


@needs_openvino
def test_many_shapes_and_large_ones_share_one_compiled_model() -> None:
    compiled = prepared(Toolbox("one", [Tool("net", "", build_network("3-layer").eval())]), "openvino", "float32")
    shapes, original = [], compiled["net"].function._compile
    compiled["net"].function._compile = lambda shape: shapes.append(shape) or original(shape)
    for side in (20, 21, 22, 23, 24, 200):
        for _ in range(3):
            compiled["net"](torch.rand(8, 3, side, side))
    assert shapes == [None, (20, 20), (21, 21), (22, 22), (23, 23)]


@needs_openvino
def test_threads_may_share_a_compiled_network() -> None:
    torch.manual_seed(0)
    network = build_network("3-layer").eval()
    tool = prepared(Toolbox("one", [Tool("net", "", network)]), "openvino", "float32").tools[0]
    batches, results = [torch.rand(n, 3, 30, 31) for n in (1, 2, 3, 4)], {}

    def use(number: int) -> None:
        for _ in range(5):
            results[number] = tool(batches[number])

    threads = [threading.Thread(target=use, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with torch.no_grad():
        for number, batch in enumerate(batches):
            torch.testing.assert_close(results[number], network(batch), atol=1e-4, rtol=0)


@needs_openvino
def test_threads_do_not_wait_for_each_other_in_a_compiled_network() -> None:
    torch.manual_seed(0)
    tool = prepared(Toolbox("one", [Tool("net", "", build_network("8-layer").eval())]), "openvino", "float32").tools[0]
    inside, most, lock = 0, 0, threading.Lock()
    compiled, original = tool.function, tool.function._compile

    def watched(shape):  # what computes for one thread at a time
        request = original(shape)
        infer = request.infer

        class Request:
            set_input_tensor, set_output_tensor = request.set_input_tensor, request.set_output_tensor

            def infer(self) -> None:
                nonlocal inside, most
                with lock:
                    inside += 1
                    most = max(most, inside)
                both.wait(20)
                infer()
                with lock:
                    inside -= 1

        return Request()

    both = threading.Barrier(2)
    compiled._compile = watched
    threads = [threading.Thread(target=tool, args=(torch.rand(1, 3, 20, 20),)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 2


def test_only_a_network_that_sharpens_does_not_bear_the_rounding_of_its_image() -> None:
    images = torch.rand(8, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    contrast = torch.zeros(3, 3, 3, 3)
    contrast[range(3), range(3), 1, 1] = 8.0
    contrast[range(3), range(3)] -= 8.0 / 9.0

    def network(strength: float) -> nn.Module:
        class Corrected(nn.Module):
            def forward(self, seen: torch.Tensor) -> torch.Tensor:
                return seen + strength * nn.functional.conv2d(seen, contrast, padding=1)

        return Corrected()

    assert bears_rounding(network(0.05), images)
    assert not bears_rounding(network(1.0), images)
