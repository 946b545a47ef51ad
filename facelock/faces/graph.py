"""An ONNX file as onnxruntime's CPU kernels like it: the same network, rewritten when it is loaded.

::

    content = rewritten(path)          # bytes for an onnxruntime session

Four steps, each of which keeps what the network computes but for the last bits of its floats:

- constants that only pass through casts and reshapes are worked out;
- per-channel shifts and scales behind a convolution, batch norm among them, go into its weights;
- PReLU, which onnxruntime does not have in its blocked layout and therefore turns the picture around for, becomes
  convolutions that are (:mod:`facelock.faces.prelu`);
- convolutions of one input with few outputs each, such as a detector's heads, become one: the blocked layout
  computes 16 channels at a time, whether they are asked for or not (:mod:`facelock.faces.heads`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from facelock.errors import ModelError

Array = NDArray[Any]


class Graph:
    """A graph's nodes in their order, and its constants by name."""

    def __init__(self, model: Any) -> None:
        from onnx import numpy_helper

        self.model = model
        self.opset = max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=0)
        self.nodes: list[Any] = list(model.graph.node)
        self.constants: dict[str, Array] = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
        self._kept = {output.name for output in model.graph.output}
        self._made = 0

    def users(self, name: str) -> list[Any]:
        """The nodes that read ``name``."""
        return [node for node in self.nodes if name in node.input]

    def only_user(self, name: str) -> Any | None:
        """The one node that reads ``name``, where nobody else does and it is no output of the graph."""
        users = self.users(name)
        return users[0] if len(users) == 1 and name not in self._kept else None

    def constant(self, values: Array, like: str) -> str:
        """Add a constant; its name begins with ``like``."""
        self._made += 1
        name = f"{like}/facelock/{self._made}"
        self.constants[name] = values
        return name

    def replace(self, old: Any, new: Sequence[Any]) -> None:
        """Put ``new`` nodes where ``old`` was."""
        place = next(i for i, node in enumerate(self.nodes) if node is old)
        self.nodes[place : place + 1] = new

    def to_bytes(self) -> bytes:
        """The model with these nodes, and the constants that they read."""
        from onnx import numpy_helper

        graph = self.model.graph
        read = {name for node in self.nodes for name in node.input} | self._kept
        del graph.node[:], graph.initializer[:], graph.value_info[:]
        graph.node.extend(self.nodes)
        graph.initializer.extend(
            numpy_helper.from_array(np.asarray(values, order="C"), name)
            for name, values in self.constants.items()
            if name in read
        )
        entries = [entry for entry in graph.input if entry.name not in self.constants]
        del graph.input[:]
        graph.input.extend(entries)
        return bytes(self.model.SerializeToString())


def rewritten(path: str | Path) -> bytes | None:
    """The ONNX file at ``path`` rewritten; None for one that keeps its weights elsewhere, or has subgraphs.

    Raises ``ModelError`` for what is no ONNX file.
    """
    return rewritten_model(load_model(path))


def load_model(path: str | Path) -> Any:
    """The model in a file, without what it keeps in others. Raises ``ModelError`` for what is no ONNX file."""
    import onnx

    try:
        return onnx.load(str(path), load_external_data=False)
    except Exception as error:  # protobuf raises its own kinds
        raise ModelError(f"{path}: not a readable ONNX model. Fetch it again.") from error


def rewritten_model(model: Any) -> bytes | None:
    """The same for a model that is loaded already, which is changed."""
    import onnx

    from facelock.faces.heads import join_heads
    from facelock.faces.prelu import without_prelu

    external = any(t.data_location == onnx.TensorProto.EXTERNAL for t in model.graph.initializer)
    nested = any(a.HasField("g") or a.graphs for node in model.graph.node for a in node.attribute)
    if external or nested:
        return None
    graph = Graph(model)
    for step in (work_out_constants, fold_affine, without_prelu, join_heads):
        step(graph)
    return graph.to_bytes()


# -- constants ---------------------------------------------------------------------------------------------


def attributes(node: Any) -> dict[str, Any]:
    """A node's attributes by name."""
    from onnx import helper

    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def _cast(values: Sequence[Array], given: dict[str, Any]) -> Array | None:
    from onnx import TensorProto

    return values[0].astype(np.float32) if given["to"] == TensorProto.FLOAT else None


def _reshape(values: Sequence[Array], given: dict[str, Any]) -> Array | None:
    sizes = [int(n) for n in values[1]]
    return None if 0 in sizes else values[0].reshape(sizes)


_KNOWN: dict[str, Callable[[Sequence[Array], dict[str, Any]], Array | None]] = {
    "Identity": lambda values, given: values[0],
    "Cast": _cast,
    "Reshape": _reshape,
    "Transpose": lambda values, given: values[0].transpose(given.get("perm")),
}


def work_out_constants(graph: Graph) -> None:
    """Casts, reshapes and transpositions of constants become constants."""
    left = []
    for node in graph.nodes:
        known = _KNOWN.get(node.op_type)
        if known and all(name in graph.constants for name in node.input):
            value = known([graph.constants[name] for name in node.input], attributes(node))
            if value is not None:
                graph.constants[node.output[0]] = value
                continue
        left.append(node)
    graph.nodes = left


# -- shifts and scales -------------------------------------------------------------------------------------


def is_convolution(graph: Graph, node: Any) -> bool:
    """A convolution whose weights, and bias where it has one, are float32 constants."""
    if node.op_type != "Conv" or any(name and name not in graph.constants for name in node.input[1:]):
        return False
    return bool(graph.constants[node.input[1]].dtype == np.float32)


def weights_of(graph: Graph, node: Any) -> tuple[Array, Array]:
    """Weights (out, in ÷ groups, h, w) and bias (out,) of a convolution."""
    weights = graph.constants[node.input[1]]
    given = len(node.input) > 2 and node.input[2]
    return weights, graph.constants[node.input[2]] if given else np.zeros(len(weights), np.float32)


def convolution(
    graph: Graph, like: Any, source: str, target: str, weights: Array, bias: Array | None, **given: Any
) -> Any:
    """A node with the attributes of ``like``, but for those ``given``, and other weights."""
    from onnx import helper

    names = [source, graph.constant(weights.astype(np.float32), target)]
    if bias is not None:
        names.append(graph.constant(bias.astype(np.float32), target))
    return helper.make_node("Conv", names, [target], **{**attributes(like), **given})


def fold_affine(graph: Graph) -> None:
    """What only scales and shifts the channels of a convolution goes into its weights."""
    for node in list(graph.nodes):
        if not is_convolution(graph, node):
            continue
        (weights, bias), last, found = weights_of(graph, node), node, []
        while (then := graph.only_user(last.output[0])) is not None:
            affine = _affine(graph, then, last.output[0], len(weights))
            if affine is None:
                break
            scale, shift = affine
            weights, bias, last = weights * scale[:, None, None, None], bias * scale + shift, then
            found.append(then)
        if found:
            new = convolution(graph, node, node.input[0], last.output[0], weights, bias)
            graph.replace(node, [])
            for passed in found[:-1]:
                graph.replace(passed, [])
            graph.replace(last, [new])


def _affine(graph: Graph, node: Any, source: str, channels: int) -> tuple[Array, Array] | None:
    """Scale and shift (C,) that a node applies to ``source``, float64; None when it does something else."""
    one, zero = np.ones(channels), np.zeros(channels)
    if node.op_type == "BatchNormalization" and len(node.output) == 1 and node.input[0] == source:
        values = [graph.constants.get(name) for name in node.input[1:]]
        if any(value is None for value in values) or attributes(node).get("training_mode", 0):
            return None
        gain, shift, mean, variance = (np.asarray(value, np.float64) for value in values)
        scale = gain / np.sqrt(variance + attributes(node).get("epsilon", 1e-5))
        return scale, shift - mean * scale
    if node.op_type not in ("Mul", "Add") or len(node.input) != 2:
        return None
    value = graph.constants.get(node.input[1] if node.input[0] == source else node.input[0])
    if value is None or value.shape not in ((1, channels, 1, 1), (channels, 1, 1)):
        return None
    flat = np.asarray(value, np.float64).reshape(-1)
    return (flat, zero) if node.op_type == "Mul" else (one, flat)
