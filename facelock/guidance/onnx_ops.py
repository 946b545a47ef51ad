"""What the operators of recognisers mean in torch: ONNX's definitions, as far as face recognisers use them.

Every function takes the node's inputs (None for one left out) and its attributes, and gives its first output.
Source: the ONNX operator specification (github.com/onnx/onnx, docs/Operators.md), opsets 9 to 20.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

Inputs = Sequence[Any]
"""Tensors; None where an optional input was left out."""
Attributes = Mapping[str, Any]
Operator = Callable[[Inputs, Attributes], Tensor]

DTYPES = {
    1: torch.float32,
    6: torch.int32,
    7: torch.int64,
    9: torch.bool,
    10: torch.float16,
    11: torch.float64,
}
"""Number of an ONNX element type → torch's."""


def _given(inputs: Inputs, place: int) -> Any:
    return inputs[place] if len(inputs) > place else None


def _whole(value: Any) -> list[int]:
    """A tensor, a list or a number of integers."""
    if isinstance(value, Tensor):
        value = value.tolist()
    return [int(v) for v in value] if isinstance(value, Sequence) else [int(value)]


def _padded(x: Tensor, attributes: Attributes, value: float = 0.0) -> Tensor:
    """``pads`` is top, left, bottom, right."""
    if attributes.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID"):
        raise NotImplementedError("auto_pad")
    top, left, bottom, right = attributes.get("pads", [0, 0, 0, 0])
    return functional.pad(x, (left, right, top, bottom), value=value) if top or left or bottom or right else x


def _conv(inputs: Inputs, attributes: Attributes) -> Tensor:
    pads = list(attributes.get("pads", [0, 0, 0, 0]))
    x, even = inputs[0], pads[:2] == pads[2:] and "auto_pad" not in attributes
    return functional.conv2d(
        x if even else _padded(x, attributes),
        inputs[1],
        _given(inputs, 2),
        attributes.get("strides", 1),
        pads[:2] if even else 0,
        attributes.get("dilations", 1),
        attributes.get("group", 1),
    )


def _batch_norm(inputs: Inputs, attributes: Attributes) -> Tensor:
    x, scale, shift, mean, variance = inputs[:5]
    return functional.batch_norm(x, mean, variance, scale, shift, False, 0.0, attributes.get("epsilon", 1e-5))


def _prelu(inputs: Inputs, attributes: Attributes) -> Tensor:
    x, slope = inputs
    return torch.where(x >= 0, x, x * slope)


def _gemm(inputs: Inputs, attributes: Attributes) -> Tensor:
    a = inputs[0].T if attributes.get("transA") else inputs[0]
    b = inputs[1].T if attributes.get("transB") else inputs[1]
    product = attributes.get("alpha", 1.0) * (a @ b)
    bias = _given(inputs, 2)
    return product if bias is None else product + attributes.get("beta", 1.0) * bias


def _flatten(inputs: Inputs, attributes: Attributes) -> Tensor:
    x, axis = inputs[0], attributes.get("axis", 1)
    return x.flatten(axis) if axis == 1 else x.reshape(int(torch.tensor(x.shape[:axis]).prod()), -1)


def _reshape(inputs: Inputs, attributes: Attributes) -> Tensor:
    x, wanted = inputs[0], _whole(inputs[1])
    return x.reshape([x.shape[i] if size == 0 else size for i, size in enumerate(wanted)])


def _clip(inputs: Inputs, attributes: Attributes) -> Tensor:
    low = _given(inputs, 1) if len(inputs) > 1 else attributes.get("min")
    high = _given(inputs, 2) if len(inputs) > 1 else attributes.get("max")
    x = inputs[0] if low is None else torch.maximum(inputs[0], torch.as_tensor(low, dtype=inputs[0].dtype))
    return x if high is None else torch.minimum(x, torch.as_tensor(high, dtype=x.dtype))


def _average_pool(inputs: Inputs, attributes: Attributes) -> Tensor:
    pads = attributes.get("pads", [0, 0, 0, 0])
    if any(pads) and not attributes.get("count_include_pad"):
        raise NotImplementedError("AveragePool whose padding does not count")
    x = _padded(inputs[0], attributes)
    ceil = bool(attributes.get("ceil_mode"))
    return functional.avg_pool2d(x, attributes["kernel_shape"], attributes.get("strides", 1), 0, ceil)


def _max_pool(inputs: Inputs, attributes: Attributes) -> Tensor:
    x = _padded(inputs[0], attributes, float("-inf"))
    ceil = bool(attributes.get("ceil_mode"))
    return functional.max_pool2d(x, attributes["kernel_shape"], attributes.get("strides", 1), ceil_mode=ceil)


def _reduced(
    function: Callable[[Tensor, list[int], bool], Tensor],
) -> Operator:
    """Axes are an attribute in older files, an input in newer ones; none: all."""

    def along(inputs: Inputs, attributes: Attributes) -> Tensor:
        axes = attributes.get("axes", _given(inputs, 1))
        every = list(range(inputs[0].ndim))
        return function(
            inputs[0], every if axes is None else _whole(axes), bool(attributes.get("keepdims", 1))
        )

    return along


def _axes(inputs: Inputs, attributes: Attributes) -> list[int]:
    return _whole(attributes["axes"] if "axes" in attributes else inputs[1])


def _unsqueeze(inputs: Inputs, attributes: Attributes) -> Tensor:
    x = inputs[0]
    for axis in sorted(_axes(inputs, attributes)):
        x = x.unsqueeze(axis)
    return x


def _squeeze(inputs: Inputs, attributes: Attributes) -> Tensor:
    if "axes" not in attributes and len(inputs) < 2:
        return inputs[0].squeeze()
    return inputs[0].squeeze(tuple(_axes(inputs, attributes)))


def _gather(inputs: Inputs, attributes: Attributes) -> Tensor:
    x, index = inputs
    axis = attributes.get("axis", 0)
    picked = x.index_select(axis, index.flatten().long() % x.shape[axis])
    return picked.reshape([*x.shape[:axis], *index.shape, *x.shape[axis + 1 :]])


def _slice(inputs: Inputs, attributes: Attributes) -> Tensor:
    """Begins, ends, axes and steps are inputs; in older files attributes."""
    x = inputs[0]
    names = ("starts", "ends", "axes", "steps")
    given = [
        _given(inputs, place + 1) if len(inputs) > 1 else attributes.get(n) for place, n in enumerate(names)
    ]
    starts, ends = _whole(given[0]), _whole(given[1])
    axes = range(len(starts)) if given[2] is None else _whole(given[2])
    steps = [1] * len(starts) if given[3] is None else _whole(given[3])
    places = [slice(None)] * x.ndim
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        places[axis] = slice(start, end, step)
    return x[tuple(places)]


def _constant(inputs: Inputs, attributes: Attributes) -> Tensor:
    from onnx import numpy_helper

    if "value" in attributes:
        return torch.from_numpy(numpy_helper.to_array(attributes["value"]).copy())
    return torch.tensor(next(iter(attributes.values())))


OPERATORS: dict[str, Operator] = {
    "Add": lambda i, a: i[0] + i[1],
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Cast": lambda i, a: i[0].to(DTYPES[a["to"]]),
    "Clip": _clip,
    "Concat": lambda i, a: torch.cat(list(i), a["axis"]),
    "Constant": _constant,
    "Conv": _conv,
    "Div": lambda i, a: i[0] / i[1],
    "Dropout": lambda i, a: i[0],
    "Flatten": _flatten,
    "Gather": _gather,
    "Gemm": _gemm,
    "GlobalAveragePool": lambda i, a: i[0].mean((2, 3), keepdim=True),
    "Identity": lambda i, a: i[0],
    "LeakyRelu": lambda i, a: functional.leaky_relu(i[0], a.get("alpha", 0.01)),
    "MatMul": lambda i, a: i[0] @ i[1],
    "Max": lambda i, a: reduce(torch.maximum, i),
    "MaxPool": _max_pool,
    "Min": lambda i, a: reduce(torch.minimum, i),
    "Mul": lambda i, a: i[0] * i[1],
    "PRelu": _prelu,
    "Pow": lambda i, a: i[0] ** i[1],
    "ReduceL2": _reduced(lambda x, axes, keep: x.norm(dim=axes, keepdim=keep)),
    "ReduceMean": _reduced(lambda x, axes, keep: x.mean(axes, keepdim=keep)),
    "ReduceSum": _reduced(lambda x, axes, keep: x.sum(axes, keepdim=keep)),
    "Relu": lambda i, a: functional.relu(i[0]),
    "Reshape": _reshape,
    "Shape": lambda i, a: torch.tensor(i[0].shape),
    "Sigmoid": lambda i, a: torch.sigmoid(i[0]),
    "Slice": _slice,
    "Sqrt": lambda i, a: i[0].sqrt(),
    "Squeeze": _squeeze,
    "Sub": lambda i, a: i[0] - i[1],
    "Transpose": lambda i, a: i[0].permute(a.get("perm", tuple(reversed(range(i[0].ndim))))),
    "Unsqueeze": _unsqueeze,
}
"""Operator's name → what it does."""
