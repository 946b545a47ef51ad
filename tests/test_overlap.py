"""The next chunk's blueprint ahead of this chunk's rest: the same clip, whatever fails or interrupts it."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest
import torch
import toys

from facelock.errors import FaceLockError, InterruptedRunError
from facelock.job import Job
from facelock.journal import Resume
from facelock.lanes import kept_behind
from facelock.pipeline import Made, Pipeline

JOB = Job("a woman talking", 19 / 12, 3)  # 19 frames: 6 + 4 + 4 + 4 + 1
CAST = (toys.identity(),)
OVERLAP = {"overlap": True}


def pipeline(parts: toys.Parts | None = None, *, ahead: bool = True) -> Pipeline:
    return toys.pipeline(parts, speed={"overlap": ahead})


def chunks(
    ahead: bool, job: Job = JOB, resume: Resume | None = None, parts: toys.Parts | None = None
) -> list[Made]:
    return list(pipeline(parts, ahead=ahead).run(job, CAST, resume=resume))


def same(found: Made, expected: Made) -> None:
    assert found.span == expected.span
    assert torch.equal(found.chunk.frames, expected.chunk.frames)
    for name, frames in vars(expected.tail).items():
        assert torch.equal(getattr(found.tail, name), frames), name
    for key in ("ledger", "ledger_unlocked", "lock", "restore", "thumbnails"):
        assert getattr(found.records, key) == getattr(expected.records, key), key
    assert set(found.records.seconds) == set(expected.records.seconds)


@pytest.mark.parametrize(
    "job", [JOB, Job("a", 3 / 12), Job("a", 6 / 12), Job("a", 19 / 12, lock=False, restore=False)]
)
def test_chunks_are_those_made_in_turn(job: Job) -> None:
    expected = chunks(False, job)
    found = chunks(True, job)
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        same(one, other)


def test_it_resumes_anywhere() -> None:
    whole = chunks(False)
    for done in range(1, len(whole)):
        again = chunks(True, resume=Resume(done, whole[done - 1].tail))
        for one, other in zip(again, whole[done:], strict=True):
            same(one, other)


class Paced:
    """Notes what begins and ends, where, and lets the judge wait until the next blueprint has begun."""

    def __init__(self) -> None:
        self.parts = toys.Parts()
        self.events: list[str] = []
        self.threads: dict[str, set[int]] = {}
        self.ahead = threading.Event()
        extend, measure = self.parts.backbone.extend, self.parts.judge.measure

        def drawn(*args, **kwargs):
            self.note("blueprint")
            if len(self.parts.backbone.calls) == 1:
                self.ahead.set()
            return extend(*args, **kwargs)

        def measured(*args, **kwargs):
            assert self.ahead.wait(20), "the next blueprint did not begin while this chunk was judged"
            self.note("judge")
            return measure(*args, **kwargs)

        self.parts.backbone.extend, self.parts.judge.measure = drawn, measured

    def note(self, what: str) -> None:
        self.events.append(what)
        self.threads.setdefault(what, set()).add(threading.get_ident())


def test_the_next_blueprint_begins_while_this_chunk_is_judged_and_no_further() -> None:
    paced, most = Paced(), 0
    for count, made in enumerate(pipeline(paced.parts).run(JOB, CAST), 1):
        most = max(most, len(paced.parts.backbone.calls) - count)
        assert made.span.index == count - 1
    assert most == 1
    here = threading.get_ident()
    assert paced.threads["blueprint"] == {here}
    assert here not in paced.threads["judge"]


@pytest.mark.parametrize("stage", ["blueprint", "restore"])
@pytest.mark.parametrize("ahead", [False, True], ids=["in turn", "ahead"])
def test_a_stage_that_fails_loses_nothing_that_was_made(stage: str, ahead: bool) -> None:
    parts, calls = toys.Parts(), []
    owner, name = (parts.backbone, "extend") if stage == "blueprint" else (parts.restorer, "restore")
    work = getattr(owner, name)

    def failing(*args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            raise FaceLockError("the third chunk fails")
        return work(*args, **kwargs)

    setattr(owner, name, failing)
    got = []
    with pytest.raises(FaceLockError, match="third chunk"):
        for made in pipeline(parts, ahead=ahead).run(JOB, CAST):
            got.append(made.span.index)
    assert got == [0, 1]


def test_an_interrupt_keeps_what_is_made_and_the_same_command_resumes(tmp_path: Path, monkeypatch) -> None:
    toys.write_plainly(monkeypatch.setattr)
    seen = []

    def stop(stage: str, done: int, total: int) -> None:
        seen.append((stage, done))
        if stage == "blueprint" and done >= 14:
            raise InterruptedRunError("Interrupted by SIGINT.")

    def clip(progress=None):
        return pipeline().generate("a woman talking", CAST[0], seconds=19 / 12, seed=3, progress=progress)

    with pytest.raises(InterruptedRunError):
        clip(stop).save(tmp_path / "clip.mp4")
    folder = tmp_path / "clip.mp4.partial"
    assert sorted(p.stem for p in folder.glob("0*.json")) == ["00000", "00001"]  # the third was being made
    own = ("facelock-rest", "facelock-behind", "facelock-encode")  # the lanes stay for others
    assert not [t for t in threading.enumerate() if t.name.startswith(own)]
    clip().save(tmp_path / "clip.mp4")
    whole = tmp_path / "whole.mp4"
    toys.pipeline().generate("a woman talking", CAST[0], seconds=19 / 12, seed=3).save(whole)
    assert (tmp_path / "clip.mp4").read_bytes() == whole.read_bytes()
    found, expected = (
        json.loads(path.with_suffix(".report.json").read_text()) for path in (tmp_path / "clip.mp4", whole)
    )
    assert found["ledger"] == expected["ledger"]


def test_progress_is_told_on_the_pipelines_thread_in_order() -> None:
    seen = []
    run = pipeline().run(JOB, CAST, progress=lambda *step: seen.append((threading.get_ident(), *step)))
    list(run)
    assert {thread for thread, *_ in seen} == {threading.get_ident()}
    for stage in ("blueprint", "lock", "restore", "judge"):
        assert [done for _, name, done, _ in seen if name == stage] == [6, 10, 14, 18, 19]


def test_leaving_early_stops_the_worker() -> None:
    run = pipeline().run(JOB, CAST)
    next(run)
    run.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("facelock-rest")]


# ---------------------------------------------------------------------- keeping behind


def test_items_are_kept_in_order_while_the_next_is_made() -> None:
    kept, made = [], []

    def items():
        for number in range(4):
            made.append(number)
            yield number

    def keep(number: int) -> int:
        time.sleep(0.01)
        kept.append(number)
        return number

    for number in kept_behind(items(), keep):
        assert len(made) <= number + 2
    assert kept == [0, 1, 2, 3]


def test_the_last_item_is_kept_when_the_next_fails_and_a_failing_keeper_is_heard() -> None:
    kept = []

    def items():
        yield 1
        raise FaceLockError("no more")

    with pytest.raises(FaceLockError, match="no more"):
        list(kept_behind(items(), kept.append))
    assert kept == [1]

    def full(_: int) -> None:
        raise FaceLockError("disk full")

    with pytest.raises(FaceLockError, match="disk full"):  # not "no more": a chunk was lost
        list(kept_behind(items(), full))
    with pytest.raises(FaceLockError, match="disk full"):
        list(kept_behind(iter([1, 2, 3]), full))


class Busy:
    """A stage that notices when it is called from two threads at once."""

    def __init__(self, work, entered: list[int], beside: bool) -> None:
        self.work, self.entered, self.side_by_side, self.met = work, entered, beside, False

    def __call__(self, *args, **kwargs):
        self.entered.append(1)
        time.sleep(0.05)
        self.met |= len(self.entered) > 1
        self.entered.pop()
        return self.work(*args, **kwargs)

    lock = restore = __call__


@pytest.mark.parametrize("beside", [False, True])
def test_stages_are_called_from_two_threads_only_if_they_say_so(beside: bool) -> None:
    parts, inside = toys.Parts(), []
    lock, restore = parts.locker.lock, parts.restorer.restore
    parts.locker, parts.restorer = Busy(lock, inside, beside), Busy(restore, inside, beside)
    assert len(list(pipeline(parts).run(JOB, CAST))) == 5
    assert (parts.locker.met or parts.restorer.met) is beside
