"""ONNX files on torch's tensors by address, and files fixed at one row: all but the CUDA provider itself."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from test_inswapper import rows as crops_and_faces
from test_inswapper import swapper

from facelock import bound as module
from facelock import runtime
from facelock.alignment.inswapper import InSwapper
from facelock.batchable import agrees, any_rows
from facelock.bound import BoundSession, cuda_options, torch_stream
from facelock.errors import DeviceError, ModelError
from facelock.runtime import BatchSession, open_session

CPU = torch.device("cpu")


def model(path, nodes, weights=(), *, rows=1, width=6, out=None, kind=TensorProto.FLOAT):
    """``x`` (rows, width) → ``y``, saved at ``path``."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", kind, [rows, width])],
        [helper.make_tensor_value_info("y", kind, out or [rows, width])],
        [numpy_helper.from_array(value, name) for name, value in weights],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(made, path)
    return path


def weight(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.fixture
def product(tmp_path):
    return model(
        tmp_path / "p.onnx", [helper.make_node("MatMul", ["x", "w"], ["y"])], [("w", weight((6, 5)))],
        rows="n", out=["n", 5],
    )  # fmt: skip


def on_cpu(path) -> BoundSession:
    return BoundSession(open_session(path, threads=1), CPU)


# ------------------------------------------------------------------ by address


def test_the_same_bits_as_a_plain_run(product):
    bound, x = on_cpu(product), torch.rand(4, 6, generator=torch.Generator().manual_seed(0))
    expected = open_session(product, threads=1).run(None, {"x": x.numpy()})[0]
    (found,) = bound({"x": x})
    assert found.dtype == torch.float32 and np.array_equal(found.numpy(), expected)
    turned = torch.empty(6, 4).T
    turned.copy_(x)
    assert not turned.is_contiguous() and torch.equal(bound({"x": turned})[0], found)
    kept = found.clone()
    bound({"x": x * 2})
    assert torch.equal(found, kept), "an output must not be overwritten by the next run"


def test_open_shapes_are_learned_once(product):
    bound, calls = on_cpu(product), []
    run = bound.session.run_with_iobinding
    bound.session.run_with_iobinding = lambda *given: calls.append(1) or run(*given)
    for count, runs in ((3, 2), (3, 3), (5, 5), (3, 6)):
        assert bound({"x": torch.ones(count, 6)})[0].shape == (count, 5)
        assert len(calls) == runs


def test_types_are_the_files_own(tmp_path):
    path = model(
        tmp_path / "i.onnx", [helper.make_node("Add", ["x", "x"], ["y"])], rows="n", kind=TensorProto.INT64
    )
    (out,) = on_cpu(path)({"x": torch.arange(12).view(2, 6)})
    assert out.dtype == torch.int64 and torch.equal(out, 2 * torch.arange(12).view(2, 6))


class Recorder:
    """A session that notes what is bound, and answers nothing."""

    def __init__(self, log):
        self.log = log

    def get_outputs(self):
        return [SimpleNamespace(name="y", shape=["n", 5], type="tensor(float)")]

    def disable_fallback(self):
        self.log.append("no fallback")

    def io_binding(self):
        def note(*given):
            self.log.append(given)

        return SimpleNamespace(
            bind_input=note, bind_output=note, get_outputs=lambda: [SimpleNamespace(shape=lambda: [2, 5])]
        )

    def run_with_iobinding(self, _, options):
        self.log.append(("run", options.get_run_config_entry("disable_synchronize_execution_providers")))


def test_inputs_and_outputs_are_bound_by_address_in_torchs_stream(monkeypatch):
    log: list = []
    stream = SimpleNamespace(wait_stream=lambda other: log.append(("stream waits for", other)))
    current = SimpleNamespace(wait_stream=lambda other: log.append(("torch waits", other is stream)))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: current)
    bound, x = BoundSession(Recorder(log), CPU, stream), torch.rand(2, 6)
    (out,) = bound({"x": x})
    assert log[0] == "no fallback"
    waits = [("stream waits for", current), ("torch waits", True)]
    learning = [("x", "cpu", 0, np.float32, (2, 6), x.data_ptr()), ("y", "cpu", 0), ("run", "1")]
    assert log[1:6] == [waits[0], *learning, waits[1]]
    working = [learning[0], ("y", "cpu", 0, np.float32, (2, 5), out.data_ptr()), ("run", "1")]
    assert log[6:] == [waits[0], *working, waits[1]]


def test_torch_waits_even_when_a_run_fails(monkeypatch):
    log: list = []
    stream = SimpleNamespace(wait_stream=lambda other: log.append("stream"))
    monkeypatch.setattr(
        torch.cuda, "current_stream", lambda _: SimpleNamespace(wait_stream=lambda __: log.append("torch"))
    )
    session = Recorder([])

    def fail(*_):
        raise RuntimeError("CUDNN failure 3: it broke\nand more")

    session.run_with_iobinding = fail
    with pytest.raises(DeviceError, match=r"onnxruntime failed on cpu .*it broke") as caught:
        BoundSession(session, CPU, stream)({"x": torch.rand(2, 6)})
    assert log == ["stream", "torch"] and "\n" not in str(caught.value)


def test_a_full_arena_is_out_of_memory():
    session = Recorder([])

    def full(*_):
        raise RuntimeError("BFCArena::AllocateRawInternal Failed to allocate memory for requested buffer")

    session.run_with_iobinding = full
    with pytest.raises(torch.OutOfMemoryError, match="allocate"):
        BoundSession(session, CPU)({"x": torch.rand(2, 6)})


def test_the_provider_is_told_stream_and_limits(monkeypatch):
    card = {"total_memory": 40 * 2**30}
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(**card))
    device, stream = torch.device("cuda", 1), SimpleNamespace(cuda_stream=0x7F00)
    assert cuda_options(device, stream) == {
        "device_id": "1",
        "user_compute_stream": "32512",
        "gpu_mem_limit": str(8 * 2**30),
        "arena_extend_strategy": "kSameAsRequested",
    }
    card["total_memory"] = 8 * 2**30
    assert cuda_options(device, stream)["gpu_mem_limit"] == str(2 * 2**30)
    assert cuda_options(device)["device_id"] == "1"
    assert torch_stream(CPU) is None
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DeviceError, match="torch cannot use cuda:1"):
        torch_stream(device)


def test_a_session_on_a_gpu_is_opened_with_its_stream(monkeypatch, product):
    """The whole constructor with everything of CUDA replaced: the stream that it is opened with is the one it uses."""
    stream, asked = SimpleNamespace(wait_stream=lambda _: None, cuda_stream=1), []
    monkeypatch.setattr(runtime, "torch_stream", lambda device: stream if device.type == "cuda" else None)

    def opened(path, device, **options):
        asked.append((torch.device(device), options["stream"]))
        return open_session(path, threads=1, content=options["content"])

    monkeypatch.setattr(runtime, "open_session", opened)
    session = BatchSession(product, "cuda:0", batch=16)
    assert asked == [(torch.device("cuda", 0), stream)]
    assert session.batch == 16 and session._bound.stream is stream
    assert session._bound.device == torch.device("cuda", 0)


# ------------------------------------------------------------------ batches through it


def as_on_a_gpu(path, batch=4) -> BatchSession:
    """A session that does all that it would do on a GPU, on the CPU."""
    session = BatchSession(path)
    session._bound, session.batch = BoundSession(session.session, CPU), batch
    return session


@pytest.mark.parametrize("count", [0, 1, 4, 7])
def test_batches_are_padded_and_joined(product, count):
    bound, plain = as_on_a_gpu(product), BatchSession(product)
    x = torch.rand(count, 6, generator=torch.Generator().manual_seed(1))
    (expected,) = plain.run({"x": x.numpy()})
    for found in (bound.run_tensors({"x": x})[0], torch.from_numpy(bound.run({"x": x.numpy()})[0])):
        assert found.shape == (count, 5) and np.allclose(found.numpy(), expected, atol=1e-6)
    assert np.array_equal(plain.run_tensors({"x": x})[0].numpy(), expected)


def test_rows_do_not_see_each_other_in_bound_batches(product):
    session, fed = as_on_a_gpu(product), []
    inner = session._bound
    session._bound = lambda given: fed.append(tuple(given["x"].shape)) or inner(given)
    session._bound.device = CPU
    x = torch.rand(6, 6, generator=torch.Generator().manual_seed(2))
    (whole,) = session.run_tensors({"x": x})
    assert torch.equal(session.run_tensors({"x": x[4:5]})[0][0], whole[4])
    assert set(fed) == {(4, 6)}


# ------------------------------------------------------------------ files fixed at one row


def folded(path, *, constant=False, second=None):
    """(1, 6) → (1, 2, 3) and back, by constant shapes that say 1."""
    there, back = np.array([1, 2, 3]), np.array([1, 6])
    nodes, weights = [], [("w", weight((3, 3)))]
    if constant:
        nodes.append(helper.make_node("Constant", [], ["there"], value=numpy_helper.from_array(there)))
    else:
        weights.append(("there", there))
    nodes += [
        helper.make_node("Reshape", ["x", "there"], ["cut"]),
        helper.make_node("MatMul", ["cut", "w"], ["turned"]),
        *(second or [helper.make_node("Identity", ["turned"], ["mixed"])]),
        helper.make_node("Reshape", ["mixed", "back"], ["y"]),
    ]
    return model(path, nodes, [*weights, ("back", back)])


def runner(path, content=None):
    session = open_session(path, threads=1, content=content)
    return lambda inputs: session.run(None, dict(inputs))


@pytest.mark.parametrize("constant", [False, True])
def test_a_file_fixed_at_one_row_takes_any(tmp_path, constant):
    path = folded(tmp_path / "one.onnx", constant=constant)
    content = any_rows(path)
    assert content and any_rows(path, content) is None
    single, several = runner(path), runner(path, content)
    assert agrees(single, several, {"x": [1, 6]}, 5)
    x = weight((5, 6), 3)
    expected = np.concatenate([single({"x": x[k : k + 1]})[0] for k in range(5)])
    assert np.allclose(several({"x": x})[0], expected, atol=1e-6)


def test_what_cannot_be_changed_is_left(tmp_path, product):
    assert any_rows(product) is None
    assert any_rows(model(tmp_path / "two.onnx", [helper.make_node("Relu", ["x"], ["y"])], rows=2)) is None
    path = model(tmp_path / "out.onnx", [helper.make_node("MatMul", ["x", "w"], ["y"])], [("w", weight((6, 5)))],
                 out=[1, 5])  # fmt: skip
    away = onnx.load(path)
    onnx.save(away, path, save_as_external_data=True, size_threshold=0)
    assert any_rows(path) is None


def test_a_graph_that_ties_rows_together_is_found_out(tmp_path):
    mixing = [
        helper.make_node("ReduceMean", ["turned"], ["mean"], axes=[0], keepdims=1),
        helper.make_node("Add", ["turned", "mean"], ["mixed"]),
    ]
    path = folded(tmp_path / "mix.onnx", second=mixing)
    assert not agrees(runner(path), runner(path, any_rows(path)), {"x": [1, 6]}, 5)
    path = model(
        tmp_path / "flat.onnx", [helper.make_node("Reshape", ["x", "all"], ["y"])], [("all", np.array([-1, 3]))],
        out=[2, 3],
    )  # fmt: skip
    assert any_rows(path) is None
    assert not agrees(runner(path), runner(path), {"x": [1, "w"]}, 5), "an open side cannot be tried"


def test_a_graph_that_fails_with_more_rows_is_found_out(tmp_path):
    path = model(
        tmp_path / "fail.onnx",
        [helper.make_node("Gemm", ["x", "w", "b"], ["y"])],
        [("w", weight((6, 6))), ("b", weight((1, 6)))],
    )
    assert agrees(runner(path), runner(path, any_rows(path)), {"x": [1, 6]}, 3)

    def fail(_):
        raise RuntimeError("shape mismatch")

    assert not agrees(runner(path), fail, {"x": [1, 6]}, 3)


def test_a_session_is_widened_where_the_numbers_stay(tmp_path, caplog):
    path = folded(tmp_path / "one.onnx")
    session = as_on_a_gpu(path, batch=1)
    x = torch.rand(6, 6, generator=torch.Generator().manual_seed(3))
    (before,) = session.run_tensors({"x": x})
    session._widen(path, 4, None, None)
    assert session.batch == 4 and torch.allclose(session.run_tensors({"x": x})[0], before, atol=1e-6)
    mixing = [
        helper.make_node("ReduceMean", ["turned"], ["mean"], axes=[0], keepdims=1),
        helper.make_node("Add", ["turned", "mean"], ["mixed"]),
    ]
    other = as_on_a_gpu(folded(tmp_path / "mix.onnx", second=mixing), batch=1)
    with caplog.at_level(logging.WARNING):
        other._widen(tmp_path / "mix.onnx", 4, None, None)
    assert other.batch == 1 and caplog.text.count("mix.onnx takes one row at a time") == 1


def test_inswapper_files_of_one_face_become_batches(tmp_path):
    """As on a GPU: the whole of the aligner, with the same faces as one by one."""
    path = swapper(tmp_path / "one.onnx", batch=1)
    aligner = InSwapper(path, encoder="e")
    crops, identity = crops_and_faces(5)
    before = aligner.align(crops, identity)
    session = aligner._session
    session._bound = BoundSession(session.session, CPU)
    session._widen(path, 4, None, None)
    assert session.batch == 4
    assert torch.allclose(aligner.align(crops, identity), before, atol=1e-6)
    order = torch.tensor([3, 1, 4, 0, 2])
    assert torch.equal(aligner.align(crops[order], identity[order]), aligner.align(crops, identity)[order])


def test_every_type_has_a_twin():
    session = Recorder([])
    session.get_outputs = lambda: [SimpleNamespace(name="y", shape=[1], type="seq(map(int64,tensor(float)))")]
    with pytest.raises(ModelError, match="not a tensor"):
        BoundSession(session, CPU)
    assert set(module.TYPES.values()) == set(module.NUMPY)
