"""The edit, with toy stages and the real ffmpeg: frames, transitions, sound, timelines, sheet and report."""

from __future__ import annotations

import json
import shutil
import wave
from fractions import Fraction

import numpy as np
import pytest
import torch
import toys
from PIL import Image
from test_storyboard_render import RECIPE, Judge

import facelock
from facelock.bench import across
from facelock.errors import StorageError
from facelock.pipeline import Pipeline
from facelock.report.model import LedgerEntry, Report
from facelock.storyboard import Storyboard
from facelock.storyboards import likeness, splice, timeline
from facelock.storyboards.cut import place
from facelock.storyboards.edit import NAMES
from facelock.storyboards.film import FilmFolder
from facelock.storyboards.likeness import Sample
from facelock.storyboards.plan import Plan
from facelock.storyboards.render import retry
from facelock.types import Faces, Sound, Status
from facelock.video.writing import count_frames, probe, read_chunks

FRAMES = 18


class Pack:
    """Embeds the mean colour of the whole frame; one face per frame."""

    def detect(self, frames):
        count = len(frames)
        boxes = torch.tensor([[1.0, 1, 30, 30]]).repeat(count, 1)
        return Faces(torch.arange(count), boxes, torch.zeros(count, 5, 2), torch.ones(count))

    def embed(self, frames, faces):
        return torch.nn.functional.normalize(frames[faces.frame].mean((2, 3)), dim=1)


class Parts(toys.Parts):
    """Toys whose frames have a colour of their own per prompt, so that a film's frames can be told apart."""


class Backbone(toys.Backbone):
    def extend(self, prompt, context, *, seed, references=()):
        frames = super().extend(prompt, context, seed=seed, references=references)
        level = {"talking": 0.2, "nodding": 0.5, "laughing": 0.8}[prompt.split()[-1]]
        return (0.05 * frames + level).clamp(0, 1)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a recipe, two faces, and two sounds of 440 and 880 Hz."""
    folder = tmp_path_factory.mktemp("board")
    (folder / "toy.toml").write_text(RECIPE)
    for name in ("maria", "tom"):
        (folder / f"{name}.png").write_bytes(toys.picture(name))
    for name, pitch in (("low", 440), ("high", 880)):
        with wave.open(str(folder / f"{name}.wav"), "wb") as sound:
            sound.setparams((1, 2, 8000, 0, "NONE", ""))
            times = np.arange(8000 * 3) / 8000
            sound.writeframes((8000 * np.sin(2 * np.pi * pitch * times)).astype("<i2").tobytes())
    return folder


def render(home, out, shots, monkeypatch=None, wrong=(), backbone=None, **top):
    data = {"schema": "facelock.storyboard.v1", "title": "A <film>", **top}
    data["defaults"] = {"recipe": "toy.toml", "seed": 7, "target": 0.0}
    data["cast"] = {name: {"face": f"{name}.png"} for name in ("maria", "tom")}
    words = ("talking", "nodding", "laughing")
    data["shots"] = [
        {"prompt": f"{{{name}}} {word}", "seconds": FRAMES / 12, **shot}
        for name, word, shot in zip(("maria", "tom", "maria"), words, shots, strict=False)
    ]
    judge = Judge()
    judge.pack = Pack()
    parts = Parts(judge=judge, backbone=backbone or Backbone())
    if wrong:
        parts.judge = toys.Judge(wrong=wrong)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Pipeline, "from_recipe", lambda recipe, device: Pipeline(recipe, parts))
        patch.setattr("facelock.storyboards.render.require_ready", lambda *_, **__: None)
        return facelock.render(Storyboard.from_data(data, home), out)


@pytest.fixture(scope="module")
def plain(home, tmp_path_factory):
    """Three shots, two cuts, no sound; frames 4 to 7 of every shot are somebody else's."""
    return render(home, tmp_path_factory.mktemp("film") / "film", [{}, {}, {}], wrong=range(4, 8))


@pytest.fixture(scope="module")
def rich(home, tmp_path_factory):
    """A fade, a dissolve, a sound of the film and one of a shot."""
    shots = [
        {"transition": "fade 0.5"},
        {"transition": "dissolve 0.5", "audio": "high.wav"},
        {"scene": "two"},
    ]
    return render(home, tmp_path_factory.mktemp("film") / "film", shots, audio="low.wav")


def frames(path):
    return torch.cat([chunk.frames for chunk in read_chunks(path, 24)])


def levels(path):
    """Mean brightness of every frame."""
    return frames(path).mean((1, 2, 3))


def test_a_film_of_cuts_holds_every_frame_of_the_shots_unchanged(plain):
    film = plain.files["video"]
    shots = torch.cat([frames(shot.video) for shot in plain.shots])
    assert torch.equal(frames(film), shots) and count_frames(film) == 3 * FRAMES
    info = probe(film)
    assert info.fps == 12 and not info.has_audio
    packets = [path.read_bytes() for path in (film, *[shot.video for shot in plain.shots])]
    assert packets[0].find(packets[1][-200:-100]) > 0  # copied as they are


def test_only_where_decoding_can_begin_is_a_key_frame(plain):
    """The toys' noise makes every frame an I frame, which ffmpeg's demuxers take for key frames: the index must not."""
    data = plain.files["video"].read_bytes()
    table = data[data.index(b"stss") + 8 :]
    count = int.from_bytes(table[:4], "big")
    listed = [int.from_bytes(table[4 + 4 * n : 8 + 4 * n], "big") - 1 for n in range(count)]
    assert listed == [shot * FRAMES + chunk for shot in range(3) for chunk in (0, 6, 10, 14)]


def test_a_dissolve_overlaps_and_a_fade_does_not(rich):
    film, length = rich.files["video"], 6
    seen = levels(film)
    assert len(seen) == 3 * FRAMES - length == count_frames(film)
    own = [levels(shot.video) for shot in rich.shots]
    start = FRAMES - length
    share = torch.arange(1, length + 1) / (length + 1)
    assert torch.allclose(seen[:length], own[0][:length] * share, atol=0.02)  # out of black
    assert torch.allclose(seen[length:start], own[0][length:start], atol=0.01)
    blend = torch.lerp(own[0][start:], own[1][:length], share)
    assert torch.allclose(seen[start:FRAMES], blend, atol=0.02)
    assert torch.allclose(seen[FRAMES : 2 * FRAMES - length], own[1][length:], atol=0.01)
    last = frames(film)[2 * FRAMES - length :]
    assert torch.equal(last, frames(rich.shots[2].video))  # copied


def test_only_transitions_are_encoded_again(rich, tmp_path):
    cut = place(Plan.of(FilmFolder(rich.folder).load_board()), rich)
    # chunks begin at 0, 6, 10, 14: six frames of fade end at a key frame, as do six of dissolve
    assert splice.write_film(cut, tmp_path / "again.mp4", tmp_path) == 12
    assert torch.equal(frames(tmp_path / "again.mp4"), frames(rich.files["video"]))


def test_a_shot_of_another_size_is_encoded_again(home, tmp_path):
    film = render(home, tmp_path / "film", [{}, {"size": 16}, {}])
    assert not film.failed and count_frames(film.files["video"]) == 3 * FRAMES
    info = probe(film.files["video"])
    assert (info.height, info.width) == (32, 32)
    seen, own = levels(film.files["video"]), levels(film.shots[1].video)
    assert torch.allclose(seen[FRAMES : 2 * FRAMES], own, atol=0.02)


def test_a_shot_of_another_shape_keeps_it():
    wide = torch.ones(2, 3, 8, 16)
    film = splice.fitted(wide, (32, 32))
    assert film.shape == (2, 3, 32, 32)
    assert not film[:, :, :8].any() and not film[:, :, 24:].any() and film[:, :, 9:23].min() > 0.99
    assert splice.fitted(wide, (9, 31)).shape == (2, 3, 9, 31)
    assert torch.equal(splice.fitted(wide, (8, 16)), wide)


def sound(path):
    import av

    with av.open(str(path)) as container:
        return np.concatenate([f.to_ndarray().mean(0) for f in container.decode(container.streams.audio[0])])


def loudness(samples, pitch):
    times = np.arange(len(samples)) / 48000
    return 2 * abs(np.mean(samples * np.exp(-2j * np.pi * pitch * times)))


def test_sounds_lie_where_their_shots_do(rich):
    samples = sound(rich.files["video"])
    length = (3 * FRAMES - 6) / 12
    assert abs(len(samples) / 48000 - length) < 0.05
    high = [
        loudness(samples[int(a * 48000) : int(b * 48000)], 880) for a, b in ((0, 0.9), (1.6, 2.4), (2.6, 3.9))
    ]
    assert high[0] < 0.01 and high[1] > 0.15 and high[2] < 0.01  # the second shot is 1.0 to 2.5 s
    low = [
        loudness(samples[int(a * 48000) : int(b * 48000)], 440)
        for a, b in ((0, 1), (1, 2), (2, 2.9), (3.2, 3.9))
    ]
    assert min(low[:3]) > 0.15 and low[3] < 0.01  # three seconds, then silence


def test_one_sound_in_several_shots_and_under_the_film(home, tmp_path):
    shots = [{"audio": "high.wav"}, {"audio": "high.wav"}, {"audio": "low.wav"}]
    samples = sound(render(home, tmp_path / "film", shots, audio="high.wav").files["video"])
    seconds = [samples[int(a * 48000) : int(b * 48000)] for a, b in ((0.1, 1.4), (1.6, 2.9), (3.1, 4.4))]
    high = [round(loudness(part, 880), 2) for part in seconds]
    assert 0.33 < high[0] < 0.37 and 0.33 < high[1] < 0.37 and high[2] < 0.02  # twice .17; the file has 3 s
    assert [loudness(part, 440) > 0.15 for part in seconds] == [False, False, True]


class Humming(Backbone):
    """Hums at 432 Hz to whom it talks, at 864 Hz otherwise: whole waves in every frame, so that chunks fit."""

    sample_rate = 8000

    def extend_with_sound(self, prompt, context, *, seed, references=()):
        frames = self.extend(prompt, context, seed=seed, references=references)
        times = torch.arange(len(frames) * 700) / 8000
        pitch = 432 if prompt.endswith("talking") else 864
        return frames, Sound(0.3 * torch.sin(2 * torch.pi * pitch * times)[None], 8000)


def test_a_film_keeps_what_its_shots_say_unless_they_are_given_audio(home, tmp_path):
    made = render(home, tmp_path / "film", [{}, {}, {"audio": "high.wav"}], backbone=Humming())
    samples = sound(made.files["video"])
    assert abs(len(samples) / 48000 - 3 * FRAMES / 12) < 0.05
    seconds = [samples[int(a * 48000) : int(b * 48000)] for a, b in ((0.1, 1.4), (1.6, 2.9), (3.1, 4.4))]
    assert [round(loudness(part, 432), 1) for part in seconds] == [0.2, 0, 0]
    assert [round(loudness(part, 864), 1) for part in seconds] == [0, 0.2, 0]
    assert [round(loudness(part, 880), 1) for part in seconds] == [0, 0, 0.2]


def test_an_edit_is_made_once_and_anew_when_a_shot_changes(home, tmp_path):
    first = render(home, tmp_path / "film", [{}, {}])
    stamp = first.files["video"].stat().st_mtime_ns
    assert render(home, tmp_path / "film", [{}, {}]).files["video"].stat().st_mtime_ns == stamp
    changed = render(home, tmp_path / "film", [{}, {"transition": "dissolve 0.25"}])
    assert changed.files["video"].stat().st_mtime_ns != stamp and count_frames(changed.files["video"]) == 33


def test_the_report_counts_takes_that_were_no_better_too(home, tmp_path):
    first = render(home, tmp_path / "film", [{"target": 0.5, "tries": 1}])
    with pytest.MonkeyPatch.context() as patch:
        parts = Parts(judge=toys.Judge(wrong=range(1000)), backbone=Backbone())
        patch.setattr(Pipeline, "from_recipe", lambda recipe, device: Pipeline(recipe, parts))
        patch.setattr("facelock.storyboards.render.require_ready", lambda *_, **__: None)
        again = retry(first.folder, "1")
    told = json.loads(again.files["report"].read_text())["shots"][0]
    assert told["takes"] == again.shots[0].takes > first.shots[0].takes


@pytest.mark.parametrize("kind", ["otio", "edl", "sheet", "page"])
def test_a_file_of_the_edit_that_is_lost_is_made_again(rich, home, tmp_path, kind):
    folder = tmp_path / "film"
    shutil.copytree(rich.folder, folder)
    lost = folder / rich.files[kind].name
    before = lost.read_bytes()
    lost.unlink()
    shots = [
        {"transition": "fade 0.5"},
        {"transition": "dissolve 0.5", "audio": "high.wav"},
        {"scene": "two"},
    ]
    render(home, folder, shots, audio="low.wav")
    assert lost.read_bytes() == before


def test_transitions_take_at_most_half_of_a_shot_in_frames_too(home, tmp_path):
    shots = [
        {"seconds": 1.25},
        {"seconds": 1.25, "transition": "dissolve 0.625"},
        {"transition": "dissolve 0.6"},
    ]
    made = render(home, tmp_path / "film", shots)  # 7.5 frames of 15: 8 and 7 would be one too many
    cut = place(Plan.of(FilmFolder(made.folder).load_board()), made)
    assert [shot.overlap for shot in cut.shots] == [0, 7, 7]
    assert len(frames(made.files["video"])) == cut.frames == 15 + 15 + FRAMES - 14


def test_an_edl_of_names_with_spaces_is_read_back_as_one_track(home, tmp_path):
    pytest.importorskip("otio_cmx3600_adapter")
    import opentimelineio

    made = render(home, tmp_path / "film", [{"name": "Szene ä 1"}, {"name": "b c"}])
    film = opentimelineio.adapters.read_from_file(str(made.files["edl"]), rate=24)
    assert [[clip.name for clip in track] for track in film.tracks] == [["Szene ä 1", "b c"]]


def test_a_title_of_several_lines_is_one_in_an_edl(home, tmp_path):
    pytest.importorskip("otio_cmx3600_adapter")
    made = render(home, tmp_path / "film", [{}], title="one\n001  AX V C 00:00:00:00")
    assert made.files["edl"].read_text().splitlines()[0] == "TITLE: one 001 AX V C 00:00:00:00"


def test_a_film_with_a_failed_shot_is_not_shipped(home, tmp_path):
    whole = render(home, tmp_path / "film", [{}, {}])
    assert (tmp_path / "film" / "film.mp4").exists() and not whole.failed
    film = render(home, tmp_path / "film", [{}, {"seed": 99, "target": 0.9, "tries": 1}], wrong=range(100))
    assert not (tmp_path / "film" / "film.mp4").exists() and "video" not in film.files and film.exit_code == 4
    report = json.loads(film.files["report"].read_text())
    assert report["accepted"] == 1 and report["shots"][1]["outcome"] == "missed"
    Image.open(film.files["sheet"]).verify()


def test_an_edit_that_dies_leaves_nothing_half_and_is_made_again(home, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(
            "facelock.storyboards.splice.join_segments",
            lambda *_, **__: (_ for _ in ()).throw(StorageError("the disk is full. Make room.")),
        )
        with pytest.raises(StorageError):
            render(home, tmp_path / "film", [{}, {"transition": "dissolve"}])
    assert not (tmp_path / "film" / "edit.partial").exists() and not (tmp_path / "film" / "film.mp4").exists()
    assert "video" in render(home, tmp_path / "film", [{}, {"transition": "dissolve"}]).files


def test_the_report_tells_of_shots_and_of_the_cast_across_them(rich):
    report = json.loads(rich.files["report"].read_text())
    maria, tom = report["cast"]
    assert report["accepted"] == 3 and report["title"] == "A <film>" and report["reason"] is None
    assert maria["shots"] == ["s010", "s030"] and tom["shots"] == ["s020"]
    assert 0.99 < maria["within"] <= 1 and 0.99 < maria["across"] <= 1 and abs(maria["loss"]) < 0.01
    assert maria["scenes"] is not None and tom["across"] is None and tom["loss"] is None
    page = rich.files["page"].read_text()
    assert "A &lt;film&gt;" in page and "s030" in page and "<film>" not in page


def test_a_judge_that_cannot_compare_says_so(plain):
    report = json.loads(plain.files["report"].read_text())
    assert "no accepted shot could be compared" in report["reason"] and report["cast"][0]["across"] is None


def test_likeness_is_the_mean_over_pairs():
    a, b = torch.tensor([[1.0, 0.0], [0.6, 0.8]]), torch.tensor([[0.0, 1.0], [0.0, 1.0]])
    found = likeness.likeness([Sample("s1", "x", "m", a), Sample("s2", "y", "m", b)])
    assert found.within == pytest.approx((0.6 + 1.0) / 2) and found.across == pytest.approx(0.4)
    assert found.scenes == pytest.approx(0.4) and found.worst == ("s1", "s2")
    assert likeness.likeness([Sample("s1", "x", "m", a)]).across is None
    assert likeness.strangers([Sample("s1", "", "m", a), Sample("s1", "", "t", b)]) == pytest.approx(0.4)
    assert likeness.spread(range(100)) == {0, 20, 40, 59, 79, 99} and likeness.spread([3, 5]) == {3, 5}


def test_the_sheet_has_a_tile_per_frame(rich):
    sheet = np.asarray(Image.open(rich.files["sheet"]))
    assert sheet.shape[1] > 2 * 3 * 128
    assert sheet[60, 60].mean() < sheet[60, 60 + 3 * 128 + 6].mean()  # the second shot is brighter


def test_consecutive_doubtful_frames_make_one_stretch(plain):
    report = Report.from_json(plain.shots[0].report.read_bytes())
    (stretch,) = timeline.doubtful(report.ledger)
    assert (stretch.start, stretch.length, stretch.status, stretch.name) == (
        4,
        4,
        Status.WRONG,
        "maria wrong",
    )
    assert stretch.similarity == min(row.similarity for row in report.ledger[4:8])


def test_a_gap_or_another_status_begins_another_stretch():
    def row(frame, status, name="maria"):
        return LedgerEntry(frame=frame, time=0.0, character=name, status=status, similarity=0.1)

    rows = [
        row(1, Status.WRONG),
        row(1, Status.ABSENT, "tom"),
        row(2, Status.WRONG),
        row(2, Status.ABSENT, "tom"),
    ]
    rows += [row(3, Status.VERIFIED), row(4, Status.WRONG), row(5, Status.WEAK)]
    found = [(each.name, each.start, each.length) for each in timeline.doubtful(rows)]
    assert found == [("maria wrong", 1, 2), ("tom lost", 1, 2), ("maria wrong", 4, 1), ("maria weak", 5, 1)]


def test_rates_that_editors_count_in():
    rates = {12: 24, 24: 24, 25: 25, 16: 48, 30: 30, 7: None}
    ntsc = Fraction(1000, 1001)
    rates |= {24 * ntsc: 24 * ntsc, 12 * ntsc: 24 * ntsc, 30 * ntsc: 30 * ntsc, 60 * ntsc: 60 * ntsc}
    assert {fps: timeline.smpte_rate(Fraction(fps)) for fps in rates} == rates


otio = pytest.mark.skipif(
    not timeline.importlib.util.find_spec("opentimelineio"), reason="needs opentimelineio (extra storyboard)"
)


@otio
@pytest.mark.parametrize("fps", ["24000/1001", "30000/1001"])
def test_television_s_rates_keep_cuts_and_markers(home, tmp_path, fps):
    import opentimelineio

    (home / "ntsc.toml").write_text(RECIPE.replace("fps = 12", f'fps = "{fps}"'))
    shots = [{"recipe": "ntsc.toml", "seconds": seconds} for seconds in (1, 0.5)]
    made = render(home, tmp_path / "film", shots, wrong=range(4, 8))
    first = round(Fraction(fps))
    for kind, options in (("xml", {}), ("edl", {"rate": float(Fraction(fps))})):
        film = opentimelineio.adapters.read_from_file(str(made.files[kind]), **options)
        clips = list(film.tracks[0])
        assert [clip.source_range.duration.value for clip in clips] == [first, first / 2]
        if (kind, first) != ("edl", 30):  # the adapter reads no marker that it wrote at a drop-frame rate
            assert [[m.marked_range.start_time.value for m in clip.markers] for clip in clips] == [[4], [4]]


@otio
def test_the_timeline_opens_and_passes_a_round_trip(rich, tmp_path):
    import opentimelineio

    film = opentimelineio.adapters.read_from_file(str(rich.files["otio"]))
    opentimelineio.adapters.write_to_file(film, str(tmp_path / "again.otio"))
    again = opentimelineio.adapters.read_from_file(str(tmp_path / "again.otio"))
    assert film.is_equivalent_to(again) and film.name == "A <film>"
    pictures, speech, music = film.tracks
    assert [type(item).__name__ for item in speech] == ["Gap", "Clip", "Gap"]
    assert speech[1].media_reference.target_url == "shots/s020.mp4" and not speech[1].markers
    assert speech.range_of_child_at_index(1) == pictures.range_of_child_at_index(2)
    assert [track.name for track in film.tracks] == ["V1", "A1", "A2"]
    first, dissolve, second, third = pictures
    assert dissolve.in_offset.value + dissolve.out_offset.value == 6
    assert [clip.source_range.duration.value for clip in (first, second, third)] == [15, 15, 18]
    assert pictures.duration().value == 3 * FRAMES - 6 == music.duration().value
    assert list(second.metadata["facelock"]["characters"]) == ["tom"]
    for clip in (first, second, third):
        assert (rich.folder / clip.media_reference.target_url).is_file()
        assert clip.available_range().duration.value == FRAMES


@otio
def test_markers_stand_on_the_frames_that_are_wrong(plain):
    import opentimelineio

    film = opentimelineio.adapters.read_from_file(str(plain.files["otio"]))
    for clip in film.tracks[0]:
        (marker,) = clip.markers
        assert (marker.marked_range.start_time.value, marker.marked_range.duration.value) == (4, 4)
        assert marker.color == "RED" and marker.metadata["facelock"]["status"] == "wrong"


@otio
@pytest.mark.parametrize(("kind", "module"), [("edl", "otio_cmx3600_adapter"), ("xml", "otio_fcp_adapter")])
def test_edl_and_xml_are_read_back_with_their_markers(plain, kind, module):
    pytest.importorskip(module, reason=f"needs {module} (extra storyboard)")
    import opentimelineio

    name = {"edl": "cmx_3600", "xml": "fcp_xml"}[kind]
    options = {"rate": 24} if kind == "edl" else {}
    film = opentimelineio.adapters.read_from_file(str(plain.files[kind]), adapter_name=name, **options)
    clips = [clip for track in film.tracks for clip in track if isinstance(clip, opentimelineio.schema.Clip)]
    assert [clip.name for clip in clips] == ["s010", "s020", "s030"]
    assert [clip.source_range.duration.value for clip in clips] == [2 * FRAMES] * 3  # 24 counts per 12 frames
    for clip in clips:
        assert [marker.marked_range.start_time.value for marker in clip.markers] == [8]


@otio
def test_an_edl_of_dissolves_has_cuts_in_their_middle(rich):
    pytest.importorskip("otio_cmx3600_adapter", reason="needs otio_cmx3600_adapter (extra storyboard)")
    import opentimelineio

    film = opentimelineio.adapters.read_from_file(str(rich.files["edl"]), adapter_name="cmx_3600", rate=24)
    clips = list(film.tracks[0])
    assert [clip.source_range.start_time.value for clip in clips] == [0, 6, 0]
    assert [clip.source_range.duration.value for clip in clips] == [30, 30, 36]


def test_without_opentimelineio_the_rest_is_made(home, tmp_path, monkeypatch):
    monkeypatch.setattr(timeline.importlib.util, "find_spec", lambda name: None)
    film = render(home, tmp_path / "film", [{}])
    assert set(film.files) == set(NAMES) - {"otio", "edl", "xml"}


def test_the_benchmark_compares_true_clips_as_shots_are(monkeypatch, tmp_path):
    parts = toys.Parts()
    parts.judge.pack = Pack()
    monkeypatch.setattr(across.Pipeline, "from_recipe", lambda *_: toys.pipeline(parts))

    def true_clip(who, frames, size, seed):
        return torch.full((frames, 3, 8, 8), 0.1) + torch.eye(3)[seed][None, :, None, None], {}

    monkeypatch.setattr(across.cast, "true_clip", true_clip)
    found = across.run(seconds=1, identities=2, out=tmp_path)
    one, other = torch.tensor([1.1, 0.1, 0.1]), torch.tensor([0.1, 1.1, 0.1])
    assert found["within"] == pytest.approx(1) and found["clips"] == 6
    assert found["across"] == pytest.approx(float(torch.cosine_similarity(one, other, dim=0)), abs=1e-6)
    assert found["loss"] == pytest.approx(1 - found["across"])
