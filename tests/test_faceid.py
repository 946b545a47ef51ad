"""The aligner ``faceid`` in the closed loop, from a recipe, and from the command line, with the miniature's eyes."""

from __future__ import annotations

import logging
import re
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_portrait as tiny
import torch
from test_closed_loop import GREEN, RED, Pack, clip, person
from test_closed_loop import Aligner as ToyAligner
from test_warp import Reader, toy_crop
from torch.nn.functional import interpolate, normalize

from facelock import cli
from facelock.alignment import aligner_class
from facelock.alignment.faceid import FaceID, WarpStart
from facelock.assembly import Assembly
from facelock.assets import asset_dir
from facelock.errors import ConfigError, InputError, ModelError
from facelock.faces import load_pack
from facelock.faces.dense import VARIABLE
from facelock.footage.parts import open_parts
from facelock.images import read_picture
from facelock.lock_loop import Locker
from facelock.portrait import BUFFALO_L, PortraitSettings
from facelock.protocols import Aligner
from facelock.recipe import load_recipe, model_names
from facelock.types import Identity
from facelock.weights import digest, locate

ROOT = Path(__file__).resolve().parents[1]
FACES = ROOT / "samples" / "faces"
MINIATURE = "miniature/recogniser"
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """An SD 1.5 folder and a FaceID file for the miniature's recogniser."""
    root = tmp_path_factory.mktemp("faceid")
    return tiny.checkpoint(root / "sd"), tiny.save_adapter(
        root / "faceid.safetensors", tiny.faceid(tiny.unet())
    )


@pytest.fixture(scope="module")
def pack():
    detector, encoder = locate("miniature/detector"), locate(MINIATURE)
    return load_pack("onnx_pack", detector=detector, encoder=encoder, name=MINIATURE)


def opened(files, encoder: str = f"buffalo@{BUFFALO_L}", trained_with=None, **options) -> FaceID:
    settings = PortraitSettings("a face", steps=1, guidance_scale=1.0, mask=options.pop("mask", None))
    given = {"adapter": files[1], "encoder": encoder, "trained_with": trained_with, "settings": settings}
    return FaceID(files[0], **given, **options)


@pytest.fixture(scope="module")
def aligner(files, pack):
    return opened(files, pack.encoder.id, digest(locate(MINIATURE))[:12])


def scene(size: int = 96):
    """(4, 3, size, size): four people, one a frame."""
    pictures = [read_picture(FACES / f"{name}.png") for name in ("maria", "leo", "aisha", "tom")]
    return torch.cat([interpolate(p.frames, (size, size), mode="area") for p in pictures])


# ------------------------------------------------------------------ the aligner


def test_is_an_aligner_found_by_name(files):
    assert aligner_class("faceid") is FaceID
    made = opened(files)
    assert isinstance(made, Aligner) and made.takes_strength and not made.only_changes
    assert made.crop.size == tiny.SIDE and opened(files, mask="face").only_changes
    crops = torch.rand(2, 3, tiny.SIDE, tiny.SIDE, generator=torch.Generator().manual_seed(0))
    identity = normalize(torch.ones(2, 512), dim=1)
    assert torch.equal(made.align(crops, identity, 0.0), crops)
    assert not torch.equal(made.align(crops, identity, 0.4), crops)
    with pytest.raises(ConfigError, match="cannot start from 'mesh'"):
        opened(files, start="mesh")
    with pytest.raises(ConfigError, match="buffalo_l"):
        opened(files, "other@123456789abc")


def test_the_loop_leaves_the_embedding_alone_for_who_takes_the_strength():
    seen = []

    class Watching(ToyAligner):
        takes_strength = True

        def align(self, crops, identity, strength, *, references=()):
            seen.append((strength, identity))
            return super().align(crops, identity, strength)

    for aligner, plain in (
        (Watching(mix=0.1), True),
        (type("Other", (Watching,), {"takes_strength": False})(), False),
    ):
        seen.clear()
        nearly = normalize(
            RED + 0.6 * GREEN, dim=0
        )  # recognised as it comes, so that there is no second look
        Locker(Pack(), aligner, ladder=(0.3, 0.5), target=2.0).lock(clip(2, nearly), [person("red", RED)])
        assert [strength for strength, _ in seen] == [0.3, 0.5]
        assert all(torch.equal(rows, RED.expand_as(rows)) is plain for _, rows in seen)


@pytest.fixture(scope="module")
def whole(pack, aligner):
    """Every face locked to the opposite of its own embedding, which anything that is done to it comes nearer to."""
    frames = scene()
    own = pack.embed(frames, pack.detect(frames))
    identities = [Identity("nobody", {pack.encoder.id: normalize(-own.mean(0), dim=0)})]
    locker = Locker(pack, aligner, ladder=(0.3, 0.6), target=0.99)
    return frames, identities, locker, locker.lock(frames, identities)


def test_the_loop_keeps_what_it_made(whole):
    frames, _, __, (locked, records) = whole
    assert len(records) == 4 and all(record.rung >= 0 and record.after > record.before for record in records)
    assert {record.rung for record in records} <= {0, 1}
    assert not torch.equal(locked, frames)
    assert torch.equal(locked[..., :2, :2], frames[..., :2, :2])


def test_locking_does_not_depend_on_order_or_neighbours(whole):
    frames, identities, locker, (locked, _) = whole
    order = torch.tensor([2, 0, 3, 1])
    assert torch.equal(locker.lock(frames[order], identities)[0], locked[order])
    assert torch.equal(locker.lock(frames[3:], identities)[0][0], locked[3])


def test_another_identity_makes_another_face(pack, aligner):
    frames = scene()[:1]
    work = Locker(pack, aligner, ladder=(0.5,), target=1.0).take(
        frames, [Identity("x", {pack.encoder.id: normalize(torch.ones(512), dim=0)})]
    )
    own = pack.embed(frames, pack.detect(frames))
    made = [aligner.align(work.crops, sign * own, 0.6) for sign in (1, -1)]
    assert float((made[0] - made[1]).abs().mean()) > 1e-4


# ------------------------------------------------------------------ where it starts


def test_it_starts_from_the_warp(files):
    made = opened(files, start="warp", reader=Reader())
    plain = opened(files)
    crops = torch.cat([toy_crop(k, tiny.SIDE) for k in (2, 3)])
    whose = Identity("maria", {}, crops=toy_crop(1, 384))
    identity = normalize(torch.ones(2, 512), dim=1)
    start = WarpStart.open("toy", tiny.SIDE, Reader())
    begun = start(crops, [whose] * 2)
    assert float((begun - crops).abs().mean()) > 0.005
    assert torch.equal(begun[..., 0, 0], crops[..., 0, 0])
    found = made.align(crops, identity, 0.3, references=[whose] * 2)
    assert torch.equal(found, plain.align(begun, identity, 0.3))
    assert torch.equal(made.align(crops[1:], identity[1:], 0.3, references=[whose])[0], found[1])
    assert torch.equal(made.align(crops, identity, 0.0, references=[whose] * 2), crops)


def test_who_cannot_be_warped_starts_from_the_frame_and_it_is_said_once(files, caplog):
    made, plain = opened(files, start="warp", reader=Reader()), opened(files)
    crops = torch.cat([toy_crop(k, tiny.SIDE) for k in (2, 3)])
    identity = normalize(torch.ones(2, 512), dim=1)
    whose = [Identity("leo", {}), Identity("maria", {}, crops=toy_crop(1, 384))]
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            found = made.align(crops, identity, 0.3, references=whose)
    assert caplog.text.count("starts from the frame itself") == 1 and "leo" in caplog.text
    expected = plain.align(crops, identity, 0.3)
    assert torch.equal(found[0], expected[0]) and not torch.equal(found[1], expected[1])


def test_without_landmarks_it_starts_from_the_frame_and_says_so_once(files, caplog, monkeypatch, tmp_path):
    monkeypatch.setenv(VARIABLE, str(tmp_path / "none.task"))
    with caplog.at_level(logging.WARNING):
        made = opened(files, start="warp")
    assert caplog.text.count("starts from the frame itself") == 1
    crops = toy_crop(2, tiny.SIDE)
    identity = normalize(torch.ones(1, 512), dim=1)
    assert torch.equal(made.align(crops, identity, 0.3), opened(files).align(crops, identity, 0.3))
    assert caplog.text.count("starts from the frame itself") == 1


@pytest.mark.parametrize(("size", "side"), [(32, 256), (300, 384), (512, 512), (1024, 512)])
def test_the_warp_runs_at_the_size_it_knows(size, side):
    assert WarpStart.open("toy", size, Reader()).warp.crop.size == side


# ------------------------------------------------------------------ from a recipe

LOCK = """\
[lock]
kind = "faceid"
model = "sd"
ladder = [0.2, 0.4]
target = 0.7
batch = 4
[lock.faceid]
adapter = "faceid.bin"
encoder = "miniature/recogniser"
prompt = "a face"
steps = 1
guidance_scale = 1.0
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with checkpoint, adapter, and a recipe that names them beside it."""
    path = tmp_path_factory.mktemp("recipe")
    tiny.checkpoint(path / "sd")
    tiny.save_adapter(path / "faceid.bin", tiny.faceid(tiny.unet()))
    write(path, LOCK)
    return path


def write(folder: Path, lock: str, name: str = "own.toml") -> Path:
    text = (asset_dir("pipelines") / "default.toml").read_text()
    begin, end = text.index("[lock]"), text.index("[restore]")
    path = folder / name
    path.write_text(text[:begin] + lock + text[end:])
    return path


def test_a_recipe_names_it(folder):
    recipe = load_recipe(folder / "own.toml")
    names = model_names(recipe)
    assert names["lock.model"] == str(folder / "sd")
    assert names["lock.faceid.adapter"] == str(folder / "faceid.bin")
    parts = Assembly(recipe, "cpu")
    assert {"lock.model", "lock.faceid.adapter", "lock.faceid.encoder"} <= set(parts.weights)
    aligner = parts.locker.aligner
    assert isinstance(aligner, FaceID) and aligner.core.settings == PortraitSettings(
        **recipe.lock.faceid.settings
    )
    assert (aligner.core.settings.steps, aligner.core.settings.prompt) == (1, "a face")


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ("steps = 1", "stops = 1", "lock.faceid.stops: unknown key, did you mean 'steps'"),
        ("steps = 1", "steps = 0", "lock.faceid.steps"),
        ("steps = 1", 'mask = "hat"', "lock.faceid.mask"),
        ("steps = 1", 'start = "mesh"', "lock.faceid.start"),
        ("steps = 1", 'sampler = "magic"', "lock.faceid.sampler"),
        ('adapter = "faceid.bin"\n', "", "lock.faceid.adapter: is missing"),
        ("[0.2, 0.4]", "[0.2, 1.4]", r"ladder must lie within \(0, 1\]"),
        ('"faceid"\n', '"inswapper"\n', "kind 'inswapper' takes no table lock.faceid"),
        (LOCK[LOCK.index("[lock.faceid]") :], "", "kind 'faceid' needs a table lock.faceid"),
    ],
)
def test_mistakes_in_a_recipe_are_named(folder, before, after, words):
    assert before in LOCK
    with pytest.raises(ConfigError, match=words):
        load_recipe(write(folder, LOCK.replace(before, after, 1), "bad.toml"))


def test_a_recipe_whose_pack_differs_is_refused_before_anything_is_made(folder):
    bare = LOCK.replace('encoder = "miniature/recogniser"\n', "")
    with pytest.raises(
        ConfigError, match=r"takes embeddings of insightface's buffalo_l, but .*miniature/recogniser@"
    ):
        Assembly(load_recipe(write(folder, bare, "other.toml")), "cpu")


def test_models_that_are_not_there_and_licences(folder):
    gone = LOCK.replace("faceid.bin", "gone.bin")
    with pytest.raises(ConfigError, match=r"no model is called 'gone\.bin'"):
        Assembly(load_recipe(write(folder, gone, "gone.toml")), "cpu")
    with pytest.raises(ConfigError, match="licence is not known"):
        Assembly(load_recipe(folder / "own.toml"), "cpu", commercial=True)


def test_another_recipe_cannot_lend_it(folder):
    with pytest.raises(ConfigError, match="models of its own, which this recipe does not name"):
        open_parts("miniature", "cpu", aligner="faceid")


def test_packs_that_are_named_are_its_own_or_refused(folder, monkeypatch):
    """A ``.face`` file names the packs that made it: a recipe of this kind keeps its aligner with the right ones."""
    own = f"{locate('miniature/detector')}+{locate(MINIATURE)}"
    parts = open_parts(folder / "own.toml", "cpu", packs=own, judge="miniature")
    assert parts.aligner == "faceid" and isinstance(parts.locker.aligner, FaceID)
    assert "lock.faceid.adapter" in parts.weights
    bare = LOCK.replace('encoder = "miniature/recogniser"\n', "")
    with pytest.raises(ConfigError, match="takes embeddings of insightface's buffalo_l"):
        open_parts(write(folder, bare, "other.toml"), "cpu", packs=own, judge="miniature")
    monkeypatch.setenv(VARIABLE, str(folder / "none.task"))
    with pytest.raises(ModelError, match="Warping a face needs"):  # of other kinds, the warp as before
        open_parts("miniature", "cpu", packs=own, judge="miniature")


def test_a_missing_reference_picture_is_not_needed(folder):
    """The embedding is enough: an identity without pictures is locked all the same."""
    parts = open_parts(folder / "own.toml", "cpu")
    maria = replace(parts.reader.identities(FACES / "maria.png")[0], crops=None)
    locked, records = parts.locker.lock(scene()[:1], [maria])
    assert len(records) == 1 and bool(locked.isfinite().all())
    with pytest.raises(InputError, match="other@1"):
        parts.locker.lock(scene()[:1], [Identity("x", {"other@1": torch.ones(512)})])


def test_generate_and_lock_from_the_command_line(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    own = ["--recipe", str(folder / "own.toml"), "--no-restore"]

    def run(*arguments):
        with pytest.raises(SystemExit) as left:
            cli.main([*arguments, "--face", str(FACES / "maria.png"), "--quiet", "--target", "0"])
        assert left.value.code == 0, capsys.readouterr().err

    words = ["a woman with long red hair talking", "--seconds", "0.5"]
    run("generate", *words, "-o", "made.mp4", *own)
    run("generate", *words, "-o", "plain.mp4")  # what untrained diffusion makes may be no face at all
    run("lock", "plain.mp4", "-o", "locked.mp4", *own)
    assert Path("made.report.json").exists() and Path("locked.report.json").exists()


def test_the_documentations_recipe_is_one(folder):
    text = (ROOT / "docs" / "faceid.md").read_text()
    (shown,) = re.findall(r"^```toml\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    recipe = load_recipe(write(folder, shown, "shown.toml")).lock
    assert recipe.kind == "faceid" and recipe.faceid.start == "warp"
    table = {
        name
        for row in re.findall(r"^\| (`.*?) \|", text, re.MULTILINE)
        for name in re.findall(r"`(\w+)`", row)
    }
    assert table == set(type(recipe.faceid).model_fields), "the page's table names every key"
    defaults = PortraitSettings(**type(recipe.faceid)(adapter="a").settings)
    assert defaults == PortraitSettings(), "a recipe's defaults are the core's"
