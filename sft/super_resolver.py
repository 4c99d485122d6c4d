"""The super-resolver as one function: float (N, 3, h, w) in [0, 1] to (N, 3, 4h, 4w)."""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn

from restoration_env.errors import InvalidArgument, UnknownName
from restoration_env.files import read_weights
from restoration_env.resizing import SCALE, bicubic
from restoration_env.sft.conditioning import CATEGORIES
from restoration_env.sft.generator import SFTNet
from restoration_env.sft.segmenter import SMALLEST, WEIGHTS, Segmenter, load_segmenter
from restoration_env.sft.training import shape_of

_UNIT = 1e-3  # by how much the shares of a pixel may miss one


def shipped() -> tuple[str, ...]:
    """The super-resolvers that ship, by name."""
    return tuple(sorted(path.stem for path in WEIGHTS.glob("sft-*.safetensors")))


class SuperResolver:
    """A generator and the segmenter that tells it what is where.

    Attributes:
        name: what users call it.
        network: the generator.
        segmenter: of the paper's categories.
    """

    def __init__(self, name: str, network: nn.Module, segmenter: Segmenter) -> None:
        if segmenter.categories != CATEGORIES:
            raise InvalidArgument("segmenter", f"one of the categories {CATEGORIES}", segmenter.categories)
        self.name, self.network, self.segmenter = name, network.eval().requires_grad_(False), segmenter

    @torch.no_grad()
    def __call__(self, images: Tensor, maps: Tensor | None = None, scene: Tensor | None = None) -> Tensor:
        """Enlarge by four.

        Args:
            images: float (N, 3, h, w) in [0, 1], at least 4 pixels high and wide.
            maps: float (N, 8, 4h, 4w), the share of each category at each pixel, if it is known; None segments the
                bicubic enlargement.
            scene: of images that are parts of larger ones, what `scene` says of those.

        Returns:
            float32 (N, 3, 4h, 4w), not clipped.

        Raises:
            InvalidArgument: for images of another shape or smaller ones, and for maps of another size or whose shares
                do not sum to one.
        """
        shape = tuple(images.shape)
        if len(shape) != 4 or shape[1] != 3 or min(shape[2:]) < SMALLEST // SCALE:
            expected = f"of shape (N, 3, H, W), at least {SMALLEST // SCALE} pixels high and wide"
            raise InvalidArgument("images", expected, shape)
        if maps is None and getattr(self.network, "conditioning", "") == "none":  # it would not look at them
            height, width = (SCALE * side for side in images.shape[2:])
            maps = prior("background", 1, 1).to(images.device).expand(len(images), -1, height, width)
        elif maps is None:
            maps = self.maps(images)
        else:
            check_maps(maps, images)
        images = images.contiguous(memory_format=torch.channels_last)
        made: Tensor = self.network(images, maps) if scene is None else self.network(images, maps, scene)
        return made.float()

    @torch.no_grad()
    def scene(self, parts: Iterable[Tensor]) -> Tensor | None:
        """What the network wants to know of a whole whose parts have these maps, (1, 8, 4h, 4w) each.

        Returns:
            The mean of their conditions, float (1, 32, 1, 1), or None if it looks at each place alone.
        """
        network = self.network
        if not isinstance(network, SFTNet) or network.condition is None or network.conditioning != "film":
            return None
        sums = [(network.condition(maps).sum((2, 3), keepdim=True), maps[0, 0].numel()) for maps in parts]
        return torch.stack([total for total, _ in sums]).sum(0) * SCALE**2 / sum(count for _, count in sums)

    def maps(self, images: Tensor) -> Tensor:
        """The share of each category, float32 (N, 8, 4h, 4w), in low-resolution images (N, 3, h, w)."""
        return self.segmenter(bicubic(images.float(), SCALE).clamp(0.0, 1.0))


def check_maps(maps: Tensor, images: Tensor) -> None:
    """Refuse maps that are not four times as large as the images, or whose shares do not sum to one."""
    wanted = (len(images), len(CATEGORIES), SCALE * images.shape[2], SCALE * images.shape[3])
    if tuple(maps.shape) != wanted:
        raise InvalidArgument("maps", f"of shape {wanted}, four times the images' size", tuple(maps.shape))
    off = (maps.sum(1) - 1).abs().max().item()
    if not (off < _UNIT and maps.min().item() > -_UNIT):
        raise InvalidArgument(
            "maps", "shares of 0 or more that sum to one at each pixel", f"a sum that is off by {off:g}"
        )


def prior(name: str, height: int, width: int) -> Tensor:
    """Maps (1, 8, height, width) that say the whole image is of one category.

    Raises:
        UnknownName: for a name that is no category.
    """
    if name not in CATEGORIES:
        raise UnknownName("prior", name, CATEGORIES)
    maps = torch.zeros(1, len(CATEGORIES), height, width)
    maps[:, CATEGORIES.index(name)] = 1.0
    return maps


def load_super_resolver(
    weights: str | os.PathLike[str] = "sft-psnr",
    device: torch.device | str = "cpu",
    segmenter: str | os.PathLike[str] | None = None,
) -> SuperResolver:
    """A super-resolver by the name of one that ships, or the file that ``restoration-env train sft`` wrote.

    Raises:
        UnknownName: for a name that neither ships nor is a file.
        InvalidArgument: for a file that holds no super-resolver.
    """
    path = Path(weights)
    if str(weights) in shipped():
        path = WEIGHTS / f"{weights}.safetensors"
    elif not path.is_file():
        raise UnknownName("weights", str(weights), (*shipped(), "a file of weights"))
    changed = path.stat().st_mtime_ns
    return _loaded(str(path), changed, str(device), None if segmenter is None else str(segmenter))


# The time of change is part of what is asked for, so a changed file is read again.
@lru_cache(maxsize=4)
def _loaded(path: str, changed: int, device: str, segmenter: str | None) -> SuperResolver:
    tensors, card = read_weights(path)
    try:
        network = SFTNet(**shape_of(card))
        network.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    except (KeyError, TypeError, RuntimeError) as error:
        raise InvalidArgument("weights", "those of a super-resolver", f"{path}: {error}") from None
    network = network.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return SuperResolver(Path(path).stem, network, load_segmenter(segmenter, device))
