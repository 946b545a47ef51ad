"""Training of what the aligner reads: a moment off a crop, a face's parameters off an identity embedding."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from facelock.miniature import data, world
from facelock.miniature.alignment import SIDE, detected, embedding, labels_of, warp
from facelock.miniature.model_aligner import MOMENT, OUTPUTS, IdentityReader, Reader, face_parameters
from facelock.miniature.moments import packed, unpacked
from facelock.miniature.parameters import IDENTITY, Params, identity_vector, take
from facelock.miniature.recognition import degrade
from facelock.miniature.trainer import in_float32
from facelock.nets.recogniser import Recogniser

Shard = tuple[np.ndarray, Tensor, Params, Params, int]
"""Pictures, landmarks, faces, labels, and how many in a row are of one clip."""


class Moments(NamedTuple):
    """Canonical crops, and what they show."""

    crops: Tensor
    """(n, 3, 128, 128) in [0, 1]."""
    labels: Tensor
    """(n, len(OUTPUTS))."""
    faces: Params
    """(n,) each."""


class MomentPool:
    """Rendered frames and windows with what the reader must read: exact labels, recomputed from the shards' seeds.

    The last of several ``decoded`` shards is kept from training, to measure on.
    """

    def __init__(self, root: Path) -> None:
        self.rendered, self.decoded = list[Shard](), list[Shard]()
        for i, s in enumerate(data.shards("frames", root)):
            count, size = s["images"].shape[0], s["images"].shape[-1]
            face, look, now, nobody = data.draw_frames("train", i, count, data.people("frames", count))
            keep = torch.nonzero(~nobody).flatten()
            self.rendered.append(self._shard(s["images"], keep, face, look, now, size, 1))
        for pictures, *shown in data.decoded(root):
            every = torch.arange(len(pictures["images"]))
            for name, to in (("rendered", self.rendered), ("images", self.decoded)):
                to.append(self._shard(pictures[name], every, *shown, 64, data.SPAN))
        several = len(self.decoded) > 1
        self.unseen = self.decoded.pop() if several else [*self.rendered, *self.decoded][-1]
        if several:
            self.rendered.pop()

    def _shard(
        self, images: np.ndarray, keep: Tensor, face: Params, look: Params, now: Params, size: int, run: int
    ) -> Shard:
        """Pictures with what they show; each ``run`` of them, one after the other, is of one clip."""
        points, _ = world.landmarks(face, now, size)
        return images, points, face, take(labels_of(look, now), keep) | {"row": keep}, run

    def draw(self, n: int, generator: torch.Generator, *, decoded: bool = False) -> Moments:
        """``n`` canonical crops with a detector's jitter.

        As rendered, or ``decoded``: as the autoencoder leaves them, where that set was built. The second half shows
        other frames of the clips of the first half, or the same picture again where it is of no clip.
        """
        return self._crops((decoded and self.decoded) or self.rendered, n, generator)

    def draw_unseen(self, n: int, generator: torch.Generator) -> Moments:
        """The same out of the pictures that :meth:`draw` leaves out."""
        return self._crops([self.unseen], n, generator)

    def _crops(self, choice: list[Shard], n: int, generator: torch.Generator) -> Moments:
        images, points, faces, labels, run = choice[
            int(torch.randint(len(choice), (1,), generator=generator))
        ]
        first = torch.randint(labels["row"].shape[0], (n // 2,), generator=generator)
        other = first // run * run + torch.randint(run, (n // 2,), generator=generator)
        pick = torch.cat([first, other])
        rows = labels["row"][pick]
        size = images.shape[-1]
        matrices, told = detected(points[rows], take(labels, pick), size, generator)
        frames = torch.from_numpy(images[rows.numpy()]).float() / 255
        return Moments(warp(frames, matrices), told, take(faces, rows))


LIGHT = ("light_x", "light_y", "ambient", "intensity", "temperature")
DOUBLE = ("yaw", "pitch", "roll", "scale", "tx", "ty", "open", "smile", "blink", *LIGHT)
"""What counts double in the reader's loss: motion and flicker hang on it."""
CHANGE = 2.0
"""Weight of the reader's error in what changes within a clip, beside its error in each frame."""
DECODED = 0.65
"""Share of the reader's batches that the autoencoder has compressed, which is what it meets in a clip."""


PIXEL = 0.3
"""Weight of a pixel of the crop that a reading puts landmarks off: errors that make up for each other count less."""
IDENTITY_PIXEL = 0.1
"""The same of a face's parameters."""


def moment_of(values: Tensor) -> Params:
    """The reader's values (n, len(OUTPUTS)) by name, as far as landmarks hang on them."""
    return {name: values[:, i] for i, name in enumerate(MOMENT)}


def apart(read: Params, face: Params, then: Params, now: Params) -> Tensor:
    """How far landmarks are from the truth, in pixels of the crop (smooth L1): face ``read`` at the moment ``then``."""
    with in_float32(now["yaw"].device):
        found, truth = world.landmarks(read, then, SIDE)[0], world.landmarks(face, now, SIDE)[0]
        return F.smooth_l1_loss(found, truth, beta=1.0)


def change_in_clip(rows: Tensor) -> Tensor:
    """(n, ...) drawn from a :class:`MomentPool` → (n ÷ 2, ...): each moment minus the other of its clip."""
    half = len(rows) // 2
    return rows[:half] - rows[half:]


class ReaderTask:
    """Trains the aligner's reader: pose, expression, gaze, light and look of a crop, however blurred."""

    name, bf16, rate = "reader", True, 2e-3

    def __init__(self, root: Path, steps: int, batch: int = 64) -> None:
        self.pool = MomentPool(root)
        sample = torch.cat([self.pool.draw(64, data.seeded(i)).labels for i in range(16)])
        self._build(steps, batch, sample)

    def _build(self, steps: int, batch: int, sample: Tensor) -> None:
        self.steps, self.batch = steps, batch
        torch.manual_seed(9)
        self.module: nn.Module = Reader().to(memory_format=torch.channels_last)
        self.module.standardise(sample)  # type: ignore[operator]

    def draw(self, step: int, generator: torch.Generator) -> tuple[Any, ...]:
        """Crops (B, 3, 128, 128), often blurred, what they show (B, len(OUTPUTS)), and whose faces these are (V, B);
        halves as the pool has them.
        """
        decoded = bool(torch.rand(1, generator=generator) < DECODED)
        x, labels, faces = self.pool.draw(self.batch, generator, decoded=decoded)
        if torch.rand(1, generator=generator) < (0.3 if decoded else 0.7):
            x = degrade(x, generator, 0.14)
        return x, labels, packed(faces, tuple(IDENTITY))

    def loss(self, step: int, batch: tuple[Any, ...]) -> tuple[Tensor, dict[str, Tensor]]:
        """Squared error of the standardised labels (``DOUBLE`` counts double), of their change within a clip, which
        makes motion and flicker, and how far landmarks would be off.
        """
        x, labels, faces = batch
        module: Any = self.module
        out = module.standard(x.contiguous(memory_format=torch.channels_last)).float()
        wrong = out - (labels - module.mean) / module.deviation
        error = wrong.clamp(-6, 6).square().mean(0)
        change = change_in_clip(wrong).clamp(-6, 6).square().mean(0)
        weight = torch.tensor([1.0 + (name in DOUBLE) for name in OUTPUTS], device=error.device)
        loss = ((error + CHANGE * change) * weight).mean()
        figures = {"pose": error[:6].mean(), "face": error[6:12].mean(), "change": change.mean()}
        face = unpacked(faces.float(), tuple(IDENTITY))
        read = out * module.deviation + module.mean
        figures["pixels"] = apart(face, face, moment_of(read), moment_of(labels))
        return loss + PIXEL * figures["pixels"], figures


STRETCHED = ("yaw", "pitch", "roll", "open", "smile", "gaze_x")
STRETCH_LIMIT = 1.5


@torch.no_grad()
def keep_motion(reader: nn.Module, pool: MomentPool, batches: int = 40) -> dict[str, float]:
    """Stretch what the reader says of pose, mouth and gaze about its mean, until it says as much as there is.

    Least squares shrinks what it cannot see well, so a head would turn less after the lock than before; and where what
    changes within a clip weighs double, a smile that hardly changes is taken back to lie still. Measured on pictures
    that it was not trained on. Returns the factors, from 1 to ``STRETCH_LIMIT``: the square root of the ratio of the
    variances of changes within a clip, or the slope of the truth over what is read, if that is steeper.
    """
    drawn = [pool.draw_unseen(64, torch.Generator().manual_seed(i)) for i in range(batches)]
    reader.eval()
    truths, readings = [each.labels for each in drawn], [reader(each.crops) for each in drawn]
    there, said = (
        torch.cat([change_in_clip(rows) for rows in all_rows]).square().mean(0)
        for all_rows in (truths, readings)
    )
    ratio = (there / said.clamp(min=1e-9)).sqrt()
    truth, read = torch.cat(truths), torch.cat(readings)
    centred = read - read.mean(0)
    slope = (centred * truth).mean(0) / centred.square().mean(0).clamp(min=1e-9)
    most = torch.maximum(ratio, slope).clamp(1, STRETCH_LIMIT)
    factors = {name: float(most[OUTPUTS.index(name)]) for name in STRETCHED}
    for name, factor in factors.items():
        reader.get_buffer("deviation")[OUTPUTS.index(name)] *= factor
    return factors


BLURRED = 0.3
"""Share of the crops that the identity reader's embeddings are of which are blurred a little."""


class IdentityReaderTask:
    """Trains the map from the identity embedding to the renderer's face parameters.

    On people whom the recogniser did not learn from: those it knows better than anybody whom it will meet.
    """

    name, bf16, rate = "identity_reader", False, 2e-3

    def __init__(self, root: Path, recogniser: Recogniser, steps: int, batch: int = 512) -> None:
        self._build(recogniser, steps, batch)
        vectors, wanted = [], []
        for i, s in enumerate(data.shards("people", root)):
            g = data.seeded(13, i)
            wanted.append(identity_vector(data.draw_people(i, len(s["images"]))[0]))
            for rows in np.array_split(s["images"], len(s["images"]) // 256 + 1):
                x = torch.from_numpy(np.array(rows)).float() / 255
                if torch.rand(1, generator=g) < BLURRED:
                    x = degrade(x, g, 0.6)
                with torch.no_grad():
                    vectors.append(embedding(recogniser, x))
        self.vectors, self.wanted = torch.cat(vectors), torch.cat(wanted)

    def _build(self, recogniser: Recogniser, steps: int, batch: int) -> None:
        self.steps, self.batch = steps, batch
        recogniser.eval().requires_grad_(False)
        torch.manual_seed(10)
        self.module: nn.Module = IdentityReader(recogniser.get_buffer("lift"))

    def draw(self, step: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Embeddings (B, 512) and the parameters of the faces they are of (B, V)."""
        i = torch.randint(len(self.vectors), (self.batch,), generator=generator)
        return self.vectors[i], self.wanted[i]

    def loss(self, step: int, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Smooth L1 of the parameters, of which many are seen well and some hardly at all; and of the landmarks."""
        embeddings, wanted = batch
        read = self.module(embeddings)
        loss = F.smooth_l1_loss(read, wanted, beta=0.3)
        still = {k: torch.zeros_like(read[:, 0]) for k in MOMENT} | {
            "scale": torch.full_like(read[:, 0], 1.2)
        }
        pixels = apart(face_parameters(read), face_parameters(wanted), still, still)
        return loss + IDENTITY_PIXEL * pixels, {"loss": loss, "pixels": pixels}
