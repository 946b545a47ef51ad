"""What all backbones share, whatever network they are over: how they refuse, read prompts and decode."""

from __future__ import annotations

import html
import logging
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any, TypeVar

import ftfy
import torch
from torch import Tensor

from facelock.errors import InputError, NotFiniteError
from facelock.precision import in_float32

logger = logging.getLogger(__name__)

T = TypeVar("T")


def check_context(context: Tensor | None, frames: int, size: tuple[int, int]) -> None:
    """Raise ``InputError`` unless ``context`` is ``frames`` finite frames of ``size`` (height, width), or None."""
    expected = (frames, 3, *size)
    if context is not None and tuple(context.shape) != expected:
        raise InputError(f"The context is {tuple(context.shape)}. Give the last frames as {expected}.")
    if context is not None and not torch.isfinite(context).all():
        raise InputError("The context holds values that are not finite. Give frames in [0, 1].")


def clean_text(text: str) -> str:
    """Mend encoding, resolve HTML entities, collapse white space: what the text encoders were trained on."""
    return " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split())


def tell_cut(tokenizer: Any, text: str, most: int) -> None:
    """Say that a prompt is longer than the ``most`` tokens that are read of it."""
    count = len(tokenizer(text, verbose=False).input_ids)
    if count > most:
        logger.warning(
            "The prompt has %d tokens, the blueprint reads %d: its end has no effect.", count, most
        )


def decoded(vae: Any, decode: Callable[[], Tensor]) -> Tensor:
    """What ``decode`` makes of latents with ``vae``, (1, 3, T, H, W) in [-1, 1], as (T, 3, H, W) float32 in [0, 1].

    On the latents' device. Where memory is short it goes on in tiles. Raises ``NotFiniteError``.
    """
    video = _if_it_fits(decode)
    if video is None:  # not within the except: an error holds on to all that lay in memory when it was raised
        logger.warning("Memory is short: the VAE goes on in tiles, which may show faint seams.")
        torch.cuda.empty_cache()
        vae.enable_tiling()
        if hasattr(vae, "use_framewise_decoding"):
            vae.use_framewise_decoding = True
        video = decode()
    if not torch.isfinite(video).all():
        raise NotFiniteError("The blueprint's VAE gave values that are not finite. Try another seed.")
    return (video[0].transpose(0, 1).float() / 2 + 0.5).clamp(0, 1)


def denoised(denoise: Callable[[], T], networks: Mapping[str, torch.nn.Module], bound: str = "") -> T:
    """What ``denoise`` gives; where its latents stop being finite, once more with the transformers in float32.

    It must be a function of its arguments alone, so that the second try begins as the first did. ``bound`` says why the
    weights cannot be held in another type; then, and where they are in float32 already, the first error is the last.
    Raises ``NotFiniteError``.
    """
    transformers = [network for name, network in networks.items() if name.startswith("transformer")]
    try:
        return denoise()
    except NotFiniteError as error:
        if bound:
            raise NotFiniteError(f"{error} It was not tried again in float32, because {bound}.") from error
        if all(p.dtype == torch.float32 for network in transformers for p in network.parameters()):
            raise
        logger.warning("%s Trying this chunk once more in float32.", error)
    with ExitStack() as stack:
        for network in transformers:
            stack.enter_context(in_float32(network))
        return denoise()


def _if_it_fits(decode: Callable[[], Tensor]) -> Tensor | None:
    """What ``decode`` gives; None where memory is short."""
    try:
        return decode()
    except torch.OutOfMemoryError:
        return None
