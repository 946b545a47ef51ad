"""A recogniser's ONNX file as a differentiable torch module: what onnxruntime measures, this one can be led by.

::

    embed = TorchEmbedder("recogniser.onnx")
    embed(crops)                  # (N, 3, 112, 112) in [0, 1] → (N, D) unit rows, with gradients
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from facelock.errors import ModelError
from facelock.faces import kind_of
from facelock.faces.kinds import takes_bytes
from facelock.guidance.onnx_ops import OPERATORS, Operator

REMEDY = "Use another recogniser, or leave [guidance] out of the recipe."


@dataclass(frozen=True)
class _Step:
    """One node of the graph."""

    run: Operator
    kind: str
    inputs: tuple[str, ...]
    output: str
    attributes: dict[str, Any]


class OnnxModule(nn.Module):
    """A graph of one input and one output that torch runs, forwards and backwards."""

    def __init__(self, path: str | Path) -> None:
        """Read the file. Raises ``ModelError`` for what is no ONNX model, and for one with an unknown operator."""
        super().__init__()
        import onnx

        self.path = Path(path)
        try:
            graph = onnx.load(str(self.path)).graph
        except Exception as error:  # protobuf raises its own kinds
            raise ModelError(f"{path}: not a readable ONNX model. Fetch it again.") from error
        constants = {
            t.name: torch.from_numpy(onnx.numpy_helper.to_array(t).copy()) for t in graph.initializer
        }
        entries = [value for value in graph.input if value.name not in constants]
        if len(entries) != 1 or len(graph.output) != 1:
            raise ModelError(
                f"{path}: {len(entries)} inputs and {len(graph.output)} outputs are not a recogniser's. {REMEDY}"
            )
        self.entry, self.exit = entries[0].name, graph.output[0].name
        first = entries[0].type.tensor_type.shape.dim[:1]
        self.rows = int(first[0].dim_value) if first else 0
        """Rows that the file fixes; 0: any number."""
        self._steps = [step for node in graph.node if (step := self._step(node, constants))]
        self._names: dict[str, str] = {}
        for number, (name, value) in enumerate(constants.items()):
            if any(name in step.inputs for step in self._steps):
                self._names[name] = f"constant_{number}"
                self.register_buffer(self._names[name], value)

    def _step(self, node: Any, constants: dict[str, Tensor]) -> _Step | None:
        """A node; None for one that only depends on constants, whose value joins them."""
        from onnx.helper import get_attribute_value

        if node.op_type not in OPERATORS:
            raise ModelError(
                f"{self.path}: its operator {node.op_type} cannot be differentiated here. {REMEDY}"
            )
        attributes = {a.name: get_attribute_value(a) for a in node.attribute}
        step = _Step(OPERATORS[node.op_type], node.op_type, tuple(node.input), node.output[0], attributes)
        if not all(name in constants for name in step.inputs if name):
            return step
        constants[step.output] = self._run(step, constants)
        return None

    def _run(self, step: _Step, values: dict[str, Tensor]) -> Tensor:
        try:
            return step.run([values[name] if name else None for name in step.inputs], step.attributes)
        except torch.OutOfMemoryError:
            raise
        except (
            RuntimeError,
            KeyError,
            ValueError,
            TypeError,
            IndexError,
        ) as error:  # NotImplementedError too
            raise ModelError(
                f"{self.path}: its {step.kind} is of no known form ({error}). {REMEDY}"
            ) from error

    def forward(self, x: Tensor) -> Tensor:
        """The file's output for rows of its input; in portions, where the file fixes their number."""
        if self.rows and len(x) != self.rows:
            return torch.cat([self._portion(part) for part in x.split(self.rows)])
        return self._portion(x)

    def _portion(self, x: Tensor) -> Tensor:
        values = {name: self.get_buffer(buffer) for name, buffer in self._names.items()}
        missing = self.rows - len(x)
        values[self.entry] = functional.pad(x, (0, 0) * 3 + (0, missing)) if missing > 0 else x
        for step in self._steps:
            values[step.output] = self._run(step, values)
        return values[self.exit][: len(x)]


class TorchEmbedder(nn.Module):
    """(N, 3, 112, 112) RGB in [0, 1] → (N, D) rows of length 1: as the recogniser's own encoder, with gradients."""

    def __init__(self, path: str | Path) -> None:
        """Read an ArcFace-format file. Raises ``ModelError`` for any other."""
        super().__init__()
        if Path(path).is_dir() or kind_of(path) != "arcface":
            raise ModelError(f"{path}: no ArcFace-format ONNX recogniser, so it cannot guide. {REMEDY}")
        self.net = OnnxModule(path)
        self.scale, self.shift = (255.0, 0.0) if takes_bytes(path) else (2.0, -1.0)
        self.requires_grad_(False)

    def forward(self, crops: Tensor) -> Tensor:
        """Embed."""
        return functional.normalize(self.net(crops * self.scale + self.shift), dim=1)
