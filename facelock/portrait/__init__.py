"""Portrait crops repainted by image diffusion that is told whose face it is: the core of ``faceid``.

::

    core = PortraitDiffusion(folder, adapter=file, encoder=pack.encoder.id, batch=8, device="cuda")
    crops = core.repaint(crops, identity, strength=0.35)          # (N, 3, S, S), S = core.crop.size

The aligner (:mod:`facelock.alignment.faceid`) climbs with the strength; a face restorer calls it with one small one.
Both stages may import this, and neither imports the other.
"""

from facelock.portrait.adapter import BUFFALO_L, require_encoder
from facelock.portrait.diffusion import PortraitDiffusion, PortraitSettings

__all__ = ["BUFFALO_L", "PortraitDiffusion", "PortraitSettings", "require_encoder"]
