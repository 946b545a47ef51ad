"""Puts a backbone's modules where they run, as a memory plan says, and makes them as fast as a recipe asks.

::

    place = Placement(torch.device("cuda:0"), Speed(attention="native"), plan, steps=50)
    place({"text_encoder": ..., "transformer": ..., "vae": ...})        # in place, once
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from facelock.tuning import apply
from facelock.tuning.options import HALF_ATTENTION, Speed
from facelock.tuning.plan import Plan
from facelock.tuning.step_cache import enable_step_cache

DENOISERS = ("transformer", "transformer_2")


class Placement:
    """What a backbone calls with its modules, loaded on the CPU: ``place(modules)``."""

    def __init__(
        self, device: torch.device, speed: Speed | None = None, plan: Plan | None = None, *, steps: int
    ) -> None:
        """``plan`` None keeps all modules on ``device``; ``steps`` are the denoising steps of a window."""
        self.device, self.plan, self.steps = device, plan or Plan(), steps
        self.speed = (speed or Speed()).effective()

    @property
    def bound(self) -> str:
        """Why the transformer cannot work in another precision for a while; empty where it can."""
        if self.speed.quantise:
            return f"its weights are held in {self.speed.quantise}"
        if self.device.type != "cpu" and self.speed.attention in HALF_ATTENTION:
            return f"the attention {self.speed.attention} computes in half precision only"
        if self.plan.groups:
            return "the memory plan moves its weights in and out of the GPU"
        return ""

    def __call__(self, modules: Mapping[str, Any]) -> None:
        """Place and tune. Raises ``ConfigError``, ``EnvironmentFailure``; torch's own errors of a device pass."""
        for name, module in modules.items():
            if not isinstance(module, torch.nn.Module):
                continue
            if name in DENOISERS:
                self._denoiser(module)
            elif name.startswith("text_encoder"):
                self._text_encoder(module)
            elif name == "vae":
                self._vae(module)
            else:
                module.to(self.device)

    def _denoiser(self, module: Any) -> None:
        """Order matters: casting hooks first, then offloading, then the cache around both, then the compiler."""
        speed = self.speed
        if speed.attention:
            apply.set_attention(module, speed.attention)
        if speed.quantise:
            apply.quantise(module, speed.quantise, self.device)
        if self.plan.groups:
            self._offload(module, "block_level")
        else:
            module.to(self.device)
        if speed.cache:
            enable_step_cache(module, speed.cache, steps=self.steps)
        if speed.compile:
            apply.compile_blocks(module, speed.compile)

    def _text_encoder(self, module: Any) -> None:
        if self.plan.text == "layers":
            self._offload(module, "leaf_level")
        elif self.plan.text == "after":
            visit(module, self.device)
        else:
            module.to(self.device)

    def _vae(self, module: Any) -> None:
        module.to(self.device)
        if self.plan.tiling and hasattr(module, "enable_tiling"):
            module.enable_tiling()
        if self.speed.channels_last:
            apply.channels_last(module)
        if self.speed.vae_precision == "bfloat16":
            apply.vae_in_bfloat16(module)

    def _offload(self, module: Any, how: str) -> None:
        """Keep weights in the computer's memory and bring them over group by group, the next while one computes."""
        from diffusers.hooks import apply_group_offloading

        on_gpu = self.device.type == "cuda"
        options: dict[str, Any] = {"num_blocks_per_group": self.plan.groups} if how == "block_level" else {}
        apply_group_offloading(
            module,
            onload_device=self.device,
            offload_device=torch.device("cpu"),
            offload_type=how,
            use_stream=on_gpu,
            record_stream=on_gpu,
            **options,
        )


def visit(module: torch.nn.Module, device: torch.device) -> None:
    """Let ``module`` live on the CPU and come to ``device`` for each of its calls."""

    def come(*_: Any) -> None:
        module.to(device)

    def go(*_: Any) -> None:
        module.to("cpu")

    if device.type == "cpu":
        return
    module.register_forward_pre_hook(come)
    module.register_forward_hook(go, always_call=True)
