"""The modulation layer, the condition network and the generator of SFT-GAN."""

import pytest
import torch

from restoration_env.errors import InvalidArgument
from restoration_env.sft.conditioning import ConditionNetwork, SFTLayer
from restoration_env.sft.generator import SFTNet


@pytest.mark.parametrize(("form", "parameters"), [("nearest", 1_612_195), ("pixel-shuffle", 1_833_763)])
def test_generator_has_the_published_size(form, parameters):
    assert sum(p.numel() for p in SFTNet(form).parameters()) == parameters


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
def test_generator_enlarges_by_four_and_depends_on_what_is_where(form):
    torch.manual_seed(0)
    network, image = SFTNet(form, blocks=2), torch.rand(1, 3, 6, 9)
    sky = torch.zeros(1, 8, 24, 36)
    grass = sky.clone()
    sky[:, 1], grass[:, 3] = 1.0, 1.0
    enlarged = network(image, sky)
    assert enlarged.shape == (1, 3, 24, 36)
    assert not torch.equal(enlarged, network(image, grass))


def test_conditions_stand_on_the_low_resolution_grid():
    assert ConditionNetwork()(torch.rand(2, 8, 24, 36)).shape == (2, 32, 6, 9)


@pytest.mark.parametrize("shape", [(1, 7, 24, 24), (1, 8, 22, 24), (8, 24, 24)])
def test_maps_of_another_shape_are_refused(shape):
    with pytest.raises(InvalidArgument, match="probabilities"):
        ConditionNetwork()(torch.rand(shape))
    with pytest.raises(InvalidArgument, match="probabilities"):
        SFTNet(blocks=1)(torch.rand(1, 3, 5, 5), torch.rand(shape))


def test_an_unknown_form_lists_the_known_ones():
    with pytest.raises(InvalidArgument, match="nearest, pixel-shuffle"):
        SFTNet("bicubic")
