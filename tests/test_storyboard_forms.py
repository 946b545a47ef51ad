"""Storyboards as others write them: Excel's tables, screenplays, odd JSON; and the schema that says what is read."""

from __future__ import annotations

import copy
import json
import random

import jsonschema
import pytest
import toys

from facelock import cli
from facelock.errors import ConfigError
from facelock.storyboard import Storyboard, schema_text
from facelock.storyboards.checks import MOST_TOLD, StoryboardError

HEAD = "kind;name;face;prompt;seconds;transition\ncast;maria;maria.png;;;\n"
BOARD = {
    "schema": "facelock.storyboard.v1",
    "title": "t",
    "audio": "a.wav",
    "cast": {"maria": {"face": "m.png", "face_index": 0, "look": "x"}, "tom": {"face": ["a", "b"]}},
    "defaults": {"recipe": "miniature", "size": 256, "fps": 12, "seed": 1, "target": 0.9, "tries": 2},
    "shots": [
        {
            "name": "a b", "prompt": "{maria} talks", "seconds": 1, "seed": 4, "camera": "c", "transition": "fade 0.5",
            "audio": "x.wav", "scene": "s", "note": "n", "recipe": "r", "size": "4k", "target": 1, "tries": 1,
            "lock": True, "restore": False,
        },
        {"prompt": "{tom}", "seconds": 2.5},
    ],
}  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    for name in ("maria.png", "tom.png", "élodie.png"):
        (tmp_path / name).write_bytes(toys.picture(name))
    return tmp_path


def load(folder, text, name):
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return Storyboard.load(folder / name)


def mistakes(folder, text, name="board.csv"):
    with pytest.raises(StoryboardError) as caught:
        load(folder, text, name)
    return str(caught.value)


def test_a_table_as_a_german_excel_saves_it(folder):
    text = HEAD + ';;;"{maria} talking; then silent";2,5;\n;;;{maria} nodding;2;"fade 0,25"\n'
    for given in (text, "sep=;\n" + text, "\ufeff" + text.replace("\n", "\r\n")):
        board = load(folder, given, "board.csv")
        assert [shot.seconds for shot in board.shots] == [2.5, 2]
        assert board.shots[1].begins == ("fade", 0.25) and "; then" in board.shots[0].prompt


def test_tabs_capital_titles_and_empty_columns(folder):
    text = "Kind\tName\tFace\tPrompt\tSeconds\t\t\ncast\tmaria\tmaria.png\t\t\t\t\n\t\t\t{maria} talking\t2\t\t\n"
    assert load(folder, text, "board.csv").shots[0].seconds == 2
    assert "line 3: 'oops' stands in a column without a name" in mistakes(folder, text[:-1] + "oops\n")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty; its first line names the columns"),
        (HEAD + ';;;"{maria}\ntalking";2;\n;;;"{mario}\ntalking";2;\n', "line 5: shots.1.prompt: {mario} is not in"),
        (HEAD + ";;;{maria};1_0;\n", "line 3: shots.0.seconds: input should be a valid number (found '1_0')"),
        ("sep=;\n" + HEAD + ";;;{mario};1;\n", "line 4: shots.0.prompt: {mario} is not in the cast"),
    ],
)  # fmt: skip
def test_a_table_s_mistakes_have_their_row_s_first_line(folder, text, words):
    assert words in mistakes(folder, text)


def test_a_formula_is_one_mistake(folder):
    found = mistakes(folder, HEAD + ";;;=1+1 {maria};1;\n")
    assert ": a mistake." in found and "line 3: prompt: '=1+1 {maria}' is a formula" in found


def test_a_long_list_of_mistakes_is_cut(folder):
    found = mistakes(folder, HEAD + ";;;{mario} nods;1;\n" * 1500)
    assert "1500 mistakes" in found and f"and {1500 - MOST_TOLD} more" in found
    assert len(found.splitlines()) == MOST_TOLD + 3


def test_a_storyboard_that_a_table_cannot_hold_is_not_written_as_one(folder):
    for title in ("=1+1", "ends with spaces  "):
        board = Storyboard.from_data({**minimal(), "title": title}, folder)
        with pytest.raises(ConfigError, match=r"cannot be a table without a loss.*Write \.yaml or \.json"):
            board.save(folder / "out.csv")
        assert not (folder / "out.csv").exists()


def minimal(**shot):
    shots = [{"prompt": "{maria} talking", "seconds": 1, **shot}]
    return {"schema": "facelock.storyboard.v1", "cast": {"maria": {"face": "maria.png"}}, "shots": shots}


def test_odd_line_breaks_survive(folder):
    note = "a\u0085b\u2028c\rd\r\ne\ufefff\n\n  g\t"
    board = Storyboard.from_data({**minimal(note=note), "title": "x\u0085 y"}, folder)
    for name in ("a.yaml", "b.json", "c.yaml"):
        board.save(folder / name)
        board = Storyboard.load(folder / name)
    assert board.shots[0].note == note and board.title == "x\u0085 y"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "line 1: is not valid JSON (Expecting value)"),
        ("  \n", "is not valid JSON"),
        ('{"title": "a\x7f", "title": "b"}', "title: this key stands twice"),  # DEL is no YAML
        ('{"seed": ' + "9" * 5000 + "}", "99999999999999999999... is too long a number"),
        (json.dumps({**minimal(), "title": "a\0b"}), "line 1: title: holds a control character"),
        (json.dumps(minimal(prompt="{maria} \x1b[31m")), "shots.0.prompt: holds a control character"),
    ],
)
def test_odd_json_is_refused(folder, text, words):
    assert words in mistakes(folder, text, "board.json")


def test_yaml_that_says_it_is_older_is_refused(folder):
    text = "%YAML 1.1\n---\n" + json.dumps(minimal())
    assert "says that it is other YAML than 1.2" in mistakes(folder, text, "board.yaml")
    assert load(folder, text.replace("1.1", "1.2"), "board.yaml").shots


VALUES = (
    None, True, 0, 1, -1, 101, 1.5, 1e9, 86_400, 86_401, 2**63, 2**63 - 1, "", "x", "..", "a..b", ".a", "a.",
    "-a", "a-b", "_a", "con", "CON.x", "Com1", "lpt¹", "conx", "a/b", "a\\b", "ä é", "日本", "x" * 100, "x" * 101,
    "a:b", "a\nb", "a\0b", "\x7f", "{maria}", "{maria} {tom}", "cut", "dissolve 3", "dissolve 3.0",
    "dissolve 3.01", "dissolve 00.5", "dissolve .5", "dissolve 2.", "fade 1 ", "Fade", "dissolve ٣", "256",
    "256 X 256", " 4K ", "480P", "12345678", "1x2x3", "x" * 10_001, [], ["a"], ["a", ""], ["a"] * 65, [1], {},
    {"a": 1}, "a~b", "a$b", "a`b", "a|b",
)  # fmt: skip


def places(data, place=()):
    for key, value in data.items() if isinstance(data, dict) else enumerate(data):
        yield (*place, key)
        if isinstance(value, dict | list):
            yield from places(value, (*place, key))


def test_the_schema_takes_what_the_reader_takes_and_nothing_else():
    validator = jsonschema.Draft202012Validator(json.loads(schema_text()))
    assert validator.is_valid(BOARD)
    chosen = random.Random(0)
    for place in places(BOARD):
        for value in chosen.sample(VALUES, 25):
            data = copy.deepcopy(BOARD)
            inside = data
            for key in place[:-1]:
                inside = inside[key]
            inside[place[-1]] = value
            if isinstance(value, float) or (place[-1] == "prompt" and "{" not in str(value)):
                continue  # 1e9 is a whole number to a schema; that nobody is named is found by the checks
            assert validator.is_valid(data) is fits(data), (place, value)
    for name in ("a" * 64, "a" * 65, "1a", "a b", "ä", "a-b", "", "A_1"):
        data = {**BOARD, "cast": {**BOARD["cast"], name: {"face": "x"}}}
        assert validator.is_valid(data) is fits(data), name


def fits(data):
    try:
        Storyboard.from_data(data)
    except ValueError:
        return False
    return True


PLAY = """\
Title: **The Park**

FADE IN:

INT. CO-OP - DAY

Élodie sits. [[a note]] He will go.

ÉLODIE
(softly)
Bonjour.

WILL ^
Yes, {yes}, it is me.

/* MARIA
Nobody hears this. */

МАРИЯ (O.S.)
Привет!

> DISSOLVE TO:

2ND COP
Stop!

ANN MARIE (CONT'D)
Hello.

ANN
Hi.

ANN MARIE looks at ANN and Will.
"""


def test_a_screenplay_of_many_kinds_of_people(folder):
    pytest.importorskip("screenplain", reason="needs screenplain (extra fountain)")
    from facelock.storyboards.fountain import read_fountain

    data = read_fountain(PLAY, folder).data
    assert data["title"] == "The Park"
    assert data["cast"]["elodie"] == {"face": "élodie.png"} and data["cast"]["will"] == {"face": "will.face"}
    assert data["cast"]["character_3"] == {"face": "character_3.face", "look": "Мария"}
    assert [shot["prompt"].removesuffix(", co-op") for shot in data["shots"]] == [
        "{elodie} sits.  He will go",
        "{elodie} and {will} talking, softly",
        "{character_3} talking",
        "{character_2nd_cop} talking",
        "{ann_marie} talking",
        "{ann} talking",
        "{ann_marie} looks at {ann} and {will}",
    ]
    assert [shot.get("transition") for shot in data["shots"]] == [
        "fade",
        None,
        None,
        "dissolve",
        None,
        None,
        None,
    ]
    Storyboard.from_data(data)


def test_a_screenplay_is_converted_before_there_are_faces(folder, capsys):
    pytest.importorskip("screenplain", reason="needs screenplain (extra fountain)")
    (folder / "play.fountain").write_text(PLAY)
    assert "there is no file 'will.face'" in mistakes(folder, PLAY, "play.fountain")
    with pytest.raises(SystemExit) as left:
        cli.main(["storyboard", "convert", str(folder / "play.fountain"), str(folder / "play.yaml")])
    assert not left.value.code, capsys.readouterr().err
    assert "face: will.face" in (folder / "play.yaml").read_text()


def test_people_whose_names_would_be_the_same_are_told_apart(folder):
    pytest.importorskip("screenplain", reason="needs screenplain (extra fountain)")
    from facelock.storyboards.fountain import read_fountain

    data = read_fountain("> DISSOLVE TO:\n\nMR. X\nHi.\n\nMR X\nHo.\n\nMr. X\n", folder).data
    assert list(data["cast"]) == ["mr_x", "mr_x_2"]
    assert data["shots"][0]["transition"] == "fade"  # nothing is there to dissolve from


@pytest.mark.parametrize("option", [["--address", "auto"], ["--workers", "2"]])
def test_what_only_the_other_engine_knows_is_refused(folder, capsys, option):
    (folder / "board.json").write_text(json.dumps(minimal()))
    with pytest.raises(SystemExit) as left:
        cli.main(["storyboard", "render", str(folder / "board.json"), "-o", str(folder / "film"), *option])
    assert left.value.code == 2 and "are the engine ray's" in capsys.readouterr().err
    assert not (folder / "film").exists()
