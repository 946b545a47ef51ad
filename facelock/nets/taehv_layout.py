"""The layout of tiny decoders' files (:mod:`facelock.nets.taehv`), and what a file's header says of one.

::

    read_shape("taew2_1.safetensors").channels      # 16

Knows nothing of torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isqrt, prod
from pathlib import Path

from facelock.errors import ModelError

STAGES = (3, 9, 15)
"""Places of each stage's first memory block; the enlargement, the growth in time and the next width follow it."""
BLOCKS = 3
"""Memory blocks of a stage."""
LAST = 22
"""Place of the last convolution."""
REMEDY = "Fetch or export the tiny decoder again."
ENLARGE = "enlarge"
"""Key of the metadata: which stages double height and width, ``"001"`` for the last one only; default: all."""


@dataclass(frozen=True)
class DecoderShape:
    """Keyword arguments of :class:`facelock.nets.taehv.TinyDecoder`."""

    channels: int
    widths: tuple[int, int, int, int]
    growth: tuple[int, int, int]
    enlarge: tuple[bool, bool, bool]
    patch: int

    @property
    def scales(self) -> tuple[int, int]:
        """Frames per latent, pixels per latent along each side."""
        return prod(self.growth), self.patch * 2 ** sum(self.enlarge)


def shape_of(path: Path, sizes: Mapping[str, tuple[int, ...]], enlarge: str) -> DecoderShape:
    """Of the tensors' ``sizes`` by name. Raises ``ModelError`` for another layout, naming the file ``path``."""
    try:
        first, last = sizes["decoder.1.weight"], sizes[f"decoder.{LAST}.weight"]
        growths = [sizes[f"decoder.{place + BLOCKS + 1}.conv.weight"] for place in STAGES]
        widths = (first[0], *(sizes[f"decoder.{place + BLOCKS + 2}.weight"][0] for place in STAGES))
        patch = isqrt(last[0] // 3)
        if len(enlarge) != len(STAGES) or set(enlarge) - set("01"):
            raise ValueError(f"its {ENLARGE} is {enlarge[:20]!r}")
        if not 1 <= patch <= 8 or max(widths) > 1024:
            raise ValueError("its sizes are out of range")
        return DecoderShape(
            first[1],
            widths,  # type: ignore[arg-type]
            tuple(size[0] // size[1] for size in growths),  # type: ignore[arg-type]
            tuple(mark == "1" for mark in enlarge),  # type: ignore[arg-type]
            patch,
        )
    except KeyError as error:
        raise ModelError(
            f"{path}: lacks the tensor {error}, so it is no decoder in TAEHV's layout. {REMEDY}"
        ) from error
    except (IndexError, ValueError, ZeroDivisionError) as error:
        raise ModelError(f"{path}: no decoder in TAEHV's layout ({error}). {REMEDY}") from error


def read_shape(path: Path) -> DecoderShape:
    """From the file's header. Raises ``ModelError`` for a file that is missing, damaged or of another layout."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise ModelError(f"{path}: there is no such tiny decoder. Check [guidance] decoder in the recipe.")
    try:
        with safe_open(path, "np") as file:
            meta = file.metadata() or {}
            sizes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(f"{path}: not a readable safetensors file. {REMEDY}") from error
    return shape_of(path, sizes, meta.get(ENLARGE, "111"))
