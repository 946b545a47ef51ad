"""``facelock bench warp``: real videos locked to another person's photos by the aligner ``warp``, measured by judges.

Half of a person's photos is the reference; the judges compare with the other half, which no stage has seen. Beside it
stands a third person, whom the result must not resemble. The guide in the loop is none of the judges.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from facelock.alignment.warp import WarpAligner
from facelock.appearance import residual
from facelock.bench.real_photos import ASSETS, YUNET
from facelock.bench.tables import number, publish, require_cpu, table
from facelock.errors import InputError
from facelock.faces.dense import DenseReader, load_reader, spans
from facelock.geometry import REFERENCE384, estimate_pose, similarity_from_landmarks, warp_crops
from facelock.images import read_picture
from facelock.lock_loop import Locker
from facelock.perception import open_perception
from facelock.protocols import FacePack, Progress
from facelock.types import Faces, Identity
from facelock.video.writing import probe, read_chunks

GUIDE = "recognisers/arcface_mbf_y1_ms1m.onnx"
JUDGES = {
    "w600k": "recognisers/w600k_mbf_dequant_fp32.onnx",
    "mobileface v2": "recognisers/mobileface_id_v2.onnx",
}
READER = "landmarks/face_landmarker.task"
LADDER, TARGET = (1.0, 1.5, 2.0), 0.5
CHUNK = 8
SMALLEST, FARTHEST = 40.0, 60.0
"""A face is readable from this height in pixels, up to this yaw in degrees."""


@dataclass(frozen=True)
class Eyes:
    """Everything that looks: the guide's pack, the judges' packs and the landmark reader."""

    guide: FacePack
    judges: dict[str, FacePack]
    reader: DenseReader

    @classmethod
    def open(cls, assets: Path, device: str = "cpu") -> Eyes:
        """Open the weights of ``assets``. Raises ``InputError`` when they are not there."""
        needed = [assets / name for name in (YUNET, GUIDE, READER, *JUDGES.values())]
        missing = [path for path in needed if not path.is_file()]
        if missing:
            raise InputError(
                f"{missing[0]}: is not there, and this benchmark needs real weights, photos and videos. "
                "Give their folder with --assets DIR."
            )
        packs = [
            open_perception(f"{assets / YUNET}+{assets / name}", device=device).faces
            for name in (GUIDE, *JUDGES.values())
        ]
        return cls(packs[0], dict(zip(JUDGES, packs[1:], strict=True)), load_reader(assets / READER))

    @property
    def packs(self) -> list[FacePack]:
        """The guide's and the judges'."""
        return [self.guide, *self.judges.values()]


@dataclass(frozen=True)
class Person:
    """Somebody's photos: half to lock to, half to compare with."""

    name: str
    reference: Identity
    unseen: dict[str, Tensor]
    """Encoder's id → centre (D,) of the photos that no stage sees."""


def people(assets: Path, eyes: Eyes) -> list[Person]:
    """Everybody with three photos or more, in the order of their names."""
    folders = sorted(f for f in (assets / "photos").glob("*/*") if f.is_dir())
    return [_person(folder, eyes) for folder in folders if len(list(folder.glob("*.jpg"))) >= 3]


def _person(folder: Path, eyes: Eyes) -> Person:
    crops: list[Tensor] = []
    rows: dict[str, list[Tensor]] = {pack.encoder.id: [] for pack in eyes.packs}
    for path in sorted(folder.glob("*.jpg")):
        frames = read_picture(path).frames
        faces = largest(eyes.guide.detect(frames))
        if len(faces):
            matrices = similarity_from_landmarks(faces.landmarks, REFERENCE384)
            crops.append(warp_crops(frames, faces.frame, matrices, REFERENCE384.size)[0].clamp(0, 1))
            for pack in eyes.packs:
                rows[pack.encoder.id].append(pack.embed(frames, faces)[0])
    seen = {key: normalize(torch.stack(row[::2]).mean(0), dim=0) for key, row in rows.items()}
    unseen = {key: normalize(torch.stack(row[1::2]).mean(0), dim=0) for key, row in rows.items()}
    own = torch.stack(rows[eyes.guide.encoder.id][::2]) @ seen[eyes.guide.encoder.id]
    best = torch.stack(crops[::2])[own.argsort(descending=True)]
    return Person(folder.name, Identity(folder.name, seen, crops=best), unseen)


def largest(faces: Faces) -> Faces:
    """The largest face of each frame."""
    area = (faces.box[:, 2:] - faces.box[:, :2]).prod(1)
    frames = sorted(set(faces.frame.tolist()))
    best = [int(torch.where(faces.frame == frame, area, -1).argmax()) for frame in frames]
    return faces.select(torch.tensor(best, dtype=torch.long))


@dataclass
class Timed:
    """An aligner that counts its faces and seconds."""

    inner: WarpAligner
    faces: int = 0
    seconds: float = 0.0
    only_changes: bool = True

    def __post_init__(self) -> None:
        self.crop, self.encoder = self.inner.crop, self.inner.encoder

    def align(
        self, crops: Tensor, identity: Tensor, strength: float, *, references: Sequence[Identity] = ()
    ) -> Tensor:
        """See :class:`facelock.protocols.Aligner`."""
        began = time.perf_counter()
        out = self.inner.align(crops, identity, strength, references=references)
        self.faces, self.seconds = self.faces + len(crops), self.seconds + time.perf_counter() - began
        return out


@dataclass
class Tally:
    """What one video gave, frame by frame; only readable frames count."""

    own: dict[str, list[tuple[float, float]]] = field(default_factory=lambda: {name: [] for name in JUDGES})
    """Judge → similarity to the person before and after."""
    third: dict[str, list[tuple[float, float]]] = field(default_factory=lambda: {name: [] for name in JUDGES})
    """The same to somebody else."""
    expression: list[float] = field(default_factory=list)
    """Mean landmark error in % of the distance between the eyes."""
    restless: list[tuple[float, float]] = field(default_factory=list)
    """Change between neighbouring frames that no motion explains, before and after."""
    lost: int = 0
    """Readable frames whose face is no longer found."""


def run(
    *,
    seconds: float = 4.0,
    identities: int = 1,
    seed: int = 0,
    out: Path | None = None,
    device: str = "cpu",
    assets: Path = ASSETS,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Lock the first ``seconds`` of each video to ``identities`` people each; ``seed`` rotates who. On the CPU.

    Raises ``InputError`` when ``assets`` lacks what is needed.
    """
    require_cpu("warp", device)
    eyes = Eyes.open(assets)
    cast = people(assets, eyes)
    videos = sorted((assets / "videos").glob("*.mp4"))
    jobs = [
        (video, cast[(v + seed + 3 * k) % len(cast)], cast[(v + seed + 3 * k + 1) % len(cast)])
        for v, video in enumerate(videos)
        for k in range(identities)
    ]
    rows: list[dict[str, Any]] = []
    for done, (video, person, third) in enumerate(jobs):
        rows.append(measure(video, person, third, eyes, seconds))
        if progress:
            progress("videos", done + 1, len(jobs))
    command = f"facelock bench warp --seconds {seconds:g} --identities {identities} --seed {seed}"
    return publish("warp", command, _table(rows), {"rows": rows, "summary": _summary(rows)}, out)


def measure(video: Path, person: Person, third: Person, eyes: Eyes, seconds: float) -> dict[str, Any]:
    """One video towards one person: the table's row."""
    aligner = Timed(WarpAligner(encoder=eyes.guide.encoder.id, reader=eyes.reader))
    locker = Locker(eyes.guide, aligner, ladder=LADDER, target=TARGET)
    tally, last = Tally(), None
    for frames in _frames(video, seconds):
        locked, _ = locker.lock(frames, [person.reference])
        last = _count(tally, frames, locked, person, third, eyes, last)
    return {
        "video": video.stem,
        "person": person.name,
        "readable": len(tally.expression) + tally.lost,
        **_figures(tally),
        "ms": 1000 * aligner.seconds / max(aligner.faces, 1),
        "calls": aligner.faces,
    }


def _frames(video: Path, seconds: float) -> Iterator[Tensor]:
    wanted = round(seconds * float(probe(video).fps))
    for chunk in read_chunks(video, CHUNK):
        if chunk.start >= wanted:
            return
        yield chunk.frames[: wanted - chunk.start]


Pair = tuple[Tensor, Tensor]


def _count(
    tally: Tally,
    frames: Tensor,
    locked: Tensor,
    person: Person,
    third: Person,
    eyes: Eyes,
    last: Pair | None,
) -> Pair | None:
    """Measure a chunk; returns the last face's crops, before and after, for the next chunk's first frame."""
    faces = largest(eyes.guide.detect(frames))
    height, yaw = faces.box[:, 3] - faces.box[:, 1], estimate_pose(faces.landmarks)[0].abs()
    faces = faces.select((height >= SMALLEST) & (yaw <= FARTHEST))
    after = largest(eyes.guide.detect(locked))
    both = [int(torch.nonzero(after.frame == f)[0]) for f in faces.frame.tolist() if (after.frame == f).any()]
    tally.lost += len(faces) - len(both)
    after = after.select(torch.tensor(both, dtype=torch.long))
    faces = faces.select(torch.isin(faces.frame, after.frame))
    for name, pack in eyes.judges.items():
        before_rows, after_rows = pack.embed(frames, faces), pack.embed(locked, after)
        for whose, goal in ((tally.own, person), (tally.third, third)):
            centre = goal.unseen[pack.encoder.id]
            whose[name] += zip((before_rows @ centre).tolist(), (after_rows @ centre).tolist(), strict=True)
    matrices = similarity_from_landmarks(faces.landmarks, REFERENCE384)
    crops = [warp_crops(f, faces.frame, matrices, REFERENCE384.size) for f in (frames, locked)]
    points = [eyes.reader.read(c)[0] for c in crops]
    error = (points[1] - points[0]).square().sum(-1).sqrt().mean(1) / spans(points[0], eyes.reader.layout)
    tally.expression += (100 * error).tolist()
    for pair in zip(*crops, strict=True):
        if last is not None:
            tally.restless.append((residual(last[0], pair[0]), residual(last[1], pair[1])))
        last = pair
    return last


def _figures(tally: Tally) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    for name in JUDGES:
        own, third = tally.own[name], tally.third[name]
        readable = len(own) + tally.lost
        figures[name] = {
            "before": _mean(b for b, _ in own),
            "after": _mean(a for _, a in own),
            "raised": sum(a > b for b, a in own) / max(readable, 1),
            "third_before": _mean(b for b, _ in third),
            "third_after": _mean(a for _, a in third),
        }
    figures["expression"] = _mean(tally.expression)
    calm, restless = _mean(b for b, _ in tally.restless), _mean(a for _, a in tally.restless)
    figures["flicker"] = restless / calm if calm else None
    return figures


def _mean(values: Any) -> float:
    listed = list(values)
    return statistics.fmean(listed) if listed else float("nan")


def _summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Over all readable frames, each frame counting once."""
    rows = [row for row in rows if row["readable"]]
    total = max(sum(row["readable"] for row in rows), 1)
    keys = ("before", "after", "raised", "third_before", "third_after")
    judges = {
        name: {key: sum(row[name][key] * row["readable"] for row in rows) / total for key in keys}
        for name in JUDGES
    }
    means = {key: _mean(row[key] for row in rows) for key in ("expression", "flicker", "ms")}
    return {"readable": total, **judges, **means}


def _table(rows: Sequence[dict[str, Any]]) -> str:
    judged = [f"{name} {what}" for name in JUDGES for what in ("before → after", "raised", "third person")]
    header = ["video", "person", "readable", *judged, "landmarks, % of eyes", "flicker ×", "ms a face"]
    whole = {"video": "all", "person": "", **_summary(rows)}
    return table(header, [_line(row) for row in (*rows, whole)])


def _line(row: dict[str, Any]) -> list[str]:
    cells = [row["video"], row["person"], str(row["readable"])]
    for name in JUDGES:
        f = row[name]
        cells += [f"{f['before']:+.2f} → {f['after']:+.2f}", f"{f['raised']:.1%}"]
        cells.append(f"{f['third_before']:+.2f} → {f['third_after']:+.2f}")
    return [*cells, number(row["expression"], 1), number(row["flicker"], 2), number(row["ms"], 0)]
