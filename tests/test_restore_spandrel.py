"""Upscalers and face restorers through spandrel: a stand-in for its API, and itself where it is installed."""

from __future__ import annotations

import importlib.util
import logging
import sys
from types import ModuleType

import pytest
import torch
from test_restore_nets import frames
from tiny_restore import single, spandrel, srvgg, write  # noqa: F401 - a fixture

from facelock.errors import ConfigError, DeviceError, EnvironmentFailure, ModelError
from facelock.geometry import FFHQ512, similarity_from_landmarks
from facelock.restoration import restorer_class, upscaler_class
from facelock.restoration.compact_upscaler import CompactUpscaler
from facelock.restoration.extra import torchvision_command
from facelock.restoration.spandrel_restorer import SpandrelRestorer
from facelock.restoration.spandrel_upscaler import SpandrelUpscaler


def test_a_spandrel_upscaler_in_tiles(tmp_path, spandrel):  # noqa: F811
    net = SpandrelUpscaler(single(tmp_path / "x.pth", "up", 0.5), scale=2, tile=27, overlap=4)
    x = frames()
    large = net.upscale(x)
    assert large.shape == (2, 3, 74, 106)
    assert net.frames.multiple == 8, "tiles begin where the network's own grid does"
    assert torch.equal(net.upscale(x.flip(0)).flip(0), large), "its noise is the same for every frame"
    assert float((large - torch.nn.functional.interpolate(x, scale_factor=2) / 2).abs().max()) <= 0.1


def test_noise_inside_leaves_torch_alone(tmp_path, spandrel):  # noqa: F811
    net = SpandrelUpscaler(single(tmp_path / "x.pth", "up"), scale=2)
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    large = net.upscale(frames())
    assert torch.equal(torch.rand(4), expected)
    assert torch.equal(net.upscale(frames()), large), "whatever was drawn before"


def test_what_tiles_itself_is_given_whole_frames(tmp_path, spandrel, caplog):  # noqa: F811
    with caplog.at_level(logging.INFO, "facelock"):
        net = SpandrelUpscaler(single(tmp_path / "x.pth", "whole"), scale=1, tile=32, overlap=2)
    assert net.frames.tile == 0 and "tile in [restore] is not used" in caplog.text


def test_what_mends_frames_at_their_size_may_stand_for_the_upscaler(tmp_path, spandrel):  # noqa: F811
    path = single(tmp_path / "x.pth", "mend", 0.25)
    shown = frames()
    assert torch.allclose(SpandrelUpscaler(path, scale=1).upscale(shown), (shown + 0.25).clamp(0, 1))
    with pytest.raises(ModelError, match="its purpose is Restoration, not FaceSR"):
        SpandrelRestorer(path, encoder="e")


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("face", "its purpose is FaceSR, not SR"),
        ("mask", "its purpose is Inpainting, not SR"),
        ("grey", "takes 1 channels"),
        ("unheard", "spandrel knows no architecture"),
    ],
)
def test_what_is_no_upscaler_is_refused(tmp_path, spandrel, key, words):  # noqa: F811
    with pytest.raises(ModelError, match=rf"x\.pth: {words}"):
        SpandrelUpscaler(single(tmp_path / "x.pth", key), scale=2)
    with pytest.raises(ModelError, match="its purpose is SR, not FaceSR"):
        SpandrelRestorer(single(tmp_path / "y.pth", "up"), encoder="e")


def test_tensors_that_do_not_fit_and_other_scales_are_refused(tmp_path, spandrel):  # noqa: F811
    path = write(tmp_path / "x.pth", {"up": torch.zeros(3)})
    with pytest.raises(ModelError, match=r"x\.pth: its tensors do not fit"):
        SpandrelUpscaler(path, scale=2)
    with pytest.raises(ModelError, match=r"enlarges 2×, not 4×"):
        SpandrelUpscaler(single(tmp_path / "y.pth", "up"), scale=4)


def test_a_precision_the_network_lacks_is_refused(tmp_path, spandrel):  # noqa: F811
    from facelock.restoration.spandrel_net import load_spandrel, placed

    net = load_spandrel(single(tmp_path / "x.pth", "gfpgan"), "FaceSR")
    with pytest.raises(ConfigError, match="GFPGAN does not work in float16"):
        placed(net, "x.pth", "float16", "meta")
    with pytest.raises(ConfigError, match="needs a GPU"):
        placed(net, "x.pth", "bfloat16", "cpu")


@pytest.mark.parametrize("left", [None, ModuleType("spandrel")], ids=["nothing", "an empty folder"])
def test_spandrel_that_is_not_there_is_said(tmp_path, monkeypatch, left):
    path = single(tmp_path / "x.pth", "up")
    monkeypatch.setitem(sys.modules, "spandrel", left)
    for kind in (upscaler_class("spandrel_upscaler"), restorer_class("spandrel_restorer")):
        options = {"scale": 2} if kind is SpandrelUpscaler else {"encoder": "e"}
        with pytest.raises(EnvironmentFailure, match=r"needs spandrel.*pip install 'facelock-video\[sr\]'"):
            kind(path, **options)


@pytest.mark.parametrize(
    "source",
    [
        "import torchvision_that_is_not_there",
        "raise ImportError('No module named torchvision', name='torchvision')",
        "raise RuntimeError('operator torchvision::nms does not exist')",
    ],
)
def test_a_torchvision_that_is_missing_or_broken_is_said(tmp_path, monkeypatch, source):
    (tmp_path / "spandrel.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "spandrel", raising=False)
    with pytest.raises(EnvironmentFailure, match=r"torchvision.*Give pip install [^.]*") as caught:
        SpandrelUpscaler(single(tmp_path / "x.pth", "up"), scale=2)
    assert "\n" not in str(caught.value)


def test_the_torchvision_that_belongs_to_a_torch():
    cpu = "pip install --upgrade --no-deps 'torchvision==0.28.*' --index-url https://download.pytorch.org/whl/cpu"
    assert torchvision_command("2.13.0+cpu") == cpu
    assert torchvision_command("2.6.0") == "pip install --upgrade --no-deps 'torchvision==0.21.*'"
    assert torchvision_command("3.0.0+cu140").startswith(
        "pip install --upgrade --no-deps torchvision --index-url"
    )


def test_faces_are_restored_each_by_itself(tmp_path, spandrel):  # noqa: F811
    crops = torch.rand(3, 3, 512, 512) * 0.5
    nobody = torch.zeros(3, 4)
    bright = SpandrelRestorer(single(tmp_path / "face.pth", "face", 0.25), encoder="e")
    assert torch.allclose(bright.restore(crops, nobody), crops + 0.25) and not bright.graded
    gfpgan = SpandrelRestorer(single(tmp_path / "gfpgan.safetensors", "gfpgan", 0.5), encoder="e")
    out = gfpgan.restore(crops, nobody)
    assert torch.allclose(out, crops / 2 + 0.25, atol=1e-6), "[-1, 1] in and out, and its stored noise"
    assert torch.equal(gfpgan.restore(crops[1:2], nobody[:1])[0], out[1])
    assert gfpgan.restore(crops[:0], nobody[:0]).shape == (0, 3, 512, 512)
    assert gfpgan.crop == FFHQ512


def test_a_fidelity_weight_of_the_network_is_used(tmp_path, spandrel):  # noqa: F811
    net = SpandrelRestorer(single(tmp_path / "x.pth", "codeformer", 1.0), encoder="e")
    crops = torch.rand(2, 3, 512, 512)
    out = net.restore_by(crops, torch.zeros(2, 4), torch.tensor([1.0, 0.25]))
    assert net.graded and torch.allclose(out[0], torch.ones(3, 512, 512))
    assert torch.allclose(out[1], 0.75 * crops[1] + 0.25, atol=1e-6)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("x"), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_a_face_that_does_not_fit_the_memory_is_said(tmp_path, spandrel, monkeypatch, error):  # noqa: F811
    net = SpandrelRestorer(single(tmp_path / "x.pth", "face"), encoder="e")

    def short(*_):
        raise error

    monkeypatch.setattr(net, "_call", short)
    with pytest.raises(DeviceError, match=r"x\.pth: cpu has too little memory to restore a face"):
        net.restore(torch.rand(1, 3, 512, 512), torch.zeros(1, 4))


def test_the_ffhq_crop_puts_landmarks_where_restorers_look():
    points = (torch.tensor(FFHQ512.template) - 100)[None] * 0.5
    (matrix,) = similarity_from_landmarks(points, FFHQ512)
    there = torch.cat([points[0], torch.ones(5, 1)], 1) @ matrix.T
    assert torch.allclose(there, torch.tensor(FFHQ512.template), atol=1e-3)


def _real_spandrel() -> bool:
    try:
        return importlib.util.find_spec("spandrel") is not None and isinstance(
            __import__("spandrel"), ModuleType
        )
    except Exception:
        return False


@pytest.mark.skipif(
    not _real_spandrel(), reason="needs spandrel and a torchvision made for this torch (extra sr)"
)
def test_with_the_real_spandrel(tmp_path):
    x = frames()
    path = srvgg(tmp_path / "x.pth", depth=3, strength=1.0)
    own = CompactUpscaler(path, scale=2).upscale(x)
    assert torch.allclose(SpandrelUpscaler(path, scale=2, tile=20, overlap=6).upscale(x), own, atol=1e-5)
    from spandrel.architectures.ESRGAN import ESRGAN

    net = ESRGAN(scale=4, num_filters=8, num_blocks=1)
    esrgan = SpandrelUpscaler(write(tmp_path / "esrgan.safetensors", net.state_dict()), scale=4)
    assert esrgan.upscale(x).shape == (2, 3, 148, 212)
    with pytest.raises(ModelError, match="its purpose is SR"):
        SpandrelRestorer(path, encoder="e")
