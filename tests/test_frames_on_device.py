"""Frames stay on the pipeline's device from the decoder to the ring: on a pretended one, with the miniature's stages.

``tests/fake_device.py`` refuses what CUDA refuses and counts what comes back, so these tests show where frames lie, and
that they hold the values they have on the CPU. They say nothing about speed, streams or pinned memory on a real GPU.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lock_toys
import pytest
import torch
import toys
from fake_device import Copy, FakeDevice, There, held, sessions_there
from footage_files import video
from PIL import Image
from torch import Tensor

from facelock.assembly import Assembly
from facelock.blueprint.common import decoded
from facelock.errors import DeviceError
from facelock.geometry import ARCFACE112
from facelock.job import Job, Span
from facelock.journal import Resume, Tail
from facelock.pipeline import Made, Pipeline
from facelock.recipe import load_recipe
from facelock.steps import Home, Steps
from facelock.tuning.frames import frames_device
from facelock.tuning.options import Speed
from facelock.tuning.plan import GIB, Plan, Shape, resident, room_for_frames
from facelock.video.crossing import lifted
from facelock.video.reading import Look

SIZE, SCALE, SIDE = (96, 160), 4, 80
PIXELS = SIZE[0] * SIZE[1]
NAMES = ("maria", "tom")
JOB = Job("a woman talking", 7 / 12, 3)  # chunks of 4 + 3 frames


@pytest.fixture(scope="module")
def portraits() -> list[Tensor]:
    """(3, 80, 80) each: two people of the miniature's world."""
    from facelock.miniature.samples import CAST, portrait

    return [portrait(name, SIDE)[0].clamp(0, 1) for name in list(CAST)[:2]]


class Backbone:
    """Two faces that move, on a device."""

    size, fps, first_chunk, chunk, context = SIZE, 12, 4, 3, 2

    def __init__(self, portraits: list[Tensor], device: str = "cpu") -> None:
        self.portraits, self.device = portraits, device

    def extend(self, prompt: str, context: Tensor | None, *, seed: int, references: Any = ()) -> Tensor:
        frames = torch.full((self.first_chunk if context is None else self.chunk, 3, *SIZE), 0.4)
        for k, frame in enumerate(frames):
            for column, face in zip((0, SIDE), self.portraits, strict=True):
                frame[:, k : k + SIDE, column : column + SIDE] = 0.9 * face
        frames = frames.to(self.device)
        past = 0 if context is None else (context.to(self.device) * 1001).frac().mean()
        return (frames + 0.02 * past).clamp(0, 1)


@pytest.fixture(scope="module")
def assembly() -> Assembly:
    return Assembly(load_recipe("miniature"), "cpu")


@pytest.fixture(scope="module")
def cast(assembly: Assembly, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    from facelock.miniature.samples import CAST, portrait

    folder, found = tmp_path_factory.mktemp("cast"), []
    for name, sample in zip(
        NAMES, list(CAST)[2:4], strict=True
    ):  # others than the clip shows: the lock has work
        pixels = (portrait(sample, 512)[0].clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(folder / f"{name}.png")
        found.append(assembly.identity(folder / f"{name}.png"))
    return found


def pipeline(
    assembly: Assembly, portraits: list[Tensor], device: str = "cpu", home: str | None = None
) -> Pipeline:
    """The miniature's stages after a backbone that shows two faces."""
    parts = toys.Parts(
        backbone=Backbone(portraits, device),
        locker=assembly.locker,
        restorer=assembly.restorer,
        upscaler=assembly.upscaler,
        judge=assembly.judge,
        frames_device=home or device,
    )
    low = {
        "model": "toy",
        "size": list(SIZE),
        "fps": 12,
        "window": 4,
        "context": 2,
        "steps": 1,
        "guidance_scale": 1.0,
    }
    return toys.pipeline(parts, blueprint=low, restore={"upscaler": "toy", "scale": SCALE})


@pytest.fixture
def there(assembly: Assembly, monkeypatch: pytest.MonkeyPatch):
    """The pretended device, with sessions that compute there, and stages that do not work side by side, as on a GPU."""
    sessions_there(monkeypatch)
    for stage in (assembly.locker, assembly.restorer, assembly.pack, assembly.judge.pack):
        monkeypatch.setattr(stage, "side_by_side", False)
    with torch.no_grad(), FakeDevice() as device:
        yield device


def large(copies: list[Copy]) -> list[Copy]:
    """Those whose pictures are as large as a frame of the blueprint, or larger: no crop is."""
    return [copy for copy in copies if copy.pixels >= PIXELS]


def same(found: Made, expected: Made) -> None:
    """Frames, tail and records: to the bit."""
    assert torch.equal(held(found.chunk.frames), expected.chunk.frames)
    for name, frames in vars(expected.tail).items():
        assert torch.equal(held(getattr(found.tail, name)), frames), name
    for key in ("ledger", "ledger_unlocked", "lock", "restore", "thumbnails", "thumbnails_unlocked"):
        assert getattr(found.records, key) == getattr(expected.records, key), key


@pytest.fixture(scope="module")
def expected(assembly: Assembly, portraits: list[Tensor], cast: list[Any]) -> list[Made]:
    """The clip as the CPU makes it."""
    return list(pipeline(assembly, portraits).run(JOB, cast))


class ToyBackbone(toys.Backbone):
    """The toys' own, which takes its past from any device, as backbones do."""

    def extend(self, prompt: str, context: Tensor | None, **options: Any) -> Tensor:
        return super().extend(prompt, None if context is None else context.cpu(), **options)


def toy_parts(device: str) -> toys.Parts:
    return toys.Parts(backbone=ToyBackbone(), frames_device=device)


# ---------------------------------------------------------------------- a whole chunk


def test_the_clip_shows_faces_that_the_stages_work_on(expected: list[Made]) -> None:
    lock = [record for made in expected for record in made.records.lock]
    assert len(lock) == 14 and any(record.rung >= 0 for record in lock)
    assert any(record.rung >= 0 for made in expected for record in made.records.restore)


def test_a_blueprint_hands_over_frames_where_it_decoded_them(there: FakeDevice) -> None:
    decoding = (torch.rand(1, 3, 2, 4, 4) * 2 - 1).to(there.name)
    frames = decoded(SimpleNamespace(), lambda: decoding)
    assert isinstance(frames, There) and tuple(frames.shape) == (2, 3, 4, 4) and there.copies == []


def test_frames_leave_the_device_at_the_ring_alone_and_hold_the_same_values(
    assembly: Assembly, portraits: list[Tensor], cast: list[Any], expected: list[Made], there: FakeDevice
) -> None:
    seen: dict[str, list[Copy]] = {}

    def progress(stage: str, done: int, total: int) -> None:
        seen.setdefault(stage, []).extend(there.copies)
        there.forget()

    found = list(pipeline(assembly, portraits, there.name).run(JOB, cast, progress=progress))
    for one, other in zip(found, expected, strict=True):
        assert isinstance(one.chunk.frames, There) and isinstance(one.tail.context, There)
        same(one, other)
    for stage in ("blueprint", "lock", "restore"):
        assert large(seen[stage]) == []
    assert {copy.dtype for copy in large(seen["judge"])} <= {torch.uint8}  # parts of frames for thumbnails
    assert large(there.copies) == []


def test_a_run_goes_on_from_what_the_journal_kept(
    assembly: Assembly, portraits: list[Tensor], cast: list[Any], expected: list[Made], there: FakeDevice
) -> None:
    kept = Resume(1, expected[0].tail)  # on the CPU, as it is read
    (again,) = pipeline(assembly, portraits, there.name).run(JOB, cast, resume=kept)
    same(again, expected[1])
    assert all(isinstance(frames, There) for frames in vars(again.tail).values())


def test_the_plain_code_keeps_frames_on_the_cpu(
    assembly: Assembly, portraits: list[Tensor], cast: list[Any], expected: list[Made], there: FakeDevice
) -> None:
    found = list(pipeline(assembly, portraits, there.name, home="cpu").run(JOB, cast))
    for one, other in zip(found, expected, strict=True):
        assert not isinstance(one.chunk.frames, There)
        same(one, other)
    assert len(large(there.copies)) == 2  # each chunk as the blueprint wrote it


class AtOnce:
    """An executor whose work is done when it is handed in, by whoever hands it in: the pretended device knows no other
    thread."""

    def __init__(self, *_: object) -> None:
        pass

    def __enter__(self) -> AtOnce:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def submit(self, work: Any, *args: Any) -> Any:
        done = work(*args)
        return SimpleNamespace(result=lambda: done)


def test_a_tail_that_is_locked_first_stays_there_too(
    there: FakeDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("facelock.overlap.ThreadPoolExecutor", AtOnce)
    ahead = toys.pipeline(toy_parts(there.name), speed={"overlap": True})
    found = list(ahead.run(toys_job(), (toys.identity(),)))
    for one, other in zip(found, toys.pipeline().run(toys_job(), (toys.identity(),)), strict=True):
        assert isinstance(one.chunk.frames, There) and isinstance(one.tail.anchor, There)
        same(one, other)


def test_whoever_iterates_a_clip_gets_frames_on_the_cpu(there: FakeDevice) -> None:
    parts = toy_parts(there.name)
    chunks = list(toys.pipeline(parts).generate("a", toys.identity(), seconds=1))
    assert not any(isinstance(chunk.frames, There) for chunk in chunks)
    plain = list(toys.pipeline().generate("a", toys.identity(), seconds=1))
    for one, other in zip(chunks, plain, strict=True):
        assert torch.equal(one.frames, other.frames)


def test_a_saved_clip_has_the_bytes_that_the_cpu_writes(
    there: FakeDevice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toys.write_plainly(monkeypatch.setattr)
    monkeypatch.setattr(toys.Writer, "write", lambda self, frames: _noted(self, frames))
    tails: dict[str, list[bytes]] = {}
    for home in ("cpu", there.name):
        commit = _committing(tails.setdefault(home, []))
        monkeypatch.setattr("facelock.journal.atomic_write", commit)
        clip = toys.pipeline(toy_parts(home)).generate("a", toys.identity(), seconds=1)
        clip.save(tmp_path / f"{home}.mp4")
    assert (tmp_path / "cpu.mp4").read_bytes() == (tmp_path / f"{there.name}.mp4").read_bytes()
    assert tails["cpu"] == tails[there.name] and len(tails["cpu"]) == 3


def _noted(writer: Any, frames: Tensor) -> None:
    writer.frames.append((frames.cpu() * 255).round().to(torch.uint8).numpy().tobytes())


def _committing(kept: list[bytes]) -> Any:
    from facelock.files import atomic_write

    def write(path: Path, data: bytes) -> None:
        if path.suffix == ".safetensors":
            kept.append(data)
        atomic_write(path, data)

    return write


def answer_on_the_cpu(parts: Any) -> None:
    """Toy networks that compute where they always do, as a session of onnxruntime does."""
    pack, aligner = parts.pack, parts.locker.aligner
    embed, align = pack.embed, aligner.align
    pack.embed = lambda frames, faces: embed(frames.cpu(), faces)
    aligner.align = lambda crops, *args, **kwargs: align(crops.cpu(), *args, **kwargs).to(crops.device)


def test_footage_stays_there_from_the_file_to_the_encoder(there: FakeDevice, tmp_path: Path) -> None:
    clip = video(tmp_path / "clip.mp4", lock_toys.frames(6), look=Look())
    made = {}
    for device in ("cpu", there.name):
        parts = lock_toys.parts(device=device)
        answer_on_the_cpu(parts)
        made[device] = list(lock_toys.lock(clip, parts=parts).made())
    for one, other in zip(made[there.name], made["cpu"], strict=True):
        assert isinstance(one.chunk.frames, There) and isinstance(one.tail.final, There)
        same(one, other)
    chunks = list(lock_toys.lock(clip, parts=lock_toys.parts(device="cpu")))
    assert torch.equal(
        torch.cat([each.frames for each in chunks]), torch.cat([m.chunk.frames for m in made["cpu"]])
    )
    plain = lock_toys.parts(device=there.name, recipe=toys.recipe(speed={"reference": True}))
    assert plain.frames_device == "cpu"


@pytest.mark.parametrize(("dtype", "white"), [(torch.uint8, 255), (torch.uint16, 65535)])
def test_frames_of_a_file_become_numbers_with_a_fraction_there(
    there: FakeDevice, dtype: torch.dtype, white: int
) -> None:
    stored = (torch.rand(2, 3, 4, 6) * white).to(dtype)
    frames = lifted(stored, there.name)
    assert isinstance(frames, There)
    assert torch.equal(held(frames), stored.float() / white)


# ---------------------------------------------------------------------- a restorer of torch's own


@pytest.mark.parametrize("search", ["ladder", "bisect"])
def test_the_constrained_search_runs_with_a_restorer_on_the_device(
    assembly: Assembly, portraits: list[Tensor], cast: list[Any], there: FakeDevice, search: str
) -> None:
    from facelock.restore_loop import RestoreLoop

    def restore(crops: Tensor, identity: Tensor) -> Tensor:
        sharp = crops.clone()
        sharp[:1] = float("nan")  # one face of each batch cannot be restored
        return (sharp * 1.05).clamp(0, 1)

    restorer = SimpleNamespace(crop=ARCFACE112, encoder=assembly.pack.encoder.id, restore=restore)
    frames = Backbone(portraits).extend("", None, seed=1)
    results = {}
    for name, side in (("cpu", frames), ("there", frames.to(there.name))):
        options: Any = {
            "ladder": [1.0, 0.5],
            "target": 0.9,
            "consistency": 0.03,
            "search": search,
            "steps": 2,
        }
        loop = RestoreLoop(assembly.pack, assembly.upscaler, restorer, **options)
        there.forget()
        results[name] = loop.restore(side, cast)
        assert large(there.copies) == []
    assert torch.equal(held(results["there"][0]), results["cpu"][0])
    assert results["there"][1] == results["cpu"][1]


# ---------------------------------------------------------------------- short of memory


def test_frames_go_to_the_cpu_when_memory_is_short_and_stay_there(
    there: FakeDevice, caplog: pytest.LogCaptureFixture
) -> None:
    parts, places = toy_parts(there.name), []
    restore = parts.restorer.restore

    def short(frames: Tensor, *args: Any, **kwargs: Any) -> Any:
        places.append(frames.device.type)
        if frames.device.type != "cpu":
            raise torch.OutOfMemoryError("no room")
        return restore(frames, *args, **kwargs)

    parts.restorer.restore = short
    found = list(toys.pipeline(parts).run(toys_job(), (toys.identity(),)))
    plain = list(toys.pipeline().run(toys_job(), (toys.identity(),)))
    for one, other in zip(found, plain, strict=True):
        same(one, other)
    assert places == [there.name, "cpu", "cpu", "cpu"]
    assert caplog.text.count("Memory is short on meta in the stage restore") == 1


def toys_job() -> Job:
    return Job("a woman talking", 14 / 12, 3)  # 6 + 4 + 4 frames


def test_where_nothing_helps_one_sentence_says_so(there: FakeDevice) -> None:
    def never(frames: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("no room")

    home = Home(there.name)
    with pytest.raises(DeviceError, match="Chunk 0, stage lock: out of memory") as caught:
        Steps(Span(0, 0, 1), 1, None, home)("lock", never, torch.zeros(1, 3, 2, 2).to(there.name))
    assert caught.value.exit_code == 3 and home.device.type == "cpu"


def test_a_card_without_room_for_frames_is_told_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    found = SimpleNamespace()
    monkeypatch.setattr("facelock.tuning.frames.read_footprint", lambda folder: found)
    monkeypatch.setattr("facelock.tuning.plan.peak", lambda *_: 20 * GIB)
    shape, cuda = Shape((480, 832), window=81, scale=4), torch.device("cuda", 0)
    needed = 20 * GIB + resident(shape)
    assert 15 * GIB < resident(shape) < 25 * GIB
    assert room_for_frames(found, shape, Plan(), needed) and not room_for_frames(
        found, shape, Plan(), needed - 1
    )
    given = (tmp_path, shape, Plan())
    assert frames_device(cuda, Speed(), *given, needed) == "cuda:0"
    assert frames_device(cuda, Speed(), *given, 0) == "cuda:0"  # nothing is known of the memory
    assert frames_device(cuda, Speed(reference=True), *given, needed) == "cpu"
    assert frames_device(torch.device("cpu"), Speed(), *given, 1) == "cpu"
    assert not caplog.records
    assert frames_device(cuda, Speed(), *given, needed - 1) == "cpu"
    assert "no room for a chunk's frames beside the networks" in caplog.text


def test_a_tail_moves_as_a_whole(there: FakeDevice) -> None:
    tail = Tail.of_footage(torch.rand(1, 3, 2, 2), torch.rand(1, 3, 2, 2)).to(there.name)
    assert all(isinstance(frames, There) for frames in vars(tail).values())
