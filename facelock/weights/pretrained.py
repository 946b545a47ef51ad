"""Reads one part of a diffusers folder, and trusts nothing in it; and what a device says when it cannot.

::

    vae = load_network(folder, "vae", AutoencoderKL, torch.float32, REMEDY)
    with device_errors("cuda:0", "The blueprint", "Choose a smaller window."):
        vae.to("cuda:0")

Only local files, only safetensors; weights must be complete, of the right shapes, and finite. Shared by the video
diffusion of stage 1 and the image diffusion of ``faceid``.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import logging as diffusers_logging
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from facelock.errors import DeviceError, FaceLockError, ModelError, first_line
from facelock.weights.folders import require_part


class OutOfMemoryError(DeviceError):
    """The device has no room for what was asked: less of it may fit."""


@contextmanager
def device_errors(device: str | torch.device, who: str, advice: str) -> Iterator[None]:
    """Turn what a device says when it is absent, full or lost into :class:`DeviceError`.

    ``who`` begins the sentence (``"The blueprint"``); ``advice`` ends that of an :class:`OutOfMemoryError`.
    """
    try:
        yield
    except (RuntimeError, MemoryError, OSError, AssertionError) as error:
        text = str(error)
        if out_of_memory(error):
            raise OutOfMemoryError(f"{who} ran out of memory on {device}. {advice}") from error
        if "CUDA" in text or "NVIDIA" in text:
            raise DeviceError(
                f"{who} cannot use {device} ({first_line(error)}). Check it, or give --device cpu."
            ) from error
        raise


def out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` says that a device, or the computer itself, has no room left."""
    known = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return known or "allocate memory" in str(error)


def load_part(folder: Path, name: str, load: Callable[..., Any], remedy: str, **options: Any) -> Any:
    """Call a ``from_pretrained`` quietly on the part ``name``, whatever goes wrong with the files becoming a
    ``ModelError`` that ends with the ``remedy``."""
    path = folder / name
    if not path.is_dir():
        raise ModelError(f"{folder} lacks its {name}/ folder. {remedy}")
    require_part(path, remedy)
    try:
        with quiet():
            return load(path, local_files_only=True, **options)
    except FaceLockError:
        raise
    except Exception as error:  # a damaged file ends in whatever its reader runs into
        if out_of_memory(error):
            raise
        reason = first_line(error).partition(". If you want")[0]
        raise ModelError(f"{path} cannot be loaded ({reason}). {remedy}") from error


def require_words(folder: Path, name: str, tokenizer: Any, encoder: Any, remedy: str) -> None:
    """Raise ``ModelError`` for a ``tokenizer`` that knows more words than the text ``encoder``, its own ``name``."""
    words, rows = len(tokenizer), encoder.get_input_embeddings().weight.shape[0]
    if words > rows:
        raise ModelError(f"{folder}: {name} has {words} words, its text encoder {rows}. {remedy}")


def load_network(folder: Path, name: str, network: Any, dtype: torch.dtype, remedy: str) -> Any:
    """The class ``network`` filled from the part ``name``, in ``dtype`` on the CPU, in evaluation, without gradients.

    Raises ``ModelError`` for weights that are missing, of other shapes, or not finite.
    """
    options: dict[str, Any] = {"use_safetensors": True, "torch_dtype": dtype, "output_loading_info": True}
    if variant := _variant(folder / name):
        options["variant"] = variant
    if isinstance(network, type) and issubclass(network, PreTrainedModel):
        options["ignore_mismatched_sizes"] = True  # they are told by name below
    model, info = load_part(folder, name, network.from_pretrained, remedy, **options)
    if missing := sorted(map(str, info.get("missing_keys") or ())):
        raise ModelError(f"{folder / name} lacks {len(missing)} weights, {missing[0]} first. {remedy}")
    for key, found, wanted in sorted(info.get("mismatched_keys") or ()):
        raise ModelError(
            f"{folder / name}: {key} is {tuple(found)}, its configuration says {tuple(wanted)}. {remedy}"
        )
    for key, weight in model.state_dict().items():
        if not torch.isfinite(weight.detach().sum(dtype=torch.float32)):
            raise ModelError(f"{folder / name}: {key} holds values that are not finite. {remedy}")
    return model.eval().requires_grad_(False)


def _variant(folder: Path) -> str | None:
    """``fp16`` where the folder holds nothing else: the hub offers checkpoints that way."""
    names = [file.name for file in folder.glob("*.safetensors")]
    return "fp16" if names and all(".fp16." in name for name in names) else None


@contextmanager
def quiet() -> Iterator[None]:
    """Silence remarks and progress bars of diffusers and transformers for a while; what is wrong they also raise."""
    before = diffusers_logging.get_verbosity(), transformers_logging.get_verbosity()
    shown = transformers_logging.is_progress_bar_enabled()
    diffusers_logging.set_verbosity(diffusers_logging.CRITICAL)
    transformers_logging.set_verbosity(transformers_logging.CRITICAL)
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        diffusers_logging.set_verbosity(before[0])
        transformers_logging.set_verbosity(before[1])
        if shown:
            transformers_logging.enable_progress_bar()
