"""Whether a file is what an upscaler or restorer reads, told by its header alone. Knows nothing of torch."""

from __future__ import annotations

from pathlib import Path

from facelock.errors import ModelError
from facelock.weights.onnx_header import header

SIDE = 128
"""Pixels of the restorer's crop."""


def require_upscaler(path: Path) -> None:
    """Raise ``ModelError`` unless ``path`` is an ONNX network from pictures to pictures."""
    if not path.is_file() or [len(shape) for shape in header(path).inputs.values()] != [4]:
        raise ModelError(f"{path}: not an upscaler (one input of four dimensions). Give another file.")


def require_restorer(path: Path) -> None:
    """Raise ``ModelError`` unless ``path`` is an ONNX network of a crop, ``target``, and an embedding, ``source``."""
    shapes = header(path).inputs if path.is_file() else {}
    if set(shapes) != {"target", "source"} or shapes["target"][2:] != (SIDE, SIDE):
        raise ModelError(
            f"{path}: not a restorer (inputs target and source, crops of {SIDE}). Give another file."
        )
