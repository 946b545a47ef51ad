"""The bundled models opened by insightface itself, as any other tool would."""

from __future__ import annotations

from contextlib import redirect_stdout
from io import StringIO
from typing import Any

from facelock.weights import locate

DETECTION = (128, 128)


def swapper_and_pack() -> tuple[Any, Any]:
    """A prepared ``FaceAnalysis`` of the bundled pack, and the ``INSwapper`` of the bundled aligner."""
    import insightface
    from insightface.app import FaceAnalysis

    with redirect_stdout(StringIO()):  # it prints shapes and set-ups
        app = FaceAnalysis(name=str(locate("miniature/faces")), providers=["CPUExecutionProvider"])
        app.prepare(ctx_id=-1, det_size=DETECTION, det_thresh=0.5)
        swapper = insightface.model_zoo.get_model(
            str(locate("miniature/aligner")), providers=["CPUExecutionProvider"]
        )
    return app, swapper
