"""Networks rewritten for onnxruntime's CPU kernels: the same numbers, by fewer and cheaper operators."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from facelock.errors import ModelError
from facelock.faces.graph import rewritten

DRAW = np.random.default_rng(0)
CHANNELS = 24


def floats(*shape: int, scale: float = 0.3) -> np.ndarray:
    return DRAW.normal(0, scale, shape).astype(np.float32)


def saved(path, nodes, tensors, outputs, opset=17):
    entry = helper.make_tensor_value_info("in", TensorProto.FLOAT, ["n", 3, 32, 32])
    leave = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    kept = [numpy_helper.from_array(np.asarray(v), name) for name, v in tensors.items()]
    graph = helper.make_graph(nodes, "g", [entry], leave, kept)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8), path)
    return path


def conv(source, weights, target, **given):
    return helper.make_node("Conv", [source, *weights], [target], **given)


def run(model, count=2):
    x = np.random.default_rng(3).normal(size=(count, 3, 32, 32)).astype(np.float32)
    return onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"]).run(None, {"in": x})


def same(path, content) -> Counter[str]:
    for before, after in zip(run(str(path)), run(content), strict=True):
        assert before.shape == after.shape and np.ptp(before) > 0
        assert np.abs(before - after).max() < 2e-6 * np.abs(before).max()
    return Counter(node.op_type for node in onnx.load_from_string(content).graph.node)


def mobile(path, slopes, *, leave=False):
    """Convolution, norm, PReLU, depthwise convolution, scale, shift, PReLU, convolution: MobileFaceNet's bricks."""
    c = CHANNELS
    nodes = [
        helper.make_node("Cast", ["w1h"], ["w1"], to=TensorProto.FLOAT),
        conv("in", ["w1"], "a", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["a", "g", "b", "m", "v"], ["an"]),
        helper.make_node("PRelu", ["an", "s1"], ["ap"]),
        conv("ap", ["w2", "b2"], "d", kernel_shape=[3, 3], pads=[1, 1, 1, 1], group=c, strides=[2, 2]),
        helper.make_node("Mul", ["d", "k"], ["dk"]),
        helper.make_node("Add", ["k", "dk"], ["dn"]),
        helper.make_node("PRelu", ["dn", "s2"], ["dp"]),
        conv("dp", ["w3"], "out", kernel_shape=[1, 1]),
    ]
    tensors = {
        "w1h": floats(c, 3, 3, 3).astype(np.float16), "g": floats(c) + 1, "b": floats(c), "m": floats(c),
        "v": np.abs(floats(c)) + 0.5, "s1": slopes, "w2": floats(c, 1, 3, 3), "b2": floats(c),
        "k": floats(1, c, 1, 1) + 1, "s2": slopes[::-1].copy(), "w3": floats(8, c, 1, 1),
    }  # fmt: skip
    return saved(path, nodes, tensors, ["out", "ap"] if leave else ["out"])


@pytest.mark.parametrize("steep", [False, True])
def test_prelu_becomes_convolutions(tmp_path, steep):
    slopes = DRAW.uniform(-0.5, 1.0, (CHANNELS, 1, 1)).astype(np.float32)
    slopes[::3] += 1.5 * steep
    path = mobile(tmp_path / "m.onnx", slopes)
    kinds = same(path, rewritten(path))
    assert kinds == {
        "Conv": 6,
        "Relu": 2,
        "Add": 2,
    }  # no scale, shift or norm is left; the depthwise one is doubled


def test_steep_slopes_whose_values_are_handed_out_keep_their_sign(tmp_path):
    slopes = DRAW.uniform(0.5, 2.0, (CHANNELS, 1, 1)).astype(np.float32)
    path = mobile(tmp_path / "m.onnx", slopes, leave=True)
    assert "PRelu" not in same(path, rewritten(path))


def test_one_slope_for_all_stays(tmp_path):
    nodes = [conv("in", ["w"], "a", kernel_shape=[1, 1]), helper.make_node("PRelu", ["a", "s"], ["out"])]
    tensors = {"w": floats(CHANNELS, 3, 1, 1), "s": np.full((1, 1, 1), 0.3, np.float32)}
    path = saved(tmp_path / "m.onnx", nodes, tensors, ["out"])
    assert same(path, rewritten(path))["PRelu"] == 1


@pytest.mark.parametrize("opset", [11, 17])
@pytest.mark.parametrize("behind", [False, True])
def test_heads_become_one(tmp_path, opset, behind):
    counts, nodes, tensors = (1, 1, 4, 10), [], {}
    for k, count in enumerate(counts):
        tensors |= {f"w{k}": floats(count, 3, 3, 3), f"b{k}": floats(count), f"d{k}": floats(count, 1, 3, 3)}
        window = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
        nodes.append(conv("in", [f"w{k}", f"b{k}"], f"h{k}" if behind else f"o{k}", **window))
        if behind:
            nodes.append(conv(f"h{k}", [f"d{k}"], f"o{k}", group=count, **window))
    nodes.insert(2, helper.make_node("Sigmoid", ["o0"], ["sure"]))
    nodes.sort(key=lambda node: node.op_type == "Sigmoid")
    path = saved(tmp_path / "m.onnx", nodes, tensors, ["sure", "o1", "o2", "o3"], opset)
    assert same(path, rewritten(path)) == {"Conv": 1 + behind, "Split": 1, "Sigmoid": 1}


def test_full_blocks_stay_apart(tmp_path):
    tensors = {f"w{k}": floats(16, 3, 1, 1) for k in range(2)}
    nodes = [conv("in", [f"w{k}"], f"o{k}", kernel_shape=[1, 1]) for k in range(2)]
    path = saved(tmp_path / "m.onnx", nodes, tensors, ["o0", "o1"])
    assert same(path, rewritten(path)) == {"Conv": 2}


def test_what_is_no_network_is_refused(tmp_path):
    (tmp_path / "m.onnx").write_bytes(b"junk" * 99)
    with pytest.raises(ModelError, match=r"m\.onnx: not a readable ONNX model"):
        rewritten(tmp_path / "m.onnx")
