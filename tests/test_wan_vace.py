"""Wan VACE on a tiny random checkpoint: it is the published pipeline, continued from locked frames."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import pytest
import tiny_wan
import torch
from diffusers import WanVACEPipeline
from PIL import Image
from tiny_wan import PROMPT, TEXT_TOKENS
from torch import Tensor

from facelock.blueprint.wan_vace import WanVace
from facelock.errors import ConfigError, ModelError
from facelock.types import Identity

SETTINGS = {"size": (32, 48), "fps": 16, "window": 9, "context": 5, "steps": 3, "guidance_scale": 3.0}


def picture(seed: int, *shape: int) -> Tensor:
    """Random 8-bit pictures, so that PIL holds them exactly."""
    values = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed))
    return values.float() / 255


MARIA = Identity("maria", {}, crops=picture(1, 2, 3, 384, 384))
TOM = Identity("tom", {}, crops=picture(2, 1, 3, 384, 384))
TAIL = picture(3, 5, 3, 32, 48)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_wan.vace(tmp_path_factory.mktemp("vace"))


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_wan.vace(tmp_path_factory.mktemp("experts"), experts=True)


@pytest.fixture(scope="module")
def backbone(folder: Path) -> WanVace:
    return WanVace(folder, **SETTINGS)


def pil(picture: Tensor) -> Image.Image:
    return Image.fromarray((picture * 255).round().byte().permute(1, 2, 0).numpy())


def published(folder: Path, seed: int, tail: Tensor | None, people: list[Identity], **options) -> Tensor:
    """What ``WanVACEPipeline`` makes of the same: (9, 3, 32, 48)."""
    pipe = WanVACEPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    kept = 0 if tail is None else len(tail)
    given = {"reference_images": [pil(person.crops[0]) for person in people] or None}
    if kept:
        grey = Image.new("RGB", (48, 32), (128, 128, 128))
        black, white = (Image.new("L", (48, 32), level) for level in (0, 255))
        given["video"] = [*map(pil, tail)] + [grey] * (9 - kept)
        given["mask"] = [black] * kept + [white] * (9 - kept)
    plain = pipe.preprocess_conditions

    def exactly_grey(*arguments):  # PIL has no 127.5, which its documentation says is meant
        video, mask, pictures = plain(*arguments)
        return video * (mask < 0.5), mask, pictures

    pipe.preprocess_conditions = exactly_grey
    made = pipe(
        PROMPT, height=32, width=48, num_frames=9, num_inference_steps=3, guidance_scale=3.0,
        generator=torch.Generator().manual_seed(seed), max_sequence_length=TEXT_TOKENS, output_type="pt",
        **given, **options,
    )  # fmt: skip
    return made.frames[0]


@pytest.mark.parametrize("people", [[], [MARIA], [MARIA, TOM]], ids=["nobody", "one", "two"])
@pytest.mark.parametrize("tail", [None, TAIL], ids=["new", "continued"])
def test_it_equals_the_published_pipeline(
    folder: Path, backbone: WanVace, people: list[Identity], tail: Tensor | None
) -> None:
    expected = published(folder, 4, tail, people)
    found = backbone.extend(PROMPT, tail, seed=4, references=people)
    assert len(found) == (9 if tail is None else 4)
    assert (found - expected[-len(found) :]).abs().max() < 1e-4


def test_two_transformers_equal_the_published_pipeline(experts: Path) -> None:
    backbone = WanVace(experts, **SETTINGS, conditioning_scale=0.7, guidance_scale_2=1.5)
    assert set(backbone.modules) == {"text_encoder", "transformer", "transformer_2", "vae"}
    expected = published(experts, 5, TAIL, [MARIA], conditioning_scale=0.7, guidance_scale_2=1.5)
    found = backbone.extend(PROMPT, TAIL, seed=5, references=[MARIA])
    assert (found - expected[5:]).abs().max() < 1e-4
    same = WanVace(experts, **SETTINGS, conditioning_scale=0.7).extend(
        PROMPT, TAIL, seed=5, references=[MARIA]
    )
    assert not torch.equal(found, same)


def test_every_character_and_every_picture_counts(folder: Path, backbone: WanVace) -> None:
    def made(of: WanVace, *people: Identity) -> Tensor:
        return of.extend(PROMPT, TAIL, seed=0, references=people)

    two = WanVace(folder, **SETTINGS, reference_pictures=2)
    none = WanVace(folder, **SETTINGS, reference_pictures=0)
    results = [made(backbone), made(backbone, MARIA), made(backbone, TOM), made(backbone, MARIA, TOM)]
    results += [made(backbone, TOM, MARIA), made(two, MARIA)]
    for index, one in enumerate(results):
        assert not any(torch.equal(one, other) for other in results[:index])
    assert torch.equal(made(none, MARIA, TOM), results[0])


def test_who_has_no_picture_is_named_once(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    backbone, nobody = WanVace(folder, **SETTINGS), Identity("ann", {})
    with caplog.at_level(logging.WARNING):
        for seed in range(3):
            found = backbone.extend(PROMPT, None, seed=seed, references=[nobody])
    assert [record.getMessage().split()[0] for record in caplog.records] == ["ann"]
    assert torch.equal(found, backbone.extend(PROMPT, None, seed=2))


@pytest.mark.parametrize("window", [8, 7, 6])
def test_windows_that_the_autoencoder_cannot_write_are_asked_for_rounded_up(
    folder: Path, backbone: WanVace, window: int
) -> None:
    odd = WanVace(folder, **(SETTINGS | {"window": window}))
    for tail in (None, TAIL):
        whole, cut = backbone.extend(PROMPT, tail, seed=0), odd.extend(PROMPT, tail, seed=0)
        assert len(cut) == (window if tail is None else window - 5)
        assert torch.equal(cut, whole[: len(cut)])


def test_the_guide_sees_frames_alone_and_changes_the_result(folder: Path) -> None:
    class Guide:
        def __init__(self) -> None:
            self.seen: list[object] = []

        def begin(self, references: Sequence[Identity]) -> None:
            self.seen.append([person.name for person in references])

        def __call__(self, x0: Tensor, sigma: float, step: int, known: int) -> Tensor:
            self.seen.append((tuple(x0.shape), step, known))
            return torch.zeros_like(x0)

    guide = Guide()
    backbone = WanVace(folder, **SETTINGS, guide=guide)
    found = backbone.extend(PROMPT, TAIL, seed=0, references=[MARIA, TOM])
    assert guide.seen == [["maria", "tom"], *[((1, 16, 3, 4, 6), step, 0) for step in range(3)]]
    expected = backbone._decode(torch.zeros(1, 16, 3, 4, 6))[5:]
    assert (found - expected).abs().max() < 1e-4  # what the guide asked for, exactly


def test_settings_that_do_not_fit_are_refused(folder: Path) -> None:
    for changed, words in [
        ({"guidance_scale_2": 2.0}, "guidance_scale_2 = 2.0"),
        ({"context_noise": 0.02}, "context_noise = 0.02. Give 0"),
        ({"window": 161}, "at most 32"),
    ]:
        with pytest.raises(ConfigError, match=words):
            WanVace(folder, **(SETTINGS | changed))


def test_parts_of_different_models_are_refused(tmp_path: Path) -> None:
    tiny_wan.vace(tmp_path, vace_in_channels=32)
    with pytest.raises(ModelError, match="transformer takes 16 and 32 channels"):
        WanVace(tmp_path, **SETTINGS)
