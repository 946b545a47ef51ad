"""What the backbones share that let a published diffusers pipeline do the sampling.

::

    pipe = sampler(ConsisIDPipeline, parts, device)
    latents = pipe(..., output_type="latent", callback_on_step_end=watched(steps, on_step)).frames
    frames = decoded(pipe.vae, lambda: pipe.decode_latents(latents))          # (T, 3, H, W)
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from facelock.blueprint.checkpoint import Checkpoint
from facelock.blueprint.wan_base import NotFiniteError
from facelock.errors import FaceLockError

logger = logging.getLogger(__name__)

OnStep = Callable[[int, int], None]
AfterStep = Callable[[Any, int, Any, dict[str, Any]], dict[str, Any]]


def sampler(kind: type[Any], parts: Checkpoint, device: torch.device) -> Any:
    """The pipeline ``kind`` over a checkpoint's parts, without a progress bar and told that it runs on ``device``.

    It would find that out from its networks, which misleads it where a memory plan moves them about.
    """

    class Sampler(kind):  # type: ignore[misc]
        @property
        def _execution_device(self) -> torch.device:
            return device

    networks: dict[str, Any] = dict(parts.networks)
    pipe = Sampler(scheduler=parts.scheduler, tokenizer=parts.tokenizer, **networks)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def watched(steps: int, on_step: OnStep | None) -> AfterStep:
    """A pipeline's ``callback_on_step_end`` that tells ``on_step(done, steps)``.

    Raises ``NotFiniteError``, naming the step, where latents stopped being finite.
    """

    def after_step(_: Any, step: int, __: Any, state: dict[str, Any]) -> dict[str, Any]:
        if not torch.isfinite(state["latents"]).all():
            raise NotFiniteError(
                f"The blueprint's latents are not finite after denoising step {step + 1} of {steps}. "
                "Try another seed or a higher precision."
            )
        if on_step:
            on_step(step + 1, steps)
        return state

    return after_step


def decoded(vae: Any, decode: Callable[[], Tensor]) -> Tensor:
    """What ``decode`` makes of latents with ``vae``, (1, 3, T, H, W) in [-1, 1], as (T, 3, H, W) float32 in [0, 1].

    On the CPU. Where memory is short it goes on in tiles. Raises ``FaceLockError`` for values that are not finite.
    """
    try:
        video = decode()
    except torch.OutOfMemoryError:
        logger.warning("Memory is short: the VAE goes on in tiles, which may show faint seams.")
        torch.cuda.empty_cache()
        vae.enable_tiling()
        if hasattr(vae, "use_framewise_decoding"):
            vae.use_framewise_decoding = True
        video = decode()
    if not torch.isfinite(video).all():
        raise FaceLockError("The blueprint's VAE gave values that are not finite. Try another seed.")
    return (video[0].transpose(0, 1).float() / 2 + 0.5).clamp(0, 1).cpu()
