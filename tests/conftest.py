"""What tests of several files share. Toy stages are in ``tests/toys.py``."""

from __future__ import annotations

import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def fresh_log() -> Iterator[None]:
    """A command that ran in this process sends the library's log to its own stderr; the next test starts anew."""
    yield
    log = logging.getLogger("facelock")
    log.handlers, log.propagate = [], True
    log.setLevel(logging.NOTSET)


@pytest.fixture
def toy_pipeline():
    """A pipeline of toy stages: 6 frames of 32 × 32 first, then 4 per chunk, 12 fps."""
    import toys

    return toys.pipeline()


@pytest.fixture
def ram_path() -> Iterator[Path]:
    """A temporary folder, in memory where there is such a place: for tests that write thousands of files."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108
    folder = Path(tempfile.mkdtemp(dir=memory))
    yield folder
    shutil.rmtree(folder)
