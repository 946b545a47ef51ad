"""Files that are not what they say: clips, pictures and recipes for the sweep over the commands."""

from __future__ import annotations

import os
import struct
import subprocess
import zlib
from pathlib import Path

import numpy as np
from imageio_ffmpeg import get_ffmpeg_exe
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]


def _ffmpeg(*arguments: str) -> None:
    subprocess.run([get_ffmpeg_exe(), "-v", "error", "-y", *arguments], check=True, capture_output=True)


def _anything(folder: Path, suffix: str) -> None:
    """What no command reads, whatever it is called."""
    (folder / f"empty{suffix}").write_bytes(b"")
    (folder / f"junk{suffix}").write_bytes(np.random.default_rng(0).bytes(50_000))
    (folder / f"text{suffix}").write_text("this is text\n" * 100)
    (folder / f"page{suffix}").write_text("<!doctype html><html><body>404</body></html>")
    (folder / f"folder{suffix}").mkdir()
    (folder / f"device{suffix}").symlink_to("/dev/zero")
    (folder / f"loop{suffix}").symlink_to(folder / f"loop{suffix}")
    os.mkfifo(folder / f"pipe{suffix}")


def clips(folder: Path, site: str) -> list[str]:
    """Make clips that cannot be read below ``folder``; ``site`` is a server nobody should ask. Returns what to try."""
    folder.mkdir()
    _anything(folder, ".mp4")
    good, sound = folder.parent / "good.mp4", folder / "sound.mp4"
    _ffmpeg(
        "-f", "lavfi", "-i", "testsrc=size=64x64:rate=12:duration=3", "-movflags", "+faststart", str(good)
    )
    _ffmpeg("-f", "lavfi", "-i", "sine=duration=1", str(sound))
    whole = good.read_bytes()
    plain = folder.parent / "plain.mp4"
    _ffmpeg("-i", str(good), "-c", "copy", str(plain))
    (folder / "half.mp4").write_bytes(plain.read_bytes()[: plain.stat().st_size // 2])
    (folder / "cut.mp4").write_bytes(whole[: len(whole) * 2 // 3])
    Image.new("RGB", (64, 64)).save(folder / "picture.mp4", "PNG")
    (folder / "list.mp4").write_text(f"ffconcat version 1.0\nfile '{good}'\n")
    (folder / "stream.mp4").write_text(
        f"#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\n{site}a.ts\n#EXT-X-ENDLIST\n"
    )
    (folder / "stream.m3u8").write_text((folder / "stream.mp4").read_text())
    addresses = [
        f"{site}a.mp4",
        "https://127.0.0.1/a.mp4",
        f"concat:{good}|{good}",
        f"file://{good}",
        "-",
        "--",
    ]
    names = ["none.mp4", "none/a.mp4", "no\x01control.mp4"]
    return [*sorted(str(path) for path in folder.iterdir()), *addresses, *names]


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _png(width: int, height: int) -> bytes:
    """A 1-bit picture whose header says how large it is; its rows are not all there."""
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    rows = zlib.compress(b"\0" * 100_000)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", rows) + _chunk(b"IEND", b"")


def pictures(folder: Path) -> list[str]:
    """Make pictures in which no face can be used, below ``folder``. Returns what to try."""
    folder.mkdir()
    _anything(folder, ".png")
    maria = ROOT / "samples" / "faces" / "maria.png"
    face = Image.open(maria).convert("RGB")
    face.resize((20, 20)).save(folder / "tiny.png")
    Image.new("RGB", (1, 1)).save(folder / "pixel.png")
    Image.new("RGB", (256, 256)).save(folder / "black.png")
    Image.new("L", (5, 3000)).save(folder / "ribbon.png")
    noise = np.random.default_rng(1).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "noise.png")
    whole = maria.read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "crc.png").write_bytes(whole[:100] + bytes(b ^ 0x55 for b in whole[100:140]) + whole[140:])
    (folder / "bomb.png").write_bytes(_png(12_000, 12_000))
    (folder / "giant.png").write_bytes(_png(40_000, 40_000))
    (folder / "drawing.svg").write_text(
        '<svg xmlns="http://www.w3.org/2000/svg"><rect width="9" height="9"/></svg>'
    )
    (folder / "paper.pdf").write_bytes(b"%PDF-1.4\n%%EOF\n")
    np.save(folder / "array.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    names = ["none.png", "a" * 300 + ".png", "http://127.0.0.1:9/a.png", "file:///etc/passwd"]
    return [*sorted(str(path) for path in folder.iterdir()), *names]


def recipes(folder: Path) -> list[str]:
    """Make recipes that are none, or name weights that are none, below ``folder``. Returns what to try."""
    folder.mkdir()
    _anything(folder, ".toml")
    text = (ROOT / "pipelines" / "default.toml").read_text()
    (folder / "large.toml").write_text(text + "#" * (2 << 20))
    (folder / "key.toml").write_text(text.replace("ladder", "lader"))
    (folder / "number.toml").write_text(text.replace("steps = 6", "steps = " + "9" * 5000))
    (folder / "deep.toml").write_text("a = " + "[" * 5000 + "]" * 5000)
    return [
        *sorted(str(path) for path in folder.iterdir()),
        "none.toml",
        "a" * 300 + ".toml",
        "a/../b.toml",
        "",
    ]


def weights(folder: Path) -> list[str]:
    """Make weights that are none below ``folder``. Returns what a recipe may name."""
    folder.mkdir()
    _anything(folder, ".onnx")
    whole = (ROOT / "models" / "miniature" / "aligner.onnx").read_bytes()
    (folder / "cut.onnx").write_bytes(whole[: len(whole) // 2])
    for suffix in ("pt", "pth", "ckpt", "bin", "pkl"):
        (folder / f"pickle.{suffix}").write_bytes(b"cos\nsystem\n(S'touch canary'\ntR.")
    return [
        *sorted(str(path) for path in folder.iterdir()),
        "miniature/alignerr",
        "~nobody-at-all/x",
        "a" * 300,
    ]
