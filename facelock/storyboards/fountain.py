"""A Fountain screenplay as a storyboard's values, through ``screenplain`` (extra ``fountain``).

Each stretch of action and each speech becomes a shot of its scene. Who speaks, or whose name stands in
capitals in the action, is its character; the length is guessed from the words. The cast's faces cannot
be in a screenplay: ``maria.face``, or a picture of that name, is looked for beside it.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from facelock.errors import EnvironmentFailure
from facelock.storyboards.reading import Source

WORDS_PER_SECOND = 2.5
"""Of speech; action is read at the same pace."""
SHORTEST, LONGEST = 2.0, 20.0
"""Seconds of a shot."""
_FACES = (".face", ".png", ".jpg", ".jpeg", ".webp")
_TRANSITIONS = {"DISSOLVE TO:": "dissolve", "FADE IN:": "fade", "FADE TO:": "fade"}


def read_fountain(text: str, folder: Path) -> Source:
    """Read a screenplay that lies in ``folder``. Raises ``EnvironmentFailure`` without ``screenplain``."""
    try:
        from screenplain.parsers import fountain
    except ImportError:
        raise EnvironmentFailure(
            "Fountain screenplays need screenplain. Give pip install 'facelock-video[fountain]', or write YAML."
        ) from None
    play = fountain.parse(io.StringIO(text))
    speakers = dict.fromkeys(_speaker(part) for part in play if type(part).__name__ == "Dialog")
    shots = list(_shots(play, list(speakers)))
    cast = dict.fromkeys(name for shot in shots for name in re.findall(r"\{(.*?)\}", shot["prompt"]))
    title = " ".join(getattr(play, "title_page", {}).get("Title", []))
    data: dict[str, Any] = {"schema": "facelock.storyboard.v1", **({"title": title} if title else {})}
    data["cast"] = {name: {"face": _face(name, folder)} for name in cast}
    source = Source({**data, "shots": shots})
    if not shots:
        source.complain((), "no scene of the screenplay shows a character who speaks in it")
    return source


def _speaker(part: Any) -> str:
    """``MARIA (O.S.) ^`` → ``maria``."""
    name = re.sub(r"\(.*?\)|\^", "", str(part.character)).strip().lower()
    return re.sub(r"[^a-z0-9]+", "_", name).strip("_")


def _shots(play: Any, speakers: list[str]) -> Iterator[dict[str, Any]]:
    scene, begins = "", "cut"
    for part in play:
        kind = type(part).__name__
        if kind == "Slug":
            scene = str(part.line)
        elif kind == "Transition":
            begins = _TRANSITIONS.get(str(part.line).strip().upper(), "cut")
        elif kind in ("Action", "Dialog"):
            prompt, words = _speech(part) if kind == "Dialog" else _action(part, speakers)
            if "{" not in prompt:
                continue  # a shot needs a character: an empty street is not made here
            shot: dict[str, Any] = {"prompt": prompt.rstrip(". ") + _place(scene), "seconds": _seconds(words)}
            shot.update({"scene": scene} if scene else {})
            shot.update({"transition": begins} if begins != "cut" else {})
            begins = "cut"
            yield shot


def _speech(part: Any) -> tuple[str, int]:
    manner = " ".join(_plain(line).strip("()") for aside, line in part.blocks if aside)
    words = sum(len(_plain(line).split()) for aside, line in part.blocks if not aside)
    return f"{{{_speaker(part)}}} talking{', ' + manner if manner else ''}", words


def _action(part: Any, speakers: list[str]) -> tuple[str, int]:
    text = _plain(" ".join(_plain(line) for line in part.lines))
    for name in speakers:
        shown = re.escape(name).replace("_", r"\W")
        text = re.sub(rf"\b(?:{shown})\b", f"{{{name}}}", text, flags=re.IGNORECASE)
    return text, len(text.split())


def _plain(text: Any) -> str:
    """Without braces, which mean characters in a prompt."""
    return str(text).replace("{", "").replace("}", "")


def _face(name: str, folder: Path) -> str:
    """The character's file beside the screenplay; where there is none, the checks will say so."""
    return next((f"{name}{end}" for end in _FACES if (folder / f"{name}{end}").is_file()), f"{name}.face")


def _place(scene: str) -> str:
    """``INT. OFFICE - DAY`` → `` in office``."""
    found = re.match(r"(?:INT|EXT|EST|I/E)[./ ]+(?:EXT[./ ]+)?([^-]+)", scene, re.IGNORECASE)
    return f", {found[1].strip().lower()}" if found else ""


def _seconds(words: int) -> float:
    return round(min(max(words / WORDS_PER_SECOND, SHORTEST), LONGEST), 1)
