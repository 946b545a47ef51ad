"""Training of the blueprint's autoencoder: diffusers' Wan VAE (arXiv:2503.20314), ×4 in space and ×4 in time.

It compresses about as hard as the real one: scene, hair, pose survive, the fine identity of a face does not. That is
the disease FaceLock cures. What people do must survive it, though: eyes and mouth weigh most, then the face's box.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from torch import Tensor, nn

from facelock.blueprint.wan_vae_cpu import accelerate_vae
from facelock.miniature import data, world
from facelock.miniature.alignment import detected, labels_of, warp
from facelock.miniature.model_aligner import OUTPUTS, Reader
from facelock.miniature.parameters import Params, take, to_device
from facelock.miniature.trainer import in_float32

log = logging.getLogger(__name__)

CHANNELS = 16
"""As many as the real one's. Half of them lose what a mouth does from frame to frame."""
FEATURES = 24.0
"""What an error in the middle of an eye or mouth counts for more than one elsewhere, while the autoencoder learns."""
WINDOWS = ((12, 1), (1, data.WINDOW), (2, 9), (2, 9))
"""Clips and frames of one step after the other: stills teach space, clips teach time."""
DECODED = 1000
"""Windows of a shard of the ``decoded`` set."""
READ = 0.4
"""Weight of what a reader that learns along with it cannot tell from its frames."""
TOLD = {
    **dict.fromkeys(("open", "smile"), 5.0),
    "blink": 3.0,
    "glasses": 2.0,
    **dict.fromkeys(("gaze_x", "gaze_y", "brow_raise", "yaw", "pitch", "roll"), 1.0),
    **dict.fromkeys(("beard", "hair_r", "hair_g", "hair_b", "temperature"), 0.1),
}
"""What the reader's errors count for; any other .3."""


def make_vae(mean: list[float] | None = None, deviation: list[float] | None = None) -> AutoencoderKLWan:
    """The miniature's autoencoder, with latent statistics where they are known."""
    return AutoencoderKLWan(
        base_dim=16,
        z_dim=CHANNELS,
        dim_mult=[1, 2, 4],
        num_res_blocks=1,
        attn_scales=[],
        temperal_downsample=[True, True],
        scale_factor_spatial=4,
        latents_mean=mean or [0.0] * CHANNELS,
        latents_std=deviation or [1.0] * CHANNELS,
    )


class Shown(NamedTuple):
    """Windows of rendered clips, and what they show."""

    frames: Tensor
    """(n, T, 3, 64, 64) in [0, 1]."""
    boxes: Tensor
    """Of the faces, (n, T, 4)."""
    points: Tensor
    """Landmarks (n, T, 5, 2)."""
    labels: Params
    """(n · T,) each: :func:`~facelock.miniature.alignment.labels_of`."""


class ClipPool:
    """All finished shards of moving clips."""

    def __init__(self, root: Path) -> None:
        self.shards = list(data.shards("clips", root))
        if not self.shards:
            raise FileNotFoundError(f"no rendered clips under {root}")
        self.points, self.labels = list[Tensor](), list[Params]()
        for images, face, look, now in data.clips(root):
            points = world.landmarks(face, now, images.shape[-1])[0]
            self.points.append(points.view(*images.shape[:2], 5, 2))
            self.labels.append(labels_of(look, now))

    def draw(self, n: int, frames: int, generator: torch.Generator) -> Shown:
        """``n`` windows of ``frames`` frames each."""
        shard = int(torch.randint(len(self.shards), (1,), generator=generator))
        s, points = self.shards[shard], self.points[shard]
        count, length = s["images"].shape[:2]
        rows = torch.randint(count, (n, 1), generator=generator)
        first = torch.randint(length - frames + 1, (n, 1), generator=generator)
        when = first + torch.arange(frames)
        place = (rows.numpy(), when.numpy())
        return Shown(
            torch.from_numpy(s["images"][place]).float() / 255,
            torch.from_numpy(s["boxes"][place]),
            points[rows, when],
            take(self.labels[shard], (rows * length + when).flatten()),
        )


def box_weight(boxes: Tensor, size: int, gain: float = 5.0) -> Tensor:
    """(..., 1, size, size) weight: 1 outside the face's box, 1 + gain inside."""
    line = torch.arange(size, dtype=torch.float32, device=boxes.device)
    x = ((line >= boxes[..., 0:1]) & (line <= boxes[..., 2:3])).float()
    y = ((line >= boxes[..., 1:2]) & (line <= boxes[..., 3:4])).float()
    return 1 + gain * (y.unsqueeze(-1) * x.unsqueeze(-2)).unsqueeze(-3)


def feature_weight(points: Tensor, size: int, gain: float) -> Tensor:
    """(..., 1, size, size) more weight on eyes and mouth, by landmarks (..., 5, 2): ``gain`` at their middle."""
    line = torch.arange(size, dtype=torch.float32, device=points.device)
    reach = (points[..., 1, :] - points[..., 0, :]).norm(dim=-1).clamp(min=2.0)[..., None, None] * 0.28
    mouth = points[..., 3:5, :].mean(-2)
    out = torch.zeros((), device=points.device)
    for centre, wide in ((points[..., 0, :], 1.0), (points[..., 1, :], 1.0), (mouth, 1.5)):
        x = (line - centre[..., 0:1]).unsqueeze(-2) / (reach * wide)
        y = (line - centre[..., 1:2]).unsqueeze(-1) / reach
        out = torch.maximum(out, torch.exp(-(x * x + y * y) / 2))
    return gain * out.unsqueeze(-3)


def latent_weight(points: Tensor, size: int, gain: float) -> Tensor:
    """Weight of the latents of windows by the frames' landmarks (..., 17, 5, 2): (..., 5, size / 4, size / 4), from 1.

    A latent counts for as much as the eyes and mouth (:func:`feature_weight`) of any of its frames are in its place:
    they are a twentieth of the picture, and all that tells one action from another.
    """
    *lead, frames = points.shape[:-2]
    fine = F.avg_pool2d(feature_weight(points.flatten(0, -3), size, gain), 4)
    fine = fine.view(*lead, frames, *fine.shape[-2:])
    first, rest = fine[..., :1, :, :], fine[..., 1:, :, :]
    return 1 + torch.cat([first, rest.unflatten(-3, (-1, 4)).amax(-3)], -3)


class Watched(nn.Module):
    """The autoencoder, and a reader of its frames that learns along with it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(6)
        vae: Any = make_vae()
        accelerate_vae(vae)  # whole clips in one pass, as 2-D convolutions: faster on a GPU too
        self.vae: Any = vae
        self.reader = Reader()

    def read(self, video: Tensor, matrices: Tensor, labels: Tensor) -> Tensor:
        """How far off the reader is (n · T, len(OUTPUTS)), standardised, in video (n, 3, T, 64, 64) in [-1, 1]."""
        crops = warp(video.transpose(1, 2).flatten(0, 1) / 2 + 0.5, matrices)
        mean, deviation = (self.reader.get_buffer(name) for name in ("mean", "deviation"))
        return self.reader.standard(crops).float() - (labels - mean) / deviation


class VaeTask:
    """In turn stills, a clip of the blueprint's 17 frames, and twice two shorter ones.

    A mouth is a few pixels, so an error in it is cheap, however it counts: what the autoencoder leaves of a face is
    also read, by a network that learns with it, and what cannot be read off the frames any more is an error of both.
    """

    name = "vae"
    bf16 = True
    rate = 2e-3

    def __init__(self, root: Path, steps: int) -> None:
        self.pool = ClipPool(root)
        drawn = [self.draw(0, data.seeded(i)) for i in range(16)]
        self._build(steps, torch.cat([batch[4] for batch in drawn]))

    def _build(self, steps: int, sample: Tensor) -> None:
        """``sample`` (n, len(OUTPUTS)) of the labels tells what is much and what is little."""
        self.steps = steps
        self.module: nn.Module = Watched()
        self.module.reader.standardise(sample)  # type: ignore[operator, union-attr]
        self.counts = torch.tensor([TOLD.get(name, 0.3) for name in OUTPUTS])

    def draw(self, step: int, generator: torch.Generator) -> tuple[Any, ...]:
        """Video (B, 3, T, 64, 64) in [-1, 1], weights of its pixels (B, 1, T, 64, 64), noise of its latents; how faces
        are cut out for the reader (B · T, 2, 3), and what it should say (B · T, len(OUTPUTS)).
        """
        clips, length = WINDOWS[step % len(WINDOWS)]
        shown = self.pool.draw(clips, length, generator)
        side = shown.frames.shape[-1]
        weight = box_weight(shown.boxes, side) + feature_weight(shown.points, side, FEATURES)
        noise = torch.randn(latents_shape(clips, length, side), generator=generator)
        matrices, labels = detected(shown.points.flatten(0, 1), shown.labels, side, generator)
        return shown.frames.transpose(1, 2) * 2 - 1, weight.transpose(1, 2), noise, matrices, labels

    def loss(self, step: int, batch: tuple[Any, ...]) -> tuple[Tensor, dict[str, Tensor]]:
        """Face-weighted L1 on pixels and edges, what cannot be read any more, and a light pull of the latents toward a
        unit Gaussian.
        """
        video, weight, noise, matrices, labels = batch
        module: Any = self.module
        posterior = module.vae.encode(video).latent_dist
        y = module.vae.decode(posterior.mean + posterior.std * noise).sample.float()
        error = y - video
        pixel = (error.abs() * weight).mean() / weight.mean()
        across, along = error[..., 1:] - error[..., :-1], error[..., 1:, :] - error[..., :-1, :]
        edge = (across.abs() * weight[..., 1:]).mean() + (along.abs() * weight[..., 1:, :]).mean()
        edge = edge / weight.mean()  # edges of the face first: eyes and mouth are nothing else
        frames = error.shape[2]
        if frames > 1:  # and what moves: a blink is a few pixels of a few frames
            weight = (weight[:, :, 1:] + weight[:, :, :-1]) / 2
            edge = edge + ((error[:, :, 1:] - error[:, :, :-1]).abs() * weight).mean() / weight.mean()
        with in_float32(y.device):
            wrong = module.read(y, matrices, labels)
            # True frames teach the reader what a mouth looks like: nothing is told it by what no eye could see.
            taught = self._lost(module.read(video, matrices, labels))
        lost = self._lost(wrong)
        if frames > 1:
            courses = wrong.unflatten(0, (-1, frames))
            lost = lost + self._lost((courses - courses.mean(1, keepdim=True)).flatten(0, 1))
        kl = 0.5 * (posterior.mean.float() ** 2 + posterior.var.float() - 1 - posterior.logvar.float()).mean()
        psnr = -10 * torch.log10(error.detach().square().mean() / 4)
        figures = {"psnr": psnr, "unread": lost, "taught": taught, "kl": kl}
        return pixel + edge + READ * (lost + taught) + 1e-4 * kl, figures

    def _lost(self, wrong: Tensor) -> Tensor:
        """Mean square of the reader's errors (n, len(OUTPUTS)), as they count."""
        self.counts = self.counts.to(wrong.device)
        return (wrong.clamp(-4, 4).square().mean(0) * self.counts).sum() / self.counts.sum()


def latents_shape(clips: int, frames: int, side: int) -> tuple[int, ...]:
    """Of the latents of ``clips`` windows of ``frames`` frames."""
    return clips, CHANNELS, (frames - 1) // 4 + 1, side // 4, side // 4


def _device(vae: nn.Module) -> torch.device:
    return next(vae.parameters()).device


@torch.no_grad()
def encode_clips(vae: nn.Module, pool: ClipPool, offsets: tuple[int, ...], batch: int = 10) -> Tensor:
    """Latent means of every clip's 17-frame windows at ``offsets``: (clips, len(offsets), 16, 5, 16, 16)."""
    out = []
    for s in pool.shards:
        for i in range(0, s["images"].shape[0], batch):
            windows = [_encode(vae, s["images"][i : i + batch, o : o + data.WINDOW]) for o in offsets]
            out.append(torch.stack(windows, 1))
    return torch.cat(out)


def _encode(vae: nn.Module, frames: np.ndarray) -> Tensor:
    """(n, 17, 3, 64, 64) bytes → (n, 16, 5, 16, 16) latent means, on the CPU."""
    x = torch.from_numpy(np.array(frames)).to(_device(vae)).float() / 127.5 - 1
    return vae.encode(x.transpose(1, 2)).latent_dist.mean.float().cpu()


@torch.no_grad()
def fit_round_trip(
    vae: nn.Module, latents: Tensor, mean: list[float], deviation: list[float], windows: int = 240
) -> Tensor:
    """What a trip through pixels does to context latents, as a linear map of each one's 3 × 3 neighbourhood.

    A chunk's tail is decoded, locked and encoded again as the next one's context. Frames 8 to 12 of the windows at
    offset 0 take that trip here; the windows at offset 8 begin with the same frames untouched. ``latents``
    (clips, 2, 16, 5, 16, 16) are normalised by ``mean`` and ``deviation``. Returns
    (2, 16, 145) least-squares weights: for the first and second context latent, 144 neighbours and a constant.
    """
    latents = latents[torch.randperm(latents.shape[0], generator=data.seeded(42))[:windows]].float().cpu()
    shift, scale = (torch.tensor(v).view(1, -1, 1, 1, 1) for v in (mean, deviation))
    out, device = [], _device(vae)
    for part in latents[:, 0].split(6):
        with torch.autocast(device.type, torch.bfloat16):
            z = (part * scale + shift).to(device)
            frames = vae.decode(z).sample[:, :, 8:13].float().clamp(-1, 1)
            out.append((vae.encode(frames).latent_dist.mean.float().cpu() - shift) / scale)
    after, clean = torch.cat(out), latents[:, 1, :, :2]
    weights = []
    for k in range(2):
        seen = neighbourhoods(clean[:, :, k]).permute(0, 2, 1).flatten(0, 1).double()
        target = after[:, :, k].flatten(2).permute(0, 2, 1).flatten(0, 1).double()
        normal = seen.T @ seen + 1e-2 * len(seen) * torch.eye(seen.shape[1], dtype=torch.double)
        weights.append(torch.linalg.solve(normal, seen.T @ target).T.float())
    return torch.stack(weights)


def neighbourhoods(z: Tensor) -> Tensor:
    """(B, 16, h, w) → (B, 145, h·w): each place's 3 × 3 neighbours of every channel, and a one."""
    around = torch.nn.functional.unfold(torch.nn.functional.pad(z, (1, 1, 1, 1), mode="replicate"), 3)
    return torch.cat([around, torch.ones_like(around[:, :1])], 1)


@torch.no_grad()
def build_decoded(vae: nn.Module, shards: int, root: Path) -> None:
    """Render the ``decoded`` set: windows, and what the autoencoder leaves of them, a little noise on the latents.

    What detector and aligner meet in a clip.
    """
    folder, device = data.planned_folder("decoded", shards, root), _device(vae)
    for number in range(shards):
        if (folder / f"{number:04d}").is_dir():
            continue
        shown = data.draw_windows(number, DECODED)
        g, pictures = data.seeded(41, number), dict[str, list[Tensor]](rendered=[], images=[])
        for first in range(0, DECODED, 8):
            rows = slice(first * data.SPAN, (first + 8) * data.SPAN)
            frames = world.render(*(to_device(take(p, rows), device) for p in shown), 64)
            video = frames.unflatten(0, (-1, data.SPAN)).transpose(1, 2) * 2 - 1
            z = vae.encode(video).latent_dist.mean.float()
            amount = 0.25 * torch.rand(len(z), 1, 1, 1, 1, generator=g)
            noise = amount * torch.randn(z.shape, generator=g)
            left = vae.decode(z + noise.to(device) * z.std((0, 2, 3, 4), keepdim=True)).sample.float()
            for name, x in (("rendered", frames), ("images", (left / 2 + 0.5).transpose(1, 2).flatten(0, 1))):
                pictures[name].append((x.clamp(0, 1) * 255).round().byte().cpu())
        data.save_shard("decoded", number, {k: torch.cat(v).numpy() for k, v in pictures.items()}, root)


@torch.no_grad()
def reconstruction_psnr(vae: nn.Module, pool: ClipPool, clips: int = 12) -> float:
    """PSNR of 17-frame windows through the autoencoder."""
    x = pool.draw(clips, data.WINDOW, torch.Generator().manual_seed(5)).frames
    video = x.transpose(1, 2) * 2 - 1
    y = vae.decode(vae.encode(video).latent_dist.mean).sample
    return float(-10 * torch.log10(F.mse_loss(y.clamp(-1, 1), video) / 4))
