"""Pictures that are made on a device are those that OpenCV and ffmpeg make on the CPU, and cross to it as bytes."""

from __future__ import annotations

import math
import subprocess
from contextlib import nullcontext
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
import toy_pack
import toys
from fake_device import FakeDevice, There, held, sessions_there
from torch import Tensor

from facelock.bound import BoundSession
from facelock.errors import DeviceError
from facelock.faces import OnnxEncoder, Pack, ScrfdDetector
from facelock.faces.device_pixels import resized, warped
from facelock.faces.pack import library_crops
from facelock.geometry import ARCFACE112, similarity_from_landmarks
from facelock.runtime import BatchSession
from facelock.video.crossing import Crossing
from facelock.video.ffmpeg_process import find_ffmpeg
from facelock.video.planes import FACTORS, SMALLEST, planes_420
from facelock.video.reading import Look
from facelock.video.ring import Ring
from facelock.video.writing import SegmentWriter


@pytest.fixture
def there(monkeypatch: pytest.MonkeyPatch):
    """The pretended device, with sessions that compute there."""
    sessions_there(monkeypatch)
    with torch.no_grad(), FakeDevice() as device:
        yield device


# ---------------------------------------------------------------------- what detectors and recognisers look at


@pytest.mark.parametrize(
    ("old", "new"),
    [((480, 832), (369, 640)), ((192, 332), (37, 64)), ((64, 64), (128, 128)), ((61, 100), (61, 100)),
     ((256, 256), (128, 128)), ((100, 61), (640, 390)), ((5, 7), (3, 2)), ((333, 300), (142, 128))],
)  # fmt: skip
def test_pictures_are_resized_to_the_bytes_of_opencv(old: tuple[int, int], new: tuple[int, int]) -> None:
    pixels = torch.randint(0, 256, (3, *old), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    by_opencv = cv2.resize(pixels.permute(1, 2, 0).numpy(), new[::-1])
    assert (resized(pixels, new).permute(1, 2, 0).numpy() == by_opencv).all()


def test_crops_are_cut_as_opencv_cuts_them_but_for_one_byte_in_thousands() -> None:
    g = np.random.default_rng(0)
    pixels = g.integers(0, 256, (200, 300, 3)).astype(np.uint8)
    planes, wrong = torch.from_numpy(pixels).permute(2, 0, 1), []
    for _ in range(8):
        turn, zoom = g.normal() * 0.4, g.uniform(0.3, 2)
        a, b = zoom * math.cos(turn), zoom * math.sin(turn)
        matrix = np.array([[a, -b, g.uniform(-60, 20)], [b, a, g.uniform(-60, 20)]])
        found = warped(planes, matrix, 112).permute(1, 2, 0).numpy().astype(int)
        difference = abs(found - cv2.warpAffine(pixels, matrix, (112, 112)))
        assert difference.max() <= 1
        wrong.append((difference > 0).mean())
    assert np.mean(wrong) < 1e-3


@pytest.mark.parametrize("flat", [False, True], ids=["batches", "one by one"])
def test_an_insightface_pack_looks_at_frames_where_they_lie(
    tmp_path: Path, there: FakeDevice, flat: bool
) -> None:
    toy_pack.folder(tmp_path / "p", flat=flat)
    detector = ScrfdDetector(tmp_path / "p" / "detector.onnx", detection_size=128, centred=False, batch=2)
    encoder = OnnxEncoder(
        tmp_path / "p" / "recogniser.onnx", name="toy", thresholds=toys.Judge.thresholds, batch=2
    )
    pack = Pack(detector, encoder, cut="library", look_again=True)
    frames = torch.rand(3, 3, 180, 320, generator=torch.Generator().manual_seed(4))
    frames[1] = 0.0
    faces, moved = pack.detect(frames), frames.to(there.name)
    found = pack.detect(moved)
    assert len(faces) and all(
        torch.equal(one, other) for one, other in zip(vars(faces).values(), vars(found).values(), strict=True)
    )
    few = faces.select(torch.arange(min(12, len(faces))))
    expected, crops = pack.crops(frames, few), pack.crops(moved, few)
    assert isinstance(crops, There) and float((held(crops) - expected).abs().max()) <= 1.001 / 255
    assert torch.allclose(encoder.embed_crops(crops), encoder.embed_crops(expected), atol=1e-3)
    assert max(copy.pixels for copy in there.copies) < 112 * 112  # no crop, no picture of the detector's
    there.forget()
    encoder.embed_crops(crops)
    assert max(copy.pixels for copy in there.copies) < 112 * 112  # the embeddings alone


def test_a_file_of_one_picture_keeps_all_of_its_rows_on_a_device(tmp_path: Path) -> None:
    toy_pack.detector(tmp_path / "d.onnx", flat=True)
    session = BatchSession(tmp_path / "d.onnx")
    session.batch, blob = 1, torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    (name,) = session.inputs
    expected = session.run({name: blob.numpy()})
    session._bound = BoundSession(session.session, torch.device("cpu"))
    for one, other in zip(session.run_tensors({name: blob}), expected, strict=True):
        assert (one.numpy() == other).all()


def test_a_yunet_pack_looks_at_frames_where_they_lie(
    there: FakeDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    from facelock.faces import opencv

    blobs: list[Tensor] = []
    detector = opencv.YunetDetector.__new__(opencv.YunetDetector)
    detector._input = "input"
    detector._session = SimpleNamespace(
        run_tensors=lambda given: [blobs.append(given["input"]) or given["input"]]
    )
    frames = torch.rand(2, 3, 90, 130, generator=torch.Generator().manual_seed(4))
    for size in ((90, 130), (45, 65)):
        blobs.clear()
        detector._run(frames.to(there.name), size)
        for blob, frame in zip(blobs, frames, strict=True):
            assert (held(blob).numpy() == opencv._blob(frame, size)).all()


def test_no_face_gives_no_crop_there(there: FakeDevice) -> None:
    none = torch.zeros(0, dtype=torch.long)
    matrices = similarity_from_landmarks(torch.zeros(0, 5, 2), ARCFACE112)
    crops = library_crops(torch.rand(1, 3, 8, 8).to(there.name), none, matrices, 112)
    assert tuple(crops.shape) == (0, 3, 112, 112)


# ---------------------------------------------------------------------- what the encoder gets


@pytest.mark.parametrize(
    ("look", "size", "each"),
    [
        (Look(), (48, 64), 1.5),
        (Look(matrix=6, primaries=6, transfer=6, sar=Fraction(4, 3)), (46, 66), 1.5),
        (Look(matrix=2), (48, 64), 1.5),
        (Look(full=True), (48, 64), 3),
        (Look(chroma=(2, 1)), (48, 64), 3),
        (Look(), (47, 64), 3),
        (Look(), (6, 8), 3),
        (Look(depth=10), (48, 64), 3),
    ],
    ids=["as made", "BT.601", "no matrix", "full range", "4:2:2", "odd", "tiny", "10 bits"],
)
def test_the_ring_gets_bytes_and_the_file_is_the_same(
    there: FakeDevice, tmp_path: Path, look: Look, size: tuple[int, int], each: float
) -> None:
    frames = torch.rand(5, 3, *size, generator=torch.Generator().manual_seed(2))
    frames[2:4] = frames[2:4].round()  # the ends of the scale
    for name, given in (("cpu", frames), ("there", frames.to(there.name))):
        there.forget()
        with SegmentWriter(tmp_path / name, size, Fraction(12), look=look, device=given.device) as writer:
            writer.write(given[:2])
            writer.write(given[2:])
    assert (tmp_path / "cpu").read_bytes() == (tmp_path / "there").read_bytes()
    assert {copy.dtype for copy in there.copies} == {torch.uint16 if look.depth > 8 else torch.uint8}
    assert sum(math.prod(copy.shape) for copy in there.copies) == 5 * each * size[0] * size[1]


@pytest.mark.parametrize("matrix", list(FACTORS))
@pytest.mark.parametrize("size", [(SMALLEST, SMALLEST), (34, 96), (480, 832)])
def test_planes_are_those_of_ffmpeg_s_scaler(size: tuple[int, int], matrix: str) -> None:
    pixels = torch.randint(
        0, 256, (2, 3, *size), generator=torch.Generator().manual_seed(3), dtype=torch.uint8
    )
    pixels[1] = (pixels[1] > 127) * 255
    scaler = f"scale=out_color_matrix={matrix}:out_range=tv:flags=accurate_rnd+full_chroma_int+bitexact"
    command = [
        find_ffmpeg(),
        "-v",
        "error",
        "-f",
        "rawvideo",
        "-pix_fmt",
        "rgb24",
        "-s",
        f"{size[1]}x{size[0]}",
    ]
    command += ["-i", "-", "-vf", scaler, "-pix_fmt", "yuv420p", "-f", "rawvideo", "-"]
    given = pixels.permute(0, 2, 3, 1).contiguous().numpy().tobytes()
    done = subprocess.run(command, input=given, capture_output=True, check=True)
    assert planes_420(pixels, matrix).numpy().tobytes() == done.stdout


def test_on_the_cpu_ffmpeg_converts_as_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("facelock.video.writing.planes_420", lambda *_: pytest.fail("was called"))
    with SegmentWriter(tmp_path / "a.mkv", (32, 32), Fraction(12)) as writer:
        writer.write(torch.rand(2, 3, 32, 32))
    assert (tmp_path / "a.mkv").stat().st_size


# ---------------------------------------------------------------------- pinned memory, with CUDA's own names


class Stream:
    """Stands in for ``torch.cuda.Stream``."""

    def __init__(self, log: list[str]) -> None:
        self.log = log

    def wait_stream(self, other: object) -> None:
        self.log.append("waits for what is current")


class Event:
    """Stands in for ``torch.cuda.Event``."""

    log: list[str] = []  # noqa: RUF012 - one list for the test

    def record(self, stream: object) -> None:
        self.log.append("event")

    def synchronize(self) -> None:
        self.log.append("synchronize")


class Pictured(SimpleNamespace):
    """A CUDA tensor, as far as :class:`Crossing` looks at it."""

    device = torch.device("cuda", 0)


def test_pixels_cross_through_pinned_memory_in_a_stream_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []
    Event.log = log
    target = SimpleNamespace(
        copy_=lambda pixels, non_blocking: log.append(f"copy, non_blocking={non_blocking}")
    )
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream(log))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(
        torch, "empty", lambda shape, dtype, pin_memory: log.append(f"pinned={pin_memory}") or target
    )
    crossing = Crossing()
    frames = Pictured(record_stream=lambda stream: log.append("recorded"))
    with crossing.begin(frames):
        pixels, arrived = crossing.send(Pictured(shape=(1, 2), dtype=torch.uint8))
    assert pixels is target
    assert log == ["waits for what is current", "recorded", "pinned=True", "copy, non_blocking=True", "event"]
    arrived()
    assert log[-1] == "synchronize"


def test_the_ring_waits_for_pixels_in_its_own_thread() -> None:
    import threading

    pixels, waited, fed = torch.zeros(4, dtype=torch.uint8), [], []

    def arrived() -> None:
        waited.append(threading.current_thread().name)
        pixels.fill_(7)

    ring = Ring(lambda data: fed.append(bytes(data)))
    ring.put(pixels, arrived)
    ring.close()
    assert waited == ["facelock-encode"] and fed == [bytes([7] * 4)]


def test_a_copy_that_fails_is_heard_by_whoever_puts() -> None:
    def lost() -> None:
        raise DeviceError("the GPU is lost")

    ring = Ring(lambda data: None)
    ring.put(torch.zeros(1, dtype=torch.uint8), lost)
    with pytest.raises(DeviceError, match="lost"):
        ring.close()
