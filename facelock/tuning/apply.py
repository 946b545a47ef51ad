"""Applies the choices of :class:`facelock.tuning.options.Speed` to modules, one function each.

All work in place, once, right after loading. What the machine lacks is one :class:`EnvironmentFailure`, what a
module cannot do one :class:`ConfigError`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch

from facelock.errors import ConfigError, EnvironmentFailure
from facelock.tuning.options import ATTENTION, Speed
from facelock.tuning.packages import lacking_packages

logger = logging.getLogger(__name__)


def set_attention(transformer: Any, name: str) -> None:
    """Compute attention with the backend ``name`` (:data:`facelock.tuning.options.ATTENTION`).

    Raises :class:`EnvironmentFailure` when its package is not here, :class:`ConfigError` for a module without a choice;
    so does the module, when the backend cannot compute what it is given (a mask, a head size, a type).
    """
    if not hasattr(transformer, "set_attention_backend"):
        raise ConfigError(
            f"speed.attention: {type(transformer).__name__} has no choice of backends. Remove it."
        )
    from diffusers.models.attention_dispatch import _AttentionBackendRegistry

    before = _AttentionBackendRegistry.get_active_backend()[0]
    try:
        with _quiet("diffusers.models.modeling_utils"):
            transformer.set_attention_backend(ATTENTION[name])
    except (RuntimeError, ImportError) as error:
        why = str(error).splitlines()[0].rstrip(".")
        raise EnvironmentFailure(
            f"speed.attention = {name!r} cannot run here ({why}). Install it, or choose native."
        ) from error
    # diffusers also makes it the default of every other model in the process
    _AttentionBackendRegistry.set_active_backend(before)
    if name != "native":
        transformer.forward = _blamed(transformer.forward, name)


def _blamed(forward: Callable[..., Any], name: str) -> Callable[..., Any]:
    """``forward``, whose errors but those of memory and device are the attention's that was chosen."""

    @wraps(forward)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return forward(*args, **kwargs)
        except (RuntimeError, ValueError) as error:
            why = str(error).splitlines()[0].rstrip(". ") if str(error) else type(error).__name__
            if isinstance(error, torch.OutOfMemoryError) or "allocate memory" in why or "CUDA" in why:
                raise
            raise ConfigError(
                f"speed.attention = {name!r} cannot compute this blueprint ({why[:200]}). Choose native."
            ) from error

    return run


def compile_blocks(transformer: Any, mode: str) -> None:
    """Compile the repeated blocks with ``torch.compile``; the first chunk then takes minutes longer.

    Block by block, because that compiles one block's code for all. Raises :class:`EnvironmentFailure` when there is no
    compiler, :class:`ConfigError` for a module that does not name its blocks.
    """
    if not getattr(transformer, "_repeated_blocks", None):
        raise ConfigError(
            f"speed.compile: {type(transformer).__name__} names no blocks to compile. Remove it."
        )
    require_compiler()
    transformer.compile_repeated_blocks(mode=mode)


def require_compiler() -> None:
    """Raise :class:`EnvironmentFailure` when there is no compiler."""
    if not compiler_present():
        raise EnvironmentFailure(
            "speed.compile needs a C++ compiler, and there is none. Install g++, or remove it."
        )


def compiler_present() -> bool:
    """Whether torch finds the C++ compiler that ``torch.compile`` needs, on a GPU too."""
    try:
        from torch._inductor.cpp_builder import get_cpp_compiler

        return bool(get_cpp_compiler())
    except Exception:  # its own exception type, and whatever the search runs into
        return False


def quantise(transformer: Any, how: str, device: torch.device) -> None:
    """Hold the transformer's weights smaller: ``float8`` (diffusers' layerwise casting) or ``int8`` (torchao).

    float8 (e4m3) halves the weights of bfloat16; each layer is cast back while it computes. int8 keeps a scale per
    row. Norms, embeddings and modulation stay as they are. Raises :class:`EnvironmentFailure` without torchao.
    """
    if how == "float8":
        if not hasattr(transformer, "enable_layerwise_casting"):
            raise ConfigError(f"speed.quantise: {type(transformer).__name__} cannot hold float8. Remove it.")
        compute = _usual_dtype(transformer)
        transformer.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=compute)
        return
    for error in lacking_packages(Speed(quantise=how)):
        raise error
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    for block in _blocks(transformer):
        quantize_(block, Int8WeightOnlyConfig(), device=device)


def _blocks(transformer: Any) -> torch.nn.ModuleList:
    """The repeated blocks: the longest list of modules."""
    lists = [module for module in transformer.children() if isinstance(module, torch.nn.ModuleList)]
    if not lists:
        raise ConfigError(f"speed.quantise: {type(transformer).__name__} has no repeated blocks. Remove it.")
    return max(lists, key=len)


def _usual_dtype(transformer: Any) -> torch.dtype:
    """What most weights of the blocks are held in; norms and modulation may be held in float32."""
    counts: dict[torch.dtype, int] = {}
    for parameter in _blocks(transformer).parameters():
        counts[parameter.dtype] = counts.get(parameter.dtype, 0) + parameter.numel()
    return max(counts, key=lambda dtype: counts[dtype])


def channels_last(vae: torch.nn.Module) -> None:
    """Lay the VAE's convolution weights out with channels last, as cuDNN's tensor-core kernels want them."""
    for parameter in vae.parameters():
        layout = {4: torch.channels_last, 5: torch.channels_last_3d}.get(parameter.dim())
        if layout is not None:
            parameter.data = parameter.data.contiguous(memory_format=layout)


def vae_in_bfloat16(vae: Any) -> None:
    """Let the VAE compute in bfloat16 where that is safe (autocast); weights, input and output stay float32."""
    kind = next(vae.parameters()).device.type
    for name in ("encode", "decode"):
        setattr(vae, name, _autocast(getattr(vae, name), kind))


def _autocast(work: Callable[..., Any], kind: str) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        with torch.autocast(kind, torch.bfloat16):
            return _in_float32(work(*args, **kwargs))

    return run


def _in_float32(output: Any) -> Any:
    """Tensors of a VAE's answer, whatever form it has, back in float32."""
    if isinstance(output, torch.Tensor):
        return output.float()
    if isinstance(output, tuple) and not hasattr(output, "keys"):
        return tuple(_in_float32(part) for part in output)
    posterior = getattr(output, "latent_dist", None)
    if posterior is not None:
        output.latent_dist = type(posterior)(posterior.parameters.float())
    elif getattr(output, "sample", None) is not None:
        output.sample = output.sample.float()
    return output


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Hold back warnings of one logger: diffusers calls its choice of backends experimental, every time."""
    log = logging.getLogger(name)
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)
