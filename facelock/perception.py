"""Which recognisers look at a clip: names of packs, as users give them, to loaded packs.

::

    seen = open_perception("opencv:yunet+sface", judge="insightface:buffalo_s")
    seen.faces.detect(frames)      # the pack in the loop
    seen.judge.encoder.thresholds  # the recogniser that measures

A pack is named in one of these ways:

=========================  ==========================================================================
``miniature``              the bundled pack; its judge is the bundled CRATE
``insightface:NAME``       an insightface pack: a folder, or a name under ``<root>/models``; the root is
                           ``$INSIGHTFACE_HOME``, else ``~/.insightface``
``opencv:DETECTOR+SFACE``  YuNet and SFace through OpenCV: ``opencv:yunet+sface`` are the catalog's
``DETECTOR+RECOGNISER``    two files or catalog names: SCRFD or YuNet, and an ArcFace-format recogniser
=========================  ==========================================================================

A judge is named the same way, or by a recogniser alone, which then looks where the loop's detector finds faces.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from facelock.errors import ConfigError
from facelock.faces import load_pack
from facelock.protocols import FacePack
from facelock.weights import locate

MINIATURE = "miniature"


@dataclass(frozen=True)
class Perception:
    """The two packs that look at a clip."""

    faces: FacePack
    """In the loop: detector and the recogniser that stages optimise."""
    judge: FacePack
    """Measures; no stage optimises it."""
    names: tuple[str, str]
    """As they were asked for: pack and judge."""

    @property
    def packs(self) -> tuple[FacePack, ...]:
        """Both, or the one that is both."""
        same = self.faces.encoder.id == self.judge.encoder.id
        return (self.faces,) if same else (self.faces, self.judge)


def open_perception(
    faces: str = MINIATURE,
    judge: str | None = None,
    *,
    device: torch.device | str = "cpu",
    commercial: bool = False,
) -> Perception:
    """Load the pack ``faces`` and the ``judge``; without a ``judge``, the pack's own, else the pack itself.

    ``commercial`` refuses weights whose licence does not allow commercial use, before they are loaded. Raises
    ``ConfigError`` then and for a name that means nothing, ``ModelError`` for weights that are missing or damaged.
    """
    if faces != MINIATURE or judge not in (None, MINIATURE):
        raise ConfigError(f"No face pack is called {faces!r}. Give {MINIATURE}.")
    detector = locate("miniature/detector", commercial=commercial)
    loop = load_pack(
        "onnx_pack",
        detector=detector,
        encoder=locate("miniature/recogniser", commercial=commercial),
        name="miniature/recogniser",
        device=device,
    )
    measure = load_pack(
        "crate",
        detector=detector,
        encoder=locate("miniature/judge", commercial=commercial),
        name="miniature/judge",
        device=device,
    )
    return Perception(loop, measure, (faces, judge or MINIATURE))
