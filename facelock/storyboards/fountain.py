"""A Fountain screenplay as a storyboard's values, through ``screenplain`` (extra ``fountain``).

Each stretch of action and each speech becomes a shot of its scene; two who speak at once share one. Who speaks,
or whose name stands in the action, is its character; the length is guessed from the words. The cast's faces
cannot be in a screenplay: ``maria.face``, or a picture of that name, is looked for beside it.
"""

from __future__ import annotations

import io
import re
import string
import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from facelock.errors import EnvironmentFailure
from facelock.storyboards.reading import Source

WORDS_PER_SECOND = 2.5
"""Of speech; action is read at the same pace."""
SHORTEST, LONGEST = 2.0, 20.0
"""Seconds of a shot."""
_FACES = (".face", ".png", ".jpg", ".jpeg", ".webp")
_TRANSITIONS = {"DISSOLVE TO": "dissolve", "FADE IN": "fade", "FADE TO": "fade"}
_LATIN = str.maketrans(
    {"ß": "ss", "æ": "ae", "œ": "oe", "ø": "o", "ł": "l", "đ": "d", "ð": "d", "þ": "th", "ı": "i"}
)
"""Letters that Unicode does not take apart."""


def read_fountain(text: str, folder: Path) -> Source:
    """Read a screenplay that lies in ``folder``. Raises ``EnvironmentFailure`` without ``screenplain``."""
    try:
        from screenplain.parsers import fountain
    except ImportError:
        raise EnvironmentFailure(
            "Fountain screenplays need screenplain. Give pip install 'facelock-video[fountain]', or write YAML."
        ) from None
    play = fountain.parse(io.StringIO(text))
    names = _names(dict.fromkeys(_speaker(speech) for part in play for speech in _speeches(part)))
    shots = list(_shots(play, names))
    shown = {name for shot in shots for name in re.findall(r"\{(.*?)\}", shot["prompt"])}
    title = " ".join(getattr(play, "title_page", {}).get("Title", [])).strip("*_ ")
    data: dict[str, Any] = {"schema": "facelock.storyboard.v1", **({"title": title} if title else {})}
    data["cast"] = {name: _member(name, given, folder) for given, name in names.items() if name in shown}
    source = Source({**data, "shots": shots})
    if not shots:
        source.data = None
        source.complain((), "no scene of the screenplay shows a character who speaks in it")
    return source


def _speeches(part: Any) -> list[Any]:
    """The speeches of a part: one, two at a time where the dialogue is dual, or none."""
    kind = type(part).__name__
    return [part.left, part.right] if kind == "DualDialog" else [part] if kind == "Dialog" else []


def _speaker(speech: Any) -> str:
    """``MARIA (O.S.) ^`` → ``MARIA``."""
    return " ".join(re.sub(r"\(.*|\^", "", str(speech.character)).split())


def _names(speakers: Mapping[str, Any]) -> dict[str, str]:
    """Speaker → character of the storyboard, in ASCII: ``ÉLODIE`` → ``elodie``, ``МАРИЯ`` → ``character_3``."""
    names: dict[str, str] = {}
    for number, speaker in enumerate(speakers, 1):
        apart = unicodedata.normalize("NFKD", speaker.lower().translate(_LATIN))
        plain = "".join(each for each in apart if not unicodedata.combining(each))
        name = re.sub(r"[^a-z0-9]+", "_", plain).strip("_")
        if any(each.isalpha() and not each.isascii() for each in plain):
            name = f"character_{number}"  # of another script
        name = name if name[:1].isalpha() else f"character_{name or number}"
        same = any(name == other and speaker.casefold() != given.casefold() for given, other in names.items())
        names[speaker] = f"{name[:50]}_{number}" if same or len(name) > 60 else name
    return names


def _shots(play: Any, names: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    scene, begins, first = "", "cut", True
    for part in play:
        kind = type(part).__name__
        lines = [str(line) for line in getattr(part, "lines", [getattr(part, "line", "")])]
        if kind == "Slug":
            scene = lines[0]
        elif kind == "Transition" or " ".join(lines).strip().upper() == "FADE IN:":
            begins = _TRANSITIONS.get(" ".join(lines).strip(" :.>").upper(), "cut")
        else:
            prompt, words = _action(lines, names) if kind == "Action" else _speech(part, names)
            if "{" not in prompt:
                continue  # a shot needs a character: an empty street is not made here
            shot: dict[str, Any] = {"prompt": prompt.rstrip(". ") + _place(scene), "seconds": _seconds(words)}
            shot.update({"scene": scene} if scene else {})
            begins = "fade" if first and begins == "dissolve" else begins  # there is nothing to dissolve from
            shot.update({"transition": begins} if begins != "cut" else {})
            begins, first = "cut", False
            yield shot


def _speech(part: Any, names: Mapping[str, str]) -> tuple[str, int]:
    """What is seen while one or two people speak, and how many words it takes; nothing where nobody does."""
    speeches = _speeches(part)
    blocks = [block for speech in speeches for block in speech.blocks]
    who = " and ".join(dict.fromkeys(f"{{{names[_speaker(speech)]}}}" for speech in speeches))
    manner = " ".join(_plain(line).strip("()") for aside, line in blocks if aside)
    spoken = [
        sum(len(_plain(line).split()) for aside, line in speech.blocks if not aside) for speech in speeches
    ]
    return (f"{who} talking{', ' + manner if manner else ''}" if who else ""), max(spoken, default=0)


def _action(lines: list[str], names: Mapping[str, str]) -> tuple[str, int]:
    """``MARIA sits`` → ``{maria} sits``: names begin with a capital, so that WILL is not in "he will"."""
    text = _plain(" ".join(lines))
    if not names:
        return text, 0
    by_length = sorted(names, key=len, reverse=True)  # ANN MARIE is not ANN
    known = {name.casefold(): names[name] for name in by_length}
    shown = "|".join(re.escape(name).replace(r"\ ", r"\s+") for name in by_length)

    def braced(found: re.Match[str]) -> str:
        name = known.get(" ".join(found[0].split()).casefold())
        return f"{{{name}}}" if name and not found[0][0].islower() else found[0]

    return re.sub(rf"(?<!\w)(?:{shown})(?!\w)", braced, text, flags=re.IGNORECASE), len(text.split())


def _plain(text: Any) -> str:
    """Without braces, which mean characters in a prompt."""
    return str(text).replace("{", "").replace("}", "")


def _member(name: str, given: str, folder: Path) -> dict[str, str]:
    """The character's file beside the screenplay; where there is none, the checks will say so."""
    stems = (name, given.lower(), given)
    found = (f"{stem}{end}" for stem in stems for end in _FACES if _is_file(folder / f"{stem}{end}"))
    look = {"look": string.capwords(given)} if name.startswith("character_") else {}
    return {"face": next(found, f"{name}.face"), **look}


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _place(scene: str) -> str:
    """``INT. OFFICE - DAY`` → ``, office``."""
    found = re.match(
        r"(?:INT|EXT|EST|I/E)[./ ]+(?:EXT[./ ]+)?(.+?)(?:\s+[-–—]+\s.*|--.*)?$", scene, re.IGNORECASE
    )
    return f", {_plain(found[1]).strip().lower()}" if found else ""


def _seconds(words: int) -> float:
    return round(min(max(words / WORDS_PER_SECOND, SHORTEST), LONGEST), 1)
