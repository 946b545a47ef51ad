"""Toy stages for a clip that is locked: coloured faces, on the left whom it is about, on the right somebody else.

python lock_toys.py CLIP OUT KILL_AT        # killed after so many calls of progress; for test_footage.py
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import toys
from test_closed_loop import GREEN, RED, Pack, locker, person
from test_people import scene
from torch import Tensor

from facelock import footage
from facelock.footage import Footage
from facelock.footage.parts import LockParts
from facelock.types import Identity

PLACES = ((0.25, 0.5), (0.75, 0.5))


def parts(**changes: object) -> LockParts:
    """Colours for faces; the lock makes the green person red."""
    pack = Pack(PLACES)
    values = {
        "recipe": toys.recipe(),
        "pack": pack,
        "locker": locker(pack),
        "restorer": None,
        "judge": toys.Judge(),
        "aligner": "toy",
        "perception": ("toy", "toy"),
        "weights": {},
        "device": "cpu",
        "reader": toys.pipeline(),
    }
    return LockParts(**{**values, **changes})


def wish() -> Identity:
    """Who the green person is to become."""
    return person("red", RED)


def frames(count: int = 10) -> Tensor:
    """(count, 3, 64, 64), the last one without faces."""
    return scene(count)


def lock(video: Path, **options: object) -> Footage:
    """Lock the green person of ``video`` in chunks of four frames."""
    footage.FRAMES = 4
    options = {"replace": [person("green", GREEN)], **options}
    return Footage(options.pop("parts", None) or parts(), video, [wish()], **options)


if __name__ == "__main__":
    left = int(sys.argv[3])

    def count(*_: object) -> None:
        global left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)

    lock(Path(sys.argv[1]), progress=count).save(sys.argv[2])
