"""Step caches of diffusers on any backbone's loop, without its help.

diffusers' hooks have to be told which call of the transformer they see: which half of guidance, which step, and when
a new clip begins. Its pipelines do so in their loops; here the calls themselves tell. Noise levels only fall within
one window, so a level that rises begins a new one, and a further call at the same level is guidance's other half.
Guidance with both halves in one batch is one call, whose halves are then skipped or computed together.

Sources: First Block Cache (ParaAttention), MagCache (arXiv:2506.09045), Pyramid Attention Broadcast
(arXiv:2408.12588), SeaCache (arXiv:2602.18993), as implemented by diffusers 0.42.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from facelock.errors import ConfigError
from facelock.tuning.options import StepCache, cache_misfit

logger = logging.getLogger(__name__)


class Follower:
    """Watches the calls of one transformer and keeps its cache informed; a forward pre-hook."""

    def __init__(self, kind: str, steps: int) -> None:
        """``steps`` are the denoising steps of a window."""
        self.kind, self.steps = kind, steps
        self.level: float | None = None
        """The noise level of the last call, 0..1000."""
        self.step = 0
        self.call = 0
        """0 for the first call at this level, 1 for the second."""

    def now(self) -> float:
        """The noise level of the call in hand, for caches that ask."""
        return self.level or 0.0

    def __call__(self, module: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Before each forward pass: find out where it stands, and tell the hooks."""
        level = _level(module, args, kwargs)
        if self.level is None or level > self.level:
            module._reset_stateful_cache()
            self.step = self.call = 0
        elif level < self.level:
            self.step, self.call = self.step + 1, 0
        else:
            self.call += 1
        self.level = level
        if self.kind == "pab" and self.call:
            self._give_up(module)
            return
        from diffusers.hooks.hooks import CacheContext, _set_cache_context

        _set_cache_context(
            module,
            CacheContext(
                f"call {self.call}",
                step_index=min(self.step, self.steps - 1),
                num_inference_steps=self.steps,
                sigma=min(1.0, level / 1000),
            ),
        )

    def _give_up(self, module: Any) -> None:
        """Pyramid attention broadcast keeps one state for both halves of guidance: one would take the other's."""
        if module.is_cache_enabled:
            logger.warning("The cache pab cannot tell guidance's two passes apart: it is off from here on.")
            module.disable_cache()


def _level(module: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> float:
    """The largest noise level of a call: clean frames of the past stand at 0 beside it."""
    value = kwargs.get("timestep")
    if value is None:
        names = list(inspect.signature(type(module).forward).parameters)[1:]
        value = args[names.index("timestep")]
    return float(value.max()) if isinstance(value, Tensor) else float(value)


def enable_step_cache(transformer: Any, cache: StepCache, *, steps: int) -> Follower:
    """Turn ``cache`` on for a diffusers ``transformer`` that denoises in ``steps`` steps; return who follows it.

    Raises :class:`ConfigError` for a transformer that the cache does not know.
    """
    if not hasattr(transformer, "enable_cache"):
        raise ConfigError(
            f"speed.cache: {type(transformer).__name__} takes no step cache. Remove it from the recipe."
        )
    misfit = cache_misfit(cache, control=hasattr(transformer, "vace_blocks"), steps=steps)
    if misfit:
        raise misfit
    _register_blocks(transformer)
    follower = Follower(cache.kind, steps)
    try:
        transformer.enable_cache(_config(cache, steps, follower))
    except ValueError as error:
        raise ConfigError(
            f"speed.cache: {str(error).splitlines()[0].rstrip('.')}. Choose another."
        ) from error
    transformer.register_forward_pre_hook(follower, with_kwargs=True)
    return follower


def _config(cache: StepCache, steps: int, follower: Follower) -> Any:
    import diffusers

    chosen = {} if cache.threshold is None else {"threshold": cache.threshold}
    if cache.kind == "first_block":
        return diffusers.FirstBlockCacheConfig(**chosen)
    if cache.kind == "mag":
        return diffusers.MagCacheConfig(
            **chosen, max_skip_steps=cache.most, num_inference_steps=steps, mag_ratios=list(cache.ratios)
        )
    if cache.kind == "sea":
        return diffusers.SeaCacheConfig(
            **chosen, max_consecutive_cached=cache.most, raw_vision_callback=_latents
        )
    return diffusers.PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=cache.every,
        spatial_attention_timestep_skip_range=cache.window,
        cross_attention_block_skip_range=cache.every,
        cross_attention_timestep_skip_range=cache.window,
        current_timestep_callback=follower.now,  # type: ignore[arg-type]
    )


def _latents(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor] | None:
    """What SeaCache watches: the latents of the call, one (z, F, h, w) per clip of the batch."""
    latents = kwargs.get("hidden_states", args[0] if args else None)
    return list(latents.unbind(0)) if isinstance(latents, Tensor) and latents.ndim == 5 else None


def _register_blocks(transformer: Any) -> None:
    """Tell diffusers' hooks how the blocks of SkyReels-V2 return their result: as Wan's, whom it descends from.

    diffusers 0.42 has no entry for them. The table is diffusers' own; an entry that exists is left alone.
    """
    from diffusers.hooks._helpers import TransformerBlockMetadata, TransformerBlockRegistry

    for block in getattr(transformer, "blocks", ()):
        try:
            TransformerBlockRegistry.get(type(block))
        except ValueError:
            if type(block).__name__ == "SkyReelsV2TransformerBlock":
                metadata = TransformerBlockMetadata(return_hidden_states_index=0)
                TransformerBlockRegistry.register(type(block), metadata)
