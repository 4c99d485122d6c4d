"""Sources of clean images, splits that never share one, and patches damaged as the whole image would be."""

import os
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import skimage
import skimage.data
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from restoration_env import images as module
from restoration_env.distortions import LOSSLESS, Recipe, distort, recipe
from restoration_env.errors import InvalidArgument, UnknownName
from restoration_env.images import GRIDS, SPLITS, ImagePool, damaged_patches, load_images, with_more
from restoration_env.randomness import uniform

PARTS = ("train", "validation", "test")


def write(path: Path, seed: int, side: int = 16) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def folder(tmp_path) -> Path:
    for i in range(20):
        write(tmp_path / ("deep" if i % 2 else "") / f"{i:02d}{('.png', '.BMP', '.tif')[i % 3]}", i)
    return tmp_path


def contents(source, split: str) -> set[bytes]:
    return {image.numpy().tobytes() for image in load_images(source, split).images}


def test_bundled_files_are_in_the_installed_scikit_image() -> None:
    names = [name for split in PARTS for name in module._BUNDLED[split]]
    assert len(names) == len(set(names)) and all(module._BUNDLED[split] for split in PARTS)
    for name in names:
        assert (Path(skimage.__file__).parent / "data" / name).is_file(), name


@pytest.mark.filterwarnings("error")
def test_bundled_splits_share_no_image() -> None:
    pools = {split: load_images("bundled", split) for split in SPLITS}
    assert {split: pools[split].names for split in PARTS} == module._BUNDLED
    assert sorted(pools["all"].names) == sorted(sum((pools[split].names for split in PARTS), ()))
    assert load_images().names == pools["train"].names
    for image in pools["all"].images:
        assert image.dtype == torch.uint8 and image.shape[0] == 3 and min(image.shape[1:]) >= 63


def test_folder_splits_share_no_content(folder: Path) -> None:
    parts = {split: contents(folder, split) for split in PARTS}
    assert {split: len(part) for split, part in parts.items()} == {"train": 16, "validation": 2, "test": 2}
    assert set.union(*parts.values()) == contents(folder, "all")
    assert load_images(str(folder), "train").names == load_images(folder, "train").names


def test_folder_splits_do_not_depend_on_names(folder: Path, tmp_path_factory) -> None:
    other = tmp_path_factory.mktemp("renamed")
    for i, file in enumerate(sorted(p for p in folder.rglob("*") if p.is_file())):
        shutil.copy(file, other / f"{(i * 7) % 20:03d}{file.suffix}")
    for split in PARTS:
        assert contents(other, split) == contents(folder, split)


def test_a_duplicate_is_in_one_split_once(folder: Path) -> None:
    before = {split: contents(folder, split) for split in PARTS}
    for file in [p for p in folder.rglob("*") if p.is_file()]:
        shutil.copy(file, file.with_name("copy of " + file.name))
    assert {split: contents(folder, split) for split in PARTS} == before
    assert len(load_images(folder, "all")) == 20


def test_a_changed_folder_is_read_again(folder: Path) -> None:
    first = load_images(folder, "all")
    assert load_images(folder, "all") is first  # nothing changed: nothing is read
    file = folder / "00.png"
    write(file, 100)
    again = contents(folder, "all")
    assert len(again) == 20 and len(again - {i.numpy().tobytes() for i in first.images}) == 1
    file.unlink()
    assert len(load_images(folder, "all")) == 19
    write(folder / "new.png", 200)
    assert len(load_images(folder, "all")) == 20


def test_a_change_of_content_alone_is_seen(tmp_path) -> None:
    file = write(tmp_path / "a.bmp", 0)
    before, size = contents(tmp_path, "all"), file.stat().st_size
    write(file, 1)
    os.utime(file, ns=(0, 10**18))
    assert file.stat().st_size == size and contents(tmp_path, "all") != before


def test_an_unreadable_file_is_named_and_skipped(folder: Path) -> None:
    (folder / "junk.png").write_text("no image")
    with pytest.warns(
        UserWarning, match=r"skipped: .*junk\.png must be a readable image, got a file that is not"
    ) as seen:
        pool = load_images(folder, "all")
    assert len(pool) == 20 and "junk.png" not in pool.names
    assert seen[0].filename == __file__
    with pytest.warns(UserWarning, match=r"junk\.png"):  # nor is it forgotten the second time
        load_images(folder, "all")


def test_all_images_of_a_further_folder_are_trained_on_as_well(folder: Path) -> None:
    own = load_images("bundled", "train")
    pool, said = with_more(own, folder)
    more = load_images(folder, "all")
    assert pool.names == (*own.names, *more.names) and said == f"; {folder.name}: {len(more)} images train"
    assert all(torch.equal(a, b) for a, b in zip(pool.images, [*own.images, *more.images], strict=True))
    assert with_more(own, None) == (own, "")
    with pytest.raises(InvalidArgument, match="images must be"):
        with_more(own, folder / "nowhere")


def test_other_files_are_left_alone(folder: Path) -> None:
    (folder / "notes.txt").write_text("no image")
    (folder / "folder.png").mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(load_images(folder, "all")) == 20


def test_useless_folders_are_refused(tmp_path) -> None:
    with pytest.raises(InvalidArgument, match=r"images must be a folder with \.png"):
        load_images(tmp_path)
    with pytest.raises(InvalidArgument, match="'bundled', 'div2k' or an existing folder"):
        load_images(tmp_path / "missing")
    with pytest.raises(InvalidArgument, match="an existing folder"):
        load_images(write(tmp_path / "file.png", 0))
    (tmp_path / "file.png").write_text("no image")
    with (
        pytest.warns(UserWarning, match="skipped"),
        pytest.raises(InvalidArgument, match=r"a readable image in its train split"),
    ):
        load_images(tmp_path)


def test_two_images_are_too_few_to_split(tmp_path) -> None:
    write(tmp_path / "a.png", 0), write(tmp_path / "b.png", 1)
    assert len(load_images(tmp_path, "train")) == 2
    with pytest.raises(InvalidArgument, match="in its test split"):
        load_images(tmp_path, "test")
    write(tmp_path / "c.png", 2)
    assert [len(load_images(tmp_path, split)) for split in PARTS] == [1, 1, 1]


def test_bad_splits_and_scales_are_refused(folder: Path) -> None:
    with pytest.raises(UnknownName, match="split must be one of train, validation, test, all, got 'dev'"):
        load_images(folder, "dev")
    for scale in (0.0, -1.0, 1.5, float("nan")):
        with pytest.raises(InvalidArgument, match=r"^scale must be"):
            load_images(folder, scale=scale)


def test_scale(folder: Path) -> None:
    write(folder / "large.png", 50, side=31)
    sizes = {tuple(image.shape) for image in load_images(folder, "all", scale=0.5).images}
    assert sizes == {(3, 8, 8), (3, 16, 16)}
    assert {tuple(image.shape) for image in load_images(folder, "all", scale=0.01).images} == {(3, 1, 1)}


def test_div2k_has_its_published_splits(tmp_path, monkeypatch) -> None:
    for number in (1, 2, 750, 751, 800, 801, 900):
        write(tmp_path / ("DIV2K_train_HR" if number <= 800 else "DIV2K_valid_HR") / f"{number:04d}.png", number)
    write(tmp_path / "readme.png", 0), write(tmp_path / "0901.png", 0)
    monkeypatch.setenv(module.DIV2K_VARIABLE, str(tmp_path))
    assert load_images("div2k", "train").names == ("0001.png", "0002.png", "0750.png")
    assert load_images("div2k", "test").names == ("0751.png", "0800.png")
    assert load_images("div2k", "validation").names == ("0801.png", "0900.png")
    assert len(load_images("div2k", "all")) == 7
    for value in (str(tmp_path / "missing"), ""):
        monkeypatch.setenv(module.DIV2K_VARIABLE, value)
        with pytest.raises(InvalidArgument, match=module.DIV2K_VARIABLE):
            load_images("div2k")
    monkeypatch.delenv(module.DIV2K_VARIABLE)
    with pytest.raises(InvalidArgument, match=f"{module.DIV2K_VARIABLE}.*no such variable"):
        load_images("div2k")


def pool_of(*sizes: tuple[int, int]) -> ImagePool:
    photo = skimage.data.astronaut()
    return ImagePool([photo[:h, :w] for h, w in sizes], [f"{h}x{w}" for h, w in sizes])


def test_only_images_that_hold_a_patch_are_used() -> None:
    pool = pool_of((64, 40), (63, 63), (100, 80))
    assert pool.fitting(63).names == ("63x63", "100x80") and len(pool) == 3
    assert pool.fitting(40) is pool
    with pytest.raises(InvalidArgument, match=r"patch_size must be at most 80, .* got 81"):
        pool.fitting(81)
    with pytest.raises(InvalidArgument, match=r"^images must be"):
        ImagePool([], [])


@settings(max_examples=50, deadline=None)
@given(
    height=st.integers(20, 60),
    width=st.integers(20, 60),
    size=st.integers(1, 20),
    margin=st.integers(0, 30),
    grid=st.sampled_from(sorted(GRIDS)),
    seed=st.integers(0, 1 << 40),
)
def test_crops_are_windows_of_the_padded_image(height, width, size, margin, grid, seed) -> None:
    pool = pool_of((height, width))
    crops, corners = pool.crops(uniform(torch.tensor([seed, seed + 1]), 3), size, grid, margin)
    padded = np.pad(pool.images[0].numpy(), ((0, 0), (margin, margin), (margin, margin)), mode="edge")
    for crop, (y, x) in zip(crops, corners.tolist(), strict=True):
        assert y % GRIDS[grid] == x % GRIDS[grid] == 0 and y + size <= height and x + size <= width
        side = size + 2 * margin
        np.testing.assert_array_equal(crop.numpy(), padded[:, y : y + side, x : x + side])


@pytest.mark.parametrize("grid", GRIDS)
def test_every_place_can_be_cut(grid: str) -> None:
    pool = pool_of((40, 33), (32, 48))
    least, most = 0.0, 1 - 2**-53
    ends = torch.tensor(
        [[i, y, x] for i in (least, most) for y in (least, most) for x in (least, most)], dtype=torch.float64
    )
    _, corners = pool.crops(ends, 32, grid)
    last = [(8, 1), (0, 16)] if grid == "random" else [(8, 0), (0, 16)]
    assert {tuple(c) for c in corners[:4].tolist()} == {(y, x) for y in (0, last[0][0]) for x in (0, last[0][1])}
    assert {tuple(c) for c in corners[4:].tolist()} == {(y, x) for y in (0, last[1][0]) for x in (0, last[1][1])}
    with pytest.raises(UnknownName, match="aligned, random"):
        pool.crops(ends, 32, "loose")


def fixed(blur: float, quality: float, noise: float = 0.0) -> Recipe:
    def draw(u: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        one = torch.ones(len(u))
        return blur * one, noise * one, quality * one

    return Recipe("fixed", draw)


def whole_then_cut(pool: ImagePool, corners: torch.Tensor, size: int, blur: float, quality: float) -> torch.Tensor:
    image = pool.images[0][None].float() / 255.0
    damaged = distort(image, torch.tensor([blur]), torch.zeros(1), torch.tensor([quality]))[0]
    return torch.stack([damaged[:, y : y + size, x : x + size] for y, x in corners.tolist()])


def beyond_rounding(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).abs() > 0.5 / 255).float().mean().item()


@pytest.mark.parametrize("size", [1, 32, 63])
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize(("blur", "quality"), [(0.0, LOSSLESS), (5.0, LOSSLESS), (0.0, 30.0), (1.0, 30.0), (5.0, 90.0)])
def test_a_patch_is_damaged_as_the_whole_image_is(blur: float, quality: float, grid: str, size: int) -> None:
    pool, keys = pool_of((233, 203)), torch.arange(120)
    clean, damaged = damaged_patches(pool, keys, fixed(blur, quality), size, grid=grid)
    raw, corners = pool.crops(uniform(keys, 3, stream=0), size, grid)
    assert torch.equal(clean, raw.float() / 255.0)
    expected = whole_then_cut(pool, corners, size, blur, quality)
    # The block that the right or the bottom edge cuts in two may differ, and no other.
    ends = corners + size + 1
    inside = (ends[:, 0] <= 233 // 16 * 16) & (ends[:, 1] <= 203 // 16 * 16)
    assert 10 < inside.sum() < 120 and (corners[inside] == 0).any()
    assert beyond_rounding(damaged[inside], expected[inside]) < 1e-4
    if blur == 0.0:
        torch.testing.assert_close(damaged[inside], expected[inside], atol=1e-6, rtol=0)
    assert (damaged - expected).abs().mean() < 0.5 / 255
    if quality == LOSSLESS:
        torch.testing.assert_close(damaged, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("severity", ["severe", "mixed"])
def test_a_patch_is_a_function_of_its_key_alone(grid: str, severity: str) -> None:
    pool = load_images("bundled", "test").fitting(63)
    keys = torch.tensor([5, 1, 1 << 62, 0, 17, 5])
    clean, damaged = damaged_patches(pool, keys, recipe(severity), 63, grid=grid)
    assert clean.shape == damaged.shape == (6, 3, 63, 63) and damaged.dtype == torch.float32
    assert torch.equal(damaged[0], damaged[5]) and not torch.equal(damaged[0], damaged[1])
    for i, key in enumerate(keys):
        one_clean, one_damaged = damaged_patches(pool, key[None], recipe(severity), 63, grid=grid)
        assert torch.equal(one_clean[0], clean[i]) and torch.equal(one_damaged[0], damaged[i])


def test_patches_to_learn_from_are_turned_before_they_are_damaged() -> None:
    pool = pool_of((80, 96), (64, 70))
    keys, nothing = torch.arange(64), fixed(0.0, LOSSLESS)
    plain, _ = damaged_patches(pool, keys, nothing, 24)
    clean, same = damaged_patches(pool, keys, nothing, 24, turns=True)
    assert torch.equal(clean, same)  # both are turned
    again, _ = damaged_patches(pool, keys[5:9], nothing, 24, turns=True)
    assert torch.equal(again, clean[5:9])  # and each by its key alone
    assert 0.7 < (clean != plain).flatten(1).any(1).double().mean() < 1.0  # one way in eight is as it was


def test_noise_differs_between_patches_and_has_its_strength() -> None:
    flat = ImagePool([np.full((80, 80, 3), 128, np.uint8)], ["flat"])
    clean, damaged = damaged_patches(flat, torch.arange(20), fixed(0.0, LOSSLESS, noise=12.0), 32)
    noise = (damaged - clean) * 255
    assert noise.std().item() == pytest.approx(12.0, rel=0.02)
    assert abs(np.corrcoef(noise.view(20, -1).numpy())[0, 1:]).max() < 0.1


def test_the_smallest_image_is_its_own_patch() -> None:
    pool = pool_of((20, 20))
    for grid in GRIDS:
        clean, damaged = damaged_patches(pool, torch.arange(3), recipe("moderate"), 20, grid=grid)
        assert torch.equal(clean[0], pool.images[0].float() / 255.0)
        assert damaged.min() >= 0.0 and damaged.max() <= 1.0
