"""Training of the ×4 upscaler on rendered frames: 256 px truth, compressed 64 px input."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from facelock.miniature import data, world
from facelock.miniature.alignment import edges
from facelock.miniature.parameters import sample_appearance, sample_identity, sample_nuisance, to_device
from facelock.miniature.recognition import Noise
from facelock.nets.compact_sr import CompactSR


class UpscalingTask:
    """Trains the compact upscaler on random 96 px windows of freshly rendered frames."""

    name = "upscaler"
    bf16 = True
    rate = 2e-3

    def __init__(self, steps: int, count: int = 1200, device: str = "cpu") -> None:
        self.steps = steps
        g = data.seeded(40)
        face = sample_identity(count, g)
        shown = (face, sample_appearance(count, g, face["feminine"]), sample_nuisance(count, g))
        self.truth = (world.render(*(to_device(p, device) for p in shown), 256) * 255).byte().cpu()
        torch.manual_seed(8)
        self.module: nn.Module = CompactSR().to(memory_format=torch.channels_last)

    def draw(self, step: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Input (16, 3, 24, 24), area-averaged, sometimes blurred and noisy like a decoded latent; and truth ×4."""
        i = torch.randint(self.truth.shape[0], (16,), generator=generator)
        y0, x0 = (torch.randint(0, 41, (2,), generator=generator) * 4).tolist()
        truth = self.truth[i][..., y0 : y0 + 96, x0 : x0 + 96].float() / 255
        return self.compressed(truth, generator), truth

    def compressed(self, truth: Tensor, generator: torch.Generator, noise: Noise | None = None) -> Tensor:
        """What a blueprint would hold of ``truth``, a quarter of its side; ``noise`` draws on another device."""
        small = F.avg_pool2d(truth, 4)
        if torch.rand(1, generator=generator) < 0.5:
            soft = F.avg_pool2d(F.pad(small, (1, 1, 1, 1), mode="replicate"), 3, 1)
            mix = (torch.rand(len(small), 1, 1, 1, generator=generator) * 0.6).to(small.device)
            small = small * (1 - mix) + soft * mix
        grain = noise(small.shape) if noise else torch.randn(small.shape, generator=generator)
        return small + grain * 0.012

    def loss(self, step: int, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """L1 on pixels and edges."""
        small, truth = batch
        out = self.module(small.contiguous(memory_format=torch.channels_last)).float()
        edge = sum((a - b).abs().mean() for a, b in zip(edges(out), edges(truth), strict=True))
        psnr = -10 * torch.log10((out.detach() - truth).square().mean())
        return (out - truth).abs().mean() + edge, {"psnr": psnr}
