"""The benches of speed run, measure what they say, and say where they ran."""

from __future__ import annotations

import time

import pytest
import torch
import toys
from tiny_speed import save_checkpoint

from facelock.bench import cast, stages
from facelock.bench.gpu_sizes import FULL
from facelock.bench.timing import Timing, interleaved
from facelock.recipe import load_recipe
from facelock.tuning import Speed, StepCache


def test_arms_take_turns_and_the_first_round_is_cold() -> None:
    seen: list[str] = []

    def slow_once() -> None:
        seen.append("a")
        time.sleep(0.2 if len(seen) == 1 else 0.01)

    times = interleaved({"a": slow_once, "b": lambda: seen.append("b")}, 2)
    assert seen == ["a", "b"] * 3
    assert times["a"].cold > 0.15 > times["a"].warm > 0.005


def test_the_share_is_of_all_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("facelock.bench.timing.cores", lambda: 4)
    assert Timing(9.0, 2.0, 4.0).share() == 0.5


def test_a_long_clip_is_compared_late_with_early(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cast, "identity", lambda who, parts: toys.identity(who.name))
    parts = toys.Parts()
    extend = parts.backbone.extend

    def slower(*args, **kwargs):
        time.sleep(0.02 if len(parts.backbone.calls) > 8 else 0.002)
        return extend(*args, **kwargs)

    parts.backbone.extend = slower
    found = stages.long_clip(toys.pipeline(parts), cast.member(0), 6.0, 0)
    assert found["chunks"] == 18
    assert found["time_ratio"] > 1.2
    assert 0.9 < found["memory_ratio"] < 1.2


def test_stages_shows_every_row(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    """On a tiny checkpoint of the real classes and toy stages, which take no time."""
    save_checkpoint(tmp_path / "model")
    low = load_recipe("miniature").blueprint
    changed = {"model": str(tmp_path / "model"), "size": (32, 48), "steps": 2}
    recipe = load_recipe("miniature").model_copy(update={"blueprint": low.model_copy(update=changed)})
    few = {"cache pab": Speed(cache=StepCache("pab"))}
    toys.write_plainly(monkeypatch.setattr)
    monkeypatch.setattr(stages, "load_recipe", lambda _: recipe)
    monkeypatch.setattr(stages, "speeds", lambda ratios: few if len(ratios) == 2 else {})
    monkeypatch.setattr(stages, "PlainSwap", lambda _, **options: lambda frames, identity: frames)
    monkeypatch.setattr(cast, "identity", lambda who, parts: toys.identity(who.name))
    monkeypatch.setattr(
        stages.Pipeline, "from_recipe", lambda recipe, _: toys.pipeline(speed=recipe.speed.model_dump())
    )
    shots: list[float] = []
    arms = {"insightface loop": 7.5, "the same, at our detection size": 1.5}
    monkeypatch.setattr(stages.lock, "run", lambda **_: {"ratio": arms})
    monkeypatch.setattr(
        stages.film,
        "run",
        lambda *, seconds, **_: shots.append(seconds) or {"shots": 8, "ratio": 1.04},
    )
    monkeypatch.setattr(stages, "guided", lambda *_: {"ratio": 1.55})
    monkeypatch.setattr(stages.kept, "similarity", lambda recipe, *_: 0.9 - 0.001 * recipe.speed.overlap)
    told = []
    found = stages.run(seconds=1.5, out=tmp_path, rounds=1, progress=lambda *step: told.append(step))
    assert told[-1] == ("parts", 9, 9) and shots == [0.5]
    off = found["lock off"]  # how large, no busy machine can tell: the two are what was timed
    times = [off["seconds"][arm]["warm"] for arm in ("FaceLock, lock off", "diffusers")]
    assert min(times) > 0 and off["ratio"] == pytest.approx(times[0] / times[1])
    assert found["busy"]["same_bytes"]
    assert len(found["overhead"]["ratios"]) == 2
    assert set(found["choices"]["seconds"]) == {"none", "cache pab"}
    text = (tmp_path / "stages.md").read_text()
    for row in (
        "lock off ÷ plain diffusers call",
        "busy ÷ wall, overlap",
        "insightface loop ÷ the lock alone | 7.50",
        "8 shots ÷ 8 × one warm shot | 1.040",
        "guided step ÷ plain step | 1.55",
        "cache pab",
        "all at once | 0.8990 | -0.0010",
        "MagCache",
    ):
        assert row in text


def test_steps_are_timed_with_and_without_a_guide() -> None:
    found = stages.guided(load_recipe("miniature"), "cpu", cast.member(0), 0, 1)
    assert found["ratio"] == found["seconds_per_step"]["guided"] / found["seconds_per_step"]["plain"]


def test_production_sizes_are_the_published_ones() -> None:
    """1.3 and 14 billion weights and the tokens of 480p, without making them."""
    from diffusers import SkyReelsV2Transformer3DModel

    for options, weights in ((FULL.network, 1.42e9), (FULL.large, 14.29e9)):
        with torch.device("meta"):
            network = SkyReelsV2Transformer3DModel(in_channels=16, out_channels=16, **options)
        assert sum(p.numel() for p in network.parameters()) == pytest.approx(weights, rel=0.02)
    frames, (height, width) = (FULL.window - 1) // 4 + 1, FULL.blueprint
    assert frames * (height // 16) * (width // 16) == 32760
