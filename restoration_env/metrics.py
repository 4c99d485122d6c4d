"""Numbers about two images: PSNR as RL-Restore defines it, and SSIM as scikit-image computes it."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from restoration_env.errors import InvalidArgument, UnknownName


def check_pair(images: Tensor, references: Tensor) -> None:
    """Refuse batches that cannot be compared: of unequal shapes, not (N, C, H, W), or not float."""
    if images.shape != references.shape or images.ndim != 4:
        got = f"{tuple(images.shape)} and {tuple(references.shape)}"
        raise InvalidArgument("images and references", "of one shape (N, C, H, W)", got)
    if not (images.is_floating_point() and references.is_floating_point()):  # whole numbers would wrap around
        got = f"{images.dtype} and {references.dtype}"
        raise InvalidArgument("images and references", "float tensors with values in [0, 1]", got)


def psnr(images: Tensor, references: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB for values in [0, 1].

    10 log10(1 / (MSE + 1e-10)) with the mean over height, width and RGB, no clipping, no border left out
    (RL-Restore's released code). Identical images give 100 dB.

    Args:
        images: float (N, C, H, W).
        references: the same shape.

    Returns:
        float64 (N,).
    """
    check_pair(images, references)
    difference = (images - references).flatten(1)
    error = torch.linalg.vector_norm(difference, dim=1, dtype=torch.float64).square() / difference.shape[1]
    return decibels(error)


def decibels(error: Tensor) -> Tensor:
    """The PSNR of a mean squared error."""
    return -10.0 * torch.log10(error + 1e-10)


def ssim(images: Tensor, references: Tensor) -> Tensor:
    """Structural similarity for values in [0, 1]: 7x7 uniform window, sample covariance, mean over channels.

    The definition is that of ``skimage.metrics.structural_similarity(..., data_range=1, channel_axis=...)``
    with its default settings.

    Args:
        images: float (N, C, H, W), at least 7 pixels on each side.
        references: the same shape.

    Returns:
        float64 (N,).
    """
    check_pair(images, references)
    if min(images.shape[-2:]) < 7:
        raise InvalidArgument("images", "at least 7 pixels high and wide for SSIM", tuple(images.shape[-2:]))
    x, y = images.double(), references.double()

    def local_mean(a: Tensor) -> Tensor:
        return F.avg_pool2d(a, 7, stride=1)

    unbiased = 49.0 / 48.0
    mean_x, mean_y = local_mean(x), local_mean(y)
    var_x = unbiased * (local_mean(x * x) - mean_x * mean_x)
    var_y = unbiased * (local_mean(y * y) - mean_y * mean_y)
    covariance = unbiased * (local_mean(x * y) - mean_x * mean_y)
    c1, c2 = 0.01**2, 0.03**2
    score = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    score = score / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    return score.mean(dim=(1, 2, 3))


METRICS = {"psnr": psnr, "ssim": ssim}


def metric(name: str) -> Callable[[Tensor, Tensor], Tensor]:
    """A metric by name, a function of (images, references) that returns (N,), higher is better."""
    if name not in METRICS:
        raise UnknownName("metric", name, METRICS)
    return METRICS[name]
