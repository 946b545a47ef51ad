"""What an ONNX file is, by looking into it: detector or recogniser, and which range of values it takes."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from facelock.errors import ModelError
from facelock.faces.opencv import OUTPUTS
from facelock.faces.scrfd import LEVELS
from facelock.weights import digest

Kind = Literal["scrfd", "yunet", "arcface", "crate", "other"]
SIDE = 112
_PASSES = frozenset({"Identity", "Cast", "Slice", "Split", "Concat", "Gather", "Transpose"})
"""Operators that hand values on as they are."""
_SHIFTS, _SCALES = frozenset({"Sub", "Add"}), frozenset({"Mul", "Div"})
_LOOKED_AT = 64
"""Nodes from the input on within which a normalisation is looked for."""


def kind_of(path: str | Path) -> Kind:
    """The kind of a model file, or of a folder with a CRATE network; ``other`` for what is neither.

    Raises ``ModelError`` for a file that is no ONNX model.
    """
    path = Path(path)
    if path.is_dir():
        return "crate" if (path / "model.safetensors").is_file() else "other"
    return _look(path, digest(path)).kind


def takes_bytes(path: str | Path) -> bool:
    """Whether a recogniser normalises by itself and so takes values of 0..255.

    insightface asks whether one of the first eight nodes is *called* ``Sub`` or ``_minus``, and one ``Mul`` or
    ``_mul``; converters change names, so here the values are followed from the input: a subtraction and a
    multiplication (or division) by constants before anything else is done with them.
    """
    path = Path(path)
    return _look(path, digest(path)).bytes


class _Look:
    """What was seen in one file."""

    def __init__(self, model: Any) -> None:
        graph = model.graph
        weights = {tensor.name for tensor in graph.initializer}
        entries = [value for value in graph.input if value.name not in weights]
        shapes = [[d.dim_value for d in value.type.tensor_type.shape.dim] for value in entries]
        outputs = [output.name for output in graph.output]
        self.kind = _kind(shapes, outputs)
        self.bytes = self.kind == "arcface" and _normalises(graph, entries[0].name, weights)


@lru_cache(maxsize=64)
def _look(path: Path, sha256: str) -> _Look:
    """``sha256`` only keys the memory: a file that was changed is looked at again."""
    import onnx

    try:
        return _Look(onnx.load(str(path), load_external_data=False))
    except Exception as error:  # protobuf raises its own kinds
        raise ModelError(f"{path}: not a readable ONNX model. Fetch it again.") from error


def _kind(shapes: list[list[int]], outputs: list[str]) -> Kind:
    if len(shapes) != 1 or len(shapes[0]) != 4:
        return "other"
    if set(outputs) == set(OUTPUTS):
        return "yunet"
    if len(outputs) in LEVELS:
        return "scrfd"
    return "arcface" if len(outputs) == 1 and shapes[0][2:] == [SIDE, SIDE] else "other"


def _normalises(graph: Any, entry: str, weights: set[str]) -> bool:
    constants = set(weights)
    seen = {"shift": False, "scale": False}
    for node in _from_input(graph, entry, constants):
        seen["shift"] |= node.op_type in _SHIFTS
        seen["scale"] |= node.op_type in _SCALES
    return all(seen.values())


def _from_input(graph: Any, entry: str, constants: set[str]) -> Iterator[Any]:
    """Nodes that only shift, scale or hand on what comes from the input; the graph is in topological order."""
    followed = {entry}
    for node in graph.node[:_LOOKED_AT]:
        if node.op_type == "Constant":
            constants.update(node.output)
        elif node.op_type in _PASSES | _SHIFTS | _SCALES and followed & set(node.input):
            if not set(node.input) <= followed | constants | {""}:
                continue
            followed.update(node.output)
            yield node
