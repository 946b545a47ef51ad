"""Whole folders of a hub: listed, fetched, resumed, compared, published at once, and held to ever after."""

from __future__ import annotations

import json
import logging
import re
import shutil
import tomllib
from pathlib import Path

import pytest
import torch
from hub_server import blob_id, folder_files, serve_hub, sha256

from facelock import assembly, cli
from facelock.assets import asset_dir
from facelock.errors import ConfigError, ModelError, StorageError
from facelock.recipe import load_recipe
from facelock.weights import catalog, digest, locate, placing, pull, receipt, require_commercial
from facelock.weights.catalog import Catalog, Fetch
from facelock.weights.download import matches
from facelock.weights.hub import HubFile, _wanted
from facelock.weights.inventory import check
from facelock.weights.wire import Wire

REPO = "Skywork/SkyReels-V2-DF-1.3B-540P-Diffusers"
FILES = {
    "model_index.json": b'{"_class_name": "SkyReelsV2DiffusionForcingPipeline"}',
    "transformer/config.json": b"{}",
    "transformer/diffusion_pytorch_model.safetensors": bytes(range(256)) * 512,
    "vae/diffusion_pytorch_model.safetensors": b"vae" * 5000,
    "README.md": b"a card",
    "transformer/diffusion_pytorch_model.bin": b"a pickle" * 500,
    "assets/picture.png": b"png" * 500,
}
TAKEN = [name for name in FILES if name.endswith((".json", ".safetensors"))]
ROW = """
[models."{name}"]
path = "hub/{name}"
task = "video diffusion"
licence = "{licence}"
commercial = {commercial}
source = "https://huggingface.co/{repo}"
[models."{name}".fetch]
kind = "hub"
repo = "{repo}"
"""


def row(name: str = "far-folder", licence: str = "MIT", commercial: str = "true", more: str = "") -> str:
    return ROW.format(name=name, licence=licence, commercial=commercial, repo=REPO) + more


@pytest.fixture
def hub(monkeypatch):
    """The repository, in place of the hub; this process may talk to it."""
    with serve_hub(REPO, FILES) as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.setattr(pull, "Wire", lambda: Wire(timeout=5, loopback=True))
        yield running


@pytest.fixture
def shop(tmp_path, monkeypatch):
    """A catalog of its own; ``shop(rows)`` writes its public part."""
    models = tmp_path / "models"
    models.mkdir()
    (models / "catalog.toml").write_text("")
    monkeypatch.setattr(catalog, "asset_dir", lambda _: models)
    monkeypatch.setenv("FACELOCK_HOME", str(tmp_path / "home"))

    def write(*rows: str) -> Path:
        (models / "public.toml").write_text("".join(rows))
        return tmp_path / "home" / "models" / "hub"

    return write


@pytest.fixture
def models(capsys):
    """Run ``facelock models`` in this process: (exit code, stdout, stderr)."""

    def run(*arguments):
        with pytest.raises(SystemExit) as left:
            cli.main(["models", *map(str, arguments)])
        return left.value.code, *capsys.readouterr()

    return run


def left(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if not p.name.endswith(".lock"))


def test_a_folder_arrives_whole_and_is_recorded(shop, hub, models):
    folder = shop(row())
    code, out, err = models("pull", "far-folder")
    assert (code, out) == (0, f"far-folder: {folder}/far-folder\n")
    assert (
        "video diffusion, of a size its publisher will say, MIT" in err
        and f"from https://huggingface.co/{REPO}" in err
    )
    assert err.count("nobody published its digests in advance") == 1
    assert sorted(folder_files(folder / "far-folder")) == sorted(TAKEN)
    assert all((folder / "far-folder" / name).read_bytes() == FILES[name] for name in TAKEN)
    assert left(folder) == ["far-folder", "far-folder.lock.json"]
    kept = json.loads((folder / "far-folder.lock.json").read_text())
    assert kept["source"] == f"{REPO}@{hub.commit}"
    assert {name: row["sha256"] for name, row in kept["files"].items()} == {
        n: sha256(FILES[n]) for n in TAKEN
    }
    assert locate("far-folder") == folder / "far-folder"
    asked = len(hub.asked)
    code, _, err = models("pull", "far-folder")
    assert code == 0 and "is here already" in err and len(hub.asked) == asked
    assert models("verify", "far-folder")[:2] == (0, "far-folder: whole\n")
    listed = json.loads(models("list", "--json")[1])[0]
    assert listed["state"] == "pulled" and listed["revision"] == hub.commit and listed["repository"] == REPO
    assert listed["bytes"] == sum(len(FILES[name]) for name in TAKEN) and listed["sha256"] == {
        name: sha256(FILES[name]) for name in TAKEN
    }


def test_progress_is_of_the_whole_folder(shop, hub):
    shop(row())
    told = []
    pull.pull("far-folder", progress=lambda *step: told.append(step))
    total = sum(len(FILES[name]) for name in TAKEN)
    assert {step[2] for step in told} == {total} and told[-1] == ("far-folder", total, total)
    assert [step[1] for step in told] == sorted(step[1] for step in told)


def test_cut_off_it_goes_on_in_the_same_file(shop, hub):
    folder = shop(row())
    large = "transformer/diffusion_pytorch_model.safetensors"
    hub.cut = [50_000, 30_000, 10_000]
    with pytest.raises(ModelError, match=r"far-folder: cannot be fetched .*are kept"):
        pull.pull("far-folder")
    assert not (folder / "far-folder").exists() and not (folder / "far-folder.lock.json").exists()
    with pytest.raises(ModelError, match="facelock models pull far-folder"):
        locate("far-folder")
    before = len(hub.asked)
    pull.pull("far-folder")
    again = [(path, begin) for path, begin, _ in hub.asked[before:]]
    assert again[-1] == (f"/storage/{large}", "bytes=90000-")
    assert (
        hub.fetched().count("vae/diffusion_pytorch_model.safetensors") == 1
    )  # what was whole is not fetched again
    assert check(["far-folder"])[0].state == "whole" and left(folder) == [
        "far-folder",
        "far-folder.lock.json",
    ]


@pytest.mark.parametrize("elsewhere", [True, False])
def test_a_file_that_is_another_one_is_refused(shop, hub, elsewhere):
    folder, name = shop(row()), "vae/diffusion_pytorch_model.safetensors"
    hub.elsewhere, hub.answers = elsewhere, {name: b"x" * len(FILES[name])}
    with pytest.raises(ModelError, match="sha256 differs"):
        pull.pull("far-folder")
    assert not (folder / "far-folder").exists()


def test_a_small_file_that_is_another_one_is_refused_too(shop, hub):
    shop(row())
    hub.answers = {"transformer/config.json": b"[]"}
    with pytest.raises(ModelError, match="git differs"):
        pull.pull("far-folder")


def test_the_hub_s_own_digest_is_believed_before_a_byte_is_read(shop, hub):
    folder = shop(row())
    hub.linked = "0" * 64
    with pytest.raises(ModelError, match=r"gives another file than the catalog knows \(sha256 000000000000"):
        pull.pull("far-folder")
    staging = folder / ".far-folder.pulling"
    assert not [p for p in staging.rglob("*.safetensors*")]


def test_a_damaged_file_alone_is_fetched_again_at_the_same_commit(shop, hub, models):
    folder = shop(row())
    pull.pull("far-folder")
    path = folder / "far-folder" / "vae/diffusion_pytorch_model.safetensors"
    path.write_bytes(b"damaged")
    hub.branch = "elsewhere"  # the branch has moved on; only the commit still gives these files
    code, _, err = models("verify")
    assert code == 3 and f"{path}: not the file the catalog knows" in err
    with pytest.raises(ModelError, match="facelock models pull far-folder"):
        locate("far-folder")
    before = len(hub.asked)
    code, _, err = models("pull", "far-folder")
    assert code == 0 and "nobody published" not in err
    assert path.read_bytes() == FILES["vae/diffusion_pytorch_model.safetensors"]
    assert [p for p, *_ in hub.asked[before:] if "/resolve/" in p] == [
        f"/{REPO}/resolve/{hub.commit}/vae/diffusion_pytorch_model.safetensors"
    ]


def test_what_was_recorded_holds_against_the_hub(shop, hub):
    folder = shop(row())
    pull.pull("far-folder")
    (folder / "far-folder" / "vae/diffusion_pytorch_model.safetensors").write_bytes(b"damaged")
    hub.files["vae/diffusion_pytorch_model.safetensors"] = b"another" * 500
    with pytest.raises(ModelError, match=r"gives another file than is known as vae/.*or remove .*lock\.json"):
        pull.pull("far-folder")


def test_only_a_changed_file_is_read_again(shop, hub, monkeypatch):
    folder = shop(row())
    pull.pull("far-folder")
    large = folder / "far-folder" / "transformer/diffusion_pytorch_model.safetensors"
    import facelock.weights as weights

    monkeypatch.setattr(weights, "sha256_file", lambda path: pytest.fail(f"{path} was read"))
    locate("far-folder")
    assert digest(large) == sha256(large.read_bytes())
    monkeypatch.undo()
    large.write_bytes(b"changed" + large.read_bytes()[7:])
    assert digest(large) == sha256(large.read_bytes())


def test_a_catalog_that_pins_another_commit_wants_that_one(shop, hub, models):
    folder = shop(row())
    pull.pull("far-folder")
    shop(row(more=f'revision = "{"d" * 40}"\n'))
    assert "missing" in models("list")[1]
    hub.commit = "d" * 40
    hub.files["vae/diffusion_pytorch_model.safetensors"] = b"newer" * 4000
    before = len(hub.asked)
    pull.pull("far-folder")
    assert [p.rsplit("/", 1)[0] for p, *_ in hub.asked[before:] if "/resolve/" in p] == [
        f"/{REPO}/resolve/{'d' * 40}/vae"
    ]  # all else is the same file
    assert (folder / "far-folder/vae/diffusion_pytorch_model.safetensors").read_bytes() == b"newer" * 4000


def test_digests_of_the_catalog_are_asked_for_before_anything_is_fetched(shop, hub):
    name = "vae/diffusion_pytorch_model.safetensors"
    shop(row(more=f'[models."far-folder".files]\n"{name}" = "{"1" * 64}"\n'))
    with pytest.raises(ModelError, match=rf"gives another file than is known as {name}\. Do not use it\."):
        pull.pull("far-folder")
    assert hub.fetched() == []
    shop(row(more='[models."far-folder".files]\n"gone.safetensors" = "' + "1" * 64 + '"\n'))
    with pytest.raises(ModelError, match=r"the hub has no longer gone\.safetensors"):
        pull.pull("far-folder")
    config = "transformer/config.json"  # of a small file the hub tells no sha256
    shop(row(more=f'[models."far-folder".files]\n"{config}" = "{"1" * 64}"\n'))
    with pytest.raises(ModelError, match=r"transformer/config\.json is not the file the catalog knows"):
        pull.pull("far-folder")
    shop(row(more=f'[models."far-folder".files]\n"{config}" = "{sha256(FILES[config])}"\n'))
    assert pull.pull("far-folder").is_dir()


def test_half_a_checkpoint_is_none(shop, hub):
    shop(row())
    hub.files = {name: content for name, content in FILES.items() if not name.endswith(".safetensors")}
    with pytest.raises(ModelError, match=r"holds no \*/\*\.safetensors, so it is not what the catalog knows"):
        pull.pull("far-folder")
    shop(row(more='include = ["unet/*.json"]\n'))
    with pytest.raises(ModelError, match=r"holds no unet/\*\.json"):
        pull.pull("far-folder")


@pytest.mark.parametrize(
    ("behaviour", "said"),
    [
        (
            {"listed": 401},
            r"does not give .* to everybody \(HTTP 401\)\. Accept its licence on https://hugging",
        ),
        ({"listed": 403}, r"HTTP 403\)\. Accept its licence .* set HF_TOKEN to a token of that account"),
        ({"token": "hf_secret"}, r"HTTP 401\)\. Accept its licence on https://huggingface.co/Skywork/"),
        ({"listed": 404}, r"the hub has no Skywork/\S+ at main \(HTTP 404\)\. Its publisher may have moved"),
        ({"listed": 500}, r"far-folder: cannot be fetched \(127\.0\.0\.1: HTTP 500"),
    ],
)
def test_what_the_hub_refuses_is_one_sentence(shop, hub, models, behaviour, said):
    shop(row())
    for key, value in behaviour.items():
        setattr(hub, key, value)
    code, _, err = models("pull", "far-folder", "--quiet")
    assert code == 3 and err.count("\n") == 1 and "Traceback" not in err
    assert re.search(said, err), err


def test_a_token_goes_to_the_hub_and_nowhere_else(shop, hub, monkeypatch):
    shop(row())
    hub.token = "hf_secret"  # noqa: S105 - the server's, of this test
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with serve_hub(REPO, FILES) as storage:
        hub.storage = storage.url
        pull.pull("far-folder")
    assert {token for _, _, token in hub.asked} == {"Bearer hf_secret"}
    assert [token for _, _, token in storage.asked] == [None, None]


@pytest.mark.parametrize("answer", [b"", b"<html>", b"[]", b'{"sha": "x", "siblings": []}', b'{"sha": 3}'])
def test_an_answer_that_is_no_listing(shop, hub, answer, monkeypatch):
    shop(row())
    monkeypatch.setattr(type(hub), "listing", lambda _: answer)
    with pytest.raises(ModelError, match=r"the hub's answer about .* cannot be read"):
        pull.pull("far-folder")


@pytest.mark.parametrize(
    "change",
    [
        {"rfilename": "vae/../../x.json"},
        {"size": None},
        {"size": -1},
        {"blobId": None},
        {"lfs": {"sha256": "x"}},
    ],
)
def test_rows_that_are_refused(change):
    plain = {"rfilename": "vae/x.json", "size": 2, "blobId": "a" * 40}
    assert list(_wanted([plain], Fetch(kind="hub", repo=REPO))) == [
        HubFile("vae/x.json", "vae/x.json", 2, "git:" + "a" * 40)
    ]
    include = ("*/*.json", "*/*/*/*.json")
    with pytest.raises(ModelError, match="not usable"):
        list(_wanted([plain | change], Fetch(kind="hub", repo=REPO, include=include)))


def test_a_variant_takes_the_plain_name(shop, hub):
    folder = shop(row(more='variant = "fp16"\ninclude = ["unet/*"]\n'))
    hub.files = {
        "unet/config.json": b"{}",
        "unet/model.safetensors": b"full" * 900,
        "unet/model.fp16.safetensors": b"half" * 450,
        "unet/other.non_ema.safetensors": b"?" * 900,
    }
    pull.pull("far-folder")
    assert folder_files(folder / "far-folder") == {
        "unet/config.json": b"{}",
        "unet/model.safetensors": b"half" * 450,
    }


def test_room_is_asked_for_before_anything_is_fetched(shop, hub, monkeypatch):
    shop(row())
    monkeypatch.setattr(placing.shutil, "disk_usage", lambda _: type("Disk", (), {"free": 1000}))
    with pytest.raises(StorageError, match=r"MiB are needed.*FACELOCK_HOME"):
        pull.pull("far-folder")
    assert hub.fetched() == []


def test_commercial_use_is_refused_before_the_hub_is_asked(shop, hub, models):
    shop(row(), row("far-research", "research only", "false"))
    code, _, err = models("pull", "far-folder", "far-research", "--commercial")
    assert code == 2 and "far-research does not allow commercial use (its licence: research only)" in err
    assert hub.asked == []
    folder = pull.pull("far-research")
    with pytest.raises(ConfigError, match="does not allow commercial use"):
        require_commercial([folder])  # also by its path, which its recorded digests tell


def test_offline_is_one_sentence(shop, models, monkeypatch):
    import socket

    def offline(*_: object, **__: object) -> None:
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    shop(row())
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    monkeypatch.setattr(socket, "getaddrinfo", offline)
    code, _, err = models("pull", "far-folder", "--quiet")
    assert code == 3 and err == (
        "facelock: error: far-folder: cannot be fetched (huggingface.co: its name cannot be resolved; is this machine "
        "online?). Check the network, or try again later.\n"
    )


def test_only_https_even_for_a_mirror(shop, monkeypatch):
    shop(row())
    for mirror in ("http://mirror.example.org", "https://127.0.0.1", "file:///etc"):
        monkeypatch.setenv("HF_ENDPOINT", mirror)
        with pytest.raises(ModelError, match=r"not a plain https address|not a public address"):
            pull.pull("far-folder")


# single files of which only a weaker digest was published

SINGLE = """
[models."far-file"]
path = "far/one.safetensors"
licence = "MIT"
commercial = true
[models."far-file".fetch]
published = "{published}"
urls = ["https://example.org/one.safetensors"]
"""


@pytest.fixture
def site(hub, monkeypatch):
    """``hub``'s large file in place of every address of a single file."""
    hub.files = {"one.safetensors": b"one" * 9000}
    there = f"{hub.url}/storage/one.safetensors"
    fetch, sized = pull.download, pull.size_of
    monkeypatch.setattr(pull, "download", lambda _, *a, **k: fetch([there], *a, **k))
    monkeypatch.setattr(pull, "size_of", lambda _, **k: sized([there], **k))
    return hub


def test_a_weaker_digest_becomes_a_recorded_one(shop, site, caplog, models):
    content = site.files["one.safetensors"]
    folder = shop(SINGLE.format(published=f"git:{blob_id(content)}")).parent / "far"
    with caplog.at_level(logging.INFO):
        path = pull.pull("far-file")
    assert path.read_bytes() == content and caplog.text.count("its sha256 is recorded") == 1
    assert left(folder) == ["one.safetensors", "one.safetensors.lock.json"]
    kept = receipt.read_receipt(path)
    assert kept and kept.files["one.safetensors"].sha256 == sha256(content)
    assert locate("far-file") == path and check(["far-file"])[0].state == "whole"
    path.write_bytes(b"damaged")
    assert check(["far-file"])[0].state == "damaged"
    pull.pull("far-file")
    assert path.read_bytes() == content


def test_a_weaker_digest_is_checked(shop, site, tmp_path):
    shop(SINGLE.format(published="md5:" + "0" * 32))
    with pytest.raises(ModelError, match=r"md5 differs\); it was discarded"):
        pull.pull("far-file")
    one = tmp_path / "one"
    one.write_bytes(b"one")
    assert matches(one, "md5:f97c5d29941bfb1b2fdab0874906ab82") and not matches(one, "md5:" + "0" * 32)
    assert matches(one, f"git:{blob_id(b'one')}") and matches(one, sha256(b"one"))
    assert blob_id(b"hello\n") == "ce013625030ba8dba906f756967f9e9ca394464a"  # what git says of it


# what such a folder is for


def test_a_pulled_folder_is_opened_by_the_backbone(shop, hub, tmp_path):
    """The bundled miniature as a hub's folder: pulled, named by a recipe, opened by SkyReelsV2, two chunks made."""
    source = Path(__file__).resolve().parents[1] / "models" / "miniature" / "blueprint"
    hub.files = folder_files(source)
    shop(row())
    pull.pull("far-folder")
    text = (Path(__file__).resolve().parents[1] / "pipelines" / "default.toml").read_text()
    (tmp_path / "far.toml").write_text(text.replace('"miniature/blueprint"', '"far-folder"'))
    public = (tmp_path / "models" / "public.toml").read_text()
    for path in asset_dir("models").iterdir():  # the other stages' weights, as they are bundled
        target = tmp_path / "models" / path.name
        target.unlink(missing_ok=True)
        target.symlink_to(path) if path.name != "public.toml" else target.write_text(public)
    recipe = load_recipe(tmp_path / "far.toml")
    parts = assembly.Assembly(recipe, "cpu", commercial=True)
    assert parts.weights["blueprint.model"]
    first = parts.backbone.extend("a woman talking", None, seed=1)
    second = parts.backbone.extend("a woman talking", first[-5:], seed=2)
    assert first.shape == (17, 3, 64, 64) and second.shape == (12, 3, 64, 64)
    assert torch.isfinite(second).all()
    shutil.rmtree(tmp_path / "home")
    with pytest.raises(
        ModelError, match=r"far-folder is not on this machine\. Get it with: facelock models pull far-fol"
    ):
        assembly.Assembly(recipe, "cpu")


# what ships

PRODUCTION = {
    "skyreels-v2-1.3b", "skyreels-v2-14b", "wan2.1-vace-1.3b", "wan2.1-vace-14b", "wan2.2-vace-a14b", "helios-14b",
    "ltx-2", "consisid-5b", "ip-adapter-faceid-sd15", "ip-adapter-faceid-sdxl", "sd15-inpaint", "sdxl",
    "realesr-general-x4v3", "gfpgan-v1.4", "restoreformer", "taehv", "inswapper-128",
}  # fmt: skip


def test_the_production_weights_are_in_the_catalog():
    known = Catalog.load()
    for name in PRODUCTION:
        entry = known.entry(name)
        assert entry.licence and entry.source and entry.layout and entry.task, name
        assert not entry.bundled and entry.size >= 0
    refused = {name for name in PRODUCTION if not known.entry(name).commercial}
    assert refused == {
        "ltx-2", "consisid-5b", "ip-adapter-faceid-sd15", "ip-adapter-faceid-sdxl", "gfpgan-v1.4", "restoreformer",
        "inswapper-128",
    }  # fmt: skip
    raw = tomllib.loads((asset_dir("models") / "public.toml").read_text())["models"]
    for name, entry in raw.items():
        fetch = entry.get("fetch", {})
        assert fetch.get("kind") != "hub" or len(fetch.get("revision", "main")) in (4, 40), name


def test_the_page_names_every_production_weight_with_its_licence():
    page = (Path(__file__).resolve().parents[1] / "docs" / "production.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    known = Catalog.load()
    for name in PRODUCTION:
        (row,) = [line for line in rows if f"`{name}`" in line]
        entry = known.entry(name)
        assert entry.licence in row and row.endswith(f"| {'yes' if entry.commercial else 'no'} |"), name
    for row in rows:  # and nothing that the catalog does not know
        for name in re.findall(r"`([^`]+)`", row.split("|")[1]):
            assert known.find(name) or name.startswith("onnxruntime"), name
