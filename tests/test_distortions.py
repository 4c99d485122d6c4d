"""Damage is what it says: exact blur, seeded noise, Pillow's JPEG, strengths in the published ranges."""

import io
import math

import numpy as np
import pytest
import scipy.ndimage
import torch
from helpers import interpreted, needs_triton
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from restoration_env import distortions
from restoration_env.distortions import (
    BLUR_EDGES,
    JPEG_EDGES,
    LOSSLESS,
    NOISE_EDGES,
    SEVERITY_RANGES,
    band,
    distort,
    gaussian_blur,
    level_triples,
    recipe,
    recipe_names,
    seeded_noise,
)
from restoration_env.errors import InvalidArgument, UnknownName
from restoration_env.randomness import normal, uniform


def images(n: int = 2, height: int = 20, width: int = 24, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, 3, height, width, generator=torch.Generator().manual_seed(seed))


def full(n: int, value: float) -> torch.Tensor:
    return torch.full((n,), value)


def only(image: torch.Tensor, blur: float = 0.0, noise: float = 0.0, quality: float = LOSSLESS, **more) -> torch.Tensor:
    n = len(image)
    return distort(image, full(n, blur), full(n, noise), full(n, quality), **more)


def reference_blur(image: np.ndarray, sigma: float) -> np.ndarray:
    kernel = np.exp(-0.5 * (np.arange(-10, 11) / sigma) ** 2)
    kernel /= kernel.sum()
    rows = scipy.ndimage.correlate1d(image.astype(np.float64), kernel, axis=-2, mode="nearest")
    return scipy.ndimage.correlate1d(rows, kernel, axis=-1, mode="nearest")


@pytest.mark.parametrize("dense_side", [192, 0], ids=["matrix", "convolution"])
@pytest.mark.parametrize("size", [(1, 1), (3, 40), (25, 21), (63, 63)])
def test_blur_is_21_taps_with_the_border_replicated(monkeypatch, dense_side: int, size) -> None:
    monkeypatch.setattr(distortions, "_DENSE_SIDE", dense_side)
    sigmas = torch.tensor([0.2, 1.0, 2.7, 5.0])
    batch = images(4, *size)
    expected = np.stack([reference_blur(x.numpy(), s) for x, s in zip(batch, sigmas.tolist(), strict=True)])
    np.testing.assert_allclose(gaussian_blur(batch, sigmas).numpy(), expected, atol=1e-5)


def test_a_large_image_is_blurred_the_same_way() -> None:
    batch = images(2, 200, 9)
    expected = np.stack([reference_blur(x.numpy(), 3.0) for x in batch])
    np.testing.assert_allclose(gaussian_blur(batch, full(2, 3.0)).numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("dense_side", [192, 0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_damage_changes_nothing(monkeypatch, dense_side: int, dtype: torch.dtype) -> None:
    monkeypatch.setattr(distortions, "_DENSE_SIDE", dense_side)
    batch = images().to(dtype)
    assert torch.equal(only(batch), batch)
    # ... nor beside an image that is damaged.
    mixed = distort(batch, torch.tensor([0.0, 2.0]), torch.tensor([0.0, 9.0]), torch.tensor([LOSSLESS, 30.0]))
    assert torch.equal(mixed[0], batch[0]) and not torch.equal(mixed[1], batch[1])
    assert mixed.dtype == dtype


def test_noise_has_its_sigma_on_the_255_scale() -> None:
    flat = torch.full((1, 3, 100, 100), 0.5)
    drawn = only(flat, noise=10.0, generator=torch.Generator().manual_seed(1)) - flat
    assert drawn.std().item() * 255 == pytest.approx(10.0, rel=0.02)
    assert drawn.mean().item() * 255 == pytest.approx(0.0, abs=0.2)


def test_noise_is_clipped_and_repeatable() -> None:
    batch = images().round()
    first, again, other = (only(batch, noise=50.0, generator=torch.Generator().manual_seed(s)) for s in (3, 3, 4))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert first.min() == 0.0 and first.max() == 1.0


def test_noise_can_be_given() -> None:
    batch = images() * 0.5 + 0.25
    result = distort(batch, full(2, 0.0), full(2, 25.5), full(2, LOSSLESS), noise=torch.ones_like(batch))
    torch.testing.assert_close(result, batch + 0.1)


def test_jpeg_is_pillows() -> None:
    batch = images(1)
    pixels = (batch[0] * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=37)
    expected = np.array(Image.open(file))
    result = (only(batch, quality=37)[0] * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(result, expected)


def test_quality_is_rounded_to_an_integer() -> None:
    batch = images()
    assert torch.equal(only(batch, quality=36.6), only(batch, quality=37))
    assert torch.equal(distort(batch, full(2, 0.0), full(2, 0.0), torch.tensor([37, 37])), only(batch, quality=37))


def test_order_is_blur_then_noise_then_jpeg() -> None:
    batch, noise = images(), torch.randn(2, 3, 20, 24, generator=torch.Generator().manual_seed(2))
    step = distort(batch, full(2, 2.0), full(2, 0.0), full(2, LOSSLESS))
    step = distort(step, full(2, 0.0), full(2, 20.0), full(2, LOSSLESS), noise=noise)
    step = only(step, quality=40)
    assert torch.equal(distort(batch, full(2, 2.0), full(2, 20.0), full(2, 40.0), noise=noise), step)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(0, 5), st.floats(0, 50), st.integers(1, 100) | st.just(LOSSLESS)),
        min_size=2,
        max_size=5,
    )
)
def test_each_image_is_damaged_as_if_alone(strengths: list[tuple[float, float, float]]) -> None:
    n = len(strengths)
    batch, noise = images(n), torch.randn(n, 3, 20, 24, generator=torch.Generator().manual_seed(2))
    columns = torch.tensor(strengths, dtype=torch.float64).T
    together = distort(batch, *columns, noise=noise)
    alone = [distort(batch[i : i + 1], *columns[:, i : i + 1], noise=noise[i : i + 1]) for i in range(n)]
    assert torch.equal(together, torch.cat(alone))
    assert together.min() >= 0.0 and together.max() <= 1.0


GOOD = images()
NAN = GOOD.clone()
NAN[1, 2, 3, 4] = math.nan


@pytest.mark.parametrize(
    "bad",
    [
        GOOD.numpy(),
        None,
        (GOOD * 255).to(torch.uint8),
        GOOD.to(torch.complex64),
        GOOD[0],
        GOOD[:, :1],
        GOOD.permute(0, 2, 3, 1),
        GOOD[:0],
        GOOD[..., :0],
        NAN,
        GOOD / 0,
        GOOD + 0.5,
        GOOD - 0.5,
        GOOD * 255,
    ],
)
def test_bad_images_are_refused(bad) -> None:
    with pytest.raises(InvalidArgument, match=r"^images must be") as caught:
        distort(bad, full(2, 0.0), full(2, 0.0), full(2, LOSSLESS))
    assert caught.value.argument == "images"


SHAPES = [
    1.0,
    None,
    [50.0, 50.0],
    torch.tensor(50.0),
    full(1, 50.0),
    full(3, 50.0),
    full(2, 50.0)[None],
    full(2, 1j),
]
STRENGTHS = [
    *(("blur_sigma", bad) for bad in (*SHAPES, full(2, -1.0), full(2, math.nan), full(2, math.inf))),
    *(("noise_sigma", bad) for bad in (*SHAPES, full(2, -1.0), full(2, math.nan), full(2, math.inf))),
    *(("jpeg_quality", bad) for bad in (*SHAPES, full(2, 0.0), full(2, 0.4), full(2, 101.0), full(2, -5.0))),
    *(("jpeg_quality", bad) for bad in (full(2, math.nan), full(2, -math.inf), torch.tensor([50.0, math.nan]))),
]


@pytest.mark.parametrize(("name", "bad"), STRENGTHS)
def test_bad_strengths_are_refused_by_name(name: str, bad) -> None:
    good = {"blur_sigma": full(2, 1.0), "noise_sigma": full(2, 1.0), "jpeg_quality": full(2, 50.0)}
    with pytest.raises(InvalidArgument, match=f"^{name} must be") as caught:
        distort(GOOD, **{**good, name: bad})
    assert caught.value.argument == name


def test_noise_of_another_shape_is_refused() -> None:
    with pytest.raises(InvalidArgument, match=r"^noise must be of the images' shape"):
        distort(GOOD, full(2, 0.0), full(2, 1.0), full(2, LOSSLESS), noise=torch.zeros(1, 3, 1, 1))


def test_level_edges_are_the_published_ones() -> None:
    assert BLUR_EDGES == (0, 0.5, 1, 1.5, 2, 2.5, 3, 3.5, 4, 4.5, 5)
    assert NOISE_EDGES == (0, 5, 10, 15, 20, 25, 30, 35, 40, 45, 50)
    assert JPEG_EDGES == (100, 80, 60, 50, 40, 35, 30, 25, 20, 15, 10)


@pytest.mark.parametrize(("severity", "count"), [("mild", 163), ("moderate", 434), ("severe", 163)])
def test_level_triples(severity: str, count: int) -> None:
    triples = level_triples(severity)
    low, high = SEVERITY_RANGES[severity]
    assert len(set(triples)) == len(triples) == count
    assert {sum(t) - 2 for t in triples} == set(range(low, high + 1))
    assert all(1 <= level <= 10 for t in triples for level in t)


def draw(name: str, count: int = 4000) -> np.ndarray:
    strengths = recipe(name).draw(uniform(torch.arange(count), 4))
    assert all(values.shape == (count,) for values in strengths)
    return torch.stack(strengths).numpy()


def level(values: np.ndarray, edges: tuple[float, ...]) -> np.ndarray:
    """The least level whose range holds each value, as a whole number 1..10."""
    rising = np.array(edges) if edges[0] < edges[-1] else -np.array(edges)
    signed = values if edges[0] < edges[-1] else -values
    return np.clip(np.searchsorted(rising, signed, side="left"), 1, 10)


@pytest.mark.parametrize("name", recipe_names())
def test_strengths_lie_in_the_published_ranges(name: str) -> None:
    blur, noise, quality = draw(name)
    assert ((blur >= 0) & (blur <= 5)).all() and ((noise >= 0) & (noise <= 50)).all()
    lossy = np.isfinite(quality)
    assert ((quality[lossy] >= 10) & (quality[lossy] <= 100) & (quality[lossy] % 1 == 0)).all()
    assert recipe(name).name == name
    distort(images(4), *recipe(name).draw(uniform(torch.arange(4), 4)))


@pytest.mark.parametrize("name", SEVERITY_RANGES)
def test_a_severitys_strengths_belong_to_its_triples(name: str) -> None:
    blur, noise, quality = draw(name)
    low, high = SEVERITY_RANGES[name]
    total = level(blur, BLUR_EDGES) + level(noise, NOISE_EDGES) + level(quality, JPEG_EDGES) - 2
    # A quality rounded onto an edge may count as the level before.
    assert total.min() >= low - 1 and total.max() <= high
    assert np.isfinite(quality).all() and (total >= low).mean() > 0.9
    # Every level that the severity allows occurs.
    assert set(level(blur, BLUR_EDGES)) == {t[0] for t in level_triples(name)}


def damaged(strengths: np.ndarray) -> np.ndarray:
    """How many of the three distortions each image has."""
    return (strengths[0] > 0).astype(int) + (strengths[1] > 0) + np.isfinite(strengths[2])


def test_mixtures_are_even() -> None:
    single, mixed = draw("single"), draw("mixed")
    assert (damaged(single) == 1).all()
    for part in (single[0] > 0, single[1] > 0, np.isfinite(single[2])):
        assert part.mean() == pytest.approx(1 / 3, abs=0.03)
    assert (damaged(mixed) == 1).mean() == pytest.approx(0.5, abs=0.03)
    assert (damaged(mixed) == 3).mean() == pytest.approx(0.5, abs=0.03)
    assert (damaged(draw("any")) == 3).all()


@pytest.mark.parametrize(("kind", "low", "high", "row"), [("blur", 1, 2, 0), ("noise", 10, 20, 1), ("jpeg", 60, 35, 2)])
def test_a_band_is_one_distortion(kind: str, low: float, high: float, row: int) -> None:
    strengths = torch.stack(band(kind, low, high).draw(uniform(torch.arange(500), 4))).numpy()
    assert (damaged(strengths) == 1).all()
    assert strengths[row].min() >= min(low, high) and strengths[row].max() <= max(low, high)
    assert np.ptp(strengths[row]) > 0.95 * abs(high - low)


def test_unknown_names_list_the_known_ones() -> None:
    with pytest.raises(UnknownName, match=", ".join(recipe_names())):
        recipe("terrible")
    with pytest.raises(UnknownName, match="mild, moderate, severe"):
        level_triples("any")
    with pytest.raises(UnknownName, match="blur, noise, jpeg"):
        band("haze", 0, 1)


INTERPRETED = """
import torch
from restoration_env.distortions import seeded_noise
from restoration_env.randomness import noisy_in_one

images = torch.rand(4, 3, 13, 17).transpose(2, 3)
keys, sigma = torch.tensor([1, -7, 2**62, 0]), torch.tensor([0.0, 10.0, 50.0, 3.0])
torch.testing.assert_close(noisy_in_one(images, sigma / 255.0, keys, 3), seeded_noise(images, sigma, keys, 3))
print("the same")
"""


def test_noise_is_scaled_normal_numbers_and_an_image_without_stays_as_it_is() -> None:
    images, keys = torch.rand(3, 3, 9, 8) * 2.0 - 0.5, torch.tensor([5, 6, 7])
    made = seeded_noise(images, torch.tensor([0.0, 25.5, 51.0]), keys, stream=3)
    assert torch.equal(made[0], images[0])
    for row, scale in ((1, 0.1), (2, 0.2)):
        expected = images[row] + scale * normal(keys[row : row + 1], (3, 9, 8), stream=3)[0]
        torch.testing.assert_close(made[row], expected.clamp(0.0, 1.0))


@needs_triton
def test_the_kernel_makes_the_same_noise() -> None:
    assert interpreted(INTERPRETED) == "the same"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_a_gpu_makes_the_same_noise() -> None:
    images, keys, sigma = torch.rand(4, 3, 80, 80), torch.arange(4), torch.tensor([0.0, 10.0, 50.0, 3.0])
    made = seeded_noise(images.cuda(), sigma.cuda(), keys.cuda(), stream=3).cpu()
    torch.testing.assert_close(made, seeded_noise(images, sigma, keys, stream=3), atol=1e-5, rtol=0)
