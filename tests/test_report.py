"""The report: complete, documented, readable again, and safe to open."""

from __future__ import annotations

import base64
import io
import json
import re
from fractions import Fraction
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from facelock.errors import FaceLockError
from facelock.report import Report, build_report, schema_text, write_report
from facelock.report.page import render_page
from facelock.report.plot import BUCKETS, buckets
from facelock.types import AlignRecord, ChunkRecords, Identity, LedgerRow, Status, Thresholds

DOCS = Path(__file__).parents[1] / "docs"
THRESHOLDS = Thresholds(far_1e2=0.2, far_1e3=0.3, far_1e4=0.4)
FPS = 12
POINTS = ((30.0, 30.0), (50.0, 30.0), (40.0, 40.0), (33.0, 50.0), (47.0, 50.0))


def picture() -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (200, 120, 90)).save(buffer, "JPEG")
    return base64.b64encode(buffer.getvalue()).decode()


def row(frame: int, name: str, similarity: float | None) -> LedgerRow:
    if similarity is None:
        return LedgerRow(frame, name, Status.ABSENT)
    status = Status.VERIFIED if similarity >= 0.4 else Status.WEAK if similarity >= 0.2 else Status.WRONG
    swing = float(np.sin(frame / 5))
    shifted = tuple((x + 3 * swing, y) for x, y in POINTS)
    return LedgerRow(
        frame, name, status, similarity, 0.1, (20.0, 20.0, 60.0, 70.0), 50.0, 10 * swing, 4 * swing,
        2 * swing, 150.0, 0.9, shifted, 0.9 + 0.05 * swing, 0.8 + 0.05 * swing, 0.02 if frame else None,
    )  # fmt: skip


def identity(name: str = "maria") -> Identity:
    return Identity(name, {}, torch.full((3, 32, 32), 0.5), f"{name}.png", "ab" * 32, ("grayscale",))


def clip(
    values: list[float | None], *, names: tuple[str, ...] = ("maria",), plain: bool = True, chunk: int = 12
) -> list[ChunkRecords]:
    """Records as the pipeline leaves them; the unlocked clip is .3 less alike."""
    records = []
    for start in range(0, len(values), chunk):
        part = range(start, min(start + chunk, len(values)))
        cast = [(frame, name) for frame in part for name in names]
        rows = tuple(row(frame, name, values[frame]) for frame, name in cast)
        without = [None if values[frame] is None else values[frame] - 0.3 for frame, _ in cast]
        unlocked = tuple(row(frame, name, value) for (frame, name), value in zip(cast, without, strict=True))
        seen = [(frame, name) for frame, name in cast if values[frame] is not None]
        records.append(
            ChunkRecords(
                start,
                len(part),
                rows,
                unlocked if plain else (),
                tuple(AlignRecord(frame, name, 0.3, 0.6, 0, True) for frame, name in seen) if plain else (),
                tuple(AlignRecord(frame, name, 0.6, 0.65, 0, True, 0.02) for frame, name in seen)
                if plain
                else (),
                {start: picture()},
                {"lock": 0.5, "judge": 0.25},
                {start: picture()} if plain else {},
            )
        )
    return records


def build(values: list[float | None], *, names: tuple[str, ...] = ("maria",), **options: Any) -> Report:
    plain = options.pop("plain", True)
    return build_report(
        options.pop("records", None) or clip(values, names=names, plain=plain),
        settings=options.pop(
            "settings", {"inputs": {"prompt": "a woman talking", "seed": 0}, "target": 0.99}
        ),
        identities=[identity(name) for name in names],
        thresholds=THRESHOLDS,
        fps=Fraction(FPS),
        frames=len(values),
        kind=options.pop("kind", "generate"),
        **options,
    )


def steady(frames: int, level: float = 0.8) -> list[float | None]:
    noise = np.random.default_rng(0).normal(size=frames) * 0.01
    return (level + noise).tolist()


def test_a_good_clip():
    report = build(steady(240))
    assert report.outcome == "held"
    assert report.share_recognised == 1.0
    assert report.misses(0.99) == 0
    assert report.frames == 240
    assert "240 of 240 frames (100 %)" in report.verdict
    assert "no measurable drift" in report.verdict
    maria = report.characters[0]
    assert maria.figures.coverage == 1.0
    assert maria.stillness.value == pytest.approx(1.0)
    assert maria.flicker.residual_ratio == pytest.approx(1.0)
    assert maria.honesty.ratio == pytest.approx(0.3 / 0.35, abs=1e-3)
    assert maria.unlocked.mean.value == pytest.approx(maria.figures.mean.value - 0.3)
    assert report.stage_seconds == {"lock": 10.0, "judge": 5.0}
    assert report.clip.fps == "12/1"
    assert report.clip.seconds == 20.0


def test_a_stranger_of_half_a_second_is_named_with_its_time():
    values = steady(240)
    values[120:126] = [0.05] * 6
    report = build(values)
    assert report.outcome == "lost"
    assert "somebody else is seen for 0.5 s, first at 10.0 s" in report.verdict
    assert report.misses(0.99) == 6
    assert report.misses(0.97) == 0
    spans = report.characters[0].figures.wrong_spans
    assert [(span.start, span.end) for span in spans] == [(10.0, 10.5)]


def test_a_drifting_clip_says_so():
    values = (0.9 - 0.2 * np.arange(720) / 720 + np.random.default_rng(0).normal(size=720) * 0.01).tolist()
    report = build(values)
    assert "and drifts (loss from start to end +0.1" in report.verdict
    assert report.characters[0].figures.drift.value == pytest.approx(0.17, abs=0.01)


def test_a_change_that_true_pictures_show_too_is_called_slight():
    values = (0.9 - 0.03 * np.arange(720) / 720 + np.random.default_rng(0).normal(size=720) * 0.002).tolist()
    report = build(values)
    assert not report.characters[0].figures.drift.contains(0.0)
    assert "and changes slightly (loss from start to end +0.02" in report.verdict


def test_no_drift_is_not_claimed_from_too_little():
    values = (0.8 + np.random.default_rng(0).normal(size=84).cumsum() * 0.01).tolist()
    report = build(values)
    estimate = report.characters[0].figures.drift
    assert estimate.contains(0.0) and estimate.high - estimate.low > 0.2
    assert "too short or too restless to tell a drift" in report.verdict
    assert "too short to tell" in build(steady(24)).verdict


def test_absent_faces_count_against_the_target():
    report = build(steady(10) + [None] * 10)
    assert report.share_recognised == 0.5
    assert report.misses(0.99) == 10
    assert report.outcome == "doubtful"


def test_the_target_comes_from_the_settings_or_the_call():
    assert build(steady(12), settings={"target": 0.5}).target == 0.5
    assert build(steady(12), target=0.7).target == 0.7
    assert build(steady(12), settings={}).target == 0.99


def test_copy_paste_is_an_alarm_not_a_success():
    report = build(steady(240), ceiling=0.7)
    assert report.outcome == "doubtful"
    assert "more alike than a second picture" in report.verdict
    assert "Copy-paste alarm" in render_page(report)


@pytest.mark.parametrize("frames", [1, 5])
@pytest.mark.parametrize("value", [0.8, None])
def test_short_and_faceless_clips_have_a_report_and_a_page(frames: int, value: float | None):
    report = build([value] * frames)
    assert report.characters[0].figures.slope.value is None
    assert report.characters[0].figures.slope.reason
    assert report.outcome == ("held" if value else "unseen")
    assert Report.from_json(report.to_json()) == report
    assert "</html>" in render_page(report)


def test_a_finished_clip_has_no_comparison_but_says_why():
    report = build(steady(60), plain=False, kind="verify", settings={"video": "clip.mp4"})
    maria = report.characters[0]
    assert maria.unlocked is None
    assert (
        maria.stillness.reason
        == maria.honesty.reason
        == maria.flicker.reason
        == "no unlocked clip was measured"
    )
    page = render_page(report)
    assert "clip.mp4" in page
    assert "Beside the unlocked clip" not in page


def test_several_characters():
    report = build(steady(24), names=("maria", "otto"))
    assert [entry.character for entry in report.ledger[:4]] == ["maria", "otto", "maria", "otto"]
    assert len(report.ledger) == 48
    assert "maria and otto are recognised in 48 of 48" in report.verdict
    assert render_page(report).count("<svg") == 2


def test_no_row_is_dropped():
    values = steady(24)
    values[7] = None
    report = build(values)
    assert [entry.frame for entry in report.ledger] == list(range(24))
    assert report.ledger[7].status is Status.ABSENT
    records = clip(values)
    broken = records[0].__class__(**{**vars(records[0]), "ledger": records[0].ledger[:-1]})
    with pytest.raises(FaceLockError, match="frame 11"):
        build(values, records=[broken, *records[1:]])


def test_rows_carry_what_the_stages_did():
    entry = build(steady(12)).ledger[3]
    assert (entry.lock.before, entry.lock.after, entry.lock.rung, entry.lock.met) == (0.3, 0.6, 0, True)
    assert entry.restore.consistency == 0.02
    assert entry.similarity_unlocked == pytest.approx(entry.similarity - 0.3, abs=1e-4)
    assert entry.status_unlocked is Status.VERIFIED
    assert entry.time == 0.25


def test_chunks_may_come_in_any_order():
    assert build(steady(60), records=clip(steady(60))[::-1]) == build(steady(60))


def test_the_json_comes_back_and_holds_a_row_per_line():
    report = build(steady(36))
    text = report.to_json()
    assert Report.from_json(text) == report
    assert json.loads(text)["schema"] == "facelock.report.v1"
    assert sum(line.startswith('    {"frame"') for line in text.splitlines()) == 72
    assert "NaN" not in text
    with pytest.raises(ValueError, match="unknown"):
        Report.from_json(text.replace('"kind"', '"unknown"', 1))


def test_write_report(tmp_path: Path):
    report = build(steady(12))
    write_report(report, tmp_path / "a.report.json", tmp_path / "a.report.html")
    assert Report.from_json((tmp_path / "a.report.json").read_bytes()) == report
    assert (tmp_path / "a.report.html").read_text(encoding="utf-8") == render_page(report)
    assert len(list(tmp_path.iterdir())) == 2


class Page(HTMLParser):
    """Collects what a page would load, and whether its tags nest."""

    void = frozenset({"meta", "img", "br", "link", "line", "rect", "circle", "polyline"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loads += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in self.void:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.void:
            assert self.open.pop() == tag


def test_the_page_is_self_contained_and_well_formed():
    text = render_page(build(steady(60)))
    page = Page(text)
    assert page.open == []
    assert page.loads and all(each.startswith("data:image/jpeg;base64,") for each in page.loads)
    assert "<script" not in text
    assert not re.search(r"url\(|@import", text)


def test_the_page_escapes_what_people_write():
    evil = '<script>alert("x")</script>'
    report = build(
        steady(12),
        settings={"inputs": {"prompt": evil}, evil: evil},
        names=("maria<b>",),
        encoder="<i>judge</i>",
    )
    page = render_page(report)
    assert "<script" not in page and "<b>" not in page.split("<section")[2] and "<i>" not in page
    assert "&lt;script&gt;" in page


def test_the_page_shows_the_main_figures():
    report = build(steady(240))
    page = render_page(report)
    slope = report.characters[0].figures.slope
    for shown in (
        "The face holds",
        "a woman talking",
        f"{slope.high:.3f}",
        "FAR 1e-4",
        "with the lock",
        "maria.png",
    ):
        assert shown in page


def test_long_clips_are_drawn_with_their_dips():
    values: list[tuple[float | None, Status]] = [(0.8, Status.VERIFIED)] * 50_000
    values[31_234] = (0.1, Status.WRONG)
    drawn = buckets(values, FPS)
    assert len(drawn) <= BUCKETS
    assert min(each.low for each in drawn if each.low is not None) == 0.1
    assert [each.status for each in drawn].count(Status.WRONG) == 1
    assert drawn[-1].end == pytest.approx(50_000 / FPS)


def test_the_contact_sheet_is_bounded_and_shows_the_worst():
    values = steady(1200)
    values[600:612] = [0.05] * 12
    report = build(values)
    regular = [each.frame for each in report.sheet if not each.worst]
    assert len(regular) == 24
    assert (regular[0], regular[-1]) == (0, 1188)
    assert [each.frame for each in report.sheet if each.worst] == [600]


def defects(value: Any, schema: dict[str, Any], root: dict[str, Any], path: str = "$") -> list[str]:
    """The few JSON-schema keywords that ours uses."""
    if "$ref" in schema:
        return defects(value, root["$defs"][schema["$ref"].rsplit("/", 1)[1]], root, path)
    if "anyOf" in schema:
        return [] if any(not defects(value, each, root, path) for each in schema["anyOf"]) else [path]
    kinds = {
        "object": dict,
        "array": list,
        "string": str,
        "boolean": bool,
        "null": type(None),
        "integer": int,
    }
    kind = schema.get("type")
    right = isinstance(value, int | float) if kind == "number" else isinstance(value, kinds.get(kind, object))
    if not right or (isinstance(value, bool) and kind in ("integer", "number")):
        return [f"{path}: {value!r} is no {kind}"]
    found = [path] if value not in schema.get("enum", [value]) or value != schema.get("const", value) else []
    if isinstance(value, dict):
        known, extra = schema.get("properties", {}), schema.get("additionalProperties", True)
        found += [f"{path}.{name} is missing" for name in schema.get("required", []) if name not in value]
        for name, item in value.items():
            inner = known.get(name, extra if isinstance(extra, dict) else {})
            found += [f"{path}.{name} is unknown"] if name not in known and extra is False else []
            found += defects(item, inner, root, f"{path}.{name}")
    if isinstance(value, list):
        first = schema.get("prefixItems", [])
        for place, item in enumerate(value):
            inner = first[place] if place < len(first) else schema.get("items", {})
            found += defects(item, inner or {}, root, f"{path}[{place}]")
    return found


def test_a_report_obeys_the_published_schema():
    schema = json.loads((DOCS / "report.schema.json").read_text(encoding="utf-8"))
    for report in (build(steady(60)), build([None] * 3, plain=False, kind="verify")):
        whole = json.loads(report.to_json())
        assert defects(whole, schema, schema) == []
    assert defects({**whole, "kind": "other"}, schema, schema)
    assert defects({**whole, "surplus": 1}, schema, schema)
    assert defects({**whole, "ledger": [{"frame": "x"}]}, schema, schema)


def test_the_published_schema_is_current():
    assert (DOCS / "report.schema.json").read_text(encoding="utf-8") == schema_text(), (
        "docs/report.schema.json is not what the models say; see the end of docs/report.md"
    )


def test_every_key_is_documented():
    text = (DOCS / "report.md").read_text(encoding="utf-8")
    schema = json.loads(schema_text())
    models = {"Report": schema, **schema["$defs"]}
    keys = {key for model in models.values() for key in model.get("properties", {})}
    assert len(keys) > 60
    assert sorted(key for key in keys if f"`{key}`" not in text) == []
