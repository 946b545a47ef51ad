"""inswapper-format files: read as insightface reads them, batched, and refused when they are something else."""

from __future__ import annotations

import cv2
import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch.nn.functional import normalize

from facelock.alignment import aligner_class
from facelock.alignment.inswapper import InSwapper
from facelock.errors import ConfigError, ModelError
from facelock.geometry import INSWAPPER128, similarity_from_landmarks, warp_crops

SIZE = 16


def swapper(path, *, side=128, emap=True, batch="n", inputs=("target", "source")):
    """out = target · 0.5 + tanh(source · W) laid over the picture: sensitive to every number of the embedding."""
    draw = np.random.default_rng(3)
    weight = draw.normal(size=(SIZE, 3)).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", [inputs[1], "w"], ["colour"]),
        helper.make_node("Tanh", ["colour"], ["flat"]),
        helper.make_node("Reshape", ["flat", "shape"], ["tint"]),
        helper.make_node("Mul", [inputs[0], "half"], ["dark"]),
        helper.make_node("Mul", ["tint", "half"], ["soft"]),
        helper.make_node("Add", ["dark", "soft"], ["output"]),
    ]
    weights = [
        numpy_helper.from_array(weight, "w"),
        numpy_helper.from_array(np.array([-1, 3, 1, 1]), "shape"),
        numpy_helper.from_array(np.array(0.5, np.float32), "half"),
    ]
    if emap:
        weights.append(numpy_helper.from_array(draw.normal(size=(SIZE, SIZE)).astype(np.float32), "emap"))
    graph = helper.make_graph(
        nodes,
        "swap",
        [
            helper.make_tensor_value_info(inputs[0], TensorProto.FLOAT, [batch, 3, side, side]),
            helper.make_tensor_value_info(inputs[1], TensorProto.FLOAT, [batch, SIZE]),
        ],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, [batch, 3, side, side])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 9
    onnx.save(model, path)
    return path


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return swapper(tmp_path_factory.mktemp("m") / "inswapper_toy.onnx")


def rows(count):
    draw = torch.Generator().manual_seed(4)
    crops = torch.rand(count, 3, 128, 128, generator=draw)
    return crops, normalize(torch.randn(count, SIZE, generator=draw), dim=1)


def test_same_pixels_as_insightface(path):
    from insightface.model_zoo import get_model

    theirs = get_model(str(path), providers=["CPUExecutionProvider"])
    assert type(theirs).__name__ == "INSwapper"
    picture = (np.random.default_rng(1).random((160, 160, 3)) * 255).astype(np.uint8)
    picture = cv2.GaussianBlur(picture, (0, 0), 3)
    points = torch.tensor([[60.0, 66], [98, 64], [80, 86], [64, 106], [96, 105]])
    identity = rows(1)[1]

    class Face:
        kps = points.numpy()
        normed_embedding = identity[0].numpy()

    bgr, _ = theirs.get(picture, Face, Face, paste_back=False)
    rgb = torch.from_numpy(picture[..., ::-1].copy()).permute(2, 0, 1)[None].float() / 255
    matrices = similarity_from_landmarks(points[None], INSWAPPER128)
    crops = warp_crops(rgb, torch.zeros(1, dtype=torch.long), matrices, 128)
    ours = InSwapper(path, encoder="e").align(crops, identity)
    assert np.abs(ours[0].permute(1, 2, 0).numpy()[..., ::-1] * 255 - bgr).mean() < 1.5


def test_rows_do_not_depend_on_their_neighbours(path):
    aligner = InSwapper(path, encoder="e", batch=4)
    crops, identity = rows(6)
    whole = aligner.align(crops, identity, 1.0)
    assert whole.shape == crops.shape and float(whole.min()) >= 0 and float(whole.max()) <= 1
    assert torch.equal(aligner.align(crops.flip(0), identity.flip(0), 1.0), whole.flip(0))
    assert torch.equal(aligner.align(crops[4:5], identity[4:5], 1.0)[0], whole[4])
    assert not torch.equal(aligner.align(crops, identity.flip(0), 1.0), whole)
    assert aligner.align(crops[:0], identity[:0], 1.0).shape == (0, 3, 128, 128)
    assert aligner.encoder == "e"


def test_a_file_made_for_one_face_at_a_time_works(tmp_path, path):
    single = InSwapper(swapper(tmp_path / "one.onnx", batch=1), encoder="e", batch=16)
    assert single._session.batch == 1
    crops, identity = rows(3)
    assert torch.allclose(
        single.align(crops, identity), InSwapper(path, encoder="e").align(crops, identity), atol=1e-6
    )


def test_files_of_another_kind_are_refused(tmp_path):
    junk = tmp_path / "junk.onnx"
    junk.write_bytes(b"junk")
    for file, reason in [
        (tmp_path / "none.onnx", "no such model file"),
        (junk, "not a readable ONNX"),
        (swapper(tmp_path / "side.onnx", side=112), "not an inswapper-format"),
        (swapper(tmp_path / "emap.onnx", emap=False), "no square embedding map"),
    ]:
        with pytest.raises(ModelError, match=reason) as caught:
            InSwapper(file, encoder="e")
        assert file.name in str(caught.value)


def test_aligners_by_name():
    assert aligner_class("inswapper") is InSwapper
    with pytest.raises(ConfigError, match="inswapper"):
        aligner_class("none")
