import numpy as np
import pytest
from PIL import Image

from restoration_env.errors import InvalidArgument
from restoration_env.rendering import (
    GAIN,
    LOSS,
    Strip,
    contact_sheet,
    describe_step,
    filmstrip,
    save_png,
)


def _frame(height=63, width=63, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def _has(picture, colour):
    return bool((picture == np.array(colour)).all(axis=2).any())


def _contains(picture, frame):
    windows = np.lib.stride_tricks.sliding_window_view(picture[:, :, 0], frame.shape[1], axis=1)
    rows, columns = np.nonzero((windows == frame[0, :, 0]).all(axis=2))
    h, w = frame.shape[:2]
    return any(np.array_equal(picture[y : y + h, x : x + w], frame) for y, x in zip(rows, columns, strict=True))


@pytest.mark.parametrize("shape", [(63, 63), (64, 48), (5, 7), (200, 320)])
def test_size_is_constant_with_slots(shape):
    captions = [("damaged", "21.34 dB"), ("super-resolve-x4", "+2.10 dB"), ("a very long name " * 5, "-1 dB")]
    frames = [_frame(*shape, seed=k) for k in range(3)]
    frames[2] = _frame(4 * shape[0], 4 * shape[1])
    pictures = [filmstrip(frames[:n], captions[:n], slots=4) for n in (1, 2, 3)]
    assert len({picture.shape for picture in pictures}) == 1
    assert pictures[0].dtype == np.uint8
    assert all(side % 2 == 0 for side in pictures[0].shape[:2])
    assert pictures[0].flags.writeable


def test_deterministic():
    frames, captions = [_frame(), _frame(seed=1)], [("damaged", "21.34 dB"), ("denoise-3", "+2.10 dB")]
    assert np.array_equal(filmstrip(frames, captions), filmstrip(frames, captions))
    row = Strip(frames, captions, "astronaut")
    assert np.array_equal(contact_sheet([row], title="t"), contact_sheet([row], title="t"))


def test_pixels_are_enlarged_to_blocks():
    frame = _frame()
    assert _contains(filmstrip([frame], [("damaged", "")]), frame.repeat(3, axis=0).repeat(3, axis=1))
    assert _contains(filmstrip([frame], [("damaged", "")], scale=1), frame)
    assert _contains(contact_sheet([Strip([frame], [("", "")], reference=(_frame(192, 192, 1), ("", "")))]), frame)


def test_captions_change_pixels_but_not_frames():
    frame = _frame()
    one, other = (filmstrip([frame], [("damaged", value)]) for value in ("21.34 dB", "21.35 dB"))
    assert not np.array_equal(one, other)
    assert np.array_equal(one[:200], other[:200])


@pytest.mark.parametrize(
    ("value", "gain", "loss"),
    [
        ("+2.10 dB", True, False),
        ("-0.31 dB", False, True),
        ("\u22120.31 dB", False, True),
        ("24.10 dB (+2.76)", True, False),
        ("+0.00 dB", False, False),
        ("21.34 dB", False, False),
        ("denoise-3", False, False),
    ],
)
def test_gain_is_green_or_red(value, gain, loss):
    picture = filmstrip([np.full((63, 63, 3), 128, np.uint8)], [("denoise-3 x+1", value)])
    assert (_has(picture, GAIN), _has(picture, LOSS)) == (gain, loss)


def test_text_stays_in_its_column():
    gray, long = np.full((63, 63, 3), 128, np.uint8), "super-resolve-x4 and much more text than fits " * 2
    blank = filmstrip([gray], [("", "")], slots=2, scale=3)
    written = filmstrip([gray], [(long, "+2.10 dB " + long)], slots=2, scale=3)
    changed = np.nonzero((blank != written).any(axis=(0, 2)))[0]
    left = np.nonzero((blank == 128).all(axis=2).any(axis=0))[0]
    assert left[0] - 1 <= changed[0]
    assert changed[-1] <= left[-1] + 1


def test_sheet_aligns_references_and_accepts_mixed_sizes():
    clean, wide = (
        np.full((192, 192, 3), (200, 10, 10), np.uint8),
        np.full((120, 192, 3), (200, 10, 10), np.uint8),
    )
    captions = [("damaged", "21.34 dB"), ("super-resolve-x4", "+2.10 dB")]
    sheet = contact_sheet(
        [
            Strip([_frame(192, 192), _frame(30, 20, 1)], captions, "astronaut", (clean, ("clean", ""))),
            Strip([_frame(120, 192, 2)], captions[:1], reference=(wide, ("clean", ""))),
        ],
        title="Three photographs",
    )
    red = (sheet == np.array([200, 10, 10])).all(axis=2)
    assert red.sum() == 192 * (192 + 120)
    assert red.any(axis=0).sum() == 192


def test_reference_is_optional_for_each_row():
    plain = Strip([_frame(192, 192)], [("damaged", "")])
    with_reference = Strip(plain.frames, plain.captions, reference=(_frame(192, 192, 1), ("clean", "")))
    assert contact_sheet([plain, with_reference]).shape[1] == contact_sheet([with_reference]).shape[1]
    assert contact_sheet([plain]).shape[1] < contact_sheet([with_reference]).shape[1]


@pytest.mark.parametrize(
    ("argument", "frames", "captions", "options"),
    [
        ("frames", [], [], {}),
        ("frames", [_frame().astype(np.float32)], [("a", "b")], {}),
        ("frames", [_frame()[:, :, 0]], [("a", "b")], {}),
        ("frames", [_frame()[:, :, :2]], [("a", "b")], {}),
        ("frames", [_frame()[:0]], [("a", "b")], {}),
        ("frames", [_frame()[None]], [("a", "b")], {}),
        ("frames", [[[1, 2, 3]]], [("a", "b")], {}),
        ("captions", [_frame()], [], {}),
        ("captions", [_frame()], ["ab"], {}),
        ("captions", [_frame()], [("a", 1.0)], {}),
        ("slots", [_frame()] * 2, [("a", "b")] * 2, {"slots": 1}),
        ("slots", [_frame()], [("a", "b")], {"slots": 0}),
        ("scale", [_frame()], [("a", "b")], {"scale": 0}),
    ],
)
def test_bad_input_is_named(argument, frames, captions, options):
    with pytest.raises(InvalidArgument) as refused:
        filmstrip(frames, captions, **options)
    assert refused.value.argument == argument


def test_bad_sheets_are_named():
    with pytest.raises(InvalidArgument, match="rows"):
        contact_sheet([])
    bad = (_frame().astype(float), ("clean", ""))
    with pytest.raises(InvalidArgument, match="reference"):
        contact_sheet([Strip([_frame()], [("a", "b")], reference=bad)])


def test_describe_step():
    assert describe_step(1, "denoise-3", 24.10, 2.76) == "step 1  denoise-3   21.34 -> 24.10 dB  (+2.76)"
    assert describe_step(2, "stop", 24.10, -0.0001).endswith("24.10 -> 24.10 dB  (+0.00)")


def test_save_png_round_trip(tmp_path):
    picture = filmstrip([_frame()], [("damaged", "21.34 dB")])
    save_png(tmp_path / "new" / "strip.png", picture)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "new" / "strip.png")), picture)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["strip.png"]
    with pytest.raises(InvalidArgument, match="image"):
        save_png(tmp_path / "bad.png", picture.astype(np.float64))
