"""Face restoration by any network that spandrel knows (extra ``sr``): GFPGAN, RestoreFormer, CodeFormer.

None of them is told whose face it restores, so each belongs inside of the constrained loop
(:class:`facelock.restore_loop.RestoreLoop`), which takes back what leads away from the character.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from facelock.errors import DeviceError, ModelError
from facelock.geometry import FFHQ512
from facelock.restoration.spandrel_net import FACES, load_spandrel, placed, same_noise
from facelock.restoration.tiles import out_of_memory
from facelock.types import CropSpec

Restore = Callable[[Any, Tensor, float], Tensor]
"""``restore(descriptor, crop, share)``: (1, 3, 512, 512) in [0, 1] → the same; ``share`` in (0, 1]."""


def _as_described(net: Any, crop: Tensor, share: float) -> Tensor:
    """spandrel's own call, which takes and gives [0, 1] (RestoreFormer)."""
    return net(crop)


def _gfpgan(net: Any, crop: Tensor, share: float) -> Tensor:
    """GFPGAN (Wang et al. 2021, arXiv:2101.04061) as its own ``GFPGANer.enhance`` calls it: [-1, 1] in and out.

    spandrel 0.4.2 hands it [0, 1] and cuts its result off at 0, and lets it draw new noise for every picture; here it
    uses the noise stored in the checkpoint, the same for every frame.
    """
    return net.model(crop * 2 - 1, return_rgb=False, randomize_noise=False)[0] / 2 + 0.5


def _codeformer(net: Any, crop: Tensor, share: float) -> Tensor:
    """CodeFormer (Zhou et al. 2022, arXiv:2206.11253): [-1, 1] in and out, fidelity weight w = 1 - share."""
    return net.model(crop * 2 - 1, weight=1 - share)[0] / 2 + 0.5


_CALLS: dict[str, Restore] = {"GFPGAN": _gfpgan, "CodeFormer": _codeformer}
_GRADED = {"CodeFormer"}


class SpandrelRestorer:
    """The face restorer ``spandrel_restorer``: one aligned FFHQ-style crop of 512 × 512 pixels at a time."""

    crop: CropSpec = FFHQ512

    def __init__(
        self,
        path: str | Path,
        *,
        encoder: str,
        batch: int = 16,
        device: torch.device | str = "cpu",
        precision: str = "float32",
    ) -> None:
        """Load the file. ``encoder`` is the id of the loop's recogniser; no network here looks at its embeddings.

        ``batch`` is not used: spandrel's call takes one picture. Raises ``EnvironmentFailure`` without spandrel,
        ``ModelError`` for a file of another kind, ``ConfigError`` for a precision that does not work.
        """
        net = load_spandrel(path, FACES)
        if net.scale != 1:
            raise ModelError(f"{path}: enlarges faces {net.scale}×. Give a face restorer of scale 1.")
        self.path, self.encoder, self._net = Path(path), encoder, net
        self._device, self._dtype = torch.device(device), placed(net, path, precision, device)
        self._call = _CALLS.get(net.architecture.id, _as_described)
        self.graded = net.architecture.id in _GRADED
        """Whether the network has a fidelity weight of its own, which the loop then searches instead of a blend."""

    def restore(self, crops: Tensor, identity: Tensor) -> Tensor:
        """(N, 3, 512, 512) in [0, 1] → the same, restored as strongly as the network can; see :meth:`restore_by`."""
        return self.restore_by(crops, identity, torch.ones(len(crops)))

    @torch.no_grad()
    def restore_by(self, crops: Tensor, identity: Tensor, shares: Tensor) -> Tensor:
        """(N, 3, 512, 512) float32 in [0, 1] → the same; ``shares`` (N,) in (0, 1] says how much may be invented.

        Each crop is worked on by itself, with the same noise. A result that is no number comes back as NaN, and
        stands for "not restored". Raises ``DeviceError`` when the memory does not suffice.
        """
        out = torch.empty_like(crops)
        for i, (crop, share) in enumerate(zip(crops, shares.tolist(), strict=True)):
            out[i] = self._one(crop[None], share)[0].clamp(0, 1)
        return out

    def _one(self, crop: Tensor, share: float) -> Tensor:
        try:
            with same_noise(self._device):
                return self._call(self._net, crop.to(self._device, self._dtype), share).float()
        except (torch.OutOfMemoryError, RuntimeError) as error:
            error = out_of_memory(error)
            raise DeviceError(
                f"{self.path}: {self._device} has too little memory to restore a face of 512 pixels. "
                "Leave the restorer out of [restore], or choose another device."
            ) from error
