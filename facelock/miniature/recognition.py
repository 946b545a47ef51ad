"""Training of the two recognisers: regression of the renderer's exact identity parameters, and a margin loss.

The parameters teach *what* to see (the lever that only a renderer has); CosFace (Wang et al. 2018, arXiv:1801.09414)
shapes cosines; a closed-form whitening by within-class scatter (LDA) makes reliable directions count more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from facelock.miniature import data
from facelock.nets.crate import Crate
from facelock.nets.recogniser import Recogniser
from facelock.protocols import Encoder

SIZE, TEMPLATE = data.VIEW, data.VIEW_TEMPLATE


Noise = Callable[[Sequence[int]], Tensor]
"""Shape → standard normal numbers."""


def arcface_crops(
    images: Tensor, points: Tensor, generator: torch.Generator | None = None, amount: float = 1.0
) -> Tensor:
    """Re-align stored crops (N, 3, S, S) by their own landmarks (N, 5, 2) to the 56 px ArcFace crop.

    With a ``generator``, jittered by ``amount`` as a detector would.
    """
    if images.shape[-1] == data.CROP:
        images, points = F.avg_pool2d(images, 2), points / 2 - 0.25
    side = images.shape[-1]
    matrices = data.fit_similarity(points, TEMPLATE)
    if generator is not None:
        matrices = data.jitter(matrices, SIZE, generator, amount)
    inverse = torch.inverse(matrices[:, :, :2])
    line = torch.arange(SIZE, dtype=torch.float32)
    gy, gx = torch.meshgrid(line, line, indexing="ij")
    grid = torch.stack([gx, gy], -1).view(1, -1, 2) - matrices[:, None, :, 2]
    grid = torch.einsum("nij,nkj->nki", inverse, grid).view(-1, SIZE, SIZE, 2)
    return F.grid_sample(images, (grid + 0.5) / side * 2 - 1, "bilinear", "border", False)


def degrade(
    x: Tensor, generator: torch.Generator, smallest: float = 0.35, noise: Noise | None = None
) -> Tensor:
    """Blur to a lower resolution, shift colours, add noise: what compression and video do to a crop.

    ``noise`` draws the pixels' noise where ``x`` is; without it all is drawn on the CPU.
    """
    out = []
    side, device = x.shape[-1], x.device
    for part in x.split(max(8, len(x) // 16) if noise else 8):
        k = int(side * (smallest + (1 - smallest) * float(torch.rand(1, generator=generator))))
        small = F.interpolate(part, size=(k, k), mode="bilinear", antialias=True)
        out.append(F.interpolate(small, size=(side, side), mode="bilinear"))
    y, n = torch.cat(out), x.shape[0]
    grain = noise(y.shape) if noise else torch.randn(y.shape, generator=generator)
    y = y + grain * (torch.rand(n, 1, 1, 1, generator=generator) * 0.04).to(device)
    gain = 1 + torch.randn(n, 3, 1, 1, generator=generator) * 0.03
    shift = torch.randn(n, 1, 1, 1, generator=generator) * 0.02
    return (y * gain.to(device) + shift.to(device)).clamp(0, 1)


class FacePool:
    """All finished shards of a set of crops, drawn at random."""

    def __init__(self, kind: str, root: Path) -> None:
        self.shards = list(data.shards(kind, root))
        if not self.shards:
            raise FileNotFoundError(
                f"no rendered {kind!r} set under {root}; run `python -m facelock.miniature data`"
            )

    def draw(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Images (n, 3, S, S) in [0, 1], landmarks (n, 5, 2), identity indices (n,)."""
        s = self.shards[int(torch.randint(len(self.shards), (1,), generator=generator))]
        groups = s["who"].shape[0]
        flat = torch.randperm(groups * data.GROUP, generator=generator)[:n].sort().values.numpy()
        g, m = flat // data.GROUP, flat % data.GROUP
        images = torch.from_numpy(np.ascontiguousarray(s["images"][g, m])).float() / 255
        return images, torch.from_numpy(s["landmarks"][g, m]), torch.from_numpy(s["who"][g, m])


class RecognitionTask:
    """Trains the lock's recogniser (``faces`` set) or the CRATE judge (``judge`` set)."""

    def __init__(self, name: str, root: Path, steps: int, batch: int = 128) -> None:
        self._build(name, steps, batch, data.POOL)
        self.pool = FacePool("judge" if name == "judge" else "faces", root)

    def _build(self, name: str, steps: int, batch: int, people: int) -> None:
        self.name, self.steps, self.batch = name, steps, batch
        judge = name == "judge"
        self.bf16, self.rate = not judge, 1e-3 if judge else 2e-3
        self.targets = data.targets("judge" if judge else "train", people)[0]
        torch.manual_seed(2 if judge else 1)
        net: nn.Module = Crate() if judge else Recogniser().to(memory_format=torch.channels_last)
        self.module = nn.ModuleDict(
            {
                "net": net,
                "regress": nn.Linear(64, self.targets.shape[1]),
                "classes": nn.Linear(64, people, bias=False),
            }
        )
        self.module["net"].whiten.requires_grad_(False)

    def draw(self, step: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Crops (B, 3, 56, 56), their identity parameters (B, V) and who they are (B,)."""
        images, points, who = self.pool.draw(self.batch, generator)
        x = arcface_crops(images, points, generator)
        if torch.rand(1, generator=generator) < 0.6:
            x = degrade(x, generator)
        return x, self.targets[who], who

    def loss(self, step: int, batch: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """MSE of the identity parameters plus CosFace with a margin that grows over the first half."""
        x, target, who = batch
        x = x.contiguous(memory_format=torch.channels_last)
        code = self.module["net"].forward_code(x * 2 - 1).float()
        mse = F.mse_loss(self.module["regress"](code), target)
        cosine = F.normalize(code) @ F.normalize(self.module["classes"].weight).T
        margin = 0.25 * min(1.0, step / (0.5 * self.steps))
        lowered = torch.full_like(who, -margin, dtype=cosine.dtype).unsqueeze(1)
        logits = 24 * cosine.scatter_add(1, who.unsqueeze(1), lowered)
        weight = 0.05 * min(1.0, step / (0.15 * self.steps))
        margin_loss = F.cross_entropy(logits, who)
        return mse + weight * margin_loss, {"mse": mse, "cosface": margin_loss}


Embed = Callable[[Tensor], Tensor]
"""(N, 3, 56, 56) crops in [0, 1] → (N, D)."""


def raw_codes(net: nn.Module) -> Embed:
    """The codes of a network in training's shape, before whitening."""
    return lambda x: net.forward_code(x * 2 - 1).float()  # type: ignore[operator]


def shipped(encoder: Encoder) -> Embed:
    """The embeddings of an exported recogniser, which averages its 112 px crop to training's 56 px."""
    return lambda x: encoder.embed_crops(F.interpolate(x, scale_factor=2, mode="nearest"))


@torch.no_grad()
def codes(embed: Embed, pool: FacePool, count: int, seed: int, blur: bool) -> tuple[Tensor, Tensor]:
    """What ``embed`` makes of ``count`` or a few more random crops of ``pool``, and whose they are."""
    generator = torch.Generator().manual_seed(seed)
    out, people = [], list[Tensor]()
    while sum(p.shape[0] for p in people) < count:
        images, points, who = pool.draw(256, generator)
        x = arcface_crops(images, points, generator, 0.5)
        x = degrade(x, generator) if blur else x
        out.append(embed(x))
        people.append(who)
    return torch.cat(out), torch.cat(people)


def whiten(net: nn.Module, pool: FacePool, count: int = 12000) -> None:
    """Set ``net.whiten``: centre, then scale by the inverse root of the within-identity scatter (LDA)."""
    c1, w1 = codes(raw_codes(net), pool, count // 2, 91, blur=True)
    c2, w2 = codes(raw_codes(net), pool, count // 2, 92, blur=False)
    code, who = torch.cat([c1, c2]).double(), torch.cat([w1, w2])
    centre = code.mean(0)
    people, index, n = who.unique(return_inverse=True, return_counts=True)
    means = torch.zeros(len(people), code.shape[1], dtype=code.dtype).index_add_(
        0, index, code
    ) / n.unsqueeze(1)
    residual = (code - means[index])[n[index] > 1]
    freedom = max(1, residual.shape[0] - int((n > 1).sum()))
    within = residual.T @ residual / freedom
    within += torch.eye(within.shape[0]) * within.diagonal().mean() * 0.02
    between = (means - centre).T @ (means - centre) / len(people)
    values, vectors = torch.linalg.eigh(within)
    root = vectors @ torch.diag(values.rsqrt()) @ vectors.T
    ratio, axes = torch.linalg.eigh(root @ between @ root)
    signal = (ratio - 1.0 / float(n.float().mean())).clamp(min=0)
    gain = torch.sqrt(signal / (signal + 1.0))
    matrix = torch.diag(gain) @ axes.T @ root
    net.whiten.weight.data.copy_(matrix.float())
    net.whiten.bias.data.copy_((-matrix @ centre).float())


def whitened_codes(net: nn.Module) -> Embed:
    """The codes of a network in training's shape, after whitening: its embeddings but for what only lays them out."""
    raw = raw_codes(net)
    return lambda x: net.whiten(raw(x))  # type: ignore[operator, no-any-return]


@torch.no_grad()
def turn(net: nn.Module, like: nn.Module, pool: FacePool, count: int = 4000) -> None:
    """Turn ``net.whiten`` until its embeddings lie as near to those of ``like`` as they can; no cosine changes.

    So what has learned to read the one, reads the other nearly as well. Orthogonal Procrustes (Schönemann 1966).
    """
    ours, theirs = (
        F.normalize(codes(whitened_codes(n), pool, count, 94, blur=False)[0]) for n in (net, like)
    )
    left, _, right = torch.linalg.svd((ours.T @ theirs).double())
    turned = (left @ right).T.float()
    net.whiten.weight.copy_(turned @ net.whiten.weight)
    net.whiten.bias.copy_(turned @ net.whiten.bias)


@torch.no_grad()
def verification(embed: Embed, pool: FacePool, *, blur: bool = False, count: int = 3000) -> dict[str, float]:
    """Held-out verification over all pairs: means, true-accept rates and the thresholds at fixed false-accept rates."""
    rows, who = codes(embed, pool, count, 93, blur)
    e = F.normalize(rows)
    scores = e @ e.T
    upper = torch.triu(torch.ones_like(scores, dtype=torch.bool), 1)
    same = scores[upper & (who[:, None] == who[None])]
    other = scores[upper & (who[:, None] != who[None])].sort().values
    out = {
        "same": float(same.mean()),
        "same_sd": float(same.std()),
        "different": float(other.mean()),
        "different_sd": float(other.std()),
    }
    for name, far in (("far_1e2", 1e-2), ("far_1e3", 1e-3), ("far_1e4", 1e-4)):
        threshold = float(other[int(len(other) * (1 - far))])
        out[name] = threshold
        out[f"tar_{name}"] = float((same > threshold).float().mean())
    return out
