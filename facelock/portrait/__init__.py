"""Portrait crops repainted by image diffusion that is told whose face it is: the core of ``faceid``.

::

    core = PortraitDiffusion(folder, adapter=file, encoder=pack.encoder.id, batch=8, device="cuda")
    crops = core.repaint(crops, identity, strength=0.35)          # (N, 3, S, S), S = core.crop.size

The aligner (:mod:`facelock.alignment.faceid`) climbs with the strength; a face restorer calls it with one small one.
Both stages may import this, and neither imports the other. Names are loaded on first use, since
:mod:`facelock.portrait.fits` is asked where there is no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from facelock.portrait.adapter import BUFFALO_L, require_encoder
    from facelock.portrait.diffusion import PortraitDiffusion, PortraitSettings

__all__ = ["BUFFALO_L", "PortraitDiffusion", "PortraitSettings", "require_encoder"]


def __getattr__(name: str) -> Any:
    """A public name, from its module (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = "diffusion" if name.startswith("Portrait") else "adapter"
    return getattr(import_module(f"{__name__}.{home}"), name)
