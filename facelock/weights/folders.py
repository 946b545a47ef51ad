"""Whether one part of a diffusers folder is whole, told by its files alone: nothing is loaded.

::

    require_part(folder / "vae", REMEDY)
    require_part(folder / "tokenizer", REMEDY)

Libraries take defaults for a configuration that is missing, make a tokenizer that knows no word where there is no
vocabulary, and give a reason of their own where weights are cut short. Knows nothing of torch.
"""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from facelock.errors import EnvironmentFailure, ModelError, first_line

SENTENCEPIECE = ("spiece.model", "tokenizer.model")
"""Vocabularies that transformers reads with the package sentencepiece alone."""
VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt", *SENTENCEPIECE)
"""Files of which a tokenizer has at least one."""


def require_part(path: Path, remedy: str) -> None:
    """Raise ``ModelError`` where the part in the folder ``path`` lacks its configuration, weights or vocabulary or they
    are damaged, ``EnvironmentFailure`` where the vocabulary needs a package that is not installed. Messages end with
    the ``remedy``."""
    kind = path.name.partition("_")[0]
    _require_table(path / {"scheduler": "scheduler_config.json"}.get(kind, _config(kind)), remedy)
    if kind == "tokenizer":
        _require_vocabulary(path, remedy)
    elif kind != "scheduler":
        _require_weights(path, remedy)


def _config(kind: str) -> str:
    return "tokenizer_config.json" if kind == "tokenizer" else "config.json"


def _require_table(file: Path, remedy: str) -> None:
    if not file.is_file():
        raise ModelError(f"{file.parent} lacks its {file.name}. {remedy}")
    _table(file, remedy)


def _table(file: Path, remedy: str) -> dict[str, Any]:
    """What a JSON file holds. Raises ``ModelError`` unless that is a table."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{file} is damaged ({first_line(error)}). {remedy}") from error
    if not isinstance(found, dict):
        raise ModelError(f"{file} is damaged (it holds no table). {remedy}")
    return found


def _require_vocabulary(path: Path, remedy: str) -> None:
    here = [name for name in VOCABULARIES if (path / name).is_file()]
    if not here:
        raise ModelError(f"{path} holds no vocabulary ({' or '.join(VOCABULARIES)}). {remedy}")
    if here[0] in SENTENCEPIECE and find_spec("sentencepiece") is None:
        raise EnvironmentFailure(
            f"{path / here[0]} is read with sentencepiece, which is not installed. Give pip install sentencepiece."
        )


def _require_weights(path: Path, remedy: str) -> None:
    files = [file for file in sorted(path.glob("*.safetensors")) if file.is_file()]
    for index in sorted(path.glob("*.safetensors.index*.json")):
        parts = _table(index, remedy).get("weight_map")
        if not isinstance(parts, dict):
            raise ModelError(f"{index} is damaged (it names no weights). {remedy}")
        named = {str(part) for part in parts.values()}
        lacking = sorted(part for part in named if not (path / part).is_file())
        if lacking and (len(lacking) < len(named) or not files):  # else it is not what is read
            raise ModelError(f"{path} lacks {lacking[0]}, a part of its weights. {remedy}")
    if not files:
        raise ModelError(f"{path} holds no .safetensors file. {remedy}")
    for file in files:
        try:
            with safe_open(file, "np"):
                pass
        except (OSError, ValueError, SafetensorError) as error:
            raise ModelError(f"{file} is damaged ({first_line(error)}). {remedy}") from error
