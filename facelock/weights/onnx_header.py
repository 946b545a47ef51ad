"""What an ONNX file takes and gives, without opening it for work: for saying beforehand that it is the wrong one.

::

    header(path).inputs                             # {"target": (None, 3, 128, 128), "source": (None, 512)}
    inferred(path, {"input": (1, 3, 32, 32)})       # {"output": (1, 3, 128, 128)}

Knows nothing of torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from facelock.errors import ModelError

SIDE = 112
"""Pixels of a recogniser's crop."""
Shape = tuple[int | None, ...]
"""None: a dimension that the file leaves open."""


@dataclass(frozen=True)
class Header:
    """The outside of a network."""

    inputs: Mapping[str, Shape]
    outputs: Mapping[str, Shape]
    last: Shape
    """Shape of the last initializer: inswapper-format files keep their embedding map there. Empty where there is none.
    """


def header(path: Path) -> Header:
    """The file's header, remembered for a file of this size and time. Raises ``ModelError`` for no ONNX model."""
    try:
        stat = path.stat()
        return _read(path, (stat.st_size, stat.st_mtime_ns))
    except Exception as error:  # protobuf raises its own kinds
        raise ModelError(f"{path}: not a readable ONNX model. Fetch it again.") from error


@lru_cache(maxsize=64)
def _read(path: Path, stamp: tuple[int, int]) -> Header:
    import onnx

    graph = onnx.load(str(path), load_external_data=False).graph
    weights = {tensor.name for tensor in graph.initializer}
    return Header(
        _shapes(value for value in graph.input if value.name not in weights),
        _shapes(graph.output),
        tuple(graph.initializer[-1].dims) if graph.initializer else (),
    )


def require_recogniser(path: Path) -> None:
    """Raise ``ModelError`` unless ``path`` is a network of ArcFace's outside: a crop in, one row of numbers out."""
    seen = header(path) if path.is_file() else None
    if seen is None or [s[2:] for s in seen.inputs.values()] != [(SIDE, SIDE)] or len(seen.outputs) != 1:
        raise ModelError(
            f"{path}: no recogniser of crops of {SIDE} x {SIDE} pixels. Give an ArcFace ONNX file."
        )


def embedding_width(encoder: Path) -> int | None:
    """Numbers of the embedding that a recogniser's file says it gives; None where it does not say."""
    outputs = list(header(encoder).outputs.values()) if encoder.is_file() else []
    return outputs[0][-1] if len(outputs) == 1 and len(outputs[0]) == 2 else None


def require_width(path: Path, taken: int | None, encoder: Path) -> None:
    """Raise ``ModelError`` where ``path`` takes embeddings of another size than the recogniser in the loop gives; of
    sizes that no header says nothing is known."""
    given = embedding_width(encoder)
    if None not in (given, taken) and given != taken:
        raise ModelError(
            f"{path}: takes embeddings of {taken} numbers, but {encoder} gives {given}. "
            "Name the recogniser that it was made for as faces.encoder."
        )


def inferred(path: Path, inputs: Mapping[str, Sequence[int]]) -> dict[str, Shape]:
    """Sizes of the outputs for ``inputs`` of these sizes, by ONNX's own rules for each operator; nothing is computed.

    None, or no dimensions, where they do not say. Raises ``ModelError`` for no ONNX model.
    """
    header(path)  # which has the sentence
    stat = path.stat()
    return _infer(path, (stat.st_size, stat.st_mtime_ns), tuple((k, tuple(v)) for k, v in inputs.items()))


@lru_cache(maxsize=64)
def _infer(
    path: Path, stamp: tuple[int, int], inputs: tuple[tuple[str, tuple[int, ...]], ...]
) -> dict[str, Shape]:
    import onnx

    model = onnx.load(str(path), load_external_data=False)
    given = dict(inputs)
    for value in model.graph.input:
        for place, size in enumerate(given.get(value.name, ())):
            value.type.tensor_type.shape.dim[place].dim_value = size
    for value in model.graph.output:  # what is written there may be of the size that it was exported at
        value.type.tensor_type.ClearField("shape")
    del model.graph.value_info[:]
    try:
        known = onnx.shape_inference.infer_shapes(model, data_prop=True).graph.output
    except Exception:  # an operator that its rules do not fit: then they do not say
        known = model.graph.output
    return _shapes(known)


def _shapes(values: Any) -> dict[str, Shape]:
    return {
        value.name: tuple(size.dim_value or None for size in value.type.tensor_type.shape.dim)
        for value in values
    }
