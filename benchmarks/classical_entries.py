"""Restoration without learning in the comparison: chains of scikit-image's functions, the same for every image."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from restoration_env.agents.policies import FixedChain
from restoration_env.agents.reference import best_fixed_chain
from restoration_env.benchmarks.comparison import Entry
from restoration_env.benchmarks.networks import SingleTool
from restoration_env.benchmarks.suites import Suite
from restoration_env.registry import load_toolbox
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


def classical_entries(chosen_on: Suite | None = None, *, length: int = 2, width: int = 2) -> list[Entry]:
    """Fixed chains of the toolbox "classical", and the unsupervised Wiener filter.

    Args:
        chosen_on: patches from other images than those of the comparison; with them, the best chain found on them
            is an entry too. Searching costs about a tenth of a second for each tool run on each patch.
        length: tools of that chain.
        width: prefixes followed in the search for it.
    """
    toolbox = load_toolbox("classical")
    policies = [FixedChain(toolbox, chain) for chain in CHAINS]
    entries = [Entry(f"{policy.name} (classical)", policy, toolbox) for policy in policies]
    alone = SingleTool(unsupervised_wiener())
    entries.append(Entry(f"{alone.name} (classical)", alone, alone.toolbox))
    if chosen_on is not None:
        best = best_fixed_chain(toolbox, chosen_on.clean, chosen_on.damaged, length=length, width=width)
        entries.append(Entry(f"{best.name} (classical)", best, toolbox, len(chosen_on.clean)))
    return entries


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
