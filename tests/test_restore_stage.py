"""The recipe's [restore] with the production kinds: keys, FaceID as the restorer, whole clips."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny_portrait
import torch
from test_restore_nets import frames
from tiny_restore import single, spandrel, srvgg  # noqa: F401 - a fixture
from torch.nn.functional import normalize

from facelock import cli
from facelock.assembly import Assembly
from facelock.assets import asset_dir
from facelock.errors import ConfigError, DeviceError
from facelock.portrait import PortraitSettings
from facelock.recipe import load_recipe, model_names
from facelock.restoration.compact_upscaler import CompactUpscaler
from facelock.restoration.faceid_restorer import FaceIDRestorer
from facelock.weights import encoder_id, locate

DEFAULT = (asset_dir("pipelines") / "default.toml").read_text()
HEAD, _, REST = DEFAULT.partition("[restore]")
TAIL = "[judge]" + REST.partition("[judge]")[2]
PORTRAIT = Path(__file__).resolve().parents[1] / "samples" / "faces" / "maria.png"


def recipe(folder, restore: str):
    """The miniature's recipe with another [restore]."""
    path = folder / "own.toml"
    path.write_text(f"{HEAD}[restore]\n{restore}\n{TAIL}")
    return path


# ------------------------------------------------------------------ keys


@pytest.mark.parametrize(
    ("restore", "words"),
    [
        ('upscaler = "x"\ntile = 256', "tile has no effect with upscaler_kind onnx_upscaler"),
        ('upscaler = "x"\nprecision = "float16"', "precision has no effect with upscaler_kind onnx_upscaler"),
        ('upscaler = "x"\nrestorer_precision = "float32"', "no effect with restorer_kind onnx_restorer"),
        ('upscaler = "x"\ntolerance = 0.1', "tolerance has no effect with search ladder"),
        ('upscaler = "x"\nsearch = "binary"', "restore.search"),
        ('upscaler = "x"\nsearch = "bisect"\nsearch_step = 3', "did you mean 'search_steps'"),
        ('upscaler = "x"\nupscaler_kind = "compact_upscaler"\ntile = 80', "larger than twice the overlap"),
        ('upscaler = "x"\nupscaler_kind = "compact_upscaler"\nprecision = "half"', "restore.precision"),
        ('upscaler = "x"\nrestorer = "y"\nrestorer_kind = "faceid_restorer"', "needs a table restore.faceid"),
        ('upscaler = "x"\nrestorer = "y"\n[restore.faceid]\nadapter = "a"', "takes no table restore.faceid"),
        (
            'upscaler = "x"\nrestorer = "y"\nrestorer_kind = "faceid_restorer"\n'
            '[restore.faceid]\nadapter = "a"\nstart = "warp"',
            "leave start out",
        ),
    ],
)
def test_keys_that_would_do_nothing_are_named(tmp_path, restore, words):
    with pytest.raises(ConfigError, match=words):
        load_recipe(recipe(tmp_path, restore))


def test_kinds_that_nobody_knows_are_named(tmp_path):
    srvgg(tmp_path / "x.pth")
    found = load_recipe(recipe(tmp_path, 'upscaler = "x.pth"\nupscaler_kind = "magic"\nscale = 2'))
    with pytest.raises(ConfigError, match=r"no upscaler is called .magic.\. Give one of .*compact_upscaler"):
        _ = Assembly(found, "cpu").upscaler


def test_the_recipe_reaches_the_stage(tmp_path, spandrel):  # noqa: F811
    srvgg(tmp_path / "x.pth")
    single(tmp_path / "face.pth", "gfpgan")
    found = load_recipe(
        recipe(
            tmp_path,
            'upscaler_kind = "compact_upscaler"\nupscaler = "x.pth"\nscale = 2\ntile = 64\noverlap = 8\n'
            'restorer_kind = "spandrel_restorer"\nrestorer = "face.pth"\n'
            'search = "bisect"\nsearch_steps = 3\ntolerance = 0.02\ntarget = 0.6\nconsistency = 0.05',
        )
    )
    loop = Assembly(found, "cpu").restorer
    assert isinstance(loop.upscaler, CompactUpscaler)
    assert (loop.upscaler.frames.tile, loop.upscaler.frames.overlap) == (64, 8)
    assert loop.restorer.crop.name == "ffhq512"
    assert (loop.search, loop.steps, loop.tolerance, loop.target, loop.consistency) == (
        "bisect",
        3,
        0.02,
        0.6,
        0.05,
    )
    assert found.native_size == (128, 128)


def test_half_precision_on_a_cpu_is_refused(tmp_path):
    srvgg(tmp_path / "x.pth")
    text = 'upscaler_kind = "compact_upscaler"\nupscaler = "x.pth"\nscale = 2\nprecision = "bfloat16"'
    with pytest.raises(ConfigError, match="restoration in bfloat16 needs a GPU"):
        Assembly(load_recipe(recipe(tmp_path, text)), "cpu")


def test_the_shipped_recipe_is_as_it_was():
    restore = load_recipe("miniature").restore
    assert (restore.search, restore.ladder, restore.upscaler_kind) == ("ladder", (1.0, 0.5), "onnx_upscaler")


# ------------------------------------------------------------------ FaceID as the restorer


@pytest.fixture(scope="session")
def portrait(tmp_path_factory):
    """A tiny SD 1.5 and an adapter for the miniature's recogniser."""
    folder = tmp_path_factory.mktemp("portrait-restorer")
    size = len(next(iter(Assembly(load_recipe("miniature"), "cpu").identity(PORTRAIT).embeddings.values())))
    adapter = tiny_portrait.faceid(tiny_portrait.unet(), size=size)
    tiny_portrait.save_adapter(folder / "faceid.safetensors", adapter)
    return tiny_portrait.checkpoint(folder / "sd"), folder / "faceid.safetensors", size


ENCODER = encoder_id("miniature/recogniser", locate("miniature/recogniser"))


def restorer(portrait, **changes) -> FaceIDRestorer:
    sd, adapter, _ = portrait
    options = {"encoder": ENCODER, "trained_with": ENCODER.rpartition("@")[2], "strength": 0.4}
    return FaceIDRestorer(
        sd, adapter=adapter, settings=PortraitSettings(steps=2, size=tiny_portrait.SIDE), **options | changes
    )


def test_faceid_restores_towards_whom_it_is_told(portrait):
    net = restorer(portrait)
    draw = torch.Generator().manual_seed(4)
    crops = torch.rand(3, 3, net.crop.size, net.crop.size, generator=draw)
    identity = normalize(torch.randn(3, portrait[2], generator=draw), dim=1)
    out = net.restore(crops, identity)
    assert out.shape == crops.shape and float(out.min()) >= 0 and float(out.max()) <= 1
    assert torch.equal(net.restore(crops[2:], identity[2:])[0], out[2])
    assert not torch.equal(net.restore(crops, identity.flip(0)), out)
    less = restorer(portrait, strength=0.1, core=None).restore(crops, identity)
    assert float((less - crops).abs().mean()) < float((out - crops).abs().mean())


def test_a_face_whose_diffusion_fails_is_not_restored(portrait, monkeypatch):
    net = restorer(portrait)
    crops = torch.rand(2, 3, net.crop.size, net.crop.size) * 0.9
    identity = normalize(torch.randn(2, portrait[2]), dim=1)
    whole = net.restore(crops, identity)
    denoise = net.core._denoise

    def half(given, *rest):
        latents, good = denoise(given, *rest)
        spoilt = (given[:, 0, 0, 0] == 1)[:, None, None, None]
        return torch.where(spoilt, torch.nan, latents), good

    monkeypatch.setattr(net.core, "_denoise", half)
    crops[1, 0, 0, 0] = 1
    out = net.restore(crops, identity)
    assert torch.equal(out[0], whole[0]) and bool(out[1].isnan().all())

    def short(*_):
        raise DeviceError("out of memory")

    monkeypatch.setattr(net.core, "repaint", short)
    with pytest.raises(DeviceError, match="out of memory"):
        net.restore(crops, identity)


def faceid_recipe(folder, portrait, lock: bool = False):
    sd, adapter, _ = portrait
    srvgg(folder / "up.pth", scale=2, strength=0.05)
    table = (
        f'adapter = "{adapter}"\nencoder = "miniature/recogniser"\nsteps = 2\nsize = {tiny_portrait.SIDE}\n'
    )
    path = recipe(
        folder,
        'upscaler_kind = "compact_upscaler"\nupscaler = "up.pth"\nscale = 2\ntile = 40\noverlap = 4\n'
        f'restorer_kind = "faceid_restorer"\nrestorer = "{sd}"\n'
        'search = "bisect"\nsearch_steps = 2\ntolerance = 0.05\ntarget = 0.3\nconsistency = 0.2\n'
        f"[restore.faceid]\n{table}strength = 0.2\n",
    )
    if lock:
        text = path.read_text().replace(
            'kind = "inswapper"\nmodel = "miniature/aligner"', f'kind = "faceid"\nmodel = "{sd}"'
        )
        text = text.replace("ladder = [1.0, 1.2, 1.4]", "ladder = [0.2]").replace(
            "[restore]", f"[lock.faceid]\n{table}\n[restore]", 1
        )
        path.write_text(text)
    return path


def test_the_models_of_both_stages_are_known_and_loaded_once(tmp_path, portrait):
    found = load_recipe(faceid_recipe(tmp_path, portrait, lock=True))
    roles = model_names(found)
    assert {"restore.restorer", "restore.faceid.adapter", "restore.faceid.encoder"} <= set(roles)
    parts = Assembly(found, "cpu")
    assert set(parts.weights) == set(roles)
    assert parts.restorer.restorer.core is parts.locker.aligner.core
    alone = Assembly(load_recipe(faceid_recipe(tmp_path, portrait)), "cpu").restorer.restorer
    assert alone.strength == 0.2 and alone.core.settings.steps == 2


def test_an_adapter_for_another_recogniser_is_refused_before_anything_is_loaded(tmp_path, portrait):
    path = faceid_recipe(tmp_path, portrait)
    path.write_text(
        path.read_text().replace(
            'encoder = "miniature/recogniser"\nsteps', 'encoder = "miniature/detector"\nsteps'
        )
    )
    with pytest.raises(ConfigError, match="FaceID adapter takes embeddings of"):
        Assembly(load_recipe(path), "cpu")


# ------------------------------------------------------------------ whole clips


def test_a_clip_with_the_compact_upscaler_and_faceid(tmp_path, portrait, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    path = faceid_recipe(tmp_path, portrait)
    words = [
        "a woman talking in a forest",
        "--face",
        PORTRAIT,
        "--seconds",
        0.5,
        "--seed",
        3,
        "-o",
        "clip.mp4",
    ]
    with pytest.raises(SystemExit) as left:
        cli.main(["generate", *map(str, words), "--recipe", str(path), "--device", "cpu"])
    assert left.value.code in (0, 4), capsys.readouterr().err
    report = json.loads((tmp_path / "clip.report.json").read_text())
    steps = [row["restore"] for row in report["ledger"] if row["restore"]]
    assert steps and all((step["rung"] == -1) == (step["share"] == 0) for step in steps)
    assert all(step["consistency"] <= 0.2 for step in steps)
    assert (tmp_path / "clip.mp4").stat().st_size > 1000


def test_a_missing_weight_is_one_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    path = recipe(tmp_path, 'upscaler_kind = "compact_upscaler"\nupscaler = "realesr-general-x4v9"')
    words = [
        "generate",
        "a woman",
        "--face",
        str(PORTRAIT),
        "--seconds",
        "1",
        "-o",
        "clip.mp4",
        "--recipe",
        str(path),
    ]
    with pytest.raises(SystemExit) as left:
        cli.main(words)
    error = capsys.readouterr().err
    assert left.value.code == 2 and error.count("error:") == 1 and "Traceback" not in error
    assert "no model is called 'realesr-general-x4v9'" in error
    (tmp_path / "up.pth").write_bytes(b"PK\x03\x04 damaged")
    path = recipe(tmp_path, 'upscaler_kind = "compact_upscaler"\nupscaler = "up.pth"')
    with pytest.raises(SystemExit) as left:
        cli.main(words)
    error = capsys.readouterr().err
    assert left.value.code == 3 and "up.pth: not a readable .pth" in error and "Traceback" not in error
    assert not (tmp_path / "clip.mp4").exists()


def test_frames_of_any_size_pass(tmp_path):
    net = CompactUpscaler(srvgg(tmp_path / "x.pth"), scale=2, tile=33, overlap=8)
    for height, width in ((33, 34), (8, 200), (1, 1)):
        assert net.upscale(frames(1, height, width)).shape == (1, 3, 2 * height, 2 * width)


def test_the_benchmark_sets_searches_side_by_side(tmp_path, monkeypatch):
    from facelock.bench import restore

    arms = {name: restore.ARMS[name] for name in ("plain upscaling", "ladder", "bisection, tolerance .02")}
    monkeypatch.setattr(restore, "ARMS", arms)
    monkeypatch.setattr(restore, "WINDOW", 5)
    results = restore.run(identities=1, out=tmp_path)
    plain, _, bisected = results["arms"].values()
    assert plain["share"] == 0 and plain["rms"] is None
    assert 0 < bisected["share"] <= 1 and bisected["kept"] > 0 and 0 < bisected["rms"] <= 0.08
    assert bisected["own"] >= plain["own"] - 0.02 and bisected["psnr"] > 10
    assert "| plain upscaling |" in (tmp_path / "restore.md").read_text()
