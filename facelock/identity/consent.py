"""Whether a face may be used: the consent record of an identity, and the one place that holds to it.

::

    require_consent(identity)      # raises InputError once it has expired or was revoked

FaceLock cannot know whether a record is true. It keeps what was said, by whom, and stops when it ends.
"""

from __future__ import annotations

import logging
from datetime import UTC, date, datetime

from facelock.errors import InputError
from facelock.types import Consent, Identity

logger = logging.getLogger(__name__)

KINDS = ("self", "granted", "fictional", "licensed", "unknown")
"""Oneself; a person who agreed; nobody who exists; under a contract; nothing was said."""
LONGEST = 500
"""Characters of a free text."""


def today() -> date:
    """The date now, UTC."""
    return datetime.now(UTC).date()


def check_consent(consent: Consent) -> Consent:
    """Return the record itself. Raises ``InputError`` for an unknown kind, a date that is none, or a text that is
    too long or has control characters."""
    if consent.kind not in KINDS:
        raise InputError(f"The consent is {consent.kind[:40]!r}. Give one of {', '.join(KINDS)}.")
    for what, text in (("giver", consent.who), ("scope", consent.scope)):
        if len(text) > LONGEST or not text.isprintable():
            raise InputError(
                f"The consent's {what} is too long or not plain text. Give one line of {LONGEST} characters at most."
            )
    for what, text in (("date", consent.when), ("end", consent.expires), ("revocation", consent.revoked)):
        if text:
            _date(what, text)
    return consent


def require_consent(identity: Identity, now: date | None = None) -> None:
    """Raise ``InputError`` where the consent was revoked or has expired by ``now`` (default: today, UTC).

    It holds through its last day. Where nothing is known, the face may be used: :func:`remark_unknown`.
    """
    consent, now = identity.consent, now or today()
    if consent.revoked:
        raise InputError(
            f"{identity.name}: the consent to use this face was revoked on {consent.revoked}. "
            "Use another identity, or ask again and create it anew."
        )
    if consent.expires and _date("end", consent.expires) < now:
        raise InputError(
            f"{identity.name}: the consent to use this face expired on {consent.expires}. "
            "Ask again and create the identity anew."
        )


def remark_unknown(identity: Identity) -> None:
    """Log a line where an identity, which could say it, says nothing of its consent; plain pictures cannot."""
    if identity.consent.kind == "unknown" and identity.uuid:
        logger.info("%s: nothing is known of this person's consent; record it with --consent", identity.name)


def _date(what: str, text: str) -> date:
    try:
        if len(text) != len("2026-01-31"):
            raise ValueError
        return date.fromisoformat(text)
    except ValueError:
        raise InputError(f"The consent's {what} is {text[:40]!r}. Give a date such as 2026-12-31.") from None
