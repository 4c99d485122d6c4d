"""The tensor JPEG is Pillow's, to the bit."""

import io
from collections.abc import Iterator

import numpy as np
import pytest
import skimage.data
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from restoration_env.devices import has_loops
from restoration_env.errors import InvalidArgument
from restoration_env.jpeg import jpeg


@pytest.fixture(params=["compiled loops", "tensors"], scope="module", autouse=True)
def way(request: pytest.FixtureRequest) -> Iterator[None]:
    """Everything here holds for both ways of a processor."""
    compiled = request.param == "compiled loops"
    if compiled and not has_loops(torch.device("cpu")):
        pytest.skip("numba is not installed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("restoration_env.jpeg.has_loops", lambda device: compiled)
        yield


def pillow(image: np.ndarray, quality: int) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    return np.array(Image.open(file).convert("RGB"))


def ours(images: list[np.ndarray], qualities: list[int]) -> np.ndarray:
    batch = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
    return jpeg(batch, torch.tensor(qualities)).permute(0, 2, 3, 1).numpy()


def photo(height: int, width: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    top, left = rng.integers(0, 512 - height), rng.integers(0, 512 - width)
    return np.ascontiguousarray(skimage.data.astronaut()[top : top + height, left : left + width])


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def extreme(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Only 0 and 255: the largest coefficients there are."""
    return noise(height, width, seed) // 128 * 255


def waves(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Only 0 and 255, in each block where a cosine of the transform is above 0: the longest sums there are."""
    up, along = np.random.default_rng(seed).integers(0, 8, (2, 3))
    phase = np.pi / 16 * (2 * np.arange(max(height, width)) + 1)[:, None]
    down, across = np.cos(phase[:height] * up)[:, None], np.cos(phase[:width] * along)[None]
    return np.where(down * across > 0, 255, 0).astype(np.uint8)


@pytest.mark.parametrize("content", [photo, noise, extreme, waves])
@pytest.mark.parametrize("size", [(63, 63), (37, 50)])
def test_equals_pillow_at_every_quality(content, size) -> None:
    qualities = list(range(1, 101))
    images = [content(*size, seed=quality) for quality in qualities]
    expected = np.stack([pillow(image, quality) for image, quality in zip(images, qualities, strict=True)])
    np.testing.assert_array_equal(ours(images, qualities), expected)


SMALL = [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33]


@pytest.mark.parametrize("height", SMALL)
def test_equals_pillow_at_small_and_odd_sizes(height: int) -> None:
    for width in SMALL:
        images = [noise(height, width, width), photo(height, width, width)]
        expected = np.stack([pillow(images[0], 83), pillow(images[1], 20)])
        np.testing.assert_array_equal(ours(images, [83, 20]), expected, err_msg=f"{height}x{width}")


@settings(max_examples=80, deadline=None)
@given(
    height=st.integers(1, 80),
    width=st.integers(1, 80),
    quality=st.integers(1, 100),
    seed=st.integers(0, 1 << 30),
    content=st.sampled_from([photo, noise, extreme, waves]),
)
def test_equals_pillow_anywhere(height: int, width: int, quality: int, seed: int, content) -> None:
    image = content(height, width, seed)
    np.testing.assert_array_equal(ours([image], [quality])[0], pillow(image, quality))


def test_nothing_changes_where_float32_products_may_be_rounded() -> None:
    images = [content(63, 63, 1) for content in (photo, noise, extreme, waves)]
    expected = ours(images, [10, 40, 70, 95])
    torch.set_float32_matmul_precision("medium")
    try:
        np.testing.assert_array_equal(ours(images, [10, 40, 70, 95]), expected)
    finally:
        torch.set_float32_matmul_precision("highest")


def test_a_large_image_equals_pillow() -> None:
    image = skimage.data.astronaut()[:, :-3]
    np.testing.assert_array_equal(ours([image], [10])[0], pillow(image, 10))


def test_a_batch_of_different_qualities_equals_one_at_a_time() -> None:
    images, qualities = [photo(40, 41, seed) for seed in range(6)], [1, 10, 49, 50, 95, 100]
    alone = np.concatenate([ours([image], [quality]) for image, quality in zip(images, qualities, strict=True)])
    np.testing.assert_array_equal(ours(images, qualities), alone)


def test_the_argument_is_left_as_it_was() -> None:
    images = torch.from_numpy(noise(20, 20)).permute(2, 0, 1)[None]
    before = images.clone()
    jpeg(images, torch.tensor([10]))
    assert torch.equal(images, before)


GOOD = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)


@pytest.mark.parametrize(
    "images",
    [GOOD.float(), GOOD.int(), GOOD[0], GOOD[:, :1], GOOD[:, :, :0], GOOD[..., :0], GOOD.permute(0, 2, 3, 1)],
)
def test_bad_images_are_refused(images: torch.Tensor) -> None:
    with pytest.raises(InvalidArgument, match=r"^images must be uint8") as caught:
        jpeg(images, torch.full((len(images),), 50))
    assert caught.value.argument == "images"


@pytest.mark.parametrize(
    "quality",
    [
        torch.tensor([50, 0]),
        torch.tensor([101, 50]),
        torch.tensor([-1, 50]),
        torch.tensor([50]),
        torch.tensor(50),
        torch.tensor([[50, 50]]),
        torch.tensor([50.0, 50.0]),
        torch.tensor([True, True]),
        torch.tensor([50j, 50j]),
    ],
)
def test_bad_qualities_are_refused(quality: torch.Tensor) -> None:
    with pytest.raises(InvalidArgument, match=r"^quality must be") as caught:
        jpeg(GOOD, quality)
    assert caught.value.argument == "quality"


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32])
def test_qualities_may_be_whole_numbers_of_any_kind(dtype: torch.dtype) -> None:
    images = torch.randint(0, 256, (3, 3, 17, 33), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    quality = torch.tensor([1, 49, 100])
    assert torch.equal(jpeg(images, quality.to(dtype)), jpeg(images, quality))


def test_it_stays_exact_where_users_let_float32_products_be_inexact() -> None:
    image, before = photo(40, 41, 3), torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        np.testing.assert_array_equal(ours([image], [60])[0], pillow(image, 60))
    finally:
        torch.set_float32_matmul_precision(before)
