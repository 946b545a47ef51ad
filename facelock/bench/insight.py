"""The bundled models opened by insightface itself, as any other tool would."""

from __future__ import annotations

from contextlib import redirect_stdout
from io import StringIO
from typing import Any

from facelock.errors import DeviceError
from facelock.weights import locate

DETECTION = (128, 128)
"""The recipe's own detection size; ``None`` leaves insightface its default, 128 and 640 one after the other."""


def swapper_and_pack(
    device: str = "cpu", detection: tuple[int, int] | None = DETECTION, model: str = "miniature/aligner"
) -> tuple[Any, Any]:
    """A prepared ``FaceAnalysis`` of the bundled pack, and the ``INSwapper`` of a bundled ``model``, on ``device``.

    The bundled restorer is of inswapper's format too.

    Raises ``DeviceError`` when insightface silently takes another one: it would make ours look fast.
    """
    import insightface
    from insightface.app import FaceAnalysis

    kind, _, index = device.partition(":")
    provider = "CUDAExecutionProvider" if kind == "cuda" else "CPUExecutionProvider"
    with redirect_stdout(StringIO()):  # it prints shapes and set-ups
        app = FaceAnalysis(name=str(locate("miniature/faces")), providers=[provider])
        app.prepare(ctx_id=int(index or 0) if kind == "cuda" else -1, det_size=detection, det_thresh=0.5)
        swapper = insightface.model_zoo.get_model(str(locate(model)), providers=[provider])
    for network in (*app.models.values(), swapper):
        require_provider(network.session, provider)
    return app, swapper


def require_provider(session: Any, provider: str) -> None:
    """Raise ``DeviceError`` unless ``session`` runs on ``provider``."""
    active = session.get_providers()[0]
    if active != provider:
        raise DeviceError(
            f"insightface runs on {active}, not on {provider}, so the arms cannot be compared. "
            "Give --device cpu, or see 'facelock doctor'."
        )
