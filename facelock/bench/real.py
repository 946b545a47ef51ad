"""``facelock bench real``: recognisers on real photos, and ``verify`` on real videos against the libraries' own loop.

The photos, videos and weights lie outside of the project (``--assets``); nothing of them goes into the results
but figures.

- similarity: same and different people on photos, per recogniser;
- equality and speed: ``verify``'s similarity per frame against a loop over ``cv2.FaceDetectorYN`` and
  ``cv2.FaceRecognizerSF``, or insightface's own classes, as a user of these would write it. Similarities are
  compared with detection at the same size in both arms; the loop's speed is that of detection at full size;
- alarms: real people do not drift, so neither may they in the report; half a second of somebody else is found,
  and a turned head is told from both.
"""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from facelock.bench.real_photos import ASSETS, YUNET, measure, open_pack, recognisers
from facelock.bench.tables import interval, number, publish, require_cpu, table
from facelock.errors import InputError
from facelock.faces import Pack, YunetDetector
from facelock.lanes import ahead
from facelock.ledger import Judge
from facelock.perception import open_perception
from facelock.protocols import Progress
from facelock.report.figures import Series, clip_figures
from facelock.types import Chunk, Identity, LedgerRow, Status
from facelock.video.writing import probe, read_chunks

RECOGNISER = "recognisers/arcface_mbf_y1_ms1m.onnx"
"""Opens in ``cv2.FaceRecognizerSF`` too."""
SCRFD = "detectors/det_500m.onnx"
INSIGHT = "recognisers/w600k_mbf_dequant_fp32.onnx"
ROUNDS = 3
HELD = 24
"""Frames read at once, as ``verify`` does."""
FULL = 8192
"""A detection size that leaves every frame as it is."""
INJECTED = 0.5
"""Seconds of somebody else."""


def run(
    *,
    seconds: float = 4.0,
    identities: int = 9,
    seed: int = 0,
    out: Path | None = None,
    device: str = "cpu",
    assets: Path = ASSETS,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """All three, on the first ``seconds`` of ``identities`` videos for speed, on whole videos for alarms.

    Raises ``InputError`` when the assets are not there.
    """
    require_cpu("real", device)
    everyone = sorted((assets / "videos").glob("*.mp4"))
    videos = everyone[:identities]
    if not videos or not recognisers(assets):
        raise InputError(
            f"{assets}: no photos, videos and weights are here. Give their folder with --assets."
        )
    photos, _ = measure(assets)
    speeds, alarms = [], []
    arms = (opencv_arm(assets), insightface_arm(assets))
    for done, video in enumerate(videos):
        speeds += [race(arm, video, seconds) for arm in arms]
        alarms.append(alarm(assets, video, everyone[(done + 1) % len(everyone)]))
        if progress:
            progress("videos", done + 1, len(videos))
    command = f"facelock bench real --seconds {seconds:g} --identities {len(videos)}"
    body = "\n\n".join((photo_table(photos), speed_table(speeds), alarm_table(alarms)))
    return publish("real", command, body, {"photos": photos, "speed": speeds, "alarms": alarms}, out)


# -- equality and speed ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Arm:
    """A library's own loop and our packs with the same weights."""

    name: str
    plain: Callable[[Path, int, np.ndarray | None], tuple[list[float], np.ndarray]]
    """(video, frames, reference or None) → similarities, and the reference: the first frame's embedding."""
    same: Pack
    """Detection at the library's size."""
    usual: Pack
    """As ``verify`` looks."""


def opencv_arm(assets: Path) -> Arm:
    """YuNet and y1 through OpenCV."""
    usual = open_pack(assets, assets / RECOGNISER)
    same = Pack(
        YunetDetector(assets / YUNET, detection_size=FULL), usual.encoder, cut=usual.cut, look_again=True
    )

    nets = opencv_nets(assets / YUNET, assets / RECOGNISER)

    def plain(video: Path, frames: int, reference: np.ndarray | None) -> tuple[list[float], np.ndarray]:
        return opencv_watch(*nets, video, frames, reference)

    return Arm("OpenCV", plain, same, usual)


def insightface_arm(assets: Path) -> Arm:
    """SCRFD and MobileFaceNet through insightface."""
    usual = open_perception(f"{assets / SCRFD}+{assets / INSIGHT}").faces
    assert isinstance(usual, Pack)  # noqa: S101 - what the grammar's pair gives

    nets = insightface_nets(assets / SCRFD, assets / INSIGHT)

    def plain(video: Path, frames: int, reference: np.ndarray | None) -> tuple[list[float], np.ndarray]:
        return insightface_watch(*nets, video, frames, reference)

    return Arm("insightface", plain, usual, usual)


def opencv_loop(
    detector: Path, recogniser: Path, video: Path, frames: int, reference: np.ndarray | None
) -> tuple[list[float], np.ndarray]:
    """What a user of OpenCV writes: read, detect at full size, align, embed, compare."""
    return opencv_watch(*opencv_nets(detector, recogniser), video, frames, reference)


def opencv_nets(detector: Path, recogniser: Path) -> tuple[Any, Any]:
    """Loaded once, before the clock runs, as ours are."""
    finder = cv2.FaceDetectorYN.create(str(detector), "", (320, 320), 0.6)
    return finder, cv2.FaceRecognizerSF.create(str(recogniser), "")


def opencv_watch(
    finder: Any, reader: Any, video: Path, frames: int, reference: np.ndarray | None
) -> tuple[list[float], np.ndarray]:
    """The loop itself."""
    capture = cv2.VideoCapture(str(video))
    finder.setInputSize(
        (int(capture.get(cv2.CAP_PROP_FRAME_WIDTH)), int(capture.get(cv2.CAP_PROP_FRAME_HEIGHT)))
    )
    similarities = []
    for _ in range(frames):
        there, picture = capture.read()
        if not there:
            break
        faces = finder.detect(picture)[1]
        found = [] if faces is None else [reader.feature(reader.alignCrop(picture, face)) for face in faces]
        units = [feature[0] / np.linalg.norm(feature[0]) for feature in found]
        reference = units[0] if reference is None else reference
        similarities.append(max((float(unit @ reference) for unit in units), default=float("nan")))
    return similarities, _some(reference)


def insightface_nets(detector: Path, recogniser: Path) -> tuple[Any, Any]:
    """Loaded once, before the clock runs, as ours are."""
    from contextlib import redirect_stdout
    from io import StringIO

    from insightface.model_zoo import get_model

    with redirect_stdout(StringIO()):
        finder = get_model(str(detector), providers=["CPUExecutionProvider"])
        finder.prepare(-1, input_size=(640, 640), det_thresh=0.5)
        reader = get_model(str(recogniser), providers=["CPUExecutionProvider"])
    return finder, reader


def insightface_watch(
    finder: Any, reader: Any, video: Path, frames: int, reference: np.ndarray | None
) -> tuple[list[float], np.ndarray]:
    """The loop itself."""
    import warnings

    from insightface.app.common import Face

    capture, similarities = cv2.VideoCapture(str(video)), []
    for _ in range(frames):
        there, picture = capture.read()
        if not there:
            break
        boxes, points = finder.detect(picture)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`estimate` is deprecated", FutureWarning)  # in its face_align
            faces = [
                Face(bbox=box[:4], kps=kps, det_score=box[4]) for box, kps in zip(boxes, points, strict=True)
            ]
            for face in faces:
                reader.get(picture, face)
        units = [face.normed_embedding for face in faces]
        reference = units[0] if reference is None and units else reference
        similarities.append(max((float(unit @ reference) for unit in units), default=float("nan")))
    return similarities, _some(reference)


def _some(reference: np.ndarray | None) -> np.ndarray:
    if reference is None:
        raise InputError("A video shows no face. Give other --assets.")
    return reference


def ours(pack: Pack, video: Path, frames: int, reference: np.ndarray) -> list[float]:
    """What ``verify`` does per frame: read, look, write the ledger's rows."""
    who = Identity("who", {pack.encoder.id: torch.from_numpy(reference)})
    rows = [row for rows in watch(Judge(pack), limited(video, frames), who) for row in rows]
    return [float("nan") if row.similarity is None else row.similarity for row in rows]


def limited(video: Path, frames: int) -> Iterator[Chunk]:
    """The first frames of a video, as ``verify`` reads them."""
    yield from ahead(islice(read_chunks(video, HELD, usual=True, raw=True), frames // HELD))


def watch(judge: Judge, chunks: Iterator[Chunk], who: Identity) -> Iterator[Sequence[LedgerRow]]:
    """The ledger's rows, chunk by chunk."""
    before: Tensor | None = None
    for chunk in chunks:
        yield judge.measure(chunk.frames, [who], start=chunk.start, before=before)
        before = chunk.frames[-1]


def race(arm: Arm, video: Path, seconds: float) -> dict[str, Any]:
    """Both arms interleaved, medians of ``ROUNDS``, the first round warming up; wall and processor time."""
    info = probe(video)
    frames = max(1, min(info.frames, round(seconds * float(info.fps))) // HELD) * HELD
    theirs, reference = arm.plain(video, frames, None)
    works: dict[str, Callable[[], Any]] = {
        "plain": lambda: arm.plain(video, frames, reference),
        "same": lambda: ours(arm.same, video, frames, reference),
        "usual": lambda: ours(arm.usual, video, frames, reference),
    }
    if arm.same is arm.usual:
        del works["usual"]
    wall: dict[str, list[float]] = {name: [] for name in works}
    busy: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(ROUNDS + 1):
        for name, work in works.items():
            began, used = time.perf_counter(), _used()
            work()
            if turn:
                wall[name].append((time.perf_counter() - began) * 1000 / frames)
                busy[name].append((_used() - used) * 1000 / frames)
    mine = np.array(ours(arm.same, video, frames, reference))
    both = np.isfinite(mine) & np.isfinite(np.array(theirs))
    ms = {name: statistics.median(times) for name, times in wall.items()}
    cpu = {name: statistics.median(times) for name, times in busy.items()}
    return {
        "arm": arm.name,
        "video": video.stem,
        "size": f"{info.width}x{info.height}",
        "frames": frames,
        "compared": int(both.sum()),
        "max_difference": float(np.abs(mine - theirs)[both].max()),
        "ms": ms,
        "cpu_ms": cpu,
        "ratio_same": ms["plain"] / ms["same"],
        "ratio": ms["plain"] / ms.get("usual", ms["same"]),
        "cpu_ratio": cpu["plain"] / cpu.get("usual", cpu["same"]),
    }


def _used() -> float:
    """Seconds of processor time of this process and of the decoders that it has started and ended."""
    spent = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(each.ru_utime + each.ru_stime for each in spent)


# -- alarms ------------------------------------------------------------------------------------------------


def alarm(assets: Path, video: Path, other: Path) -> dict[str, Any]:
    """What a report says of a real clip, of the same with somebody else cut in, and of one who turns away."""
    perception = open_perception(f"{assets / YUNET}+{assets / RECOGNISER}", str(assets / INSIGHT))
    judge = Judge(perception.judge)
    fps = float(probe(video).fps)
    who = first_face(judge, video)
    rows = [row for rows in watch(judge, ahead(read_chunks(video, HELD, usual=True)), who) for row in rows]
    figures = clip_figures(Series.from_rows(rows, frames=len(rows)), judge.thresholds, fps=fps)
    wrong = injected(judge, video, other, who, fps)
    return {
        "video": video.stem,
        "frames": len(rows),
        "readable": figures.readable,
        "minimum": figures.minimum,
        "mean": figures.mean.value,
        "slope": figures.slope.model_dump(),
        "slope_holds_0": figures.slope.low is None or figures.slope.contains(0.0),
        "wrong_rows": figures.statuses.wrong,
        "turned": sum(span.end - span.start for span in figures.spans if span.reason == "turned"),
        "most_turned": max((abs(row.yaw) for row in rows if row.yaw is not None), default=None),
        "injected": wrong,
    }


def first_face(judge: Judge, video: Path) -> Identity:
    """An identity of the first frame's surest face."""
    frame = next(read_chunks(video, 1, usual=True)).frames
    faces = judge.pack.detect(frame)
    best = faces.select(torch.arange(len(faces))[:1])
    return Identity("who", {judge.encoder: judge.pack.embed(frame, best)[0]})


def injected(judge: Judge, video: Path, other: Path, who: Identity, fps: float) -> dict[str, Any]:
    """Half a second of ``other`` in the middle of two seconds: rows found wrong, and the span's overlap."""
    count, length = round(2 * fps), round(INJECTED * fps)
    own = first_frames(video, count)
    stranger = first_frames(other, length)
    begin = (len(own) - length) // 2
    parts = [own[:begin], stranger, own[begin + length :]]
    rows = [row for part in parts for row in judge.measure(part, [who])]
    rows = [replace(row, frame=place) for place, row in enumerate(rows)]
    inside = range(begin, begin + length)
    caught = sum(rows[frame].status is Status.WRONG for frame in inside)
    figures = clip_figures(Series.from_rows(rows, frames=len(rows)), judge.thresholds, fps=fps)
    found = [
        span for span in figures.wrong_spans if span.start <= inside[-1] / fps and span.end > begin / fps
    ]
    false = sum(row.status is Status.WRONG for row in rows) - caught
    return {"frames": length, "caught": caught, "span": bool(found), "false": false}


def first_frames(video: Path, count: int) -> Tensor:
    """The first ``count`` frames, or all of a shorter video."""
    return torch.cat([chunk.frames for chunk in islice(read_chunks(video, count, usual=True), 1)])


# -- tables ------------------------------------------------------------------------------------------------


def photo_table(photos: Sequence[Any]) -> str:
    """Same and different people, per recogniser."""
    rows = [
        [
            p["encoder"],
            *(number(p["same"][key]) for key in ("mean", "p5", "min")),
            *(number(p["different"][key]) for key in ("mean", "p95", "max")),
            number(p["auc"], 5),
            " / ".join(number(p["thresholds"][key]) for key in ("far_1e2", "far_1e3", "far_1e4")),
        ]
        for p in photos
    ]
    counted = f"{photos[0]['same_pairs']} same pairs, {photos[0]['different_pairs']} different ones"
    head = [
        "recogniser",
        "same mean",
        "p5",
        "min",
        "different mean",
        "p95",
        "max",
        "AUC",
        "FAR 1e-2 / 1e-3 / 1e-4",
    ]
    return f"{counted}\n\n{table(head, rows)}"


def speed_table(speeds: Sequence[Any]) -> str:
    """Largest difference and speed, per library and video."""
    rows = [
        [
            s["arm"],
            s["video"],
            s["size"],
            s["compared"],
            number(s["max_difference"], 4),
            number(s["ms"]["plain"], 1),
            number(s["ms"]["same"], 1),
            number(s["ms"].get("usual"), 1),
            number(s["ratio_same"], 2),
            number(s["ratio"], 2),
            number(s["cpu_ratio"], 2),
        ]
        for s in speeds
    ]
    head = [
        "library", "video", "size", "frames", "max difference", "its loop, ms", "verify, same detection size",
        "verify, usual size", "ratio, same size", "ratio", "ratio of processor time",
    ]  # fmt: skip
    return table(head, rows)


def alarm_table(alarms: Sequence[Any]) -> str:
    """What the report says of clips of real people, and of half a second of somebody else."""
    rows = [
        [
            a["video"],
            f"{a['readable']}/{a['frames']}",
            number(a["minimum"], 2),
            interval(a["slope"], 2),
            "yes" if a["slope_holds_0"] else "NO",
            a["wrong_rows"],
            f"{number(a['turned'], 1)} ({number(a['most_turned'], 0)}°)",
            f"{a['injected']['caught']}/{a['injected']['frames']}, span {'yes' if a['injected']['span'] else 'NO'}",
        ]
        for a in alarms
    ]
    head = [
        "video", "readable", "minimum", "slope per minute", "holds 0", "wrong rows", "turned, s (most)",
        "somebody else, frames found",
    ]  # fmt: skip
    return table(head, rows)
