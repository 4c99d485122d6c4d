"""Photographs on disk: reading what cameras and editors write, and writing it back whole."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from restoration_env.errors import InvalidArgument, UnreadableImage
from restoration_env.files import replacing

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp")
_ORIENTATION = 0x0112
_WRITERS = {
    ".png": ("PNG", {}),
    ".jpg": ("JPEG", {"quality": 95, "subsampling": 0}),
    ".jpeg": ("JPEG", {"quality": 95, "subsampling": 0}),
    ".webp": ("WEBP", {"lossless": True}),
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
    if not path.exists():
        raise UnreadableImage(path, "no such file")
    if path.stat().st_size == 0:
        raise UnreadableImage(path, "an empty file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as file:
                return _photo(file)
    except UnidentifiedImageError:
        raise UnreadableImage(path, "a file that is not an image") from None
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise UnreadableImage(path, f"a damaged file ({error})") from None


def _photo(file: Image.Image) -> Photo:
    icc_profile, exif = file.info.get("icc_profile"), file.getexif()
    upright = ImageOps.exif_transpose(file)
    if exif:
        exif[_ORIENTATION] = 1
    exif_bytes = exif.tobytes() if exif else None
    grey = upright.mode in ("1", "L", "LA", "I", "F", "I;16", "I;16B", "I;16L")
    if upright.mode in ("I", "F", "I;16", "I;16B", "I;16L"):
        values = np.asarray(upright).astype(np.float64)
        peak = 65535.0 if values.max(initial=0) > 255 else 255.0
        if upright.mode == "F" and values.max(initial=0) <= 1.0:
            peak = 1.0
        eight_bit = np.clip(np.round(values * (255.0 / peak)), 0, 255).astype(np.uint8)
        return Photo(np.repeat(eight_bit[..., None], 3, 2), None, icc_profile, exif_bytes, grey=True)
    has_alpha = "A" in upright.getbands() or "transparency" in upright.info
    alpha = np.array(upright.convert("RGBA").getchannel("A")) if has_alpha else None
    rgb = np.array((upright.convert("RGBA") if has_alpha else upright).convert("RGB"))
    return Photo(rgb, alpha, icc_profile, exif_bytes, grey)


def check_suffix(path: str | os.PathLike[str], argument: str) -> None:
    """Refuse a path whose ending names no format that `write_photo` can write."""
    if Path(path).suffix.lower() not in _WRITERS:
        raise InvalidArgument(argument, "a path that ends in " + ", ".join(_WRITERS), repr(str(path)))


def write_photo(photo: Photo, path: str | os.PathLike[str]) -> None:
    """Write a photograph in the format its path's ending names, atomically.

    Raises:
        InvalidArgument: if the ending names no known format.
    """
    check_suffix(path, "path")
    kind, options = _WRITERS[Path(path).suffix.lower()]
    image = Image.fromarray(photo.rgb)
    if photo.grey:
        image = image.convert("L")
    if photo.alpha is not None and kind not in ("JPEG", "BMP"):
        image = image.convert("LA" if photo.grey and kind == "PNG" else "RGBA")
        image.putalpha(Image.fromarray(photo.alpha))
    extra: dict[str, Any] = dict(options)
    if photo.icc_profile and kind != "BMP":
        extra["icc_profile"] = photo.icc_profile
    if photo.exif and kind != "BMP":
        extra["exif"] = photo.exif
    with replacing(path) as temporary:
        image.save(temporary, kind, **extra)
