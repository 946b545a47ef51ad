"""Devices, seeds and onnxruntime sessions that never change silently."""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnxruntime
import torch

from facelock.errors import ConfigError, DeviceError, ModelError, StorageError

log = logging.getLogger(__name__)


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
    path: str | Path, device: torch.device | str = "cpu", threads: int | None = None
) -> onnxruntime.InferenceSession:
    """Open an ONNX file on exactly ``device``.

    ``threads`` defaults to torch's. Raises ``ModelError`` when the file is missing or damaged and ``DeviceError``
    when the first active provider is not the one asked for (onnxruntime would fall back to the CPU silently).
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
        session = onnxruntime.InferenceSession(str(path), options, providers=[(provider, settings)])
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


def run_padded(
    session: onnxruntime.InferenceSession, inputs: Mapping[str, np.ndarray], batch: int
) -> list[np.ndarray]:
    """Run rows of ``inputs`` (each (N, ...)) in batches of exactly ``batch``, the last one padded with zeros.

    One shape always means one kernel choice, so a row's bits do not depend on its neighbours or on N. Returns the
    outputs with N rows each; N = 0 gives arrays of zero rows.
    """
    count = len(next(iter(inputs.values())))
    parts: list[list[np.ndarray]] = []
    for begin in range(0, max(count, 1), batch):
        rows = min(batch, count - begin)
        fed = {k: _padded(v[begin : begin + rows], batch) for k, v in inputs.items()}
        parts.append([out[:rows] for out in session.run(None, fed)])
    return [np.concatenate(column) for column in zip(*parts, strict=True)]


def _padded(rows: np.ndarray, batch: int) -> np.ndarray:
    if len(rows) == batch:
        return np.ascontiguousarray(rows)
    full = np.zeros((batch, *rows.shape[1:]), rows.dtype)
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
