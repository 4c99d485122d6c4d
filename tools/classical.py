"""A toolbox without learning: the restoration functions of scikit-image as tools."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from restoration_env.toolbox import Tool, Toolbox


def _each_image(function: Callable[[np.ndarray], np.ndarray]) -> Callable[[Tensor], Tensor]:
    """A function of one float image (H, W, 3) as a function of a batch (N, 3, H, W)."""

    def apply(images: Tensor) -> Tensor:
        arrays = images.permute(0, 2, 3, 1).double().cpu().numpy()
        restored = np.stack([function(np.clip(array, 0.0, 1.0)) for array in arrays])
        return torch.from_numpy(restored).permute(0, 3, 1, 2).to(images)

    return apply


def _total_variation(weight: float) -> Callable[[np.ndarray], np.ndarray]:
    def denoise(image: np.ndarray) -> np.ndarray:
        from skimage.restoration import denoise_tv_chambolle

        return denoise_tv_chambolle(image, weight=weight, channel_axis=-1)

    return denoise


def _non_local_means(image: np.ndarray) -> np.ndarray:
    from skimage.restoration import denoise_nl_means

    return denoise_nl_means(image, patch_size=5, patch_distance=6, h=0.08, sigma=0.08, channel_axis=-1)


def _bilateral(image: np.ndarray) -> np.ndarray:
    from skimage.restoration import denoise_bilateral

    return denoise_bilateral(image, sigma_spatial=2.0, channel_axis=-1)


def _wiener(blur_sigma: float) -> Callable[[np.ndarray], np.ndarray]:
    def deconvolve(image: np.ndarray) -> np.ndarray:
        from skimage.restoration import wiener

        offsets = np.arange(-10, 11)
        line = np.exp(-0.5 * (offsets / blur_sigma) ** 2)
        kernel = np.outer(line, line) / line.sum() ** 2
        padded = np.pad(image, ((24, 24), (24, 24), (0, 0)), mode="reflect")
        planes = [wiener(padded[..., c], kernel, balance=0.05, clip=False) for c in range(3)]
        return np.stack(planes, -1)[24:-24, 24:-24]

    return deconvolve


def _unsharp(image: np.ndarray) -> np.ndarray:
    from skimage.filters import unsharp_mask

    return unsharp_mask(image, radius=1.5, amount=0.7, channel_axis=2)


def classical(*, device: torch.device | str = "cpu", precision: str = "float32") -> Toolbox:
    """Seven tools of scikit-image, computed on the CPU whatever the device; the precision is ignored."""
    rows: list[tuple[str, str, Callable[[np.ndarray], np.ndarray], int]] = [
        ("tv-light", "total variation, weight 0.05", _total_variation(0.05), 32),
        ("tv-strong", "total variation, weight 0.15", _total_variation(0.15), 32),
        ("nl-means", "non-local means for noise of sigma 20", _non_local_means, 9),
        ("bilateral", "bilateral filter", _bilateral, 8),
        ("wiener-1.5", "Wiener deconvolution of a Gaussian blur, sigma 1.5", _wiener(1.5), 24),
        ("wiener-3", "Wiener deconvolution of a Gaussian blur, sigma 3", _wiener(3.0), 24),
        ("unsharp", "unsharp mask", _unsharp, 8),
    ]
    tools = [Tool(name, text, _each_image(function), halo=halo) for name, text, function, halo in rows]
    return Toolbox("classical", tools)
