"""Reads a SkyReels-V2 diffusion-forcing checkpoint from a diffusers folder, and trusts nothing in it.

::

    parts = load_checkpoint(Path("models/miniature/blueprint"), device="cpu", dtype=torch.float32)

Only local files, only safetensors, only the five classes named here whatever ``model_index.json`` says;
weights must be complete, of the right shapes, and finite. Nothing is downloaded and no code is run.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLWan,
    FlowMatchEulerDiscreteScheduler,
    SkyReelsV2Transformer3DModel,
    UniPCMultistepScheduler,
)
from safetensors import SafetensorError
from transformers import AutoTokenizer, UMT5EncoderModel
from transformers.utils import logging as transformers_logging

from facelock.errors import DeviceError, ModelError

PIPELINE = "SkyReelsV2DiffusionForcing"
"""How the pipeline's class name in ``model_index.json`` begins."""
SCHEDULERS = {
    "UniPCMultistepScheduler": UniPCMultistepScheduler,
    "FlowMatchEulerDiscreteScheduler": FlowMatchEulerDiscreteScheduler,
}
REMEDY = "Pull or export the model again."


@dataclass(frozen=True)
class Checkpoint:
    """The parts of the pipeline, in evaluation mode on one device."""

    tokenizer: Any
    text_encoder: Any
    transformer: Any
    vae: Any
    """Always float32: in bfloat16 its pictures show banding."""
    scheduler: Any


def load_checkpoint(folder: Path, *, device: str | torch.device, dtype: torch.dtype) -> Checkpoint:
    """Load the five parts; text encoder and transformer in ``dtype``.

    Raises :class:`ModelError` for a folder that is missing, incomplete, damaged or of another kind, and
    :class:`DeviceError` when the device is absent or too small.
    """
    index = _model_index(folder)
    scheduler = SCHEDULERS.get(_class_name(index, "scheduler", folder))
    if scheduler is None:
        raise ModelError(f"{folder}: its scheduler is none of {', '.join(SCHEDULERS)}. {REMEDY}")
    with device_errors(str(device)):
        return Checkpoint(
            tokenizer=_part(folder, "tokenizer", AutoTokenizer.from_pretrained, local_files_only=True),
            text_encoder=_network(folder, "text_encoder", UMT5EncoderModel, dtype).to(device),
            transformer=_network(folder, "transformer", SkyReelsV2Transformer3DModel, dtype).to(device),
            vae=_network(folder, "vae", AutoencoderKLWan, torch.float32).to(device),
            scheduler=_part(folder, "scheduler", scheduler.from_pretrained, local_files_only=True),
        )


@contextmanager
def device_errors(device: str) -> Iterator[None]:
    """Turn what a device says when it is absent, full or lost into :class:`DeviceError`."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise DeviceError(
            f"The blueprint ran out of memory on {device}. Choose a smaller window, size or model."
        ) from error
    except (RuntimeError, AssertionError) as error:
        text = str(error)
        if "allocate memory" in text or "CUDA" in text or "NVIDIA" in text:
            raise DeviceError(
                f"The blueprint cannot use {device} ({_first_line(error)}). Check it, or give --device cpu."
            ) from error
        raise


def _model_index(folder: Path) -> dict[str, Any]:
    path = folder / "model_index.json"
    if not path.is_file():
        found = "is not a folder" if not folder.is_dir() else "has no model_index.json"
        raise ModelError(f"{folder} {found}, so it holds no blueprint. Check the recipe's model name.")
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        kind = str(index["_class_name"])
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise ModelError(f"{path} is damaged ({_first_line(error)}). {REMEDY}") from error
    if not kind.startswith(PIPELINE):
        raise ModelError(f"{folder} holds a {kind}, not a {PIPELINE}Pipeline. Check the recipe's model name.")
    return index


def _class_name(index: dict[str, Any], part: str, folder: Path) -> str:
    try:
        return str(index[part][1])
    except (KeyError, IndexError, TypeError) as error:
        raise ModelError(f"{folder}/model_index.json names no {part}. {REMEDY}") from error


def _part(folder: Path, name: str, load: Callable[..., Any], **options: Any) -> Any:
    """Call a ``from_pretrained`` quietly, whatever goes wrong with the files becoming a ModelError."""
    path = folder / name
    if not path.is_dir():
        raise ModelError(f"{folder} lacks its {name}/ folder. {REMEDY}")
    try:
        with _no_progress_bar():
            return load(path, **options)
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError, ImportError) as error:
        raise ModelError(f"{path} cannot be loaded ({_first_line(error)}). {REMEDY}") from error


def _network(folder: Path, name: str, network: Any, dtype: torch.dtype) -> Any:
    model, info = _part(
        folder,
        name,
        network.from_pretrained,
        local_files_only=True,
        use_safetensors=True,
        torch_dtype=dtype,
        output_loading_info=True,
    )
    wanting = [str(key) for kind in ("missing_keys", "mismatched_keys") for key in info.get(kind) or ()]
    if wanting:
        raise ModelError(f"{folder / name} lacks {len(wanting)} weights, {wanting[0]} first. {REMEDY}")
    for key, weight in model.named_parameters():
        if not torch.isfinite(weight.detach().sum(dtype=torch.float32)):
            raise ModelError(f"{folder / name}: {key} holds values that are not finite. {REMEDY}")
    return model.eval().requires_grad_(False)


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    """Silence the bar that transformers draws while it loads."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200].rstrip(". ") if lines else type(error).__name__
