"""Upscalers and face restorers in ONNX."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from test_inswapper import rows, swapper

from facelock.errors import ConfigError, ModelError
from facelock.restoration import restorer_class, upscaler_class
from facelock.restoration.onnx_restorer import OnnxRestorer
from facelock.restoration.onnx_upscaler import OnnxUpscaler


def enlarger(path, scale, batch="n", gain=1.5, computed=False):
    """Nearest neighbour, brighter than white; how much larger is written in it, or ``computed`` from the picture."""
    weights = [
        numpy_helper.from_array(np.array([1, 1, scale, scale], np.float32), "scales"),
        numpy_helper.from_array(np.array(gain, np.float32), "gain"),
    ]
    nodes = [
        helper.make_node("Resize", ["input", "", "scales"], ["large"], mode="nearest"),
        helper.make_node("Mul", ["large", "gain"], ["output"]),
    ]
    if computed:
        weights.append(numpy_helper.from_array(np.array(0, np.float32), "none"))
        nodes[0].input[2] = "sum"
        nodes[:0] = [
            helper.make_node("ReduceMax", ["input"], ["brightest"], keepdims=0),
            helper.make_node("Mul", ["brightest", "none"], ["zero"]),
            helper.make_node("Add", ["scales", "zero"], ["sum"]),
        ]
    graph = helper.make_graph(
        nodes,
        "sr",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [batch, 3, "h", "w"])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, None)],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 9
    onnx.save(model, path)
    return path


def test_frames_are_enlarged_each_by_itself(tmp_path):
    net = OnnxUpscaler(enlarger(tmp_path / "x4.onnx", 4), scale=4, batch=2)
    frames = torch.rand(5, 3, 15, 22)
    large = net.upscale(frames)
    assert large.shape == (5, 3, 60, 88) and float(large.max()) == 1.0 and large.dtype == torch.float32
    assert torch.equal(net.upscale(frames[3:4])[0], large[3])
    assert torch.equal(net.upscale(frames.flip(0)), large.flip(0))


def test_a_fixed_batch_is_kept(tmp_path):
    net = OnnxUpscaler(enlarger(tmp_path / "x2.onnx", 2, batch=1), scale=2, batch=8)
    assert net._session.batch == 1 and net.upscale(torch.rand(3, 3, 8, 8)).shape == (3, 3, 16, 16)


def test_what_is_no_upscaler_is_refused(tmp_path):
    with pytest.raises(ModelError, match="not 4×"):
        OnnxUpscaler(enlarger(tmp_path / "x2.onnx", 2), scale=4).upscale(torch.rand(1, 3, 8, 8))
    with pytest.raises(ModelError, match="not an upscaler"):
        OnnxUpscaler(swapper(tmp_path / "s.onnx"), scale=4)
    with pytest.raises(ModelError, match="no such model file"):
        OnnxUpscaler(tmp_path / "none.onnx")


def test_faces_are_restored_each_by_itself(tmp_path):
    net = OnnxRestorer(swapper(tmp_path / "r.onnx"), encoder="e", batch=4)
    crops, identity = rows(6)
    whole = net.restore(crops, identity)
    assert whole.shape == crops.shape and float(whole.min()) >= 0 and float(whole.max()) <= 1
    assert torch.equal(net.restore(crops[5:], identity[5:])[0], whole[5])
    assert not torch.equal(net.restore(crops, identity.flip(0)), whole)
    assert net.restore(crops[:0], identity[:0]).shape == (0, 3, 128, 128)


def test_what_is_no_restorer_is_refused(tmp_path):
    for file in (
        enlarger(tmp_path / "x4.onnx", 4),
        swapper(tmp_path / "side.onnx", side=64),
        swapper(tmp_path / "names.onnx", inputs=("picture", "who")),
    ):
        with pytest.raises(ModelError, match="not a restorer"):
            OnnxRestorer(file, encoder="e")


def test_names():
    assert upscaler_class("onnx_upscaler") is OnnxUpscaler
    assert restorer_class("onnx_restorer") is OnnxRestorer
    for find in (upscaler_class, restorer_class):
        with pytest.raises(ConfigError, match="onnx_"):
            find("magic")
