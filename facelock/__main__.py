"""``python -m facelock`` is the ``facelock`` command."""

from __future__ import annotations

from facelock.cli import main

if __name__ == "__main__":
    main()
