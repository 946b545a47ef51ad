"""Which parts of a recipe a command uses: sections (``"lock"``), or single models of one (``"faces.detector"``).

::

    uses(VERIFY, "judge.encoder")       # True
    uses(VERIFY, "blueprint.model")     # False: whoever only measures a clip need not have it

What is not used is not asked for: its weights need not be here, nor allow what ``--commercial`` asks.
"""

from __future__ import annotations

Uses = frozenset[str]

ALL: Uses = frozenset({"blueprint", "guidance", "faces", "lock", "restore", "judge", "encode"})
"""Making a clip."""
REFERENCES: Uses = frozenset({"faces", "judge"})
"""Reading the characters' pictures."""
VERIFY: Uses = frozenset({"faces.detector", "judge"})
"""Measuring a finished clip."""
RESTORER: Uses = frozenset({"restore.restorer", "restore.faceid"})
"""Restoring faces where frames keep their size, so that nothing is enlarged."""


def clip_uses(*, lock: bool, restore: bool, guided: bool) -> Uses:
    """What makes a clip where the lock or the restoration is left out: :data:`ALL` with both.

    The recogniser in the loop measures for the lock and the restoration, and leads a ``guided`` blueprint; without
    any of these a reference is read with the judge alone.
    """
    if lock and restore:
        return ALL
    used = {"blueprint", "guidance", "faces.detector", "restore.upscaler", "judge", "encode"}
    used |= {"lock"} if lock else set()
    used |= RESTORER if restore else set()
    return frozenset(used | ({"faces.encoder"} if lock or restore or guided else set()))


def uses(used: Uses, role: str) -> bool:
    """Whether ``role``, a section or a model of one, is among ``used``."""
    return any(role == part or role.startswith(f"{part}.") for part in used)
