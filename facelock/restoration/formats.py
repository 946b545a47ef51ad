"""Whether a file is what an upscaler or restorer reads, told by its header alone. Imports torch for a ``.pth`` only."""

from __future__ import annotations

from pathlib import Path

from facelock.errors import ModelError
from facelock.nets.compact_layout import compact_shape
from facelock.weights import onnx_header
from facelock.weights.onnx_header import header, inferred

SIDE = 128
"""Pixels of the restorer's crop."""
_SHOWN = 32
"""Pixels of the picture whose enlargement is worked out."""


def require_upscaler(path: Path, kind: str, scale: int) -> None:
    """Raise ``ModelError`` for a file that an upscaler of ``kind`` does not read, or that enlarges otherwise than
    ``scale`` times, as far as that is written in it: in an ONNX network's sizes, in the layout of compact networks.
    """
    if kind == "onnx_upscaler":
        own = _onnx_scale(path)
    elif kind == "compact_upscaler":
        own = compact_scale(path)
    else:  # of all that spandrel reads, the compact ones tell
        own = _if_compact(path)
    if own is not None:
        require_scale(path, own, scale)


def require_scale(path: str | Path, own: float, asked: int) -> None:
    """Raise ``ModelError`` unless an upscaler's ``own`` scale is the one the recipe asks for."""
    if own == asked:
        return
    known = own == int(own) and 1 <= own <= 8
    remedy = f"Give scale = {own:g} in [restore], or another upscaler." if known else "Give another upscaler."
    raise ModelError(f"{path}: enlarges {own:g}×, not {asked}×. {remedy}")


def compact_scale(path: Path) -> int:
    """Of a compact network's file. Raises ``ModelError`` for one that is damaged or of another layout."""
    from facelock.weights.state_dicts import tensor_sizes

    try:
        return compact_shape(tensor_sizes(path)).scale
    except ValueError as error:
        raise not_compact(path, error) from error


def not_compact(path: str | Path, error: ValueError) -> ModelError:
    """The error for a file of another layout."""
    return ModelError(
        f"{path}: not a compact upscaler ({error}). Give a SRVGGNetCompact file, or another upscaler_kind."
    )


def _if_compact(path: Path) -> int | None:
    try:
        return compact_scale(path)
    except ModelError:
        return None


def _onnx_scale(path: Path) -> float | None:
    """None where the network's sizes do not say. Raises ``ModelError`` unless it leads from pictures to pictures."""
    inputs = header(path).inputs if path.is_file() else {}
    if [len(shape) for shape in inputs.values()] != [4]:
        raise ModelError(f"{path}: not an upscaler (one input of four dimensions). Give another file.")
    ((name, shape),) = inputs.items()
    shown = (shape[0] or 1, shape[1] or 3, shape[2] or _SHOWN, shape[3] or _SHOWN)
    outputs = [*inferred(path, {name: shown}).values()]
    width = outputs[0][-1] if len(outputs) == 1 and len(outputs[0]) == 4 else None
    return None if width is None else width / shown[3]


def require_restorer(path: Path) -> None:
    """Raise ``ModelError`` unless ``path`` is an ONNX network of a crop, ``target``, and an embedding, ``source``."""
    shapes = header(path).inputs if path.is_file() else {}
    if set(shapes) != {"target", "source"} or shapes["target"][2:] != (SIDE, SIDE):
        raise ModelError(
            f"{path}: not a restorer (inputs target and source, crops of {SIDE}). Give another file."
        )


def require_width(path: Path, encoder: Path) -> None:
    """Raise ``ModelError`` where the recogniser in the loop gives embeddings of another size than a restorer takes."""
    onnx_header.require_width(path, header(path).inputs["source"][-1], encoder)
