"""Devices, seeds and onnxruntime sessions that never change silently."""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch

from facelock.batchable import Run, agrees, any_rows
from facelock.bound import BoundSession, cuda_options, torch_stream
from facelock.errors import ConfigError, DeviceError, ModelError, StorageError, first_line
from facelock.lanes import side_by_side

log = logging.getLogger(__name__)

CPU_BATCH = 1
"""Rows of a batch on a CPU: one picture's maps stay in a core's cache, and no row is ever padded."""
BUSY_BATCH = 3
"""The same for networks of thousands of tiny operators, whose cost is in calling them."""
# fmt: off
BOOKKEEPING = frozenset({
    "Add", "And", "Cast", "Ceil", "Concat", "Constant", "ConstantOfShape", "Div", "Equal", "Expand",
    "Floor", "Gather", "GatherElements", "Greater", "GreaterOrEqual", "Identity", "If", "Less",
    "LessOrEqual", "Loop", "Max", "MemcpyFromHost", "MemcpyToHost", "Min", "Mod", "Mul", "Neg",
    "NonZero", "Not", "Or", "Range", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceSum", "Reshape",
    "Round", "Scan", "ScatterND", "Shape", "Size", "Slice", "Split", "Squeeze", "Sub", "Tile",
    "Transpose", "Unsqueeze", "Where",
})
# fmt: on
"""Operators that onnxruntime keeps on the CPU for good reason: they compute shapes and indices, not pictures."""
DOCTOR = "'facelock doctor' says what is wrong and how to mend it"
NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")


def derive_seed(seed: int, *purpose: int | str) -> int:
    """A 63-bit seed for one purpose: the first bytes of the sha256 of (seed, purpose)."""
    text = "\x1f".join([str(int(seed)), *(f"{type(p).__name__}:{p}" for p in purpose)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def resolve_device(name: str = "auto") -> torch.device:
    """``auto``, ``cpu``, ``cuda`` or ``cuda:N`` → a device that is there.

    ``auto`` takes the first CUDA device and says once when there is none. Raises ``DeviceError`` when a named GPU
    is absent, ``ConfigError`` for any other name.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", 0)
        _say_why_cpu()
        return torch.device("cpu")
    if name == "cpu":
        return torch.device("cpu")
    kind, _, index = name.partition(":")
    if kind != "cuda" or (index and not index.isdigit()):
        raise ConfigError(f"there is no device called {name!r}. Use auto, cpu, cuda or cuda:N.")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if int(index or 0) >= count:
        raise DeviceError(
            f"device {name} was asked for, but {count} CUDA devices are here. "
            "Use --device cpu, or see 'facelock doctor'."
        )
    return torch.device("cuda", int(index or 0))


def _say_why_cpu() -> None:
    """Say that it is the CPU; where a GPU is here that this torch cannot use, say that too."""
    if NVIDIA_DRIVER.exists():
        build = "is built for the CPU alone" if torch.version.cuda is None else "cannot use it"
        log.warning(
            "an NVIDIA GPU is here, but torch %s %s: running on the CPU. %s", torch.__version__, build, DOCTOR
        )
    else:
        log.info("no CUDA device: running on the CPU")


def _provider(device: torch.device, stream: Any = None) -> tuple[str, dict[str, str]]:
    if device.type == "cuda":
        return "CUDAExecutionProvider", cuda_options(device, stream)
    return "CPUExecutionProvider", {}


def open_session(
    path: str | Path,
    device: torch.device | str = "cpu",
    threads: int | None = None,
    content: bytes | None = None,
    stream: Any = None,
) -> onnxruntime.InferenceSession:
    """Open an ONNX file on exactly ``device``, the whole graph of it.

    ``threads`` defaults to torch's; ``content`` is a changed copy of the file to open in its place; ``stream`` is
    torch's, in which a GPU is to work (:func:`facelock.bound.torch_stream`). Raises
    ``ModelError`` when the file is missing or damaged and ``DeviceError`` when the first active provider is not the
    one asked for, or computes only a part of the graph (onnxruntime would fall back to the CPU silently).
    """
    path, device = Path(path), torch.device(device)
    if not path.is_file():
        raise ModelError(
            f"{path}: no such model file. Reinstall FaceLock, or name another file in the recipe."
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    provider, settings = _provider(device, stream)
    if device.type == "cuda":
        _load_cuda_libraries()
        options.add_session_config_entry(*_whole_graph_option())
    try:
        session = onnxruntime.InferenceSession(
            content or str(path), options, providers=[(provider, settings)], enable_fallback=0
        )
    except Exception as error:  # onnxruntime raises a dozen unrelated types
        if device.type == "cuda" and "cuda" in str(error).lower():
            raise DeviceError(
                f"onnxruntime cannot use {device} ({first_line(error, 160)}). Install onnxruntime-gpu; {DOCTOR}."
            ) from error
        if "fallback to CPU EP has been explicitly disabled" in str(error):
            raise DeviceError(
                f"onnxruntime would run {path.name} on the CPU. Install onnxruntime-gpu; {DOCTOR}."
            ) from error
        raise ModelError(
            f"{path}: not a readable ONNX model ({first_line(error, 160)}). Fetch it again."
        ) from error
    active = session.get_providers()[0]
    if active != provider:
        raise DeviceError(
            f"{provider} was asked for, but onnxruntime runs {path.name} on {active}. "
            f"Install onnxruntime-gpu; {DOCTOR}."
        )
    if device.type == "cuda":
        require_whole_graph(session, path.name, provider)
    return session


def _whole_graph_option() -> tuple[str, str]:
    """The session option by which it is seen where each operator runs: onnxruntime's own record of it, or, where an
    older one keeps none, its refusal to leave anything at all to the CPU."""
    if hasattr(onnxruntime.InferenceSession, "get_provider_graph_assignment_info"):
        return "session.record_ep_graph_assignment_info", "1"
    return "session.disable_cpu_ep_fallback", "1"


def require_whole_graph(session: Any, name: str, provider: str) -> None:
    """Raise ``DeviceError`` when operators of ``session`` that compute anything are left to another provider.

    ``session`` was opened with the option above; ``name`` is the file's, for the message.
    """
    record = getattr(session, "get_provider_graph_assignment_info", None)
    if record is None:
        return
    left = {
        node.op_type
        for part in record()
        if part.ep_name != provider
        for node in part.get_nodes()
        if node.op_type not in BOOKKEEPING
    }
    if left:
        raise DeviceError(
            f"onnxruntime runs a part of {name} ({', '.join(sorted(left)[:4])}) on the CPU, not on {provider}. "
            "Install a newer onnxruntime-gpu, or use --device cpu."
        )


@cache
def _load_cuda_libraries() -> None:
    """Once: let onnxruntime find CUDA and cuDNN where pip puts them, when torch's own build has not loaded them."""
    preload = getattr(onnxruntime, "preload_dlls", None)
    if preload is None:
        return
    said = StringIO()
    with redirect_stdout(said):  # it prints what it does not find; whether CUDA works is seen by using it
        preload()
    if said.getvalue():
        log.debug("%s", said.getvalue().strip())


def fixed(dimension: object) -> int | None:
    """A dimension of an ONNX input when the file fixes it."""
    return dimension if isinstance(dimension, int) and dimension > 0 else None


class BatchSession:
    """An ONNX file whose rows run in batches of one fixed, padded shape, so that no row's bits depend on another's.

    On a CPU, small batches run side by side, one thread each: they stay in a core's cache, and no operator waits for
    threads. A row's bits then do not depend on the number of threads either.
    """

    def __init__(
        self,
        path: str | Path,
        device: torch.device | str = "cpu",
        *,
        batch: int = 16,
        on_cpu: int = CPU_BATCH,
        content: bytes | None = None,
        widen: bool = False,
    ) -> None:
        """Open the file; ``batch`` rows at once, ``on_cpu`` at most on a CPU, or as many as the file fixes.

        ``content`` is a changed copy of the file to open in its place. With ``widen`` a file that is fixed at one row
        takes ``batch`` of them on a GPU all the same, if that gives the same numbers (:mod:`facelock.batchable`); on
        a CPU one row is as fast. Raises ``ModelError``, ``DeviceError``.
        """
        self._device = torch.device(device)
        cpu = self._device.type == "cpu"
        stream = torch_stream(self._device)
        self.session = open_session(path, device, threads=1 if cpu else None, content=content, stream=stream)
        self._bound = None if cpu else BoundSession(self.session, self._device, stream)
        self.inputs: dict[str, list[int | str | None]] = {i.name: i.shape for i in self.session.get_inputs()}
        """Name → shape, open dimensions by their names."""
        self.outputs: dict[str, list[int | str | None]] = {
            o.name: o.shape for o in self.session.get_outputs()
        }
        own = [rows for shape in self.inputs.values() if shape and (rows := fixed(shape[0]))]
        self.batch: int = own[0] if own else min(batch, on_cpu if cpu else batch)
        if widen and not cpu and self.batch == 1 < batch:
            self._widen(Path(path), batch, content, stream)

    def _widen(self, path: Path, batch: int, content: bytes | None, stream: Any) -> None:
        """Take ``batch`` rows at once where the file fixes one, if the numbers stay the same."""
        content = any_rows(path, content)
        session = open_session(path, self._device, content=content, stream=stream) if content else None
        if session is not None:
            wide = BoundSession(session, self._device, stream)
            if agrees(self._numpy(self._bound), self._numpy(wide), self.inputs, batch):
                self.session, self._bound, self.batch = session, wide, batch
                return
        log.warning("%s takes one row at a time and cannot be changed: its rows run one by one", path.name)

    def _numpy(self, bound: BoundSession | None) -> Run:
        """``bound`` for arrays on the host."""

        def run(inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
            if bound is None:
                return self.session.run(None, dict(inputs))
            given = {name: torch.from_numpy(rows).to(bound.device) for name, rows in inputs.items()}
            return [out.cpu().numpy() for out in bound(given)]

        return run

    def run_tensors(self, inputs: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
        """:meth:`run` for tensors (N, ...) on any device; on a GPU nothing goes through the host.

        The outputs lie on the session's device.
        """
        if self._bound is None:
            return [
                torch.from_numpy(out) for out in self.run({k: v.cpu().numpy() for k, v in inputs.items()})
            ]
        count, parts = len(next(iter(inputs.values()))), []
        for begin in range(0, max(count, 1), self.batch):
            rows = slice(begin, min(begin + self.batch, count))
            given = {k: _filled(v[rows].to(self._bound.device), self.batch) for k, v in inputs.items()}
            outputs, found = self._bound(given), rows.stop - begin
            parts.append([out[:found] for out in outputs] if found < self.batch else outputs)
        return [torch.cat(column) for column in zip(*parts, strict=True)]

    def run(self, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """The outputs for rows of ``inputs`` (each (N, ...)), joined along their first axis.

        N = 0 gives arrays of zero rows.
        """
        count = len(next(iter(inputs.values())))
        return self.run_made(count, lambda rows: {k: v[rows] for k, v in inputs.items()})

    def run_made(self, count: int, make: Callable[[slice], Mapping[str, np.ndarray]]) -> list[np.ndarray]:
        """The same for ``count`` rows whose inputs are made when their turn comes, in the lane that runs them.

        ``make`` gives the inputs of a slice of rows; it is called from several threads at once.
        """

        def part(begin: int) -> list[np.ndarray]:
            rows = min(self.batch, count - begin)
            made = make(slice(begin, begin + rows))
            outputs = self._once({k: _padded(v, self.batch) for k, v in made.items()})
            return [out[:rows] for out in outputs] if rows < self.batch else outputs

        begins = range(0, max(count, 1), self.batch)
        parts = side_by_side(part, begins) if self._device.type == "cpu" else [part(b) for b in begins]
        return [np.concatenate(column) for column in zip(*parts, strict=True)]

    def _once(self, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """One batch. On a GPU inputs and outputs are bound, so that each crosses the bus once."""
        if self._bound is None:
            return self.session.run(None, inputs)
        return list(self._numpy(self._bound)(inputs))


def _padded(rows: np.ndarray, batch: int) -> np.ndarray:
    if len(rows) == batch:
        return np.ascontiguousarray(rows)
    full = np.zeros((batch, *rows.shape[1:]), rows.dtype)
    full[: len(rows)] = rows
    return full


def _filled(rows: torch.Tensor, batch: int) -> torch.Tensor:
    """:func:`_padded` for tensors."""
    if len(rows) == batch:
        return rows
    full = rows.new_zeros(batch, *rows.shape[1:])
    full[: len(rows)] = rows
    return full


def require_space(path: str | Path, size: int) -> None:
    """Raise ``StorageError`` unless the disk of ``path`` (an existing folder) has ``size`` bytes free."""
    free = shutil.disk_usage(path).free
    if free < size:
        mib = 2**20
        raise StorageError(
            f"{path}: about {size / mib:.0f} MiB are needed, {free / mib:.0f} MiB are free. "
            "Make room, or choose another -o."
        )
