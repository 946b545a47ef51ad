"""A face pack in insightface's format with random networks: small, fast, and full of overlapping boxes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

STRIDES = (8, 16, 32)
ANCHORS = 2


def _tensor(name: str, values: np.ndarray) -> onnx.TensorProto:
    return numpy_helper.from_array(values, name)


def _save(path: Path, nodes: list, inputs: list, outputs: list, weights: list) -> Path:
    graph = helper.make_graph(nodes, path.stem, inputs, outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def detector(path: Path, *, flat: bool = False, bias: float = -1.0, seed: int = 0) -> Path:
    """An SCRFD file: means of cells through random 1 × 1 convolutions. ``flat``: outputs without a batch."""
    g = np.random.default_rng(seed)
    nodes, weights, outputs = [], [], {}
    batch = 1 if flat else "n"
    for stride in STRIDES:
        nodes.append(
            helper.make_node(
                "AveragePool", ["input.1"], [f"mean{stride}"], kernel_shape=[stride] * 2, strides=[stride] * 2
            )
        )
        for kind, width, spread, shift in (("score", 1, 6, bias), ("bbox", 4, 0.5, 2.0), ("kps", 10, 1, 0.3)):
            name, channels = f"{kind}_{stride}", width * ANCHORS
            weights += [
                _tensor(f"w_{name}", g.normal(0, spread, (channels, 3, 1, 1)).astype(np.float32)),
                _tensor(f"b_{name}", (g.normal(0, 0.3, channels) + shift).astype(np.float32)),
                _tensor(f"s_{name}", np.array([-1, width] if flat else [0, -1, width], np.int64)),
            ]
            raw = f"raw_{name}"
            nodes.append(helper.make_node("Conv", [f"mean{stride}", f"w_{name}", f"b_{name}"], [raw]))
            if kind == "score":
                nodes.append(helper.make_node("Sigmoid", [raw], [f"sig_{name}"]))
                raw = f"sig_{name}"
            nodes.append(helper.make_node("Transpose", [raw], [f"t_{name}"], perm=[0, 2, 3, 1]))
            nodes.append(helper.make_node("Reshape", [f"t_{name}", f"s_{name}"], [name]))
            shape = [f"c{stride}", width] if flat else [batch, f"c{stride}", width]
            outputs[kind, stride] = helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
    ordered = [outputs[kind, stride] for kind in ("score", "bbox", "kps") for stride in STRIDES]
    entry = helper.make_tensor_value_info("input.1", TensorProto.FLOAT, [batch, 3, "h", "w"])
    return _save(path, nodes, [entry], ordered, weights)


def recogniser(path: Path, *, size: int = 112, width: int = 64, seed: int = 0) -> Path:
    """An ArcFace file: a random projection of a 14 × 14 picture."""
    g = np.random.default_rng(seed)
    cells = 3 * (size // 8) ** 2
    nodes = [
        helper.make_node("AveragePool", ["input.1"], ["small"], kernel_shape=[8, 8], strides=[8, 8]),
        helper.make_node("Flatten", ["small"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["embedding"]),
    ]
    entry = helper.make_tensor_value_info("input.1", TensorProto.FLOAT, ["n", 3, size, size])
    leave = helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["n", width])
    weights = [_tensor("w", g.normal(0, 1, (cells, width)).astype(np.float32))]
    return _save(path, nodes, [entry], [leave], weights)


def folder(path: Path, **options: object) -> Path:
    """A whole pack."""
    path.mkdir(exist_ok=True)
    detector(path / "detector.onnx", **options)  # type: ignore[arg-type]
    recogniser(path / "recogniser.onnx")
    return path
