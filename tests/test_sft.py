"""The modulation layer, the condition network, the generator with its conditionings, and the discriminator."""

import pytest
import torch

from restoration_env.errors import InvalidArgument
from restoration_env.resizing import bicubic
from restoration_env.sft.conditioning import ConditionNetwork, SFTLayer
from restoration_env.sft.discriminator import Discriminator
from restoration_env.sft.generator import CONDITIONING, SFTNet


def _count(network):
    return sum(p.numel() for p in network.parameters())


def _one_hot(channel, height, width):
    maps = torch.zeros(1, 8, height, width)
    maps[:, channel] = 1.0
    return maps


@pytest.mark.parametrize(("form", "parameters"), [("nearest", 1_612_195), ("pixel-shuffle", 1_833_763)])
def test_generator_has_the_published_size(form, parameters):
    assert _count(SFTNet(form)) == parameters


def test_discriminator_has_the_published_size():
    assert _count(Discriminator()) == 10_813_717  # the published 10.8 million


def test_modulation_equals_a_plain_reference():
    torch.manual_seed(0)
    layer, features, conditions = SFTLayer(), torch.rand(2, 64, 5, 7), torch.rand(2, 32, 5, 7)
    expected = torch.empty_like(features)
    for n in range(2):
        for y in range(5):
            for x in range(7):
                condition = conditions[n, :, y, x]
                values = []
                for first, second in (layer.scale, layer.shift):
                    hidden = first.weight[:, :, 0, 0] @ condition + first.bias
                    hidden = torch.where(hidden > 0, hidden, 0.1 * hidden)
                    values.append(second.weight[:, :, 0, 0] @ hidden + second.bias)
                expected[n, :, y, x] = (1 + values[0]) * features[n, :, y, x] + values[1]
    torch.testing.assert_close(layer(features, conditions), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("form", ["nearest", "pixel-shuffle"])
@pytest.mark.parametrize("conditioning", CONDITIONING)
def test_generator_enlarges_by_four_and_depends_on_what_it_is_told(form, conditioning):
    torch.manual_seed(0)
    network, image = SFTNet(form, 16, 2, conditioning), torch.rand(1, 3, 6, 9)
    enlarged = network(image, _one_hot(1, 24, 36))
    assert enlarged.shape == (1, 3, 24, 36)
    assert torch.equal(enlarged, network(image, _one_hot(3, 24, 36))) == (conditioning == "none")


def test_only_film_looks_at_the_whole_image_alike():
    torch.manual_seed(0)
    half = _one_hot(1, 24, 48)
    half[..., 24:] = _one_hot(3, 24, 24)
    image = torch.rand(1, 3, 6, 12)
    for conditioning, differs in (("film", False), ("sft", True)):
        network = SFTNet(width=8, blocks=1, conditioning=conditioning)
        gamma, beta = network.sft.modulation(network.conditions(half))
        assert (
            bool((gamma[..., 0] != gamma[..., -1]).any()) and bool((beta[..., 0] != beta[..., -1]).any())
        ) == differs
        assert network(image, half).shape == (1, 3, 24, 48)


def test_compositional_mapping_uses_the_branch_of_the_category():
    torch.manual_seed(0)
    network, image = SFTNet(width=8, blocks=1, conditioning="compositional"), torch.rand(1, 3, 6, 6)
    sky, grass = network(image, _one_hot(1, 24, 24)), network(image, _one_hot(3, 24, 24))
    with torch.no_grad():
        network.told.weight[8:16] += 1.0  # the branch of the sky
    assert not torch.equal(sky, network(image, _one_hot(1, 24, 24)))
    assert torch.equal(grass, network(image, _one_hot(3, 24, 24)))


@pytest.mark.parametrize("conditioning", CONDITIONING)
@pytest.mark.parametrize("on_bicubic", [False, True])
def test_inserted_conditions_change_nothing_at_first(conditioning, on_bicubic):
    torch.manual_seed(0)
    plain = SFTNet(width=8, blocks=2, conditioning="none", on_bicubic=on_bicubic)
    told = SFTNet(width=8, blocks=2, conditioning=conditioning, on_bicubic=on_bicubic)
    told.begin_from(plain.state_dict())
    image, maps = torch.rand(2, 3, 6, 6), torch.rand(2, 8, 24, 24).softmax(1)
    torch.testing.assert_close(told(image, maps), plain(image, maps), atol=1e-5, rtol=0)


def test_a_start_of_another_shape_is_refused():
    with pytest.raises(InvalidArgument, match="start must be a network with"):
        SFTNet(width=8, blocks=2).begin_from(SFTNet(width=16, blocks=2).state_dict())
    with pytest.raises(InvalidArgument, match="start must be a network with"):
        SFTNet(width=8, blocks=2).begin_from(SFTNet(width=8, blocks=1).state_dict())


def test_on_bicubic_adds_to_the_enlargement():
    network, image = SFTNet(width=8, blocks=1, conditioning="none", on_bicubic=True), torch.rand(1, 3, 6, 6)
    torch.nn.init.zeros_(network.last.weight)
    torch.nn.init.zeros_(network.last.bias)
    torch.testing.assert_close(network(image, _one_hot(0, 24, 24)), bicubic(image, 4))


def test_conditions_stand_on_the_low_resolution_grid():
    assert ConditionNetwork()(torch.rand(2, 8, 24, 36)).shape == (2, 32, 6, 9)


@pytest.mark.parametrize("shape", [(1, 7, 24, 24), (1, 8, 22, 24), (8, 24, 24)])
def test_maps_of_another_shape_are_refused(shape):
    with pytest.raises(InvalidArgument, match="probabilities"):
        ConditionNetwork()(torch.rand(shape))
    with pytest.raises(InvalidArgument, match="probabilities"):
        SFTNet(blocks=1)(torch.rand(1, 3, 5, 5), torch.rand(shape))


def test_unknown_names_list_the_known_ones():
    with pytest.raises(InvalidArgument, match="nearest, pixel-shuffle"):
        SFTNet("bicubic")
    with pytest.raises(InvalidArgument, match="sft, film, concat, compositional, none"):
        SFTNet(conditioning="attention")


def test_discriminator_judges_patches_of_its_size_only():
    network = Discriminator(8, 32)
    real, categories = network(torch.rand(2, 3, 32, 32))
    assert real.shape == (2,) and categories.shape == (2, 8)
    with pytest.raises(InvalidArgument, match="images must be of shape"):
        network(torch.rand(2, 3, 48, 48))
    with pytest.raises(InvalidArgument, match="side must be a multiple of 16"):
        Discriminator(8, 40)
