"""The journal: what it keeps, what it refuses, what it cleans."""

from __future__ import annotations

import json
import os
import time

import pytest
import torch
import toys

from facelock.errors import InputError, OutputBusyError
from facelock.journal import Resume, Tail, claim, differences, records_from_dict
from facelock.types import ChunkRecords

RUN = {"inputs": {"prompt": "a woman", "seed": 0}, "weights": {"lock": "aa"}}


def tail(value=0.25):
    return Tail(
        torch.full((2, 3, 4, 4), value),
        torch.rand(1, 3, 8, 8),
        torch.rand(1, 3, 4, 4),
        torch.rand(2, 3, 4, 4),
    )


def records(start=0, length=4):
    judge, identity = toys.Judge(), toys.identity()
    rows = judge.measure(torch.rand(length, 3, 8, 8), [identity], start=start)
    _, locked = toys.Locker().lock(torch.rand(length, 3, 8, 8), [identity], start=start)
    pictures = {start: "aGk="}
    return ChunkRecords(
        start, length, ledger=rows, ledger_unlocked=rows, lock=tuple(locked), restore=tuple(locked),
        thumbnails=pictures, thumbnails_unlocked=pictures, seconds={"lock": 0.5},
    )  # fmt: skip


def fill(journal, chunks=3):
    """A run with ``chunks`` chunks committed."""
    journal.begin(RUN)
    tails = [tail(0.1 * (index + 1)) for index in range(chunks)]
    for index in range(chunks):
        journal.segment(index).write_bytes(b"segment %d" % index)
        journal.commit(index, tails[index], records(4 * index))
    return tails


def test_nothing_is_left_when_nothing_was_begun(tmp_path):
    with claim(tmp_path / "clip.mp4"):
        assert (tmp_path / "clip.mp4.partial").is_dir()
    assert list(tmp_path.iterdir()) == []


def test_resume_gives_back_the_exact_tail_and_records(tmp_path):
    with claim(tmp_path / "clip.mp4") as journal:
        tails = fill(journal)
        stored = list(journal.records(3))
    with claim(tmp_path / "clip.mp4") as journal:
        resume = journal.begin(RUN)
        assert resume.chunks == 3 and not resume.ready
        for name in ("context", "final", "raw"):
            assert torch.equal(getattr(resume.tail, name), getattr(tails[-1], name))
        assert list(journal.records(3)) == stored
        assert [path.read_bytes() for path in journal.segments(3)] == [
            b"segment 0",
            b"segment 1",
            b"segment 2",
        ]


def test_records_survive_json():
    from dataclasses import asdict

    before = records(7)
    assert records_from_dict(json.loads(json.dumps(asdict(before)))) == before


@pytest.mark.parametrize(
    ("damage", "left"),
    [
        (lambda folder: (folder / "00002.json").unlink(), 2),
        (lambda folder: (folder / "00002.json").write_text("{"), 2),
        (lambda folder: (folder / "00002.json").write_text("[]"), 2),
        (lambda folder: (folder / "00002.json").write_text('{"digests": {}, "records": {}}'), 2),
        (lambda folder: (folder / "00002.mkv").write_bytes(b"segment 3"), 2),
        (lambda folder: (folder / "00002.mkv").unlink(), 2),
        (lambda folder: (folder / "00002.safetensors").write_bytes(b""), 2),
        (lambda folder: (folder / "00002.safetensors").unlink(), 2),
        (lambda folder: (folder / "00001.mkv").unlink(), 0),  # chunk 0's context was let go of already
        (lambda folder: (folder / "00000.mkv").unlink(), 0),
    ],
)
def test_a_damaged_chunk_and_what_follows_it_never_happened(tmp_path, damage, left):
    with claim(tmp_path / "clip.mp4") as journal:
        tails = fill(journal)
        damage(journal.folder)
    with claim(tmp_path / "clip.mp4") as journal:
        resume = journal.begin(RUN)
        assert resume.chunks == left
        if left:
            assert torch.equal(resume.tail.context, tails[left - 1].context)
        numbers = {path.name[:5] for path in journal.folder.iterdir() if path.name[:1].isdigit()}
        assert numbers == {f"{index:05d}" for index in range(left)}


def test_stale_temporary_files_go_and_strange_ones_stay(tmp_path):
    with claim(tmp_path / "clip.mp4") as journal:
        fill(journal)
        for name in (
            "00003.mkv.part",
            "00003.mkv",
            ".00003.json.x7",
            "joined.mp4.part",
            "00003.safetensors",
            "my.txt",
        ):
            (journal.folder / name).write_bytes(b"half")
    with claim(tmp_path / "clip.mp4") as journal:
        assert journal.begin(RUN).chunks == 3
        names = {path.name for path in journal.folder.iterdir()}
    assert names == {"run.json", "00001.safetensors", "00002.safetensors", "my.txt"} | {
        f"0000{index}.{kind}" for index in range(3) for kind in ("mkv", "json")
    }


def test_changed_inputs_are_refused_line_by_line(tmp_path):
    with claim(tmp_path / "clip.mp4") as journal:
        fill(journal)
    changed = {"inputs": {"prompt": "a woman", "seed": 3}, "weights": {"lock": "bb"}}
    with claim(tmp_path / "clip.mp4") as journal:
        with pytest.raises(InputError) as caught:
            journal.begin(changed)
        message = str(caught.value)
        assert "inputs.seed: was 0, now 3" in message and 'weights.lock: was "aa", now "bb"' in message
        assert "prompt" not in message and "--restart" in message
        assert journal.begin(RUN).chunks == 3  # nothing was lost by asking
        assert journal.begin(changed, restart=True) == Resume()
        assert [path.name for path in journal.folder.iterdir()] == ["run.json"]


def test_differences_show_what_came_and_went():
    before, now = {"faces": [{"name": "a"}], "old": 1}, {"faces": [{"name": "b"}, {"name": "c"}], "new": None}
    assert differences(before, now) == [
        'faces.0.name: was "a", now "b"', "old: was 1, now absent",
        'faces.1.name: was absent, now "c"', "new: was absent, now null",
    ]  # fmt: skip
    assert differences(RUN, RUN) == []


def test_damaged_run_file_asks_for_restart(tmp_path):
    with claim(tmp_path / "clip.mp4") as journal:
        fill(journal)
        (journal.folder / "run.json").write_text("{")
    with claim(tmp_path / "clip.mp4") as journal:
        with pytest.raises(InputError, match="--restart"):
            journal.begin(RUN)
        assert journal.begin(RUN, restart=True) == Resume()


def prepare(journal):
    for path in journal.prepared():
        path.write_bytes(path.name.encode())


def test_publish_moves_and_removes(tmp_path):
    with claim(tmp_path / "clip.mp4") as journal:
        fill(journal)
        prepare(journal)
        journal.publish()
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "clip.mp4": "joined.mp4", "clip.report.json": "report.json", "clip.report.html": "report.html",
    }  # fmt: skip


def test_publish_goes_on_after_a_kill_at_every_point(tmp_path, monkeypatch):
    """Stop publish before its n-th rename or removal, for every n: the next claim finishes the job."""

    class KilledError(BaseException):
        pass

    def attempt(folder, stop):
        count = 0
        real = {name: getattr(os, name) for name in ("replace", "unlink", "rmdir")}

        def counted(name):
            def call(*args, **kwargs):
                nonlocal count
                count += 1
                if count > stop:
                    raise KilledError
                return real[name](*args, **kwargs)

            return call

        with monkeypatch.context() as patch:
            for name in real:
                patch.setattr(os, name, counted(name))
            with claim(folder / "clip.mp4") as journal:
                resume = journal.begin(RUN)
                if not resume.ready:
                    assert resume.chunks == 3
                    prepare(journal)
                journal.publish()
        return count

    def unfinished(folder):
        folder.mkdir()
        with claim(folder / "clip.mp4") as journal:
            fill(journal)
        return folder

    total = attempt(unfinished(tmp_path / "whole"), 1000)
    assert total > 12
    for stop in range(total):
        folder = unfinished(tmp_path / str(stop))
        with pytest.raises(KilledError):
            attempt(folder, stop)
        try:
            attempt(folder, 1000)
        except InputError as error:  # all was done but removing the empty folder
            assert "exists already" in str(error)
            assert stop == total - 1
        names = sorted(path.name for path in folder.iterdir() if path.is_file())
        assert names == ["clip.mp4", "clip.report.html", "clip.report.json"], stop
        assert (folder / "clip.mp4").read_text() == "joined.mp4"


def test_existing_results_are_refused_before_anything(tmp_path):
    (tmp_path / "clip.mp4").write_bytes(b"mine")
    with (
        pytest.raises(InputError, match=r"clip.mp4: exists already.*--overwrite"),
        claim(tmp_path / "clip.mp4"),
    ):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["clip.mp4"]
    with claim(tmp_path / "clip.mp4", overwrite=True) as journal:
        fill(journal)
        prepare(journal)
        assert (tmp_path / "clip.mp4").read_bytes() == b"mine"  # until the very end
        journal.publish()
    assert (tmp_path / "clip.mp4").read_bytes() == b"joined.mp4"


def test_an_old_report_is_an_existing_result_too(tmp_path):
    (tmp_path / "clip.report.json").write_text("{}")
    with pytest.raises(InputError, match=r"clip.report.json: exists already"), claim(tmp_path / "clip.mp4"):
        pass


def test_a_second_run_is_refused_at_once_and_the_lock_is_free_afterwards(tmp_path):
    with claim(tmp_path / "clip.mp4") as journal:
        journal.begin(RUN)
        began = time.perf_counter()
        with pytest.raises(OutputBusyError, match="another run") as caught, claim(tmp_path / "clip.mp4"):
            pass
        assert time.perf_counter() - began < 30
        assert caught.value.exit_code == 5
        with claim(tmp_path / "other.mp4"):
            pass
    with claim(tmp_path / "clip.mp4"):
        pass


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("clip.avi", "must end in .mp4"),
        ("clip", "must end in .mp4"),
        (".mp4", "must end in .mp4"),
        ("", "not a file name"),
        ("a\0b.mp4", "not a file name"),
        ("a\nb.mp4", "not a file name"),
        ("missing/clip.mp4", "does not exist"),
        ("file/clip.mp4", "does not exist|cannot be written"),
        ("folder.mp4", "is a folder"),
        ("x" * 250 + ".mp4", "cannot be written"),
        ("busy.mp4", "cannot be written"),
    ],
)
def test_outputs_that_cannot_be(tmp_path, name, words):
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "busy.mp4.partial").write_bytes(b"")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match=words), claim(f"{tmp_path}/{name}" if name else ""):
        pass
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("place", ["/proc/clip.mp4", "/sys/clip.mp4"])
def test_unwritable_places(place):
    with pytest.raises(InputError, match="cannot be written"), claim(place):
        pass


def test_odd_names_work(tmp_path):
    for name in ("-rf.mp4", "Szene ä 1.mp4", "a'b%05d.mp4", "CLIP.MP4"):
        with claim(tmp_path / name) as journal:
            fill(journal, 1)
            prepare(journal)
            journal.publish()
        assert (tmp_path / name).exists()
