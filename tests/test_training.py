"""Training as a product: every part takes a step, a resumed run equals an uninterrupted one, exports agree."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest
import torch
from diffusers import AutoencoderKLWan
from safetensors.torch import load_file, save_file

from facelock.assets import asset_dir
from facelock.blueprint.wan_vae_cpu import accelerate_vae
from facelock.errors import ConfigError
from facelock.guidance import load_tiny_decoder
from facelock.miniature import data, export, recognition, train, world
from facelock.miniature.alignment import (
    CROP_TEMPLATE,
    SIDE,
    AlignmentTask,
    PairPool,
    crop_labels,
    embedding,
    warp,
)
from facelock.miniature.bundled import load_bundled
from facelock.miniature.detection import DetectionTask
from facelock.miniature.diffusion import Blueprint, DiffusionTask, make_tokenizer, normalise, sample
from facelock.miniature.model_aligner import OUTPUTS, ModelAligner, Reader, draw_face, face_parameters
from facelock.miniature.parameters import IDENTITY
from facelock.miniature.reading import IdentityReaderTask, MomentPool, ReaderTask, keep_motion, moment_of
from facelock.miniature.recognition import FacePool, RecognitionTask, raw_codes, verification, whiten
from facelock.miniature.tiny_decoder import TinyDecoderTask, make_pairs, make_tiny_decoder
from facelock.miniature.trainer import Trainer, averaged, moved
from facelock.miniature.upscaling import UpscalingTask
from facelock.miniature.vae import (
    FEATURES,
    ClipPool,
    VaeTask,
    Watched,
    build_decoded,
    encode_clips,
    fit_round_trip,
    latent_weight,
    make_vae,
    neighbourhoods,
)
from facelock.miniature.workshop import Workshop
from facelock.nets.compact_sr import CompactSR
from facelock.nets.recogniser import Recogniser
from facelock.nets.scrfd import Scrfd, ScrfdExport
from facelock.weights import sha256_file
from facelock.weights.catalog import Catalog

TINY = {
    "faces": lambda i, dev: data.render_faces("train", i, 4, 16, data.CROP, dev),
    "judge": lambda i, dev: data.render_faces("judge", i, 8, 16, data.CROP // 2, dev),
    "people": lambda i, dev: data.render_people(i, 12, dev),
    "frames": lambda i, dev: data.render_frames("train", i, 8, 16, 128, dev),
    "clips": lambda i, dev: data.render_clips("train", i, 3, 16, 25, 64, dev),
}


@pytest.fixture(scope="module")
def pool(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("pool")
    whole = dict(data.KINDS)
    data.KINDS.update(TINY)
    try:
        for kind in TINY:
            data.build(kind, 1, root)
    finally:
        data.KINDS.update(whole)
    return root


def test_building_a_set_again_changes_nothing(pool):
    shard = pool / "faces" / "0000" / "images.npy"
    before = shard.stat().st_mtime_ns
    data.build("faces", 1, pool)
    assert shard.stat().st_mtime_ns == before


@cache
def pairs(pool: Path) -> dict[str, torch.Tensor]:
    """Latents and frames of two windows, by an autoencoder that knows nothing."""
    return make_pairs(untrained(), torch.zeros(16), torch.ones(16), ClipPool(pool), 2)


def untrained() -> AutoencoderKLWan:
    torch.manual_seed(0)
    vae = make_vae()
    accelerate_vae(vae)
    return vae


@torch.no_grad()
def test_the_tiny_decoders_pairs_are_the_autoencoders(pool):
    made = pairs(pool)
    assert made["latents"].shape == (2, 16, 5, 16, 16) and made["frames"].shape == (2, 17, 3, 64, 64)
    shown = untrained().decode(made["latents"][1:].float()).sample.transpose(1, 2) / 2 + 0.5
    assert float((shown.clamp(0, 1) - made["frames"][1:] / 255).abs().mean()) < 0.02


TASKS = {
    "recogniser": lambda pool, _: RecognitionTask("recogniser", pool, 10, batch=8),
    "judge": lambda pool, _: RecognitionTask("judge", pool, 10, batch=8),
    "detector": lambda pool, _: DetectionTask(pool, 10, batch=4),
    "vae": lambda pool, _: VaeTask(pool, 10),
    "reader": lambda pool, _: ReaderTask(pool, 10, batch=4),
    "identity_reader": lambda pool, _: IdentityReaderTask(pool, Recogniser(), 10, batch=8),
    "aligner": lambda pool, _: AlignmentTask("aligner", pool, Recogniser(), 10, batch=2),
    "upscaler": lambda *_: UpscalingTask(10, count=2),
    "blueprint": lambda *_: DiffusionTask(
        torch.randn(3, 2, 16, 5, 16, 16), ["a woman", "a man", ""], 10, batch=2
    ),
    "tiny_decoder": lambda pool, device: TinyDecoderTask(pairs(pool), 10),
}


@pytest.mark.parametrize("part", TASKS)
def test_a_part_learns_on_whatever_device_its_module_is(pool, part, monkeypatch):
    """The meta device refuses to meet the CPU just as a GPU does, and needs none: nothing may stay behind."""
    # transformers looks whether a mask hides anything, which a tensor without values cannot say
    monkeypatch.setattr("transformers.masking_utils._ignore_bidirectional_mask_sdpa", lambda *_: False)
    task = TASKS[part](pool, "meta")
    batch = moved(task.draw(6, torch.Generator().manual_seed(0)), "meta")
    task.module.to("meta")
    loss, figures = task.loss(6, batch)
    loss.backward()
    assert loss.device.type == "meta" and all(f.device.type == "meta" for f in figures.values())
    assert any(p.grad is not None for p in task.module.parameters())


@pytest.mark.parametrize("part", TASKS)
def test_every_part_learns_a_step(pool, tmp_path, part):
    task = TASKS[part](pool, "cpu")
    before = {n: p.detach().clone() for n, p in task.module.named_parameters()}
    Trainer(task, tmp_path).run(until=1)
    assert any(not torch.equal(before[n], p) for n, p in task.module.named_parameters())
    assert (tmp_path / "state.safetensors").is_file()


def test_a_resumed_training_equals_an_uninterrupted_one(pool, tmp_path):
    def make() -> RecognitionTask:
        return RecognitionTask("recogniser", pool, 4, batch=8)

    Trainer(make(), tmp_path / "whole").run()
    Trainer(make(), tmp_path / "parts").run(until=2)
    Trainer(make(), tmp_path / "parts").run()
    whole, parts = (averaged(tmp_path / f, make().module).state_dict() for f in ("whole", "parts"))
    assert all(torch.allclose(whole[k].float(), parts[k].float(), atol=1e-6) for k in whole)


@torch.no_grad()
def test_a_recogniser_that_learned_on_is_turned_to_the_one_before(pool):
    before, after = (load_bundled("recogniser", Recogniser()).eval() for _ in range(2))
    axes = torch.linalg.qr(torch.randn(64, 64, generator=torch.Generator().manual_seed(1)))[0]
    after.whiten.weight.copy_(axes @ after.whiten.weight)
    after.whiten.bias.copy_(axes @ after.whiten.bias)
    view = torch.rand(8, 3, 112, 112) * 2 - 1
    lost = float(torch.cosine_similarity(after(view), before(view)).mean())
    recognition.turn(after, before, FacePool("faces", pool), count=256)
    found, known = (torch.nn.functional.normalize(net(view)) for net in (after, before))
    assert lost < 0.6 and float((found * known).sum(1).min()) > 0.99
    assert torch.allclose(found @ found.T, known @ known.T, atol=1e-4)


@pytest.mark.parametrize("bundled", [True, False])
def test_a_recogniser_from_nothing_is_turned_to_none(bundled, tmp_path, pool, monkeypatch):
    shop, turned = train.Workshop(tmp_path), []
    (tmp_path / "pool").symlink_to(pool)
    monkeypatch.setattr(recognition, "whiten", lambda *_: None)
    monkeypatch.setattr(recognition, "turn", lambda *_: turned.append(1))
    train.train(shop, "recogniser", 1, 0, bundled)
    shop.recogniser()
    assert bool(turned) == bundled


def test_an_exported_recogniser_is_measured_and_listed_anew(tmp_path, pool, monkeypatch):
    models, shop = tmp_path / "models", train.Workshop(tmp_path)
    shutil.copytree(asset_dir("models"), models)
    shop.pool.mkdir()
    for kind in ("faces", "heldout"):
        (shop.pool / kind).symlink_to(pool / "faces")
    monkeypatch.setattr(recognition, "whiten", lambda net, _: net.whiten.weight.mul_(2))
    monkeypatch.setattr(recognition, "turn", lambda *_: None)
    monkeypatch.setattr(train, "render_missing", lambda *_: None)
    seen = []

    def verified(embed, *_, **__):
        seen.append(embed(torch.full((1, 3, 56, 56), 0.5)))
        return dict.fromkeys(("far_1e2", "far_1e3", "far_1e4"), 0.5 + len(seen) / 100)

    monkeypatch.setattr(recognition, "verification", verified)
    Trainer(RecognitionTask("recogniser", pool, 1, batch=8), shop.folder("recogniser")).run()
    with torch.no_grad():
        train.export(shop, ("recogniser",), models)
        exported = load_bundled("recogniser", Recogniser(), models / "miniature").eval()
        wanted = exported(torch.zeros(1, 3, 112, 112))
    assert float(torch.cosine_similarity(seen[0], wanted)) > 0.99
    listed = Catalog.load(models)
    file = models / "miniature" / "faces" / "recogniser.onnx"
    assert listed.entry("miniature/recogniser").digests() == {file: sha256_file(file)}
    assert sha256_file(file) != sha256_file(asset_dir("models") / "miniature" / "faces" / "recogniser.onnx")
    found = [listed.entry(f"miniature/{name}").thresholds for name in ("recogniser", "faces", "judge")]
    assert [each.far_1e3 for each in found] == [0.51, 0.51, 0.53]


def test_training_goes_on_from_the_weights_that_ship(tmp_path, pool, monkeypatch):
    vae = load_bundled("vae", Watched()).vae
    stored = AutoencoderKLWan.from_pretrained(asset_dir("models") / "miniature" / "blueprint" / "vae")
    for name, tensor in stored.state_dict().items():
        assert torch.equal(vae.state_dict()[name], tensor.float()), name
    load_bundled("blueprint", Blueprint(len(make_tokenizer())))
    load_bundled("tiny_decoder", make_tiny_decoder())
    load_bundled("judge", RecognitionTask("judge", pool, 1, batch=8).module)
    module = load_bundled("recogniser", RecognitionTask("recogniser", pool, 1, batch=8).module)
    crops = torch.rand(2, 3, 56, 56)  # in training too: its batch norms are at rest
    shipped = load_bundled("recogniser", Recogniser()).eval().forward_code(crops)
    assert torch.allclose(module["net"].forward_code(crops), shipped, atol=1e-5)
    with pytest.raises(ConfigError, match="cannot go on"):
        load_bundled("judges", Recogniser())
    with pytest.raises(ConfigError, match="another network"):
        load_bundled("vae", AutoencoderKLWan(base_dim=8, z_dim=8, dim_mult=[1, 2, 4], num_res_blocks=1))

    shop = train.Workshop(tmp_path)
    monkeypatch.setattr(train, "make_task", lambda part, shop, steps: VaeTask(pool, steps))
    monkeypatch.setattr(train, "build_set", lambda *_: None)
    train.train(shop, "vae", 1, 0, bundled=True)
    (tmp_path / "models" / "miniature").mkdir(parents=True)
    train.record_training(shop, tmp_path / "models", ["vae", "judge"])
    recorded = train.trained(tmp_path / "models")
    assert list(recorded) == ["vae"]
    (tmp_path / "models" / "miniature" / "training.json").unlink()
    train.record_training(shop, tmp_path / "models", ["blueprint"])  # the autoencoder is in its folder
    assert train.trained(tmp_path / "models") == recorded
    assert [s["steps"] for s in recorded["vae"]] == [
        *(s["steps"] for s in train.trained(asset_dir("models"))["vae"]),
        1,
    ]


@torch.no_grad()
def test_networks_read_back_from_onnx_compute_what_the_file_does():
    folder = asset_dir("models") / "miniature"
    crops, source = torch.rand(2, 3, 128, 128), torch.nn.functional.normalize(torch.randn(2, 512))
    for part in ("restorer", "aligner"):
        net = load_bundled(part, ModelAligner(restores=part == "restorer"))
        (wanted,) = run_onnx(folder / f"{part}.onnx", crops.numpy(), source.numpy())
        assert np.allclose(wanted, net(crops, source).clamp(0, 1).numpy(), atol=2e-3), part
    reader = load_bundled("reader", Reader())
    assert torch.allclose(reader(crops), net.reader(crops), atol=1e-4)
    small = torch.rand(2, 3, 112, 112) * 2 - 1
    (wanted,) = run_onnx(folder / "faces" / "recogniser.onnx", small.numpy())
    assert np.allclose(wanted, load_bundled("recogniser", Recogniser()).eval()(small).numpy(), atol=5e-3)
    assert not any(layer.training for layer in reader.modules() if isinstance(layer, torch.nn.BatchNorm2d))
    frames = torch.rand(2, 3, 128, 128)
    detector = ScrfdExport(load_bundled("detector", Scrfd()).eval())
    for wanted, found in zip(
        run_onnx(folder / "faces" / "detector.onnx", frames.numpy()), detector(frames), strict=True
    ):
        assert np.allclose(wanted, found.numpy(), atol=5e-3)
    upscaler = load_bundled("upscaler", CompactSR())
    (wanted,) = run_onnx(folder / "upscaler.onnx", frames.numpy())
    assert np.allclose(wanted, upscaler(frames).clamp(0, 1).numpy(), atol=2e-3)


def test_whitening_separates_identities_better(pool):
    torch.manual_seed(0)
    net, faces = Recogniser().eval(), FacePool("judge", pool)
    embed = lambda x: net.whiten(raw_codes(net)(x))  # noqa: E731
    before = verification(embed, faces, count=64)
    whiten(net, faces, 256)
    after = verification(embed, faces, count=64)
    assert after["same"] - after["different"] > before["same"] - before["different"]
    assert after["far_1e2"] <= after["far_1e3"] <= after["far_1e4"]


def test_references_of_the_aligner_are_of_the_right_person(pool):
    pairs = PairPool("faces", pool, partial(embedding, Recogniser().eval()))
    generator = torch.Generator().manual_seed(0)
    x, y, e, who = pairs.draw(6, 0.0, generator)
    assert x.shape == y.shape == (6, 3, 128, 128)
    for vector, person in zip(e, who, strict=True):
        own = pairs.vectors[pairs.who == person]
        assert float((own - vector).abs().amax(1).min()) == 0


def test_the_autoencoder_learns_stills_and_clips_that_eyes_and_mouth_rule(pool):
    task = VaeTask(pool, 10)
    for step, (clips, frames) in enumerate([(12, 1), (1, 17), (2, 9), (2, 9)]):
        video, weight, noise, matrices, labels = task.draw(step, torch.Generator().manual_seed(step))
        assert video.shape == (clips, 3, frames, 64, 64) and weight.shape == (clips, 1, frames, 64, 64)
        assert noise.shape == (clips, 16, (frames - 1) // 4 + 1, 16, 16)
        assert matrices.shape == (clips * frames, 2, 3) and labels.shape == (clips * frames, len(OUTPUTS))
        assert float(weight.amax((2, 3, 4)).min()) > 1 + FEATURES / 2


def test_what_cannot_be_read_off_its_frames_is_the_autoencoders_error_too(pool):
    """Its reader sees the crops that it is told of, in the order of the frames, and teaches through the decoder."""
    task = VaeTask(pool, 10)
    video, _, _, matrices, labels = task.draw(1, torch.Generator().manual_seed(3))
    seen = warp(video.transpose(1, 2).flatten(0, 1) / 2 + 0.5, matrices)
    module = task.module.eval()
    told = module.reader.standard(seen) - (labels - module.reader.mean) / module.reader.deviation
    assert torch.allclose(module.read(video, matrices, labels), told, atol=1e-5)
    shown = module.vae.decode(module.vae.encode(video).latent_dist.mean).sample
    task._lost(module.read(shown, matrices, labels)).backward()
    assert float(module.vae.encoder.conv_in.weight.grad.abs().max()) > 0


def test_latents_and_sampling_have_the_blueprints_shapes(pool):
    vae = make_vae().eval()
    latents = encode_clips(vae, ClipPool(pool), (0, 8))
    assert latents.shape == (3, 2, 16, 5, 16, 16)
    unit, mean, deviation = normalise(latents)
    assert float(unit.mean().abs()) < 1e-3
    assert len(mean) == len(deviation) == 16
    tokenizer = make_tokenizer()
    model = Blueprint(len(tokenizer)).eval()
    drawn = sample(model, tokenizer, ["a woman"], steps=2, context=torch.zeros(1, 16, 2, 16, 16))
    assert drawn.shape == (1, 16, 5, 16, 16)
    assert float(drawn[:, :, :2].abs().max()) == 0


def test_latents_are_normalised_as_those_that_ship_where_their_autoencoder_does(pool, tmp_path):
    shop = Workshop(tmp_path)
    shop.folder("vae").mkdir(parents=True)
    save_file(
        {"latents": 3 + 2 * torch.randn(3, 2, 16, 5, 16, 16)}, shop.folder("vae") / "latents.safetensors"
    )
    config = json.loads((asset_dir("models") / "miniature/blueprint/vae/config.json").read_text())
    _, mean, deviation = shop.normal_latents()
    assert (mean, deviation) == (config["latents_mean"], config["latents_std"])
    save_file({"average.x": torch.zeros(1)}, shop.folder("vae") / "state.safetensors")
    assert shop.statistics() is None
    unit, mean, deviation = shop.normal_latents()
    assert shop.statistics() == (mean, deviation)  # kept: what is exported later does not measure anew
    assert mean[0] == pytest.approx(3, abs=0.2) and deviation[0] == pytest.approx(2, abs=0.2)
    assert float(unit.std()) == pytest.approx(1, abs=0.05)


def test_eyes_and_mouth_count_for_more_in_the_latents_that_hold_them():
    still = torch.tensor([[24.0, 28.0], [40.0, 28.0], [32.0, 34.0], [27.0, 42.0], [37.0, 42.0]])
    points = still.expand(2, 17, 5, 2).clone()
    points[1, 9:] += torch.tensor([0.0, 16.0])  # of the second clip, from the third latent's first frame on
    weight = latent_weight(points, 64, 16.0)
    assert weight.shape == (2, 5, 16, 16) and float(weight.min()) >= 1
    eye, mouth, corner = weight[0, :, 7, 6], weight[0, :, 10, 8], weight[0, :, 0, 0]
    assert float(eye.min()) > 4 and float(mouth.min()) > 4 and float(corner.max()) < 1.001
    assert torch.allclose(weight[0], weight[0, :1].expand(5, 16, 16))
    assert float(weight[1, 2, 14, 8]) < 1.5 and float(weight[1, 3, 14, 8]) > 4
    ends = points.clone()
    ends[1, 12] = still  # one of four frames is enough
    assert float(latent_weight(ends, 64, 16.0)[1, 3, 10, 8]) > 4
    assert torch.isclose(latent_weight(ends, 64, 16.0)[1, 3, 7, 6], weight[0, 3, 7, 6])


@torch.no_grad()
def test_the_blueprint_learns_by_the_weight_of_each_place():
    latents = torch.randn(3, 2, 16, 5, 16, 16)
    left = torch.zeros(3, 2, 5, 16, 16)
    left[..., :8] = 1
    tasks = [DiffusionTask(latents, ["a woman", "a man", ""], 10, 2, None, w) for w in (None, left, 1 - left)]
    whole, one, other = (task.loss(0, task.draw(0, torch.Generator().manual_seed(1))) for task in tasks)
    assert float(whole[0]) == pytest.approx(float(whole[1]["plain"]), rel=1e-5)
    assert float(one[0]) != pytest.approx(float(other[0]), rel=1e-4)
    assert float(one[0] + other[0]) / 2 == pytest.approx(float(whole[0]), rel=1e-5)
    assert float(one[1]["plain"]) == pytest.approx(float(whole[0]), rel=1e-5)


@torch.no_grad()
def test_what_the_blueprint_says_are_the_clean_latents(monkeypatch):
    """Its loss is the velocity's: an error d of the clean latents is one of d over the noise level of the velocity."""
    latents = torch.randn(3, 2, 16, 5, 16, 16)
    task = DiffusionTask(latents, ["a woman", "a man", ""], 10, 2)
    i, w, drop, _, trips, amount, seed = task.draw(0, torch.Generator().manual_seed(1))
    level = torch.tensor([[0.0, 0.0, 0.2, 0.2, 0.2], [0.4, 0.4, 0.4, 0.4, 0.4]])
    said = {}
    monkeypatch.setattr(task.module, "forward", lambda x, sigma, text: latents[i, w] + said["error"])

    def loss(error: float) -> float:
        said["error"] = error
        return float(task.loss(0, (i, w, drop, level, trips, amount, seed))[0])

    assert loss(0.0) == 0
    assert loss(0.1) == pytest.approx((3 * 0.5**2 + 5 * 0.25**2) / 8, rel=1e-4)


def test_sampling_ends_at_the_clean_latents_that_the_blueprint_says(monkeypatch):
    tokenizer = make_tokenizer()
    model = Blueprint(len(tokenizer)).eval()
    wanted = torch.randn(1, 16, 5, 16, 16)
    monkeypatch.setattr(model, "forward", lambda x, sigma, text: wanted.expand(len(x), -1, -1, -1, -1))
    drawn = sample(model, tokenizer, ["a woman"], steps=3, guidance=4.0)
    torch.testing.assert_close(drawn, wanted, atol=1e-5, rtol=0)


def test_weights_of_the_latents_lie_where_the_clips_show_eyes_and_mouth(pool, tmp_path):
    points = torch.cat([*data.clip_landmarks(pool)])
    boxes = torch.from_numpy(np.concatenate([s["boxes"] for s in data.shards("clips", pool)]))
    assert points.shape == (*boxes.shape[:2], 5, 2)
    inside = (points >= boxes[..., None, :2]) & (points <= boxes[..., None, 2:])
    assert bool(inside.all())
    (tmp_path / "pool").symlink_to(pool)
    weights = Workshop(tmp_path).latent_weights()
    assert weights.shape == (3, 2, 5, 16, 16) and float(weights.max()) > 4


def run_onnx(path: Path, *arrays: np.ndarray) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [i.name for i in session.get_inputs()]
    return session.run(None, dict(zip(names, arrays, strict=True)))


@torch.no_grad()
def test_exports_agree_with_the_networks_up_to_half_precision(tmp_path):
    torch.manual_seed(1)
    x = torch.rand(2, 3, 112, 112) * 2 - 1
    net = Recogniser().eval()
    export.export_recogniser(net, tmp_path)
    assert np.allclose(
        run_onnx(tmp_path / "faces" / "recogniser.onnx", x.numpy())[0], net(x).numpy(), atol=5e-3
    )
    detector = Scrfd().eval()
    export.export_detector(detector, tmp_path)
    frames = torch.rand(2, 3, 128, 96)
    for a, b in zip(
        run_onnx(tmp_path / "faces" / "detector.onnx", frames.numpy()),
        ScrfdExport(detector)(frames),
        strict=True,
    ):
        assert a.ndim == 3
        assert np.allclose(a, b.numpy(), atol=2e-2)
    swapper = ModelAligner(torch.randn(512, 64) / 8).eval()
    torch.nn.init.normal_(swapper.compositor.leave.weight, std=0.05)
    export.export_swapper(swapper, tmp_path / "aligner.onnx")
    crops, source = torch.rand(2, 3, 128, 128), torch.nn.functional.normalize(torch.randn(2, 512))
    out = run_onnx(tmp_path / "aligner.onnx", crops.numpy(), source.numpy())[0]
    assert np.allclose(out, swapper(crops, source).clamp(0, 1).numpy(), atol=1e-2)
    upscaler = CompactSR().eval()
    export.export_upscaler(upscaler, tmp_path)
    assert run_onnx(tmp_path / "upscaler.onnx", np.zeros((1, 3, 20, 24), np.float32))[0].shape == (
        1,
        3,
        80,
        96,
    )


def test_embeddings_are_unit_vectors():
    e = embedding(Recogniser().eval(), torch.rand(3, 3, 56, 56))
    assert e.shape == (3, 512)
    assert torch.allclose(e.norm(dim=1), torch.ones(3), atol=1e-5)


def test_the_aligners_decoder_draws_what_the_world_renders(pool):
    """With true parameters and a true reading, only sampling blur and hair are left."""
    moments = MomentPool(pool)
    images, points, face, labels, _ = moments.rendered[0]
    rows = labels["row"]
    matrices = data.fit_similarity(points[rows], CROP_TEMPLATE)
    crops = warp(torch.from_numpy(images[rows.numpy()].copy()).float() / 255, matrices)
    read = crop_labels({k: v for k, v in labels.items() if k != "row"}, matrices, images.shape[-1])
    values = {name: read[:, i] for i, name in enumerate(OUTPUTS)}
    drawn, alpha = draw_face({k: v[rows] for k, v in face.items()}, values)
    inside = (alpha > 0.95).expand_as(crops)
    assert float(inside.float().mean()) > 0.1
    assert float((drawn - crops)[inside].abs().median()) < 0.03
    wrong, _ = draw_face({k: v[rows].flip(0) for k, v in face.items()}, values)
    assert float((wrong - crops)[inside].abs().median()) > 2 * float((drawn - crops)[inside].abs().median())


def test_glasses_whose_shape_is_in_doubt_do_not_jump():
    """Between round and square a little more of one changes a little: what is read flickers less when it is drawn."""
    face = face_parameters(torch.zeros(1, len(IDENTITY)))
    values = {name: torch.zeros(1) for name in OUTPUTS} | {"scale": torch.ones(1), "ambient": torch.ones(1)}
    values |= {"glasses": torch.ones(1), "glasses_r": torch.full((1,), 0.2)}

    def drawn(square: float) -> torch.Tensor:
        return draw_face(face, values | {"glasses_square": torch.full((1,), square)})[0]

    whole = float((drawn(1.0) - drawn(0.0)).abs().mean())
    assert whole > 0
    assert float((drawn(0.55) - drawn(0.45)).abs().mean()) < 0.3 * whole
    assert torch.equal(drawn(1.4), drawn(1.0)) and torch.equal(drawn(-0.4), drawn(0.0))


def test_parameters_read_from_an_embedding_stay_in_their_ranges():
    face = face_parameters(torch.randn(64, len(IDENTITY)) * 3)
    for name, (low, high) in IDENTITY.items():
        margin = 1e-5 if name not in ("freckles", "mole") else 0.1
        assert float(face[name].min()) >= low - margin, name
        assert float(face[name].max()) <= high + margin, name


@pytest.fixture(scope="module")
def with_decoded(pool, tmp_path_factory) -> Path:
    """The rendered frames, and two shards of two windows that an autoencoder has left something of."""
    root = tmp_path_factory.mktemp("decoded")
    (root / "frames").symlink_to(pool / "frames")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("facelock.miniature.vae.DECODED", 2)
        build_decoded(make_vae().eval(), 2, root)
    return root


def test_readers_and_detector_also_see_what_the_autoencoder_leaves(pool, with_decoded):
    shards = [(pictures, face, now) for pictures, face, _, now in data.decoded(with_decoded)]
    assert len(shards) == 2
    for pictures, face, now in shards:
        assert pictures["images"].shape == pictures["rendered"].shape == (2 * data.SPAN, 3, 64, 64)
        assert not np.array_equal(pictures["images"], pictures["rendered"])
        skull = face["skull_w"].view(2, data.SPAN)
        assert bool((skull == skull[:, :1]).all()) and len(now["yaw"]) == 2 * data.SPAN
    assert not torch.equal(shards[0][1]["jaw"], shards[1][1]["jaw"])
    moments = MomentPool(with_decoded)
    assert (len(moments.rendered), len(moments.decoded)) == (2, 1)  # the last windows are kept to measure on
    assert np.array_equal(moments.decoded[0][0], shards[0][0]["images"])
    assert np.array_equal(moments.unseen[0], shards[1][0]["images"])
    task = DetectionTask(with_decoded, 10, batch=4)
    assert len(task.shards) == len(DetectionTask(pool, 10).shards) + 2
    x, *_ = task.frames(4, torch.Generator().manual_seed(1))
    assert x.shape == (4, 3, 128, 128)
    build_decoded(untrained(), 2, with_decoded)  # what is there is not made again
    again = np.load(with_decoded / "decoded" / "0000" / "images.npy")
    assert np.array_equal(again, shards[0][0]["images"])


def test_an_identity_is_read_off_people_whom_the_recogniser_does_not_know(pool):
    task = IdentityReaderTask(pool, Recogniser(), 10, batch=8)
    assert task.vectors.shape == (12, 512) and task.wanted.shape == (12, len(IDENTITY))
    known = data.vectors("train", 64)
    assert float(torch.cdist(task.wanted, known).min()) > 0.5
    # what the crops show is whose parameters are learned: a dark face has a dark picture
    (shard,) = data.shards("people", pool)
    tone = task.wanted[:, list(IDENTITY).index("skin_tone")]
    bright = torch.from_numpy(shard["images"][:, :, 20:40, 20:36].astype(np.float32)).mean((1, 2, 3))
    assert float(torch.corrcoef(torch.stack([tone, bright]))[0, 1].abs()) > 0.5


def test_a_trip_through_pixels_is_fitted_and_wears_the_context(pool):
    vae = make_vae().eval()
    latents, mean, deviation = normalise(encode_clips(vae, ClipPool(pool), (0, 8)))
    trip = fit_round_trip(vae, latents, mean, deviation, windows=3)
    assert trip.shape == (2, 16, 145) and bool(torch.isfinite(trip).all())
    task = DiffusionTask(latents, ["a woman", "a man", ""], 10, batch=2, trip=trip)
    x = latents[:2, 0]
    trips, still, noise = torch.tensor([0, 2]), torch.zeros(2), torch.randn(x.shape)
    worn = task.worn(x, trips, still, noise)
    assert torch.equal(worn[0], x[0]) and torch.equal(worn[1, :, 2:], x[1, :, 2:])
    assert not torch.equal(worn[1, :, :2], x[1, :, :2])
    assert torch.allclose(task.worn(x, trips, torch.full((2,), 0.1), noise), worn + 0.1 * noise)
    place = torch.zeros(1, 16, 4, 4)
    place[0, 2, 1, 1] = 1
    around = neighbourhoods(place)
    assert (
        around.shape == (1, 145, 16)
        and float(around[0, 2 * 9 + 4, 5]) == 1
        and bool((around[:, 144] == 1).all())
    )


def test_the_reader_compares_frames_of_the_same_clip(with_decoded):
    """What never changes within a clip is the same in both halves of a batch; what moves is not."""
    moments = MomentPool(with_decoded)
    kept = [OUTPUTS.index(name) for name in ("temperature", "beard", "glasses", "hair_r", "intensity")]
    moved = 0.0
    for seed in range(6):
        crops, labels, faces = moments.draw(8, torch.Generator().manual_seed(seed))
        assert crops.shape == (8, 3, 128, 128) and faces["jaw"].shape == (8,)
        there, _ = world.landmarks(faces, moment_of(labels), SIDE)  # but for a detector's jitter
        assert float((there.mean(1) - CROP_TEMPLATE.mean(0)).abs().max()) < 12
        assert torch.allclose(labels[:4, kept], labels[4:, kept], atol=1e-5)
        moved += float((labels[:4] - labels[4:]).abs().mean())
    assert moved > 0


@pytest.mark.parametrize("still", [False, True])
def test_a_reader_that_shrinks_what_it_sees_is_stretched(with_decoded, still):
    """Within a clip; or, where nothing that it says changes there, from clip to clip."""

    class Shrinking(Reader):
        def forward(self, crops):
            mean, deviation = self.get_buffer("mean"), self.get_buffer("deviation")
            return mean + 0.8 * deviation * (self.truth - mean)

    moments, reader = MomentPool(with_decoded), Shrinking()
    draw = moments.draw_unseen

    def remembered(n, generator):
        drawn = draw(n, generator)
        labels = drawn.labels[: n // 2].repeat(2, 1) if still else drawn.labels
        reader.truth = labels
        return drawn._replace(labels=labels)

    moments.draw_unseen = remembered
    reader.get_buffer("mean").fill_(0.3)
    factors = keep_motion(reader, moments, batches=1)
    said = ("yaw", "pitch", "roll", "open", "smile", "gaze_x")
    assert factors == {name: pytest.approx(1.25, abs=1e-4) for name in said}
    assert float(reader.get_buffer("deviation")[OUTPUTS.index("yaw")]) == pytest.approx(1.25, abs=1e-4)
    assert float(reader.get_buffer("deviation")[OUTPUTS.index("blink")]) == 1


def test_the_tiny_decoder_survives_its_export(tmp_path):
    torch.manual_seed(1)
    net = make_tiny_decoder().eval()
    export.export_tiny_decoder(net, tmp_path)
    again = load_tiny_decoder(tmp_path / "tiny_decoder.safetensors")
    z = torch.randn(1, 16, 3, 16, 16)
    assert again(z).shape == (1, 9, 3, 64, 64)
    assert float((again(z) - net(z)).abs().max()) < 0.02


@pytest.fixture
def dispatched(monkeypatch) -> list[Workshop]:
    """The workshops in which the command line would train, without training."""
    shops: list[Workshop] = []
    monkeypatch.setattr(train, "train", lambda shop, *_: shops.append(shop))
    return shops


def test_options_may_stand_before_the_command_or_after_it(dispatched, tmp_path):
    options = ["--root", str(tmp_path), "--device", "cpu", "--windows", "7"]
    train.main([*options, "train", "vae"])
    train.main(["train", "vae", *options])
    assert dispatched[0] == dispatched[1] == Workshop(tmp_path, "cpu", 7)


def test_the_whole_training_is_one_command(dispatched, monkeypatch):
    monkeypatch.setattr(train, "resolve_device", lambda name: name)
    train.main(["train", "all", "--device", "cuda"])
    assert len(dispatched) == len(train.ORDER) and all(shop.live for shop in dispatched)


def test_two_networks_may_be_averaged(tmp_path):
    one, two = (
        {"w": torch.zeros(3), "n": torch.tensor(1)},
        {"w": torch.full((3,), 2.0).half(), "n": torch.tensor(4)},
    )
    for name, tensors in (("a", one), ("b", two), ("other", {"w": torch.zeros(4), "n": torch.tensor(1)})):
        (tmp_path / name / "net").mkdir(parents=True)
        (tmp_path / name / "config.json").write_text(name)
        save_file(tensors, tmp_path / name / "net" / "model.safetensors", metadata={"format": "pt"})
    tool = Path(__file__).parents[1] / "tools" / "mean_weights.py"
    run = lambda a: subprocess.run([sys.executable, tool, a, "b", f"{a}b"], cwd=tmp_path, capture_output=True)  # noqa: E731
    assert run("a").returncode == 0
    mixed = load_file(tmp_path / "ab" / "net" / "model.safetensors")
    assert mixed["w"].tolist() == [1.0] * 3 and mixed["w"].dtype == torch.half and mixed["n"] == 4
    assert (tmp_path / "ab" / "config.json").read_text() == "b"
    assert run("other").returncode and not (tmp_path / "otherb").exists()


def test_the_learning_rate_is_the_parts_own_or_what_was_told(monkeypatch, tmp_path, capsys):
    rates = []
    monkeypatch.setattr(train, "render_missing", lambda *_: None)
    monkeypatch.setattr(train, "make_task", lambda *_: SimpleNamespace(module=None, rate=1e-3))
    monkeypatch.setattr(train, "load_bundled", lambda *_: None)
    told = lambda task, *_, **__: rates.append(task.rate) or SimpleNamespace(run=lambda: None)  # noqa: E731
    monkeypatch.setattr(train, "Trainer", told)
    where = ["--root", str(tmp_path)]
    for options in ([], ["--bundled"], ["--bundled", "--rate", "2e-4"], ["--rate", "2e-4"]):
        train.main(["train", "blueprint", *where, *options])
    assert rates == [1e-3, 5e-4, 2e-4, 2e-4]
    for wrong in ("0", "-1e-3", "2", "nan", "fast"):
        with pytest.raises(SystemExit) as ended:
            train.main(["train", "blueprint", *where, f"--rate={wrong}"])
        assert ended.value.code == 2 and wrong in capsys.readouterr().err


def test_batches_are_as_large_as_was_told_where_the_part_lets_them(monkeypatch, tmp_path, capsys):
    sizes: list[int] = []
    monkeypatch.setattr(train, "render_missing", lambda *_: None)
    made = {"blueprint": SimpleNamespace(rate=1e-3, batch=16), "upscaler": SimpleNamespace(rate=1e-3)}
    monkeypatch.setattr(train, "make_task", lambda part, *_: made[part])
    ran = lambda task, *_, **__: sizes.append(task.batch) or SimpleNamespace(run=lambda: None)  # noqa: E731
    monkeypatch.setattr(train, "Trainer", ran)
    for options in ([], ["--batch", "64"]):
        train.main(["train", "blueprint", "--root", str(tmp_path), *options])
    assert sizes == [16, 64]
    for parts, wrong, told in (
        (["blueprint"], "0", "0 is no batch size"),
        (["blueprint"], "few", "few"),
        (["reader"], "7", "7 is no batch size"),
        (["upscaler"], "8", "The batches of upscaler"),
        (["blueprint", "judge"], "8", "--batch is for one part"),
    ):
        with pytest.raises(SystemExit) as ended:
            train.main(["train", *parts, "--root", str(tmp_path), "--batch", wrong])
        assert ended.value.code == 2 and told in capsys.readouterr().err
    assert sizes == [16, 64]


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_a_gpu_that_is_not_there_is_one_sentence(dispatched, capsys):
    with pytest.raises(SystemExit) as ended:
        train.main(["train", "all", "--device", "cuda"])
    assert ended.value.code == 3 and not dispatched
    assert capsys.readouterr().err.startswith("device cuda was asked for, but 0 CUDA devices are here")


def test_a_stopped_training_says_how_it_goes_on(monkeypatch, capsys):
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "train", stopped)
    with pytest.raises(SystemExit) as ended:
        train.main(["train", "all"])
    assert ended.value.code == 130 and capsys.readouterr().err.startswith("Stopped. The same command goes on")


def test_sets_that_lack_are_rendered_and_stopped_ones_go_on(monkeypatch, tmp_path):
    shop, stopped = Workshop(tmp_path), iter((False, True))

    def rendered(index: int, device: str) -> dict[str, np.ndarray]:
        if next(stopped, False):
            raise KeyboardInterrupt
        return {"images": np.zeros((1, 1), np.uint8)}

    monkeypatch.setattr(data, "KINDS", {"clips": rendered, "faces": rendered})
    with pytest.raises(KeyboardInterrupt):
        data.build("clips", 3, shop.pool)
    assert data.count("clips", shop.pool) == 1 and data.planned("clips", shop.pool) == 3
    train.render_missing(shop, ["clips"])
    assert data.count("clips", shop.pool) == 3
    (shop.pool / "clips" / "planned.txt").unlink()  # of an older version, or somebody's own: taken as it is
    (shop.pool / "clips" / "0002").rename(tmp_path / "away")
    train.render_missing(shop, ["clips"])
    assert data.count("clips", shop.pool) == 2
    monkeypatch.setitem(train.SETS, "faces", 2)
    train.render_missing(shop, ["faces"])
    assert data.count("faces", shop.pool) == 2


def test_a_part_finds_all_that_it_learns_from(monkeypatch, tmp_path):
    """On a bare root, the autoencoder's own pictures among it."""
    monkeypatch.setattr(data, "KINDS", TINY)
    for kind in train.SETS:
        monkeypatch.setitem(train.SETS, kind, 1)
    shop = Workshop(tmp_path)
    monkeypatch.setattr("facelock.miniature.vae.DECODED", 2)
    train.train(shop, "reader", 1, 0)
    assert shop.trained_here("reader")
    assert data.count("frames", shop.pool) == data.count("decoded", shop.pool) == 1
    # exported where a GPU trained it, which needs no sets, it is stretched all the same
    (shop.pool).rename(tmp_path / "away")
    stretched = []
    monkeypatch.setattr(
        "facelock.miniature.reading.keep_motion", lambda _, pool: stretched.append(pool.unseen)
    )
    train._swapper(shop, "aligner")
    assert stretched[0][0].shape == (2 * data.SPAN, 3, 64, 64)


@pytest.mark.parametrize("known", [{"amx_bf16": True}, {"avx512_bf16": True}, {}])
def test_a_processor_computes_in_bfloat16_only_where_it_gains_by_it(tmp_path, monkeypatch, known):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: known)
    task, seen = UpscalingTask(1, count=2), []

    def loss(step, batch):
        seen.append(torch.is_autocast_enabled("cpu"))
        return next(task.module.parameters()).sum(), {}

    monkeypatch.setattr(task, "loss", loss)
    Trainer(task, tmp_path).run()
    assert seen == [bool(known)]
