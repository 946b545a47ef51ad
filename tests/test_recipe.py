"""Recipes: the shipped ones load, and every mistake is named."""

from __future__ import annotations

import re
from fractions import Fraction
from pathlib import Path

import pytest

from facelock.assets import asset_dir
from facelock.errors import ConfigError
from facelock.recipe import find_recipe, load_recipe, model_names, recipe_names
from facelock.recipe.sections import BlueprintRecipe
from facelock.recipe.words import vocabulary_warnings

DEFAULT = (asset_dir("pipelines") / "default.toml").read_text()


def write(folder: Path, text: str) -> Path:
    path = folder / "own.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("path", sorted(asset_dir("pipelines").glob("*.toml")), ids=lambda path: path.name)
def test_every_shipped_recipe_is_valid_and_says_what_it_costs(path):
    recipe = load_recipe(path)
    assert recipe.purpose
    assert path.read_text().startswith("#")
    assert recipe.name in (asset_dir("pipelines") / "README.md").read_text()


def test_names_lead_to_the_same_recipe():
    assert load_recipe("miniature") == load_recipe("default") == load_recipe()
    assert {"miniature", "default"} <= set(recipe_names())


def test_miniature_numbers():
    recipe = load_recipe("miniature")
    assert recipe.blueprint.fps == Fraction(12)
    assert recipe.native_size == (256, 256)
    assert recipe.settings()["blueprint"]["fps"] == "12"
    assert set(model_names(recipe)) >= {"blueprint.model", "lock.model", "judge.encoder"}


def test_unknown_name_suggests_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'miniature'"):
        find_recipe("minature")
    with pytest.raises(ConfigError, match="no such recipe file"):
        find_recipe("nowhere/own.toml")


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ("ladder = [1.0", "lader = [1.0", "lock.lader: unknown key, did you mean 'ladder'"),
        ("crf = 16", "crf = 99", "encode.crf: .*51.*found 99"),
        ("context = 5", "context = 17", "context \\(17\\) must be smaller than window \\(17\\)"),
        ("fps = 12", "fps = 'often'", "blueprint.fps: .*number"),
        ("fps = 12", "fps = '1/0'", "blueprint.fps: .*number"),
        ("fps = 12", "fps = 0", "blueprint.fps"),
        ("steps = 6", "steps = nan", "blueprint.steps"),
        ("guidance_scale = 2.5", "guidance_scale = inf", "guidance_scale"),
        ("target = 0.99", "target = 1.5", "target: .*found 1.5"),
        ('name = "miniature"', 'name = "../up"', "name: "),
        ("[lock] ", "[lok] ", "lok: unknown key, did you mean 'lock'"),
        ("schema = ", "scheme = ", "schema: is missing"),
        ("crf = 16", "crf = ", "not valid TOML"),
        ("size = [64, 64]", "size = '64x64'", "blueprint.size: must be a list .found '64x64'"),
        ("[lock] ", "[speed]\ncache = 'mag'\n[lock] ", "speed.cache: must be a table"),
        ("[lock] ", "[speed]\nquantise = 'int4'\n[lock] ", "toml: speed.quantise = .* float8, int8. Correct"),
        (
            "[lock] ",
            "[speed]\nattention = 'flsh'\n[lock] ",
            "toml: speed.attention = 'flsh', .* 'flash'. Give one",
        ),
        (
            "[lock] ",
            "[speed.cache]\nkind = 'pab'\nwindow = [800, 100]\n[lock] ",
            "window = .800, 100. holds no",
        ),
        (
            "[lock] ",
            "[speed.cache]\nkind = 'pab'\nthreshold = 0.1\n[lock] ",
            r"toml: speed.cache.threshold has no effect with kind = 'pab'\. It goes by every and window\. Correct",
        ),
        (
            "[lock] ",
            "[speed.cache]\nkind = 'first_block'\nwindow = [100, 700]\n[lock] ",
            "speed.cache.window has no effect with kind = 'first_block'",
        ),
        (
            "[lock] ",
            "[speed.cache]\nkind = 'sea'\nmots = 3\n[lock] ",
            "mots: unknown key, did you mean 'most'",
        ),
        ("size = [64, 64]", "size = [0, 64]", r"blueprint.size.0: .*greater than or equal to 1 \(found 0\)"),
        ("size = [64, 64]", "size = [64, -64]", "blueprint.size.1: "),
        ("fps = 12", "fps = -12", "blueprint.fps"),
        ("steps = 6", "steps = 0", "blueprint.steps"),
        ("steps = 6", "steps = -8", "blueprint.steps"),
        ("window = 17", "window = -17", "blueprint.window"),
        ("context = 5", "context = 0", "blueprint.context"),
    ],
)
def test_mistakes_are_named(tmp_path, before, after, words):
    assert before in DEFAULT
    with pytest.raises(ConfigError, match=words):
        load_recipe(write(tmp_path, DEFAULT.replace(before, after, 1)))


@pytest.mark.parametrize(
    ("before", "after", "end"),
    [
        (
            "ladder = [1.0",
            "lader = [1.0",
            "lock.lader: unknown key, did you mean 'ladder'? Correct the recipe.",
        ),
        ("crf = 16", "crf = 99", "(found 99). Correct the recipe."),
        ("schema = ", "shema = ", "shema: unknown key, did you mean 'schema'? Correct the recipe."),
    ],
)
def test_no_mark_stands_beside_another(tmp_path, before, after, end):
    text = DEFAULT.replace(before, after, 1)
    with pytest.raises(ConfigError) as caught:
        load_recipe(write(tmp_path, text))
    assert str(caught.value).endswith(end)
    every = write(tmp_path, text.replace("crf = 16", "crf = 99").replace("fps = 12", "fpss = 12"))
    with pytest.raises(ConfigError) as caught:
        load_recipe(every)
    assert not re.search(r"[?.;:!,][.;:,!]|[?.;] ;", str(caught.value)), str(caught.value)


def test_all_mistakes_at_once(tmp_path):
    text = DEFAULT.replace("crf = 16", "crf = 99").replace("ladder = [1.0", "lader = [1.0")
    with pytest.raises(ConfigError) as caught:
        load_recipe(write(tmp_path, text))
    assert "encode.crf" in str(caught.value) and "lock.lader" in str(caught.value)


@pytest.mark.parametrize("content", [b"\xff\xfe", b"a = 1\n" * 300_000, b"[" * 5000])
def test_what_is_no_recipe(tmp_path, content):
    path = tmp_path / "own.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError):
        load_recipe(path)


def test_models_beside_the_recipe(tmp_path):
    (tmp_path / "mine.onnx").write_bytes(b"")
    recipe = load_recipe(write(tmp_path, DEFAULT.replace('"miniature/aligner"', '"mine.onnx"')))
    assert recipe.lock.model == str(tmp_path / "mine.onnx")
    assert recipe.faces.detector == "miniature/detector"


def test_words_outside_the_vocabulary():
    recipe = load_recipe("miniature")
    sentences = vocabulary_warnings(recipe, "a woman talkin in a forest")
    assert len(sentences) == 1 and "'talkin'" in sentences[0] and "talking" in sentences[0]
    assert vocabulary_warnings(recipe, "a woman talking in a forest") == []
    assert vocabulary_warnings(recipe.model_copy(update={"vocabulary": None}), "zzz") == []


VACE = DEFAULT.replace('kind = "skyreels_v2"', 'kind = "wan_vace"', 1)
OPTIONS = "[blueprint.options]\n{}\n[faces] "


def test_options_of_the_kind_have_defaults():
    assert load_recipe("miniature").blueprint.options == {}
    given = BlueprintRecipe(kind="wan_vace", model="m", size=(16, 16), fps=8, window=9, context=5, steps=1,
                            guidance_scale=1, options={"conditioning_scale": 1})  # fmt: skip
    assert given.options == {"conditioning_scale": 1.0, "reference_pictures": 1, "guidance_scale_2": None}


def test_all_mistakes_in_options_at_once_with_the_others(tmp_path):
    wrong = "conditioning_scal = 1.0\nreference_pictures = 1.5\nguidance_scale_2 = 'much'"
    text = VACE.replace("[faces] ", OPTIONS.format(wrong), 1).replace("crf = 16", "crf = 99")
    with pytest.raises(ConfigError) as caught:
        load_recipe(write(tmp_path, text))
    for words in (
        "blueprint.options.conditioning_scal: unknown key, did you mean 'conditioning_scale'? encode.crf",
        "blueprint.options.reference_pictures: input should be a valid integer (found 1.5)",
        "blueprint.options.guidance_scale_2: input should be a valid number (found 'much')",
        "encode.crf",
    ):
        assert words in str(caught.value)


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ("[faces] ", OPTIONS.format("conditioning_scale = 1.0"), "options.conditioning_scale: unknown key"),
        ("[blueprint] ", "[blueprint]\noptions = 3\n", "blueprint.options: must be a table .found 3"),
        ('name = "miniature"', 'name = "miniature"\nvram_gib = "12"', "vram_gib: .*number"),
        ('name = "miniature"', 'name = "miniature"\nlicence = 1', "licence: .*string"),
    ],
)
def test_options_and_remarks_are_strict(tmp_path, before, after, words):
    with pytest.raises(ConfigError, match=words):
        load_recipe(write(tmp_path, DEFAULT.replace(before, after, 1)))


def test_regions_are_for_one_kind(tmp_path):
    text = VACE.replace('kind = "wan_vace"', 'kind = "wan_vace"\nregions = 2', 1)
    with pytest.raises(ConfigError, match=r"regions .2. are for the kind skyreels_v2, not for wan_vace"):
        load_recipe(write(tmp_path, text))
