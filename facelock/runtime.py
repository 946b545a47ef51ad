"""Devices, seeds and onnxruntime sessions that never change silently."""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import redirect_stdout
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import onnxruntime
import torch

from facelock.errors import ConfigError, DeviceError, ModelError, StorageError

log = logging.getLogger(__name__)
T = TypeVar("T")
U = TypeVar("U")

CPU_BATCH = 2
"""Rows of a batch on a CPU, at most."""
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""Name, as recipes give it → type."""
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


def resolve_dtype(precision: str, device: torch.device | str) -> torch.dtype:
    """``float32``, ``bfloat16`` or ``float16`` → torch's type, if ``device`` can work in it.

    Raises ``ConfigError`` for another name, and for float16 on a CPU, where a step takes minutes.
    """
    if precision not in PRECISIONS:
        raise ConfigError(f"No precision is called {precision!r}. Give one of: {', '.join(PRECISIONS)}.")
    if precision == "float16" and torch.device(device).type == "cpu":
        raise ConfigError("float16 takes hours on a CPU. Give float32 or bfloat16 as the recipe's precision.")
    return PRECISIONS[precision]


def _provider(device: torch.device) -> tuple[str, dict[str, str]]:
    if device.type == "cuda":
        return "CUDAExecutionProvider", {"device_id": str(device.index or 0)}
    return "CPUExecutionProvider", {}


def open_session(
    path: str | Path,
    device: torch.device | str = "cpu",
    threads: int | None = None,
    content: bytes | None = None,
) -> onnxruntime.InferenceSession:
    """Open an ONNX file on exactly ``device``, the whole graph of it.

    ``threads`` defaults to torch's; ``content`` is a changed copy of the file to open in its place. Raises
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
    provider, settings = _provider(device)
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
                f"onnxruntime cannot use {device} ({_first_line(error)}). Install onnxruntime-gpu; {DOCTOR}."
            ) from error
        if "fallback to CPU EP has been explicitly disabled" in str(error):
            raise DeviceError(
                f"onnxruntime would run {path.name} on the CPU. Install onnxruntime-gpu; {DOCTOR}."
            ) from error
        raise ModelError(
            f"{path}: not a readable ONNX model ({_first_line(error)}). Fetch it again."
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


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160].rstrip(". ")


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
        content: bytes | None = None,
    ) -> None:
        """Open the file; ``batch`` rows at once, fewer on a CPU, or as many as the file fixes.

        ``content`` is a changed copy of the file to open in its place. Raises ``ModelError``, ``DeviceError``.
        """
        self._device = torch.device(device)
        on_cpu = self._device.type == "cpu"
        self.session = open_session(path, device, threads=1 if on_cpu else None, content=content)
        self.inputs: dict[str, list[int | str | None]] = {i.name: i.shape for i in self.session.get_inputs()}
        """Name → shape, open dimensions by their names."""
        self.outputs: dict[str, list[int | str | None]] = {
            o.name: o.shape for o in self.session.get_outputs()
        }
        own = [rows for shape in self.inputs.values() if shape and (rows := fixed(shape[0]))]
        self.batch: int = own[0] if own else min(batch, CPU_BATCH if on_cpu else batch)
        self._lanes = ThreadPoolExecutor(torch.get_num_threads() if on_cpu else 1, "facelock-onnx")

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

        parts = self._lanes.map(part, range(0, max(count, 1), self.batch))
        return [np.concatenate(column) for column in zip(*parts, strict=True)]

    def _once(self, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """One batch. On a GPU inputs and outputs are bound, so that each crosses the bus once."""
        if self._device.type == "cpu":
            return self.session.run(None, inputs)
        index, binding = self._device.index or 0, self.session.io_binding()
        for name, rows in inputs.items():
            binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(rows, "cuda", index))
        for name in self.outputs:
            binding.bind_output(name, "cuda", index)
        self.session.run_with_iobinding(binding)
        return binding.copy_outputs_to_cpu()


def _padded(rows: np.ndarray, batch: int) -> np.ndarray:
    if len(rows) == batch:
        return np.ascontiguousarray(rows)
    full = np.zeros((batch, *rows.shape[1:]), rows.dtype)
    full[: len(rows)] = rows
    return full


def ahead(items: Iterator[T]) -> Iterator[T]:
    """The same items, each being made while the one before it is used. What making raises is raised here."""
    end = object()
    with ThreadPoolExecutor(1, "facelock-ahead") as worker:
        waiting: Future[Any] = worker.submit(next, items, end)
        while (item := waiting.result()) is not end:
            waiting = worker.submit(next, items, end)
            yield item


def kept_behind(items: Iterable[T], keep: Callable[[T], U]) -> Generator[U, None, None]:
    """``keep`` of each item, done while the next item is made; at most one is in the works.

    The last item made is kept even if making the next one fails; what ``keep`` raises is raised here.
    """
    with ThreadPoolExecutor(1, "facelock-behind") as worker:
        waiting: Future[U] | None = None
        try:
            for item in items:
                before, waiting = waiting, None
                if before:
                    yield before.result()
                waiting = worker.submit(keep, item)
        except Exception:
            if waiting:
                waiting.result()
            raise
        if waiting:
            yield waiting.result()


def require_space(path: str | Path, size: int) -> None:
    """Raise ``StorageError`` unless the disk of ``path`` (an existing folder) has ``size`` bytes free."""
    free = shutil.disk_usage(path).free
    if free < size:
        mib = 2**20
        raise StorageError(
            f"{path}: about {size / mib:.0f} MiB are needed, {free / mib:.0f} MiB are free. "
            "Make room, or choose another -o."
        )
