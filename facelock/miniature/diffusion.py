"""Training of the blueprint's transformer by diffusion forcing (Chen et al. 2024, arXiv:2407.01392).

Rectified flow on the autoencoder's latents, with a noise level per latent frame, so that the model continues from
clean context frames (SkyReels-V2, arXiv:2504.13074). The network says the clean latents, and is measured by the
velocity that this is (Li & He 2025, arXiv:2511.13720): a velocity holds the noise, which is as wide as the network here
(256 numbers of a patch), and leaves it no room. The tiny text encoder learns along with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from diffusers import SkyReelsV2Transformer3DModel
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from facelock.miniature.trainer import normal_numbers, seed_of
from facelock.miniature.vae import CHANNELS, neighbourhoods
from facelock.miniature.vocabulary import vocabulary

SIDE = 16
TEXT_DIM = 96
TOKENS = 24
WINDOW = 5
CONTEXT = 2
SHIFT = 3.0
LOWEST = 0.05
"""Noise level below which an error counts no more: it is divided by the level."""


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token per known word; anything else is ``<unk>``."""
    table = {w: i for i, w in enumerate(("<pad>", "</s>", "<unk>", *vocabulary()))}
    core = Tokenizer(models.WordLevel(table, unk_token="<unk>"))  # noqa: S106 - not a password
    core.normalizer = normalizers.Sequence(
        [normalizers.Lowercase(), normalizers.Replace(Regex(r"[^a-z' ]"), " ")]
    )
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",  # noqa: S106 - not a password
        eos_token="</s>",  # noqa: S106
        unk_token="<unk>",  # noqa: S106
        model_max_length=TOKENS,
    )


def make_text_encoder(size: int) -> UMT5EncoderModel:
    """A two-layer UMT5 encoder over the miniature's vocabulary."""
    config = UMT5Config(
        vocab_size=size,
        d_model=TEXT_DIM,
        d_kv=24,
        d_ff=192,
        num_layers=2,
        num_heads=4,
        relative_attention_num_buckets=16,
        feed_forward_proj="gated-gelu",
        pad_token_id=0,
        eos_token_id=1,
        dropout_rate=0.0,
    )
    return UMT5EncoderModel(config)


def make_transformer(heads: int = 8, layers: int = 8) -> SkyReelsV2Transformer3DModel:
    """The miniature's denoiser."""
    return SkyReelsV2Transformer3DModel(
        patch_size=(1, 4, 4),
        num_attention_heads=heads,
        attention_head_dim=32,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        text_dim=TEXT_DIM,
        freq_dim=128,
        ffn_dim=heads * 32 * 3,
        num_layers=layers,
        rope_max_seq_len=64,
    )


class Blueprint(nn.Module):
    """Text encoder and transformer, trained together."""

    def __init__(self, vocabulary_size: int) -> None:
        super().__init__()
        self.text, self.transformer = make_text_encoder(vocabulary_size), make_transformer()

    def encode(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Token ids and mask (B, TOKENS) → (B, TOKENS, TEXT_DIM), zero where padded, as the pipeline does."""
        return self.text(tokens, attention_mask=mask).last_hidden_state * mask.unsqueeze(-1)

    def forward(self, x: Tensor, sigma: Tensor, text: Tensor) -> Tensor:
        """Latents (B, 16, L, 16, 16), noise levels (B, L) in [0, 1] → clean latents of x's shape."""
        return self.transformer(
            hidden_states=x,
            timestep=sigma * 1000,
            encoder_hidden_states=text,
            enable_diffusion_forcing=True,
            return_dict=False,
        )[0]


def tokenize(tokenizer: PreTrainedTokenizerFast, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Ids and mask, both (B, TOKENS)."""
    out = tokenizer(
        list(prompts), padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt"
    )
    return out.input_ids, out.attention_mask


class DiffusionTask:
    """Trains the blueprint on precomputed, normalised latents (clips, windows, 16, 5, 16, 16) and captions."""

    name = "blueprint"
    rate = 1e-3

    def __init__(
        self,
        latents: Tensor,
        captions: Sequence[str],
        steps: int,
        batch: int = 16,
        trip: Tensor | None = None,
        weights: Tensor | None = None,
    ) -> None:
        """``trip`` is what pixels do to context latents (:func:`facelock.miniature.vae.fit_round_trip`).

        ``weights`` (clips, windows, 5, 16, 16) is what an error counts for in each place
        (:func:`facelock.miniature.vae.latent_weight`): one and the same if not given.
        """
        self.latents, self.steps, self.batch = latents, steps, batch
        self.weights = torch.ones(*latents.shape[:2], 1, 1, 1) if weights is None else weights
        self.bf16 = latents.device.type == "cuda"  # without matrix units bfloat16 takes twice as long
        self.tokenizer = make_tokenizer()
        self.ids, self.mask = tokenize(self.tokenizer, captions)
        self.empty = tokenize(self.tokenizer, [""])
        self.trip = trip
        torch.manual_seed(7)
        self.module: nn.Module = Blueprint(len(self.tokenizer))

    def noise_levels(self, n: int, length: int, generator: torch.Generator) -> Tensor:
        """(n, length) noise levels: continuation, a fresh window, or one level per frame."""
        base = torch.sigmoid(torch.randn(n, 1, generator=generator)).expand(n, length).clone()
        kind = torch.rand(n, 1, generator=generator)
        own = torch.sigmoid(torch.randn(n, length, generator=generator))
        sigma = torch.where(kind < 0.15, own, base)
        sigma = SHIFT * sigma / (1 + (SHIFT - 1) * sigma)
        if length > CONTEXT:
            context = (torch.arange(length) < CONTEXT).view(1, -1) & (kind > 0.45)
            sigma = torch.where(context, torch.zeros(()), sigma)
        return sigma

    def worn(self, x: Tensor, trips: Tensor, amount: Tensor, noise: Tensor) -> Tensor:
        """Context as a long clip leaves it: so many trips through pixels, and noise. The past heals or drifts.

        ``trips`` (n,) from 0 to 3, ``amount`` (n,) of the noise, ``noise`` of the shape of x.
        """
        out, trips = x.clone(), trips.view(-1, 1, 1, 1)
        for k, weight in enumerate([] if self.trip is None else self.trip[: x.shape[2]]):
            z = x[:, :, k]
            for trip in range(1, 4):
                again = (weight @ neighbourhoods(z)).view_as(z)
                z = torch.where(trips >= trip, again, z)
            out[:, :, k] = z
        return out + amount.view(-1, 1, 1, 1, 1) * noise

    def draw(self, step: int, generator: torch.Generator) -> tuple[Any, ...]:
        """Which windows (n,), their noise levels (n, L), how worn their past is (n,) (n,), and the noise's seed."""
        image = step % 4 == 3  # single frames are cheap, and teach what the words look like
        n, length = (self.batch * 3, 1) if image else (self.batch, WINDOW)
        i = torch.randint(self.latents.shape[0], (n,), generator=generator)
        w = torch.randint(self.latents.shape[1], (n,), generator=generator)
        drop = torch.rand(n, 1, generator=generator) < 0.1
        sigma = self.noise_levels(n, length, generator)
        trips = torch.randint(0, 4, (n,), generator=generator)
        amount = 0.2 * torch.rand(n, generator=generator)
        return i, w, drop, sigma, trips, amount, seed_of(generator)

    def loss(self, step: int, batch: tuple[Any, ...]) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean squared error of the velocity on the noisy frames."""
        i, w, drop, sigma, trips, amount, seed = batch
        noise = normal_numbers(seed, sigma.device)
        x = self._on(sigma.device)[i, w][
            :, :, : sigma.shape[1]
        ].float()  # latent 0 of a window is a single frame
        ids, mask = (
            torch.where(drop, none.to(drop.device), given[i])
            for none, given in zip(self.empty, (self.ids, self.mask), strict=True)
        )
        s, fresh = sigma.view(len(x), 1, -1, 1, 1), noise(x.shape)
        noisy = torch.where(s > 0, (1 - s) * x + s * fresh, self.worn(x, trips, amount, noise(x.shape)))
        clean = self.module(noisy, sigma, self.module.encode(ids, mask)).float()
        # noisy - clean is s times the velocity that was said, noisy - x of the true one
        error, drawn = ((clean - x) / s.clamp(min=LOWEST)).square(), (s > 0).float().expand_as(noisy)
        weight = drawn * self.weights[i, w][:, None, : sigma.shape[1]].float()
        loss = (error * weight).sum() / weight.sum()
        return loss, {"loss": loss, "plain": (error.detach() * drawn).sum() / drawn.sum()}

    def _on(self, device: torch.device) -> Tensor:
        """The latents on ``device``, moved there once with all that belongs to them."""
        if self.ids.device != device:
            self.latents, self.weights = self.latents.to(device), self.weights.to(device)
            self.ids, self.mask = self.ids.to(device), self.mask.to(device)
            self.trip = None if self.trip is None else self.trip.to(device)
        return self.latents


@torch.no_grad()
def sample(
    model: Blueprint,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[str],
    *,
    length: int = WINDOW,
    context: Tensor | None = None,
    steps: int = 10,
    guidance: float = 2.5,
    seed: int = 0,
) -> Tensor:
    """Euler sampling of normalised latents (B, 16, length, 16, 16), for looking at while training."""
    n = len(prompts)
    text = model.encode(*tokenize(tokenizer, [*prompts, *[""] * n]))
    x = torch.randn(n, CHANNELS, length, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))
    grid = torch.linspace(1, 0, steps + 1)
    grid = SHIFT * grid / (1 + (SHIFT - 1) * grid)
    for a, b in pairwise(grid):
        sigma = torch.full((n, length), float(a))
        if context is not None:
            x[:, :, :CONTEXT] = context
            sigma[:, :CONTEXT] = 0
        conditional, free = model(x.repeat(2, 1, 1, 1, 1), sigma.repeat(2, 1), text).chunk(2)
        velocity = (x - (free + guidance * (conditional - free))) / a
        x = x + (b - a) * velocity
    if context is not None:
        x[:, :, :CONTEXT] = context
    return x


def captions_of(root: Path) -> list[str]:
    """Captions of every clip, in the order of the shards."""
    import json

    from facelock.miniature import data

    return [c for s in data.shards("clips", root) for c in json.loads(str(s["captions"]))]


def normalise(
    latents: Tensor, statistics: tuple[list[float], list[float]] | None = None
) -> tuple[Tensor, list[float], list[float]]:
    """Latents of unit statistics per channel, and mean and deviation for the VAE's config: ``statistics``, if given."""
    over = (0, 1, 3, 4, 5)
    mean, deviation = statistics or (latents.mean(over).tolist(), latents.std(over).tolist())
    shift, scale = (torch.tensor(v, device=latents.device).view(-1, 1, 1, 1) for v in (mean, deviation))
    return (latents - shift) / scale, mean, deviation
