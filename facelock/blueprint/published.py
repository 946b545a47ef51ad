"""What the backbones share that let a published diffusers pipeline do the sampling.

::

    pipe = sampler(ConsisIDPipeline, parts, device)
    latents = pipe(..., output_type="latent", callback_on_step_end=watched(steps, on_step)).frames
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from facelock.blueprint.checkpoint import Checkpoint
from facelock.errors import NotFiniteError

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
