"""Restoration without learning in the comparison: chains of scikit-image's functions, the same for every image."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from restoration_env.toolbox import Tool

# Each denoiser alone, deconvolution alone, and deconvolution of what a denoiser left: the damage undone in reverse.
CHAINS = (
    ("tv-light",),
    ("tv-strong",),
    ("nl-means",),
    ("bilateral",),
    ("wiener-1.5",),
    ("tv-strong", "wiener-1.5"),
    ("nl-means", "wiener-1.5"),
    ("bilateral", "wiener-1.5"),
)
_BLUR = 1.0  # sigma in pixels that the unsupervised filter takes the blur to be
_ROUNDS = 40  # of its sampler; the default, 200, costs five times as much
_MARGIN = 24  # pixels reflected around an image, so that its borders do not ring


def unsupervised_wiener(*, device: torch.device | str = "cpu", precision: str = "float32") -> Tool:
    """Wiener deconvolution that estimates the noise itself (Orieux et al., 2010; scikit-image).

    Computed on the CPU whatever the device; the precision is ignored. The blur is taken to be Gaussian with a sigma
    of one pixel, because the filter cannot estimate it. Its sampler begins with the same seed for every image.
    """
    from skimage.restoration import unsupervised_wiener as deconvolve

    offsets = np.arange(-10, 11)
    line = np.exp(-0.5 * (offsets / _BLUR) ** 2)
    kernel = np.outer(line, line) / line.sum() ** 2

    def restore_plane(plane: np.ndarray) -> np.ndarray:
        wide = np.pad(plane, _MARGIN, mode="reflect")
        found, _ = deconvolve(wide, kernel, user_params={"max_num_iter": _ROUNDS}, clip=False, rng=0)
        return found[_MARGIN:-_MARGIN, _MARGIN:-_MARGIN]

    def apply(images: Tensor) -> Tensor:
        planes = images.clamp(0.0, 1.0).flatten(0, 1).double().cpu().numpy()
        restored = np.stack([restore_plane(plane) for plane in planes])
        return torch.from_numpy(restored).view(images.shape).to(images)

    return Tool("unsupervised-wiener", "Wiener deconvolution that estimates the noise", apply, halo=_MARGIN)
