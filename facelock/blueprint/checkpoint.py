"""Reads the parts of a video diffusion checkpoint from a diffusers folder, and trusts nothing in it.

::

    layout = Layout(
        kind="skyreels_v2",
        networks={"transformer": SkyReelsV2Transformer3DModel, "vae": AutoencoderKLWan},
        schedulers=(UniPCMultistepScheduler,),
    )
    parts = load_checkpoint(folder, layout, device="cpu", dtype=torch.float32)
    parts.networks["vae"], parts.tokenizer, parts.scheduler

Only local files, only safetensors, only the classes that a layout names whatever ``model_index.json`` says;
weights must be complete, of the right shapes, and finite. Nothing is downloaded and no code is run. Networks are
read into the CPU's memory first and then put where they run, by a memory plan (``place``) or all on one device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from facelock.blueprint.fits import Asked, misfits
from facelock.blueprint.index import PIPELINES, REMEDY, Config, read_configs, read_index
from facelock.errors import ModelError, first_line
from facelock.weights.pretrained import device_errors, load_network, load_part, out_of_memory, require_words

LIBRARIES = frozenset({"torch", "diffusers", "transformers", "tokenizers"})
Place = Callable[[Mapping[str, torch.nn.Module]], None]
"""Puts the networks, by name, where they run: on one device, or in and out of it as a memory plan says."""


@dataclass(frozen=True)
class Layout:
    """What the folder of one kind of checkpoint holds, each part in a folder of its own name."""

    kind: str
    """Of :data:`facelock.blueprint.BACKBONES`, whose rules hold (:mod:`facelock.blueprint.fits`)."""
    networks: Mapping[str, Any]
    """Folder → class whose ``from_pretrained`` reads it."""
    schedulers: tuple[Any, ...]
    """Classes that ``model_index.json`` may give for the scheduler."""
    optional: frozenset[str] = frozenset()
    """Networks that ``model_index.json`` may leave out."""
    float32: frozenset[str] = frozenset({"vae"})
    """Networks in full precision whatever is asked for: in bfloat16 a VAE's pictures show banding."""


@dataclass(frozen=True)
class Checkpoint:
    """The parts of one checkpoint, in evaluation mode, without gradients."""

    networks: Mapping[str, torch.nn.Module]
    tokenizer: Any
    scheduler: Any
    index: Mapping[str, Any]
    """``model_index.json``: plain values of the pipeline's own, such as ``boundary_ratio``."""

    def require_fit(self, kind: str, folder: str | Path, asked: Asked) -> None:
        """Raise the first of what the checkpoint cannot do of what is ``asked``, by what was really loaded."""
        parts = {**self.networks, "scheduler": self.scheduler}
        configs: dict[str, Config] = {name: part.config for name, part in parts.items() if _has_config(part)}
        for error in misfits(kind, str(folder), {**configs, "model_index": self.index}, asked):
            raise error


def _has_config(part: Any) -> bool:
    return isinstance(getattr(part, "config", None), Mapping)


def load_checkpoint(
    folder: Path,
    layout: Layout,
    *,
    device: str | torch.device,
    dtype: torch.dtype,
    asked: Asked | None = None,
    place: Place | None = None,
) -> Checkpoint:
    """Load what ``layout`` names; networks in ``dtype`` but for those it wants in float32.

    What is ``asked`` is held against the folder's configurations first. All is read and checked on the CPU; then
    ``place`` puts the networks where they run (default: every one on ``device``). Raises ``ConfigError`` for what the
    checkpoint cannot do, :class:`ModelError` for a folder that is missing, incomplete, damaged or of another kind, and
    :class:`DeviceError` when the device is absent or too small.
    """
    index = read_index(folder, PIPELINES[layout.kind])
    for error in misfits(layout.kind, str(folder), read_configs(folder, index), asked) if asked else ():
        raise error
    scheduler = _scheduler_class(index, layout, folder)
    wanted = {
        name: network
        for name, network in layout.networks.items()
        if not (name in layout.optional and _left_out(index, name))
    }
    with working(folder, str(device)):
        tokenizer = load_part(folder, "tokenizer", AutoTokenizer.from_pretrained, REMEDY)
        networks = {
            name: load_network(
                folder, name, network, torch.float32 if name in layout.float32 else dtype, REMEDY
            )
            for name, network in wanted.items()
        }
        schedule = load_part(folder, "scheduler", scheduler.from_pretrained, REMEDY)
        require_words(folder, "tokenizer", tokenizer, networks["text_encoder"], REMEDY)
        (place or all_on(device))(networks)
    return Checkpoint(networks, tokenizer, schedule, index)


def all_on(device: str | torch.device) -> Place:
    """A plan that puts every network on one ``device``."""

    def place(networks: Mapping[str, torch.nn.Module]) -> None:
        for network in networks.values():
            network.to(device)

    return place


@contextmanager
def working(folder: Path, device: str) -> Iterator[None]:
    """Turn what a device says when it is absent, full or lost into ``DeviceError``, and what the libraries say of
    networks that cannot do their work into ``ModelError``: a configuration is believed until it is used."""
    with device_errors(device, "The blueprint", "Choose a smaller window, size or model."):
        try:
            yield
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            if out_of_memory(error) or not _of_a_library(error):
                raise
            raise ModelError(f"{folder} cannot be worked with ({first_line(error)}). {REMEDY}") from error


def _of_a_library(error: BaseException) -> bool:
    """Whether ``error`` was raised in the code of torch, diffusers or transformers, and is none of a device's."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    raised_by = str(trace.tb_frame.f_globals.get("__name__")) if trace else ""
    said = str(error)
    return raised_by.partition(".")[0] in LIBRARIES and "CUDA" not in said and "NVIDIA" not in said


def _scheduler_class(index: Mapping[str, Any], layout: Layout, folder: Path) -> Any:
    known = {scheduler.__name__: scheduler for scheduler in layout.schedulers}
    found = known.get(_class_name(index, "scheduler", folder))
    if found is None:
        raise ModelError(f"{folder}: its scheduler is none of {', '.join(known)}. {REMEDY}")
    return found


def _left_out(index: Mapping[str, Any], part: str) -> bool:
    """Whether the checkpoint does not have ``part``: the index says null, or, in older ones, nothing."""
    return index.get(part) in (None, [None, None])


def _class_name(index: Mapping[str, Any], part: str, folder: Path) -> str:
    try:
        return str(index[part][1])
    except (KeyError, IndexError, TypeError) as error:
        raise ModelError(f"{folder}/model_index.json names no {part}. {REMEDY}") from error
