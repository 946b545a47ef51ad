"""What a checkpoint's folder holds, by its ``model_index.json`` and the files of its parts: nothing is loaded.

::

    index = read_index(folder, PIPELINES["skyreels_v2"])
    for error in broken_parts(folder, index):
        print(error)
    read_configs(folder, index)["transformer"]["num_layers"]

Knows nothing of torch.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

from facelock.errors import FaceLockError, ModelError, caught, first_line
from facelock.weights.folders import require_part

REMEDY = "Pull or export the model again."
LARGEST_FILE = 1 << 20
"""Bytes; a configuration is a page of text."""
PIPELINES: Mapping[str, tuple[str, ...]] = {
    "skyreels_v2": ("SkyReelsV2DiffusionForcing*",),
    "wan_vace": ("WanVACEPipeline",),
    "helios": ("HeliosPipeline",),
    "ltx2": ("LTX2*",),
    "consisid": ("ConsisIDPipeline",),
}
"""Kind → class names that ``model_index.json`` may give for the whole; ``*`` stands for any ending."""
READ = frozenset({
    "text_encoder", "tokenizer", "transformer", "transformer_2", "vae", "scheduler",
    "connectors", "audio_vae", "vocoder",
})  # fmt: skip
"""Parts that a backbone reads; an index may name others."""

Config = Mapping[str, Any]
Found = Iterator[FaceLockError]


def read_index(folder: Path, pipelines: tuple[str, ...]) -> dict[str, Any]:
    """``model_index.json`` of a diffusers folder. Raises ``ModelError`` where it is missing, damaged, or of none of
    the ``pipelines``."""
    path = folder / "model_index.json"
    if not path.is_file():
        found = "is not a folder" if not folder.is_dir() else "has no model_index.json"
        raise ModelError(f"{folder} {found}, so it holds no blueprint. Check the recipe's model name.")
    try:
        index: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        kind = str(index["_class_name"])
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise ModelError(f"{path} is damaged ({first_line(error)}). {REMEDY}") from error
    if not any(fnmatchcase(kind, pattern) for pattern in pipelines):
        wanted = " or ".join(pattern.replace("*", "Pipeline") for pattern in pipelines)
        raise ModelError(f"{folder} holds a {kind[:80]}, not a {wanted}. Check the recipe's model name.")
    return index


def read_configs(folder: Path, index: Config) -> dict[str, Config]:
    """The configurations of the parts that ``index`` names; those that cannot be read are left out."""
    found: dict[str, Config] = {"model_index": index}
    for part in index:
        name = "scheduler_config.json" if part == "scheduler" else "config.json"
        path = folder / part / name
        with suppress(OSError, ValueError, RecursionError):
            if path.stat().st_size <= LARGEST_FILE:
                read = json.loads(path.read_text(encoding="utf-8"))
                found |= {part: read} if isinstance(read, dict) else {}
    return found


def broken_parts(folder: Path, index: Config) -> Found:
    """What is wrong with the files of the parts that the ``index`` names: folders, configurations, weights."""
    for part in [part for part, value in index.items() if isinstance(value, list) and any(value)]:
        if not (folder / part).is_dir():
            yield ModelError(f"{folder} lacks its {part}/ folder. {REMEDY}")
        elif part in READ:
            yield from caught(partial(require_part, folder / part, REMEDY))
