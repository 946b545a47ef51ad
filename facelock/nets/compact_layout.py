"""The layout of compact upscalers' files (:class:`facelock.nets.compact_sr.Srvgg`): what their tensors' sizes say.

::

    compact_shape(tensor_sizes("realesr-general-x4v3.pth")).scale      # 4

Knows nothing of torch.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

MOST_LAYERS = 400
"""Layers of a body, activations counted; published ones have 35 and 67."""


@dataclass(frozen=True)
class CompactShape:
    """Positional arguments of :class:`facelock.nets.compact_sr.Srvgg`."""

    width: int
    depth: int
    scale: int


def compact_shape(sizes: Mapping[str, tuple[int, ...]]) -> CompactShape:
    """Of the tensors' ``sizes`` by name. Raises ``ValueError`` saying what is of another layout."""
    numbers = [int(found[1]) for key in sizes if (found := re.fullmatch(r"body\.(\d{1,4})\.weight", key))]
    first, last = sizes.get("body.0.weight"), max(numbers, default=0)
    if first is None or len(first) != 4 or not 2 <= last <= MOST_LAYERS or last % 2:
        raise ValueError("it has no body.0.weight ... body.N.weight of convolutions and activations")
    if "body.1.weight" not in sizes:
        raise ValueError("its activations are not PReLU, and which they are is not written in it")
    outputs = (sizes[f"body.{last}.weight"] or (0,))[0]
    scale = math.isqrt(outputs // 3)
    if first[1] != 3 or outputs != 3 * scale * scale or not 1 <= scale <= 8:
        raise ValueError(f"it leads from {first[1]} channels to {outputs}, not from 3 to 3·scale²")
    return CompactShape(first[0], last // 2 - 1, scale)
