"""What a Stable Diffusion folder and a FaceID adapter can do of what a recipe asks, told without loading them.

The one place of these rules: recipes are held against them before anything is loaded (:mod:`facelock.preflight`), and
the loader holds what it loaded against them once more. Knows nothing of torch.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from facelock.errors import ConfigError, FaceLockError, ModelError, first_line

KIND = re.compile(r"StableDiffusion(XL)?(Img2Img|Inpaint)?Pipeline")
"""Class names in ``model_index.json`` that say which family a folder is of."""
REMEDY = "Fetch the checkpoint again."
PARTS = ("tokenizer", "text_encoder", "unet", "vae", "scheduler")
LARGE_PARTS = (*PARTS, "tokenizer_2", "text_encoder_2")
"""Folders of a checkpoint of SDXL's family."""


def is_large(folder: Path) -> bool:
    """Whether the folder is of SDXL's family. Raises ``ModelError`` when it is of neither that nor SD 1.5's."""
    path = folder / "model_index.json"
    if not path.is_file():
        found = "is not a folder" if not folder.is_dir() else "has no model_index.json"
        raise ModelError(f"{folder} {found}, so it holds no image diffusion. Check the recipe's lock.model.")
    try:
        kind = str(json.loads(path.read_text(encoding="utf-8"))["_class_name"])
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise ModelError(f"{path} is damaged ({first_line(error)}). {REMEDY}") from error
    if not (match := KIND.fullmatch(kind)):
        raise ModelError(
            f"{folder} holds a {kind[:80]}, not Stable Diffusion 1.5 or XL. Check the recipe's lock.model."
        )
    return match[1] is not None


def misfits(
    folder: Path, unet: Mapping[str, Any], vae: Mapping[str, Any], *, mask: str | None, size: int | None
) -> Iterator[FaceLockError]:
    """What the checkpoint in ``folder`` with these configurations cannot do; numbers they do not give are passed over.

    ``mask`` and ``size`` are those of :class:`facelock.portrait.PortraitSettings`. Yields ``ModelError`` and
    ``ConfigError``.
    """
    with suppress(KeyError, TypeError, ValueError):
        channels = int(unet["in_channels"])
        if channels not in (4, 9):
            yield ModelError(
                f"{folder}: its UNet takes {channels} channels, not 4 or 9. Give another checkpoint."
            )
        elif channels == 9 and mask is None:
            yield ConfigError(
                f'{folder} is made for inpainting. Give mask = "face" in the recipe\'s lock.faceid.'
            )
    with suppress(KeyError, TypeError, ValueError):
        side, unit = crop_side(unet, vae, size)
        if side % unit:
            yield ConfigError(f"{folder} has no crops of {side} pixels. Give lock.faceid.size as n * {unit}.")


def crop_side(unet: Mapping[str, Any], vae: Mapping[str, Any], size: int | None) -> tuple[int, int]:
    """The crop's side in pixels, as asked or as the checkpoint was trained, and what it must be a multiple of."""
    pixels = 2 ** (len(vae["block_out_channels"]) - 1)
    unit = pixels * 2 ** (len(unet["block_out_channels"]) - 1)
    own = unet["sample_size"] if isinstance(unet["sample_size"], int) else min(unet["sample_size"])
    return size or own * pixels, unit


def read_config(folder: Path, part: str) -> dict[str, Any]:
    """``config.json`` of a part; empty where it cannot be read, which loading will tell."""
    with suppress(OSError, ValueError, RecursionError):
        found = json.loads((folder / part / "config.json").read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else {}
    return {}


def checked(folder: Path, *, mask: str | None, size: int | None) -> Iterator[FaceLockError]:
    """:func:`misfits` of a folder that is not loaded, its family and its parts first."""
    try:
        parts = LARGE_PARTS if is_large(folder) else PARTS
    except ModelError as error:
        yield error
        return
    for part in parts:
        if not (folder / part).is_dir():
            yield ModelError(f"{folder} lacks its {part}/ folder. {REMEDY}")
    unet, vae = (read_config(folder, part) for part in ("unet", "vae"))
    yield from misfits(folder, unet, vae, mask=mask, size=size)
