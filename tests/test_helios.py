"""Helios on a tiny random checkpoint: it is the published pipeline, continued from locked frames."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_wan
import torch
from diffusers import HeliosPipeline
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from PIL import Image
from tiny_wan import PROMPT, TEXT_TOKENS
from torch import Tensor

from facelock.blueprint.helios import Helios
from facelock.errors import ConfigError, ModelError

SETTINGS = {"size": (32, 48), "fps": 24, "window": 99, "context": 66, "steps": 2, "guidance_scale": 3.0}


def tail(count: int) -> Tensor:
    """Random 8-bit frames, so that PIL holds them exactly."""
    values = torch.randint(0, 256, (count, 3, 32, 48), generator=torch.Generator().manual_seed(7))
    return values.float() / 255


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_wan.helios(tmp_path_factory.mktemp("helios"))


def published(folder: Path, seed: int, frames: int, context: Tensor | None = None) -> Tensor:
    """The clean latents that ``HeliosPipeline`` makes, the encoded context before them: (1, z, F, h, w)."""
    pipe = HeliosPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    given = {}
    if context is not None:
        pictures = (context * 255).round().byte().permute(0, 2, 3, 1).numpy()
        given = {"video": [Image.fromarray(p) for p in pictures], "add_noise_to_video_latents": False}
    return pipe(
        PROMPT, height=32, width=48, num_frames=frames, num_inference_steps=2, guidance_scale=3.0,
        generator=torch.Generator().manual_seed(seed), max_sequence_length=TEXT_TOKENS, output_type="latent",
        **given,
    ).frames  # fmt: skip


@pytest.fixture
def mode(monkeypatch: pytest.MonkeyPatch) -> None:
    """The published pipeline draws from the posterior; here its most likely value is taken."""
    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mode())


@pytest.mark.usefixtures("mode")
@pytest.mark.parametrize(("window", "context"), [(99, 33), (99, 66)])
def test_it_equals_the_published_pipeline(folder: Path, window: int, context: int) -> None:
    """New clips of several sections, and continuations from one or two sections of locked frames."""
    backbone = Helios(folder, **(SETTINGS | {"window": window, "context": context}))
    expected = published(folder, 3, window)
    with torch.no_grad():
        texts = backbone._embed(PROMPT)
        assert (backbone._denoise(texts, None, seed=3) - expected).abs().max() < 1e-4
        past = backbone._condition(tail(context), ())
        made = backbone._denoise(texts, past, seed=4)
    expected = published(folder, 4, window - context, tail(context))
    assert (made - expected[:, :, -made.shape[2] :]).abs().max() < 1e-4


@pytest.mark.parametrize("scheduler", [{"scheduler_type": "euler"}, {"time_shift_type": "exponential"}])
def test_other_schedules_equal_the_published_pipeline(tmp_path: Path, scheduler: dict) -> None:
    tiny_wan.helios(tmp_path, **scheduler)
    backbone = Helios(tmp_path, **(SETTINGS | {"window": 34, "context": 33}))
    with torch.no_grad():
        made = backbone._denoise(backbone._embed(PROMPT), None, seed=3)
    assert (made - published(tmp_path, 3, 66)).abs().max() < 1e-4


def test_sections_are_decoded_whole_and_cut_to_what_was_asked(folder: Path) -> None:
    """The published pipeline gives 97 frames for 99; here all are there, whatever the recipe's numbers."""
    whole = Helios(folder, **SETTINGS)
    assert (whole.first_chunk, whole.chunk) == (99, 33)
    first = whole.extend(PROMPT, None, seed=0)
    assert len(first) == 99
    odd = Helios(folder, **(SETTINGS | {"window": 90}))
    assert torch.equal(odd.extend(PROMPT, None, seed=0), first[:90])
    more = odd.extend(PROMPT, first[-66:], seed=1)
    assert len(more) == odd.chunk == 24
    assert torch.equal(more, whole.extend(PROMPT, first[-66:], seed=1)[:24])


def test_the_oldest_and_the_newest_frame_of_the_context_count(folder: Path) -> None:
    backbone, past = Helios(folder, **SETTINGS), tail(66)
    base = backbone.extend(PROMPT, past, seed=0)
    for frame in (0, 20, 65):
        bent = past.clone()
        bent[frame] = 1 - bent[frame]
        assert not torch.equal(backbone.extend(PROMPT, bent, seed=0)[0], base[0]), frame


def test_context_noise_is_seeded(folder: Path) -> None:
    noisy, past = Helios(folder, **SETTINGS, context_noise=0.12), tail(66)
    found = noisy.extend(PROMPT, past, seed=0)
    assert torch.equal(found, noisy.extend(PROMPT, past, seed=0))
    assert not torch.equal(found, Helios(folder, **SETTINGS).extend(PROMPT, past, seed=0))


def test_settings_that_do_not_fit_are_refused(folder: Path) -> None:
    for changed, words in [
        ({"context": 65}, r"context = 65. Give n \* 33 frames"),
        ({"flow_shift": 3.0}, "flow_shift = 3.0"),
        ({"context_noise": 0.3}, "between 0 and 0.2"),
    ]:
        with pytest.raises(ConfigError, match=words):
            Helios(folder, **(SETTINGS | changed))


def test_a_pyramid_scheduler_is_refused(tmp_path: Path) -> None:
    tiny_wan.helios(tmp_path, stages=3, stage_range=[0, 1 / 3, 2 / 3, 1])
    with pytest.raises(ModelError, match="3 stages"):
        Helios(tmp_path, **SETTINGS)
