"""A pretended accelerator: tensors that compute on the CPU but say that they lie elsewhere, and refuse to be mixed.

::

    with FakeDevice() as device:
        there = frames.to(device.name)          # says device "meta"; holds real values
        locked, _ = locker.lock(there, people)
        assert not device.copies                # what came back to the CPU: shape and type of each copy

What CUDA refuses is refused here too: tensors of both kinds in one operation (but for numbers, and indices on the CPU),
and numpy's view of a tensor that lies there. What CUDA allows gives the values that the CPU gives, so that a whole
pipeline can be compared with its run on the CPU, bit for bit. In other threads no new tensors can be made there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from facelock.runtime import BatchSession

aten = torch.ops.aten
INDEXED = (aten.index.Tensor, aten.index_put_.default, aten.index_put.default, aten._index_put_impl_.default)
NAME = "meta"


class There(Tensor):
    """A tensor that lies there."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> There:
        made = Tensor._make_wrapper_subclass(
            cls, held.shape, strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype,
            device=NAME,
        )  # fmt: skip
        made.held = held
        return made

    def __repr__(self, **_: Any) -> str:
        return f"There({tuple(self.shape)}, {self.dtype})"

    def tolist(self) -> Any:
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {}, None)


@dataclass(frozen=True)
class Copy:
    """What came back to the CPU."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def pixels(self) -> int:
        """Of one picture, planes first or last; of rows of numbers, all of them."""
        last = sorted(self.shape[-3:])
        return math.prod(last[-2:])


@dataclass
class Record:
    copies: list[Copy] = field(default_factory=list)


class FakeDevice(TorchDispatchMode):
    """Within it tensors go to the device ``name`` and come from there, in this thread."""

    name = NAME

    def __init__(self) -> None:
        super().__init__()
        self.record = Record()

    @property
    def copies(self) -> list[Copy]:
        """What came back so far, single numbers left out."""
        return [copy for copy in self.record.copies if math.prod(copy.shape) > 1]

    def forget(self) -> None:
        """Begin to count anew."""
        self.record.copies.clear()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {}, self.record)


def held(value: Any) -> Any:
    """The tensor itself, of one that lies there."""
    return value.held if isinstance(value, There) else value


def run(func: Any, args: Any, kwargs: dict[str, Any], record: Record | None) -> Any:
    """Do what ``func`` does, on the CPU; the result lies where the arguments lie, or where they ask for."""
    flat, _ = tree_flatten((args, kwargs))
    tensors = [each for each in flat if isinstance(each, Tensor)]
    there = any(isinstance(each, There) for each in tensors)
    asked = kwargs.get("device")
    target = None if asked is None else torch.device(asked).type
    if func is aten._to_copy.default:
        return _copied(args[0], kwargs, target, record)
    if func is aten.copy_.default:
        if isinstance(args[1], There) and not isinstance(args[0], There) and record is not None:
            record.copies.append(Copy(tuple(args[1].shape), args[1].dtype))
        func(held(args[0]), held(args[1]), *args[2:])
        return args[0]
    if not there and target != NAME:
        return func(*args, **kwargs)
    if there:
        _refuse_mixture(func, args, tensors)
    if target is not None:
        kwargs = {**kwargs, "device": "cpu"}
    made = func(*tree_map(held, args), **tree_map(held, kwargs))
    if func._schema.is_mutable and tensors and made is held(args[0]):
        return args[0]
    return tree_map(lambda each: There(each) if isinstance(each, Tensor) else each, made)


def _copied(tensor: Tensor, kwargs: dict[str, Any], target: str | None, record: Record | None) -> Tensor:
    """``.to``: another type, another place, or both."""
    goes = isinstance(tensor, There) if target is None else target == NAME
    if isinstance(tensor, There) and not goes and record is not None:
        record.copies.append(Copy(tuple(tensor.shape), kwargs.get("dtype") or tensor.dtype))
    made = aten._to_copy.default(held(tensor), **{**kwargs, "device": "cpu"})
    return There(made) if goes else made


def _refuse_mixture(func: Any, args: Any, tensors: list[Tensor]) -> None:
    if func in INDEXED:
        if not isinstance(args[0], There):
            raise RuntimeError(f"{func}: a tensor on the CPU, indexed by or given one that is not")
        tensors = [each for each in args[2:] if isinstance(each, Tensor)]
    for each in tensors:
        if not isinstance(each, There) and each.dim():
            raise RuntimeError(f"{func}: a tensor {tuple(each.shape)} on the CPU beside one that is not")


def sessions_there(monkeypatch: Any) -> None:
    """Let onnxruntime's sessions take tensors that lie there and answer there, as bound ones do on a GPU."""
    plainly = BatchSession.run_tensors

    def run_tensors(self: BatchSession, inputs: dict[str, Tensor]) -> list[Tensor]:
        if not any(isinstance(each, There) for each in inputs.values()):
            return plainly(self, inputs)
        return [There(out) for out in plainly(self, {name: held(each) for name, each in inputs.items()})]

    monkeypatch.setattr(BatchSession, "run_tensors", run_tensors)
