"""Bicubic resizing against the definition, pixel by pixel, and against Pillow."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from restoration_env.errors import InvalidArgument
from restoration_env.resizing import bicubic


def _kernel(x: float) -> float:
    x = abs(x)
    if x <= 1:
        return 1.5 * x**3 - 2.5 * x**2 + 1
    return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0.0


def _line(values: np.ndarray, scale: float) -> np.ndarray:
    """One line of pixels resized as MATLAB documents it, one output at a time."""
    length, shrink, result = len(values), min(scale, 1.0), []
    for i in range(math.ceil(length * scale - 1e-9)):
        centre = (i + 1) / scale + 0.5 * (1 - 1 / scale)  # counted from 1, as MATLAB does
        low, high = math.floor(centre - 2 / shrink) - 1, math.ceil(centre + 2 / shrink) + 1
        total, weight_sum = 0.0, 0.0
        for place in range(low, high + 1):
            weight = shrink * _kernel(shrink * (centre - place))
            inside = (place - 1) % (2 * length)
            inside = inside if inside < length else 2 * length - 1 - inside
            total, weight_sum = total + weight * values[inside], weight_sum + weight
        result.append(total / weight_sum)
    return np.array(result)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(4, 24), st.integers(4, 24), st.sampled_from([0.25, 4.0, 0.5, 2.0, 0.7, 1.0, 3.0]), st.integers(0, 99)
)
def test_equals_the_definition(height, width, scale, seed):
    image = np.random.default_rng(seed).random((height, width))
    rows = np.stack([_line(column, scale) for column in image.T], 1)
    expected = np.stack([_line(row, scale) for row in rows])
    result = bicubic(torch.from_numpy(image)[None, None], scale)[0, 0].numpy()
    np.testing.assert_allclose(result, expected, atol=1e-12)
    in_float32 = bicubic(torch.from_numpy(image).float()[None, None], scale)[0, 0].numpy()
    np.testing.assert_allclose(in_float32, expected, atol=1e-6)


@pytest.mark.parametrize("scale", [0.25, 4.0])
def test_equals_pillow_away_from_the_border(scale):
    image = np.random.default_rng(0).random((80, 112)).astype(np.float32)
    size = (round(112 * scale), round(80 * scale))
    theirs = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))
    ours = bicubic(torch.from_numpy(image)[None, None], scale)[0, 0].numpy()
    margin = 3 if scale < 1 else 12
    inside = (slice(margin, -margin),) * 2
    np.testing.assert_allclose(ours[inside], theirs[inside], atol=1e-6)


def test_an_image_is_the_same_alone_and_in_a_batch():
    batch = torch.rand(7, 3, 24, 40)
    together = bicubic(batch, 0.25)
    assert all(torch.equal(bicubic(one[None], 0.25)[0], row) for one, row in zip(batch, together, strict=True))


def test_a_constant_stays_and_sides_are_rounded_up():
    assert bicubic(torch.full((1, 3, 9, 13), 0.3), 0.25).shape == (1, 3, 3, 4)
    torch.testing.assert_close(bicubic(torch.full((1, 3, 9, 13), 0.3), 0.25), torch.full((1, 3, 3, 4), 0.3))


@pytest.mark.parametrize(
    ("images", "scale", "named"),
    [
        (torch.zeros(3, 8, 8), 0.25, "images"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), 0.25, "images"),
        (torch.zeros(1, 3, 8, 8), 0.0, "scale"),
        (torch.zeros(1, 3, 8, 8), float("nan"), "scale"),
    ],
)
def test_bad_input_is_refused(images, scale, named):
    with pytest.raises(InvalidArgument, match=f"^{named} must be"):
        bicubic(images, scale)
