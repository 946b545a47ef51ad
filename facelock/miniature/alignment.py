"""Training of the aligner and the restorer with the exact labels and pairs that only a renderer gives.

The reader learns labels, the identity reader learns parameters (:mod:`facelock.miniature.reading`); the compositor
learns pairs, here. Input: a face of somebody else, or the right one drifted and compressed. Target: the reference
identity, rendered under exactly the same nuisance. The reference's embedding comes from another picture of it.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from facelock.miniature import data, world
from facelock.miniature.model_aligner import MOMENT, OUTPUTS, ModelAligner
from facelock.miniature.parameters import Params
from facelock.miniature.recognition import Embed, arcface_crops, degrade
from facelock.miniature.trainer import in_float32
from facelock.nets.recogniser import Recogniser

SIDE = 128
OFFSET = data.MARGIN - 8
"""A 144 px stored crop holds insightface's 128 px crop at this left edge, ``data.MARGIN`` from the top."""


def embedding(recogniser: Recogniser, crops: Tensor) -> Tensor:
    """(N, 3, 56, 56) crops in [0, 1] → (N, 512) unit norm, as the exported recogniser gives."""
    code = recogniser.whiten(recogniser.forward_code(crops * 2 - 1).float())
    return F.normalize(code) @ recogniser.get_buffer("lift").T


def inner_crop(x: Tensor) -> Tensor:
    """Cut the 128 px inswapper crop out of a stored 144 px crop."""
    return x[..., data.MARGIN :, OFFSET : OFFSET + SIDE]


def recogniser_view(x: Tensor) -> Tensor:
    """The 56 px ArcFace crop inside a 128 px inswapper crop (N, 3, 128, 128)."""
    return F.avg_pool2d(x[..., :112, 8:120], 2)


class PairPool:
    """Groups of identities under one nuisance, with every identity's embeddings computed once."""

    def __init__(self, kind: str, root: Path, embed: Embed) -> None:
        self.shards = list(data.shards(kind, root))
        who, vectors = [], []
        for s in self.shards:
            images = torch.from_numpy(np.array(s["images"])).flatten(0, 1)
            points = torch.from_numpy(np.array(s["landmarks"])).flatten(0, 1)
            with torch.no_grad():
                for i in range(0, images.shape[0], 256):
                    crops = arcface_crops(images[i : i + 256].float() / 255, points[i : i + 256])
                    vectors.append(embed(crops))
            who.append(torch.from_numpy(np.array(s["who"])).flatten())
        self.vectors, self.who = torch.cat(vectors), torch.cat(who)
        order = self.who.argsort(stable=True)
        self.order, self.sorted = order, self.who[order].contiguous()

    def reference(self, who: Tensor, generator: torch.Generator) -> Tensor:
        """An embedding (N, 512) of each identity, from a random picture of it."""
        lo = torch.searchsorted(self.sorted, who)
        hi = torch.searchsorted(self.sorted, who, right=True)
        pick = lo + (torch.rand(who.shape[0], generator=generator) * (hi - lo)).long()
        return self.vectors[self.order[pick]]

    def draw(self, n: int, same: float, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Inputs, targets (n, 3, 128, 128) of one nuisance each, reference embeddings, and whose."""
        s = self.shards[int(torch.randint(len(self.shards), (1,), generator=generator))]
        g = torch.randint(s["who"].shape[0], (n,), generator=generator).sort().values.numpy()
        a = torch.randint(data.GROUP, (n,), generator=generator)
        b = (a + torch.randint(1, data.GROUP, (n,), generator=generator)) % data.GROUP
        a = torch.where(torch.rand(n, generator=generator) < same, b, a)
        x = torch.from_numpy(np.ascontiguousarray(s["images"][g, a.numpy()])).float() / 255
        y = torch.from_numpy(np.ascontiguousarray(s["images"][g, b.numpy()])).float() / 255
        who = torch.from_numpy(s["who"][g, b.numpy()])
        return inner_crop(x), inner_crop(y), self.reference(who, generator), who


def face_weight() -> Tensor:
    """(1, 1, 128, 128) weight of the loss: the face's ellipse counts most."""
    line = torch.arange(SIDE, dtype=torch.float32)
    y, x = torch.meshgrid(line, line, indexing="ij")
    r = ((x - 63.5) / 46) ** 2 + ((y - 66) / 58) ** 2
    return (0.35 + 1.65 * torch.sigmoid((1.15 - r) * 6)).view(1, 1, SIDE, SIDE)


def edges(x: Tensor) -> tuple[Tensor, Tensor]:
    """Horizontal and vertical differences."""
    return x[..., 1:] - x[..., :-1], x[..., 1:, :] - x[..., :-1, :]


def labels_of(look: Params, now: Params) -> Params:
    """What the reader must say of frames: their moment and look, as far as a picture can show it."""
    glasses = torch.tensor(world.GLASSES)[look["glasses_colour"].long().clamp(0, 3)]
    hair = world.hair_rgb(look)
    labels = {k: now[k] for k in MOMENT}
    labels |= {"glasses": (look["glasses"] > 0) * 2.0 - 1, "beard": (look["beard"] > 0) * 2.0 - 1}
    labels |= {"glasses_r": look["glasses_r"], "glasses_square": (look["glasses_square"] > 0.5) * 1.0}
    labels |= {f"hair_{c}": hair[:, i] for i, c in enumerate("rgb")}
    labels |= {f"gl_{c}": glasses[:, i] for i, c in enumerate("rgb")}
    labels["open"], labels["blink"] = labels["open"].clamp(min=0), (labels["blink"] * 1.3).clamp(0, 1)
    return labels


CROP_TEMPLATE = torch.tensor(data.ARCFACE) + torch.tensor([8.0, 0.0])
"""insightface's 128 px crop."""


def warp(frames: Tensor, matrices: Tensor) -> Tensor:
    """Sample 128 px crops (N, 3, 128, 128) of frames (N, 3, S, S) by frame → crop similarities (N, 2, 3)."""
    inverse = torch.linalg.inv_ex(matrices[:, :, :2]).inverse
    line = torch.arange(SIDE, dtype=torch.float32, device=frames.device)
    gy, gx = torch.meshgrid(line, line, indexing="ij")
    grid = torch.stack([gx, gy], -1).view(1, -1, 2) - matrices[:, None, :, 2]
    grid = torch.einsum("nij,nkj->nki", inverse, grid).view(-1, SIDE, SIDE, 2)
    return F.grid_sample(frames, (grid + 0.5) / frames.shape[-1] * 2 - 1, "bilinear", "border", False)


def crop_labels(labels: Params, matrices: Tensor, size: int) -> Tensor:
    """Labels of frames → of their crops: the head's place, size and roll, and the light, turn with the crop."""
    out = dict(labels)
    c, s = matrices[:, 0, 0], matrices[:, 1, 0]
    zoom, angle = torch.sqrt(c * c + s * s), torch.atan2(s, c)
    centre = torch.stack([(labels["tx"] + 1) / 2 * size - 0.5, (1 - labels["ty"]) / 2 * size - 0.5], -1)
    placed = data.apply(matrices, centre.unsqueeze(1))[:, 0]
    out["tx"], out["ty"] = (placed[:, 0] + 0.5) / SIDE * 2 - 1, 1 - (placed[:, 1] + 0.5) / SIDE * 2
    out["scale"], out["roll"] = labels["scale"] * zoom * size / SIDE, labels["roll"] - angle
    out["light_x"] = labels["light_x"] * angle.cos() + labels["light_y"] * angle.sin()
    out["light_y"] = labels["light_y"] * angle.cos() - labels["light_x"] * angle.sin()
    return torch.stack([out[k] for k in OUTPUTS], 1)


def detected(points: Tensor, labels: Params, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A detector's crops of frames (n, 2, 3) by their landmarks (n, 5, 2), and what they show (n, len(OUTPUTS))."""
    matrices = data.jitter(data.fit_similarity(points, CROP_TEMPLATE), SIDE, generator)
    return matrices, crop_labels(labels, matrices, size)


class AlignmentTask:
    """Trains the compositor of ``aligner`` (mostly other people in) or ``restorer`` (the right face, blurred, in)."""

    def __init__(self, name: str, root: Path, recogniser: Recogniser, steps: int, batch: int = 16) -> None:
        self._build(name, recogniser, steps, batch)
        self.pool = PairPool("faces", root, partial(embedding, self.recogniser))

    def _build(self, name: str, recogniser: Recogniser, steps: int, batch: int) -> None:
        self.name, self.steps, self.batch = name, steps, batch
        self.bf16, self.rate = True, 1.5e-3 if name == "aligner" else 5e-4
        self.same = 0.2 if name == "aligner" else 0.85
        self.recogniser = recogniser.eval().requires_grad_(False)
        self.weight = face_weight()
        torch.manual_seed(4)
        self.module: nn.Module = ModelAligner(recogniser.get_buffer("lift"), restores=name == "restorer")
        self.module.reader.requires_grad_(False)  # type: ignore[operator, union-attr]
        self.module.identity.requires_grad_(False)  # type: ignore[operator, union-attr]

    def draw(self, step: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Inputs, mostly blurred, and true renders (B, 3, 128, 128), and the wanted identities (B, 512)."""
        x, y, e, _ = self.pool.draw(self.batch, self.same, generator)
        if torch.rand(1, generator=generator) < 0.85:
            x = degrade(x, generator, 0.14 if self.name == "aligner" else 0.26)
        return x, y, e

    def loss(self, step: int, batch: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted L1 on pixels, edges and a coarse view; later also the recogniser's view of the result."""
        x, y, e = batch
        self.module.reader.eval()  # type: ignore[operator, union-attr]
        with torch.no_grad(), in_float32(x.device):
            drawn, alpha = self.module.draw(x, e)  # type: ignore[operator, union-attr]
        out = self.module.compositor(x, drawn, alpha, e).float()  # type: ignore[operator, union-attr]
        pixel = ((out - y).abs() * self.weight.to(out.device)).mean()
        edge = torch.stack([(a - b).abs().mean() for a, b in zip(edges(out), edges(y), strict=True)]).sum()
        coarse = (F.avg_pool2d(out, 4) - F.avg_pool2d(y, 4)).abs().mean()
        loss = pixel + edge + coarse
        figures = {"psnr": -10 * torch.log10((out.detach() - y).square().mean())}
        if step > 0.3 * self.steps and step % 2 == 0:
            self.recogniser.to(out.device)
            with torch.no_grad():
                truth = embedding(self.recogniser, recogniser_view(y))
            seen = embedding(self.recogniser, recogniser_view(out))
            loss = loss + 0.06 * (1 - (seen * truth).sum(1)).mean()
        return loss, figures
