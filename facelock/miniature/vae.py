"""Training of the blueprint's autoencoder: diffusers' Wan VAE (arXiv:2503.20314), ×4 in space and ×4 in time.

It compresses about as hard as the real one: scene, hair, pose survive, the fine identity of a face does not. That is
the disease FaceLock cures, so only eyes and mouth are asked to stay readable (by a weight on the face's box).
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from torch import Tensor, nn

from facelock.blueprint.wan_vae_cpu import accelerate_vae
from facelock.miniature import data

log = logging.getLogger(__name__)

CHANNELS = 8


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


class ClipPool:
    """All finished shards of moving clips."""

    def __init__(self, root: Path) -> None:
        self.shards = list(data.shards("clips", root))
        if not self.shards:
            raise FileNotFoundError(f"no rendered clips under {root}")

    def draw(self, n: int, frames: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Windows (n, frames, 3, 64, 64) in [0, 1] and face boxes (n, frames, 4)."""
        s = self.shards[int(torch.randint(len(self.shards), (1,), generator=generator))]
        count, length = s["images"].shape[:2]
        rows = torch.randint(count, (n,), generator=generator).tolist()
        starts = torch.randint(length - frames + 1, (n,), generator=generator).tolist()
        x = np.stack([s["images"][r, a : a + frames] for r, a in zip(rows, starts, strict=True)])
        boxes = np.stack([s["boxes"][r, a : a + frames] for r, a in zip(rows, starts, strict=True)])
        return torch.from_numpy(x).float() / 255, torch.from_numpy(boxes)


def box_weight(boxes: Tensor, size: int, gain: float = 5.0) -> Tensor:
    """(..., 1, size, size) weight: 1 outside the face's box, 1 + gain inside."""
    line = torch.arange(size, dtype=torch.float32, device=boxes.device)
    x = ((line >= boxes[..., 0:1]) & (line <= boxes[..., 2:3])).float()
    y = ((line >= boxes[..., 1:2]) & (line <= boxes[..., 3:4])).float()
    return 1 + gain * (y.unsqueeze(-1) * x.unsqueeze(-2)).unsqueeze(-3)


def feature_weight(points: Tensor, size: int, gain: float = 8.0) -> Tensor:
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


class VaeTask:
    """Two clips of the blueprint's 17 frames to one batch of stills."""

    name = "vae"
    bf16 = True
    rate = 2e-3

    def __init__(self, root: Path, steps: int) -> None:
        self._build(steps)
        self.pool = ClipPool(root)

    def _build(self, steps: int) -> None:
        self.steps = steps
        torch.manual_seed(6)
        vae: Any = make_vae()
        accelerate_vae(vae)  # whole clips in one pass, as 2-D convolutions: faster on a GPU too
        self.module: nn.Module = vae

    def draw(self, step: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Video (B, 3, T, 64, 64) in [-1, 1], weights of its pixels (B, 1, T, 64, 64), noise of its latents."""
        clips, length = (12, 1) if step % 3 == 0 else (1, data.WINDOW)  # stills teach space, clips teach time
        x, boxes = self.pool.draw(clips, length, generator)
        shape = (clips, CHANNELS, (length - 1) // 4 + 1, x.shape[-2] // 4, x.shape[-1] // 4)
        weight = box_weight(boxes, x.shape[-1]).transpose(1, 2)
        return x.transpose(1, 2) * 2 - 1, weight, torch.randn(shape, generator=generator)

    def loss(self, step: int, batch: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Face-weighted L1 on pixels and edges, and a light pull of the latents toward a unit Gaussian."""
        video, weight, noise = batch
        posterior = self.module.encode(video).latent_dist
        y = self.module.decode(posterior.mean + posterior.std * noise).sample.float()
        error = y - video
        pixel = (error.abs() * weight).mean() / weight.mean()
        across, along = error[..., 1:] - error[..., :-1], error[..., 1:, :] - error[..., :-1, :]
        edge = (across.abs() * weight[..., 1:]).mean() + (along.abs() * weight[..., 1:, :]).mean()
        edge = edge / weight.mean()  # edges of the face first: eyes and mouth are nothing else
        if error.shape[2] > 1:  # and what moves: a blink is a few pixels of a few frames
            weight = (weight[:, :, 1:] + weight[:, :, :-1]) / 2
            edge = edge + ((error[:, :, 1:] - error[:, :, :-1]).abs() * weight).mean() / weight.mean()
        kl = 0.5 * (posterior.mean.float() ** 2 + posterior.var.float() - 1 - posterior.logvar.float()).mean()
        psnr = -10 * torch.log10(error.detach().square().mean() / 4)
        return pixel + edge + 1e-4 * kl, {"psnr": psnr, "kl": kl}


def _device(vae: nn.Module) -> torch.device:
    return next(vae.parameters()).device


@torch.no_grad()
def encode_clips(vae: nn.Module, pool: ClipPool, offsets: tuple[int, ...], batch: int = 10) -> Tensor:
    """Latent means of every clip's 17-frame windows at ``offsets``: (clips, len(offsets), 8, 5, 16, 16)."""
    out = []
    for s in pool.shards:
        for i in range(0, s["images"].shape[0], batch):
            windows = [_encode(vae, s["images"][i : i + batch, o : o + data.WINDOW]) for o in offsets]
            out.append(torch.stack(windows, 1))
    return torch.cat(out)


def _encode(vae: nn.Module, frames: np.ndarray) -> Tensor:
    """(n, 17, 3, 64, 64) bytes → (n, 8, 5, 16, 16) latent means, on the CPU."""
    x = torch.from_numpy(np.array(frames)).to(_device(vae)).float() / 127.5 - 1
    return vae.encode(x.transpose(1, 2)).latent_dist.mean.float().cpu()


@torch.no_grad()
def fit_round_trip(
    vae: nn.Module, latents: Tensor, mean: list[float], deviation: list[float], windows: int = 240
) -> Tensor:
    """What a trip through pixels does to context latents, as a linear map of each one's 3 × 3 neighbourhood.

    A chunk's tail is decoded, locked and encoded again as the next one's context. Frames 8 to 12 of the windows at
    offset 0 take that trip here; the windows at offset 8 begin with the same frames untouched. ``latents``
    (clips, 2, 8, 5, 16, 16) are normalised by ``mean`` and ``deviation``. Returns
    (2, 8, 73) least-squares weights: for the first and second context latent, 72 neighbours and a constant.
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
        normal = seen.T @ seen + 1e-2 * len(seen) * torch.eye(73, dtype=torch.double)
        weights.append(torch.linalg.solve(normal, seen.T @ target).T.float())
    return torch.stack(weights)


def neighbourhoods(z: Tensor) -> Tensor:
    """(B, 8, h, w) → (B, 73, h·w): each place's 3 × 3 neighbours of every channel, and a one."""
    around = torch.nn.functional.unfold(torch.nn.functional.pad(z, (1, 1, 1, 1), mode="replicate"), 3)
    return torch.cat([around, torch.ones_like(around[:, :1])], 1)


@torch.no_grad()
def build_decoded(vae: nn.Module, offsets: tuple[int, ...], root: Path, windows: int = 480) -> None:
    """Render the ``decoded`` set: windows of the clips as the autoencoder leaves them, a little noise on the latents.

    What detector and aligner meet in a clip. Shard i belongs to shard i of the clips; ``frame`` says which of its
    frames each picture shows.
    """
    for number, clip in enumerate(data.shards("clips", root)):
        count, length = clip["images"].shape[:2]
        folder = root / "decoded" / f"{number:04d}"
        if folder.is_dir():
            continue
        log.info("decoded shard %d", number + 1)
        g = data.seeded(41, number)
        row = torch.randperm(count, generator=g)[:windows]
        first = torch.tensor(offsets)[torch.randint(len(offsets), (len(row),), generator=g)]
        frame = (row * length + first)[:, None] + torch.arange(data.WINDOW)
        pictures = clip["images"].reshape(-1, *clip["images"].shape[2:])
        z = torch.cat([_encode(vae, pictures[part.numpy()]) for part in frame.split(4)])
        amount = 0.25 * torch.rand(len(row), 1, 1, 1, 1, generator=g)
        z = z + amount * z.std((0, 2, 3, 4), keepdim=True) * torch.randn(z.shape, generator=g)
        device = _device(vae)
        with torch.autocast(device.type, torch.bfloat16):
            frames = torch.cat([vae.decode(part.to(device)).sample.float().cpu() for part in z.split(4)])
        part = folder.with_suffix(".part")
        part.mkdir(parents=True, exist_ok=True)
        images = ((frames.transpose(1, 2) / 2 + 0.5).clamp(0, 1) * 255).round().byte()
        np.save(part / "images.npy", images.flatten(0, 1).numpy())
        np.save(part / "frame.npy", frame.flatten().numpy())
        part.rename(folder)


@torch.no_grad()
def reconstruction_psnr(vae: nn.Module, pool: ClipPool, clips: int = 12) -> float:
    """PSNR of 17-frame windows through the autoencoder."""
    x, _ = pool.draw(clips, data.WINDOW, torch.Generator().manual_seed(5))
    video = x.transpose(1, 2) * 2 - 1
    y = vae.decode(vae.encode(video).latent_dist.mean).sample
    return float(-10 * torch.log10(F.mse_loss(y.clamp(-1, 1), video) / 4))
