"""The engine ``ray``: the bytes of the engine ``local``, lost workers survived, and no endless waits."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from pathlib import Path
from unittest import mock

import pytest
import toys
from test_storyboard_render import FRAMES, RECIPE, digests

import facelock
from facelock.errors import ConfigError, EnvironmentFailure, InterruptedRunError
from facelock.pipeline import Pipeline
from facelock.storyboard import Storyboard
from facelock.storyboards import cluster, events
from facelock.storyboards.film import FilmFolder, ShotRecord, result_of
from facelock.storyboards.plan import Plan
from facelock.storyboards.render import Cluster

LOST = 2
"""Workers that are killed; each costs the start of a process. Ten were survived when this was written."""
WORDS = ("talking", "nodding", "laughing", "smiling", "turning", "still")
ray = pytest.mark.skipif(
    not cluster.importlib.util.find_spec("ray"), reason="needs ray (extra cluster): it is 240 MB"
)


READY = "facelock.storyboards.render.require_ready"
"""No catalog knows the toys' models."""


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    """Workers import this file."""
    here = Path(__file__).resolve().parent
    monkeypatch.setenv("PYTHONPATH", f"{here.parent}:{here}:{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setattr(READY, lambda *_, **__: None)


def build(recipe, device):
    """Toy stages in a worker, each chunk slow enough to be killed in; the process id is left on the disk."""
    toys.write_plainly(lambda name, value: mock.patch(name, value).start())
    parts = toys.Parts()
    extend = parts.backbone.extend

    def noted(*args, **kwargs):
        Path("/tmp", os.environ.get("STORYBOARD_PIDS", "")).joinpath(f"{os.getpid()}.pid").touch()  # noqa: S108
        time.sleep(0.2)
        return extend(*args, **kwargs)

    parts.backbone.extend = noted
    return Pipeline(recipe, parts)


def board(folder):
    (folder / "toy.toml").write_text(RECIPE)
    (folder / "maria.png").write_bytes(toys.picture("maria"))
    shots = [{"prompt": f"{{maria}} {word}", "seconds": FRAMES / 12} for word in WORDS]
    shots += [{**shots[0], "seed": 1}, {**shots[0], "seed": 1}]  # the same work twice
    data = {"schema": "facelock.storyboard.v1", "cast": {"maria": {"face": "maria.png"}}, "shots": shots}
    return Storyboard.from_data({**data, "defaults": {"recipe": "toy.toml"}}, folder)


def on_cluster(plan, folder, tell, **where):
    film = FilmFolder(folder)
    film.folder.mkdir()
    film.prepare()
    film.records = {unit.name: ShotRecord() for unit in plan.units}
    cluster.make_on_cluster(plan, film, tell, Cluster(device="cpu", **where), build)
    return [result_of(film, unit.name, unit.target) for unit in plan.units]


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """The film of the engine ``local``."""
    home = tmp_path_factory.mktemp("local")
    with pytest.MonkeyPatch.context() as patch:
        toys.write_plainly(patch.setattr)
        patch.setattr(Pipeline, "from_recipe", lambda recipe, device: Pipeline(recipe, toys.Parts()))
        patch.setattr("facelock.storyboards.render.make_edit", lambda *_: {})
        patch.setattr(READY, lambda *_, **__: None)
        facelock.render(board(home), home / "film", device="cpu")
    return digests(home / "film")


@ray
def test_lost_workers_are_survived_with_the_same_bytes(local, tmp_path, monkeypatch):
    pids = tmp_path / "pids"
    pids.mkdir()
    monkeypatch.setenv("STORYBOARD_PIDS", str(pids))
    heard, killed = [], []

    def tell(event):
        heard.append(event)
        if len(killed) >= LOST or not isinstance(event, events.StageDone):
            return
        for path in pids.glob("*.pid"):
            path.unlink()
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(path.stem), signal.SIGKILL)
                killed.append(path.stem)
            return

    results = on_cluster(Plan.of(board(tmp_path)), tmp_path / "film", tell, workers=2)
    assert len(killed) == LOST and [result.outcome for result in results] == ["accepted"] * 8
    assert digests(tmp_path / "film") == local
    last = [event for event in heard if isinstance(event, events.ChunkMade)][-1]
    assert last.film_frames == 8 * FRAMES and last.film_frame <= last.film_frames


@ray
def test_more_than_there_is_is_refused_at_once(tmp_path):
    plan = Plan.of(board(tmp_path))
    with pytest.raises(EnvironmentFailure, match="has 0 GPUs, one for each worker, and 1 is wanted"):
        film = FilmFolder(tmp_path / "film")
        cluster.make_on_cluster(plan, film, lambda _: None, Cluster(device="cuda"), build)


@ray
def test_a_cluster_that_is_not_there_is_one_sentence(tmp_path):
    film = FilmFolder(tmp_path / "film")
    with pytest.raises(EnvironmentFailure, match=r"127\.0\.0\.1:1 cannot be used"):
        cluster.make_on_cluster(Plan.of(board(tmp_path)), film, print, Cluster("127.0.0.1:1"), build)


@ray
def test_what_a_callback_raises_ends_the_run(tmp_path):
    def stop(_):
        raise InterruptedRunError("Interrupted.")

    with pytest.raises(InterruptedRunError):
        on_cluster(Plan.of(board(tmp_path)), tmp_path / "film", stop, workers=1)


def test_without_ray_it_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(EnvironmentFailure, match=r"pip install 'facelock-video\[cluster\]'"):
        facelock.render(board(tmp_path), tmp_path / "film", engine="ray")
    with pytest.raises(ConfigError, match="no engine 'slurm'"):
        facelock.render(board(tmp_path), tmp_path / "film", engine="slurm")
