"""The way of frames to the encoder: a queue that never grows, encoders that really work."""

from __future__ import annotations

import threading
from fractions import Fraction
from pathlib import Path

import pytest
import torch

from facelock.errors import ConfigError, EncoderError
from facelock.video.encoders import coding, require_encoder
from facelock.video.ring import SLOTS, Ring, pieces
from facelock.video.writing import SegmentWriter


def picture(count: int = 6, height: int = 48, width: int = 64) -> torch.Tensor:
    """Smooth colours that move, so that neither codec nor chroma hides a mistake."""
    rows, columns = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    still = torch.stack([rows, columns, 1 - rows])
    return torch.stack([0.5 + 0.4 * torch.sin(3 * still + 0.2 * t) for t in range(count)])


# ---------------------------------------------------------------------- the queue


def test_pieces_arrive_in_order_and_a_few_at_a_time() -> None:
    got, gate, put = [], threading.Semaphore(0), []

    def feed(data: memoryview) -> None:
        gate.acquire()
        got.append(bytes(data))

    ring = Ring(feed)

    def fill() -> None:
        for number in range(8):
            ring.put(torch.full((4,), number, dtype=torch.uint8))
            put.append(number)

    filler = threading.Thread(target=fill)
    filler.start()
    filler.join(0.3)
    assert len(put) == SLOTS  # the fourth waits: nothing was fed yet
    for _ in range(8):
        gate.release()
    filler.join(10)
    ring.close()
    assert got == [bytes([n] * 4) for n in range(8)]


def test_what_the_pipe_says_is_heard_and_nobody_hangs() -> None:
    def feed(_: memoryview) -> None:
        raise EncoderError("ffmpeg died")

    ring = Ring(feed)
    with pytest.raises(EncoderError, match="died"):
        for _ in range(20):
            ring.put(torch.zeros(4, dtype=torch.uint8))
        ring.close()
    ring.abandon()
    assert not [thread for thread in threading.enumerate() if thread.name == "facelock-encode"]


def test_pieces_are_small_and_lose_nothing() -> None:
    frames = torch.arange(50.0).view(50, 1)
    assert torch.equal(torch.cat(pieces(frames, 1 << 20)), frames)
    assert max(len(piece) for piece in pieces(frames, 1 << 20)) == 8
    assert len(pieces(frames, 1 << 30)) == 50


def test_a_segment_that_is_left_halfway_leaves_no_file_and_no_thread(tmp_path: Path) -> None:
    with (
        pytest.raises(KeyboardInterrupt),
        SegmentWriter(tmp_path / "a.mkv", (48, 64), Fraction(12)) as writer,
    ):
        writer.write(picture())
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
    assert not [thread for thread in threading.enumerate() if thread.name == "facelock-encode"]


# ---------------------------------------------------------------------- encoders


def test_an_encoder_that_this_machine_lacks_is_refused_in_one_sentence() -> None:
    require_encoder("x264")
    if torch.cuda.is_available():
        pytest.skip("a CUDA device is present")
    with pytest.raises(EncoderError, match=r"nvenc .*x264") as caught:
        require_encoder("nvenc")
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 3


def test_it_is_refused_before_the_first_chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import toys

    def missing(name: str) -> None:
        raise EncoderError(f"This machine cannot encode with {name}.")

    monkeypatch.setattr("facelock.making.require_encoder", missing)
    parts = toys.Parts()
    clip = toys.pipeline(parts, encode={"encoder": "nvenc"}).generate("a", toys.identity(), seconds=1)
    with pytest.raises(EncoderError, match="nvenc"):
        clip.save(tmp_path / "clip.mp4")
    assert parts.backbone.calls == []


def test_names_and_depths_that_do_not_fit() -> None:
    with pytest.raises(ConfigError, match="x264, nvenc"):
        coding("vp9", 16, "yuv420p")
    with pytest.raises(ConfigError, match="10 bits"):
        coding("nvenc", 16, "yuv420p10le")
    assert coding("nvenc", 16, "yuv420p")["bf"] == 0
