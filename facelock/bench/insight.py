"""The bundled models opened by insightface itself, as any other tool would."""

from __future__ import annotations

from contextlib import redirect_stdout
from io import StringIO
from typing import Any

from facelock.errors import DeviceError
from facelock.weights import locate

DETECTION = (128, 128)
"""The recipe's own detection size; ``None`` leaves insightface its default, 128 and 640 one after the other."""


def swapper_and_pack(device: str = "cpu", detection: tuple[int, int] | None = DETECTION) -> tuple[Any, Any]:
    """A prepared ``FaceAnalysis`` of the bundled pack, and the ``INSwapper`` of the bundled aligner, on ``device``.

    Raises ``DeviceError`` when insightface silently takes another one: it would make ours look fast.
    """
    from insightface.app import FaceAnalysis

    provider, index = _provider(device)
    with redirect_stdout(StringIO()):  # it prints shapes and set-ups
        app = FaceAnalysis(name=str(locate("miniature/faces")), providers=[provider])
        app.prepare(ctx_id=index, det_size=detection, det_thresh=0.5)
    for network in app.models.values():
        require_provider(network.session, provider)
    return app, swapper("miniature/aligner", device)


def swapper(model: str, device: str = "cpu") -> Any:
    """The ``INSwapper`` of a bundled ``model`` of its format, aligner or restorer, on ``device``.

    Raises ``DeviceError`` as :func:`swapper_and_pack`.
    """
    import insightface

    provider, _ = _provider(device)
    with redirect_stdout(StringIO()):
        opened = insightface.model_zoo.get_model(str(locate(model)), providers=[provider])
    require_provider(opened.session, provider)
    return opened


def _provider(device: str) -> tuple[str, int]:
    """onnxruntime's provider for ``device``, and insightface's number for it: -1 is the CPU."""
    kind, _, index = device.partition(":")
    return ("CUDAExecutionProvider", int(index or 0)) if kind == "cuda" else ("CPUExecutionProvider", -1)


def require_provider(session: Any, provider: str) -> None:
    """Raise ``DeviceError`` unless ``session`` runs on ``provider``."""
    active = session.get_providers()[0]
    if active != provider:
        raise DeviceError(
            f"insightface runs on {active}, not on {provider}, so the arms cannot be compared. "
            "Give --device cpu, or see 'facelock doctor'."
        )
