"""spandrel's networks, loaded without its own unpickler and with one sentence for all that can be missing.

spandrel 0.4.2 imports torchvision with its first line (LaMa and RestoreFormer use it), so a torchvision that is
missing, or made for another torch, stops all of it. Files are read by :mod:`facelock.weights.state_dicts`;
``ModelLoader.load_from_file`` would unpickle a ``.pth`` with a filter of its own and run a ``.pt`` as TorchScript.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from facelock.errors import ConfigError, ModelError, first_line
from facelock.restoration.extra import cannot_import, not_installed
from facelock.restoration.precision import dtype_of
from facelock.weights.state_dicts import load_state_dict

FRAMES = ("SR", "Restoration")
"""Purposes, in spandrel's words, of what works on whole frames: enlarging them, or mending them at their size."""
FACES = ("FaceSR",)


def load_spandrel(path: str | Path, purposes: Sequence[str]) -> Any:
    """The network of a file as spandrel's ``ImageModelDescriptor``, on the CPU in float32.

    ``purposes`` are :data:`FRAMES` for what enlarges frames, :data:`FACES` for what restores faces. Raises
    ``EnvironmentFailure`` where spandrel or torchvision is missing or broken, ``ModelError`` for a file that is
    damaged, of an unknown architecture, or made for something else.
    """
    library = require_library()
    found = _described(library, Path(path))
    if not isinstance(found, library.ImageModelDescriptor) or found.purpose not in purposes:
        other = getattr(found, "purpose", type(found).__name__)
        raise ModelError(
            f"{path}: its purpose is {other}, not {' or '.join(purposes)}. "
            "Name networks for frames (SR, Restoration) as the upscaler and face restorers (FaceSR) as the restorer in "
            "[restore]."
        )
    if (found.input_channels, found.output_channels) != (3, 3):
        raise ModelError(
            f"{path}: takes {found.input_channels} channels and gives {found.output_channels}, not 3 and 3. "
            "Give a network for colour pictures."
        )
    return found.eval()


def _described(library: Any, path: Path) -> Any:
    state = load_state_dict(path)
    try:
        return library.ModelLoader(registry=_registry(library)).load_from_state_dict(state)
    except library.UnsupportedModelError as error:
        raise ModelError(
            f"{path}: spandrel knows no architecture with these tensors. Give another file."
        ) from error
    except Exception as error:  # each architecture fails in its own way on tensors that do not fit
        raise ModelError(
            f"{path}: its tensors do not fit their architecture ({first_line(error, 120)}). Fetch it again."
        ) from error


def _registry(library: Any) -> Any:
    """spandrel's architectures, and those of spandrel_extra_arches (CodeFormer, say) where that is installed.

    A copy: nothing that others see is changed.
    """
    registry = library.MAIN_REGISTRY.copy()
    with suppress(ImportError):
        extra = importlib.import_module("spandrel_extra_arches")
        registry.add(*extra.EXTRA_REGISTRY, ignore_duplicates=True)
    return registry


def require_library() -> Any:
    """spandrel, imported. Raises ``EnvironmentFailure`` where it or torchvision is missing or broken."""
    try:
        library = importlib.import_module("spandrel")
        if not hasattr(
            library, "ModelLoader"
        ):  # a folder without the package, as an uninstallation may leave
            raise ImportError("it is not whole", name="spandrel")
        return library
    except ImportError as error:
        missing = (error.name or "torchvision").split(".")[0]
        found = cannot_import(first_line(error, 120)) if missing == "torchvision" else not_installed(missing)
        raise found from error
    except Exception as error:  # a torchvision for another torch fails with RuntimeError or AttributeError
        raise cannot_import(first_line(error, 120)) from error


def placed(descriptor: Any, path: str | Path, precision: str, device: torch.device | str) -> torch.dtype:
    """Move a descriptor's network to ``device`` in ``precision``, and say which type that is.

    Raises ``ConfigError`` where the network does not support it, or half precision was asked for on a CPU.
    """
    dtype = dtype_of(precision, device)
    able = {torch.float16: descriptor.supports_half, torch.bfloat16: descriptor.supports_bfloat16}
    if not able.get(dtype, True):
        raise ConfigError(
            f"{path}: {descriptor.architecture.id} does not work in {precision}. "
            "Give float32 as its precision in [restore]."
        )
    descriptor.to(torch.device(device), dtype)
    return dtype


@contextmanager
def same_noise(device: torch.device) -> Iterator[None]:
    """What draws random numbers inside draws the same every time; torch's own state is put back afterwards."""
    index = (
        [torch.cuda.current_device() if device.index is None else device.index]
        if device.type == "cuda"
        else []
    )
    with torch.random.fork_rng(index):
        torch.default_generator.manual_seed(0)
        for i in index:
            torch.cuda.default_generators[i].manual_seed(0)
        yield
