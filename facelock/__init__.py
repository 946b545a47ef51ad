"""FaceLock: a character's face that never drifts, however long the generated clip.

::

    import facelock

    clip = facelock.generate("a woman talking in a forest", "maria.png", seconds=30)
    for chunk in clip:                 # frames as they are made, (T, 3, H, W) in [0, 1]
        show(chunk.frames)
    report = clip.save("clip.mp4")     # or straight to a file, resumable, with a report

Importing the package does nothing else: the public names below are loaded on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from facelock.api import create_identity, generate, load_identity, lock, save_identity, verify
    from facelock.clip import Clip
    from facelock.errors import (
        ConfigError,
        DeviceError,
        EncoderError,
        EnvironmentFailure,
        FaceLockError,
        IdentityMissedError,
        InputError,
        InterruptedRunError,
        ModelError,
        NotFiniteError,
        OutputBusyError,
        StorageError,
    )
    from facelock.footage import Footage
    from facelock.identity.findings import Enrolment
    from facelock.pipeline import Pipeline
    from facelock.recipe import Recipe, load_recipe
    from facelock.report import Report
    from facelock.storyboard import Storyboard
    from facelock.storyboards.render import render
    from facelock.types import Chunk, Consent, Identity, Sound

__all__ = [
    # what people call
    "generate",
    "lock",
    "verify",
    "create_identity",
    "render",
    "load_identity",
    "save_identity",
    "load_recipe",
    # what they get
    "Clip",
    "Footage",
    "Chunk",
    "Consent",
    "Enrolment",
    "Identity",
    "Pipeline",
    "Recipe",
    "Report",
    "Sound",
    "Storyboard",
    # what they catch
    "FaceLockError",
    "InputError",
    "ConfigError",
    "EnvironmentFailure",
    "ModelError",
    "DeviceError",
    "EncoderError",
    "StorageError",
    "NotFiniteError",
    "IdentityMissedError",
    "OutputBusyError",
    "InterruptedRunError",
    "__version__",
]

_HOME = {
    "generate": "api",
    "lock": "api",
    "verify": "api",
    "create_identity": "api",
    "load_identity": "api",
    "save_identity": "api",
    "load_recipe": "recipe",
    "Clip": "clip",
    "Footage": "footage",
    "Chunk": "types",
    "Consent": "types",
    "Enrolment": "identity.findings",
    "Identity": "types",
    "Pipeline": "pipeline",
    "Recipe": "recipe",
    "Report": "report",
    "Sound": "types",
    "Storyboard": "storyboard",
    "render": "storyboards.render",
}


def __getattr__(name: str) -> Any:
    """Load a public name from its module on first use (PEP 562)."""
    if name not in __all__ or name == "__version__":
        raise AttributeError(f"module 'facelock' has no attribute {name!r}")
    value = getattr(import_module(f"facelock.{_HOME.get(name, 'errors')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
