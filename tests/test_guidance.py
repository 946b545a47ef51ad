"""Identity guidance: the edit reaches the solver, the gradient is the similarity's, and the gates hold."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
import tiny_guidance as tiny
import torch
import toys
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler
from onnx import helper
from safetensors.torch import load_file, save_file
from test_skyreels_v2 import PROMPT, SETTINGS, frames, pipeline
from torch.nn import functional

from facelock.assembly import Assembly
from facelock.bench import guidance as bench
from facelock.bench.renders import act, wanted
from facelock.blueprint.skyreels_v2 import SkyReelsV2
from facelock.blueprint.x0_edit import edited_velocity, guided, steered
from facelock.errors import ConfigError, InputError, ModelError
from facelock.faces import OnnxEncoder
from facelock.geometry import similarity_from_landmarks
from facelock.guidance import TorchEmbedder, load_tiny_decoder, open_guide
from facelock.guidance.embedder import OnnxModule
from facelock.guidance.identity import region
from facelock.guidance.views import composed, draw_views
from facelock.job import Job
from facelock.miniature.bundled import autoencoder_config, load_bundled
from facelock.miniature.vae import Watched
from facelock.nets.taehv import TinyDecoder
from facelock.pipeline import Pipeline
from facelock.protocols import Guide
from facelock.recipe import Recipe, load_recipe, model_names
from facelock.recipe.sections import GuidanceRecipe
from facelock.types import Thresholds
from facelock.weights import locate

UNIPC = UniPCMultistepScheduler(
    num_train_timesteps=1000, prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
)
EULER = FlowMatchEulerDiscreteScheduler(shift=3.0)
BOTH = pytest.mark.parametrize("plain", [UNIPC, EULER], ids=["UniPC", "Euler"])
RECOGNISER = locate("miniature/recogniser")


# ------------------------------------------------------------------ the edit


def denoised(scheduler, hook=None, steps: int = 8) -> torch.Tensor:
    """A made-up model's velocity, followed to the end."""
    scheduler = copy.deepcopy(scheduler)
    if hook is not None:
        scheduler.hook = hook
    scheduler.set_timesteps(steps)
    x = torch.randn(1, 4, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    for timestep in scheduler.timesteps:
        x = scheduler.step(torch.tanh(x) - 0.3, timestep, x, return_dict=False)[0]
    return x


@BOTH
def test_without_a_hook_the_scheduler_is_the_plain_one_bit_for_bit(plain):
    ours = guided(type(plain)).from_config(plain.config)
    assert torch.equal(denoised(ours), denoised(plain))
    assert torch.equal(denoised(ours, lambda x0, sigma, step: x0), denoised(plain))  # nothing is edited
    assert json.loads(ours.to_json_string())["_class_name"] == type(plain).__name__


@BOTH
def test_a_forced_prediction_is_reached_and_no_other_instance_sees_the_hook(plain):
    ours, target = guided(type(plain)).from_config(plain.config), torch.full((1, 4, 3, 6, 6), 0.7)
    assert float((denoised(ours, lambda x0, sigma, step: target) - target).abs().max()) < 1e-5
    assert ours.hook is None and guided(type(plain)).hook is None
    assert torch.equal(denoised(ours), denoised(plain))


def test_copies_share_the_hook_and_nothing_else():
    class Heavy:
        def __deepcopy__(self, memo):
            raise AssertionError("a hook may hold networks")

        def __call__(self, x0, sigma, step):
            return x0

    ours = guided(UniPCMultistepScheduler).from_config(UNIPC.config)
    ours.hook = Heavy()
    twin = copy.deepcopy(ours)
    assert twin.model_outputs is not ours.model_outputs
    twin.set_timesteps(3)
    assert twin.hook is ours.hook and len(ours.timesteps) != 3


@BOTH
def test_the_hook_sees_the_prediction_and_the_noise_level(plain):
    seen: list[tuple[float, int]] = []

    def hook(x0, sigma, step):
        seen.append((round(sigma, 4), step))
        return x0 + 0.5 if step == 2 else x0

    ours = guided(type(plain)).from_config(plain.config)
    edited, free = denoised(ours, hook), denoised(plain)
    assert [step for _, step in seen] == list(range(8))
    assert seen[0][0] >= 0.99 and sorted(seen, reverse=True) == seen
    assert float((edited - free).abs().mean()) > 0.01


def test_a_velocity_keeps_its_bits_where_nothing_was_edited():
    velocity, x0 = torch.randn(2, 3), torch.randn(2, 3)
    edited = x0.clone()
    edited[0] += 1
    changed = edited_velocity(velocity, x0, edited, 0.5)
    assert torch.equal(changed[1], velocity[1]) and torch.allclose(changed[0], velocity[0] - 2)
    assert torch.equal(edited_velocity(velocity, x0, edited, 0.0), velocity)


# ------------------------------------------------------------------ the blueprint's own loop


class Recorder:
    """A guide that does as it is told, and remembers."""

    def __init__(self, edit=lambda x0: x0):
        self.edit, self.calls, self.references = edit, [], None

    def begin(self, references):
        self.references = references

    def __call__(self, x0, sigma, step, known):
        self.calls.append((tuple(x0.shape), sigma, step, known))
        return self.edit(x0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("blueprint")
    pipeline().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def backbone(folder):
    return SkyReelsV2(folder, **SETTINGS)


def test_the_loop_is_bit_identical_without_a_guide_and_with_one_that_does_nothing(backbone, monkeypatch):
    first, more = backbone.extend(PROMPT, None, seed=3), backbone.extend(PROMPT, frames(), seed=4)
    still = Recorder()
    monkeypatch.setattr(backbone, "guide", still)
    assert torch.equal(backbone.extend(PROMPT, None, seed=3), first)
    assert torch.equal(backbone.extend(PROMPT, frames(), seed=4, references=["somebody"]), more)
    assert still.references == ["somebody"] and isinstance(still, Guide)
    assert [(step, known) for _, _, step, known in still.calls] == [(i, k) for k in (0, 2) for i in range(4)]
    assert {shape for shape, *_ in still.calls} == {(1, 16, 5, 4, 6)}


def test_the_loop_reaches_a_forced_prediction_and_leaves_the_past_alone(backbone, monkeypatch):
    wanted = torch.randn(1, 16, 5, 4, 6, generator=torch.Generator().manual_seed(0))
    past = torch.randn(1, 16, 2, 4, 6, generator=torch.Generator().manual_seed(1))
    monkeypatch.setattr(backbone, "guide", Recorder(lambda x0: wanted))
    with torch.no_grad():
        made = backbone._denoise([backbone._embed(PROMPT)], past.clone(), 0)
    assert float((made[:, :, 2:] - wanted[:, :, 2:]).abs().max()) < 1e-5
    assert torch.equal(made[:, :, :2], past)


def test_what_the_guide_sees_is_the_prediction():
    x, velocity, seen = torch.randn(1, 2, 3, 4, 4), torch.randn(1, 2, 2, 4, 4), []
    steered(lambda x0, *_: seen.append(x0) or x0, velocity, x, torch.tensor(0.25), 0, 1)
    assert torch.equal(seen[0][:, :, :1], x[:, :, :1])
    assert torch.allclose(seen[0][:, :, 1:], x[:, :, 1:] - 0.25 * velocity)


# ------------------------------------------------------------------ the recogniser in torch


def test_the_recogniser_is_onnxruntimes(tmp_path):
    crops = torch.rand(3, 3, 112, 112, generator=torch.Generator().manual_seed(0))
    for path in (RECOGNISER, tiny.recogniser(tmp_path)):
        encoder = OnnxEncoder(path, name="it", thresholds=Thresholds(0.0, 0.0, 0.0))
        with torch.no_grad():
            ours = TorchEmbedder(path)(crops)
        assert float((ours - encoder.embed_crops(crops)).abs().max()) < 1e-5


def all_operators(folder):
    """A graph with most of what converters write around a recogniser."""
    node = helper.make_node
    tensors = {
        "half": torch.tensor(0.5), "scale": torch.rand(3) + 0.5, "shift": torch.randn(3), "mean": torch.rand(3),
        "variance": torch.rand(3) + 0.5, "slope": torch.rand(3, 1, 1), "kernel": torch.randn(4, 3, 3, 3) / 5,
        "low": torch.tensor(-0.9), "high": torch.tensor(2.0), "tail": torch.tensor([-1]),
        "at": torch.tensor(0), "axis": torch.tensor([0]), "weight": torch.randn(5, 12) / 3, "bias": torch.randn(5),
        "starts": torch.tensor([0]), "ends": torch.tensor([3]), "one": torch.tensor([1]),
    }  # fmt: skip
    nodes = [
        node("Sub", ["input", "half"], ["x0"]),
        node("Mul", ["x0", "high"], ["x1"]),
        node("BatchNormalization", ["x1", "scale", "shift", "mean", "variance"], ["x2"], epsilon=1e-3),
        node("PRelu", ["x2", "slope"], ["x3"]),
        node("Conv", ["x3", "kernel"], ["x4"], strides=[4, 4], pads=[0, 1, 2, 1]),
        node("Clip", ["x4", "low", "high"], ["x5"]),
        node("MaxPool", ["x5"], ["x6"], kernel_shape=[3, 3], strides=[3, 3], pads=[1, 1, 0, 0]),
        node("AveragePool", ["x6"], ["x7"], kernel_shape=[3, 3], strides=[3, 3]),
        node("Slice", ["x7", "starts", "ends", "one"], ["x8"]),
        node("Concat", ["x8", "x8"], ["x9"], axis=2),
        node("Shape", ["x9"], ["s"]),
        node("Gather", ["s", "at"], ["n"], axis=0),
        node("Unsqueeze", ["n", "axis"], ["n1"]),
        node("Concat", ["n1", "tail"], ["wanted"], axis=0),
        node("GlobalAveragePool", ["x9"], ["g"]),
        node("Div", ["x9", "high"], ["d"]),
        node("Add", ["d", "g"], ["x10"]),
        node("Relu", ["x10"], ["r"]),
        node("Sqrt", ["r"], ["q"]),
        node("ReduceMean", ["q"], ["x11"], axes=[3], keepdims=1),
        node("Transpose", ["x11"], ["x12"], perm=[0, 2, 1, 3]),
        node("Reshape", ["x12", "wanted"], ["x13"]),
        node("Slice", ["x13", "starts", "twelve", "one"], ["x14"]),
        node("Gemm", ["x14", "weight", "bias"], ["output"], transB=1, alpha=0.5, beta=2.0),
    ]
    return tiny.write_onnx(folder / "all.onnx", nodes, {**tensors, "twelve": torch.tensor([12])})


def test_every_operator_means_what_onnxruntime_means(tmp_path):
    torch.manual_seed(0)
    path = all_operators(tmp_path)
    x = torch.rand(2, 3, 112, 112)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {"input": x.numpy()})
    np.testing.assert_allclose(OnnxModule(path)(x).numpy(), expected, rtol=1e-5, atol=1e-5)


def test_a_file_that_fixes_its_rows_takes_any_number(tmp_path):
    kernel = torch.randn(2, 3, 112, 112) / 99
    nodes = [
        helper.make_node("Conv", ["input", "kernel"], ["c"]),
        helper.make_node("Reshape", ["c", "wanted"], ["output"]),
    ]
    path = tiny.write_onnx(
        tmp_path / "two.onnx", nodes, {"kernel": kernel, "wanted": torch.tensor([2, 2])}, 2
    )
    x = torch.rand(3, 3, 112, 112)
    expected = functional.conv2d(x, kernel).flatten(1)
    assert torch.allclose(OnnxModule(path)(x), expected, atol=1e-6)


def test_unknown_operators_and_other_files_are_named(tmp_path):
    nodes = [helper.make_node("Erf", ["input"], ["a"]), helper.make_node("Flatten", ["a"], ["output"])]
    path = tiny.write_onnx(tmp_path / "odd.onnx", nodes, {})
    with pytest.raises(ModelError, match=r"odd\.onnx: its operator Erf .*Use another recogniser"):
        TorchEmbedder(path)
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    with pytest.raises(ModelError, match="not a readable ONNX model"):
        OnnxModule(tmp_path / "bad.onnx")
    with pytest.raises(ModelError, match="no ArcFace-format"):
        TorchEmbedder(locate("miniature/detector"))
    with pytest.raises(ModelError, match="no ArcFace-format"):
        TorchEmbedder(locate("miniature/judge"))


# ------------------------------------------------------------------ the tiny decoder


def test_the_tiny_decoder_has_the_published_layout():
    names = TinyDecoder().state_dict()
    assert names["decoder.1.weight"].shape == (256, 16, 3, 3)
    assert names["decoder.3.conv.0.weight"].shape == (256, 512, 3, 3)
    assert names["decoder.13.conv.weight"].shape == (256, 128, 1, 1)
    assert names["decoder.22.weight"].shape == (3, 64, 3, 3) and "decoder.20.bias" not in names
    assert sum(t.numel() for t in names.values()) == 9_844_611
    wan22 = TinyDecoder(channels=48, patch=2).state_dict()
    assert wan22["decoder.22.weight"].shape == (12, 64, 3, 3)


def test_the_tiny_decoder_is_causal_and_decodes_only_what_is_asked(tmp_path):
    decoder = load_tiny_decoder(tiny.tiny_decoder(tmp_path / "tiny.safetensors"))
    z = tiny.latents()
    whole = decoder(z)
    assert whole.shape == (1, 17, 3, 64, 64) and 0 <= float(whole.min()) < float(whole.max()) <= 1
    some = torch.tensor([0, 4, 5, 16])
    assert torch.allclose(decoder(z, some), whole[:, some], atol=1e-6)
    later = z.clone()
    later[:, :, 2] += 1  # frames 5 to 8, and what follows
    moved = (decoder(later) - whole).abs().amax((0, 2, 3, 4))
    assert float(moved[:5].max()) == 0 and float(moved[5]) > 0
    assert float(moved[9]) > 0, "the next latent's frames remember it"


def test_an_encoder_beside_it_is_passed_over(tmp_path):
    path = tiny.tiny_decoder(tmp_path / "a.safetensors")
    both = {**load_file(path), "encoder.0.weight": torch.zeros(1)}
    save_file(both, tmp_path / "b.safetensors", metadata={"enlarge": "011"})
    z = tiny.latents()
    assert torch.equal(load_tiny_decoder(tmp_path / "b.safetensors")(z), load_tiny_decoder(path)(z))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda t: t.pop("decoder.9.conv.2.bias"), "decoder.9.conv.2.bias does not fit"),
        (lambda t: t.pop("decoder.1.weight"), "lacks the tensor 'decoder.1.weight'"),
        (lambda t: t.update(extra=torch.zeros(1)), "extra does not fit"),
        (lambda t: t["decoder.4.conv.0.weight"].fill_(float("nan")), "not finite"),
        (lambda t: t.update({"decoder.22.weight": torch.zeros(1, 6, 3, 3)}), "sizes are out of range"),
        (lambda t: t.update({"decoder.7.conv.weight": torch.zeros(8, 0, 1, 1)}), "no decoder in TAEHV"),
    ],
)
def test_a_damaged_tiny_decoder_is_refused(tmp_path, damage, words):
    tensors = load_file(tiny.tiny_decoder(tmp_path / "a.safetensors"))
    damage(tensors)
    save_file(tensors, tmp_path / "b.safetensors", metadata={"enlarge": "011"})
    with pytest.raises(ModelError, match=words):
        load_tiny_decoder(tmp_path / "b.safetensors")


def test_what_is_no_tiny_decoder_is_refused(tmp_path):
    with pytest.raises(ModelError, match="no such tiny decoder"):
        load_tiny_decoder(tmp_path / "none.safetensors")
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(tiny.tiny_decoder(tmp_path / "a.safetensors").read_bytes()[:-100])
    with pytest.raises(ModelError, match="not a readable safetensors file"):
        load_tiny_decoder(cut)


def test_the_bundled_tiny_decoder_shows_what_the_autoencoder_shows():
    decoder = load_tiny_decoder(locate("miniature/tiny_decoder"))
    assert (decoder.channels, decoder.time, decoder.space) == (16, 4, 4)
    assert locate("miniature/tiny_decoder").stat().st_size < 2**20
    vae, config = load_bundled("vae", Watched()).eval().vae, autoencoder_config()
    shift, scale = (torch.tensor(config[k]).view(1, -1, 1, 1, 1) for k in ("latents_mean", "latents_std"))
    clip = act(wanted(1, 3), "heldout", 17, 3).render(slice(None))
    with torch.no_grad():
        z = vae.encode(clip.transpose(1, 2) * 2 - 1).latent_dist.mean
        truth = (vae.decode(z).sample / 2 + 0.5).clamp(0, 1).transpose(1, 2)
        shown, other = decoder((z - shift) / scale), decoder(torch.zeros_like(z))
    assert float((shown - truth).abs().mean()) < 0.05
    assert float((other - truth).abs().mean()) > 0.1


# ------------------------------------------------------------------ the guide


def test_the_gradient_is_that_of_the_similarity(tmp_path):
    guide = tiny.guide(tmp_path, views=3)
    x0 = tiny.latents(2).double()
    guide.decoder.double()
    guide.embedder.double()
    shown = guide.shown(2, 0, 0)
    guide._spent = torch.zeros(2)
    with torch.no_grad():
        target = guide._target(guide.decoder(x0, shown)[0].float(), 0)
    views = draw_views(3, guide.pack.encoder.crop, 5)
    gradient = guide._gradient(x0, shown, target, views)

    def alike(z):
        matrices = similarity_from_landmarks(target.faces.landmarks, guide.pack.encoder.crop)
        frames = guide.decoder(z, shown)[0]
        crops = torch.cat([view.of(frames, target.faces.frame, matrices, 112) for view in views])
        return float((guide.embedder(crops) * target.reference.repeat(3, 1)).sum())

    way = torch.randn(x0.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        slope = (alike(x0 + 1e-4 * way) - alike(x0 - 1e-4 * way)) / 2e-4
    assert float((gradient * way).sum()) == pytest.approx(slope, rel=0.02)


def likeness(guide, x0):
    shown = guide.shown(x0.shape[2], 0, 0)
    with torch.no_grad():
        frames = guide.decoder(x0, shown)[0]
    own = guide.pack.embed(frames, guide.pack.detect(frames))
    return own @ guide._references[0]


def test_an_edit_makes_every_face_more_alike(tmp_path):
    guide = tiny.guide(tmp_path, scale=0.02)
    x0 = tiny.latents()
    assert (likeness(guide, guide(x0, 0.5, 0, 0)) > likeness(guide, x0)).all()


def relative(x0, edited):
    change = (edited - x0).flatten(3).norm(dim=(1, 3))
    return (change / x0.flatten(3).norm(dim=(1, 3)))[0]


def test_the_trust_region_holds(tmp_path):
    guide = tiny.guide(tmp_path, scale=0.03, trust_radius=0.07)
    x0 = tiny.latents()
    lengths = [relative(x0, guide(x0, 0.5, step, 0)) for step in range(5)]
    assert torch.allclose(torch.stack(lengths[:2]), torch.full((2, 5), 0.03), atol=1e-4)
    assert torch.allclose(lengths[2], torch.full((5,), 0.01), atol=1e-4)
    assert torch.equal(guide(x0, 0.5, 4, 0), x0)  # all is spent
    assert float(relative(x0, guide(x0, 0.5, 0, 0)).min()) > 0.02  # another window begins


def test_where_all_edits_are_spent_nothing_is_looked_at(tmp_path, monkeypatch):
    guide = tiny.guide(tmp_path, scale=0.08, trust_radius=0.08)  # one edit, as a recipe's defaults have it
    x0 = tiny.latents(3)
    once = guide(x0, 0.8, 1, 1)
    assert not torch.equal(once, x0)
    monkeypatch.setattr(guide, "decoder", None)  # it would be missed
    assert guide(once, 0.7, 2, 1) is once


def test_the_past_is_never_changed(tmp_path):
    guide = tiny.guide(tmp_path)
    x0 = tiny.latents()
    edited = guide(x0, 0.5, 0, 2)
    assert torch.equal(edited[:, :, :2], x0[:, :, :2])
    assert (relative(x0, edited)[2:] > 0).all()


@pytest.mark.parametrize(
    ("seen", "settings"),
    [
        ({"height": 20.0}, {"minimum_face": 24.0}),
        ({"turned": True}, {"maximum_yaw": 20.0}),
        ({}, {"ceiling": -1.0}),
        ({}, {"window": (0.6, 0.9)}),
    ],
    ids=["small", "turned", "alike already", "outside of the noise levels"],
)
def test_gates_leave_latents_bit_identical(tmp_path, seen, settings):
    pack = tiny.SeesFaces(tiny.recogniser(tmp_path), **seen)
    x0 = tiny.latents()
    assert torch.equal(tiny.guide(tmp_path, pack, **settings)(x0, 0.5, 0, 0), x0)
    loose = {"minimum_face": 1.0, "maximum_yaw": 180.0, "ceiling": 1.0, "window": (0.0, 1.0)}
    assert not torch.equal(tiny.guide(tmp_path, pack, **loose)(x0, 0.5, 0, 0), x0)


def test_only_latents_whose_own_frame_shows_a_face_are_changed(tmp_path):
    pack = tiny.SeesFaces(tiny.recogniser(tmp_path))
    pack.blind = {1, 3}
    x0 = tiny.latents()
    changed = relative(x0, tiny.guide(tmp_path, pack)(x0, 0.5, 0, 0)) > 0
    assert changed.tolist() == [True, False, True, False, True]


def test_nobody_to_resemble_and_no_face_change_nothing(tmp_path):
    guide = tiny.guide(tmp_path)
    x0 = tiny.latents()
    guide.pack.blind = set(range(5))
    assert torch.equal(guide(x0, 0.5, 0, 0), x0)
    guide.pack.blind = set()
    guide.begin([])
    assert torch.equal(guide(x0, 0.5, 0, 0), x0)
    with pytest.raises(InputError):
        guide.begin([replace(tiny.person(guide.pack), embeddings={"other@0": torch.ones(4)})])


def test_another_autoencoders_latents_are_refused(tmp_path):
    with pytest.raises(ModelError, match="latents of 4 channels, the blueprint's have 16"):
        tiny.guide(tmp_path)(torch.zeros(1, 16, 2, 16, 16), 0.5, 0, 0)


def test_the_same_face_in_another_frame_gets_the_same_views(tmp_path):
    """What is drawn depends on the step alone: equal frames stay equal, and no face flickers for it."""
    crop = tiny.SeesFaces(tiny.recogniser(tmp_path)).encoder.crop
    frames_ = torch.rand(1, 3, 64, 64).expand(4, -1, -1, -1)
    matrices = torch.tensor([[[1.5, 0.1, 3.0], [-0.1, 1.5, 2.0]]]).expand(4, 2, 3)
    for view in draw_views(5, crop, 9):
        crops = view.of(frames_, torch.arange(4), matrices, crop.size)
        assert torch.equal(crops, crops[:1].expand(4, -1, -1, -1))
    one, two, other = (draw_views(3, crop, seed)[2] for seed in (1, 1, 2))
    assert torch.equal(one.noise, two.noise) and not torch.equal(one.noise, other.noise)


def test_the_views_differ_and_the_first_is_the_recognisers_own(tmp_path):
    pack = tiny.SeesFaces(tiny.recogniser(tmp_path))
    picture = torch.rand(1, 3, 64, 64)
    faces = pack.detect(picture)
    matrices = similarity_from_landmarks(faces.landmarks, pack.encoder.crop)
    views = draw_views(6, pack.encoder.crop, 0)
    crops = torch.cat([view.of(picture, faces.frame, matrices, 112) for view in views])
    embedded = TorchEmbedder(tiny.recogniser(tmp_path))(crops)
    assert torch.allclose(embedded[:1], pack.embed(picture, faces), atol=1e-5)
    assert {view.mirrored for view in views} == {True, False}
    assert float((crops[1:] - crops[:1]).abs().mean((1, 2, 3)).min()) > 0.01


def test_a_mirrored_view_keeps_the_faces_middle():
    crop = tiny.ARCFACE112
    middle = torch.tensor(crop.template).double().mean(0)
    mirrored = next(v for v in draw_views(9, crop, 3) if v.mirrored)
    start = torch.eye(3, dtype=torch.float64)[None, :2]
    moved = composed(mirrored.jitter, start)[0].double() @ torch.tensor([*middle.tolist(), 1.0]).double()
    assert float((moved - middle).norm()) < 0.1 * crop.size


def test_only_the_faces_neighbourhood_is_decoded():
    boxes = torch.tensor([[400.0, 200.0, 480.0, 300.0], [420.0, 190.0, 500.0, 290.0]])
    assert region(boxes, 8, (60, 104)) == (17, 44, 44, 69)
    assert region(boxes, 32, (15, 26)) == (0, 15, 6, 22)


# ------------------------------------------------------------------ recipes and whole runs


def with_guidance(**changes: object) -> Recipe:
    return load_recipe("miniature").model_copy(
        update={"guidance": GuidanceRecipe(decoder="miniature/tiny_decoder", **changes)}
    )


def test_a_recipe_has_none_unless_it_asks(tmp_path):
    assert load_recipe("miniature").guidance is None
    text = (locate("miniature/faces").parents[2] / "pipelines" / "default.toml").read_text()
    own = tmp_path / "own.toml"
    tiny.tiny_decoder(tmp_path / "mine.safetensors")
    own.write_text(text + '\n[guidance]\ndecoder = "mine.safetensors"\nviews = 2\n')
    recipe = load_recipe(own)
    assert recipe.guidance.views == 2 and recipe.guidance.decoder == str(tmp_path / "mine.safetensors")
    assert model_names(recipe)["guidance.decoder"] == recipe.guidance.decoder
    for line, words in (
        ("window = [0.8, 0.2]", "lower noise level to the higher"),
        ("scale = 0.7", "must not exceed trust_radius"),
        ("veiws = 2", "guidance.veiws: unknown key, did you mean 'views'"),
        ("views = 0", "guidance.views"),
    ):
        own.write_text(text + f'\n[guidance]\ndecoder = "mine.safetensors"\n{line}\n')
        with pytest.raises(ConfigError, match=words):
            load_recipe(own)


def test_a_blueprint_that_takes_no_guide_is_refused_before_it_is_loaded(monkeypatch):
    class Plain:
        def __init__(self, folder, **_):
            raise AssertionError("not to be loaded")

        def extend(self):
            """Nothing."""

    class Strict(Plain):
        def __init__(self, folder, size, fps):
            raise AssertionError("not to be loaded")

    monkeypatch.setattr("facelock.assembly.backbone_class", lambda kind: Strict)
    with pytest.raises(ConfigError, match="takes no identity guidance"):
        _ = Assembly(with_guidance(), "cpu").backbone


@pytest.fixture(scope="module")
def plain():
    return Pipeline.from_recipe("miniature", "cpu")


def test_a_whole_clip_with_guidance(plain):
    pipeline = Pipeline.from_recipe(with_guidance(views=2), "cpu")
    assert "guidance.decoder" in pipeline.parts.weights
    assert pipeline.recipe.settings()["guidance"]["views"] == 2
    identity = plain.identities("samples/faces/maria.png", ())[0]
    job = Job("a woman with long red hair talking in a forest", 18 / 12, 1, None, False, False)
    one = list(pipeline.run(job, [identity]))
    again, free = (next(iter(made.run(job, [identity]))).chunk.frames for made in (pipeline, plain))
    first = one[0].chunk.frames
    assert [len(made.chunk) for made in one] == [17, 1]
    assert torch.equal(first, again) and not torch.equal(first, free)
    pack, mean = pipeline.parts.pack, []
    for shown in (first, free):
        own = pack.embed(shown, pack.detect(shown))
        mean.append(float((own @ identity.embeddings[pack.encoder.id]).mean()))
    assert mean[0] > mean[1] + 0.02, mean


def test_a_guide_opens_from_files(plain):
    guide = open_guide(locate("miniature/tiny_decoder"), RECOGNISER, plain.parts.pack, tiny.settings_of())
    assert isinstance(guide, Guide)


# ------------------------------------------------------------------ the benchmark


class Stepping(toys.Backbone):
    """A toy whose frames are brighter with a guide, and which reports its steps."""

    guide = None
    on_step = None

    def extend(self, prompt, context, *, seed, references=()):
        for done in (1, 2, 3):
            self.on_step(done, 3)
        frames = super().extend(prompt, context, seed=seed, references=references)
        return frames * (0.9 if self.guide is None else 1.0)


def test_the_benchmark_sets_its_arms_side_by_side(monkeypatch, tmp_path):
    parts = toys.Parts(backbone=Stepping())
    parts.guide, parts.locker.pack = object(), None
    monkeypatch.setattr(bench.Pipeline, "from_recipe", lambda *_: toys.pipeline(parts))
    monkeypatch.setattr(bench.cast, "identity", lambda who, parts: toys.identity(who.name))
    monkeypatch.setattr(
        bench, "_guides", lambda guide: dict.fromkeys(("early", "short", "late"), guide) | {"none": None}
    )
    monkeypatch.setattr(bench, "_in_loop", lambda pack, frames, who: [float(frames.mean())])
    results = bench.run(seconds=1, identities=2, out=tmp_path)
    assert list(results["arms"]) == list(bench.ARMS)
    assert results["arms"]["guided"]["loop"] > results["arms"]["plain"]["loop"]
    gain = results["gains"]["unlocked"]
    assert results["honesty"]["unlocked"] == pytest.approx(gain["judge"]["value"] / gain["loop"]["value"])
    assert (
        set(results["step_ratio"]) == {"guided", "in short edits"} and "honesty, unlocked" in results["text"]
    )
    assert parts.backbone.guide is None, "the arms leave the backbone as it was"
    assert (tmp_path / "guidance-01.png").is_file() and (tmp_path / "guidance.json").is_file()
    assert bench._honesty(0.1, 0.001) is None


def test_the_late_arm_differs_in_when_and_how_often_alone(tmp_path):
    own = tiny.guide(tmp_path, window=(0.6, 0.85))
    late = bench._guides(own)["late"]
    assert late.decoder is own.decoder and late.settings.window[0] < 0.3
    assert late.settings.trust_radius > 4 * late.settings.scale  # many edits
    same = {"window": own.settings.window, "scale": own.settings.scale, "trust_radius": 0.08}
    assert replace(late.settings, **same) == own.settings
