"""Reading a picture that somebody else made: any common kind, upright, in sRGB, or a sentence that says why not.

::

    picture = read_picture("maria.jpg")
    picture.frames                          # (1, 3, H, W) float32 in [0, 1]
"""

from __future__ import annotations

import hashlib
import io
import warnings
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError
from torch import Tensor

from facelock.errors import InputError
from facelock.files import PICTURES, open_input

MOST_PIXELS = 64_000_000
LEAST_SIDE = 64
MOST_ASPECT = 20
LONGEST_SIDE = 2048
"""Larger pictures are reduced by a whole factor while they are read; no recogniser notices."""

_OTHER = (
    (b"\x93NUMPY", "a NumPy array"),
    (b"%PDF", "a PDF"),
    (b"<svg", "an SVG drawing"),
    (b"<?xml", "XML, perhaps an SVG drawing"),
    (b"<!doctype html", "a web page"),
    (b"<html", "a web page"),
    (b"\x80\x04", "a Python pickle"),
    (b"PK\x03\x04", "a zip archive"),
)


@dataclass(frozen=True)
class Picture:
    """A picture that was read."""

    frames: Tensor
    """(1, 3, H, W) float32, sRGB in [0, 1], upright, alpha laid on white."""
    notes: tuple[str, ...]
    """What was decided on the way, one sentence each."""
    sha256: str
    """Of the file."""
    reduced_by: int = 1
    """The file's pixels per pixel of ``frames``, along one side."""


def read_picture(path: str | Path) -> Picture:
    """Read the picture at ``path``: gray, palette, CMYK, alpha, 16 bits, EXIF rotation and ICC profiles included.

    Of an animation the first frame is taken. Raises ``InputError`` when the file is no picture, is damaged, has a
    side under 64 pixels, more than 64 million pixels, or sides of more than 1:20.
    """
    path = Path(path)
    with closing(open_input(path, "a picture")) as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        file.seek(0)
        notes: list[str] = []
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                pixels, factor = _pixels(path, file, notes)
        except (Image.DecompressionBombWarning, Image.DecompressionBombError):
            raise InputError(
                f"{path}: has more than {MOST_PIXELS // 1_000_000} million pixels. Give a smaller picture."
            ) from None
        except UnidentifiedImageError:
            raise InputError(
                f"{path}: {_what_it_is(file)}. Give a JPEG, PNG, WebP, AVIF or TIFF picture."
            ) from None
        except InputError:
            raise
        except (
            Exception
        ) as error:  # Pillow's readers raise nearly everything on damaged files: KeyError, TypeError
            reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
            raise InputError(
                f"{path}: is damaged or cut short ({reason}). Give another copy of it."
            ) from error
    frames = torch.from_numpy(pixels).permute(2, 0, 1).contiguous()[None].float() / 255
    return Picture(frames, tuple(notes), sha256, factor)


def _pixels(path: Path, file: io.BufferedReader, notes: list[str]) -> tuple[np.ndarray, int]:
    """(H, W, 3) uint8, and the factor its sides were reduced by."""
    with _image(path, file) as image:
        _check_size(path, image.size)
        width = image.size[0]
        frames = int(getattr(image, "n_frames", 1))
        if frames > 1 and image.format != "MPO":
            notes.append(f"{path.name} has {frames} frames; the first one is used.")
            image.seek(0)
        if image.format in ("JPEG", "MPO"):
            half = [side // 2 for side in image.size]
            while max(half) >= LONGEST_SIDE:  # the decoder itself halves, at a quarter of the cost
                image.draft(None, (half[0], half[1]))
                half = [side // 2 for side in half]
        image.load()
        factor = -(-max(image.size) // LONGEST_SIDE)
        small = _reducible(image)
        small = small.reduce(factor) if factor > 1 else small
        upright = ImageOps.exif_transpose(small)
        rgb = _srgb(upright, image.info.get("icc_profile"), notes, path)
        return np.array(rgb), max(1, round(width / small.size[0]))


def _image(path: Path, file: io.BufferedReader) -> Image.Image:
    head = file.read(32)
    file.seek(0)
    if head[4:8] == b"ftyp" and head[8:12] in (b"heic", b"heix", b"mif1", b"hevc", b"heim", b"heis"):
        try:
            from pillow_heif import open_heif
        except ImportError:
            raise InputError(
                f"{path}: is a HEIC picture, which needs one more package. "
                "Give pip install 'facelock-video[heic]', or convert it to JPEG."
            ) from None
        return open_heif(file).to_pillow()
    return Image.open(file, formats=PICTURES)


def _check_size(path: Path, size: tuple[int, int]) -> None:
    width, height = size
    if width * height > MOST_PIXELS:
        raise InputError(
            f"{path}: has {width} × {height} pixels, more than {MOST_PIXELS // 1_000_000} million. "
            "Give a smaller picture."
        )
    if min(size) < LEAST_SIDE:
        raise InputError(
            f"{path}: has {width} × {height} pixels where at least {LEAST_SIDE} each way are needed. "
            "Give a larger picture."
        )
    if max(size) > MOST_ASPECT * min(size):
        raise InputError(f"{path}: {width} × {height} pixels is no picture of a face. Cut it to the face.")


def _reducible(image: Image.Image) -> Image.Image:
    """The picture in an 8-bit mode that can be averaged, deep ones scaled instead of clipped."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        values = np.asarray(image, dtype=np.float32)
        top = float(values.max(initial=0.0))
        scale = (
            255.0
            if image.mode == "F" and top <= 1
            else 1.0
            if top <= 255 and image.mode != "I;16"
            else 1 / 257
        )
        gray = Image.fromarray(np.clip(values * scale + 0.5, 0, 255).astype(np.uint8))
        gray.info = dict(image.info)
        gray.getexif().update(image.getexif())
        return gray
    if image.mode in ("P", "PA"):
        return image.convert("RGBA" if image.mode == "PA" or "transparency" in image.info else "RGB")
    if image.mode in ("RGB", "L") and "transparency" in image.info:
        return image.convert("RGBA")
    if image.mode == "1":
        return image.convert("L")
    return image.convert("LA") if image.mode == "La" else image


def _srgb(image: Image.Image, profile: bytes | None, notes: list[str], path: Path) -> Image.Image:
    """8-bit sRGB on white."""
    alpha = image.getchannel("A") if "A" in image.getbands() else None
    if alpha is not None:
        image = image.convert("RGBA").convert("RGB") if image.mode != "LA" else image.convert("L")
    if profile:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            target = ImageCms.createProfile("sRGB")
            image = ImageCms.profileToProfile(image, source, target, outputMode="RGB") or image
        except (ImageCms.PyCMSError, OSError, ValueError):
            notes.append(f"{path.name}: its colour profile could not be used; sRGB is assumed.")
    image = image.convert("RGB")
    if alpha is not None:
        image = Image.composite(image, Image.new("RGB", image.size, "white"), alpha)
    return image


def _what_it_is(file: io.BufferedReader) -> str:
    file.seek(0)
    head = file.read(256).lstrip(b"\xef\xbb\xbf \t\r\n")
    for start, name in _OTHER:
        if head.lower().startswith(start.lower()):
            return f"is {name}, not a picture"
    if b"<svg" in head.lower():
        return "is an SVG drawing, not a picture"
    if head and all(byte >= 32 or byte in b"\t\r\n" for byte in head):
        return "is text, not a picture"
    return "is not a picture that can be read"
