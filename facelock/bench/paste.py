"""``facelock bench paste``: a swapped crop put back on a 1080p frame, ours against insightface's ``paste_back``.

Both arms get the same frames, matrices and crops. insightface's arm runs its own ``INSwapper.get`` on a session that
returns the crop at once; what it does besides pasting (cutting out, the embedding) is timed with ``paste_back=False``
in the same round and taken off.
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from facelock.bench.insight import swapper_and_pack
from facelock.bench.tables import number, publish, require_cpu, table
from facelock.closed_loop import EDGE
from facelock.geometry import INSWAPPER128, paste_crops, paste_onto, similarity_from_landmarks, soft_mask
from facelock.protocols import Progress

HEIGHT, WIDTH = 1080, 1920
FACES = (120, 240, 480)
"""Sides in pixels of the pasted squares."""
ROUNDS = 15


@dataclass(frozen=True)
class Case:
    """One face on one frame."""

    frame: Tensor
    """(1, 3, 1080, 1920) float32 in [0, 1]."""
    landmarks: Tensor
    """(1, 5, 2)."""
    crop: Tensor
    """(1, 3, 128, 128)."""


def case(side: int, seed: int) -> Case:
    """A face whose square is ``side`` pixels wide, somewhere near the middle of a noisy frame."""
    g = torch.Generator().manual_seed(seed)
    frame = torch.rand(1, 3, HEIGHT, WIDTH, generator=g).mul(255).round() / 255
    template = torch.tensor(INSWAPPER128.template)
    corner = torch.rand(2, generator=g) * 200 + torch.tensor([WIDTH, HEIGHT]) / 2 - 100 - side / 2
    return Case(frame, (template * side / 128 + corner)[None], torch.rand(1, 3, 128, 128, generator=g))


class _Session:
    """Answers at once with the crop it was given."""

    def __init__(self, session: Any) -> None:
        self.crop = np.zeros((1, 3, 128, 128), np.float32)
        self.get_inputs, self.get_outputs = session.get_inputs, session.get_outputs

    def run(self, names: Any, inputs: Any) -> list[np.ndarray]:
        return [self.crop]


class _Face:
    """What ``INSwapper.get`` reads of its faces."""

    def __init__(self, landmarks: Tensor) -> None:
        self.kps = landmarks[0].numpy().astype(np.float64)
        self.normed_embedding = np.ones(512, np.float32) / np.float32(512**0.5)


class Theirs:
    """insightface's own code, without the network's time."""

    def __init__(self) -> None:
        with redirect_stdout(StringIO()):
            _, self.swapper = swapper_and_pack()
        self.session = self.swapper.session = _Session(self.swapper.session)

    def get(self, bgr: np.ndarray, case: Case, paste_back: bool) -> Any:
        """Its frame, or its crop and matrix."""
        self.session.crop = case.crop.numpy()
        face = _Face(case.landmarks)
        return self.swapper.get(bgr, face, face, paste_back=paste_back)


def untouched(before: Tensor, after: Tensor, landmarks: Tensor) -> bool:
    """Whether all pixels outside of the face's own square kept their bits."""
    white = torch.ones(1, 1, 128, 128).expand(1, 3, -1, -1)
    matrices = similarity_from_landmarks(landmarks, INSWAPPER128)
    square = paste_crops(
        torch.zeros_like(before), torch.zeros(1, dtype=torch.long), matrices, white, torch.ones(128, 128)
    )
    return bool(((before == after) | (square > 0)).all())


def run(
    *,
    seconds: float = 0.0,
    identities: int = 3,
    seed: int = 0,
    out: Path | None = None,
    device: str = "cpu",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Median milliseconds of ``ROUNDS`` interleaved rounds; ``identities`` is how many sizes of face.

    On the CPU, both arms on one thread each.
    """
    require_cpu("paste", device)
    theirs, results = Theirs(), []
    with warnings.catch_warnings(), one_thread():
        warnings.filterwarnings("ignore", "`estimate` is deprecated", FutureWarning)
        for number_, side in enumerate(FACES[:identities]):
            results.append(_measured(theirs, case(side, seed + number_), side))
            if progress:
                progress("sizes", number_ + 1, min(identities, len(FACES)))
    header = [
        "square",
        "insightface paste_back",
        "ours, in place",
        "ratio",
        "ours, a new frame",
        "ratio",
        "untouched",
    ]
    rows = [
        [f"{r['side']} px", *(number(r[k], 2) for k in COLUMNS), "yes" if r["untouched"] else "NO"]
        for r in results
    ]
    return publish(
        "paste", f"facelock bench paste --seed {seed}", table(header, rows), {"rows": results}, out
    )


@contextmanager
def one_thread() -> Iterator[None]:
    """torch and OpenCV on one thread, as they were afterwards."""
    threads = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads[0])
        cv2.setNumThreads(threads[1])


COLUMNS = ("insightface", "in_place", "ratio", "copied", "ratio_copied")


def _measured(theirs: Theirs, case: Case, side: int) -> dict[str, Any]:
    index, mask = torch.zeros(1, dtype=torch.long), soft_mask(128, EDGE)
    matrices = similarity_from_landmarks(case.landmarks, INSWAPPER128)
    bgr = np.ascontiguousarray(
        (case.frame[0].permute(1, 2, 0).numpy()[..., ::-1] * 255).round().astype(np.uint8)
    )
    own = case.frame.clone()
    arms: dict[str, Callable[[], Any]] = {
        "whole": lambda: theirs.get(bgr, case, True),
        "cut": lambda: theirs.get(bgr, case, False),
        "in_place": lambda: paste_onto(own, index, matrices, case.crop, mask),
        "copied": lambda: paste_crops(case.frame, index, matrices, case.crop, mask),
    }
    times: dict[str, list[float]] = {name: [] for name in arms}
    for r in range(ROUNDS + 1):
        for name, work in arms.items():
            began = time.perf_counter()
            work()
            if r:  # the first round warms up
                times[name].append(1000 * (time.perf_counter() - began))
    median = {name: statistics.median(row) for name, row in times.items()}
    pasting = median["whole"] - median["cut"]
    return {
        "side": side,
        "insightface": pasting,
        "in_place": median["in_place"],
        "ratio": pasting / median["in_place"],
        "copied": median["copied"],
        "ratio_copied": pasting / median["copied"],
        "untouched": untouched(case.frame, arms["copied"](), case.landmarks),
    }
