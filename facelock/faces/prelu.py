"""PReLU as onnxruntime's CPU kernels like it: the same numbers in half a recogniser's time.

onnxruntime has no PReLU in its blocked layout, so it turns the picture around before and after each one, which
costs more than the convolutions between. For slopes a ≤ 1, ``PReLU(x) = a·x + max((1 - a)·x, 0)``: two depthwise
convolutions of one pixel, of which the first takes the ReLU and the second the sum along, so the picture is passed
twice. Where a depthwise convolution makes ``x``, it is done twice itself instead, with scaled weights. For a > 1
``-PReLU(x) = -x + max((1 - a)·x, 0)``, and the convolutions that read it turn the sign back.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from facelock.faces.graph import Array, Graph, attributes, convolution, is_convolution, weights_of


def without_prelu(graph: Graph) -> None:
    """Rewrite every PReLU of one slope per channel."""
    for node in list(graph.nodes):
        slope = graph.constants.get(node.input[1]) if node.op_type == "PRelu" else None
        if slope is None or not _per_channel(slope.shape):
            continue
        slopes = slope.reshape(-1).astype(np.float32)
        turned = slopes > 1
        if turned.any() and not _turn_back(graph, node.output[0], turned):
            _plainly(graph, node, slopes)
        else:
            _rewrite(graph, node, np.where(turned, -1, slopes), 1 - slopes)


def _per_channel(shape: tuple[int, ...]) -> bool:
    return (
        len(shape) in (3, 4) and shape[-2:] == (1, 1) and shape[-3] > 1 and int(np.prod(shape)) == shape[-3]
    )


def _pixel(weights: Array) -> Array:
    """(C,) as the weights of a depthwise convolution of one pixel."""
    return weights.reshape(-1, 1, 1, 1)


def _depthwise(graph: Graph, name: str) -> Any | None:
    """The depthwise convolution that makes ``name``, where nothing else reads it."""
    node = next((node for node in graph.nodes if name in node.output), None)
    if node is None or not is_convolution(graph, node) or graph.only_user(name) is None:
        return None
    weights = graph.constants[node.input[1]]
    groups = attributes(node).get("group", 1)
    return node if groups == len(weights) and weights.shape[1] == 1 and weights.shape[2:] != (1, 1) else None


def _rewrite(graph: Graph, node: Any, passed: Array, bent: Array) -> None:
    """``passed · x + max(bent · x, 0)``."""
    from onnx import helper

    (source, _), (target,) = node.input, node.output
    raw, positive, straight = (f"{target}/facelock/{part}" for part in ("raw", "positive", "straight"))
    before = _depthwise(graph, source)
    if before is None:
        like = helper.make_node("Conv", [], [], group=len(bent), kernel_shape=[1, 1])
        both = [
            convolution(graph, like, source, name, _pixel(scale), None)
            for name, scale in ((raw, bent), (straight, passed))
        ]
    else:
        weights, bias = weights_of(graph, before)
        both = [
            convolution(graph, before, before.input[0], name, weights * _pixel(scale), bias * scale)
            for name, scale in ((raw, bent), (straight, passed))
        ]
        graph.replace(before, [])
    relu = helper.make_node("Relu", [raw], [positive])
    graph.replace(node, [both[0], relu, both[1], helper.make_node("Add", [straight, positive], [target])])


def _turn_back(graph: Graph, name: str, turned: Array) -> bool:
    """Change the sign of the ``turned`` channels of ``name`` in all convolutions that read it; False if others do."""
    users = graph.users(name)
    if not users or name in {output.name for output in graph.model.graph.output}:
        return False
    if not all(is_convolution(graph, user) and user.input[0] == name for user in users):
        return False
    sign = np.where(turned, -1, 1).astype(np.float32)
    groups = [attributes(user).get("group", 1) for user in users]
    if any(
        g != 1 and (g != len(sign) or weights_of(graph, u)[0].shape[1] != 1)
        for g, u in zip(groups, users, strict=True)
    ):
        return False
    for user, count in zip(users, groups, strict=True):
        weights, bias = weights_of(graph, user)
        spread = np.repeat(sign, len(weights) // len(sign)).reshape(-1, 1, 1, 1)
        signs = sign.reshape(1, -1, 1, 1) if count == 1 else spread
        graph.replace(user, [convolution(graph, user, name, user.output[0], weights * signs, bias)])
    return True


def _plainly(graph: Graph, node: Any, slopes: Array) -> None:
    """``a·x + (1 - a)·max(x, 0)``, for any slope: one pass more."""
    from onnx import helper

    (source, _), (target,) = node.input, node.output
    positive, passed, rest = (f"{target}/facelock/{part}" for part in ("positive", "passed", "rest"))
    like = helper.make_node("Conv", [], [], group=len(slopes), kernel_shape=[1, 1])
    graph.replace(
        node,
        [
            helper.make_node("Relu", [source], [positive]),
            convolution(graph, like, positive, rest, _pixel(1 - slopes), None),
            convolution(graph, like, source, passed, _pixel(slopes), None),
            helper.make_node("Add", [passed, rest], [target]),
        ],
    )
