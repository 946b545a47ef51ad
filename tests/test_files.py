"""Files that are whole or not there, on disks that are full or failing, and locks that vanish with their holder."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time

import pytest

from facelock.errors import InputError, OutputBusyError, StorageError
from facelock.files import atomic_write, lock_file, publish, storage_error


def fail(monkeypatch, name, code):
    def refuse(*_, **__):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, name, refuse)


def test_writing_and_replacing(tmp_path):
    path = tmp_path / "a.json"
    atomic_write(path, b"one")
    atomic_write(str(path), b"two" * 100_000)
    assert path.read_bytes() == b"two" * 100_000
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize("step", ["write", "fsync", "replace"])
@pytest.mark.parametrize(
    ("code", "kind", "reason"),
    [
        (errno.ENOSPC, StorageError, "disk is full"),
        (errno.EDQUOT, StorageError, "disk is full"),
        (errno.EIO, StorageError, "writing failed"),
        (errno.EACCES, InputError, "cannot be written"),
        (errno.EROFS, InputError, "cannot be written"),
    ],
)
def test_a_failure_keeps_what_was_there_and_leaves_nothing_behind(
    tmp_path, monkeypatch, step, code, kind, reason
):
    path = tmp_path / "a.json"
    atomic_write(path, b"old")
    with monkeypatch.context() as patch:
        fail(patch, step, code)
        with pytest.raises(kind, match=reason) as caught:
            atomic_write(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
    assert "\n" not in str(caught.value) and "a.json" in str(caught.value)


def test_a_short_write_is_continued(tmp_path, monkeypatch):
    real = os.write
    monkeypatch.setattr(os, "write", lambda handle, data: real(handle, bytes(data[:7])))
    atomic_write(tmp_path / "a", bytes(range(100)))
    assert (tmp_path / "a").read_bytes() == bytes(range(100))


def test_publishing(tmp_path, monkeypatch):
    part, path = tmp_path / "a.part", tmp_path / "a"
    part.write_bytes(b"x")
    with monkeypatch.context() as patch:
        fail(patch, "fsync", errno.EIO)
        with pytest.raises(StorageError):
            publish(part, path)
    assert not path.exists() and part.exists()
    publish(part, path)
    assert path.read_bytes() == b"x" and not part.exists()
    with pytest.raises(StorageError):
        publish(part, path)


def test_errors_have_the_right_exit_codes(tmp_path):
    for code, exit_code in ((errno.ENOSPC, 3), (errno.EIO, 3), (errno.EPERM, 2)):
        assert storage_error(OSError(code, os.strerror(code)), tmp_path).exit_code == exit_code


HOLD = (
    "import sys, time; from facelock.files import lock_file\n"
    "with lock_file(sys.argv[1]): print('held', flush=True); time.sleep(60)"
)


def test_a_lock_is_held_once_and_vanishes_with_its_holder(tmp_path):
    path = tmp_path / "lock"
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        began = time.monotonic()
        with pytest.raises(OutputBusyError) as caught, lock_file(path):
            pass
        assert time.monotonic() - began < 30 and caught.value.exit_code == 5
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    with lock_file(path), pytest.raises(OutputBusyError), lock_file(path):
        pass
    with lock_file(path):
        pass
