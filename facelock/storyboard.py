"""A storyboard: a cast, its shots, and what holds for all of them, as a strict, versioned format.

::

    board = Storyboard.load("board.yaml")        # or .json, .csv, .fountain; all mistakes at once
    board.save("board.json")                     # nothing is lost
    facelock.render(board, "film/")

docs/storyboards.md describes every key, docs/storyboard.schema.json is the JSON schema. A storyboard is
checked whole before any model is loaded; nothing here imports torch.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    WithJsonSchema,
    field_serializer,
)

from facelock.errors import ConfigError
from facelock.files import atomic_write
from facelock.job import LARGEST_SEED, LONGEST_PROMPT, LONGEST_SECONDS, NAMED_SIDES, parse_size

SCHEMA: Literal["facelock.storyboard.v1"] = "facelock.storyboard.v1"
MOST_SHOTS = 2000
LONGEST_TRANSITION = 3.0
"""Seconds."""
CHARACTER = re.compile(r"\{([^{}]*)\}")
"""A character in a prompt."""
TRANSITIONS = ("cut", "fade", "dissolve")
_TRANSITION = re.compile(rf"({'|'.join(TRANSITIONS)})(?: +([0-9]+(?:\.[0-9]+)?))?")
_CONTROL = "\\u0000-\\u0008\\u000b\\u000c\\u000e-\\u001f\\u007f"
"""All but tab and line breaks."""
_CHARACTER_NAME = "[A-Za-z][A-Za-z0-9_-]{0,63}"
_RESERVED = re.compile(r"(con|prn|aux|nul|com[\d¹²³]|lpt[\d¹²³])(\..*)?", re.IGNORECASE)


class Transition(NamedTuple):
    """How a shot begins."""

    kind: str
    """``cut``; ``fade``: out of black; ``dissolve``: it overlaps the end of the shot before."""
    seconds: float


def _size(value: object) -> object:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _checked_size(value: str) -> str:
    try:
        parse_size(value)
    except ConfigError as error:
        raise ValueError(str(error).rstrip(".")) from None
    return value


def _checked_transition(value: str) -> str:
    found = _TRANSITION.fullmatch(value)
    if not found or float(found[2] or 0) > LONGEST_TRANSITION:
        raise ValueError(
            f"must be cut, fade or dissolve, with up to {LONGEST_TRANSITION:g} seconds if wanted, "
            "such as 'dissolve 0.5'"
        )
    return value


def _any_case(word: str) -> str:
    """A pattern, for JSON schemas have no flag for it: ``4k`` → ``4[Kk]``."""
    return "".join(f"[{each.upper()}{each}]" if each.isalpha() else each for each in word)


def _plain_text(value: str) -> str:
    if re.search(f"[{_CONTROL}]", value):
        raise ValueError("holds a control character; write plain text")
    return value


def safe_name(name: str) -> str:
    """The name itself when it can be a file's on any system, inside its folder; ``ValueError`` otherwise."""
    plain = unicodedata.normalize("NFC", name)
    wrong = not re.fullmatch(r"[\w][\w .-]*", plain) or plain[-1] in ". " or len(plain.encode()) > 100
    if wrong or ".." in plain or _RESERVED.fullmatch(plain):
        raise ValueError(
            "cannot be a file's name; give letters, digits, spaces, - and _, such as s010, 100 bytes at most"
        )
    return plain


def _character_name(name: str) -> str:
    if not re.fullmatch(_CHARACTER_NAME, name):
        raise ValueError("a character's name must be a letter, then letters, digits, - or _")
    return name


def _one_or_more(value: object) -> object:
    return [value] if isinstance(value, str) else value


Text = Annotated[
    str,
    Field(max_length=LONGEST_PROMPT, json_schema_extra={"pattern": f"^[^{_CONTROL}]*$"}),
    AfterValidator(_plain_text),
]
Seed = Annotated[int, Field(ge=0, le=LARGEST_SEED)]
Share = Annotated[float, Field(ge=0, le=1)]
Tries = Annotated[int, Field(ge=1, le=100)]
FilePath = Annotated[str, Field(min_length=1, max_length=4096)]
_PATH = {"type": "string", "minLength": 1, "maxLength": 4096}
_SIDE = "[0-9]{1,6}"
Size = Annotated[
    str,
    BeforeValidator(_size),
    AfterValidator(_checked_size),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer", "minimum": 0, "maximum": 999_999},
                {
                    "type": "string",
                    "pattern": rf"^\s*({_SIDE}(\s*[xX×]\s*{_SIDE})?|{'|'.join(map(_any_case, NAMED_SIDES))})\s*$",
                },
            ]
        }
    ),
]
TransitionText = Annotated[
    str,
    AfterValidator(_checked_transition),
    WithJsonSchema(
        {
            "type": "string",
            "pattern": rf"^({'|'.join(TRANSITIONS)})( +0*([0-2](\.[0-9]+)?|{LONGEST_TRANSITION:g}(\.0+)?))?$",
        }
    ),
]
Faces = Annotated[
    tuple[FilePath, ...],
    BeforeValidator(_one_or_more),
    Field(min_length=1, max_length=64, strict=False),
    WithJsonSchema({"anyOf": [_PATH, {"type": "array", "items": _PATH, "minItems": 1, "maxItems": 64}]}),
]


_DEVICES = "|".join(map(_any_case, ("con", "prn", "aux", "nul", "com[0-9¹²³]", "lpt[0-9¹²³]")))
_BARRED = "\\u0000-\\u001f!-,/:-@\\[-^`{-\\u007f"
"""What of ASCII is in no shot's name."""
Name = Annotated[
    str,
    AfterValidator(safe_name),
    WithJsonSchema(
        {
            "type": "string",
            "maxLength": 100,
            "pattern": rf"^(?!.*\.\.)(?!.*[. ]$)(?!({_DEVICES})(\.|$))"
            rf"[^ .{_BARRED}\-][^{_BARRED}]*$",
        }
    ),
]
_PROMPT = rf"^[^{{}}{_CONTROL}]*(\{{{_CHARACTER_NAME}\}}[^{{}}{_CONTROL}]*)+$"


class _Part(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, strict=True, use_attribute_docstrings=True
    )


class CastMember(_Part):
    """One character."""

    face: Faces
    """Its ``.face`` file, a picture, or several pictures of the same person; relative to the storyboard."""
    face_index: int | None = Field(default=None, ge=0)
    """Which face of a picture with several, counted from 0, left to right."""
    look: Text = ""
    """Words that take the place of ``{name}`` in prompts: "a woman with red hair". Empty: the name itself."""

    @field_serializer("face")
    def _shown(self, face: tuple[str, ...]) -> str | list[str]:
        return face[0] if len(face) == 1 else list(face)


class Defaults(_Part):
    """What holds for every shot that does not say otherwise."""

    recipe: FilePath = "miniature"
    """Name of a shipped recipe, or the path of a .toml file, relative to the storyboard."""
    size: Size | None = None
    """Side or WIDTHxHEIGHT of the final frames in pixels; null: the recipe's."""
    fps: float | None = Field(default=None, gt=0, le=1000)
    """Frames per second that the film is meant to have; a recipe with another rate is a mistake."""
    seed: Seed = 0
    """Each shot's own seed derives from this one and the shot's name."""
    target: Share | None = None
    """Share of frames that must show their characters; null: the recipe's."""
    tries: Tries = 3
    """Takes that a shot may need before it is reported as failed."""


class Shot(_Part):
    """One clip of the film."""

    name: Name | None = None
    """Names its files; null: s010, s020, ... by place."""
    prompt: Annotated[
        str,
        Field(min_length=1, max_length=LONGEST_PROMPT, json_schema_extra={"pattern": _PROMPT}),
        AfterValidator(_plain_text),
    ]
    """What it shows; ``{maria}`` stands for a character of the cast. At least one must be named."""
    seconds: float = Field(gt=0, le=LONGEST_SECONDS)
    seed: Seed | None = None
    """Null: derived from the defaults' seed and the shot's name."""
    camera: Text = ""
    """Words on the camera, added to the end of the prompt."""
    transition: TransitionText = "cut"
    """How the shot begins: cut, fade (out of black) or dissolve, with seconds: "dissolve 0.5"."""
    audio: FilePath | None = None
    """Sound of the shot, cut or padded to its length; relative to the storyboard."""
    scene: Text = ""
    """Shots of one scene are compared with each other in the report."""
    note: Text = ""
    """For people; nothing reads it."""
    recipe: FilePath | None = None
    size: Size | None = None
    target: Share | None = None
    tries: Tries | None = None
    lock: bool = True
    """Off only for comparison."""
    restore: bool = True

    @property
    def begins(self) -> Transition:
        """The transition, read."""
        found = _TRANSITION.fullmatch(self.transition)
        kind, seconds = (found[1], found[2]) if found else ("cut", None)
        return Transition(kind, 0.0 if kind == "cut" else float(seconds or 0.5))


class Storyboard(_Part):
    """A film as it is asked for. Made by :meth:`load`, which checks it whole."""

    schema_: Literal["facelock.storyboard.v1"] = Field(alias="schema")
    title: Text = ""
    audio: FilePath | None = None
    """Sound of the whole film, under that of the shots."""
    cast: Annotated[
        Mapping[Annotated[str, AfterValidator(_character_name)], CastMember],
        Field(
            min_length=1,
            max_length=64,
            json_schema_extra={"propertyNames": {"pattern": f"^{_CHARACTER_NAME}$"}},
        ),
    ]
    """Name of each character, as in ``{name}`` → its face."""
    defaults: Defaults = Defaults()
    shots: Annotated[tuple[Shot, ...], Field(min_length=1, max_length=MOST_SHOTS, strict=False)]
    _folder: Path = PrivateAttr(default=Path())

    @classmethod
    def load(cls, path: str | Path, *, files: bool = True) -> Storyboard:
        """Read ``path`` (.yaml, .json, .csv, .fountain) and check it, files and recipes that it names included.

        Without ``files``, faces and sounds need not be there yet.

        Raises :class:`ConfigError` with every mistake and its line, ``InputError`` for a file that cannot be
        read at all.
        """
        from facelock.storyboards.checks import checked

        return checked(Path(path), files=files)

    @classmethod
    def from_data(cls, data: Mapping[str, Any], folder: str | Path = ".") -> Storyboard:
        """Build one from plain values, with paths relative to ``folder``.

        Raises ``pydantic.ValidationError`` (a ``ValueError``) when they do not fit the format.
        """
        board = cls.model_validate(data)
        board._folder = Path(folder).absolute()
        return board

    @property
    def folder(self) -> Path:
        """What the paths in it are relative to."""
        return self._folder

    def path(self, given: str) -> Path:
        """A path of the storyboard, absolute."""
        return self._folder / given

    def name(self, index: int) -> str:
        """Name of the shot at ``index``: its own, or s010, s020, ... by place."""
        return self.shots[index].name or default_name(index)

    def seed(self, index: int) -> int:
        """Seed of the shot at ``index``: its own, or derived from the defaults' seed and the shot's name."""
        given = self.shots[index].seed
        return seed_of(self.defaults.seed, self.name(index)) if given is None else given

    def characters(self, index: int) -> tuple[str, ...]:
        """Characters of the shot at ``index``, in the order in which its prompt first names them."""
        return tuple(dict.fromkeys(CHARACTER.findall(self.shots[index].prompt)))

    def prompt(self, index: int) -> str:
        """The prompt of the shot at ``index`` as the backbone reads it: looks for names, the camera at the end."""
        shot = self.shots[index]
        words = CHARACTER.sub(lambda found: self.cast[found[1]].look or found[1], shot.prompt)
        return f"{words}, {shot.camera}" if shot.camera else words

    def data(self) -> dict[str, Any]:
        """Plain JSON values: what was given, and nothing that was not."""
        return self.model_dump(mode="json", by_alias=True, exclude_unset=True)

    def moved(self, folder: str | Path) -> Storyboard:
        """The same storyboard, its relative paths as seen from ``folder``."""
        target = Path(folder).absolute()

        def seen(given: str | None) -> str | None:
            return (
                given
                if given is None or Path(given).is_absolute()
                else os.path.relpath(self.path(given), target)
            )

        data = self.data()
        for table in (data, *data["shots"]):
            if "audio" in table:
                table["audio"] = seen(table["audio"])
        for member in data["cast"].values():
            faces = _one_or_more(member["face"])
            member["face"] = [seen(face) for face in faces] if isinstance(faces, list) else faces
        for table in (data.get("defaults", {}), *data["shots"]):
            if is_file_recipe(table.get("recipe")):
                table["recipe"] = seen(table["recipe"])
        return self.from_data(data, target)

    def save(self, path: str | Path) -> None:
        """Write it as .yaml, .json or .csv; relative paths are rewritten for the new place.

        Raises ``InputError`` for another ending, ``StorageError`` when the disk is full.
        """
        from facelock.storyboards.writing import text_of

        path = Path(path)
        atomic_write(path, text_of(self.moved(path.absolute().parent), path).encode())


def default_name(index: int) -> str:
    """``s010`` for the first shot, ``s020`` for the second."""
    return f"s{10 * (index + 1):03d}"


def is_file_recipe(recipe: object) -> bool:
    """Whether a recipe is given as a file rather than by the name of a shipped one."""
    return isinstance(recipe, str) and (recipe.endswith(".toml") or "/" in recipe)


def seed_of(seed: int, *purpose: int | str) -> int:
    """A seed in [0, 2³¹) for one purpose, from the sha256 of both: short enough to be read out and typed."""
    text = "\x1f".join([str(seed), *(f"{type(each).__name__}:{each}" for each in purpose)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1


def schema_text() -> str:
    """The JSON schema of a storyboard, as docs/storyboard.schema.json holds it."""
    schema = Storyboard.model_json_schema(by_alias=True)
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"
