"""What became of each photo when an identity was made: :func:`facelock.identity.enrol.create_identity`'s result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from facelock.errors import InputError
from facelock.identity.photos import Quality
from facelock.types import Identity

MOST_PHOTOS = 256
MOST_CROPS = 8
"""References that are kept as pictures."""
LONGEST_NAME = 100


class Outcome(StrEnum):
    """What became of a photo."""

    USED = "used"
    UNREADABLE = "unreadable"
    """No picture that can be read."""
    DUPLICATE = "duplicate"
    """The same picture as another one."""
    NO_FACE = "no face"
    POOR = "poor"
    """Too small, turned away, dark, bright or blurred."""
    STRANGER = "another person"
    UNLIKE = "unlike"
    """Probably the person, but too far from the other photos to say anything."""


@dataclass(frozen=True)
class Finding:
    """What was found in one photo."""

    photo: str
    """Its file name, or its number from 1 where it has none."""
    outcome: Outcome
    reason: str = ""
    """Why it was left out, or what was remarked; empty where there is nothing to say."""
    quality: Quality | None = None
    similarity: Mapping[str, float] = field(default_factory=dict)
    """Encoder's id → cosine to the centre of the photos that are used, itself left out."""

    @property
    def remark(self) -> str:
        """One line about this photo, without a full stop; empty where there is nothing to say."""
        left_out = "" if self.outcome is Outcome.USED else "left out: "
        return f"{self.photo}: {left_out}{self.reason}" if self.reason else ""


@dataclass(frozen=True)
class Enrolment:
    """A new identity, and how it came about."""

    identity: Identity
    findings: tuple[Finding, ...]
    """One per photo, in the order in which they were given."""
    keep_crops: bool = False
    """Whether a file of it may hold the aligned crops."""

    @property
    def used(self) -> tuple[Finding, ...]:
        """The photos that the identity is made of."""
        return tuple(finding for finding in self.findings if finding.outcome is Outcome.USED)

    @property
    def remarks(self) -> tuple[str, ...]:
        """A line for each photo of which there is something to say."""
        return tuple(finding.remark for finding in self.findings if finding.remark)


def check_name(name: str) -> str:
    """Return ``name``. Raises ``InputError`` for an empty or overlong one, or one with control characters."""
    if not name.strip() or len(name) > LONGEST_NAME or not name.isprintable():
        raise InputError(
            f"The name is {name[: LONGEST_NAME + 1]!r}. Give one line of 1 to {LONGEST_NAME} characters."
        )
    return name
