"""What stands in a recipe's way is said before anything is loaded, all of it at once, by every command alike."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
from pathlib import Path

import pytest
import tiny_a2
import tiny_guidance
import tiny_portrait
import tiny_restore
import tiny_wan
import torch
from real import ASSETS, needs_assets
from test_inswapper import swapper
from test_restoration import enlarger

import facelock
from facelock import cli, preflight
from facelock.alignment import formats
from facelock.assembly import Assembly
from facelock.assets import asset_dir
from facelock.blueprint import fits
from facelock.blueprint.index import PIPELINES, read_configs, read_index
from facelock.doctor import recipes as needs_of
from facelock.errors import ConfigError, EnvironmentFailure, FaceLockError, InputError, ModelError, together
from facelock.geometry import INSWAPPER128
from facelock.preflight import lacking
from facelock.recipe import load_recipe
from facelock.restoration import formats as restoration_formats
from facelock.restoration.onnx_upscaler import OnnxUpscaler
from facelock.storyboard import Storyboard
from facelock.weights import locate

ROOT = Path(__file__).resolve().parents[1]
MARIA = str(ROOT / "samples" / "faces" / "maria.png")
DEFAULT = (asset_dir("pipelines") / "default.toml").read_text()


def recipe_file(folder: Path, *changes: tuple[str, str], more: str = "") -> Path:
    """The miniature's recipe with other lines."""
    text = DEFAULT
    for before, after in changes:
        assert before in text, before
        text = text.replace(before, after, 1)
    path = folder / "own.toml"
    path.write_text(text + more)
    return path


def sentences(path: Path) -> list[str]:
    return [str(error) for error in lacking(load_recipe(path))]


@pytest.fixture(autouse=True)
def nothing_is_loaded(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    if "loads" in request.keywords:
        return
    for name in (
        "assembly.backbone_class",
        "assembly.aligner_class",
        "assembly.load_pack",
        "assembly.upscaler_class",
    ):
        monkeypatch.setattr(f"facelock.{name}", lambda *_, **__: pytest.fail("a model was loaded"))
    monkeypatch.setattr(
        "facelock.footage.parts.open_perception", lambda *_, **__: pytest.fail("a pack was loaded")
    )


@pytest.fixture
def lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without the packages that the recipes here ask for."""
    real = importlib.util.find_spec
    gone = {"spandrel", "torchvision", "torchao", "sageattention"}
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *rest: None if name in gone else real(name, *rest)
    )


@pytest.fixture
def wrong(tmp_path: Path, lost: None) -> Path:
    """A recipe with a mistake of every stage."""
    swapper(tmp_path / "side.onnx", side=112)
    tiny_guidance.tiny_decoder(tmp_path / "other.safetensors", channels=12)
    (tmp_path / "up.pth").write_bytes(b"whatever")
    return recipe_file(
        tmp_path,
        ("size = [64, 64]", "size = [60, 64]"),
        ("window = 17", "window = 18"),
        ('model = "miniature/aligner"', 'model = "side.onnx"'),
        ('upscaler = "miniature/upscaler"', 'upscaler = "up.pth"\nupscaler_kind = "spandrel_upscaler"'),
        ('upscaler_kind = "onnx_upscaler"\n', ""),
        ('restorer = "miniature/restorer"', 'restorer = "miniature/restoror"'),
        more='\n[guidance]\ndecoder = "other.safetensors"\n[speed]\nattention = "sage"\nquantise = "int8"\n',
    )


TOLD = (
    "size = (60, 64). Give n * ",
    "window = 18. Give n * 4 + 1 frames",
    "side.onnx: not an inswapper-format model",
    "This upscaler or restorer needs spandrel, which is not installed. Give pip install 'facelock-video[sr]'.",
    "no model is called 'miniature/restoror'. Known ones near it: miniature/restorer",
    "The tiny decoder takes latents of 12 channels, the blueprint's have ",
    "speed.attention = 'sage' needs sageattention, which is not installed. Give pip install sageattention",
    "speed.quantise = 'int8' needs torchao, which is not installed.",
)


def test_mistakes_of_every_stage_are_told_at_once(wrong: Path) -> None:
    told = sentences(wrong)
    for words in TOLD:
        assert sum(words in sentence for sentence in told) == 1, (words, told)
    assert len(told) == len(TOLD)
    with pytest.raises(
        ConfigError, match=r"^The recipe miniature cannot run here: [89] mistakes\.\n  "
    ) as caught:
        Assembly(load_recipe(wrong), "cpu")
    assert all(words in str(caught.value) for words in TOLD)
    assert caught.value.exit_code == 2


def test_generate_lock_storyboard_and_doctor_say_the_same(
    wrong: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = tmp_path / "clip.mp4"
    monkeypatch.setattr("facelock.api.probe", lambda _: None)
    board = Storyboard.from_data(
        {
            "schema": "facelock.storyboard.v1",
            "defaults": {"recipe": str(wrong)},
            "cast": {"maria": {"face": MARIA}},
            "shots": [{"prompt": "{maria} talking", "seconds": 1}],
        },
        tmp_path,
    )
    for begin in (
        lambda: facelock.generate("a woman", MARIA, seconds=1, recipe=wrong, device="cpu"),
        lambda: facelock.render(board, tmp_path / "film", device="cpu"),
    ):
        with pytest.raises(ConfigError) as caught:
            begin()
        assert all(words in str(caught.value) for words in TOLD), caught.value
    with pytest.raises(ConfigError) as caught:
        facelock.lock(clip, MARIA, recipe=wrong, device="cpu")
    told = [words for words in TOLD if words in str(caught.value)]
    assert told == [words for words in TOLD if "inswapper-format" in words or "restoror" in words]
    assert not (tmp_path / "film").exists()
    (needs,) = needs_of([str(wrong)])
    assert all(any(words in sentence for sentence in needs.mistakes) for words in TOLD)


def test_the_command_line_lists_them(wrong: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["generate", "a woman", "--face", MARIA, "--seconds", "1", "-o", str(tmp_path / "clip.mp4")]
    with pytest.raises(SystemExit) as left:
        cli.main([*words, "--recipe", str(wrong), "--device", "cpu"])
    error = capsys.readouterr().err
    assert left.value.code == 2 and error.count("facelock: error:") == 1 and "Traceback" not in error
    assert all(f"\n  {line}" in error or line in error for line in TOLD)
    assert not (tmp_path / "clip.mp4").exists()


def test_only_a_package_that_is_missing_is_the_environment(tmp_path: Path, lost: None) -> None:
    path = recipe_file(tmp_path, more='\n[speed]\nquantise = "int8"\n')
    with pytest.raises(EnvironmentFailure, match=r"^speed.quantise = 'int8' needs torchao") as caught:
        Assembly(load_recipe(path), "cpu")
    assert caught.value.exit_code == 3 and not isinstance(caught.value, InputError)


def test_a_package_that_is_there_is_no_mistake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    spec = importlib.machinery.ModuleSpec("x", None)
    there = {"torchao", "sageattention"}
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *r: spec if name in there else real(name, *r)
    )
    path = recipe_file(tmp_path, more='\n[speed]\nquantise = "int8"\nattention = "sage"\n')
    assert sentences(path) == []


def test_weights_of_any_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FACELOCK_HOME", str(tmp_path / "empty"))
    path = recipe_file(
        tmp_path,
        ('upscaler = "miniature/upscaler"', 'upscaler = "realesr-general-x4v3"'),
        ('encoder = "miniature/judge"', 'encoder = "opencv/sface"'),
    )
    (told,) = sentences(path)
    assert told.startswith("2 models are not on this machine. Get them with: facelock models pull ")
    assert "realesr-general-x4v3" in told and "opencv/sface" in told


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("size = [64, 64]", "size = [64, 4096]"), "latents along one axis. Give at most"),
        (("context = 5", "context = 6"), "context = 6. Give n * 4 + 1 frames"),
        (("steps = 6", "steps = 6\ncontext_noise = 0.1"), "context_noise = 0.1. Give between 0 and 0.06"),
        (("steps = 6", "steps = 6\nregions = 3\nregion_width = 16"), "regions of 4 latents leave gaps"),
        (('kind = "skyreels_v2"', 'kind = "helios"'), "holds a SkyReelsV2DiffusionForcingPipeline, not a Helios"),
        (('model = "miniature/blueprint"', 'model = "miniature/judge"'), "has no model_index.json"),
        (('restorer = "miniature/restorer"', 'restorer = "miniature/upscaler"'), "not a restorer (inputs target"),
        (('upscaler = "miniature/upscaler"', 'upscaler = "miniature/restorer"'), "not an upscaler (one input"),
        (('model = "miniature/aligner"', 'model = "miniature/blueprint"'), "a folder, where the aligner inswapper"),
        (('kind = "inswapper"', 'kind = "inswaper"'), "no aligner is called 'inswaper'. Give one of"),
    ],
)  # fmt: skip
def test_what_does_not_fit_the_miniature(tmp_path: Path, change: tuple[str, str], words: str) -> None:
    told = sentences(recipe_file(tmp_path, change))
    assert any(words in sentence for sentence in told), told
    assert all(len(sentence.splitlines()) == 1 and sentence.endswith(".") for sentence in told)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("up.onnx", "onnx_upscaler"),
        ("up.pth", "compact_upscaler"),
        ("up.safetensors", "compact_upscaler"),
        ("up.pth", "spandrel_upscaler"),
    ],
)
def test_an_upscaler_of_another_scale(name: str, kind: str, tmp_path: Path) -> None:
    """Told by the file's header, whatever the format; the recipe of the right scale is none."""
    make = enlarger if name.endswith("onnx") else tiny_restore.srvgg
    make(tmp_path / name, scale=2)
    changes = (('upscaler = "miniature/upscaler"', f'upscaler = "{name}"'), ("onnx_upscaler", kind))
    (told,) = [text for text in sentences(recipe_file(tmp_path, *changes)) if "spandrel" not in text]
    assert f"{name}: enlarges 2×, not 4×. Give scale = 2 in [restore], or another upscaler." in told
    right = (*changes, ("\nscale = 4", "\nscale = 2"))
    assert not [text for text in sentences(recipe_file(tmp_path, *right)) if "enlarges" in text]


def test_a_file_that_is_no_compact_upscaler(tmp_path: Path) -> None:
    tiny_guidance.tiny_decoder(tmp_path / "other.safetensors", channels=12)
    (tmp_path / "bad.pth").write_bytes(b"whatever")
    for name, words in (
        ("other.safetensors", "not a compact upscaler (it has no body"),
        ("bad.pth", "not a readable"),
    ):
        changes = (
            ('upscaler = "miniature/upscaler"', f'upscaler = "{name}"'),
            ("onnx_upscaler", "compact_upscaler"),
        )
        (told,) = sentences(recipe_file(tmp_path, *changes))
        assert f"{name}: " in told and words in told


def test_a_network_whose_sizes_are_not_written_in_it(tmp_path: Path) -> None:
    """Then its first picture tells."""
    path = enlarger(tmp_path / "up.onnx", 2, computed=True)
    restoration_formats.require_upscaler(path, "onnx_upscaler", 4)
    with pytest.raises(ModelError, match=r"up\.onnx: enlarges 2×, not 4×\. Give scale = 2"):
        OnnxUpscaler(path, scale=4).upscale(torch.rand(1, 3, 8, 8))
    restoration_formats.require_upscaler(locate("miniature/upscaler"), "onnx_upscaler", 4)
    with pytest.raises(ModelError, match="enlarges 4×, not 3×"):
        restoration_formats.require_upscaler(locate("miniature/upscaler"), "onnx_upscaler", 3)


@needs_assets
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("RealESRGAN_General_x4_v3.pth", "compact_upscaler"),
        ("realesr-animevideov3-x4.pth", "spandrel_upscaler"),
        ("realesr-animevideov3-x4.onnx", "onnx_upscaler"),
    ],
)
def test_published_upscalers_tell_their_scale(name: str, kind: str) -> None:
    path = ASSETS / "sr" / name
    restoration_formats.require_upscaler(path, kind, 4)
    with pytest.raises(ModelError, match="enlarges 4×, not 2×"):
        restoration_formats.require_upscaler(path, kind, 2)


def test_shipped_recipes_lack_nothing_but_weights_and_features(monkeypatch: pytest.MonkeyPatch) -> None:
    for needs in needs_of():
        assert len(needs.mistakes) == (needs.name == "consisid-5b"), needs.mistakes
    assert lacking(load_recipe("miniature")) == []


def test_a_folder_that_lacks_a_part(tmp_path: Path) -> None:
    folder = tiny_wan.vace(tmp_path / "vace")
    (folder / "vae").rename(folder / "elsewhere")
    recipe = load_recipe("miniature")
    low = recipe.blueprint.model_copy(update={"model": str(folder), "kind": "wan_vace", "options": {}})
    told = [str(error) for error in lacking(recipe.model_copy(update={"blueprint": low}))]
    assert any("lacks its vae/ folder" in sentence for sentence in told)


def asked(**changes: object) -> fits.Asked:
    return fits.Asked(**{"size": (64, 64), "window": 17, "context": 9, **changes})  # type: ignore[arg-type]


def misfits(kind: str, folder: Path, **changes: object) -> list[str]:
    index = read_index(folder, PIPELINES[kind])
    found = fits.misfits(kind, str(folder), read_configs(folder, index), asked(**changes))
    return [str(error) for error in found]


def test_the_rules_read_files_as_the_backbones_read_networks(tmp_path: Path) -> None:
    """Sizes, windows and options of every kind, from config.json alone."""
    vace = tiny_wan.vace(tmp_path / "vace")
    assert misfits("wan_vace", vace, size=(32, 48)) == []
    (told,) = misfits("wan_vace", vace, size=(32, 48), options={"guidance_scale_2": 2.0})
    assert "guidance_scale_2 = 2.0. Give it for a model of two transformers alone" in told
    helios = tiny_wan.helios(tmp_path / "helios")
    assert misfits("helios", helios, size=(32, 48), window=99, context=66) == []
    told = " ".join(misfits("helios", helios, size=(32, 48), window=99, context=60, flow_shift=3.0))
    assert "context = 60. Give n * 33 frames" in told and "flow_shift = 3.0" in told
    ltx2 = tiny_a2.save_ltx2(tmp_path / "ltx2")
    assert misfits("ltx2", ltx2) == []
    told = " ".join(misfits("ltx2", ltx2, size=(64, 80), context=8, options={"stg_scale": 1.0}))
    for words in (
        "size = (64, 80). Give n * 32",
        "context = 8. Give n * 8 + 1 frames",
        "no attention to skip",
    ):
        assert words in told
    tiny_a2.consisid_pipeline().save_pretrained(tmp_path / "consisid")
    told = " ".join(misfits("consisid", tmp_path / "consisid", window=18, guided=True))
    for words in (
        "(32, 48), the only size it knows",
        "window = 18. Give 2 to 17",
        "takes no flow_shift",
        "needs each",
    ):
        assert words in told


def test_a_configuration_that_lacks_a_number_is_no_mistake(tmp_path: Path) -> None:
    """Older checkpoints lack some: loading knows their defaults."""
    vace = tiny_wan.vace(tmp_path / "vace")
    path = vace / "transformer" / "config.json"
    kept = json.loads(path.read_text())
    del kept["rope_max_seq_len"], kept["patch_size"]
    path.write_text(json.dumps(kept))
    assert misfits("wan_vace", vace, size=(32, 48)) == []
    path.write_text("{")
    assert misfits("wan_vace", vace, size=(32, 48)) == []


def test_features_of_a_face_are_missed_before_the_blueprint_is_loaded(tmp_path: Path) -> None:
    recipe = load_recipe("consisid-5b")
    low = recipe.blueprint.model_copy(update={"options": {"features": str(tmp_path)}})
    recipe = recipe.model_copy(update={"blueprint": low})
    with pytest.raises(InputError, match=r"maria\.safetensors: ConsisID's features of maria are missing"):
        preflight.require_features(recipe, ["maria", "tom"])
    (tmp_path / "maria.safetensors").write_bytes(b"")
    preflight.require_features(recipe, ["maria", "tom"])
    preflight.require_features(load_recipe("miniature"), ["maria"])


def test_a_portrait_checkpoint_and_its_adapter(tmp_path: Path) -> None:
    tiny_portrait.checkpoint(tmp_path / "sd")
    tiny_portrait.save_adapter(tmp_path / "xl.bin", tiny_portrait.faceid(tiny_portrait.unet(large=True)))
    lock = (
        '[lock]\nkind = "faceid"\nmodel = "sd"\nladder = [0.2]\ntarget = 0.5\n[lock.faceid]\nadapter = "xl.bin"\n'
        'encoder = "miniature/recogniser"\nsize = {size}\n'
    )
    begin, end = DEFAULT.index("[lock]"), DEFAULT.index("[restore]")
    path = tmp_path / "own.toml"
    path.write_text(DEFAULT[:begin] + lock.format(size=33) + DEFAULT[end:])
    (told,) = sentences(path)
    assert "has no crops of 33 pixels. Give lock.faceid.size as n * 4" in told
    path.write_text(DEFAULT[:begin] + lock.format(size=32) + DEFAULT[end:])
    assert sentences(path) == []
    with pytest.raises(
        ModelError, match=r"xl\.bin: made for a UNet of cross attentions of 64 numbers, but .* has 32"
    ):
        Assembly(load_recipe(path), "cpu")
    narrow = tiny_portrait.faceid(tiny_portrait.unet(), size=256)
    tiny_portrait.save_adapter(tmp_path / "xl.bin", narrow)
    with pytest.raises(
        ModelError, match=r"xl\.bin: takes embeddings of 256 numbers, but .* gives 512\. Name"
    ):
        Assembly(load_recipe(path), "cpu")


def test_a_restorer_of_another_recogniser_s_size(tmp_path: Path) -> None:
    swapper(tmp_path / "own.onnx")
    path = recipe_file(tmp_path, ('restorer = "miniature/restorer"', 'restorer = "own.onnx"'))
    assert sentences(path) == [
        f"{tmp_path / 'own.onnx'}: takes embeddings of 16 numbers, but {locate('miniature/recogniser')} gives 512. "
        "Name the recogniser that it was made for as faces.encoder."
    ]


@pytest.mark.parametrize("other", ["miniature/detector", "miniature/judge", "miniature/aligner"])
def test_a_recogniser_that_is_none(tmp_path: Path, other: str) -> None:
    path = recipe_file(tmp_path, ('encoder = "miniature/recogniser"', f'encoder = "{other}"'))
    assert sentences(path)[0] == (
        f"{locate(other)}: no recogniser of crops of 112 x 112 pixels. Give an ArcFace ONNX file."
    )


def test_an_aligner_of_another_recogniser_s_size(tmp_path: Path) -> None:
    wide = enlarger(tmp_path / "up.onnx", 4)
    aligner = swapper(tmp_path / "own.onnx")
    formats.require_width(locate("miniature/aligner"), locate("miniature/recogniser"))
    formats.require_width(aligner, wide)  # whose header does not say
    assert INSWAPPER128.size == formats.SIDE
    with pytest.raises(ModelError, match=r"takes embeddings of 16 numbers, but .* gives 512\. Name"):
        formats.require_width(aligner, locate("miniature/recogniser"))


def test_several_errors_are_one() -> None:
    model, wrong = ModelError("a is missing. Pull it."), ConfigError("b is wrong. Correct it.")
    assert together("x", [model, ModelError("a is missing. Pull it.")]) is model
    both = together("The recipe x cannot run here", [model, wrong])
    assert isinstance(both, ConfigError)
    assert str(both).splitlines() == ["The recipe x cannot run here: 2 mistakes.", f"  {model}", f"  {wrong}"]
    three = together("x", [model, EnvironmentFailure("c is not installed. Give pip install c.")])
    assert type(three) is EnvironmentFailure and three.exit_code == 3
    assert isinstance(three, FaceLockError)


def test_the_stages_after_the_blueprint_are_opened_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """What only loading tells of them is told before hours of denoising."""
    import toys

    order: list[str] = []

    class Parts(toys.Parts):
        def __getattribute__(self, name: str) -> object:
            if name in ("backbone", "locker", "restorer", "upscaler"):
                order.append(name)
            return super().__getattribute__(name)

    pipeline = toys.pipeline(Parts())
    job = facelock.job.Job("a woman talking", 1.0, 0, None, True, True)
    pipeline.run(job, [])
    assert order[:3] == ["locker", "restorer", "backbone"]


@pytest.mark.parametrize(
    "command",
    [
        ["lock", str(ROOT / "no.mp4"), "--face", MARIA, "-o", "a.mp4"],
        ["storyboard", "render", str(ROOT / "samples/storyboards/three-friends.yaml"), "-o", "film"],
        ["generate", "a woman", "--face", MARIA, "--seconds", "1", "-o", "a.mp4"],
    ],
)
def test_every_command_that_makes_frames_takes_a_memory_plan(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as left:
        cli.main([*command, "--vram", "13"])
    assert left.value.code == 2
    assert "There is no plan for --vram 13. Give one of: 8, 12, 16, 24, 48, 80." in capsys.readouterr().err
