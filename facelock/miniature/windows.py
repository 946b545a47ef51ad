"""The blueprint's windows as the autoencoder has them, made once for a training that renders its batches."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from facelock.miniature import data, world
from facelock.miniature.moments import MOVING, STILL, clips, packed, shown
from facelock.miniature.parameters import Params
from facelock.miniature.trainer import in_bfloat16, normal_numbers, seed_of
from facelock.miniature.vocabulary import caption, random_keep

log = logging.getLogger(__name__)

LENGTH = 25
"""Frames of a clip: two windows, at ``data.OFFSETS``."""
SIDE = 64
"""Pixels along a side of them."""


@dataclass
class Windows:
    """Clips as the autoencoder has them: latents of both windows of each, and the frames it leaves of one of them.

    ``latents`` (C, 2, 16, 5, 16, 16) half, not normalised; ``frames`` (D, 17, 3, 64, 64) bytes of the first D clips,
    with a little noise on their latents; ``first`` (C,) their window's first frame; ``still`` (P, C) and ``moving``
    (M, C, 25) what the clips show; ``captions`` of all C.
    """

    latents: Tensor
    frames: Tensor
    first: Tensor
    still: Tensor
    moving: Tensor
    captions: list[str]

    def rows(self, clip: Tensor, frame: Tensor) -> tuple[Params, Params, Params]:
        """Face, look and moment of frames (n,) of the windows of clips (n,)."""
        return shown(self.still[:, clip], self.moving[:, clip, self.first[clip] + frame])

    def landmarks(self, clips: int = 500) -> Iterator[Tensor]:
        """The landmarks (n, 25, 5, 2) in the frames of every n = ``clips`` clips, the last fewer."""
        for still, moving in zip(self.still.split(clips, 1), self.moving.split(clips, 1), strict=True):
            face, _, now = shown(still, moving.flatten(1))
            yield world.landmarks(face, now, SIDE)[0].view(-1, LENGTH, 5, 2)

    def save(self, folder: Path) -> None:
        """Write all but the frames: not every part needs them."""
        rest = {k: getattr(self, k).contiguous() for k in ("latents", "first", "still", "moving")}
        _write(rest, folder / "latents.safetensors", {"captions": json.dumps(self.captions)})

    def save_frames(self, folder: Path) -> None:
        """Write the frames beside what :meth:`save` wrote."""
        _write({"frames": self.frames}, folder / "frames.safetensors")

    @classmethod
    def load(cls, folder: Path, *, frames: bool = True) -> Windows:
        """Read what :meth:`save` wrote and, where they are asked for, the frames."""
        from safetensors import safe_open
        from safetensors.torch import load_file

        path = folder / "latents.safetensors"
        with safe_open(path, "pt") as file:
            captions = json.loads(file.metadata()["captions"])
        pictures = load_file(folder / "frames.safetensors")["frames"] if frames else torch.empty(0)
        return cls(frames=pictures, captions=captions, **load_file(path))


def _write(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    from safetensors.torch import save_file

    with data.whole(path) as part:
        save_file(tensors, part, metadata=metadata)


@torch.no_grad()
def make_windows(vae: Any, count: int, device: str, seed: int = 0, batch: int = 256) -> Windows:
    """Render ``count`` clips and encode their windows by ``vae`` on ``device``; without frames yet."""
    columns: dict[str, list[Tensor]] = {k: [] for k in ("latents", "first", "still", "moving")}
    texts: list[str] = []
    for begin in range(0, count, batch):
        n, generator = min(batch, count - begin), data.seeded(71, seed, begin)
        face, look, base, now, action, motion = clips(n, LENGTH, generator)
        texts += [
            caption(face, look, base, int(action[i]), int(motion[i]), i, random_keep(generator))
            for i in range(n)
        ]
        still, moving = packed(face | look, STILL), packed(now, MOVING)
        pictures = world.render(*shown(still.to(device), moving.to(device)), SIDE)
        video = pictures.view(n, LENGTH, 3, SIDE, SIDE).transpose(1, 2) * 2 - 1
        pick = torch.randint(len(data.OFFSETS), (n,), generator=generator)
        part = {"latents": _encoded(vae, video), "first": torch.tensor(data.OFFSETS)[pick]}
        part |= {"still": still, "moving": moving.view(len(MOVING), n, LENGTH)}
        for name, tensor in part.items():
            columns[name].append(tensor.cpu())
        log.info("windows of clip %d of %d", begin + n, count)
    joined = {k: torch.cat(v, 1 if k in ("still", "moving") else 0) for k, v in columns.items()}
    return Windows(captions=texts, frames=torch.empty(0), **joined)


def _encoded(vae: Any, video: Tensor) -> Tensor:
    """Latents (n, 2, 16, 5, 16, 16) half of both windows of clips (n, 3, 25, 64, 64)."""
    with in_bfloat16(video.device):
        both = [
            torch.cat(
                [vae.encode(p).latent_dist.mean.float() for p in video[:, :, o : o + data.WINDOW].split(64)]
            )
            for o in data.OFFSETS
        ]
    return torch.stack(both, 1).half()


@torch.no_grad()
def decoded(vae: Any, windows: Windows, count: int, device: str, seed: int = 0, batch: int = 64) -> Tensor:
    """``Windows.frames``: what ``vae`` leaves of one window of the first ``count`` clips."""
    parts = []
    pick = (windows.first[:count] == data.OFFSETS[1]).long()
    spread = windows.latents[:256].float().std((0, 1, 3, 4, 5)).view(-1, 1, 1, 1).to(device)
    for begin in range(0, count, batch):
        rows, generator = torch.arange(begin, min(begin + batch, count)), data.seeded(72, seed, begin)
        amount = 0.25 * torch.rand(len(rows), 1, 1, 1, 1, generator=generator).to(device)
        z = windows.latents[rows, pick[rows]].to(device).float()
        z = z + amount * spread * normal_numbers(seed_of(generator), device)(z.shape)
        with in_bfloat16(z.device):
            pictures = vae.decode(z).sample.float().transpose(1, 2)
        parts.append(((pictures / 2 + 0.5).clamp(0, 1) * 255).round().byte().cpu())
        log.info("frames of clip %d of %d", int(rows[-1]) + 1, count)
    return torch.cat(parts)
