"""Training that renders what it learns from: no batch comes twice, nothing is read from disk. For a GPU.

A task's ``draw`` draws parameters on the CPU, from the step's own seed; ``loss`` renders them where its network is, and
then does what the task of the same name does with a rendered set. Only the blueprint's windows are made beforehand
(:mod:`facelock.miniature.windows`): latents, and what the autoencoder leaves of their frames.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from facelock.miniature import data, world
from facelock.miniature.alignment import (
    CROP_TEMPLATE,
    SIDE,
    AlignmentTask,
    detected,
    embedding,
    labels_of,
    warp,
)
from facelock.miniature.detection import DetectionTask, augmented
from facelock.miniature.moments import (
    FRAME,
    MOVING,
    STILL,
    clips,
    packed,
    people,
    portraits,
    rendered,
    seeded,
    shown,
)
from facelock.miniature.parameters import (
    IDENTITY,
    concat,
    identity_vector,
    sample_appearance,
    sample_identity,
    sample_nuisance,
    take,
)
from facelock.miniature.reading import BLURRED, DECODED, IdentityReaderTask, ReaderTask
from facelock.miniature.recognition import SIZE, RecognitionTask, degrade
from facelock.miniature.tiny_decoder import TinyDecoderTask, make_tiny_decoder
from facelock.miniature.trainer import in_bfloat16, in_float32, moved, normal_numbers, seed_of
from facelock.miniature.upscaling import UpscalingTask
from facelock.miniature.vae import FEATURES, VaeTask, box_weight, feature_weight, latents_shape
from facelock.miniature.windows import Windows
from facelock.nets.compact_sr import CompactSR
from facelock.nets.recogniser import Recogniser

PEOPLE = 20000
"""People whom the recognisers learn to tell apart; the other parts meet a new one each time."""


class Live:
    """Puts the pictures of a batch between ``draw`` and the ``loss`` of the task that it is mixed into."""

    module: Any
    windows: Windows

    def loss(self, step: int, batch: tuple[Any, ...]) -> tuple[Tensor, dict[str, Tensor]]:
        """As from a rendered set. Geometry in bfloat16 would be off by pixels, so nothing is drawn under autocast."""
        device = next(self.module.parameters()).device
        with torch.no_grad(), in_float32(device):
            shown = self.show(batch)
        return super().loss(step, shown)  # type: ignore[misc, no-any-return]

    def show(self, batch: tuple[Any, ...]) -> tuple[Any, ...]:
        """The batch as the task of a rendered set draws it."""
        raise NotImplementedError

    def _frames(self, clip: Tensor, frame: Tensor) -> Tensor:
        """Frames of the windows, (n, 3, 64, 64) in [0, 1], on the device of ``clip`` (n,) and ``frame`` (n,)."""
        if self.windows.frames.device != clip.device:
            self.windows.frames = self.windows.frames.to(clip.device)
        return self.windows.frames[clip, frame].float() / 255


def degraded(x: Tensor, seed: int, smallest: float = 0.35) -> Tensor:
    """:func:`~facelock.miniature.recognition.degrade` where ``x`` is, all that is random from ``seed``."""
    return degrade(x, seeded(seed), smallest, normal_numbers(seed, x.device))


class LiveRecognition(Live, RecognitionTask):
    """The recognisers on crops rendered for every batch, of ``PEOPLE`` people."""

    def __init__(self, name: str, steps: int, batch: int = 1024, count: int = PEOPLE) -> None:
        self._build(name, steps, batch, count)
        self.faces = data.identities("judge" if name == "judge" else "train", count)

    def draw(self, step: int, generator: torch.Generator) -> tuple[Any, ...]:
        """Who and when, where to cut, what to learn, and whether to blur."""
        who = torch.randint(len(self.targets), (self.batch,), generator=generator)
        still, moving, matrices = portraits(take(self.faces, who), generator)
        blur = float(torch.rand(1, generator=generator)) < 0.6
        return still, moving, matrices, self.targets[who], who, blur, seed_of(generator)

    def show(self, batch: tuple[Any, ...]) -> tuple[Any, ...]:
        """The batch as the task of a rendered set draws it."""
        still, moving, matrices, target, who, blur, seed = batch
        x = rendered(still, moving, matrices, SIZE)
        if blur:
            x = degraded(x, seed)
        return x, target, who


class LiveFaces:
    """What :class:`~facelock.miniature.recognition.FacePool` draws, rendered on ``device`` instead of read."""

    def __init__(self, split: str, device: str, count: int = PEOPLE) -> None:
        self.faces, self.device, self.count = data.identities(split, count), device, count

    def draw(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Images (n, 3, 72, 72) in [0, 1], landmarks (n, 5, 2), identity indices (n,), on the CPU."""
        who = torch.randint(self.count, (n,), generator=generator)
        face = take(self.faces, who)
        look, now = sample_appearance(n, generator, face["feminine"]), sample_nuisance(n, generator)
        points = world.landmarks(face, now, FRAME)[0]
        matrices = data.jitter(data.fit_similarity(points, data.crop_template(72)), 72, generator)
        tables = (packed(face | look, STILL), packed(now, MOVING), matrices)
        return rendered(*moved(tables, self.device), 72).cpu(), data.apply(matrices, points), who


class LiveVae(Live, VaeTask):
    """The autoencoder on clips rendered for every batch."""

    def __init__(self, steps: int, clips: int = 32) -> None:
        self.clips = clips
        self._build(steps, torch.cat([self.draw(1, seeded(i))[4] for i in range(8)]))

    def draw(self, step: int, generator: torch.Generator) -> tuple[Any, ...]:
        """Packed people (P, n) and moments (M, n · T), T, the faces' crops, what the reader should say, a seed."""
        # No stills: to a causal autoencoder the first frame of a window is one.
        n, frames = self.clips, data.WINDOW
        face, look, _, now, *_ = clips(n, frames, generator)
        still, moving = packed(face | look, STILL), packed(now, MOVING)
        every, shows, moments = shown(still, moving)
        points = world.landmarks(every, moments, 64)[0]
        return (
            still,
            moving,
            frames,
            *detected(points, labels_of(shows, moments), 64, generator),
            seed_of(generator),
        )

    def show(self, batch: tuple[Any, ...]) -> tuple[Any, ...]:
        """The batch as the task of a rendered set draws it."""
        still, moving, frames, matrices, labels, seed = batch
        n = still.shape[1]
        face, look, now = shown(still, moving)
        x = world.render(face, look, now, 64).view(n, frames, 3, 64, 64)
        points, boxes = world.landmarks(face, now, 64)
        weight = box_weight(boxes, 64) + feature_weight(points, 64, FEATURES)
        noise = normal_numbers(seed, x.device)(latents_shape(n, frames, 64))
        weight = weight.view(n, frames, 1, 64, 64).transpose(1, 2)
        return x.transpose(1, 2) * 2 - 1, weight, noise, matrices, labels


class LiveReader(Live, ReaderTask):
    """The reader on decoded windows, and on crops rendered for every batch."""

    def __init__(self, windows: Windows, steps: int, batch: int = 512) -> None:
        self.windows, self.batch = windows, batch
        drawn = [self.draw(0, seeded(i)) for i in range(8)]
        self._build(steps, batch, torch.cat([batch[4] for batch in drawn]))

    def draw(self, step: int, generator: torch.Generator) -> tuple[Any, ...]:
        """Either frames of windows or packed moments; crop matrices; labels. Halves are of the same clips."""
        decoded = float(torch.rand(1, generator=generator)) < DECODED
        half = self.batch // 2
        if decoded:
            clip = torch.randint(len(self.windows.frames), (half,), generator=generator).repeat(2)
            frame = torch.randint(data.WINDOW, (self.batch,), generator=generator)
            face, look, now = self.windows.rows(clip, frame)
            what: tuple[Tensor, Tensor] = (clip, frame)
        else:
            face, look, _, every, *_ = clips(half, data.WINDOW, generator)
            frame = torch.randint(data.WINDOW, (2, half), generator=generator)
            now = take(every, (torch.arange(half) * data.WINDOW + frame).flatten())
            face, look = concat([face, face]), concat([look, look])
            what = (packed(face | look, STILL), packed(now, MOVING))
        size = 64 if decoded else FRAME
        points = world.landmarks(face, now, size)[0]
        matrices, labels = detected(points, labels_of(look, now), size, generator)
        blur = float(torch.rand(1, generator=generator)) < (0.3 if decoded else 0.7)
        return decoded, what, packed(face, tuple(IDENTITY)), matrices, labels, blur, seed_of(generator)

    def show(self, batch: tuple[Any, ...]) -> tuple[Any, ...]:
        """The batch as the task of a rendered set draws it."""
        decoded, what, face, matrices, labels, blur, seed = batch
        x = warp(self._frames(*what), matrices) if decoded else rendered(*what, matrices, SIDE)
        if blur:
            x = degraded(x, seed, 0.14)
        return x, labels, face


class LiveIdentityReader(Live, IdentityReaderTask):
    """The identity reader on embeddings of crops rendered for every batch."""

    def __init__(self, recogniser: Recogniser, steps: int, batch: int = 1024) -> None:
        self._build(recogniser, steps, batch)
        self.recogniser = recogniser

    def draw(self, step: int, generator: torch.Generator) -> tuple[Any, ...]:
        """Packed people and moments, crops, and the people's parameters (B, V)."""
        face = sample_identity(self.batch, generator)
        blur = float(torch.rand(1, generator=generator)) < BLURRED
        return *portraits(face, generator), identity_vector(face), blur, seed_of(generator)

    def show(self, batch: tuple[Any, ...]) -> tuple[Any, ...]:
        """The batch as the task of a rendered set draws it."""
        still, moving, matrices, wanted, blur, seed = batch
        x = rendered(still, moving, matrices, SIZE)
        x = degraded(x, seed, 0.6) if blur else x
        return embedding(self.recogniser.to(x.device), x), wanted


class LiveAlignment(Live, AlignmentTask):
    """Aligner and restorer on pairs rendered for every batch; what comes in is often what the autoencoder leaves."""

    def __init__(
        self, name: str, windows: Windows, recogniser: Recogniser, steps: int, batch: int = 128
    ) -> None:
        self._build(name, recogniser, steps, batch)
        self.windows = windows

    def draw(self, step: int, generator: torch.Generator) -> tuple[Any, ...]:
        """Who and when (packed, or rows of windows), who it should be, one more moment of them, crops."""
        n = self.batch
        decoded = float(torch.rand(1, generator=generator)) < (0.5 if self.name == "aligner" else 0.25)
        if decoded:
            clip = torch.randint(len(self.windows.frames), (n,), generator=generator)
            frame = torch.randint(data.WINDOW, (n,), generator=generator)
            face, look, now = self.windows.rows(clip, frame)
            rows: tuple[Tensor, Tensor] | None = (clip, frame)
        else:
            face, look = people(n, generator)
            now, rows = sample_nuisance(n, generator), None
        same = torch.rand(n, generator=generator) < self.same
        other = sample_identity(n, generator)
        wanted = {k: torch.where(same, face[k], other[k]) for k in IDENTITY}
        points = world.landmarks(face, now, FRAME)[0]
        # Cut again, a face is where its own landmarks are.
        seen = torch.rand(n, 1, 1, generator=generator) * 0.5
        points = points + seen * (world.landmarks(wanted, now, FRAME)[0] - points)
        matrices = data.jitter(data.fit_similarity(points, CROP_TEMPLATE), SIDE, generator)
        blur = float(torch.rand(1, generator=generator)) < (0.3 if decoded else 0.85)
        tables = (packed(face | look, STILL), packed(wanted | look, STILL), packed(now, MOVING))
        return *tables, rows, matrices, portraits(wanted, generator), blur, seed_of(generator)

    def show(self, batch: tuple[Any, ...]) -> tuple[Any, ...]:
        """The batch as the task of a rendered set draws it."""
        still, wanted, moving, rows, matrices, reference, blur, seed = batch
        y = rendered(wanted, moving, matrices, SIDE)
        # A matrix cuts a frame of 256 pixels; the same place in one of 64 is found by a scale of four.
        x = (
            warp(self._frames(*rows), _of_smaller(matrices))
            if rows
            else rendered(still, moving, matrices, SIDE)
        )
        if blur:
            x = degraded(x, seed, 0.14 if self.name == "aligner" else 0.26)
        return x, y, embedding(self.recogniser.to(x.device), rendered(*reference, SIZE))


def _of_smaller(matrices: Tensor, size: int = 64) -> Tensor:
    """Crops of frames of ``FRAME`` pixels → of the same frames at ``size``: pixel centres stay where they are."""
    scale = FRAME / size
    turn = matrices[:, :, :2]
    middle = torch.full((2,), scale / 2 - 0.5, device=matrices.device)
    return torch.cat([turn * scale, (turn @ middle + matrices[:, :, 2]).unsqueeze(-1)], -1)


@dataclass(frozen=True)
class OnCpu:
    """Tensors of a batch that stay on the CPU."""

    tensors: tuple[Tensor, ...]


class LiveDetection(Live, DetectionTask):
    """The detector on frames rendered for every batch, and on what the autoencoder leaves."""

    def __init__(self, windows: Windows, steps: int, batch: int = 96) -> None:
        self._build(steps, batch)
        self.windows = windows

    def draw(self, step: int, generator: torch.Generator) -> tuple[Any, ...]:
        """Rows of windows or packed frames, landmarks and boxes in ``SIDE`` pixels, who is there, a seed."""
        n = self.batch
        decoded = float(torch.rand(1, generator=generator)) < 0.5
        present = torch.ones(n, dtype=torch.bool)
        if decoded:
            clip = torch.randint(len(self.windows.frames), (n,), generator=generator)
            frame = torch.randint(data.WINDOW, (n,), generator=generator)
            face, look, now = self.windows.rows(clip, frame)
            what = (clip, frame)
        else:
            face, look = people(n, generator)
            now = sample_nuisance(n, generator)
            present = torch.rand(n, generator=generator) >= 0.1
            now["tx"] = torch.where(present, now["tx"], torch.full_like(now["tx"], 9.0))
            what = (packed(face | look, STILL), packed(now, MOVING))
        points, boxes = world.landmarks(face, now, 128)
        return decoded, what, OnCpu((points, boxes, present)), seed_of(generator)

    def show(self, batch: tuple[Any, ...]) -> tuple[Any, ...]:
        """The batch as the task of a rendered set draws it."""
        decoded, what, labels, seed = batch
        if decoded:
            x = F.interpolate(self._frames(*what), size=(128, 128), mode="bilinear")
        else:
            x = world.render(*shown(*what), 128)
        # Which cells answer for which face is found on the CPU: many small steps.
        x, *faces = augmented(x, *labels.tensors, seeded(seed), normal_numbers(seed, x.device))
        return x, moved([self._wanted(stride, *faces) for stride in self.centres], x.device)


class LiveUpscaling(Live, UpscalingTask):
    """The upscaler on windows rendered for every batch."""

    def __init__(self, steps: int, batch: int = 128) -> None:
        self.steps, self.batch = steps, batch
        torch.manual_seed(8)
        self.module: nn.Module = CompactSR().to(memory_format=torch.channels_last)

    def draw(self, step: int, generator: torch.Generator) -> tuple[Any, ...]:
        """Packed people and moments, which 96 px window of the frame, and a seed."""
        face, look = people(self.batch, generator)
        corner = torch.randint(0, 41, (self.batch, 2), generator=generator) * 4.0
        matrices = torch.cat([torch.eye(2).expand(self.batch, 2, 2), -corner.unsqueeze(-1)], -1)
        now = sample_nuisance(self.batch, generator)
        return packed(face | look, STILL), packed(now, MOVING), matrices, seed_of(generator)

    def show(self, batch: tuple[Any, ...]) -> tuple[Any, ...]:
        """The batch as the task of a rendered set draws it."""
        still, moving, matrices, seed = batch
        truth = rendered(still, moving, matrices, 96)
        return self.compressed(truth, seeded(seed), normal_numbers(seed, truth.device)), truth


class LiveTinyDecoder(Live, TinyDecoderTask):
    """The tiny decoder, taught by the autoencoder on windows' latents that it decodes for every batch."""

    def __init__(
        self, windows: Windows, vae: Any, statistics: tuple[Tensor, Tensor], steps: int, batch: int = 24
    ) -> None:
        self.windows, self.steps, self.batch = windows, steps, batch
        self.vae = vae.eval().requires_grad_(False)
        self.shift, self.scale = (v.view(1, -1, 1, 1, 1) for v in statistics)
        torch.manual_seed(9)
        self.module: nn.Module = make_tiny_decoder()

    def draw(self, step: int, generator: torch.Generator) -> tuple[Any, ...]:
        """Latents (B, 16, 5, 16, 16) as the autoencoder gave them, boxes (B, 17, 4), how unfinished they are."""
        clip = torch.randint(len(self.windows.latents), (self.batch,), generator=generator)
        which = torch.randint(len(data.OFFSETS), (self.batch,), generator=generator)
        first = torch.tensor(data.OFFSETS)[which]
        moving = self.windows.moving[:, clip.unsqueeze(1), first.unsqueeze(1) + torch.arange(data.WINDOW)]
        face, _, now = shown(self.windows.still[:, clip], moving.flatten(1))
        boxes = world.landmarks(face, now, 64)[1].view(self.batch, data.WINDOW, 4)
        return (
            self.windows.latents[clip, which].float(),
            boxes,
            torch.rand(2, self.batch, generator=generator),
            seed_of(generator),
        )

    def show(self, batch: tuple[Any, ...]) -> tuple[Any, ...]:
        """The batch as the task of a rendered set draws it."""
        z, boxes, unfinished, seed = batch
        shift, scale = self.shift.to(z.device), self.scale.to(z.device)
        size, amount = (v.view(-1, 1, 1, 1, 1) for v in (0.75 + 0.35 * unfinished[0], 0.25 * unfinished[1]))
        z = (z - shift) / scale * size + amount * normal_numbers(seed, z.device)(z.shape)
        with in_bfloat16(z.device):
            frames = self.vae.to(z.device).decode(z * scale + shift).sample.float().transpose(1, 2)
        return z, (frames / 2 + 0.5).clamp(0, 1), box_weight(boxes, 64)
