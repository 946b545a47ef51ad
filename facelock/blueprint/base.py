"""What every backbone is told, how it opens its checkpoint, and how it speaks of what goes wrong there.

::

    class Mine(LoadedBackbone):
        layout = Layout(...)

        def _open(self, parts): ...      # take the loaded parts

Each kind adds its own sampling (:mod:`facelock.blueprint.wan_base`, ``ltx2``, ``consisid``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar

import torch

from facelock.blueprint.checkpoint import Checkpoint, Layout, Place, load_checkpoint, working
from facelock.blueprint.fits import Asked
from facelock.precision import resolve_dtype
from facelock.protocols import Guide


class LoadedBackbone:
    """Base of every :class:`facelock.protocols.Backbone` over a checkpoint's folder."""

    layout: ClassVar[Layout]

    def __init__(
        self,
        folder: str | Path,
        *,
        size: tuple[int, int],
        fps: float,
        window: int,
        context: int,
        steps: int,
        guidance_scale: float = 3.0,
        flow_shift: float | None = None,
        negative_prompt: str = "",
        context_noise: float = 0.0,
        device: str | torch.device = "cpu",
        precision: str = "float32",
        on_step: Callable[[int, int], None] | None = None,
        place: Place | None = None,
        guide: Guide | None = None,
        pair_guidance: bool = True,
        reference: bool = False,
        **options: Any,
    ) -> None:
        """Load the checkpoint.

        ``size`` is (height, width) in pixels; ``window`` frames are denoised at once, ``context`` of them the
        past. ``guidance_scale`` up to 1 means no guidance. ``flow_shift`` replaces the scheduler's own.
        ``context_noise`` is the share of noise mixed into the past, which smooths long clips. ``precision`` is of all
        networks but those that the kind's layout holds in float32. ``on_step(done, steps)`` is called after every
        denoising step, and may raise to stop. ``place`` puts the loaded networks where they run (default: all on
        ``device``). ``guide`` may edit what each step predicts. Without ``pair_guidance`` the halves of guidance take
        turns, with half the memory; ``reference`` runs the published pipeline's own code, without our shortcuts, for
        comparison: a kind that lets that pipeline do its sampling has nothing of either to leave out. ``options`` are
        the kind's own (:mod:`facelock.blueprint.options`).

        Raises ``ModelError``, ``DeviceError``, and ``ConfigError`` for what the checkpoint cannot do of it.
        """
        self.size, self.fps = (int(size[0]), int(size[1])), float(fps)
        self.window, self.context, self.steps = window, context, steps
        self.guidance_scale, self.negative_prompt = guidance_scale, negative_prompt
        self.context_noise, self.on_step, self.guide = context_noise, on_step, guide
        self.device, self._folder = torch.device(device), Path(folder)
        self._pair_guidance, self._reference = pair_guidance and not reference, reference
        self._bound: str = getattr(place, "bound", "")
        self._take(**options)
        dtype = resolve_dtype(precision, self.device)
        asked = Asked(
            self.size, window, context, steps, context_noise, flow_shift, guide is not None, options=options
        )
        with self._working():
            parts = self._load(dtype, asked, place)
            parts.require_fit(self.layout.kind, folder, asked)
            self.modules: Mapping[str, torch.nn.Module] = parts.networks
            """The loaded networks by name: ``text_encoder``, ``transformer``, ``vae``, ..."""
            self._open(parts, flow_shift)

    def _load(self, dtype: torch.dtype, asked: Asked, place: Place | None) -> Checkpoint:
        """The checkpoint's parts; benchmarks build them instead."""
        return load_checkpoint(
            self._folder, self.layout, device=self.device, dtype=dtype, asked=asked, place=place
        )

    def _working(self) -> AbstractContextManager[None]:
        """What goes wrong inside the networks, in one sentence."""
        return working(self._folder, str(self.device))

    @property
    def chunk(self) -> int:
        """New frames of every call with a context."""
        return self.window - self.context

    @property
    def first_chunk(self) -> int:
        """New frames of the first call."""
        return self.window

    # ------------------------------------------------------------------ what a kind may change

    def _take(self) -> None:
        """Take the kind's own settings, which are keyword arguments."""

    def _open(self, parts: Checkpoint, flow_shift: float | None) -> None:
        """Take the loaded parts."""
        raise NotImplementedError
