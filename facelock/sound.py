"""Sound that a backbone writes with its pictures: cut to the frames, kept with the chunk, joined without a click.

::

    frames, sound = extended(backbone)("a woman talking", None, seed=1)    # sound is None of a silent backbone
    sound = fitted(sound, start=0, frames=97, fps=Fraction(24))             # exactly as long as the frames
    for samples in joined([sound, ...]): ...                                # (C, n), piece by piece

Nobody conditions a chunk's sound on the sound before it, only on the same frames: two chunks meet in a short
crossfade. Each :class:`facelock.types.Sound` therefore begins a little early, with its own version of the end of
the chunk before (its ``lead``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from facelock.errors import FaceLockError
from facelock.protocols import Backbone, SpeakingBackbone
from facelock.types import Sound

Extend = Callable[..., tuple[Tensor, Sound | None]]


def extended(backbone: Backbone) -> Extend:
    """The backbone's ``extend``, with the sound beside the frames; None where it makes none."""
    if isinstance(backbone, SpeakingBackbone):
        return backbone.extend_with_sound
    return lambda *args, **options: (backbone.extend(*args, **options), None)


def fitted(sound: Sound | None, *, start: int, frames: int, fps: Fraction) -> Sound | None:
    """The sound cut to the ``frames`` frames from the clip's frame ``start`` on; its lead stays.

    Chunks' lengths add up: where a frame lasts no whole number of samples, borders are rounded, not lengths.
    Raises ``FaceLockError`` for sound that is too short, not finite, or no (C, N) tensor.
    """
    if sound is None:
        return None
    length = sample_at(start + frames, fps, sound.rate) - sample_at(start, fps, sound.rate)
    samples = sound.samples[..., : sound.lead + length].detach().float().cpu()
    if samples.ndim != 2 or samples.shape[1] < sound.lead + length:
        raise FaceLockError(
            f"The sound of the frames from {start} is {tuple(samples.shape)}, too short for {frames} frames. "
            "This is a bug in the blueprint; please report it."
        )
    if not bool(torch.isfinite(samples).all()):
        raise FaceLockError(f"The sound of the frames from {start} holds NaN or infinity. Try another seed.")
    return Sound(samples.clamp(-1, 1).contiguous(), sound.rate, sound.lead)


def sample_at(frame: int, fps: Fraction, rate: int) -> int:
    """Index of the sample that is heard as ``frame`` appears, rounded half up."""
    return math.floor(frame * rate / fps + Fraction(1, 2))


def joined(pieces: Iterable[Sound]) -> Iterator[Tensor]:
    """The sounds one after the other as (C, n) float32 in [-1, 1], holding two of them at most.

    The end of each fades into the next one's lead at equal power, since the two are alike in kind but not in
    phase; the sum of all n is the sum of the sounds' lengths without their leads.
    """
    waiting: Tensor | None = None
    for piece in pieces:
        lead, samples = piece.samples[:, : piece.lead], piece.samples[:, piece.lead :]
        if waiting is not None:
            yield _faded(waiting, lead)
        waiting = samples
    if waiting is not None:
        yield waiting


def _faded(samples: Tensor, lead: Tensor) -> Tensor:
    """``samples`` (C, n) ending in ``lead`` (C, m), their last sample wholly the lead's."""
    length = min(samples.shape[1], lead.shape[1])
    if not length:
        return samples
    angle = torch.linspace(0, math.pi / 2, length + 1)[1:]
    end = samples[:, -length:] * angle.cos() + lead[:, -length:] * angle.sin()
    return torch.cat([samples[:, :-length], end.clamp(-1, 1)], 1)


def interleaved(samples: Tensor) -> bytes:
    """(C, n) float32 → n frames of C little-endian floats, as ffmpeg's ``f32le`` wants them."""
    return samples.T.contiguous().numpy().astype("<f4").tobytes()


def packed(sound: Sound) -> bytes:
    """The sound as the bytes of a safetensors file; the same sound gives the same bytes."""
    about = torch.tensor([sound.rate, sound.lead])  # a tensor: safetensors orders metadata at random
    return save({"samples": sound.samples, "about": about})


def unpacked(path: Path) -> Sound:
    """What :func:`packed` made, read from a file. Raises ``FaceLockError`` when that is damaged."""
    try:
        stored = load(path.read_bytes())
        rate, lead = stored["about"].tolist()
        return Sound(stored["samples"], rate, lead)
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise FaceLockError(f"{path}: cannot be read back ({error}). Give --restart.") from error
