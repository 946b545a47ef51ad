"""Whole clips by each backbone, through the pipeline and its journal: resumed with the miniature's other parts, broken
with toys in their place."""

from __future__ import annotations

import hashlib
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import toys
from test_backbones import CASES, Case, no_room, replaced_forward

from facelock.assets import asset_dir
from facelock.errors import ConfigError, DeviceError, FaceLockError
from facelock.pipeline import Pipeline
from facelock.recipe import Recipe
from facelock.runtime import derive_seed

ROOT = Path(__file__).parents[1]
CAST = [ROOT / "samples" / "faces" / f"{name}.png" for name in ("maria", "tom")]
PROMPT = "a woman and a man talking"
WINDOWS = {"helios": (34, 33)}
CHUNKS = 3


@pytest.fixture(scope="module", params=CASES)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Case, Path]:
    found = CASES[request.param]
    folder = tmp_path_factory.mktemp("checkpoint")
    found.save(folder)
    return found, folder


def recipe(case: Case, folder: Path, **changes: Any) -> Recipe:
    """The miniature's, with another blueprint."""
    values = tomllib.loads((asset_dir("pipelines") / "default.toml").read_text())
    window, context = WINDOWS.get(case.kind, (case.window, case.context))
    values["blueprint"] |= {"kind": case.kind, "model": str(folder), "window": window, "context": context}
    values["blueprint"] |= {"steps": 2, "size": [64, 64], "anchor": 0.25, **changes}
    return Recipe.model_validate({**values, "name": "tiny"})


def pipeline(checkpoint: tuple[Case, Path], **changes: Any) -> Pipeline:
    return Pipeline.from_recipe(recipe(*checkpoint, **changes), device="cpu")


def among(parts: Any, checkpoint: tuple[Case, Path], **changes: Any) -> Pipeline:
    """The blueprint, loaded anew, among other parts: toys, or the miniature's."""
    fresh = replace(parts, backbone=pipeline(checkpoint).parts.backbone)
    return Pipeline(recipe(*checkpoint, **changes), fresh)


@pytest.fixture(scope="module")
def mini() -> toys.Parts:
    """The miniature's parts, opened once."""
    own: Any = Pipeline.from_recipe("miniature", device="cpu").parts
    parts = toys.Parts(
        locker=own.locker, restorer=own.restorer, upscaler=own.upscaler, judge=own.judge, weights=own.weights
    )
    parts.cast = [own.identity(picture) for picture in CAST]  # type: ignore[attr-defined]
    return parts


def clip(pipe: Pipeline, cast: Any = CAST) -> Any:
    """Three chunks and one frame of a fourth, of two characters."""
    low = pipe.recipe.blueprint
    frames = low.window + (CHUNKS - 1) * (low.window - low.context) + 1
    return pipe.generate(PROMPT, cast, seconds=frames / low.fps, seed=3)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_resumed_clip_is_the_uninterrupted_one(
    checkpoint: tuple[Case, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mini: toys.Parts
) -> None:
    toys.write_plainly(monkeypatch.setattr)  # frames as bytes, so that every bit counts
    cast = mini.cast  # type: ignore[attr-defined]
    whole = clip(among(mini, checkpoint), cast)
    report = whole.save(tmp_path / "whole.mp4")
    assert report.frames == whole.frames == len({row.frame for row in report.ledger})
    assert {row.character for row in report.ledger} == {"maria", "tom"}

    broken = among(mini, checkpoint)
    extend, calls, seen = broken.parts.backbone.extend, [], set()

    def stops(*args: Any, **kwargs: Any) -> Any:
        calls.append(kwargs["seed"])
        seen.update((person.name, tuple(person.crops.shape)) for person in kwargs["references"])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return extend(*args, **kwargs)

    broken.parts.backbone.extend = stops  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        clip(broken, cast).save(tmp_path / "clip.mp4")
    assert not (tmp_path / "clip.mp4").exists()
    assert seen == {
        ("maria", (1, 3, 384, 384)),
        ("tom", (1, 3, 384, 384)),
    }  # pictures for those who take them

    again = among(mini, checkpoint)
    made: list[int] = []
    extend_again = again.parts.backbone.extend
    again.parts.backbone.extend = lambda *a, **k: (made.append(k["seed"]), extend_again(*a, **k))[1]  # type: ignore[method-assign]
    clip(again, cast).save(tmp_path / "clip.mp4")
    assert len(made) == 2 and made[0] == calls[2]  # the third chunk, and the frame after it
    assert digest(tmp_path / "clip.mp4") == digest(tmp_path / "whole.mp4")


def test_options_of_the_recipe_reach_the_blueprint(tmp_path: Path) -> None:
    case = CASES["vace"]
    case.save(tmp_path)
    pipe = pipeline((case, tmp_path), options={"conditioning_scale": 0.5, "reference_pictures": 0})
    backbone: Any = pipe.parts.backbone
    assert (backbone.conditioning_scale, backbone.reference_pictures) == (0.5, 0)
    assert pipe.recipe.settings()["blueprint"]["options"]["conditioning_scale"] == 0.5


def test_weights_that_are_not_there_are_said_before_anything_is_loaded(
    checkpoint: tuple[Case, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("facelock.assembly.backbone_class", lambda kind: pytest.fail("loaded"))
    with pytest.raises(ConfigError, match="skyreels-v9") as caught:
        pipeline(checkpoint, model="skyreels-v9")
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("fault", "kind", "words"),
    [
        (no_room, DeviceError, "out of memory"),
        (lambda call, x: x * float("nan"), FaceLockError, "not finite"),
    ],
    ids=["no memory", "NaN"],
)
def test_a_fault_in_the_second_chunk_is_one_sentence_and_keeps_the_first(
    checkpoint: tuple[Case, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: Any,
    kind: type[FaceLockError],
    words: str,
) -> None:
    toys.write_plainly(monkeypatch.setattr)
    pipe = among(toys.Parts(), checkpoint)
    backbone: Any = pipe.parts.backbone
    extend = backbone.extend

    def faulty(prompt: str, context: Any, **options: Any) -> Any:
        with monkeypatch.context() as patch:
            if context is not None:
                replaced_forward(backbone, patch, fault)
            return extend(prompt, context, **options)

    backbone.extend = faulty
    with pytest.raises(kind, match=words) as caught:
        clip(pipe).save(tmp_path / "clip.mp4")
    assert len(str(caught.value).splitlines()) == 1
    assert len(list((tmp_path / "clip.mp4.partial").glob("*.mkv"))) == 1


def test_the_context_is_the_locked_tail(checkpoint: tuple[Case, Path]) -> None:
    """What the lock returns, not what the blueprint wrote, is what the next chunk continues from."""
    pipe = among(toys.Parts(), checkpoint, anchor=0.0)
    backbone, contexts = pipe.parts.backbone, []
    extend = backbone.extend

    def noted(prompt: str, context: Any, **options: Any) -> Any:
        contexts.append(context)
        return extend(prompt, context, **options)

    backbone.extend = noted  # type: ignore[method-assign]
    made = list(clip(pipe).made())
    assert contexts[0] is None
    assert torch.equal(contexts[1], made[0].tail.context)
    written = extend(PROMPT, None, seed=derive_seed(3, 0, "blueprint"))[-backbone.context :]
    assert not torch.equal(contexts[1], written)
    assert torch.equal(contexts[1], toys.Locker().lock(written, ())[0])
