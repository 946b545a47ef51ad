"""Devices, seeds and onnxruntime sessions that never change silently."""

from __future__ import annotations

import hashlib
import logging
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray

from facelock.errors import ConfigError, DeviceError, ModelError, StorageError

log = logging.getLogger(__name__)
T = TypeVar("T")
R = TypeVar("R")

CPU_BATCH = 1
"""Rows of a batch on a CPU: one picture's maps stay in a core's cache, and no row is ever padded."""
BUSY_BATCH = 3
"""The same for networks of thousands of tiny operators, whose cost is in calling them."""


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
        log.info("no CUDA device: running on the CPU")
        return torch.device("cpu")
    if name == "cpu":
        return torch.device("cpu")
    kind, _, index = name.partition(":")
    if kind != "cuda" or (index and not index.isdigit()):
        raise ConfigError(f"there is no device called {name!r}. Use auto, cpu, cuda or cuda:N.")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if int(index or 0) >= count:
        raise DeviceError(
            f"device {name} was asked for, but {count} CUDA devices are here. Use --device cpu."
        )
    return torch.device("cuda", int(index or 0))


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
    """Open an ONNX file on exactly ``device``.

    ``threads`` defaults to torch's; ``content`` is a changed copy of the file to open in its place. Raises
    ``ModelError`` when the file is missing or damaged and ``DeviceError`` when the first active provider is not the
    one asked for (onnxruntime would fall back to the CPU silently).
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
    try:
        session = onnxruntime.InferenceSession(
            content or str(path), options, providers=[(provider, settings)]
        )
    except Exception as error:  # onnxruntime raises a dozen unrelated types
        if device.type == "cuda" and "cuda" in str(error).lower():
            raise DeviceError(
                f"onnxruntime cannot use {device} ({_first_line(error)}). Install onnxruntime-gpu."
            ) from error
        raise ModelError(
            f"{path}: not a readable ONNX model ({_first_line(error)}). Fetch it again."
        ) from error
    active = session.get_providers()[0]
    if active != provider:
        raise DeviceError(
            f"{provider} was asked for, but onnxruntime runs {path.name} on {active}. Install onnxruntime-gpu."
        )
    return session


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160].rstrip(". ")


def fixed(dimension: object) -> int | None:
    """A dimension of an ONNX input when the file fixes it."""
    return dimension if isinstance(dimension, int) and dimension > 0 else None


_here = threading.local()


@lru_cache(maxsize=4)
def _lanes(count: int) -> ThreadPoolExecutor:
    """The one pool of ``count`` threads that everything which runs side by side shares."""
    return ThreadPoolExecutor(count, "facelock-lane", _enter_lane, (count,))


def _enter_lane(count: int) -> None:
    """In a lane torch takes one thread for itself: as many lanes as cores are busy already.

    Torch keeps the number per thread once it was asked for it, but setting it also decides what new threads start
    with, so a passing thread sets that back.
    """
    _here.lane = True
    torch.get_num_threads()
    torch.set_num_threads(1)
    passing = threading.Thread(target=torch.set_num_threads, args=(count,))
    passing.start()
    passing.join()


def side_by_side(work: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """``work`` of every item, in order, on as many threads as torch has; without gradients.

    Within such work it is one after the other. Raises what the first item that fails raises.
    """
    waiting, count = list(items), torch.get_num_threads()
    if count < 2 or len(waiting) < 2 or getattr(_here, "lane", False):
        return [_without_gradients(work, item) for item in waiting]
    return list(_lanes(count).map(lambda item: _without_gradients(work, item), waiting))


def _without_gradients(work: Callable[[T], R], item: T) -> R:
    with torch.no_grad():
        return work(item)


def scratch(*shape: int) -> NDArray[np.float32]:
    """This thread's own array of that shape, holding anything, until the thread asks for the next.

    Fresh megabytes for each picture would cost as much in page faults as filling them.
    """
    held = getattr(_here, "scratch", None)
    if held is None or held.shape != shape:
        held = _here.scratch = np.empty(shape, np.float32)
    return held


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
    ) -> None:
        """Open the file; ``batch`` rows at once, ``on_cpu`` at most on a CPU, or as many as the file fixes.

        ``content`` is a changed copy of the file to open in its place. Raises ``ModelError``, ``DeviceError``.
        """
        self._device = torch.device(device)
        cpu = self._device.type == "cpu"
        self.session = open_session(path, device, threads=1 if cpu else None, content=content)
        self.inputs: dict[str, list[int | str | None]] = {i.name: i.shape for i in self.session.get_inputs()}
        """Name → shape, open dimensions by their names."""
        self.outputs: dict[str, list[int | str | None]] = {
            o.name: o.shape for o in self.session.get_outputs()
        }
        own = [rows for shape in self.inputs.values() if shape and (rows := fixed(shape[0]))]
        self.batch: int = own[0] if own else min(batch, on_cpu if cpu else batch)

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


def require_space(path: str | Path, size: int) -> None:
    """Raise ``StorageError`` unless the disk of ``path`` (an existing folder) has ``size`` bytes free."""
    free = shutil.disk_usage(path).free
    if free < size:
        mib = 2**20
        raise StorageError(
            f"{path}: about {size / mib:.0f} MiB are needed, {free / mib:.0f} MiB are free. "
            "Make room, or choose another -o."
        )
