"""Training of the detector: focal scores, distances to the box, five landmarks, on one or several faces a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from facelock.miniature import data, world
from facelock.miniature.parameters import Params
from facelock.miniature.recognition import Noise
from facelock.nets.scrfd import ANCHORS, STRIDES, Scrfd

SIDE = 128
LEVELS = {8: (0.0, 40.0), 16: (28.0, 84.0), 32: (60.0, 1e9)}
"""Stride → heights in pixels of the faces it answers for."""


def mosaic(
    images: Tensor, points: Tensor, boxes: Tensor, present: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Move, shrink and combine pictures: (B, 3, 128, 128) with up to four faces each.

    Points become (B, 4, 5, 2), boxes (B, 4, 4), present (B, 4).
    """
    b = images.shape[0]
    out, kp, bx, ok = (
        images.clone(),
        points.new_zeros(b, 4, 5, 2),
        boxes.new_zeros(b, 4, 4),
        torch.zeros(b, 4, dtype=torch.bool),
    )
    kp[:, 0], bx[:, 0], ok[:, 0] = points, boxes, present
    choice = torch.rand(b, generator=generator)
    for i in torch.nonzero(choice < 0.5).flatten().tolist():
        count = 4 if choice[i] < 0.12 else 1
        ok[i] = False
        if count == 1:  # zoom out onto grey or into another place
            side = int(128 * (0.45 + 0.5 * float(torch.rand(1, generator=generator))))
            out[i] = float(torch.rand(1, generator=generator)) if choice[i] < 0.3 else out[i].flip(0) * 0.5
            spots = [torch.randint(0, 129 - side, (2,), generator=generator).tolist()]
        else:
            side, spots = 64, [[0, 0], [64, 0], [0, 64], [64, 64]]
        for k, (x, y) in enumerate(spots):
            j = i if count == 1 else int(torch.randint(b, (1,), generator=generator))
            small = F.interpolate(images[j : j + 1], size=(side, side), mode="bilinear", antialias=True)[0]
            out[i, :, y : y + side, x : x + side] = small
            s = side / 128
            move = torch.tensor([x + s / 2 - 0.5, y + s / 2 - 0.5])
            kp[i, k], ok[i, k] = points[j] * s + move, present[j]
            bx[i, k] = boxes[j] * s + move.repeat(2)
    return out, kp, bx, ok


def augmented(
    x: Tensor,
    points: Tensor,
    boxes: Tensor,
    present: Tensor,
    generator: torch.Generator,
    noise: Noise | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """:func:`mosaic`, then some blurred to a blueprint's resolution, colours shifted, noise added."""
    x, kp, bx, ok = mosaic(x, points, boxes, present, generator)
    parts, n = [], len(x)
    for part in x.split(8):
        if torch.rand(1, generator=generator) < 0.6:
            k = int(torch.randint(48, 110, (1,), generator=generator))
            part = F.interpolate(part, size=(k, k), mode="bilinear", antialias=True)
            part = F.interpolate(part, size=(SIDE, SIDE), mode="bilinear")
        parts.append(part)
    x = torch.cat(parts)
    x = x * (1 + torch.randn(n, 3, 1, 1, generator=generator) * 0.06).to(x.device)
    grain = noise(x.shape) if noise else torch.randn(x.shape, generator=generator)
    x = x + grain * (torch.rand(n, 1, 1, 1, generator=generator) * 0.04).to(x.device)
    return x.clamp(0, 1), kp, bx, ok


class DetectionTask:
    """Trains the SCRFD-format detector on whole frames, half of them degraded to a blueprint's resolution."""

    name = "detector"
    bf16 = True
    rate = 2e-3

    def __init__(self, root: Path, steps: int, batch: int = 48) -> None:
        self._build(steps, batch)
        self.shards = list(data.shards("frames", root))
        self.shards += [self._small(left["images"], face, now) for left, face, _, now in data.decoded(root)]

    def _build(self, steps: int, batch: int) -> None:
        self.steps, self.batch = steps, batch
        torch.manual_seed(3)
        self.module: nn.Module = Scrfd().to(memory_format=torch.channels_last)
        self.centres = {}
        for s in STRIDES:
            y, x = torch.meshgrid(torch.arange(SIDE // s) * s, torch.arange(SIDE // s) * s, indexing="ij")
            self.centres[s] = torch.stack([x, y], -1).view(-1, 2).repeat_interleave(ANCHORS, 0).float()

    def _small(self, images: np.ndarray, face: Params, now: Params) -> dict[str, np.ndarray]:
        """A shard of what the blueprint's autoencoder leaves; its labels are in ``SIDE`` pixels."""
        points, boxes = world.landmarks(face, now, SIDE)
        nobody = np.zeros(len(images), dtype=bool)
        return {"images": images, "landmarks": points.numpy(), "boxes": boxes.numpy(), "nobody": nobody}

    def frames(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """A batch of augmented frames with their faces."""
        s = self.shards[int(torch.randint(len(self.shards), (1,), generator=generator))]
        i = torch.randperm(s["images"].shape[0], generator=generator)[:n].sort().values.numpy()
        x = torch.from_numpy(np.ascontiguousarray(s["images"][i])).float() / 255
        if x.shape[-1] != SIDE:
            x = F.interpolate(x, size=(SIDE, SIDE), mode="bilinear")
        points, boxes = torch.from_numpy(s["landmarks"][i]), torch.from_numpy(s["boxes"][i])
        return augmented(x, points, boxes, torch.from_numpy(~s["nobody"][i]), generator)

    def draw(self, step: int, generator: torch.Generator) -> tuple[Tensor, list[tuple[Tensor, ...]]]:
        """Augmented frames, and per level of the pyramid what the network should say of them."""
        x, kp, bx, ok = self.frames(self.batch, generator)
        return x, [self._wanted(stride, kp, bx, ok) for stride in STRIDES]

    def _wanted(self, stride: int, kp: Tensor, bx: Tensor, ok: Tensor) -> tuple[Tensor, ...]:
        """Scores (B, n); then of the P cells that answer for a face: place, distances, points, face size."""
        target, face = self._assign(stride, kp, bx, ok)
        rows, cells = (target > 0).nonzero(as_tuple=True)
        k, centre = face[rows, cells], self.centres[stride][cells]
        box = bx[rows, k]
        distances = torch.cat([centre - box[:, :2], box[:, 2:] - centre], 1) / stride
        points = ((kp[rows, k] - centre[:, None]) / stride).flatten(1)
        size = ((box[:, 3] - box[:, 1]) / stride).view(-1, 1)
        return target, rows, cells, distances, points, size

    def loss(self, step: int, batch: tuple[Tensor, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """Sum over the pyramid of focal, box and landmark losses."""
        x, wanted = batch
        levels = self.module(((x * 255 - 127.5) / 128).contiguous(memory_format=torch.channels_last))
        total, errors = x.new_zeros(()), list[Tensor]()
        for (score, box, points), (target, rows, cells, distances, true_points, size) in zip(
            levels, wanted, strict=True
        ):
            score, box, points = score.float().squeeze(-1), box.float(), points.float()
            p, n = score.sigmoid(), len(rows)
            focal = F.binary_cross_entropy_with_logits(score, target, reduction="none")
            focal = focal * torch.where(target > 0, (1 - p) ** 2, 0.25 * p**2)
            total = total + focal.sum() / max(n, self.batch)
            if not n:
                continue
            total = total + F.smooth_l1_loss(box[rows, cells] / size, distances / size, beta=0.05) * 4
            miss = (points[rows, cells] - true_points) / size
            total = total + F.smooth_l1_loss(miss, torch.zeros_like(miss), beta=0.01) * 40
            errors.append(miss.detach().abs().mean(1))
        error = torch.cat(errors).mean() if errors else total.new_zeros(())
        return total, {"loss": total, "point_error": error}

    def _assign(self, stride: int, kp: Tensor, bx: Tensor, ok: Tensor) -> tuple[Tensor, Tensor]:
        """Target score (B, n) and face index (B, n): cells near the centre of a face of this level's size."""
        lo, hi = LEVELS[stride]
        height = bx[..., 3] - bx[..., 1]
        mine = ok & (height >= lo) & (height < hi)
        middle = kp.mean(2)
        offset = (self.centres[stride].view(1, -1, 1, 2) - middle.unsqueeze(1)).abs().amax(-1)
        near = torch.maximum(height * 0.16, torch.full_like(height, stride * 0.55))
        inside = (offset <= near.unsqueeze(1)) & mine.unsqueeze(1)
        return inside.any(-1).float(), torch.where(inside, offset, torch.full_like(offset, 1e9)).argmin(-1)
