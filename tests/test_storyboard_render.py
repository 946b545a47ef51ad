"""Rendering with toy stages: seeds, retries, failures, resume, identical work, locks, events, the commands."""

from __future__ import annotations

import fcntl
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import toys

import facelock
from facelock import cli
from facelock.bench.film import Watch
from facelock.errors import (
    ConfigError,
    FaceLockError,
    IdentityMissedError,
    InputError,
    InterruptedRunError,
    OutputBusyError,
    StorageError,
)
from facelock.pipeline import Pipeline
from facelock.storyboard import Storyboard
from facelock.storyboards import events
from facelock.storyboards.film import FilmFolder, status_lines
from facelock.storyboards.plan import Plan
from facelock.storyboards.render import retry

HERE = Path(__file__).resolve().parent
RECIPE = """\
schema = "facelock.recipe.v1"
name = "toy"
[blueprint]
model = "toy"
size = [16, 16]
fps = 12
window = 6
context = 2
steps = 1
guidance_scale = 1.0
[faces]
detector = "toy"
encoder = "toy"
[lock]
model = "toy"
ladder = [1.0]
target = 0.5
[restore]
upscaler = "toy"
scale = 2
[judge]
encoder = "toy"
"""
FRAMES = 10
SHOTS = [
    {"prompt": "{maria} talking", "seconds": FRAMES / 12},
    {"prompt": "{tom} talking", "seconds": FRAMES / 12},
    {"prompt": "{maria} nodding", "seconds": FRAMES / 12},
]


class Judge(toys.Judge):
    """Sees somebody else in all frames of the first ``bad`` takes that it is shown of a character."""

    def __init__(self, bad=None):
        super().__init__()
        self.bad, self.begun = bad or {}, {}

    def measure(self, frames, identities, *, start=0, before=None):
        name = identities[0].name
        if start == 0:
            self.begun[name] = self.begun.get(name, 0) + 1
        take = (self.begun.get(name, 1) - 1) // 2  # measured twice: locked, and as the blueprint wrote it
        self.wrong = range(1000) if take < self.bad.get(name, 0) else ()
        return super().measure(frames, identities, start=start, before=before)


@pytest.fixture
def parts(monkeypatch, tmp_path):
    """Toy stages behind a recipe of their numbers, a cast of two colours, and no ffmpeg for the shots."""
    toys.write_plainly(monkeypatch.setattr)
    made = toys.Parts(judge=Judge())
    made.loaded, made.folder = [], tmp_path

    def from_recipe(recipe, device):
        made.loaded.append(recipe.name)
        return Pipeline(recipe, made)

    monkeypatch.setattr(Pipeline, "from_recipe", from_recipe)
    monkeypatch.setattr("facelock.storyboards.render.require_ready", lambda *_, **__: None)
    monkeypatch.setattr("facelock.storyboards.render.make_edit", lambda *_: {})
    (tmp_path / "toy.toml").write_text(RECIPE)
    for name in ("maria", "tom"):
        (tmp_path / f"{name}.png").write_bytes(toys.picture(name))
    monkeypatch.chdir(tmp_path)
    return made


def board(shots=SHOTS, **defaults):
    data = {"schema": "facelock.storyboard.v1", "defaults": {"recipe": "toy.toml", "seed": 7, **defaults}}
    data["cast"] = {name: {"face": f"{name}.png"} for name in ("maria", "tom")}
    return Storyboard.from_data({**data, "shots": shots})


def digests(film="film"):
    folder = FilmFolder(film).shots
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.mp4"))}


def test_shots_are_made_with_their_own_seeds_on_one_loaded_pipeline(parts):
    film = facelock.render(board(), "film")
    film.require()
    assert [shot.outcome for shot in film.shots] == ["accepted"] * 3 and film.exit_code == 0
    assert parts.loaded == ["toy"]
    assert list(digests()) == ["s010.mp4", "s020.mp4", "s030.mp4"]
    assert len(set(digests().values())) == 3
    report = json.loads((film.folder / "shots" / "s020.report.json").read_text())
    assert (
        report["characters"][0]["name"] == "tom" and report["settings"]["inputs"]["prompt"] == "tom talking"
    )


def test_a_finished_film_is_not_made_again(parts):
    facelock.render(board(), "film")
    before, calls = digests(), len(parts.backbone.calls)
    heard = []
    facelock.render(board(), "film", on_event=heard.append)
    assert digests() == before and len(parts.backbone.calls) == calls
    assert not [event for event in heard if isinstance(event, events.ChunkMade)]


def test_a_changed_shot_is_made_anew_alone(parts):
    facelock.render(board(), "film")
    before, calls = digests(), len(parts.backbone.calls)
    changed = [SHOTS[0], {**SHOTS[1], "prompt": "{tom} laughing"}, SHOTS[2]]
    heard = []
    facelock.render(board(changed), "film", on_event=heard.append)
    after = digests()
    last = [event for event in heard if isinstance(event, events.ChunkMade)][-1]
    assert last.shot == "s020" and last.eta == 0  # the shot after it is there already
    assert len(parts.backbone.calls) == calls + 2  # the chunks of one shot
    assert [name for name in after if after[name] != before[name]] == ["s020.mp4"]


def test_a_shot_that_is_taken_out_leaves_the_folder(parts):
    facelock.render(board(), "film")
    facelock.render(board(SHOTS[:2]), "film")
    assert list(digests()) == ["s010.mp4", "s020.mp4"]


def test_a_changed_face_is_another_take(parts, tmp_path):
    facelock.render(board(), "film")
    calls = len(parts.backbone.calls)
    (tmp_path / "tom.png").write_bytes(toys.picture("another tom"))
    facelock.render(board(), "film")
    assert len(parts.backbone.calls) == calls + 2


def test_identical_work_is_done_once(parts):
    twice = [{**SHOTS[0], "seed": 5}, {**SHOTS[0], "seed": 5, "name": "again"}]
    heard = []
    film = facelock.render(board(twice), "film", on_event=heard.append)
    assert len(parts.backbone.calls) == 2 and not film.failed
    assert [event.reused for event in heard if isinstance(event, events.ShotEnded)] == [False, True]
    assert digests()["s010.mp4"] == digests()["again.mp4"]


def test_a_missed_shot_is_made_again_with_another_seed(parts):
    parts.judge.bad = {"tom": 2}
    film = facelock.render(board(), "film")
    assert film.shots[1].outcome == "accepted" and film.shots[1].take.number == 2
    takes = FilmFolder("film")
    takes.read()
    seeds = [take.seed for take in takes.records["s020"].takes]
    assert len(set(seeds)) == 3 and [take.outcome for take in takes.records["s020"].takes] == [
        "missed", "missed", "accepted",
    ]  # fmt: skip
    assert digests()["s020.mp4"] == takes.files(film.shots[1].take.key).video.read_bytes()


def test_a_shot_that_misses_every_time_is_reported_and_not_shipped(parts):
    parts.judge.bad = {"tom": 9}
    film = facelock.render(board(tries=2), "film")
    assert [shot.outcome for shot in film.shots] == ["accepted", "missed", "accepted"]
    assert list(digests()) == ["s010.mp4", "s030.mp4"] and film.shots[1].takes == 2
    with pytest.raises(IdentityMissedError, match="1 of 3 shots have no take that can be used") as caught:
        film.require()
    assert "s020: tom is recognised in 0 of 10 frames" in str(caught.value)
    calls = len(parts.backbone.calls)
    facelock.render(board(tries=2), "film")  # the budget is spent: nothing is made again
    assert len(parts.backbone.calls) == calls
    parts.judge.bad = {}
    assert not facelock.render(board(tries=3), "film").failed  # a larger one is used


def test_a_lower_target_accepts_what_was_made(parts):
    parts.judge.bad = {"tom": 9}
    facelock.render(board(tries=1), "film")
    calls = len(parts.backbone.calls)
    assert not facelock.render(board(tries=1, target=0.0), "film").failed
    assert len(parts.backbone.calls) == calls and "s020.mp4" in digests()


def test_a_raised_target_withdraws_the_shot(parts):
    parts.judge.bad = {"tom": 9}
    facelock.render(board(tries=1, target=0.0), "film")
    assert facelock.render(board(tries=1, target=0.5), "film").exit_code == 4
    assert "s020.mp4" not in digests()


def test_one_broken_shot_does_not_stop_the_rest(parts, monkeypatch):
    extend = parts.backbone.extend

    def broken(prompt, context, **rest):
        if "nodding" in prompt:
            raise ZeroDivisionError("oh")
        return extend(prompt, context, **rest)

    parts.backbone.extend = broken
    shots = [SHOTS[2], *SHOTS[:2]]
    film = facelock.render(board(shots), "film")
    assert [shot.outcome for shot in film.shots] == ["failed", "accepted", "accepted"]
    assert film.exit_code == 1 and film.shots[0].takes == 1
    with pytest.raises(FaceLockError, match="this is a bug: ZeroDivisionError: oh"):
        film.require()


def test_a_face_that_cannot_be_used_fails_its_shots_only(parts):
    real = parts.identity

    def identity(reference, **rest):
        if "tom" in str(reference):
            raise InputError("tom.png: no face was found. Give another.")
        return real(reference, **rest)

    parts.identity = identity
    film = facelock.render(board(), "film")
    assert [shot.outcome for shot in film.shots] == ["accepted", "failed", "accepted"]
    assert film.exit_code == 2 and film.shots[1].takes == 1  # another seed would not help
    parts.identity = real
    assert not facelock.render(board(), "film").failed  # corrected, the same command makes it


def test_frames_that_are_not_pictures_get_another_seed(parts):
    extend, fail = parts.backbone.extend, [True]

    def sometimes(prompt, context, **rest):
        frames = extend(prompt, context, **rest)
        return frames * float("nan") if fail and fail.pop() else frames

    parts.backbone.extend = sometimes
    film = facelock.render(board(), "film")
    assert not film.failed and film.shots[0].take.number == 1


def test_a_full_disk_stops_everything_and_keeps_what_is_made(parts, monkeypatch):
    commits = []
    real = toys.Writer.__exit__

    def full(self, *error):
        commits.append(1)
        if len(commits) == 4:
            raise StorageError("the disk is full. Make room.")
        return real(self, *error)

    monkeypatch.setattr(toys.Writer, "__exit__", full)
    with pytest.raises(StorageError):
        facelock.render(board(), "film")
    assert list(digests()) == ["s010.mp4"]
    assert not facelock.render(board(), "film").failed
    assert len(parts.backbone.calls) == 7  # six chunks, one of them twice


@pytest.mark.parametrize("stop", range(1, 24, 4))
def test_a_film_stopped_anywhere_resumes_to_the_same_bytes(parts, stop):
    facelock.render(board(), "whole")
    calls = len(parts.backbone.calls)
    steps = []

    def stopping(event):
        if isinstance(event, events.StageDone):
            steps.append(event)
            if len(steps) == stop:
                raise InterruptedRunError("Interrupted.")

    with pytest.raises(InterruptedRunError):
        facelock.render(board(), "film", on_event=stopping)
    assert not facelock.render(board(), "film").failed
    assert digests() == digests("whole")
    assert len(parts.backbone.calls) - calls <= calls + 1  # at most one chunk is made twice
    assert not list(FilmFolder("film").takes.glob("*.part*"))


def test_what_a_callback_raises_ends_the_run_and_is_no_shot_s_failure(parts):
    def stopping(_):
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        facelock.render(board(), "film", on_event=stopping)


def test_two_runs_on_one_folder(parts, tmp_path):
    (tmp_path / "film").mkdir()
    handle = os.open(tmp_path / "film", os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    with pytest.raises(OutputBusyError):
        facelock.render(board(), "film")
    os.close(handle)
    assert not facelock.render(board(), "film").failed


def test_events_tell_where_the_film_is(parts):
    heard = []
    facelock.render(board(), "film", on_event=heard.append)
    began = [event for event in heard if isinstance(event, events.ShotBegan)]
    assert [(event.number, event.shots, event.take, event.frames) for event in began] == [
        (number, 3, 0, FRAMES) for number in (1, 2, 3)
    ]
    chunks = [event for event in heard if isinstance(event, events.ChunkMade)]
    assert [(event.chunk, event.frame, event.film_frame) for event in chunks] == [
        (0, 6, 6), (1, 10, 10), (0, 6, 16), (1, 10, 20), (0, 6, 26), (1, 10, 30),
    ]  # fmt: skip
    assert all(event.film_frames == 30 and 0.8 < event.similarity < 0.9 for event in chunks)
    assert all(event.peak_memory > 1 << 20 and event.eta >= 0 for event in chunks) and chunks[-1].eta == 0


def test_retry_makes_another_take_and_render_keeps_it(parts):
    facelock.render(board(), "film")
    before = digests()
    film = retry("film", "2")
    assert film.shots[1].take.number == 1 and digests()["s020.mp4"] != before["s020.mp4"]
    after, calls = digests(), len(parts.backbone.calls)
    facelock.render(board(), "film")
    assert digests() == after and len(parts.backbone.calls) == calls
    with pytest.raises(InputError, match="no shot"):
        retry("film", "7")


def test_a_retry_that_finds_nothing_better_keeps_the_accepted_take(parts):
    facelock.render(board(), "film")
    before = digests()
    parts.judge.bad = {"tom": 99}
    film = retry("film", "s020")
    assert not film.failed and film.shots[1].takes == 4 and digests() == before


def test_recipes_are_loaded_once_each(parts, tmp_path):
    (tmp_path / "other.toml").write_text(RECIPE.replace('name = "toy"', 'name = "other"'))
    shots = [SHOTS[0], {**SHOTS[1], "recipe": "other.toml"}, SHOTS[2]]
    assert not facelock.render(board(shots), "film").failed
    assert parts.loaded == ["toy", "other"]


def test_several_pictures_make_one_identity(parts):
    data = {
        **board().data(),
        "cast": {"maria": {"face": ["maria.png", "tom.png"]}, "tom": {"face": "tom.png"}},
    }
    facelock.render(Storyboard.from_data(data), "film")
    report = json.loads((FilmFolder("film").shots / "s010.report.json").read_text())
    assert report["characters"][0]["name"] == "maria"


def test_a_storyboard_that_was_not_loaded_is_checked_all_the_same(parts):
    with pytest.raises(InputError, match=r"shots.0.prompt: \{leo\} is not in the cast"):
        facelock.render(board([{"prompt": "{leo} talking", "seconds": 1}]), "film")
    with pytest.raises(InputError, match="does not exist"):
        facelock.render(board(), "no/such/film")


def test_status_needs_no_models(parts):
    parts.judge.bad = {"tom": 9}
    facelock.render(board(tries=1), "film")
    lines = status_lines("film")
    assert "s010" in lines[0] and "accepted, take 1" in lines[0] and "missed, take 1" in lines[1]
    assert lines[-1] == "2 of 3 shots accepted; no film.mp4 yet; no run is going on"
    with pytest.raises(InputError, match="no film was begun"):
        status_lines("nowhere")


def test_status_does_not_need_the_files_that_the_storyboard_names(parts, tmp_path):
    facelock.render(board(), "film")
    (tmp_path / "tom.png").unlink()
    assert status_lines("film")[-1].startswith("3 of 3 shots accepted")
    (tmp_path / "film" / "board.json").write_text("{")
    with pytest.raises(InputError, match=r"is damaged\. Render the storyboard again"):
        status_lines("film")


def test_a_film_s_own_sound_is_looked_at_before_the_first_shot(parts, tmp_path):
    (tmp_path / "talk.wav").write_bytes(b"not sound")
    whole = Storyboard.from_data({**board().data(), "audio": "talk.wav"}, tmp_path)
    with pytest.raises(InputError, match=r"talk\.wav"):
        facelock.render(whole, "film")
    assert not parts.backbone.calls


def command(capsys, *arguments):
    with pytest.raises(SystemExit) as left:
        cli.main([str(argument) for argument in arguments])
    return left.value.code, *capsys.readouterr()


def test_the_commands(parts, capsys):
    board().save("board.yaml")
    code, out, err = command(capsys, "storyboard", "render", "board.yaml", "-o", "film")
    assert code == 0 and "3 of 3 shots accepted" in out, err
    assert "shot 2/3 s020, seed" in err and "encode 30/30 frames" in err
    code, out, _ = command(capsys, "storyboard", "retry", "film", "--shot", "3", "--json")
    assert code == 0 and json.loads(out)["shots"][2]["number"] == 1
    code, out, _ = command(capsys, "storyboard", "status", "film")
    assert code == 0 and out.count("accepted, take") == 3


@pytest.mark.parametrize("verb", [["render", "board.yaml", "-o", "film"], ["retry", "film", "--shot", "1"]])
def test_a_busy_folder_is_said_before_anything_is_loaded(parts, capsys, tmp_path, verb):
    board().save("board.yaml")
    (tmp_path / "film").mkdir()
    handle = os.open(tmp_path / "film", os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    code, _, err = command(capsys, "storyboard", *verb)
    os.close(handle)
    assert code == 5 and "another run is writing it" in err and "loading" not in err


def test_a_missed_target_leaves_with_4(parts, capsys):
    parts.judge.bad = {"tom": 99}
    board(tries=2).save("board.yaml")
    code, out, err = command(capsys, "storyboard", "render", "board.yaml", "-o", "film", "--quiet")
    assert code == 4 and out == "" and "1 of 3 shots have no take that can be used" in err
    assert "Traceback" not in err


def killed(folder, *points):
    """The uninterrupted six-shot film, and one outcome per kill -9."""
    path = f"{HERE.parent}:{HERE}:{os.environ.get('PYTHONPATH', '')}"
    done = subprocess.run(
        [sys.executable, str(HERE / "storyboard_runner.py"), str(folder), *map(str, points)],
        capture_output=True, text=True, timeout=300, env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_film_killed_at_random_points_resumes_to_the_same_bytes(ram_path):
    rng = random.Random(6)
    whole, *kills = killed(ram_path, *[rng.randrange(10_000) for _ in range(8)])
    assert (
        whole["code"] == 0 and whole["made"] == 12 and len(whole["digests"]) >= 14 and whole["changes"] > 200
    )
    assert len({kill["point"] for kill in kills}) > 6 and all(kill["killed"] for kill in kills)
    for kill in kills:
        where = f"killed at change {kill['point']} of {whole['changes']}"
        assert kill["code"] == 0 and kill["digests"] == whole["digests"] and kill["left"] == [], where
        assert kill["made"] <= 12, where
    assert min(kill["made"] for kill in kills) < 6  # what was finished is not made again


def test_the_benchmark_tells_start_up_from_work():
    watch = Watch(4)
    clock = 10.0
    for shot, startup in enumerate((6.0, 0.3, 0.0, 0.0)):
        watch.hear(events.ShotBegan(str(shot), shot + 1, 4, 0, 0, 9), clock)
        watch.hear(events.StageDone(str(shot), "blueprint", 9, 9), clock + startup + 1)
        watch.hear(events.StageDone(str(shot), "lock", 9, 9), clock + startup + 3)
        clock += startup + 4
        watch.hear(events.ShotEnded(str(shot), 0, 0, "accepted", 1.0, "", False), clock)
    watch.began = 10.0
    found = watch.results()
    assert found["first_startup"] == pytest.approx(6) and found["second_startup"] == pytest.approx(0.3)
    assert found["warm"] == pytest.approx(4) and found["ratio"] == pytest.approx(22.3 / 16)


def test_a_take_that_is_still_being_published_is_not_made(parts):
    film = facelock.render(board(SHOTS[:1]), "film")
    folder, key = FilmFolder("film"), film.shots[0].take.key
    assert folder.is_made(key)
    folder.files(key).partial.mkdir()
    assert not folder.is_made(key)


def test_a_memory_plan_is_remembered_shot_by_shot(parts):
    """--vram of render holds for all shots, that of retry for one, until another is given."""

    def planned():
        return {
            name: shot["vram"]
            for name, shot in json.loads(Path("film/film.json").read_text())["shots"].items()
        }

    facelock.render(board(), "film", vram=24)
    assert planned() == {"s010": 24, "s020": 24, "s030": 24}
    made = digests()
    facelock.render(board(), "film")
    assert planned() == {"s010": 24, "s020": 24, "s030": 24} and digests() == made
    retry("film", "2", vram=16)
    assert planned() == {"s010": 24, "s020": 16, "s030": 24}
    taken = {unit.name: unit.recipe.memory.vram for unit in Plan.of(board()).planned(planned()).units}
    assert taken == planned()
    with pytest.raises(ConfigError, match=r"There is no plan for --vram 13\. Give one of: 8, 12"):
        facelock.render(board(), "film", vram=13)


def test_what_a_recipe_lacks_is_said_before_the_first_shot(parts, monkeypatch):
    monkeypatch.undo()
    monkeypatch.chdir(parts.folder)
    with pytest.raises(ConfigError, match="no model is called 'toy'"):
        facelock.render(board(), "film")
    assert not Path("film").exists()
