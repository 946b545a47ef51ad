"""Fail the n-th change of the disk, for every n: exit code 3, what is finished stays, a retry is the same."""

from __future__ import annotations

import errno
import json
import os

import pytest
import toys

from facelock.errors import FaceLockError, StorageError

CHANGES = ("write", "fsync", "replace", "unlink", "mkdir")
SECONDS = 11 / 12  # 6 + 4 + 1 frames


class Faults:
    """Counts changes of the disk and makes the ``fail_at``-th fail, and every later one of ``full`` disks."""

    def __init__(self, patch, fail_at, code, full=False):
        self.count, self.fail_at, self.code, self.full = 0, fail_at, code, full
        for name in CHANGES:
            patch.setattr(os, name, self._wrap(getattr(os, name)))

    def _wrap(self, real):
        def call(*args, **kwargs):
            count, self.count = self.count, self.count + 1
            if self.fail_at is not None and (count == self.fail_at or (self.full and count > self.fail_at)):
                raise OSError(self.code, os.strerror(self.code))
            return real(*args, **kwargs)

        return call


def make(folder):
    """Make the clip; return how many chunks that took."""
    parts = toys.Parts()
    clip = toys.pipeline(parts).generate("a woman talking", toys.identity(), seconds=SECONDS, seed=3)
    clip.save(folder / "clip.mp4", overwrite=True)
    return len(parts.backbone.calls)


def result(folder):
    report = json.loads((folder / "clip.report.json").read_text())
    return (folder / "clip.mp4").read_bytes(), report["ledger"]


def committed(folder):
    return {path.name: path.read_bytes() for path in (folder / "clip.mp4.partial").glob("0*.json")}


@pytest.fixture
def whole(ram_path, monkeypatch):
    """Number of changes of an undisturbed run, and its result."""
    toys.write_plainly(monkeypatch.setattr)
    folder = ram_path / "whole"
    folder.mkdir()
    with monkeypatch.context() as patch:
        faults = Faults(patch, None, 0)
        make(folder)
    return faults.count, result(folder)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_every_failing_change(ram_path, monkeypatch, whole, code):
    changes, expected = whole
    assert changes > 40
    for point in range(changes) if code == errno.ENOSPC else range(1, changes, 4):
        folder = ram_path / str(point)
        folder.mkdir()
        with monkeypatch.context() as patch:
            Faults(patch, point, code)
            with pytest.raises(StorageError) as caught:
                make(folder)
        assert caught.value.exit_code == 3
        reason = "the disk is full" if code == errno.ENOSPC else os.strerror(code)
        assert reason in str(caught.value) and str(caught.value).endswith("."), point
        before = committed(folder)
        made = make(folder)
        assert result(folder) == expected, point
        assert not (folder / "clip.mp4.partial").exists()
        if before:
            assert made <= 3 - len(before), point  # what was committed was not made again


def test_a_disk_that_stays_full(ram_path, monkeypatch, whole):
    changes, expected = whole
    for point in range(0, changes, 5):
        folder = ram_path / str(point)
        folder.mkdir()
        with monkeypatch.context() as patch:
            Faults(patch, point, errno.ENOSPC, full=True)
            with pytest.raises(StorageError):
                make(folder)
        make(folder)
        assert result(folder) == expected


def test_an_encoder_that_dies_once_is_tried_again(ram_path, monkeypatch, whole, caplog):
    from facelock.errors import EncoderError

    _, expected = whole
    deaths = iter([True, False, False, True, False])

    class Dying(toys.Writer):
        def write(self, frames):
            if next(deaths):
                raise EncoderError("ffmpeg died (killed by signal 9). Give the same command again.")
            super().write(frames)

    monkeypatch.setattr("facelock.clip.SegmentWriter", Dying)
    folder = ram_path / "again"
    folder.mkdir()
    make(folder)
    assert result(folder) == expected
    assert caplog.text.count("trying once more") == 2


def test_an_encoder_that_keeps_dying_leaves_a_journal_to_resume(ram_path, monkeypatch, whole):
    from facelock.errors import EncoderError

    _, expected = whole
    calls = []

    class Dying(toys.Writer):
        def write(self, frames):
            calls.append(1)
            if len(calls) > 1:
                raise EncoderError("ffmpeg died (killed by signal 9). Give the same command again.")
            super().write(frames)

    folder = ram_path / "again"
    folder.mkdir()
    with monkeypatch.context() as patch:
        patch.setattr("facelock.clip.SegmentWriter", Dying)
        with pytest.raises(EncoderError) as caught:
            make(folder)
    assert caught.value.exit_code == 3 and len(calls) == 3
    assert list(committed(folder)) == ["00000.json"]
    make(folder)
    assert result(folder) == expected


def test_a_bug_in_a_stage_keeps_what_is_finished(ram_path, monkeypatch, whole):
    _, expected = whole
    extend, calls = toys.Backbone.extend, []

    def failing(self, *args, **kwargs):
        calls.append(1)
        frames = extend(self, *args, **kwargs)
        return frames * float("nan") if len(calls) == 2 else frames

    folder = ram_path / "nan"
    folder.mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(toys.Backbone, "extend", failing)
        with pytest.raises(FaceLockError, match="NaN") as caught:
            make(folder)
    assert caught.value.exit_code == 1
    assert list(committed(folder)) == ["00000.json"]
    make(folder)
    assert result(folder) == expected
