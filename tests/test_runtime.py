"""Seeds, devices and sessions: deterministic, named, and never silently something else."""

from __future__ import annotations

import logging
import threading
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from facelock.errors import ConfigError, DeviceError, ModelError, StorageError
from facelock.lanes import side_by_side
from facelock.runtime import (
    BatchSession,
    derive_seed,
    open_session,
    require_space,
    resolve_device,
)


def test_seeds_are_fixed_distinct_and_small_enough():
    assert derive_seed(0, 3, "blueprint") == derive_seed(0, 3, "blueprint")
    seeds = {
        derive_seed(s, *p)
        for s in (0, 1, 10**12)
        for p in ((), (0,), ("0",), (1, "a"), ("a", 1), (11, "a"), (1, "1a"))
    }
    assert len(seeds) == 21
    assert all(0 <= seed < 2**63 for seed in seeds)
    torch.Generator().manual_seed(max(seeds))


def test_devices(caplog, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with caplog.at_level(logging.INFO):
        assert resolve_device("auto") == torch.device("cpu")
    assert caplog.text.count("running on the CPU") == 1
    assert resolve_device("cpu") == torch.device("cpu")
    for name in ("cuda", "cuda:1"):
        with pytest.raises(DeviceError, match="--device cpu"):
            resolve_device(name)
    for name in ("gpu", "", "cuda:x", "cpu:0x"):
        with pytest.raises(ConfigError, match="no device called"):
            resolve_device(name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device("auto") == resolve_device("cuda") == torch.device("cuda", 0)
    assert resolve_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(DeviceError, match="2 CUDA devices"):
        resolve_device("cuda:2")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """y = x · W, of a size at which kernels differ with the batch."""
    weight = np.random.default_rng(0).normal(size=(64, 33)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 33])],
        [numpy_helper.from_array(weight, "w")],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    made.ir_version = 9
    path = tmp_path_factory.mktemp("m") / "m.onnx"
    onnx.save(made, path)
    return path


@pytest.mark.parametrize("threads", [1, 3])
def test_rows_depend_on_nothing_but_themselves(model, threads):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        check_rows(model)
    finally:
        torch.set_num_threads(before)


def check_rows(model):
    session = BatchSession(model, on_cpu=2)
    x = np.random.default_rng(1).normal(size=(11, 64)).astype(np.float32)
    (whole,) = session.run({"x": x})
    assert whole.shape == (11, 33)
    assert np.allclose(whole[7], BatchSession(model, batch=1).run({"x": x[7:8]})[0], atol=1e-4)
    for count in (1, 2, 3, 5):
        assert np.array_equal(session.run({"x": x[3 : 3 + count]})[0], whole[3 : 3 + count])
    assert np.array_equal(session.run({"x": x[::-1]})[0], whole[::-1])
    assert session.run({"x": x[:0]})[0].shape == (0, 33)


def test_every_batch_has_one_shape(model):
    session, fed = BatchSession(model, on_cpu=2), []
    session.session = SimpleNamespace(run=lambda _, x: fed.append(x["x"].shape) or [x["x"][:, :33]])
    for count in (0, 1, 2, 5, 11):
        rows = np.arange(count * 64, dtype=np.float32).reshape(count, 64)
        assert np.array_equal(session.run({"x": rows})[0], rows[:, :33])
    assert set(fed) == {(session.batch, 64)} and len(fed) == 1 + 1 + 1 + 3 + 6


def test_a_session_is_on_the_device_that_was_asked_for(model):
    session = open_session(model, "cpu", threads=1)
    assert session.get_providers()[0] == "CPUExecutionProvider"
    if not torch.cuda.is_available():
        with pytest.raises(DeviceError, match="onnxruntime-gpu"):
            open_session(model, "cuda:0")


def test_damaged_models_are_refused(tmp_path, model):
    with pytest.raises(ModelError, match="no such model file"):
        open_session(tmp_path / "none.onnx")
    for content in (b"", b"junk" * 100, model.read_bytes()[:-900]):
        (tmp_path / "bad.onnx").write_bytes(content)
        with pytest.raises(ModelError, match=r"bad\.onnx: not a readable ONNX model") as caught:
            open_session(tmp_path / "bad.onnx")
        assert "\n" not in str(caught.value)


def test_space_is_asked_for_in_advance(tmp_path):
    require_space(tmp_path, 1)
    with pytest.raises(StorageError, match="MiB are needed"):
        require_space(tmp_path, 2**60)


@pytest.fixture
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def test_lanes_keep_order_nest_and_raise(three_threads):
    def work(k):
        inner = side_by_side(lambda j: (k, j, threading.get_ident()), range(3))
        return inner, threading.get_ident(), torch.get_num_threads(), torch.is_grad_enabled()

    done = side_by_side(work, range(40))
    assert [[part[:2] for part in inner] for inner, *_ in done] == [
        [(k, j) for j in range(3)] for k in range(40)
    ]
    for inner, thread, threads, gradients in done:
        assert thread != threading.get_ident() and threads == 1 and not gradients
        assert {part[2] for part in inner} == {thread}
    assert torch.get_num_threads() == 3 and torch.is_grad_enabled()
    started = []
    new = threading.Thread(target=lambda: started.append(torch.get_num_threads()))
    new.start()
    new.join()
    assert started == [3]  # a lane's own number is nobody else's
    with pytest.raises(ZeroDivisionError):
        side_by_side(lambda k: 1 // (k - 5), range(9))
    assert side_by_side(work, []) == []


def test_one_thread_needs_no_lanes():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert set(side_by_side(lambda _: threading.get_ident(), range(5))) == {threading.get_ident()}
    finally:
        torch.set_num_threads(before)
