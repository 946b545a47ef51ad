"""Real photos, videos and weights for local tests; they are not part of the project."""

from __future__ import annotations

from pathlib import Path

import pytest

ASSETS = Path(__file__).resolve().parents[2] / "shared" / "assets"
needs_assets = pytest.mark.skipif(
    not ASSETS.is_dir(), reason="needs ../shared/assets: real photos, videos and weights"
)
