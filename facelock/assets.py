"""Where the shipped ``pipelines/`` and ``models/`` of this very installation are."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

_PACKAGE = Path(__file__).resolve().parent
_MARKERS = {"pipelines": "default.toml", "models": "catalog.toml"}


def asset_dir(kind: Literal["pipelines", "models"]) -> Path:
    """Return the folder of shipped ``kind``: beside the package in a wheel, above it in a checkout.

    A marker file tells ours from a stranger's folder of the same name. Raises ``FileNotFoundError`` when the
    installation lacks it.
    """
    for root in (_PACKAGE, _PACKAGE.parent):
        if (root / kind / _MARKERS[kind]).is_file():
            return root / kind
    raise FileNotFoundError(f"facelock was installed without its {kind!r} folder; reinstall it")
