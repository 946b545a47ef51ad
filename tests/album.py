"""Photos of nobody: noise whose faces, and whose they are, are written down beside it.

A picture's first pixel is its number in the album; the pack looks there instead of at the pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from facelock.geometry import ARCFACE112, HEAD
from facelock.perception import Perception
from facelock.types import CropSpec, Faces, Thresholds

SIDE, DIM = 256, 32
LOOP, JUDGE = "loop@000000000000", "judge@111111111111"
ACCEPT = Thresholds(0.3, 0.4, 0.5)


def somebody(seed: int) -> np.ndarray:
    """A person: a direction."""
    row = np.random.default_rng(1000 + seed).normal(size=DIM)
    return row / np.linalg.norm(row)


def shot(person: np.ndarray, cosine: float, seed: int) -> np.ndarray:
    """An embedding that is ``cosine`` alike to the person."""
    other = np.random.default_rng(seed).normal(size=DIM)
    other -= person * (other @ person)
    return cosine * person + np.sqrt(1 - cosine**2) * other / np.linalg.norm(other)


@dataclass(frozen=True)
class Face:
    """One face of a picture."""

    embedding: np.ndarray
    x: float = 128.0
    height: float = 100.0
    yaw: float = 0.0
    y: float = 128.0


@dataclass
class Encoder:
    id: str
    crop: CropSpec = ARCFACE112
    thresholds: Thresholds = ACCEPT

    def embed_crops(self, crops: Tensor) -> Tensor:
        rows = crops.flatten(1)[:, :DIM] + 1e-3
        return rows / rows.norm(dim=1, keepdim=True)


@dataclass
class Album:
    """Makes pictures and is the pack that knows them."""

    pages: list[list[Face]] = field(default_factory=list)

    def photo(self, *faces: Face, edit=lambda pixels: pixels) -> np.ndarray:
        """(256, 256, 3) uint8 showing ``faces``; ``edit`` changes its pixels."""
        self.pages.append(list(faces))
        noise = np.random.default_rng(len(self.pages)).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        pixels = np.asarray(edit(noise)).astype(np.uint8)
        pixels[0, 0] = len(self.pages) - 1
        return pixels

    def shots(self, person: np.ndarray, count: int, cosine: float = 0.8, first: int = 0) -> list[np.ndarray]:
        """Photos of one person."""
        return [self.photo(Face(shot(person, cosine, first + k))) for k in range(count)]

    @property
    def perception(self) -> Perception:
        """Two encoders that see the same, in other coordinates."""
        return Perception(
            Pack(self, Encoder(LOOP)), Pack(self, Encoder(JUDGE), flip=True), ("album", "judge")
        )


@dataclass
class Pack:
    album: Album
    encoder: Encoder
    flip: bool = False

    def _page(self, frames: Tensor) -> list[Face]:
        return self.album.pages[round(float(frames[0, 0, 0, 0]) * 255)] if frames.shape[-1] == SIDE else []

    def detect(self, frames: Tensor) -> Faces:
        page, head = self._page(frames), np.array(HEAD)
        points, boxes = [], []
        for face in page:
            turn, half = np.radians(face.yaw), face.height / 2
            flat = np.stack([head[:, 0] * np.cos(turn) + head[:, 2] * np.sin(turn), head[:, 1] - 0.5], 1)
            points.append(flat * face.height / 3 + (face.x, face.y))
            boxes.append((face.x - half, face.y - half, face.x + half, face.y + half))
        return Faces(
            torch.zeros(len(page), dtype=torch.int64),
            torch.tensor(np.array(boxes).reshape(-1, 4), dtype=torch.float32),
            torch.tensor(np.array(points).reshape(-1, 5, 2), dtype=torch.float32),
            torch.full((len(page),), 0.9),
        )

    def embed(self, frames: Tensor, faces: Faces) -> Tensor:
        rows = []
        for box in faces.box:
            middle = float(box[0] + box[2]) / 2
            row = next(face.embedding for face in self._page(frames) if abs(face.x - middle) < 0.5)
            rows.append(row[::-1] if self.flip else row)
        return torch.tensor(np.array(rows), dtype=torch.float32)
