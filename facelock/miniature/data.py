"""Rendered training sets, in shards of plain ``.npy`` files that training reads memory-mapped.

Every shard derives from its own seed, so that sets are resumable and the same everywhere. Identities never
cross splits: ``train`` (lock's recogniser, aligner, restorer, upscaler, blueprint), ``judge`` and ``heldout``.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from facelock.miniature import world
from facelock.miniature.motion import clip_nuisance
from facelock.miniature.parameters import (
    ACTIONS,
    MOTIONS,
    Params,
    identity_vector,
    sample_appearance,
    sample_identity,
    sample_nuisance,
    take,
    to_device,
)
from facelock.miniature.vocabulary import caption, random_keep

log = logging.getLogger(__name__)

SPLITS = {"train": 11, "judge": 22, "heldout": 33}
ARCFACE = ((38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041))
"""The 112×112 template of ArcFace (insightface ``face_align.arcface_dst``)."""
VIEW = 56
"""Pixels of the crop that recognisers see: half of ArcFace's."""
VIEW_TEMPLATE = torch.tensor(ARCFACE) / 2 - 0.25
"""ArcFace's landmarks in it."""
MARGIN = 16
"""Pixels around the 112 template in a stored crop, at full scale."""
CROP = 144
POOL = 6000
"""Identities of the training splits."""
WINDOW = 17
"""Frames of a clip that the autoencoder takes at once: 5 latents."""
SPAN = 9
"""Frames of the windows of the ``decoded`` set, 3 latents: a blink, and time to turn."""
OFFSETS = (0, 8)
"""First frames of the windows that a clip is encoded at."""
GROUP = 8
"""Identities rendered under one nuisance: each ordered pair of them supervises the aligner."""


def seeded(*key: int) -> torch.Generator:
    """A generator for one purpose."""
    seed = 0
    for k in key:
        seed = (seed * 1_000_003 + k + 1) % (2**62)
    return torch.Generator().manual_seed(seed)


def identities(split: str, count: int) -> Params:
    """The first ``count`` identities of a split; always the same ones."""
    blocks = [sample_identity(64, seeded(SPLITS[split], i)) for i in range((count + 63) // 64)]
    return {k: torch.cat([b[k] for b in blocks])[:count] for k in blocks[0]}


def fit_similarity(source: Tensor, target: Tensor) -> Tensor:
    """Least-squares similarity (N, 2, 3) taking ``source`` (N, 5, 2) onto ``target`` (5, 2)."""
    ms, mt = source.mean(1, keepdim=True), target.mean(0)
    a, b = source - ms, target - mt
    power = (a * a).sum((1, 2))
    c = (a * b).sum((1, 2)) / power
    s = (a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]).sum(1) / power
    m = torch.stack([torch.stack([c, -s], -1), torch.stack([s, c], -1)], 1)
    return torch.cat([m, (mt - torch.einsum("nij,nj->ni", m, ms[:, 0])).unsqueeze(-1)], -1)


def crop_template(size: int = CROP) -> Tensor:
    """Template points of the stored crop at ``size`` pixels."""
    return (torch.tensor(ARCFACE) + MARGIN) * (size / CROP) + (size / CROP - 1) / 2


def jitter(matrices: Tensor, size: int, generator: torch.Generator, amount: float = 1.0) -> Tensor:
    """Rotate, scale and shift canonical crops a little, as a detector's landmarks would."""
    n = matrices.shape[0]
    angle = torch.randn(n, generator=generator) * 0.04 * amount
    zoom = torch.exp(torch.randn(n, generator=generator) * 0.03 * amount)
    shift = torch.randn(n, 2, generator=generator) * 0.012 * size * amount
    rot = torch.stack(
        [torch.stack([angle.cos(), -angle.sin()], -1), torch.stack([angle.sin(), angle.cos()], -1)], 1
    )
    rot = rot * zoom.view(-1, 1, 1)
    centre = torch.full((2,), size / 2.0)
    offset = torch.einsum("nij,nj->ni", rot, matrices[:, :, 2] - centre) + centre + shift
    return torch.cat([rot @ matrices[:, :, :2], offset.unsqueeze(-1)], -1)


def apply(matrices: Tensor, points: Tensor) -> Tensor:
    """Map points (N, P, 2) by similarities (N, 2, 3)."""
    return torch.einsum("nij,npj->npi", matrices[:, :, :2], points) + matrices[:, None, :, 2]


def _u8(x: Tensor) -> np.ndarray:
    return (x * 255).round().clamp(0, 255).byte().cpu().numpy()


def render_faces(
    split: str, shard: int, groups: int, pool: int, size: int, device: str
) -> dict[str, np.ndarray]:
    """One shard of canonical crops: ``GROUP`` identities under each of ``groups`` nuisances."""
    g = seeded(SPLITS[split], 7, shard)
    people = identities(split, pool)
    who = torch.stack([torch.randperm(pool, generator=g)[:GROUP] for _ in range(groups)]).view(-1)
    face = take(people, who)
    same = torch.arange(groups).repeat_interleave(GROUP)
    look = take(sample_appearance(groups, g, torch.rand(groups, generator=g)), same)
    now = take(sample_nuisance(groups, g), same)
    points, _ = world.landmarks(face, now, 256)
    shared = points.view(groups, GROUP, 5, 2).mean(1)
    matrices = jitter(fit_similarity(shared, crop_template(size)), size, g)[same]
    rays = world.crop_rays(matrices, size, 256)
    args = [to_device(p, device) for p in (face, look, now)]
    rays = world.Rays(rays.x.to(device), rays.y.to(device), rays.pitch.to(device))
    images = world.render_rays(*args, rays)
    return {
        "images": _u8(images).reshape(groups, GROUP, 3, size, size),
        "landmarks": apply(matrices, points).view(groups, GROUP, 5, 2).numpy(),
        "who": who.view(groups, GROUP).numpy(),
    }


def draw_people(shard: int, count: int) -> tuple[Params, Params, Params, Tensor]:
    """Faces, looks and moments of a shard of people whom nothing else shows, and the crops (count, 2, 3) of them."""
    g = seeded(SPLITS["train"], 12, shard)
    face = sample_identity(count, g)
    return face, *portraits(face, g)


def portraits(face: Params, g: torch.Generator) -> tuple[Params, Params, Tensor]:
    """A look and a moment for each face, and a detector's :data:`VIEW`-pixel crop (n, 2, 3) of a frame of 256."""
    count = len(face["jaw"])
    look, now = sample_appearance(count, g, face["feminine"]), sample_nuisance(count, g)
    matrices = fit_similarity(world.landmarks(face, now, 256)[0], VIEW_TEMPLATE)
    return look, now, jitter(matrices, VIEW, g)


def render_people(shard: int, count: int, device: str) -> dict[str, np.ndarray]:
    """One shard of ArcFace crops of 56 pixels, each of another person."""
    face, look, now, matrices = draw_people(shard, count)
    rays = world.crop_rays(matrices.to(device), VIEW, 256)
    images = world.render_rays(*(to_device(p, device) for p in (face, look, now)), rays)
    return {"images": _u8(images)}


def draw_frames(split: str, shard: int, count: int, pool: int) -> tuple[Params, Params, Params, Tensor]:
    """The parameters of a shard of frames, and which of them show nobody."""
    g = seeded(SPLITS[split], 8, shard)
    face = take(identities(split, pool), torch.randint(0, pool, (count,), generator=g))
    look, now = sample_appearance(count, g, face["feminine"]), sample_nuisance(count, g)
    nobody = torch.rand(count, generator=g) < 0.1
    now["tx"] = torch.where(nobody, torch.full_like(now["tx"], 9.0), now["tx"])
    return face, look, now, nobody


def render_frames(
    split: str, shard: int, count: int, pool: int, size: int, device: str
) -> dict[str, np.ndarray]:
    """One shard of whole frames with landmarks and boxes; one in ten shows nobody."""
    face, look, now, nobody = draw_frames(split, shard, count, pool)
    points, box = world.landmarks(face, now, size)
    images = world.render(*(to_device(p, device) for p in (face, look, now)), size)
    return {
        "images": _u8(images),
        "landmarks": points.numpy(),
        "boxes": box.numpy(),
        "nobody": nobody.numpy(),
    }


def draw_clips(
    split: str, shard: int, count: int, pool: int, frames: int
) -> tuple[Params, Params, Params, list[str]]:
    """Parameters of every frame (count · frames,) of a shard of clips, and the captions."""
    g = seeded(SPLITS[split], 9, shard)
    face = take(identities(split, pool), torch.randint(0, pool, (count,), generator=g))
    look, base, action, motion, now = moving(face, frames, g)
    rep = torch.arange(count).repeat_interleave(frames)
    text = [
        caption(face, look, base, int(action[i]), int(motion[i]), i, random_keep(g)) for i in range(count)
    ]
    return take(face, rep), take(look, rep), now, text


def draw_windows(shard: int, count: int) -> tuple[Params, Params, Params]:
    """The same of ``count`` windows of :data:`SPAN` frames, of people whom nothing else shows."""
    g = seeded(SPLITS["train"], 13, shard)
    face = sample_identity(count, g)
    look, *_, now = moving(face, SPAN, g)
    rep = torch.arange(count).repeat_interleave(SPAN)
    return take(face, rep), take(look, rep), now


def moving(face: Params, frames: int, g: torch.Generator) -> tuple[Params, Params, Tensor, Tensor, Params]:
    """Looks, starts, actions and motions (n,) of clips of ``face``, and the moments of all frames (n · frames,)."""
    count = len(face["jaw"])
    look, base = sample_appearance(count, g, face["feminine"]), sample_nuisance(count, g)
    action = torch.randint(0, len(ACTIONS), (count,), generator=g)
    motion = torch.randint(0, len(MOTIONS), (count,), generator=g)
    return look, base, action, motion, clip_nuisance(base, action, motion, frames, g)


def render_clips(
    split: str, shard: int, count: int, pool: int, frames: int, size: int, device: str
) -> dict[str, np.ndarray]:
    """One shard of moving clips with captions."""
    face, look, now, text = draw_clips(split, shard, count, pool, frames)
    images = world.render(*(to_device(p, device) for p in (face, look, now)), size)
    _, box = world.landmarks(face, now, size)
    return {
        "images": _u8(images).reshape(count, frames, 3, size, size),
        "boxes": box.view(count, frames, 4).numpy(),
        "captions": np.array(json.dumps(text)),
    }


KINDS: dict[str, Callable[[int, str], dict[str, np.ndarray]]] = {
    "faces": lambda i, dev: render_faces("train", i, 250, 6000, CROP, dev),
    "judge": lambda i, dev: render_faces("judge", i, 1000, 6000, CROP // 2, dev),
    "heldout": lambda i, dev: render_faces("heldout", i, 250, 200, CROP, dev),
    "people": lambda i, dev: render_people(i, 5000, dev),
    "frames": lambda i, dev: render_frames("train", i, 2000, 6000, 128, dev),
    "clips": lambda i, dev: render_clips("train", i, 500, 6000, 25, 64, dev),
}
"""Set name → how one shard of it is rendered."""


def build(kind: str, shards: int, root: Path, device: str = "cpu", first: int = 0) -> None:
    """Render the shards of a set that do not exist yet. How many were wanted is kept: see :func:`planned`."""
    folder = planned_folder(kind, shards, root)
    for i in range(first, shards):
        if not (folder / f"{i:04d}").is_dir():
            save_shard(kind, i, KINDS[kind](i, device), root)


def planned_folder(kind: str, shards: int, root: Path) -> Path:
    """Where the shards of a set go; how many are wanted is kept there."""
    (root / kind).mkdir(parents=True, exist_ok=True)
    (root / kind / "planned.txt").write_text(f"{shards}\n")
    return root / kind


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Where to write what ``path`` is to hold, whole or not at all: trainings side by side look for it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}.part")
    yield part
    part.rename(path)


def save_shard(kind: str, number: int, arrays: dict[str, np.ndarray], root: Path) -> None:
    """Write a shard whole or not at all."""
    folder = root / kind / f"{number:04d}"
    temporary = folder.with_suffix(".part")
    temporary.mkdir(parents=True, exist_ok=True)
    for name, array in arrays.items():
        np.save(temporary / f"{name}.npy", array)
    temporary.rename(folder)
    log.info("%s shard %d", kind, number + 1)


def planned(kind: str, root: Path) -> int | None:
    """How many shards of a set were asked for when it was last rendered; ``None`` if nothing tells."""
    path = root / kind / "planned.txt"
    return int(path.read_text()) if path.is_file() else None


def count(kind: str, root: Path) -> int:
    """How many shards of a set are finished."""
    return sum(1 for _ in (root / kind).glob("[0-9]*[0-9]"))


def shards(kind: str, root: Path) -> Iterator[dict[str, np.ndarray]]:
    """Finished shards of a set, memory-mapped."""
    for folder in sorted((root / kind).glob("[0-9]*[0-9]")):
        yield {f.stem: np.load(f, mmap_mode="r") for f in sorted(folder.glob("*.npy"))}


def clips(root: Path) -> Iterator[tuple[np.ndarray, Params, Params, Params]]:
    """Pictures (N, T, 3, 64, 64) of each ``clips`` shard; the face, look and moment (N · T,) of every frame."""
    for folder in sorted((root / "clips").glob("[0-9]*[0-9]")):
        images = np.load(folder / "images.npy", mmap_mode="r")
        yield images, *_drawn(folder, *images.shape[:2])


def decoded(root: Path) -> Iterator[tuple[dict[str, np.ndarray], Params, Params, Params]]:
    """Each shard of windows, ``rendered`` and ``images``, what the autoencoder leaves of them (both (N · SPAN, 3, 64,
    64)); and the face, look and moment that each picture shows.
    """
    for folder in sorted((root / "decoded").glob("[0-9]*[0-9]")):
        pictures = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("rendered", "images")}
        yield pictures, *draw_windows(int(folder.name), len(pictures["images"]) // SPAN)


def clip_landmarks(root: Path) -> Iterator[Tensor]:
    """The landmarks (N, T, 5, 2) in the frames of each shard of ``clips``."""
    for images, face, _, now in clips(root):
        yield world.landmarks(face, now, images.shape[-1])[0].view(*images.shape[:2], 5, 2)


def _drawn(folder: Path, clips: int, length: int) -> tuple[Params, Params, Params]:
    """What the frames of a shard of ``clips`` show, drawn again by its number."""
    return draw_clips("train", int(folder.name), clips, people("clips", clips), length)[:3]


def people(kind: str, count: int) -> int:
    """Size of the identity pool that a set's shards of ``count`` items were drawn from."""
    return 16 if count < 100 else POOL


def vectors(split: str, pool: int) -> Tensor:
    """Identity vectors (pool, V) of a split, not standardised."""
    return identity_vector(identities(split, pool))


def targets(split: str, pool: int) -> tuple[Tensor, Tensor, Tensor]:
    """Standardised identity vectors (pool, V) of a split, with the mean and deviation used."""
    v = identity_vector(identities(split, pool))
    reference = identity_vector(identities("train", 4096))
    mean, deviation = reference.mean(0), reference.std(0)
    return (v - mean) / deviation, mean, deviation
