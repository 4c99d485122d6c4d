"""PSNR as published, SSIM as scikit-image."""

import math

import pytest
import skimage.data
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.metrics import structural_similarity

from restoration_env.errors import InvalidArgument, UnknownName
from restoration_env.metrics import METRICS, metric, psnr, ssim


def pairs(n: int = 3, height: int = 20, width: int = 24, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    clean = torch.rand(n, 3, height, width, generator=generator)
    return clean + 0.1 * torch.randn(clean.shape, generator=generator), clean


def test_psnr_is_the_published_formula() -> None:
    images, clean = pairs()
    expected = [
        10 * math.log10(1 / (((a - b).double() ** 2).mean().item() + 1e-10)) for a, b in zip(images, clean, strict=True)
    ]
    assert psnr(images, clean).tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("error", "expected"), [(0.0, 100.0), (1.0, 0.0), (0.1, 20.0), (0.01, 40.0)])
def test_psnr_of_a_known_error(error: float, expected: float) -> None:
    clean = torch.zeros(1, 3, 5, 5)
    assert psnr(clean + error, clean).item() == pytest.approx(expected, abs=1e-4)


def test_psnr_clips_nothing() -> None:
    clean = torch.ones(1, 3, 5, 5)
    assert psnr(clean + 0.1, clean).item() == pytest.approx(20.0, abs=1e-4)


def test_ssim_equals_skimage() -> None:
    images, clean = pairs()
    photo = torch.from_numpy(skimage.data.chelsea()[:20, :24] / 255.0).float().permute(2, 0, 1)[None]
    images, clean = torch.cat((images, photo + 0.02)), torch.cat((clean, photo))
    expected = [
        structural_similarity(a.double().numpy(), b.double().numpy(), data_range=1.0, channel_axis=0)
        for a, b in zip(images, clean, strict=True)
    ]
    assert ssim(images, clean).tolist() == pytest.approx(expected, abs=1e-6)


@settings(max_examples=25, deadline=None)
@given(height=st.integers(7, 30), width=st.integers(7, 30), seed=st.integers(0, 1000))
def test_ssim_equals_skimage_at_any_size(height: int, width: int, seed: int) -> None:
    images, clean = pairs(1, height, width, seed)
    expected = structural_similarity(
        images[0].double().numpy(), clean[0].double().numpy(), data_range=1.0, channel_axis=0
    )
    assert ssim(images, clean).item() == pytest.approx(expected, abs=1e-6)


def test_ssim_of_identical_images_is_one() -> None:
    flat = torch.full((1, 3, 9, 9), 0.5)
    assert ssim(flat, flat).item() == pytest.approx(1.0)


@pytest.mark.parametrize("name", METRICS)
def test_each_image_has_its_own_score(name: str) -> None:
    images, clean = pairs(4)
    alone = torch.cat([metric(name)(images[i : i + 1], clean[i : i + 1]) for i in range(4)])
    together = metric(name)(images, clean)
    assert together.dtype == torch.float64 and together.shape == (4,)
    torch.testing.assert_close(together, alone)


@pytest.mark.parametrize("name", METRICS)
def test_bad_pairs_are_refused(name: str) -> None:
    images, clean = pairs()
    with pytest.raises(InvalidArgument, match="of one shape"):
        metric(name)(images, clean[:2])
    with pytest.raises(InvalidArgument, match="of one shape"):
        metric(name)(images[0], clean[0])
    whole = (clean * 255).to(torch.uint8)
    with pytest.raises(InvalidArgument, match="float tensors"):  # the difference would wrap around
        metric(name)(whole, whole)


def test_ssim_refuses_images_smaller_than_its_window() -> None:
    with pytest.raises(InvalidArgument, match="at least 7 pixels"):
        ssim(*pairs(1, 6, 20))


def test_an_unknown_metric_lists_the_known_ones() -> None:
    with pytest.raises(UnknownName, match="psnr, ssim"):
        metric("lpips")
