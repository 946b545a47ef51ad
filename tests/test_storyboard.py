"""The format: what is refused, with which line; what is read; round trips; no model is loaded on the way."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
import toys

from facelock import cli
from facelock.errors import ConfigError, InputError
from facelock.mistakes import known_keys
from facelock.recipe.words import vocabulary_warnings
from facelock.storyboard import CastMember, Defaults, Shot, Storyboard, safe_name, schema_text
from facelock.storyboards.checks import StoryboardError
from facelock.storyboards.film import FilmFolder
from facelock.storyboards.plan import Plan
from facelock.storyboards.reading import read_yaml

ROOT = Path(__file__).resolve().parents[1]
BOARD = """\
schema: facelock.storyboard.v1
title: 12:30:00
cast:
  maria: {face: maria.png, look: a woman with red hair}
  tom:
    face: [tom.png, maria.png]
defaults:
  seed: 7
shots:
  - prompt: "{maria} talking in a forest"
    seconds: 2
  - name: Szene ä 1
    prompt: "{tom} nodding"
    seconds: 1.5
    seed: 3
    camera: close
    transition: dissolve 0.5
    audio: voice.wav
"""


@pytest.fixture
def folder(tmp_path):
    for name in ("maria.png", "tom.png", "voice.wav"):
        (tmp_path / name).write_bytes(toys.picture(name))
    return tmp_path


def write(folder, text, name="board.yaml"):
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def mistakes(folder, text, name="board.yaml"):
    with pytest.raises(InputError) as caught:
        Storyboard.load(write(folder, text, name))
    return str(caught.value)


def test_a_storyboard_is_read(folder):
    board = Storyboard.load(write(folder, BOARD))
    assert board.title == "12:30:00"  # not 45000
    assert [board.name(index) for index in (0, 1)] == ["s010", "Szene ä 1"]
    assert board.prompt(0) == "a woman with red hair talking in a forest"
    assert board.prompt(1) == "tom nodding, close"
    assert board.characters(1) == ("tom",) and board.shots[1].begins == ("dissolve", 0.5)
    assert board.path("maria.png") == folder / "maria.png"


def test_seeds_differ_from_shot_to_shot_and_stay_when_shots_are_inserted(folder):
    board = Storyboard.load(write(folder, BOARD))
    assert board.seed(1) == 3
    named = BOARD.replace('- prompt: "{maria}', '- name: s010\n    prompt: "{maria}')
    inserted = named.replace("shots:\n", 'shots:\n  - {name: s005, prompt: "{tom}", seconds: 1}\n')
    longer = Storyboard.load(write(folder, inserted))
    assert longer.seed(1) == board.seed(0) != longer.seed(0)
    assert Storyboard.load(write(folder, BOARD.replace("seed: 7", "seed: 8"))).seed(0) != board.seed(0)


BOMB = "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n"
MATRIX = {
    "unknown key": (BOARD.replace("camera", "camra"), "line 16: shots.1.camra: unknown key, did you mean 'camera'?"),
    "duplicate key": (BOARD.replace("seed: 3", "seconds: 3"), "line 15: shots.1.seconds: this key stands twice"),
    "wrong type": (BOARD.replace("seconds: 2", 'seconds: "2"'), "line 11: shots.0.seconds: input should be"),
    "negative duration": (BOARD.replace("seconds: 2", "seconds: -2"), "line 11: shots.0.seconds: input should"),
    "nan": (BOARD.replace("seconds: 2", "seconds: .nan"), "line 11: shots.0.seconds: "),
    "inf": (BOARD.replace("seconds: 2", "seconds: .inf"), "line 11: shots.0.seconds: "),
    "empty shots": (BOARD.split("shots:")[0] + "shots: []\n", "line 9: shots: must have at least 1 item, not 0"),
    "no shots": (BOARD.split("shots:")[0], "shots: is missing"),
    "unknown character": (BOARD.replace("{tom} n", "{tim} n"), "line 13: shots.1.prompt: {tim} is not in the cast"),
    "alias bomb": (BOMB + BOARD, "line 2: an alias (*) is not read here"),
    "deep nesting": ("x: " + "[" * 5000 + "]" * 5000, "line 1: is nested more than 50 levels"),
    "python tag": (BOARD.replace("title: 12", "title: !!python/object/apply:os.system 12"), "line 2: the tag "),
    "../ output": (BOARD.replace("Szene ä 1", "../../etc/x"), "line 12: shots.1.name: cannot be a file's name"),
    "one output": (BOARD.replace("Szene ä 1", "S010"), "line 12: shots.1.name: 'S010' is the name of shot 1 too"),
    "timecode": (BOARD.replace("seconds: 2", "seconds: 12:30:00"), "a valid number (found '12:30:00')"),
    "boolean": (BOARD.replace("seconds: 2", "seconds: true"), "line 11: shots.0.seconds: "),
    "too large a number": (BOARD.replace("seed: 7", f"seed: {2**64}"), "line 8: defaults.seed: "),
    "no character": (BOARD.replace("{tom} n", "somebody n"), "names no character; write {maria}, {tom}"),
    "half a brace": (BOARD.replace("{tom} n", "{tom n"), "has a brace without its other half"),
    "no such face": (BOARD.replace("[tom.png", "[none.png"), "line 6: cast.tom.face: there is no file 'none.png'"),
    "no picture": (BOARD.replace("[tom.png", "[board.yaml"), "line 6: cast.tom.face: 'board.yaml' is no picture"),
    "two rates": (BOARD.replace("seed: 3", "recipe: wan2.1-vace-1.3b"), "line 12: shots.1: the recipe wan2.1-vace"),
    "an address": (BOARD.replace("voice.wav", "http://127.0.0.1/x.wav"), "only files on this machine"),
    "no such recipe": (BOARD.replace("seed: 7", "recipe: minature"), "did you mean 'miniature'"),
    "wrong rate": (BOARD.replace("seed: 7", "fps: 25"), "line 8: defaults.fps: the recipe miniature makes 12"),
    "wrong size": (BOARD.replace("seed: 7", "size: 111"), "line 8: defaults.size: The size 111x111 does not fit"),
    "no size": (BOARD.replace("seed: 7", "size: 1080i"), "Give a short side in pixels (256), a name (480p"),
    "too large": (BOARD.replace("seed: 7", "size: 1080p"), "The size 1080x1080 does not fit"),
    "long dissolve": (BOARD.replace("0.5", "0.9"), "line 17: shots.1.transition: 0.9 s is more than half"),
    "first dissolves": (BOARD.replace("seconds: 2", "seconds: 2\n    transition: dissolve"), "use fade"),
    "bad transition": (BOARD.replace("dissolve", "wipe"), "line 17: shots.1.transition: must be cut, fade or"),
    "another version": (BOARD.replace(".v1", ".v9"), "line 1: schema: input should be 'facelock.storyboard.v1'"),
    "a list": ("- 1\n- 2\n", "is no storyboard"),
    "empty": ("", "is no storyboard"),
    "not yaml": ("a: [1\nb: }", "is not valid YAML"),
    "two documents": (BOARD + "---\n" + BOARD, "is not valid YAML"),
    "control characters": ("title: \x00\n" + BOARD, "is not valid YAML"),
    "too many values": ("x: [" + "1," * 61_000 + "]", "more than 60000 values"),
    "other encoding": (BOARD.encode("utf-16"), "is not UTF-8 text"),
    "latin-1": (BOARD.encode("latin-1"), "is not UTF-8 text"),
    "50 MB": (b"#" * 50_000_000, "50000000 bytes is no storyboard"),
}  # fmt: skip


@pytest.mark.parametrize("case", MATRIX)
def test_a_bad_storyboard_is_refused_with_its_line(folder, case):
    text, words = MATRIX[case]
    began = time.perf_counter()
    message = mistakes(folder, text)
    assert words in message and str(folder / "board.yaml") in message, message
    assert time.perf_counter() - began < 60  # a hang, not a speed


CSV = """\
kind,name,face,look,prompt,seconds,seed,transition,restore
cast,maria,maria.png,a woman with red hair,,,,,
cast,tom,tom.png;maria.png,,,,,,
defaults,,,,,,7,,
shot,,,,"{maria} talking, in a forest",2,,,
,last,,,{tom} nodding,1.5,3,fade 0.25,false
"""
CSV_MATRIX = {
    "formula": (CSV.replace("{tom} nodding", "=HYPERLINK({tom})"), "line 6: prompt: '=HYPERLINK({tom})' is a formula"),
    "at sign": (CSV.replace("{tom} nodding", "@SUM({tom})"), "is a formula"),
    "utf-16": (CSV.encode("utf-16"), "is not UTF-8 text"),
    "unknown column": (CSV.replace("seconds", "secnds"), "line 1: secnds: unknown column, did you mean 'seconds'?"),
    "column twice": (CSV.replace("look", "face"), "line 1: the column 'face' stands twice"),
    "unknown kind": (CSV.replace("shot,,", "shoot,,"), "line 5: kind: 'shoot' is no kind of row, did you mean 'shot'?"),
    "name twice": (CSV.replace("cast,tom", "cast,maria"), "line 3: cast.maria: this key stands twice"),
    "negative": (CSV.replace(",1.5,", ",-1.5,"), "line 6: shots.1.seconds: input should be greater than 0"),
    "text": (CSV.replace(",1.5,", ",soon,"), "line 6: shots.1.seconds: input should be a valid number"),
    "too long": (CSV + "shot,a,b,c,d,e,f,g,h,i,j\n", "line 7: has 11 cells where there are 9 columns"),
    "open quote": (CSV + '"', "is not valid CSV"),
}  # fmt: skip


@pytest.mark.parametrize("case", CSV_MATRIX)
def test_a_bad_table_is_refused_with_its_line(folder, case):
    text, words = CSV_MATRIX[case]
    message = mistakes(folder, text, "board.csv")
    assert words in message, message


@pytest.mark.parametrize("text", [CSV, "\ufeff" + CSV, CSV.replace(",", ";").replace("tom.png;", "tom.png,")])
def test_a_table_is_read(folder, text):
    """With the mark that Excel puts in front, too; with semicolons where commas mean decimals."""
    if text.startswith("kind;"):
        text = text.replace("tom.png,maria.png", "tom.png").replace(
            '"{maria} talking; in', '"{maria} talking, in'
        )
    board = Storyboard.load(write(folder, text, "board.csv"))
    assert board.shots[0].prompt == "{maria} talking, in a forest" and board.shots[0].seconds == 2
    assert board.shots[1].begins == ("fade", 0.25) and board.shots[1].restore is False
    assert board.defaults.seed == 7 and board.cast["maria"].look == "a woman with red hair"


def test_all_mistakes_are_told_at_once_in_the_order_of_lines(folder):
    text = BOARD.replace("camera", "camra").replace("seconds: 2", "seconds: -1").replace("{tom}", "{tim}")
    text = text.replace("look", "loook").replace("voice.wav", "none.wav")
    with pytest.raises(StoryboardError) as caught:
        Storyboard.load(write(folder, text))
    assert [mistake.line for mistake in caught.value.mistakes] == [4, 11, 13, 16, 18]
    assert "5 mistakes" in str(caught.value) and isinstance(caught.value, ConfigError)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"schema": "facelock.storyboard.v1", "schema": 1}', "schema: this key stands twice"),
        ('{"title":\n NaN}', "NaN is no number"),
        ("{\n 'a': 1}", "line 2: is not valid JSON"),
        ("[" * 5000, "nested more than 50 levels"),
        ('{\n\t"titel": "x"}', "line 2: titel: unknown key, did you mean 'title'?"),
        ("schema: facelock.storyboard.v1", "is not valid JSON"),
    ],
)  # fmt: skip
def test_json_is_strict(folder, text, words):
    assert words in mistakes(folder, text, "board.json")


@pytest.mark.parametrize(("first", "second"), [("yaml", "json"), ("json", "yaml"), ("yaml", "csv")])
def test_a_round_trip_loses_nothing(folder, first, second):
    board = Storyboard.load(write(folder, BOARD))
    for number, suffix in enumerate((first, second, first)):
        path = folder / f"{number}.{suffix}"
        board.save(path)
        again = Storyboard.load(path)
        assert again == board and again.data() == board.data()
        board = again
    assert (folder / f"0.{first}").read_bytes() == (folder / f"2.{first}").read_bytes()


def test_odd_text_survives_the_round_trip(folder):
    odd = [
        "yes",
        "12:30:00",
        "1e3",
        "~",
        "a: b # c",
        "é\u2028\U0001f600",
        "- x",
        "",
        "null",
        "'\"",
        "0x10",
        "a\nb\n",
    ]
    text = json.loads(json.dumps({"schema": "facelock.storyboard.v1", "cast": {"m": {"face": "maria.png"}}}))
    text["shots"] = [{"prompt": "{m}", "seconds": 1, "note": note, "scene": note} for note in odd]
    board = Storyboard.load(write(folder, json.dumps(text), "a.json"))
    board.save(folder / "b.yaml")
    assert [shot.note for shot in Storyboard.load(folder / "b.yaml").shots] == odd


def test_saving_elsewhere_keeps_the_files_it_names(folder):
    (folder / "deeper").mkdir()
    board = Storyboard.load(write(folder, BOARD))
    board.save(folder / "deeper" / "board.json")
    moved = Storyboard.load(folder / "deeper" / "board.json")
    assert moved.cast["tom"].face == ("../tom.png", "../maria.png")
    assert moved.path(moved.shots[1].audio).samefile(folder / "voice.wav")


@pytest.mark.parametrize("name", ["s010", "Szene ä 1", "a-b_c.d"])
def test_good_names(name):
    assert safe_name(name) == name


@pytest.mark.parametrize(
    "name",
    ["../x", "/x", "a/b", "a\\b", "a\0", "a\nb", "CON", "nul.mp4", "a:b", "-rf", "x" * 300, "x.", "x ", ".x", "", "..",
     "C:x", "a..b", " x", "~", "COM1"],
)  # fmt: skip
def test_names_that_could_leave_the_folder_are_refused(name):
    with pytest.raises(ValueError, match="cannot be a file's name"):
        safe_name(name)


def test_the_schema_is_published_and_fits_the_sample():
    assert (ROOT / "docs" / "storyboard.schema.json").read_text() == schema_text(), (
        "write it anew: python -c 'from facelock.storyboard import schema_text; print(schema_text(), end=\"\")'"
    )


def test_known_keys_are_found_through_lists_mappings_and_options():
    assert "camera" in known_keys(Storyboard, ("shots", 3))
    assert "look" in known_keys(Storyboard, ("cast", "maria"))
    assert "recipe" in known_keys(Storyboard, ("defaults",))
    assert known_keys(Storyboard, ("title", "x")) == []


def test_the_plan_fills_the_defaults_in(folder):
    text = BOARD.replace("seed: 7", "seed: 7\n  target: 0.5\n  size: 128\n  tries: 2")
    text = text.replace("seed: 3", "seed: 0\n    target: 0\n    size: 256x256\n    tries: 4\n    scene: a")
    first, second = Plan.of(Storyboard.load(write(folder, text))).units
    assert (first.target, first.size, first.tries, first.frames) == (0.5, (128, 128), 2, 24)
    assert (second.target, second.size, second.tries, second.seed) == (0, (256, 256), 4, 0)
    assert len({second.seed_of_take(take) for take in range(5)}) == 5 and second.seed_of_take(0) == 0
    cost = Plan.of(Storyboard.load(write(folder, text))).cost()
    assert (cost.shots, cost.frames, cost.chunks, cost.most_takes) == (2, 42, 4, 6)


FOUNTAIN = """\
Title: The Park

INT. OFFICE - DAY #1#

MARIA sits at a *desk*, {reading}.

MARIA (O.S.)
(smiling)
Hello there. How are you?

DISSOLVE TO:

EXT. FOREST - NIGHT #2#

The wind blows.

TOM ^
Where am I?
"""


def test_a_screenplay_becomes_shots(folder):
    pytest.importorskip("screenplain", reason="needs screenplain (extra fountain)")
    board = Storyboard.load(write(folder, FOUNTAIN, "park.fountain"))
    assert board.title == "The Park" and board.cast["tom"].face == ("tom.png",)
    assert [shot.prompt for shot in board.shots] == [
        "{maria} sits at a desk, reading, office",
        "{maria} talking, smiling, office",
        "{tom} talking, forest",
    ]
    assert board.shots[2].begins.kind == "dissolve" and board.shots[2].scene == "EXT. FOREST - NIGHT"


def test_a_screenplay_without_its_library_is_one_sentence(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "screenplain.parsers", None)
    with pytest.raises(Exception, match="pip install 'facelock-video\\[fountain\\]'") as caught:
        Storyboard.load(write(folder, FOUNTAIN, "park.fountain"))
    assert caught.value.exit_code == 3


def command(capsys, *arguments):
    with pytest.raises(SystemExit) as left:
        cli.main([str(argument) for argument in arguments])
    return left.value.code, *capsys.readouterr()


def test_check_tells_the_cost(folder, capsys):
    code, out, err = command(capsys, "storyboard", "check", write(folder, BOARD))
    assert code == 0 and "2 shots, 2 characters, 3.5 s: 42 frames in 4 chunks" in out and err == ""
    code, out, _ = command(capsys, "storyboard", "check", "--json", folder / "board.yaml")
    assert code == 0 and json.loads(out)["frames"] == 42


def test_check_exits_with_2_and_every_mistake(folder, capsys):
    path = write(folder, BOARD.replace("camera", "camra").replace("{tom}", "{tim}"))
    code, out, err = command(capsys, "storyboard", "check", path)
    assert code == 2 and out == "" and err.startswith(f"facelock: error: {path}: 2 mistakes.\n  line 13: ")
    assert "Traceback" not in err and err.rstrip().endswith("Correct the storyboard.")


def test_check_says_which_weights_are_missing(folder, capsys, monkeypatch):
    monkeypatch.setenv("FACELOCK_HOME", str(folder))
    text = BOARD.replace("  seed: 7", "  seed: 7\n  recipe: skyreels-v2-1.3b")
    code, _, err = command(capsys, "storyboard", "check", write(folder, text))
    said = "the recipe skyreels-v2-1.3b cannot run yet: 6 models are not on this machine. Get them with: facelock mod"
    assert code == 0 and err.count("not on this machine") == 1 and said in err


def test_a_shot_too_long_for_a_blueprint_that_cannot_continue_is_a_mistake(folder):
    shot = "    recipe: consisid-5b\n    seconds: 60"
    message = mistakes(folder, BOARD.replace("    seconds: 2", shot, 1))
    assert "shots.0.seconds: This recipe writes one clip of 6.1 seconds" in message
    assert "shots.1.seconds" not in message


@pytest.mark.parametrize("verb", ["render", "retry"])
def test_commercial_is_asked_of_every_shot_before_the_first(folder, verb, capsys):
    path = write(folder, BOARD.replace("    seconds: 1.5", "    seconds: 1.5\n    recipe: own.toml"))
    default = (ROOT / "pipelines" / "default.toml").read_text()
    (folder / "own.toml").write_text(default.replace("miniature/aligner", "insightface/inswapper_128"))
    film = folder / "film"
    if verb == "retry":
        film.mkdir()
        Storyboard.load(path).save(FilmFolder(film).board)
        arguments = (film, "--shot", "1")
    else:
        arguments = (path, "-o", film)
    code, _, err = command(capsys, "storyboard", verb, *arguments, "--commercial")
    assert code == 2 and "insightface/inswapper_128 does not allow commercial use" in err, err
    assert not list(film.glob("*.partial")) and (verb == "retry" or not film.exists())


def test_convert(folder, capsys):
    path = write(folder, BOARD)
    assert command(capsys, "storyboard", "convert", path, folder / "b.json")[0] == 0
    assert Storyboard.load(folder / "b.json") == Storyboard.load(path)
    assert command(capsys, "storyboard", "convert", path, folder / "b.toml")[0] == 2


def test_check_loads_no_model_and_no_torch(folder):
    path = write(folder, BOARD)
    code = "import sys\nfrom facelock.cli import main\ntry: main(['storyboard', 'check', sys.argv[1]])\n"
    code += "except SystemExit as left: print(left.code)\n"
    code += "print([name for name in ('torch', 'onnxruntime', 'cv2', 'av', 'scipy') if name in sys.modules])"
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, env=environment
    )
    assert done.stdout.splitlines()[-2:] == ["0", "[]"], done.stdout + done.stderr


def test_the_documentation_s_storyboard_fits_and_every_key_is_described():
    text = (ROOT / "docs" / "storyboards.md").read_text()
    example = text.split("```yaml\n")[1].split("```")[0]
    source = read_yaml(example)
    assert not source.mistakes and len(Storyboard.from_data(source.data).shots) == 2
    for model in (CastMember, Defaults, Shot, Storyboard):
        for name, field in model.model_fields.items():
            assert f"`{field.alias or name}`" in text or (
                "`cast.<name>`" in text and name in ("cast", "shots", "defaults")
            ), name


def test_the_sample_is_sound():
    plan = Plan.of(Storyboard.load(ROOT / "samples" / "storyboards" / "three-friends.yaml"))
    assert plan.cost().shots == 12 and plan.cost().characters == 3 and 115 <= plan.cost().seconds <= 125
    assert plan.warnings() == []
    for unit in plan.units:
        assert len(unit.characters) == unit.recipe.blueprint.regions
        assert not vocabulary_warnings(unit.recipe, unit.prompt)
    assert [unit.name for unit in plan.units if len(unit.characters) == 2] == ["s060"]


def mutated(rng, text):
    """The text with a few bytes changed, dropped, doubled, or moved."""
    data = bytearray(text.encode())
    for _ in range(rng.randint(1, 6)):
        at = rng.randrange(len(data))
        kind = rng.randrange(4)
        if kind == 0:
            data[at] = rng.randrange(256)
        elif kind == 1:
            del data[at : at + rng.randint(1, 20)]
        elif kind == 2:
            data[at:at] = data[at : at + rng.randint(1, 40)]
        else:
            data[at:at] = rng.choice(
                [b"{", b"}", b"*a", b"&a ", b"!!", b"'", b'"', b"\t", b"\x00", b": ", b"- ", b"\xff"]
            )
        if not data:
            data = bytearray(b"x")
    return bytes(data)


@pytest.mark.parametrize("suffix", ["yaml", "json", "csv"])
def test_damaged_storyboards_are_one_sentence_or_still_sound(folder, suffix):
    """FACELOCK_FUZZ=2000 makes a longer run of it."""
    board = Storyboard.load(write(folder, BOARD))
    board.save(folder / f"whole.{suffix}")
    text, rng = (folder / f"whole.{suffix}").read_text(), random.Random(6)
    refused = 0
    for _ in range(int(os.environ.get("FACELOCK_FUZZ", "60"))):
        damaged = mutated(rng, text)
        try:
            Storyboard.load(write(folder, damaged, f"board.{suffix}"))
        except InputError as error:
            assert str(folder / f"board.{suffix}") in str(error), damaged
            refused += 1
    assert refused > 10


@pytest.mark.parametrize("command_", ["check", "convert", "render", "status", "retry"])
def test_every_command_explains_itself(capsys, command_):
    code, out, err = command(capsys, "storyboard", command_, "--help")
    assert code == 0 and out.startswith(f"Usage: facelock storyboard {command_}") and err == ""
    for line in out.splitlines():
        option = line.split()[:1]
        assert not option or not option[0].startswith("--") or len(line.split()) > 2, f"undocumented: {line}"
