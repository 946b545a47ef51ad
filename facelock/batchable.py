"""ONNX files fixed at one row at a time (inswapper's, say), rewritten to take any number, where the graph allows it.

::

    content = any_rows(path)                 # None: nothing that can be changed
    if content and agrees(single, several, shapes, rows=16): ...

What a graph computes between its inputs and outputs may still tie rows together. Nothing here proves that it does not:
:func:`agrees` runs both, and only a file whose batch gives what its rows give one by one is used as a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Run = Callable[[Mapping[str, NDArray[np.floating]]], Sequence[NDArray[np.floating]]]
"""Inputs by name → outputs in the file's order."""
TOLERANCE = 1e-3
"""Largest difference, as a share of an output's largest value, that another order of summation may cause."""


def any_rows(path: str | Path, content: bytes | None = None) -> bytes | None:
    """The file (or ``content`` in its place) with an open first dimension of all inputs and outputs.

    Constant shapes to which something is reshaped and that begin with 1 begin with the input's own number of rows then.
    None for a file that is not fixed at 1, or that keeps weights outside of itself.
    """
    import onnx

    model = onnx.load_from_string(content) if content else onnx.load(str(path), load_external_data=False)
    graph = model.graph
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in graph.initializer):
        return None
    weights = {tensor.name for tensor in graph.initializer}
    values = [*(i for i in graph.input if i.name not in weights), *graph.output]
    if any(_rows(value) not in (0, 1) for value in values) or not any(_rows(v) == 1 for v in values):
        return None
    for value in values:
        value.type.tensor_type.shape.dim[0].dim_param = "rows"
    del graph.value_info[:]
    _open_reshapes(graph)
    return bytes(model.SerializeToString())


def _rows(value: Any) -> int:
    """The fixed first dimension of an input or output; 0 where it is open, -1 where there is none."""
    dims = value.type.tensor_type.shape.dim
    return int(dims[0].dim_value) if dims else -1


def _open_reshapes(graph: Any) -> None:
    """Let constant target shapes (1, …) copy the first dimension of what they reshape: ONNX writes that as 0."""
    from onnx import numpy_helper

    shapes = {tensor.name: tensor for tensor in graph.initializer}
    shapes |= {
        node.output[0]: attribute.t
        for node in graph.node
        if node.op_type == "Constant"
        for attribute in node.attribute
        if attribute.name == "value"
    }
    for number, node in enumerate(graph.node):
        if node.op_type != "Reshape" or node.input[1] not in shapes:
            continue
        target = numpy_helper.to_array(shapes[node.input[1]]).copy()
        if target.ndim == 1 and len(target) > 1 and target[0] == 1:
            target[0] = 0
            name = f"{node.output[0]}/facelock/{number}/shape"  # its own: others may share the constant
            graph.initializer.append(numpy_helper.from_array(target, name))
            node.input[1] = name


def agrees(single: Run, several: Run, shapes: Mapping[str, Sequence[int | str | None]], rows: int) -> bool:
    """Whether ``several`` gives for ``rows`` rows at once what ``single`` gives row by row, on random numbers.

    ``shapes`` are those of the inputs; all dimensions but the first must be fixed, else the answer is no.
    """
    draw = np.random.default_rng(0)
    sides = {name: shape[1:] for name, shape in shapes.items()}
    if not all(isinstance(side, int) and side > 0 for shape in sides.values() for side in shape):
        return False
    given = {
        name: draw.random((rows, *(int(side or 1) for side in shape)), np.float32)
        for name, shape in sides.items()
    }
    try:
        found = several(given)
    except Exception:  # whatever a runtime says of a graph that cannot do it
        return False
    parts = [single({name: v[row : row + 1] for name, v in given.items()}) for row in range(rows)]
    wanted = [np.concatenate(column) for column in zip(*parts, strict=True)]
    return all(_close(a, b) for a, b in zip(found, wanted, strict=True))


def _close(found: NDArray[np.floating], wanted: NDArray[np.floating]) -> bool:
    if found.shape != wanted.shape:
        return False
    scale = max(float(np.abs(wanted).max(initial=0)), 1e-6)
    return bool(np.abs(found - wanted).max(initial=0) <= TOLERANCE * scale)
