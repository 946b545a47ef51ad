"""What ``clip.report.json`` holds, as strict models; docs/report.md describes every key.

``Report.to_json`` and ``Report.from_json`` are exact inverses; ``schema_text`` is the JSON schema of it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter
from pydantic.dataclasses import dataclass

from facelock.bootstrap import Figure
from facelock.report.comparison import Flicker, Honesty, Stillness
from facelock.report.figures import ClipFigures
from facelock.report.spans import Span
from facelock.report.verdict import Outcome
from facelock.types import Status, Unreadable

SCHEMA: Literal["facelock.report.v1"] = "facelock.report.v1"
Point = tuple[float, float]


_record = dataclass(
    frozen=True,
    slots=True,
    config=ConfigDict(extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True),
)
"""What a long clip has ten thousands of: as strict as a model, at a fraction of its memory."""


@_record
class Row:
    """One frame and one expected character, as the judge measured it."""

    frame: int
    """Index in the clip, from 0."""
    time: float
    """Seconds from the clip's beginning."""
    character: str
    status: Status
    """verified, weak, wrong, unreadable or absent."""
    similarity: float | None = None
    """Cosine in [-1, 1] to the character's reference; null without a face."""
    margin: float | None = None
    """Own similarity minus the best other cast member's; null for a cast of one."""
    box: tuple[float, float, float, float] | None = None
    """x1, y1, x2, y2 in pixels of the final frame."""
    face_height: float | None = None
    """Pixels."""
    yaw: float | None = None
    """Degrees, estimated from five landmarks; positive looks to the picture's right."""
    pitch: float | None = None
    roll: float | None = None
    sharpness: float | None = None
    """Variance of the Laplacian of the canonical crop, brightness 0 to 255."""
    score: float | None = None
    """The detector's, in [0, 1]."""
    landmarks: tuple[Point, ...] | None = None
    """Left eye, right eye, nose, left and right corner of the mouth as seen, x y in pixels."""
    mouth: float | None = None
    """Brightness of the mouth relative to the face; it moves as the mouth opens."""
    eyes: float | None = None
    """The same for the eyes; it moves as lids and gaze do."""
    residual: float | None = None
    """Mean absolute difference in [0, 1] to the frame before, after motion compensation."""
    unreadable: Unreadable | None = None
    """Why the face cannot be judged: cropped, small, turned or blurred; null where it can, or there is none."""


@_record
class Step:
    """What the lock, or the restoration, did to one face."""

    before: float
    """Similarity before, by the loop's own recogniser (not the judge)."""
    after: float
    rung: int
    """Index of the strength kept; -1: the face was left as it was."""
    met: bool
    """Whether the stage's own target was reached."""
    consistency: float | None = None
    """Restoration only: RMS difference in [0, 1] between the result, downsampled, and what came in."""
    share: float | None = None
    """Restoration only: share of the restored face in what was kept, in [0, 1]; 0: the plainly enlarged face."""


@_record
class LedgerEntry(Row):
    """A row on the final frames, with what the stages did and how it was without them."""

    similarity_unlocked: float | None = None
    """The judge's similarity of the same frame as the blueprint wrote it."""
    status_unlocked: Status | None = None
    lock: Step | None = None
    restore: Step | None = None


class ClipInfo(Figure):
    """The clip that was measured."""

    frames: int
    fps: str
    """Exact, as a fraction: "12/1"."""
    seconds: float


class JudgeInfo(Figure):
    """The recogniser that measured; no stage optimises it."""

    encoder: str
    """Name and digest of its weights; empty where the caller did not say."""
    far_1e2: float
    """Similarity at which one stranger in 100 is accepted."""
    far_1e3: float
    far_1e4: float

    def recognises(self, row: Row) -> bool:
        """Whether the character is seen and above the threshold at FAR 1e-3, and nobody else is nearer."""
        seen = row.status in (Status.VERIFIED, Status.WEAK)
        return seen and row.similarity is not None and row.similarity >= self.far_1e3


class Part(Figure):
    """One part of a face, beside the reference."""

    part: str
    """head (skull, jaw, chin, cheeks, ears), eyes, brows, nose, mouth, skin or marks (freckles, mole)."""
    sigma: float
    """How surely it differs, ≥ 0: √(2 × log likelihood ratio) of "it differs" against "it does not"."""


class Shown(Span):
    """Which parts of a face differ in a stretch of the clip, by the mean of its readable frames."""

    whole: bool
    """True for the whole clip; false for a stretch of half a second or more in which it is not verified, and for the
    clip's last quarter where no such stretch reaches into it."""
    frames: int
    """Readable frames."""
    limit: float
    """Sigma that the strongest part of an unchanged face reaches in one of 100 clips of so many frames, at most 12:
    what lies below it is noise."""
    parts: tuple[Part, ...]
    """All of them, the most surely different first; each says what those before it do not explain."""


class Character(Figure):
    """One expected character: who it is and all its figures."""

    name: str
    source: str
    """File name of the reference."""
    sha256: str
    """Digest of the reference's bytes."""
    notes: tuple[str, ...] = ()
    """What was remarked while reading the reference."""
    portrait: str | None = None
    """The reference's face, base64 JPEG."""
    figures: ClipFigures
    """On the final frames."""
    unlocked: ClipFigures | None = None
    """On the frames as the blueprint wrote them; null for a finished clip."""
    stillness: Stillness
    flicker: Flicker
    honesty: Honesty
    differs: tuple[Shown, ...] = ()
    """What differs from the reference in the whole clip, in each weak span and at the end; empty unless it was asked
    for (``facelock verify --explain``)."""


class SheetFrame(Figure):
    """One moment of the contact sheet."""

    frame: int
    time: float
    image: str
    """Faces of the cast, one above the other, base64 JPEG."""
    image_unlocked: str | None = None
    """The same as the blueprint wrote them."""
    worst: bool = False
    """True for the moments that are least alike, false for those evenly along time."""


class Report(Figure):
    """Everything FaceLock knows about a clip."""

    schema_: Literal["facelock.report.v1"] = Field(default=SCHEMA, alias="schema")
    facelock: str
    """Version that wrote it."""
    kind: Literal["generate", "verify", "lock"]
    """generate: made by FaceLock; verify: a finished clip was measured; lock: a clip's faces were locked."""
    outcome: Outcome
    """held, doubtful, lost or unseen: the verdict as one word."""
    verdict: str
    """The verdict as one sentence."""
    target: float
    """Share of rows in which the character should be recognised."""
    share_recognised: float
    """Rows above the judge's threshold at FAR 1e-3 ÷ all rows: unreadable and absent ones count against it."""
    clip: ClipInfo
    judge: JudgeInfo
    characters: tuple[Character, ...]
    stage_seconds: dict[str, float]
    """Wall seconds per stage; differs from run to run."""
    settings: dict[str, Any]
    """Prompt, seed, recipe and weights that made the clip."""
    sheet: tuple[SheetFrame, ...]
    ledger: tuple[LedgerEntry, ...]
    """A row per frame and character, frame by frame."""
    ledger_unlocked: tuple[Row, ...]
    """The same on the frames as the blueprint wrote them; empty where they were not measured."""

    @property
    def frames(self) -> int:
        """Frames of the clip."""
        return self.clip.frames

    def misses(self, target: float) -> int:
        """0 when at least ``target`` (a share in [0, 1]) of the rows is recognised, else how many frames
        hold a character that is not."""
        if self.share_recognised >= target:
            return 0
        return len({row.frame for row in self.ledger if not self.judge.recognises(row)})

    def to_json(self) -> str:
        """The documented JSON; ledger rows stand on one line each."""
        whole = self.model_dump(mode="json", by_alias=True, exclude={"ledger", "ledger_unlocked"})
        head = json.dumps(whole, indent=2, ensure_ascii=False, allow_nan=False).removesuffix("\n}")
        ledger, unlocked = _lines(self.ledger, LedgerEntry), _lines(self.ledger_unlocked, Row)
        return f'{head},\n  "ledger": {ledger},\n  "ledger_unlocked": {unlocked}\n}}\n'

    @classmethod
    def from_json(cls, text: str | bytes) -> Report:
        """Read a report back; raises ``pydantic.ValidationError`` (a ValueError) when it is not one."""
        return cls.model_validate_json(text)


def _lines(rows: Sequence[Row], kind: type[Row]) -> str:
    """A JSON array with one row per line, made row by row: there may be very many."""
    writer = TypeAdapter(kind)
    lines = (writer.dump_json(row).decode() for row in rows)
    return "[\n    " + ",\n    ".join(lines) + "\n  ]" if rows else "[]"


def schema_text() -> str:
    """The JSON schema of a report, as docs/report.schema.json holds it."""
    schema = Report.model_json_schema(by_alias=True, mode="serialization")
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"
