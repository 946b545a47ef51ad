"""Training of the tiny decoder: it learns to show what the blueprint's autoencoder shows, for identity guidance.

Distilled from the autoencoder's own decoder on the autoencoder's own latents, some of them shrunk and noisy as the
predictions of an unfinished denoising are. TAEHV's layout (``facelock.nets.taehv``).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from facelock.miniature import data
from facelock.miniature.vae import CHANNELS, ClipPool, box_weight
from facelock.nets.taehv import TinyDecoder

log = logging.getLogger(__name__)

PAIRS = 320
"""Windows of 17 frames that are encoded and decoded once."""
BATCH = 2
SHAPE = {
    "channels": CHANNELS,
    "widths": (40, 32, 32, 32),
    "growth": (1, 2, 2),
    "enlarge": (False, False, True),
    "patch": 2,
}
"""Of the decoder: ×4 in space and in time, as the autoencoder."""


def make_tiny_decoder() -> TinyDecoder:
    """The miniature's tiny decoder, untrained."""
    return TinyDecoder(**SHAPE)  # type: ignore[arg-type]


@torch.no_grad()
def make_pairs(
    vae: nn.Module, mean: Tensor, deviation: Tensor, pool: ClipPool, count: int = PAIRS
) -> dict[str, Tensor]:
    """``latents`` (N, 16, 5, 16, 16) half, normalised; ``frames`` (N, 17, 3, 64, 64) bytes; ``boxes`` (N, 17, 4)."""
    columns: dict[str, list[Tensor]] = {"latents": [], "frames": [], "boxes": []}
    g, device = data.seeded(61), next(vae.parameters()).device
    shift, scale = mean.view(1, -1, 1, 1, 1).to(device), deviation.view(1, -1, 1, 1, 1).to(device)
    for done in range(0, count, 4):
        clips = pool.draw(min(4, count - done), data.WINDOW, g)
        video = (clips.frames.transpose(1, 2) * 2 - 1).to(device)
        with torch.autocast(device.type, torch.bfloat16):
            z = (vae.encode(video).latent_dist.mean.float() - shift) / scale
            z = unfinished(z, g)
            shown = vae.decode(z * scale + shift).sample.float()
        frames = ((shown.transpose(1, 2) / 2 + 0.5).clamp(0, 1) * 255).round().byte()
        for name, part in (("latents", z.half()), ("frames", frames), ("boxes", clips.boxes)):
            columns[name].append(part.cpu())
        if done % 80 == 0:
            log.info("pairs %d of %d", done, count)
    return {name: torch.cat(parts).contiguous() for name, parts in columns.items()}


def unfinished(z: Tensor, generator: torch.Generator) -> Tensor:
    """Normalised latents as a denoising that is not done predicts them: (N, ...) a little smaller, a little noisy."""
    shape = (len(z), 1, 1, 1, 1)
    size = 0.75 + 0.35 * torch.rand(shape, generator=generator)
    amount = 0.25 * torch.rand(shape, generator=generator)
    noise = torch.randn(z.shape, generator=generator)
    return z * size.to(z.device) + (amount * noise).to(z.device)


class TinyDecoderTask:
    """Two windows of 17 frames to a batch."""

    name = "tiny_decoder"
    bf16 = True
    rate = 2e-3

    def __init__(self, pairs: Mapping[str, Tensor], steps: int) -> None:
        self.steps, self.pairs = steps, pairs
        torch.manual_seed(9)
        self.module: nn.Module = make_tiny_decoder()

    def draw(self, step: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Latents (B, 16, 5, 16, 16), frames wanted (B, 17, 3, 64, 64) in [0, 1], their weights (B, 17, 1, 64, 64)."""
        i = torch.randint(len(self.pairs["latents"]), (BATCH,), generator=generator)
        frames = self.pairs["frames"][i].float() / 255
        weight = box_weight(self.pairs["boxes"][i].float(), frames.shape[-1])
        return self.pairs["latents"][i].float(), frames, weight

    def loss(self, step: int, batch: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Face-weighted L1 on pixels and edges."""
        latents, frames, weight = batch
        error = self.module(latents).float() - frames
        across, along = error[..., 1:] - error[..., :-1], error[..., 1:, :] - error[..., :-1, :]
        pixel = (error.abs() * weight).mean()
        edge = (across.abs() * weight[..., 1:]).mean() + (along.abs() * weight[..., 1:, :]).mean()
        psnr = -10 * torch.log10(error.detach().square().mean())
        return (pixel + edge) / weight.mean(), {"psnr": psnr}


def pairs_of(
    folder: Path, vae: nn.Module, config: Mapping[str, list[float]], pool: ClipPool
) -> dict[str, Tensor]:
    """:func:`make_pairs`, made once and kept in ``folder``; ``config`` holds the latents' statistics."""
    from safetensors.torch import load_file, save_file

    path = folder / "pairs.safetensors"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        mean, deviation = (torch.tensor(config[k]) for k in ("latents_mean", "latents_std"))
        save_file(make_pairs(vae, mean, deviation, pool), path)
    return load_file(path)
