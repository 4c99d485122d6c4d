"""What cameras and editors write can be read, and is written back whole."""

import io
import os
import struct
import warnings
import zlib

import numpy as np
import pytest
import skimage.data
from PIL import Image, ImageCms

from restoration_env.errors import InvalidArgument, UnreadableImage
from restoration_env.photos import SUFFIXES, Photo, check_suffix, read_photo, write_photo

LOSSLESS = (".png", ".webp", ".tif", ".tiff", ".bmp")
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def profile(space: bytes) -> bytes:
    """A header that names this colour space."""
    return SRGB[:16] + space + SRGB[20:]


def colours(height: int = 30, width: int = 41) -> np.ndarray:
    return np.ascontiguousarray(skimage.data.astronaut()[60 : 60 + height, 200 : 200 + width])


def close(a: np.ndarray, b: np.ndarray, mean: float = 4.0) -> bool:
    return a.shape == b.shape and np.abs(a.astype(float) - b).mean() < mean


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("grey", [False, True])
def test_round_trip(tmp_path, suffix: str, grey: bool) -> None:
    rgb = np.repeat(colours()[..., :1], 3, 2) if grey else colours()
    path = tmp_path / f"photo{suffix}"
    write_photo(Photo(rgb, grey=grey), path)
    back = read_photo(path)
    assert back.rgb.dtype == np.uint8 and back.alpha is None
    assert np.array_equal(back.rgb, rgb) if suffix in LOSSLESS else close(back.rgb, rgb)
    assert back.grey == (grey and suffix != ".webp")  # WebP has no grey images
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("suffix", [".png", ".webp", ".tif"])
@pytest.mark.parametrize("grey", [False, True])
def test_alpha_round_trip(tmp_path, suffix: str, grey: bool) -> None:
    rgb = np.repeat(colours()[..., :1], 3, 2) if grey else colours()
    alpha = np.arange(rgb[..., 0].size, dtype=np.uint8).reshape(rgb.shape[:2])  # 0 too: colours there must survive
    write_photo(Photo(rgb, alpha, grey=grey), tmp_path / f"photo{suffix}")
    back = read_photo(tmp_path / f"photo{suffix}")
    np.testing.assert_array_equal(back.alpha, alpha)
    np.testing.assert_array_equal(back.rgb, rgb)
    assert back.grey == (grey and suffix != ".webp")


@pytest.mark.parametrize("suffix", [".jpg", ".bmp"])
def test_alpha_is_left_out_where_there_is_none(tmp_path, suffix: str) -> None:
    write_photo(Photo(colours(), np.full((30, 41), 7, np.uint8)), tmp_path / f"photo{suffix}")
    back = read_photo(tmp_path / f"photo{suffix}")
    assert back.alpha is None and close(back.rgb, colours())


def saved(tmp_path, image: Image.Image, suffix: str = ".png", **options) -> Photo:
    path = tmp_path / f"image{suffix}"
    image.save(path, **options)
    return read_photo(path)


def test_grey_and_two_level_images(tmp_path) -> None:
    grey = Image.fromarray(colours()).convert("L")
    photo = saved(tmp_path, grey)
    assert photo.grey and np.array_equal(photo.rgb, np.stack([np.asarray(grey)] * 3, 2))
    photo = saved(tmp_path, grey.convert("1"))
    assert photo.grey and set(np.unique(photo.rgb)) == {0, 255}


def test_grey_with_alpha(tmp_path) -> None:
    image = Image.fromarray(colours()).convert("LA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    photo = saved(tmp_path, image)
    assert photo.grey and np.array_equal(photo.alpha, np.asarray(image)[..., 1])
    assert np.array_equal(photo.rgb[..., 1], np.asarray(image)[..., 0])


def test_a_transparent_grey_level(tmp_path) -> None:
    image = Image.fromarray(np.array([[0, 9], [9, 200]], np.uint8))
    photo = saved(tmp_path, image, transparency=9)
    assert photo.alpha.tolist() == [[255, 0], [0, 255]] and photo.rgb[..., 0].tolist() == [[0, 9], [9, 200]]


def test_palettes(tmp_path) -> None:
    image = Image.fromarray(colours()).quantize(16)
    photo = saved(tmp_path, image)
    assert np.array_equal(photo.rgb, np.asarray(image.convert("RGB"))) and photo.alpha is None and not photo.grey
    photo = saved(tmp_path, image, transparency=3)
    assert np.array_equal(photo.alpha == 0, np.asarray(image) == 3)
    photo = saved(tmp_path, image, transparency=bytes(range(100, 116)))
    assert np.array_equal(photo.alpha, np.asarray(image) + 100)


@pytest.mark.parametrize("suffix", [".png", ".webp", ".tif"])
def test_colour_with_alpha(tmp_path, suffix: str) -> None:
    image = Image.fromarray(np.dstack((colours(), colours()[..., 0])))
    photo = saved(tmp_path, image, suffix, **({"lossless": True, "exact": True} if suffix == ".webp" else {}))
    assert np.array_equal(photo.rgb, colours()) and np.array_equal(photo.alpha, colours()[..., 0])


@pytest.mark.parametrize("suffix", [".jpg", ".tif"])
def test_cmyk_becomes_rgb_without_its_profile(tmp_path, suffix: str) -> None:
    image = Image.fromarray(colours()).convert("CMYK")
    photo = saved(tmp_path, image, suffix, icc_profile=profile(b"CMYK"))
    assert close(photo.rgb, colours(), mean=6.0) and photo.icc_profile is None and photo.alpha is None
    write_photo(photo, tmp_path / "out.jpg")
    assert "icc_profile" not in Image.open(tmp_path / "out.jpg").info


LEVELS = np.array([[0, 257], [128 * 257, 65535]], np.uint16)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16_bit_grey(tmp_path, suffix: str) -> None:
    photo = saved(tmp_path, Image.fromarray(LEVELS), suffix)
    assert photo.grey and photo.rgb[..., 0].tolist() == [[0, 1], [128, 255]]
    dark = saved(tmp_path, Image.fromarray(LEVELS // 300), suffix)  # no pixel above 255, and yet of 16 bits
    assert dark.rgb.max() == 1
    big_endian = saved(tmp_path, Image.fromarray(LEVELS.astype(">u2")), ".tif")
    assert big_endian.rgb[..., 0].tolist() == [[0, 1], [128, 255]]


def png_16_bit_rgb(values: np.ndarray) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    height, width, _ = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16_bit_colour(tmp_path, suffix: str) -> None:
    path, values = tmp_path / f"deep{suffix}", colours().astype(np.uint16) * 257
    if suffix == ".png":
        path.write_bytes(png_16_bit_rgb(values))
    else:
        pytest.importorskip("tifffile").imwrite(path, values, photometric="rgb")
    photo = read_photo(path)
    assert not photo.grey and np.array_equal(photo.rgb, colours())


def test_whole_and_broken_numbers(tmp_path) -> None:
    fractions = np.array([[0.0, 0.5], [1.0, np.nan]], np.float32)
    assert saved(tmp_path, Image.fromarray(fractions), ".tif").rgb[..., 0].tolist() == [[0, 128], [255, 0]]
    whole = Image.fromarray(np.array([[0, 5], [100, 255]], np.int32))
    assert saved(tmp_path, whole, ".tif").rgb[..., 0].tolist() == [[0, 5], [100, 255]]


def stored(upright: np.ndarray, orientation: int) -> np.ndarray:
    """How a camera stores an image: EXIF names the visual sides that the first row and column hold."""
    turned = upright.transpose(1, 0, 2)
    return {
        1: upright,  # top, left
        2: upright[:, ::-1],  # top, right
        3: upright[::-1, ::-1],  # bottom, right
        4: upright[::-1],  # bottom, left
        5: turned,  # left, top
        6: turned[::-1],  # right, top
        7: turned[::-1, ::-1],  # right, bottom
        8: turned[:, ::-1],  # left, bottom
    }[orientation]


ORIENTATION, MAKE, EXPOSURE = 0x0112, 0x010F, 0x829A


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif"])
def test_photographs_are_turned_upright(tmp_path, suffix: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION], exif[MAKE] = orientation, "Camera"
    exif.get_ifd(0x8769)[EXPOSURE] = 0.5
    image = Image.fromarray(np.ascontiguousarray(stored(colours(), orientation)))
    options = {"lossless": True} if suffix == ".webp" else {"quality": 95} if suffix == ".jpg" else {}
    photo = saved(tmp_path, image, suffix, exif=exif.tobytes(), **options)
    assert close(photo.rgb, colours()) if suffix == ".jpg" else np.array_equal(photo.rgb, colours())
    for ending in (".png", ".jpg", ".webp", ".tif"):
        out = tmp_path / f"out{ending}"
        write_photo(photo, out)
        with Image.open(out) as written:
            assert written.size == (41, 30)
            kept = written.getexif()
            assert kept[ORIENTATION] == 1 and kept[MAKE] == "Camera"
            assert float(kept.get_ifd(0x8769)[EXPOSURE]) == 0.5
        assert close(read_photo(out).rgb, colours())


def test_tiff_storage_tags_do_not_reach_the_copy(tmp_path) -> None:
    image = Image.fromarray(colours(300, 300))
    photo = saved(tmp_path, image.quantize(200), ".tif", compression="tiff_lzw", tiffinfo={270: "a cat"})
    write_photo(photo, tmp_path / "out.tif")
    assert np.array_equal(read_photo(tmp_path / "out.tif").rgb, photo.rgb)
    write_photo(photo, tmp_path / "out.jpg")
    assert dict(Image.open(tmp_path / "out.jpg").getexif()) == {270: "a cat", ORIENTATION: 1}


def test_sizes_in_the_exif_block_are_not_taken_for_the_copys(tmp_path) -> None:
    exif = Image.Exif()
    exif[256], exif[257], exif[258], exif[MAKE] = 4000, 3000, 16, "Telephone"
    photo = saved(tmp_path, Image.fromarray(colours()), ".jpg", exif=exif)
    write_photo(photo, tmp_path / "out.tif")
    assert np.array_equal(read_photo(tmp_path / "out.tif").rgb, photo.rgb)
    assert Image.open(tmp_path / "out.tif").getexif()[MAKE] == "Telephone"


def test_a_malformed_exif_block_does_not_cost_the_picture(tmp_path) -> None:
    for block in (
        b"Exif\0\0junk",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\x01" * 40,
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            photo = saved(tmp_path, Image.fromarray(colours()), ".jpg", exif=block, quality=95)
        assert close(photo.rgb, colours())
        write_photo(photo, tmp_path / "out.jpg")


def test_a_photograph_is_turned_though_its_exif_block_cannot_be_rewritten(tmp_path) -> None:
    exif = Image.Exif()
    exif[ORIENTATION], exif[MAKE] = 6, "Camera"
    block = exif.tobytes().replace(b"\x01\x0f\x00\x02", b"\x01\x1c\x00\x02")  # a text where a number belongs
    photo = saved(tmp_path, Image.fromarray(np.ascontiguousarray(stored(colours(), 6))), exif=block)
    assert np.array_equal(photo.rgb, colours()) and photo.exif is None


def test_exif_too_long_for_jpeg_is_left_out(tmp_path) -> None:
    exif = Image.Exif()
    exif[MAKE] = "x" * 70000
    photo = saved(tmp_path, Image.fromarray(colours()), ".png", exif=exif)
    write_photo(photo, tmp_path / "out.jpg")
    assert close(read_photo(tmp_path / "out.jpg").rgb, colours())


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif"])
def test_the_colour_profile_is_kept(tmp_path, suffix: str) -> None:
    photo = saved(tmp_path, Image.fromarray(colours()), suffix, icc_profile=SRGB)
    assert photo.icc_profile == SRGB
    write_photo(photo, tmp_path / f"out{suffix}")
    assert read_photo(tmp_path / f"out{suffix}").icc_profile == SRGB


def test_a_grey_profile_stays_with_grey_pixels(tmp_path) -> None:
    photo = saved(tmp_path, Image.fromarray(colours()).convert("L"), icc_profile=profile(b"GRAY"))
    assert photo.icc_profile == profile(b"GRAY")
    for suffix, kept in ((".png", True), (".jpg", True), (".tif", True), (".webp", False)):
        write_photo(photo, tmp_path / f"out{suffix}")
        assert (read_photo(tmp_path / f"out{suffix}").icc_profile is not None) == kept


def encoded(kind: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(colours()).save(file, kind)
    return file.getvalue()


UNREADABLE = [
    ("missing.png", None, "no such file"),
    ("empty.png", b"", "an empty file"),
    ("text.jpg", b"this is no image\n" * 20, "not an image"),
    ("cut.png", encoded("PNG")[:900], "damaged"),
    ("cut.jpg", encoded("JPEG")[:-200], "damaged"),
    ("cut.webp", encoded("WEBP")[:-100], "damaged"),
    ("cut.bmp", encoded("BMP")[:-100], "damaged"),
    ("cut.tif", encoded("TIFF")[:1000], "damaged"),
    ("head.png", encoded("PNG")[:20], "damaged"),
]


@pytest.mark.parametrize(("name", "content", "why"), UNREADABLE, ids=[row[0] for row in UNREADABLE])
def test_an_unreadable_file_is_named_with_the_reason(tmp_path, name: str, content, why: str) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UnreadableImage, match=why) as caught:
        read_photo(path)
    assert str(path) in str(caught.value) and "a readable image" in str(caught.value)


def test_directories_and_other_things_are_refused(tmp_path) -> None:
    with pytest.raises(UnreadableImage, match="a directory"):
        read_photo(tmp_path)
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(UnreadableImage, match="not a file"):
        read_photo(tmp_path / "pipe.png")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "BMP"])
def test_damaged_bytes_never_raise_anything_else(tmp_path, kind: str) -> None:
    rng, content, path = np.random.default_rng(0), encoded(kind), tmp_path / "image"
    for trial in range(150):
        damaged = bytearray(content[: rng.integers(1, len(content))] if trial % 2 else content)
        for _ in range(trial % 5):
            damaged[rng.integers(0, min(len(damaged), 300))] = rng.integers(0, 256)
        path.write_bytes(damaged)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                photo = read_photo(path)
            except UnreadableImage:
                continue
        assert photo.rgb.dtype == np.uint8 and photo.rgb.shape[2] == 3


@pytest.mark.filterwarnings("error")
def test_a_large_photograph_is_read_without_complaint(tmp_path) -> None:
    photo = saved(tmp_path, Image.new("L", (8000, 6000), 7), compress_level=1)
    assert photo.rgb.shape == (6000, 8000, 3) and photo.rgb[0, 0].tolist() == [7, 7, 7]


def test_a_decompression_bomb_is_refused(tmp_path) -> None:
    Image.new("1", (20000, 20000)).save(tmp_path / "bomb.png", compress_level=1)
    with pytest.raises(UnreadableImage, match="too large"):
        read_photo(tmp_path / "bomb.png")


def test_a_failing_save_leaves_the_old_file(tmp_path, monkeypatch) -> None:
    path = tmp_path / "photo.png"
    write_photo(Photo(colours()), path)
    old = path.read_bytes()

    def fail(self, file, *args, **options):
        file.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        write_photo(Photo(colours() // 2), path)
    assert path.read_bytes() == old and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["photo.gif", "photo", "photo.png.txt"])
def test_an_unknown_ending_lists_the_known_ones(tmp_path, name: str) -> None:
    with pytest.raises(InvalidArgument, match=r"output must be a path that ends in \.png, .*\.bmp"):
        check_suffix(name, "output")
    with pytest.raises(InvalidArgument, match="path must be"):
        write_photo(Photo(colours()), tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_endings_may_be_capitals(tmp_path) -> None:
    write_photo(Photo(colours()), tmp_path / "PHOTO.PNG")
    assert np.array_equal(read_photo(tmp_path / "PHOTO.PNG").rgb, colours())
