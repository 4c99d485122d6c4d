"""Labelled scenes: photographs with a map of what is where, split so that near-duplicates stay together.

A folder of scenes holds ``images/`` and ``labels/``, files of the same stem: photographs, and PNG maps with one byte
per pixel, the number of a category or 255 for none. ``categories.txt`` beside them, one name a line, names other
categories than the paper's eight. A folder of such folders is one data set; ``near_duplicates.txt`` in it names, in
the first two words of a line, files (whatever their ending) that must not be parted.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from restoration_env.errors import InvalidArgument, UnknownName
from restoration_env.images import SPLITS, ImagePool
from restoration_env.photos import SUFFIXES, read_photo
from restoration_env.sft.conditioning import CATEGORIES

VOID = 255  # the label of a pixel without a category


@dataclass(frozen=True, eq=False)
class Scenes:
    """Photographs and what is where in them.

    Attributes:
        images: uint8 (3, H, W) each.
        labels: uint8 (H, W) each, numbers of categories or `VOID`.
        names: the files' names.
        categories: the names of the categories.
    """

    images: tuple[Tensor, ...]
    labels: tuple[Tensor, ...]
    names: tuple[str, ...]
    categories: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.images)

    def pool(self) -> ImagePool:
        """The photographs without their labels."""
        return ImagePool([image.permute(1, 2, 0).numpy() for image in self.images], self.names)


def load_scenes(folder: str | os.PathLike[str], split: str = "train", *, limit: int | None = None) -> Scenes:
    """Read labelled scenes.

    A file's part follows from a hash of its name: a tenth validation, a tenth test. Near-duplicates share one, training
    if the hash of any of them says so.

    Args:
        folder: one folder of scenes, or a folder of such folders.
        split: "train", "validation", "test" or "all".
        limit: read so many at most.

    Raises:
        InvalidArgument: if there are no scenes, an image has no label or one of another size, or a label is no number
            of a category.
        UnknownName: for an unknown split.
    """
    if split not in SPLITS:
        raise UnknownName("split", split, SPLITS)
    root = Path(folder)
    folders = [root] if (root / "images").is_dir() else sorted(p.parent for p in root.glob("*/images") if p.is_dir())
    files = [p for f in folders for p in sorted((f / "images").iterdir()) if p.suffix.lower() in SUFFIXES]
    if not files:
        raise InvalidArgument("scenes", "a folder that holds images/ and labels/", repr(str(root)))
    categories = _categories(folders)
    parts = _parts([p.stem for p in files], _pairs(root))
    chosen = [p for p in files if split in ("all", parts[p.stem])][:limit]
    if not chosen:
        raise InvalidArgument("scenes", f"a folder with a scene in its {split} part", repr(str(root)))
    images, labels = [], []
    for path in chosen:
        rgb = read_photo(path).rgb
        images.append(torch.from_numpy(rgb).permute(2, 0, 1).contiguous())
        labels.append(_label(path, rgb.shape[:2], len(categories)))
    return Scenes(tuple(images), tuple(labels), tuple(p.name for p in chosen), categories)


def _categories(folders: Sequence[Path]) -> tuple[str, ...]:
    found = set()
    for folder in folders:
        listed = folder / "categories.txt"
        lines = listed.read_text(encoding="utf-8").split("\n") if listed.is_file() else CATEGORIES
        found.add(tuple(line.strip() for line in lines if line.strip()))
    if len(found) != 1:
        raise InvalidArgument("scenes", "folders of the same categories", sorted(found))
    names = found.pop()
    if not 2 <= len(names) < VOID or len(set(names)) < len(names):
        raise InvalidArgument("categories.txt", f"2 to {VOID - 1} different names, one a line", names)
    return names


def _label(image: Path, shape: tuple[int, ...], categories: int) -> Tensor:
    path = image.parent.parent / "labels" / f"{image.stem}.png"
    if not path.is_file():
        raise InvalidArgument("scenes", "images with a map each", f"no {path}")
    with Image.open(path) as file:
        label = np.array(file)
    if label.dtype != np.uint8 or label.shape != shape:
        raise InvalidArgument(
            "labels", f"one byte a pixel, {shape} as the image", f"{label.dtype} {label.shape}, {path}"
        )
    wrong = np.setdiff1d(label, [*range(categories), VOID])
    if len(wrong):
        raise InvalidArgument("labels", f"0 to {categories - 1}, or {VOID}", f"{wrong[0]} in {path}")
    return torch.from_numpy(label)


def _pairs(root: Path) -> list[tuple[str, str]]:
    listed = root / "near_duplicates.txt"
    lines = listed.read_text(encoding="utf-8").splitlines() if listed.is_file() else []
    return [(Path(words[0]).stem, Path(words[1]).stem) for words in map(str.split, lines) if len(words) >= 2]


def _parts(stems: Sequence[str], pairs: Sequence[tuple[str, str]]) -> dict[str, str]:
    """The split of each file: that of the hash of its name, or of a near-duplicate's that comes first in `SPLITS`."""
    leader = {stem: stem for stem in stems}

    def first(stem: str) -> str:
        while leader[stem] != stem:
            stem = leader[stem]
        return stem

    for one, other in pairs:
        if one in leader and other in leader:
            leader[first(other)] = first(one)
    ranks: dict[str, int] = {}
    for stem in stems:
        tenth = int.from_bytes(hashlib.sha256(f"{stem}.jpg".encode()).digest()[:4], "big") % 10
        rank = {0: 2, 1: 1}.get(tenth, 0)
        ranks[first(stem)] = min(rank, ranks.get(first(stem), rank))
    return {stem: SPLITS[ranks[first(stem)]] for stem in stems}
