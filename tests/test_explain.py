"""Which part of a face differs: the arithmetic, the table, changed faces, and the command end to end."""

from __future__ import annotations

import json
import shutil
from fractions import Fraction

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional

import facelock
from facelock import explain
from facelock.assets import asset_dir
from facelock.bench import cast
from facelock.bench import explain as bench
from facelock.cli import main
from facelock.errors import ConfigError, ModelError
from facelock.explain import Difference, PartsTable, table_of
from facelock.faces import load_encoder
from facelock.miniature import data, inside_crate, parts_of_face
from facelock.miniature.parameters import IDENTITY, identity_vector
from facelock.nets.crate import Crate
from facelock.perception import open_perception
from facelock.report.explained import _end, said, where
from facelock.report.model import Part, Shown
from facelock.types import Thresholds
from facelock.video.writing import SegmentWriter, join_segments

JUDGE = asset_dir("models") / "miniature" / "judge"
AXES = torch.eye(6, dtype=torch.float64)


def table(encoder: str = "toy@0123456789ab") -> PartsTable:
    """Brows are the first two axes, the nose the third and some of the first."""
    signals = {"brows": AXES[:2], "nose": (AXES[2] + 0.8 * AXES[0])[None], "skin": AXES[3:4]}
    return PartsTable(encoder, signals, (0.04 * AXES, 0.01 * AXES), (4.0, 2.0))


def shift(*values: float) -> torch.Tensor:
    return torch.tensor([*values, *[0.0] * (6 - len(values))], dtype=torch.float64)


@pytest.mark.parametrize(
    ("moved", "part"), [((0, 1), "brows"), ((0.8, 0, 1), "nose"), ((0, 0, 0, -1), "skin")]
)
def test_the_part_that_changed_is_named_first(moved, part):
    found = table().explain_shift(shift(*moved), 12)
    assert found[0].part == part and found[0].sigma > 3
    assert [each.sigma for each in found[1:]] == [0.0, 0.0], "the others explain nothing that it did not"
    assert {each.part for each in found} == {"brows", "nose", "skin"}


def test_two_changed_parts_are_both_named_and_sigmas_never_rise():
    found = table().explain_shift(shift(0, 1.5, 0, 1), 12)
    assert [each.part for each in found[:2]] == ["brows", "skin"] and found[1].sigma > 2
    sigmas = [each.sigma for each in found]
    assert sigmas == sorted(sigmas, reverse=True)


def test_nothing_differs_where_the_reference_is_met():
    assert all(each.sigma == 0 for each in table().explain_shift(shift(), 1))


def test_more_frames_are_surer_until_a_second():
    rows = functional.normalize(shift(1.0, 0.4)[None].float()).repeat(24, 1)
    reference = functional.normalize(shift(1.0)[None].float())[0]
    one, six, second, two = (table().explain(reference, rows[:n])[0].sigma for n in (1, 6, 12, 24))
    assert one < six < second == two
    assert table().limit(1) == 4.0 and table().limit(12) == table().limit(500) == 2.0
    assert 2.0 < table().limit(4) < 4.0


def test_a_table_is_what_was_saved(tmp_path):
    table().save(tmp_path)
    again = PartsTable.load(tmp_path)
    assert again.encoder == table().encoder and again.limits == table().limits
    assert list(again.signals) == list(table().signals)
    torch.testing.assert_close(again.signals["nose"], table().signals["nose"], atol=1e-6, rtol=0)
    torch.testing.assert_close(again.noise[1], table().noise[1], atol=1e-6, rtol=0)


def judge_in(folder):
    """A small judge of its own weights."""
    torch.manual_seed(0)
    net = Crate(dim=24, depth=2, heads=2, code=6)
    folder.mkdir()
    save_file(net.state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"architecture": "crate", **net.config}))
    return load_encoder("crate", folder, name="small", thresholds=Thresholds(0.1, 0.2, 0.3))


def test_a_table_that_cannot_be_used_is_refused_in_one_sentence(tmp_path):
    encoder = judge_in(tmp_path / "judge")
    with pytest.raises(ModelError, match=r"has no parts.safetensors.*python -m facelock.miniature parts"):
        table_of(encoder)
    table().save(tmp_path / "judge")
    with pytest.raises(ModelError, match=r"was made for toy@0123456789ab, not for small@"):
        table_of(encoder)
    table(encoder.id).save(tmp_path / "judge")
    assert table_of(encoder).encoder == encoder.id
    path = tmp_path / "judge" / "parts.safetensors"
    tensors = load_file(path)
    del tensors["noise.second"]
    save_file(tensors, path, metadata={"encoder": encoder.id, "parts": "brows nose skin"})
    with pytest.raises(ModelError, match="is damaged"):
        table_of(encoder)
    path.write_bytes(b"nothing")
    with pytest.raises(ModelError, match="is damaged"):
        table_of(encoder)


def test_other_judges_cannot_say():
    with pytest.raises(ConfigError, match=r"Only the CRATE judge can say .* miniature/recogniser@"):
        table_of(open_perception().faces.encoder)


@pytest.mark.parametrize("part", parts_of_face.PARTS)
def test_exactly_one_part_is_changed(part):
    faces = data.identities("heldout", 40)
    changed = parts_of_face.change(faces, part, data.seeded(1))
    mine = {name for name in IDENTITY if not torch.equal(changed[name], faces[name])}
    assert mine and mine <= set(parts_of_face.PARTS[part])
    moved = (identity_vector(changed) - identity_vector(faces))[:, parts_of_face.COLUMNS[part]]
    assert float(moved.square().mean(1).sqrt().min()) >= parts_of_face.LEAST


def test_parts_are_all_that_is_painted_and_none_twice():
    named = [name for names in parts_of_face.PARTS.values() for name in names]
    assert sorted([*named, "feminine"]) == sorted(IDENTITY)


def test_the_response_of_a_linear_judge_is_recovered():
    """A judge that answers linearly, with noise: the fit names the part, and keeps quiet where nothing changed."""
    g = torch.Generator().manual_seed(3)
    people, response = 200, torch.randn(len(IDENTITY), 48, generator=g).double()

    def shifts(part: str) -> parts_of_face.Shifts:
        faces = data.identities("train", people)
        face = parts_of_face.change(faces, part, g) if part else faces
        moved = (identity_vector(face) - identity_vector(faces)).double()
        own = torch.randn(people, 1, 48, generator=g).double()
        frames = torch.randn(people, parts_of_face.FRAMES, 48, generator=g).double()
        return parts_of_face.Shifts((moved @ response)[:, None] + 0.5 * own + 0.5 * frames, moved)

    fitted = parts_of_face.fit({part: shifts(part) for part in ("", *parts_of_face.PARTS)}, "toy@1")
    fresh = {part: shifts(part).embedding.mean(1) for part in ("", *parts_of_face.PARTS)}
    for part in parts_of_face.PARTS:
        named = [fitted.explain_shift(row, 12)[0].part for row in fresh[part][:50]]
        assert np.mean([name == part for name in named]) > 0.9, part
    quiet = [fitted.explain_shift(row, 12)[0].sigma > fitted.limits[1] for row in fresh[""]]
    assert np.mean(quiet) < 0.05


def test_what_is_measured_is_one_part_at_a_time():
    def embed(x: torch.Tensor) -> torch.Tensor:
        assert x.shape[1:] == (3, 56, 56)
        return functional.avg_pool2d(x, 28).flatten(1)

    shifts = parts_of_face.measure(embed, people=3)
    assert list(shifts) == ["", *parts_of_face.PARTS]
    assert float(shifts[""].parameters.abs().max()) == 0
    for part, found in shifts.items():
        assert found.embedding.shape == (3, parts_of_face.FRAMES, 12)
        moved = set(found.parameters.abs().sum(0).nonzero().flatten().tolist())
        assert moved <= set(parts_of_face.COLUMNS.get(part, [])), part


def test_the_bundled_table_is_of_the_bundled_judge_and_names_changed_parts():
    pack = open_perception().judge
    known = table_of(pack.encoder)
    assert set(known.signals) == set(parts_of_face.PARTS)
    right = []
    for index in range(3):
        who = cast.member(index)
        reference = pack.embed(cast.portrait(who, 256), pack.detect(cast.portrait(who, 256)))[0]
        for part in ("eyes", "nose", "mouth"):
            rows = bench._embedded(who, (part,), 4, 7, pack)
            right.append(known.explain(reference, rows)[0].part == part)
    assert sum(right) >= 6, right


def test_bench_explain_counts_what_it_says():
    def say(part: str, sigma: float) -> tuple[Difference, ...]:
        return (Difference(part, sigma), Difference("x", 0.0))

    found = {(part,): [say("eyes", 3.0)] for part in parts_of_face.PARTS}
    found |= {(): [say("skin", 1.0), say("skin", 9.0)], ("x", "nose"): [say("nose", 3.0), say("eyes", 3.0)]}
    figures = bench._figures(found, found, table(), 12)
    assert figures["clip"]["total"] == pytest.approx(1 / 7) == pytest.approx(figures["chance"])
    assert figures["clip"]["first"]["eyes"] == 1.0 and figures["clip"]["first"]["nose"] == 0.0
    assert figures["clip"]["beyond_noise"]["nose"] == 1.0 and figures["frame"]["beyond_noise"]["nose"] == 0.0
    assert figures["clip"]["beyond_noise"][bench.NOTHING] == 0.5
    assert figures["clip"]["both"] == 0.5
    assert "| nothing changed | – | – | 0.500 | 0.500 |" in bench._table(figures, 12, 2)


def shown(**changed) -> Shown:
    parts = (Part(part="brows", sigma=5.1), Part(part="head", sigma=2.44), Part(part="skin", sigma=0.9))
    values = {"start": 1.0, "end": 2.5, "whole": False, "frames": 18, "limit": 2.0, "parts": parts}
    return Shown(**(values | changed))


def test_what_is_said():
    assert said(shown()) == "what differs most: brows (5.1 sigma), then head (2.4)"
    quiet = said(shown(limit=6.0))
    assert quiet == "no part differs beyond noise (most: brows, 5.1 sigma; unchanged faces reach 6.0 sigma)"
    same = (Part(part="brows", sigma=0.0),)
    assert said(shown(parts=same)) == "no part differs beyond noise (unchanged faces reach 2.0 sigma)"
    assert where(shown()) == "1.0 s to 2.5 s" and where(shown(whole=True)) == "whole clip"


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A second of a held-out character, a second of the same with other eyes, and the reference."""
    folder = tmp_path_factory.mktemp("explain")
    who = cast.member(3)
    other = cast.Member(3, parts_of_face.change(who.face, "eyes", data.seeded(5)), who.look, who.prompt)
    frames = torch.cat([cast.true_clip(each, 12, 96, 2)[0] for each in (who, other)])
    with SegmentWriter(folder / "clip.mkv", (96, 96), Fraction(12), crf=10) as writer:
        writer.write(frames)
    join_segments([folder / "clip.mkv"], folder / "clip.mp4", fps=Fraction(12))
    from PIL import Image

    pixels = (cast.portrait(who)[0].permute(1, 2, 0) * 255).round().byte().numpy()
    Image.fromarray(pixels).save(folder / "who.png")
    return folder


def test_verify_explains_in_line_json_and_page(clip, capsys):
    with pytest.raises(SystemExit) as left:
        main(
            ["verify", str(clip / "clip.mp4"), "--face", str(clip / "who.png"), "--explain", "--target", "0"]
        )
    text = capsys.readouterr().out
    assert left.value.code == 0 and "\nwho, whole clip: " in text, text
    stored = json.loads((clip / "clip.report.json").read_text())
    entries = stored["characters"][0]["differs"]
    assert entries[0]["whole"] and entries[0]["frames"] == 24 and len(entries[0]["parts"]) == 7
    assert facelock.report.Report.from_json((clip / "clip.report.json").read_text()).characters[0].differs
    page = (clip / "clip.report.html").read_text()
    assert "What differs from the reference" in page and "whole clip: " in page
    last = entries[-1]
    assert not last["whole"] and last["end"] > 1.8 and last["parts"][0]["part"] == "eyes"
    assert f"{last['parts'][0]['sigma']:.1f} sigma" in text


def test_the_end_is_looked_at_where_no_weak_span_reaches_it():
    assert _end(48, 12.0) == (36, 48) and _end(24, 12.0) == (12, 24) and _end(1200, 12.0) == (900, 1200)
    assert _end(23, 12.0) is None and _end(0, 1.0) is None


def test_verify_says_nothing_unasked(clip, capsys):
    report = facelock.verify(clip / "clip.mp4", clip / "who.png")
    assert report.characters[0].differs == ()


def test_another_judge_is_refused_before_anything_is_measured(clip, capsys):
    given = ["verify", str(clip / "clip.mp4"), "--face", str(clip / "who.png"), "--explain"]
    with pytest.raises(SystemExit) as left:
        main([*given, "--judge", str(asset_dir("models") / "miniature" / "faces" / "recogniser.onnx")])
    said_ = capsys.readouterr().err
    assert left.value.code == 2 and "Only the CRATE judge can say" in said_


def test_inside_a_crate(tmp_path):
    torch.manual_seed(1)
    inside = inside_crate.measure(Crate(dim=24, depth=2, heads=3).eval(), people=4)
    assert len(inside.zeros) == 2 and all(0 < share < 1 for share in inside.zeros)
    for maps in (inside.looks, inside.strength):
        assert maps.shape == (2, 3, 49)
        torch.testing.assert_close(maps.sum(-1), torch.ones(2, 3))
    assert set(inside.moved) == set(parts_of_face.PARTS)
    assert sum(inside_crate.by_region(inside.looks[0, 0]).values()) == pytest.approx(1)
    assert "".join(inside_crate.REGIONS).count("m") == 3 and {*"".join(inside_crate.REGIONS)} == {
        *inside_crate.NAMES
    }
    inside_crate.draw(inside, tmp_path / "judge.png")
    assert 10_000 < (tmp_path / "judge.png").stat().st_size < 400_000


def test_brows_show_where_brows_are():
    """Renderer, crop and names of the regions agree, whatever the weights: the picture itself moves there."""
    faces = data.identities("heldout", 8)
    look = {k: v.expand(8) for k, v in cast.member(1).look.items()}
    now = parts_of_face.portraits(8, data.seeded(2))
    changed = parts_of_face.change(faces, "brows", data.seeded(3))
    difference = (parts_of_face.crops(changed, look, now) - parts_of_face.crops(faces, look, now)).abs()
    tokens = functional.avg_pool2d(difference, 8).mean((0, 1)).flatten()
    shares = inside_crate.by_region(tokens / tokens.sum())
    assert max(shares, key=shares.get) == "brows" and shares["brows"] > 0.5


def test_the_page_keeps_what_is_around_its_tables(tmp_path, monkeypatch):
    small = inside_crate.measure(Crate(dim=24, depth=1, heads=2).eval(), people=2)
    monkeypatch.setattr(inside_crate, "measure", lambda *_: small)
    page = tmp_path / "judge.md"
    page.write_text(f"before\n{inside_crate.BEGIN}\nold\n{inside_crate.END}\nafter\n")
    text = inside_crate.write(tmp_path / "judge.png")
    whole = page.read_text()
    assert (
        whole.startswith("before\n") and whole.endswith("\nafter\n") and text in whole and "old" not in whole
    )


def test_the_folder_of_a_judge_may_be_copied_with_its_table(tmp_path):
    shutil.copytree(JUDGE, tmp_path / "judge")
    encoder = load_encoder("crate", tmp_path / "judge", name="copy", thresholds=Thresholds(0.1, 0.2, 0.3))
    assert table_of(encoder).encoder.startswith("miniature/judge@")
    assert explain.FILE in {file.name for file in JUDGE.iterdir()}
