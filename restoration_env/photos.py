"""Photographs on disk: reading what cameras and editors write, and writing it back whole."""

from __future__ import annotations

import os
import warnings
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from restoration_env.errors import InvalidArgument, UnreadableImage
from restoration_env.files import replacing

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp")
_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# A TIFF file keeps how its pixels are stored among its EXIF tags. These describe the photograph: description,
# make, model, orientation, resolution (3), software, date, artist, computer, copyright, settings, GPS.
_ABOUT_THE_PHOTO = {270, 271, 272, _ORIENTATION, 282, 283, 296, 305, 306, 315, 316, 33432, 34665, 34853}
_JPEG_EXIF_BYTES = 65533  # what one JPEG segment holds
_WRITERS: dict[str, tuple[str, dict[str, Any]]] = {
    ".png": ("PNG", {}),
    ".jpg": ("JPEG", {"quality": 95, "subsampling": 0}),
    ".jpeg": ("JPEG", {"quality": 95, "subsampling": 0}),
    ".webp": ("WEBP", {"lossless": True, "exact": True}),
    ".tif": ("TIFF", {"compression": "tiff_deflate"}),
    ".tiff": ("TIFF", {"compression": "tiff_deflate"}),
    ".bmp": ("BMP", {}),
}  # fmt: skip


@dataclass
class Photo:
    """A photograph as it should be seen, with what must survive an edit.

    Attributes:
        rgb: uint8 (H, W, 3), turned upright by its EXIF orientation.
        alpha: uint8 (H, W), or None.
        icc_profile: the embedded colour profile, or None.
        exif: the EXIF block with the orientation set to upright, or None.
        grey: whether the file held one channel.
    """

    rgb: np.ndarray
    alpha: np.ndarray | None = None
    icc_profile: bytes | None = None
    exif: bytes | None = None
    grey: bool = False


def read_photo(path: str | os.PathLike[str]) -> Photo:
    """Read a PNG, JPEG, WebP, TIFF or BMP file; grey, palette, alpha, CMYK and 16-bit images are converted.

    Raises:
        UnreadableImage: if the file is missing, empty, truncated, a directory or not an image.
    """
    path = Path(path)
    if path.is_dir():
        raise UnreadableImage(path, "a directory")
    if not path.is_file():
        raise UnreadableImage(path, "something that is not a file" if path.exists() else "no such file")
    if path.stat().st_size == 0:
        raise UnreadableImage(path, "an empty file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as file:
                return _photo(file)
    except UnidentifiedImageError:
        raise UnreadableImage(path, "a file that is not an image") from None
    except PermissionError:
        raise UnreadableImage(path, "a file that may not be read") from None
    except Image.DecompressionBombError as error:
        raise UnreadableImage(path, f"too large an image ({error})") from None
    except Exception as error:  # Pillow raises many kinds for damaged bytes
        raise UnreadableImage(path, f"a damaged file ({error})") from None


def _photo(file: Image.Image) -> Photo:
    file.load()
    upright, exif = file, None
    # Pillow raises many kinds for a malformed EXIF block; the picture itself is whole.
    with suppress(Exception):
        turn = _TURNS.get(file.getexif().get(_ORIENTATION, 1))
        upright = file if turn is None else file.transpose(turn)
        exif = _upright_exif(file)
    icc_profile = file.info.get("icc_profile")
    if file.mode == "CMYK" or _colour_space(icc_profile) == b"CMYK":
        icc_profile = None  # it says nothing about the RGB values that the pixels are converted to
    grey = upright.mode in ("1", "L", "LA", "I", "F", "I;16", "I;16B", "I;16L")
    if upright.mode in ("I", "F", "I;16", "I;16B", "I;16L"):
        values = np.asarray(upright).astype(np.float64)
        values = np.nan_to_num(values)
        sixteen_bit = upright.mode.startswith("I;16") or file.format == "PNG"
        peak = 65535.0 if sixteen_bit or values.max(initial=0) > 255 else 255.0
        if upright.mode == "F" and values.max(initial=0) <= 1.0:
            peak = 1.0
        eight_bit = np.clip(np.round(values * (255.0 / peak)), 0, 255).astype(np.uint8)
        return Photo(np.repeat(eight_bit[..., None], 3, 2), None, icc_profile, exif, grey=True)
    has_alpha = upright.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in upright.info
    alpha = np.array(upright.convert("RGBA").getchannel("A")) if has_alpha else None
    rgb = np.array((upright.convert("RGBA") if has_alpha else upright).convert("RGB"))
    return Photo(rgb, alpha, icc_profile, exif, grey)


def _upright_exif(file: Image.Image) -> bytes | None:
    exif = file.getexif()
    if file.format == "TIFF":
        _leave_out_storage(exif)
    if not exif:
        return None
    exif[_ORIENTATION] = 1
    return exif.tobytes()


def _leave_out_storage(exif: Image.Exif) -> None:
    for tag in set(exif) - _ABOUT_THE_PHOTO:
        del exif[tag]


def _colour_space(icc_profile: bytes | None) -> bytes:
    """The colour space that a profile's header names, as in b"RGB ", b"GRAY" or b"CMYK"."""
    return (icc_profile or b"")[16:20]


def check_suffix(path: str | os.PathLike[str], argument: str) -> None:
    """Refuse a path whose ending names no format that `write_photo` can write."""
    if Path(path).suffix.lower() not in _WRITERS:
        raise InvalidArgument(argument, "a path that ends in " + ", ".join(_WRITERS), repr(str(path)))


def write_photo(photo: Photo, path: str | os.PathLike[str]) -> None:
    """Write a photograph in the format its path's ending names, atomically.

    JPEG and BMP hold no alpha channel, BMP no colour profile and no EXIF; these are left out there.

    Raises:
        InvalidArgument: if the ending names no known format.
    """
    check_suffix(path, "path")
    kind, options = _WRITERS[Path(path).suffix.lower()]
    image = Image.fromarray(photo.rgb)
    if photo.grey:
        image = image.convert("L")
    if photo.alpha is not None and kind not in ("JPEG", "BMP"):
        image = image.convert("LA" if photo.grey and kind in ("PNG", "TIFF") else "RGBA")
        image.putalpha(Image.fromarray(photo.alpha))
    extra: dict[str, Any] = dict(options)
    holds_rgb = image.mode.startswith("RGB") or kind == "WEBP"
    if photo.icc_profile and kind != "BMP" and not (holds_rgb and _colour_space(photo.icc_profile) == b"GRAY"):
        extra["icc_profile"] = photo.icc_profile
    if photo.exif and kind == "TIFF":
        del extra["compression"]  # Pillow's own writer holds the camera's settings, libtiff's does not
        extra["exif"] = Image.Exif()
        extra["exif"].load(photo.exif)
        _leave_out_storage(extra["exif"])
    elif photo.exif and kind != "BMP" and (kind != "JPEG" or len(photo.exif) <= _JPEG_EXIF_BYTES):
        extra["exif"] = photo.exif
    with replacing(path) as temporary:
        image.save(temporary, kind, **extra)
