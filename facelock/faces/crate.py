"""The judge's recogniser: a CRATE network, of another architecture and training than the loop's own.

Weights are a folder with ``model.safetensors`` and ``config.json`` (``facelock.nets.crate``).
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

from facelock.errors import ModelError
from facelock.faces.onnx_pack import unit_rows
from facelock.geometry import ARCFACE112
from facelock.nets.crate import Crate
from facelock.types import CropSpec, Thresholds
from facelock.weights import encoder_id, load_safetensors

SIZES = ("dim", "depth", "heads", "code")
LARGEST = 4096


def _network(folder: Path) -> Crate:
    """The network that ``config.json`` describes, with its weights in float32."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        sizes = {key: config[key] for key in SIZES}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"{folder}: config.json cannot be read ({error!r}). Fetch the model again."
        ) from error
    if config.get("architecture") != "crate" or not all(_plausible(value) for value in sizes.values()):
        raise ModelError(f"{folder}: config.json does not describe a CRATE network. Fetch the model again.")
    tensors = load_safetensors(folder / "model.safetensors")
    try:
        net = Crate(**sizes)
        net.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in tensors.items()})
    except (RuntimeError, ZeroDivisionError) as error:
        raise ModelError(f"{folder}: the weights do not fit config.json. Fetch the model again.") from error
    return net.eval().requires_grad_(False)


def _plausible(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= LARGEST


class CrateEncoder:
    """CRATE as an :class:`facelock.protocols.Encoder`."""

    crop: CropSpec = ARCFACE112

    def __init__(
        self,
        path: str | Path,
        *,
        name: str,
        thresholds: Thresholds,
        batch: int = 16,
        device: torch.device | str = "cpu",
    ) -> None:
        """Read the folder ``path``. Raises ``ModelError``.

        On a GPU ``batch`` crops go through at once; on a CPU one by one, which costs hardly more and rules
        out by construction that a row's bits depend on its place in a batch.
        """
        self._net = _network(Path(path)).to(device)
        self.folder = Path(path)
        self.id = encoder_id(name, Path(path) / "model.safetensors")
        self.thresholds = thresholds
        self._device = torch.device(device)
        self.side_by_side = self._device.type == "cpu"
        self._batch = 1 if self._device.type == "cpu" else batch

    def embed_crops(self, crops: Tensor) -> Tensor:
        """(N, 3, 112, 112) in [0, 1] → (N, D) float32 on the CPU, unit length.

        Always batches of one fixed shape, so that a row's bits do not depend on its neighbours.
        """
        codes = [self._codes(part) for part in crops.detach().float().split(self._batch)]
        rows = torch.cat(codes) if len(crops) else torch.zeros(0, self._net.config["code"])
        return unit_rows(rows.numpy(), self.id)

    def _codes(self, crops: Tensor) -> Tensor:
        full = crops.new_zeros(self._batch, *crops.shape[1:])
        full[: len(crops)] = crops
        full = full.to(self._device)
        with torch.inference_mode():
            return self._net(full)[: len(crops)].cpu()
