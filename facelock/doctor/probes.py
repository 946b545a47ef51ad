"""What is tried in a process of its own, since it may crash or hang: ``python -m facelock.doctor.probes NAME``.

Prints one line of JSON. Nothing here is believed to work because it is listed: every provider opens a small network
with a convolution and computes with it.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:300]


def light() -> dict[str, Any]:
    """OpenCV, and onnxruntime with every provider that we would use."""
    found: dict[str, Any] = {"ok": True}
    for name, look in (("opencv", _opencv), ("onnxruntime", _onnxruntime)):
        try:
            found[name] = look()
        except Exception as error:
            found[name] = {"ok": False, "reason": _first_line(error)}
    return found


def _opencv() -> dict[str, Any]:
    import cv2

    return {"ok": hasattr(cv2, "warpAffine"), "reason": "its files are incomplete: cv2 has no warpAffine"}


def _onnxruntime() -> dict[str, Any]:
    import onnxruntime

    listed = list(onnxruntime.get_available_providers())
    wanted = [CPU, *([CUDA] if CUDA in listed else [])]
    return {
        "ok": True,
        "cuda": str(getattr(onnxruntime, "cuda_version", "") or ""),
        "listed": listed,
        "providers": [try_provider(name) for name in wanted],
    }


def try_provider(name: str) -> dict[str, Any]:
    """Compute a small convolution on the provider ``name``, as FaceLock would."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "probe.onnx")
            path.write_bytes(small_network())
            _compute(path, name)
    except Exception as error:
        return {"name": name, "ok": False, "reason": _first_line(error)}
    return {"name": name, "ok": True}


def _compute(path: Path, provider: str) -> None:
    """Raise unless the network gives the right numbers on ``provider`` and nowhere else."""
    import numpy as np

    if provider == CPU:
        import onnxruntime

        session = onnxruntime.InferenceSession(str(path), providers=[CPU], enable_fallback=0)
    else:
        from facelock.runtime import open_session

        session = open_session(path, "cuda:0")
    active = session.get_providers()[0]
    if active != provider:
        raise RuntimeError(f"it runs on {active}")
    (out,) = session.run(None, {"x": np.ones((1, 3, 8, 8), np.float32)})
    if out.shape != (1, 4, 6, 6) or not np.allclose(out, 27.0):
        raise RuntimeError("it computes wrong numbers")


def small_network() -> bytes:
    """(1, 3, 8, 8) → (1, 4, 6, 6): one 3 × 3 convolution with all weights one, so that cuDNN is asked too."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"])],
        "probe",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4, 6, 6])],
        [numpy_helper.from_array(np.ones((4, 3, 3, 3), np.float32), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return model.SerializeToString()


def torch() -> dict[str, Any]:
    """Whether torch computes on each GPU it sees, and what these are."""
    import torch as library

    devices: list[dict[str, Any]] = []
    for index in range(library.cuda.device_count() if library.cuda.is_available() else 0):
        ones = library.ones(64, 64, device=f"cuda:{index}")
        if float((ones @ ones).sum().cpu()) != 64.0**3:
            return {"ok": False, "reason": f"cuda:{index} computes wrong numbers"}
        free, memory = library.cuda.mem_get_info(index)
        major, minor = library.cuda.get_device_capability(index)
        name = library.cuda.get_device_name(index)
        devices.append({"name": name, "memory": memory, "free": free, "capability": f"{major}.{minor}"})
    return {"ok": True, "devices": devices}


def torchvision() -> dict[str, Any]:
    """Whether torchvision fits the torch beside it; it says so on import."""
    import torchvision.ops  # noqa: F401 - importing is the question

    return {"ok": True}


PROBES: dict[str, Callable[[], dict[str, Any]]] = {"light": light, "torch": torch, "torchvision": torchvision}


def main(name: str) -> None:
    """Print what the probe ``name`` found."""
    try:
        found = PROBES[name]()
    except Exception as error:
        found = {"ok": False, "reason": _first_line(error)}
    sys.stdout.write(f"\n{json.dumps(found)}\n")


if __name__ == "__main__":
    main(sys.argv[1])
