"""Whether a file is what an aligner reads, told by its header alone. Knows nothing of torch."""

from __future__ import annotations

from pathlib import Path

from facelock.errors import ModelError
from facelock.weights import onnx_header
from facelock.weights.onnx_header import header

SIDE = 128
"""Pixels of an inswapper's crop."""


def require_inswapper(path: Path) -> None:
    """Raise ``ModelError`` unless ``path`` is of inswapper's format: a crop and an embedding in, the map of
    embeddings last among its weights."""
    if not path.is_file():
        raise ModelError(
            f"{path}: a folder, where the aligner inswapper reads an ONNX file. Give another model."
        )
    seen = header(path)
    if len(seen.inputs) != 2 or [s[2:] for s in seen.inputs.values() if len(s) == 4] != [(SIDE, SIDE)]:
        raise ModelError(
            f"{path}: not an inswapper-format model (two inputs, {SIDE} × {SIDE}). Give another file."
        )
    if len(seen.last) != 2 or seen.last[0] != seen.last[1]:
        raise ModelError(
            f"{path}: the last initializer is no square embedding map. Give an inswapper-format model."
        )
    taken = next((shape[-1] for shape in seen.inputs.values() if len(shape) == 2), None)
    if taken not in (None, seen.last[0]):
        raise ModelError(
            f"{path}: takes embeddings of {taken} numbers, its map makes {seen.last[0]}. Give another file."
        )


def require_width(path: Path, encoder: Path) -> None:
    """Raise ``ModelError`` where the recogniser in the loop gives embeddings of another size than an inswapper
    takes."""
    onnx_header.require_width(path, header(path).last[0], encoder)
