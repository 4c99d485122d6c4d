"""Labelled scenes: how they are read, how they are split, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scenery import SHARED, needs_scenes, write_scenes

from restoration_env.errors import InvalidArgument
from restoration_env.sft.conditioning import CATEGORIES
from restoration_env.sft.scenes import VOID, load_scenes


def test_scenes_are_read_with_their_labels(tmp_path):
    scenes = load_scenes(write_scenes(tmp_path), "all")
    assert len(scenes) == 12
    assert scenes.categories == CATEGORIES
    assert scenes.images[0].shape == (3, 112, 128)
    assert scenes.labels[0].shape == (112, 128)
    assert scenes.labels[0].unique().tolist() == [0, 3, VOID]
    assert len(scenes.pool()) == 12


def test_the_parts_are_disjoint_and_together_everything(tmp_path):
    write_scenes(tmp_path, count=40)
    parts = [set(load_scenes(tmp_path, split).names) for split in ("train", "validation", "test")]
    assert set.union(*parts) == set(load_scenes(tmp_path, "all").names)
    assert sum(map(len, parts)) == 40


def test_near_duplicates_share_a_part_however_they_are_chained(tmp_path):
    write_scenes(tmp_path, count=80, height=32, width=32)
    parts = {n: s for s in ("train", "validation", "test") for n in load_scenes(tmp_path, s).names}
    strays = [next(n for n, s in parts.items() if s == split) for split in ("train", "validation", "test")]
    one, two, three = strays
    (tmp_path / "near_duplicates.txt").write_text(f"{one} {two} 3\n{Path(three).stem}.jpg {two} 5\n", encoding="utf-8")
    together = [s for s in ("train", "validation", "test") if set(strays) & set(load_scenes(tmp_path, s).names)]
    assert len(together) == 1


@needs_scenes
def test_no_near_duplicate_pair_of_the_real_scenes_is_parted():
    folder = SHARED / "data" / "scenes"
    parts = {Path(n).stem: s for s in ("validation", "test") for n in load_scenes(folder, s).names}
    assert 220 < len(parts) < 290
    for line in (folder / "near_duplicates.txt").read_text().splitlines():
        one, other = (Path(word).stem for word in line.split()[:2])
        assert parts.get(one, "train") == parts.get(other, "train")


def test_own_categories_come_from_a_file(tmp_path):
    assert load_scenes(write_scenes(tmp_path, categories=3), "all").categories == ("kind0", "kind1", "kind2")


def _break(tmp_path, how):
    label = tmp_path / "labels" / "scene03.png"
    if how == "missing":
        label.unlink()
    elif how == "size":
        Image.fromarray(np.zeros((5, 5), np.uint8)).save(label)
    elif how == "number":
        Image.fromarray(np.full((112, 128), 9, np.uint8)).save(label)
    elif how == "colour":
        Image.fromarray(np.zeros((112, 128, 3), np.uint8)).save(label)
    elif how == "categories":
        (tmp_path / "categories.txt").write_text("sky\nsky\n", encoding="utf-8")


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("missing", "no .*scene03.png"),
        ("size", "labels must be .*112, 128"),
        ("number", "labels must be 0 to 7, or 255, got 9 in"),
        ("colour", "labels must be one byte"),
        ("categories", "categories.txt must be"),
    ],
)
def test_bad_scenes_are_refused(tmp_path, how, message):
    write_scenes(tmp_path)
    _break(tmp_path, how)
    with pytest.raises(InvalidArgument, match=message):
        load_scenes(tmp_path, "all")


def test_a_folder_without_scenes_and_an_unknown_split_are_refused(tmp_path):
    with pytest.raises(InvalidArgument, match="scenes must be a folder that holds images/"):
        load_scenes(tmp_path)
    with pytest.raises(InvalidArgument, match="split must be one of"):
        load_scenes(write_scenes(tmp_path), "half")
