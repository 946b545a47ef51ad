"""Convolutions that read the same picture and give few channels each, done as one.

onnxruntime's blocked layout works on 16 channels at a time: a detector's heads of 1, 1, 4 and 10 channels cost four
times what they cost together. Depthwise convolutions behind such heads, as YuNet has them, are joined as well.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np

from facelock.faces.graph import Graph, attributes, convolution, is_convolution, weights_of

BLOCK = 16
"""Channels that are computed at once."""


def join_heads(graph: Graph) -> None:
    """Join sibling convolutions where that leaves fewer blocks of channels to compute."""
    siblings = defaultdict(list)
    for node in graph.nodes:
        if is_convolution(graph, node) and attributes(node).get("group", 1) == 1:
            window = graph.constants[node.input[1]].shape[2:]
            siblings[node.input[0], window, _settings(node)].append(node)
    for nodes in siblings.values():
        counts = [len(graph.constants[node.input[1]]) for node in nodes]
        if _blocks(sum(counts)) < sum(_blocks(count) for count in counts):
            _join(graph, nodes, counts)


def _blocks(channels: int) -> int:
    return -(-channels // BLOCK)


def _settings(node: Any) -> str:
    return repr(sorted((k, v) for k, v in attributes(node).items() if k != "group"))


def _join(graph: Graph, nodes: list[Any], counts: list[int]) -> None:
    """One convolution in place of the ``nodes``, and one in place of depthwise ones behind them; then a split."""
    first, name = nodes[0], f"{nodes[0].output[0]}/facelock/joined"
    made = [_joined(graph, nodes, first.input[0], name, 1)]
    behind = [graph.only_user(node.output[0]) for node in nodes]
    if all(_is_depthwise(graph, node, count) for node, count in zip(behind, counts, strict=True)) and (
        len({_settings(node) for node in behind}) == 1
    ):
        made.append(_joined(graph, behind, name, f"{name}/behind", sum(counts)))
        for node in nodes[1:]:
            graph.replace(node, [])
        graph.replace(first, [])
        nodes = behind
    place = max(i for i, node in enumerate(graph.nodes) if any(node is each for each in nodes))
    last = graph.nodes[place]
    made.append(_split(graph, made[-1].output[0], [node.output[0] for node in nodes], counts))
    for node in nodes:
        if node is not last:
            graph.replace(node, [])
    graph.replace(last, made)
    _in_order(graph)


def _is_depthwise(graph: Graph, node: Any, channels: int) -> bool:
    if node is None or not is_convolution(graph, node):
        return False
    weights = graph.constants[node.input[1]]
    return weights.shape[:2] == (channels, 1) and attributes(node).get("group", 1) == channels


def _joined(graph: Graph, nodes: list[Any], source: str, target: str, groups: int) -> Any:
    weights, biases = zip(*(weights_of(graph, node) for node in nodes), strict=True)
    return convolution(
        graph, nodes[0], source, target, np.concatenate(weights), np.concatenate(biases), group=groups
    )


def _split(graph: Graph, source: str, targets: list[str], counts: list[int]) -> Any:
    from onnx import helper

    if graph.opset < 13:
        return helper.make_node("Split", [source], targets, axis=1, split=counts)
    sizes = graph.constant(np.array(counts, np.int64), source)
    return helper.make_node("Split", [source, sizes], targets, axis=1)


def _in_order(graph: Graph) -> None:
    """Nodes that read what a later one makes go behind it."""
    made = {name for node in graph.nodes for name in node.output}
    waiting, done = list(graph.nodes), set[str]()
    graph.nodes = []
    while waiting:
        ready = [n for n in waiting if all(name not in made or name in done for name in n.input)]
        if not ready:
            raise ValueError("the graph has a circle")
        taken = {id(node) for node in ready}
        graph.nodes += ready
        done |= {name for node in ready for name in node.output}
        waiting = [node for node in waiting if id(node) not in taken]
