"""Truth about devices: what was asked for is what computes, all of it, or one sentence says that it is not so."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

from facelock import runtime
from facelock.alignment.warp import WarpAligner
from facelock.assembly import Assembly
from facelock.bench import insight, paste, real, warp
from facelock.errors import ConfigError, DeviceError
from facelock.precision import resolve_dtype
from facelock.recipe import load_recipe
from facelock.recipe.sections import FaceIDRecipe
from facelock.runtime import BatchSession, open_session, require_whole_graph, resolve_device

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """y = x + x."""
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", 4]) for n in "xy")
    graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "g", [x], [y])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    path = tmp_path_factory.mktemp("m") / "m.onnx"
    onnx.save(made, path)
    return path


def session_of(*parts: tuple[str, list[str]], first: str = CUDA) -> SimpleNamespace:
    """A session whose operators run where ``parts`` say: (provider, operators)."""
    record = [
        SimpleNamespace(ep_name=name, get_nodes=lambda ops=ops: [SimpleNamespace(op_type=op) for op in ops])
        for name, ops in parts
    ]
    return SimpleNamespace(get_providers=lambda: [first], get_provider_graph_assignment_info=lambda: record)


def test_a_graph_that_is_partly_on_the_cpu_is_an_error(model, monkeypatch):
    require_whole_graph(
        session_of((CUDA, ["Conv", "PRelu"]), (CPU, ["Shape", "Gather", "Concat"])), "m", CUDA
    )
    said = r"runs a part of m\.onnx \(Conv, Resize\) on the CPU, not on CUDAExecutionProvider"
    with pytest.raises(DeviceError, match=said) as caught:
        require_whole_graph(session_of((CUDA, ["Add"]), (CPU, ["Shape", "Resize", "Conv"])), "m.onnx", CUDA)
    assert caught.value.exit_code == 3
    halved = session_of((CUDA, ["Add"]), (CPU, ["Conv"]))
    monkeypatch.setattr(runtime.onnxruntime, "InferenceSession", lambda *_, **__: halved)
    with pytest.raises(DeviceError, match=r"runs a part of m\.onnx \(Conv\) on the CPU"):
        open_session(model, "cuda:0")


def test_onnxruntime_s_own_record_is_read(model):
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry(*runtime._whole_graph_option())
    session = onnxruntime.InferenceSession(str(model), options, providers=[CPU])
    require_whole_graph(session, "m.onnx", CPU)
    with pytest.raises(DeviceError, match=r"runs a part") as caught:
        runtime.BOOKKEEPING, kept = frozenset(), runtime.BOOKKEEPING
        try:
            require_whole_graph(session, "m.onnx", CUDA)
        finally:
            runtime.BOOKKEEPING = kept
    assert "(Add)" in str(caught.value)


def test_an_older_onnxruntime_may_leave_nothing_to_the_cpu(monkeypatch):
    class Older:
        pass

    assert runtime._whole_graph_option()[0] == "session.record_ep_graph_assignment_info"
    monkeypatch.setattr(runtime.onnxruntime, "InferenceSession", Older)
    assert runtime._whole_graph_option() == ("session.disable_cpu_ep_fallback", "1")
    require_whole_graph(Older(), "m.onnx", CUDA)


def test_a_provider_that_is_silently_the_cpu_is_an_error(model, monkeypatch):
    silent = session_of((CPU, ["Add"]), first=CPU)
    monkeypatch.setattr(runtime.onnxruntime, "InferenceSession", lambda *_, **__: silent)
    with pytest.raises(DeviceError, match=r"CUDAExecutionProvider was asked for, .* 'facelock doctor' says"):
        open_session(model, "cuda:0")


def test_a_session_never_changes_its_device_while_it_runs(model, monkeypatch):
    """onnxruntime's Python session starts again on the CPU when the GPU fails, unless it is told not to."""
    session = BatchSession(model).session
    assert session._enable_fallback is False
    asked = {}
    real_one = onnxruntime.InferenceSession
    monkeypatch.setattr(
        runtime.onnxruntime, "InferenceSession", lambda *a, **k: asked.update(k) or real_one(*a, **k)
    )
    open_session(model)
    assert asked["enable_fallback"] == 0


def test_float16_is_refused_on_a_cpu_before_anything_is_read(monkeypatch):
    assert resolve_dtype("bfloat16", "cpu") is torch.bfloat16
    assert resolve_dtype("float16", "cuda:0") is torch.float16
    with pytest.raises(ConfigError, match="float16 takes hours on a CPU"):
        resolve_dtype("float16", "cpu")
    with pytest.raises(ConfigError, match="No precision is called 'half'"):
        resolve_dtype("half", "cpu")
    recipe = load_recipe("miniature")
    half = recipe.model_copy(
        update={"blueprint": recipe.blueprint.model_copy(update={"precision": "float16"})}
    )
    portrait = FaceIDRecipe(adapter="miniature/aligner", precision="float16")
    lock = recipe.model_copy(update={"lock": recipe.lock.model_copy(update={"faceid": portrait})})
    monkeypatch.setattr("facelock.assembly.locate", lambda name, **_: pytest.fail(f"{name} was looked for"))
    for wrong in (half, lock):
        with pytest.raises(ConfigError, match="float16 takes hours on a CPU"):
            Assembly(wrong, "cpu")


@pytest.mark.parametrize(
    ("part", "key"),
    [
        ("blueprint", "kind"),
        ("lock", "kind"),
        ("restore", "upscaler_kind"),
        ("restore", "restorer_kind"),
    ],
)
def test_an_unknown_kind_is_refused_before_anything_is_read(monkeypatch, part, key):
    recipe = load_recipe("miniature")
    wrong = recipe.model_copy(update={part: getattr(recipe, part).model_copy(update={key: "nosuch"})})
    monkeypatch.setattr("facelock.assembly.locate", lambda name, **_: pytest.fail(f"{name} was looked for"))
    with pytest.raises(ConfigError, match=r"'nosuch'\. Give one of"):
        Assembly(wrong, "cpu")


@pytest.mark.parametrize(
    ("driver", "cuda", "said"),
    [
        (False, None, "no CUDA device: running on the CPU"),
        (True, None, r"an NVIDIA GPU is here, but torch .* is built for the CPU alone: running on the CPU"),
        (True, "13.0", "cannot use it: running on the CPU. 'facelock doctor' says what is wrong"),
    ],
)
def test_auto_says_why_it_is_the_cpu(monkeypatch, caplog, tmp_path, driver, cuda, said):
    import re

    (tmp_path / "version").write_text("NVRM")
    monkeypatch.setattr(runtime, "NVIDIA_DRIVER", tmp_path / ("version" if driver else "none"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    with caplog.at_level(logging.INFO):
        assert resolve_device("auto") == torch.device("cpu")
    assert re.search(said, caplog.text) and len(caplog.records) == 1


def test_an_aligner_without_gpu_code_says_so(caplog):
    reader = SimpleNamespace()
    with caplog.at_level(logging.INFO):
        WarpAligner(encoder="any", reader=reader, device="cpu")
        assert caplog.text == ""
        WarpAligner(encoder="any", reader=reader, device="cuda:0")
    assert "the aligner warp runs on the CPU" in caplog.text


@pytest.mark.parametrize("bench", [paste, real, warp])
def test_benchmarks_of_cpu_code_take_no_other_device(bench):
    with pytest.raises(ConfigError, match="runs on the CPU alone, not on cuda"):
        bench.run(device="cuda")


def test_the_arm_of_insightface_is_on_the_device_of_ours():
    insight.require_provider(session_of(first=CUDA), CUDA)
    with pytest.raises(DeviceError, match="insightface runs on CPUExecutionProvider, not on CUDA"):
        insight.require_provider(session_of(first=CPU), CUDA)
    if CUDA not in onnxruntime.get_available_providers():
        with pytest.raises(DeviceError, match="insightface runs on CPU"):
            insight.swapper_and_pack("cuda:0")


EVERYTHING = """
import importlib, pkgutil, sys

sys.modules["torchvision"] = None  # what import and find_spec take for a package that is not there
import facelock
names = [m.name for m in pkgutil.walk_packages(facelock.__path__, "facelock.") if not m.name.endswith("__main__")]
for name in names:
    importlib.import_module(name)
from facelock.portrait.checkpoint import _pipeline_class
for large in (True, False):
    _pipeline_class(large, inpaint=large)
print(len(names), sys.modules["torchvision"] is not None)
"""


def test_nothing_needs_torchvision():
    done = subprocess.run([sys.executable, "-c", EVERYTHING], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    count, imported = done.stdout.split()
    assert int(count) > 120 and imported == "False"
    assert "torchvision" not in done.stderr  # nor does anybody ask for it
