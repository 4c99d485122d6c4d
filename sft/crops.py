"""Training data of the super-resolver: crops, the maps of what is where in them, and their category.

Half of the crops come from labelled scenes, as many of each category, the other half from photographs without labels.
The maps are always the segmenter's, of the low-resolution image, as they will be in use; labels only say where crops
of a category are to be had.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from restoration_env.errors import InvalidArgument
from restoration_env.images import ImagePool
from restoration_env.randomness import generator
from restoration_env.resizing import SCALE, bicubic, enlarged_again
from restoration_env.sft.conditioning import CATEGORIES
from restoration_env.sft.losses import BACKGROUND
from restoration_env.sft.scenes import Scenes
from restoration_env.sft.segmenter import Segmenter

_GRID = 16  # pixels between the places that are looked at for a category
_RESCALED = (1.0, 0.75, 0.5)  # photographs are large enough to be shrunk, scenes are not
_SHARE = 0.8  # of a window that has to be of one category
_SCARCE = 48  # side of that window where a category has few: only its middle is of the category


@dataclass(frozen=True)
class Batch:
    """High-resolution crops (N, 3, S, S), low-resolution ones, maps (N, 8, S, S) and categories (N,)."""

    high: Tensor
    low: Tensor
    maps: Tensor
    categories: Tensor

    def to(self, device: torch.device | str) -> Batch:
        """The same on a device, channels last."""
        high, low, maps = (
            part.to(device).contiguous(memory_format=torch.channels_last) for part in (self.high, self.low, self.maps)
        )
        return Batch(high, low, maps, self.categories.to(device))


def whole_maps(
    segmenter: Segmenter,
    images: Sequence[Tensor],
    device: torch.device | str = "cpu",
    report: Callable[[int, int], None] = lambda done, total: None,
) -> list[Tensor]:
    """The maps of whole photographs at a quarter of their size, uint8 (8, ceil(H / 4), ceil(W / 4)) each.

    Args:
        segmenter: for the paper's categories.
        images: uint8 (3, H, W) each.
        device: where the segmenter is.
        report: called after each photograph.

    Raises:
        InvalidArgument: for a segmenter of other categories.
    """
    if segmenter.categories != CATEGORIES:
        raise InvalidArgument("segmenter", f"one of the categories {CATEGORIES}", segmenter.categories)
    maps = []
    for done, image in enumerate(images, 1):
        probabilities = segmenter(enlarged_again(image[None].to(device).float() / 255))
        small = F.avg_pool2d(probabilities, SCALE, ceil_mode=True, count_include_pad=False)
        maps.append((small[0] * 255).round().to(torch.uint8).cpu())
        report(done, len(images))
    return maps


class Crops:
    """Draws batches; what is drawn in an iteration follows from the seed and the iteration alone.

    Args:
        scenes: labelled photographs.
        photographs: others.
        scene_maps: of `whole_maps`, one for each scene.
        photograph_maps: one for each photograph.
        side: of the crops at high resolution, a multiple of 16.
        scenes_share: share of the crops that come from scenes.
        background: crops of the background for each one of another category, among those from scenes.
    """

    def __init__(
        self,
        scenes: Scenes,
        photographs: ImagePool,
        scene_maps: Sequence[Tensor],
        photograph_maps: Sequence[Tensor],
        side: int = 96,
        scenes_share: float = 0.5,
        background: float = 1.0,
    ) -> None:
        self.scenes, self.side, self.scenes_share, self.background = scenes, side, scenes_share, background
        self.images = (*scenes.images, *photographs.images)
        self.maps = (*scene_maps, *photograph_maps)
        if any(min(image.shape[1:]) < side for image in self.images):
            raise InvalidArgument("crop", "at most the shorter side of every image", side)
        self.places = _places(scenes, side)

    def batch(self, count: int, seed: int, iteration: int, rank: int = 0) -> Batch:
        """The batch of an iteration: crops at random places, flipped."""
        random = generator(seed, rank, iteration)
        high, maps, categories = [], [], []
        for kind, which, down, right, flip, turn, size in torch.rand(count, 7, generator=random).tolist():
            window = self.side
            if kind < self.scenes_share:
                category = self._category(kind / self.scenes_share)
                places = self.places[category]
                number, top, left = places[int(which * len(places))]
                top, left = top + int(down * _GRID), left + int(right * _GRID)
            else:
                category = BACKGROUND
                number = len(self.scenes) + int(which * (len(self.images) - len(self.scenes)))
                height, width = self.images[number].shape[1:]
                window = min(round(self.side / _RESCALED[int(size * len(_RESCALED))]), min(height, width)) // 16 * 16
                top, left = int(down * (height - window + 1)), int(right * (width - window + 1))
            crop, probabilities = self._cut(number, top, left, window)
            if flip < 0.5:
                crop, probabilities = crop.flip(2), probabilities.flip(2)
            if turn < 0.5 and kind >= self.scenes_share:  # a scene has its sky above
                crop, probabilities = crop.transpose(1, 2), probabilities.transpose(1, 2)
            high.append(crop)
            maps.append(probabilities)
            categories.append(category)
        pixels = torch.stack(high)
        shares = F.interpolate(torch.stack(maps), scale_factor=float(SCALE), mode="bilinear")
        shares = shares / shares.sum(1, keepdim=True).clamp_min(1e-6)
        return Batch(pixels, bicubic(pixels, 1 / SCALE).clamp(0, 1), shares, torch.tensor(categories))

    def _category(self, chance: float) -> int:
        """A category by a number in [0, 1): the background `background` times as often as any other."""
        place = chance * (self.background + len(self.places) - 1)
        return BACKGROUND if place < self.background else int(place - self.background) + 1

    def _cut(self, number: int, top: int, left: int, window: int) -> tuple[Tensor, Tensor]:
        """A window in [0, 1] and its maps, shrunk to the crops' side; moved to the grid of low-resolution pixels."""
        image, maps = self.images[number], self.maps[number]
        height, width = image.shape[1:]
        top = max(0, min(top, height - window)) // SCALE * SCALE
        left = max(0, min(left, width - window)) // SCALE * SCALE
        crop = image[:, top : top + window, left : left + window].float() / 255
        rows, columns = (slice(start // SCALE, (start + window) // SCALE) for start in (top, left))
        shares = maps[:, rows, columns].float()
        if window != self.side:
            crop = bicubic(crop[None], self.side / window)[0].clamp(0, 1)
            shares = F.adaptive_avg_pool2d(shares, self.side // SCALE)
        return crop, shares


def _places(scenes: Scenes, side: int, enough: int = 400) -> list[list[tuple[int, int, int]]]:
    """For each category, the scenes and corners of crops that show it.

    A crop shows what at least `_SHARE` of it is; of a category with fewer than ``enough`` such crops, also those of
    which only the middle `_SCARCE` pixels do. A category that is nowhere has the places of the background.
    """
    found = _windows(scenes, side, side)
    for category, places in enumerate(_windows(scenes, side, min(_SCARCE, side))):
        if len(found[category]) < enough:
            found[category] = found[category] + places
    if not any(found):
        raise InvalidArgument("scenes", "scenes with windows of one category", "none")
    anywhere = found[BACKGROUND] or next(places for places in found if places)
    return [places or anywhere for places in found]


def _windows(scenes: Scenes, side: int, window: int) -> list[list[tuple[int, int, int]]]:
    found: list[list[tuple[int, int, int]]] = [[] for _ in scenes.categories]
    inset = (side - window) // 2
    for number, label in enumerate(scenes.labels):
        one_hot = F.one_hot(label.long().clamp_max(len(scenes.categories)), len(scenes.categories) + 1)
        cells = F.avg_pool2d(one_hot[..., :-1].permute(2, 0, 1).float(), _GRID)
        shares = F.avg_pool2d(cells, window // _GRID, 1)
        for category, row, column in torch.nonzero(shares >= _SHARE).tolist():
            found[category].append((number, row * _GRID - inset, column * _GRID - inset))
    return found
