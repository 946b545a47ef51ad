"""Pictures that people really have: every common kind opens upright and right, everything else says why not."""

from __future__ import annotations

import io
import os
import pickle
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from facelock.errors import InputError
from facelock.images import LONGEST_SIDE, read_picture

WIDTH, HEIGHT = 120, 96


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    """Smooth, coloured, and different in every corner."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    pixels = np.stack([x * 255 / WIDTH, y * 255 / HEIGHT, 128 + 100 * np.sin(x / 17)], 2)
    return Image.fromarray(pixels.astype(np.uint8))


def values(picture: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)[None].float() / 255


def saved(folder, picture, name, **options):
    path = folder / name
    picture.save(path, **options)
    return path


def apart(a: torch.Tensor, b: torch.Tensor) -> float:
    assert a.shape == b.shape
    return float((a - b).abs().mean())


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.bmp", "a.tiff", "a.ppm", "a.avif", "a.gif"])
def test_common_kinds_of_file(tmp_path, photo, name):
    picture = read_picture(saved(tmp_path, photo, name))
    assert picture.frames.shape == (1, 3, HEIGHT, WIDTH)
    assert picture.frames.dtype == torch.float32
    assert apart(picture.frames, values(photo)) < 0.04
    assert len(picture.sha256) == 64 and picture.notes == () and picture.reduced_by == 1


def test_the_name_does_not_decide_what_a_file_is(tmp_path, photo):
    saved(tmp_path, photo, "a.png").rename(tmp_path / "a.jpg")
    assert apart(read_picture(tmp_path / "a.jpg").frames, values(photo)) == 0


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "LA", "RGBA"])
def test_other_colour_modes(tmp_path, photo, mode):
    name = "a.jpg" if mode == "CMYK" else "a.png"
    picture = read_picture(
        saved(tmp_path, photo.convert(mode), name, **({"quality": 95} if mode == "CMYK" else {}))
    )
    assert apart(picture.frames, values(photo.convert(mode).convert("RGB"))) < 0.02


def test_transparent_parts_become_white(tmp_path, photo):
    ghost = photo.convert("RGBA")
    ghost.paste((255, 0, 0, 0), (0, 0, 60, HEIGHT))
    frames = read_picture(saved(tmp_path, ghost, "a.png")).frames
    assert float(frames[..., :60].min()) == 1.0
    assert apart(frames[..., 60:], values(photo)[..., 60:]) == 0
    palette = photo.convert("P")
    frames = read_picture(saved(tmp_path, palette, "b.png", transparency=palette.getpixel((5, 5)))).frames
    assert frames[0, :, 5, 5].tolist() == [1, 1, 1]


def test_sixteen_bits_equal_their_eight_bit_twin(tmp_path, photo):
    gray = np.array(photo.convert("L"))
    path = saved(tmp_path, Image.fromarray(gray.astype(np.uint16) * 257), "a.png")
    assert Image.open(path).mode.startswith("I;16")
    assert apart(read_picture(path).frames, values(Image.fromarray(gray))) < 1e-6
    tiff = saved(tmp_path, Image.fromarray(gray.astype(np.float32) / 255), "a.tiff")
    assert apart(read_picture(tiff).frames, values(Image.fromarray(gray))) < 3e-3


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_the_picture_upright(tmp_path, photo, orientation):
    turn = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}[orientation]
    stored = photo if turn is None else photo.transpose(Image.Transpose(turn))
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert apart(read_picture(saved(tmp_path, stored, "a.png", exif=exif)).frames, values(photo)) == 0


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png"])
def test_of_an_animation_the_first_frame_is_taken_and_that_is_said(tmp_path, photo, name):
    later = Image.new("RGB", photo.size, "black")
    path = saved(tmp_path, photo, name, save_all=True, append_images=[later, later])
    picture = read_picture(path)
    assert picture.notes == (f"{name} has {Image.open(path).n_frames} frames; the first one is used.",)
    assert apart(picture.frames, values(photo)) < 0.04


def test_a_colour_profile_is_applied(tmp_path):
    red = Image.new("RGB", (64, 64), (200, 50, 50))
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert apart(read_picture(saved(tmp_path, red, "a.png", icc_profile=lab)).frames, values(red)) < 0.01
    swapped = bytearray(lab)
    r, g = swapped.index(b"rXYZ", 128), swapped.index(b"gXYZ", 128)
    swapped[r : r + 4], swapped[g : g + 4] = b"gXYZ", b"rXYZ"  # a profile whose red is green
    frames = read_picture(saved(tmp_path, red, "b.png", icc_profile=bytes(swapped))).frames
    assert frames[0, 1].mean() > frames[0, 0].mean() + 0.2
    broken = read_picture(saved(tmp_path, red, "c.png", icc_profile=b"nonsense"))
    assert "colour profile" in broken.notes[0]
    assert apart(broken.frames, values(red)) == 0


@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
def test_a_large_picture_is_reduced_by_a_whole_factor(tmp_path, photo, name):
    large = photo.resize((WIDTH * 50, HEIGHT * 50), Image.Resampling.BICUBIC)
    picture = read_picture(saved(tmp_path, large, name))
    assert max(picture.frames.shape) <= LONGEST_SIDE
    assert picture.reduced_by == round(WIDTH * 50 / picture.frames.shape[-1])
    small = torch.nn.functional.interpolate(picture.frames, (HEIGHT, WIDTH), mode="area")
    assert apart(small, values(photo)) < 0.01


def png(width: int, height: int, kind: int = 0, depth: int = 1) -> bytes:
    """A PNG of zeros whose rows are compressed on the fly."""
    pack = zlib.compressobj(9)
    row = b"\0" * (1 + (width * depth * {0: 1, 2: 3}[kind] + 7) // 8)
    body = b"".join(pack.compress(row) for _ in range(height)) + pack.flush()

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def jpeg(photo: Image.Image) -> bytes:
    out = io.BytesIO()
    photo.save(out, "JPEG")
    return out.getvalue()


REFUSED = {
    "empty": (lambda p: b"", "is empty"),
    "text.jpg": (lambda p: b"just some words\n", "is text, not a picture"),
    "page.jpg": (lambda p: b"<!DOCTYPE html><html></html>", "is a web page"),
    "drawing.png": (lambda p: b'<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
    "sheet.png": (lambda p: b"%PDF-1.7\n\x93\x94", "is a PDF"),
    "array.npy": (lambda p: b"\x93NUMPY\x01\x00" + pickle.dumps([1]), "is a NumPy array"),
    "pickle.png": (lambda p: pickle.dumps({"a": 1}, 4), "is a Python pickle"),
    "noise.png": (lambda p: bytes(range(256)), "is not a picture"),
    "cut.jpg": (lambda p: jpeg(p)[:900], "is damaged or cut short"),
    "cut.png": (lambda p: png(200, 200, 2, 8)[:-40], "is damaged or cut short"),
    "crc.png": (lambda p: png(200, 200).replace(b"IDAT", b"IDAT\0", 1), "is damaged"),
    "pixel.png": (lambda p: png(1, 1), "at least 64"),
    "strip.png": (lambda p: png(5, 30000), "at least 64"),
    "ribbon.png": (lambda p: png(70, 1500), "no picture of a face"),
    "bomb.png": (lambda p: png(12000, 12000), "million"),
    "huge-bomb.png": (lambda p: png(40000, 40000), "million"),
    "photo.heic": (lambda p: b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"\0" * 64, "HEIC|damaged"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_picture_is_refused_in_one_sentence(tmp_path, photo, name):
    make, reason = REFUSED[name]
    (tmp_path / name).write_bytes(make(photo))
    with pytest.raises(InputError, match=reason) as caught:
        read_picture(tmp_path / name)
    message = str(caught.value)
    assert name in message and "\n" not in message and message.endswith(".")
    assert caught.value.exit_code == 2


def test_what_is_no_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    for path, reason in [
        (tmp_path, "is a folder"),
        (tmp_path / "pipe.png", "not a regular file"),
        ("/dev/zero", "not a regular file"),
        (tmp_path / "none.png", "no such file"),
        (tmp_path / ("x" * 300), "cannot be read"),
        (tmp_path / "a\0b", "cannot be read"),
    ]:
        with pytest.raises(InputError, match=reason):
            read_picture(path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_refused(tmp_path, photo):
    path = saved(tmp_path, photo, "a.png")
    path.chmod(0)
    with pytest.raises(InputError, match="Permission denied"):
        read_picture(path)


def test_the_largest_picture_costs_less_than_half_a_gigabyte(tmp_path):
    (tmp_path / "a.png").write_bytes(png(8000, 8000, 2, 8))
    code = (
        "import resource, sys; from facelock.images import read_picture; peak = lambda: "
        "resource.getrusage(resource.RUSAGE_SELF).ru_maxrss; b = peak(); "
        "p = read_picture(sys.argv[1]); print(tuple(p.frames.shape), (peak() - b) // 1024)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "a.png"], capture_output=True, text=True, check=True
    )
    shape, grown = done.stdout.rsplit(" ", 1)
    assert shape == "(1, 3, 2000, 2000)"
    assert int(grown) < 500


@pytest.mark.parametrize(
    "error", [KeyError(256), TypeError("Missing dimensions"), IndexError(), ZeroDivisionError()]
)
def test_whatever_a_reader_raises_is_a_damaged_picture(tmp_path, monkeypatch, error):
    path = tmp_path / "x.tif"
    Image.new("RGB", (80, 80)).save(path)

    def broken(*_, **__):
        raise error

    monkeypatch.setattr("facelock.images.Image.open", broken)
    with pytest.raises(InputError, match=r"x.tif: is damaged or cut short \("):
        read_picture(path)
