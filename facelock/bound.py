"""onnxruntime on torch's tensors where they lie: inputs and outputs bound by address, on a stream of torch's.

::

    stream = torch_stream(device)                       # before the session, which is told of it
    bound = BoundSession(session, device, stream)
    (out,) = bound({"target": crops, "source": latent})  # CUDA in, CUDA out, nothing through the host

Left to itself onnxruntime copies through the host, works on a stream of its own, which torch does not wait for
(onnxruntime#26609), and its arena doubles whenever it is full (onnxruntime#14526). All of this runs with the CPU
provider too, but for the stream: that is how it is tested.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor

from facelock.errors import DeviceError, ModelError, first_line

LARGEST_ARENA = 8 * 2**30
"""Bytes of GPU memory that one session may take."""
SHARE = 4
"""One part in so many of the card's memory is what a session may take, where that is less."""
TYPES: dict[str, torch.dtype] = {
    "tensor(float)": torch.float32,
    "tensor(float16)": torch.float16,
    "tensor(double)": torch.float64,
    "tensor(int64)": torch.int64,
    "tensor(int32)": torch.int32,
    "tensor(uint8)": torch.uint8,
    "tensor(bool)": torch.bool,
}
"""onnxruntime's names of types → torch's."""
NUMPY = {
    torch.float32: np.float32,
    torch.float16: np.float16,
    torch.float64: np.float64,
    torch.int64: np.int64,
    torch.int32: np.int32,
    torch.uint8: np.uint8,
    torch.bool: np.bool_,
}


def torch_stream(device: torch.device) -> Any:
    """A stream of torch's for one session; None on a CPU. Not torch's default one, whose address is 0: that means to
    onnxruntime that it was given none. Raises ``DeviceError`` where torch has no CUDA."""
    if device.type != "cuda":
        return None
    if not torch.cuda.is_available():
        raise DeviceError(f"torch cannot use {device}. Install torch for CUDA, or use --device cpu.")
    return torch.cuda.Stream(device)


def cuda_options(device: torch.device, stream: Any = None) -> dict[str, str]:
    """Options of the CUDA provider for a session on ``device``, in ``stream`` if there is one."""
    options = {"device_id": str(device.index or 0), "arena_extend_strategy": "kSameAsRequested"}
    if stream is not None:
        memory = int(torch.cuda.get_device_properties(device).total_memory)
        options["gpu_mem_limit"] = str(min(LARGEST_ARENA, memory // SHARE))
        options["user_compute_stream"] = str(stream.cuda_stream)
    return options


def _type(out: Any) -> torch.dtype:
    if out.type not in TYPES:
        raise ModelError(
            f"An ONNX output {out.name!r} is a {out.type}, not a tensor of numbers. Give another file."
        )
    return TYPES[out.type]


class BoundSession:
    """A session that takes and gives torch tensors on one device."""

    def __init__(self, session: Any, device: torch.device, stream: Any = None) -> None:
        """``session`` was opened on ``device`` with ``stream`` (:func:`cuda_options`); it never falls back.

        Raises ``ModelError`` for a file whose outputs are no tensors of numbers.
        """
        self.session, self.device, self.stream = session, device, stream
        session.disable_fallback()
        self._outputs = [(out.name, _type(out)) for out in session.get_outputs()]
        self._learned: dict[tuple[Any, ...], list[Sequence[int]]] = {}
        self._options = onnxruntime.RunOptions()
        if stream is not None:  # torch orders what follows; nobody has to wait here
            self._options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        self._lock = threading.Lock()

    def __call__(self, inputs: Mapping[str, Tensor]) -> list[Tensor]:
        """Run once: tensors by input name, on the device in the file's own types → new tensors, in the file's order.

        Raises ``torch.OutOfMemoryError`` when the arena is full, ``DeviceError`` for any other failure of the device.
        """
        given = {name: tensor.contiguous() for name, tensor in inputs.items()}
        with self._lock:
            made = [
                torch.empty(tuple(shape), dtype=dtype, device=self.device)
                for shape, (_, dtype) in zip(self._shapes(given), self._outputs, strict=True)
            ]
            with self._ordered():
                self._run(self._bind(given, made))
        return made

    def _shapes(self, given: Mapping[str, Tensor]) -> list[Sequence[int]]:
        """Of the outputs; where the file leaves them open, one run tells, once for inputs of these shapes."""
        key = tuple((name, *tensor.shape) for name, tensor in given.items())
        if key not in self._learned:
            with self._ordered():
                binding = self._bind(given, None)
                self._run(binding)
                self._learned[key] = [list(out.shape()) for out in binding.get_outputs()]
        return self._learned[key]

    def _bind(self, given: Mapping[str, Tensor], made: Sequence[Tensor] | None) -> Any:
        """Inputs by address, outputs by address too or, without ``made``, wherever onnxruntime puts them."""
        binding, kind, index = self.session.io_binding(), self.device.type, self.device.index or 0
        for name, tensor in given.items():
            binding.bind_input(name, kind, index, NUMPY[tensor.dtype], tuple(tensor.shape), tensor.data_ptr())
        for place, (name, dtype) in enumerate(self._outputs):
            if made is None:
                binding.bind_output(name, kind, index)
            else:
                out = made[place]
                binding.bind_output(name, kind, index, NUMPY[dtype], tuple(out.shape), out.data_ptr())
        return binding

    def _run(self, binding: Any) -> None:
        try:
            self.session.run_with_iobinding(binding, self._options)
        except Exception as error:  # onnxruntime raises a dozen unrelated types
            if "allocate" in str(error):
                raise torch.OutOfMemoryError(first_line(error, 160)) from error
            raise DeviceError(
                f"onnxruntime failed on {self.device} ({first_line(error, 160)}). Check the device."
            ) from error

    @contextmanager
    def _ordered(self) -> Iterator[None]:
        """What torch has begun comes before, and what it begins next comes after."""
        if self.stream is None:
            yield
            return
        current = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(current)
        try:
            yield
        finally:
            current.wait_stream(self.stream)
