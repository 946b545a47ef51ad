"""The training task of each part, from rendered sets or, on a GPU, rendered as it goes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from facelock.miniature.bundled import autoencoder_config, load_bundled
from facelock.miniature.trainer import Task
from facelock.miniature.workshop import Workshop

BATCH = 1024
"""Windows of the blueprint's batches on a GPU."""


def make_task(part: str, shop: Workshop, steps: int) -> Any:
    """Build the training task of ``part``; what it depends on must be trained already."""
    if shop.live:
        return _live_task(part, shop, steps)
    if part in ("recogniser", "judge"):
        from facelock.miniature.recognition import RecognitionTask

        return RecognitionTask(part, shop.pool, steps)
    if part == "detector":
        from facelock.miniature.detection import DetectionTask

        return DetectionTask(shop.pool, steps)
    if part == "vae":
        from facelock.miniature.vae import VaeTask

        return VaeTask(shop.pool, steps)
    if part == "reader":
        from facelock.miniature.reading import ReaderTask

        return ReaderTask(shop.pool, steps)
    if part == "identity_reader":
        from facelock.miniature.reading import IdentityReaderTask

        return IdentityReaderTask(shop.pool, shop.recogniser(), steps)  # type: ignore[arg-type]
    if part in ("aligner", "restorer"):
        return _alignment_task(part, shop, steps)
    if part == "upscaler":
        from facelock.miniature.upscaling import UpscalingTask

        return UpscalingTask(steps, device=shop.device)
    if part == "tiny_decoder":
        return _tiny_decoder_task(shop, steps)
    from facelock.miniature.diffusion import captions_of

    return _diffusion_task(shop, captions_of(shop.pool), steps, 16)


def _diffusion_task(shop: Workshop, captions: Sequence[str], steps: int, batch: int) -> Task:
    from facelock.miniature.diffusion import DiffusionTask
    from facelock.miniature.vae import fit_round_trip

    latents, mean, deviation = shop.normal_latents()
    trip = fit_round_trip(shop.vae(), latents, mean, deviation)
    kept = latents.half() if shop.live else latents  # a GPU holds more clips than it has room for in float32
    task = DiffusionTask(kept, captions, steps, batch, trip, shop.latent_weights())
    return compiled(task) if shop.live else task


def compiled(task: Task) -> Task:
    """The same, its large networks compiled for a GPU: most of a block is small kernels between matrix products."""
    module: Any = task.module
    if task.name == "vae":
        module.vae.encoder.compile(dynamic=False)
        module.vae.decoder.compile(dynamic=False)
    else:
        module.transformer.compile_repeated_blocks(dynamic=False)
    return task


def _live_task(part: str, shop: Workshop, steps: int) -> Task:
    """The same for a GPU: pictures are rendered as they are needed."""
    from facelock.miniature import live

    if part in ("recogniser", "judge"):
        return live.LiveRecognition(part, steps)
    if part == "vae":
        return compiled(live.LiveVae(steps))
    if part == "upscaler":
        return live.LiveUpscaling(steps)
    if part == "identity_reader":
        return live.LiveIdentityReader(shop.recogniser().to(shop.device), steps)  # type: ignore[arg-type]
    if part == "blueprint":
        return _diffusion_task(shop, shop.windows(frames=False).captions, steps, BATCH)
    if part == "tiny_decoder":
        statistics = [torch.tensor(v) for v in shop.normal_latents()[1:]]
        windows = shop.windows(frames=False)
        return live.LiveTinyDecoder(windows, shop.vae(), (statistics[0], statistics[1]), steps)
    if part == "detector":
        return live.LiveDetection(shop.windows(), steps)
    if part == "reader":
        return live.LiveReader(shop.windows(), steps)
    task = live.LiveAlignment(part, shop.windows(), shop.recogniser(), steps)  # type: ignore[arg-type]
    return _with_readers(task, shop)


def _tiny_decoder_task(shop: Workshop, steps: int) -> Task:
    """Taught by the blueprint's autoencoder as it ships: guidance works on that one's latents."""
    from facelock.miniature.tiny_decoder import TinyDecoderTask, pairs_of
    from facelock.miniature.vae import ClipPool, Watched

    vae: Any = load_bundled("vae", Watched()).eval().vae
    folder, vae = shop.folder("tiny_decoder"), vae.to(shop.device)
    pairs = pairs_of(folder, vae, autoencoder_config(), ClipPool(shop.pool))
    return TinyDecoderTask(pairs, steps)


def _alignment_task(part: str, shop: Workshop, steps: int) -> Task:
    from facelock.miniature.alignment import AlignmentTask

    return _with_readers(AlignmentTask(part, shop.pool, shop.recogniser(), steps), shop)  # type: ignore[arg-type]


def _with_readers(task: Any, shop: Workshop) -> Task:
    shop.latest("reader", task.module.reader)  # type: ignore[arg-type]
    shop.latest("identity_reader", task.module.identity)  # type: ignore[arg-type]
    task.module.train()
    return task
