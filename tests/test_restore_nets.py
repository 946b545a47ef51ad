"""Upscalers in torch: published layouts, tiles, memory, and what each refuses."""

from __future__ import annotations

import logging
import os
import weakref

import numpy as np
import pytest
import torch
from PIL import Image
from real import ASSETS, needs_assets
from tiny_restore import srvgg, write

from facelock.errors import ConfigError, DeviceError, ModelError
from facelock.nets.compact_sr import Srvgg
from facelock.restoration.compact_upscaler import CompactUpscaler
from facelock.restoration.tiles import TiledFrames, spans
from facelock.weights import locate
from facelock.weights.state_dicts import load_state_dict


def frames(count=2, height=37, width=53, seed=0):
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(seed))


# ------------------------------------------------------------------ files


@pytest.mark.parametrize("wrap", ["params", "params_ema", None])
def test_pth_and_safetensors_hold_the_same_tensors(tmp_path, wrap):
    a = load_state_dict(srvgg(tmp_path / "a.pth", wrap=wrap))
    b = load_state_dict(srvgg(tmp_path / "a.safetensors"))
    assert set(a) == set(b) and all(torch.equal(a[k], b[k]) for k in a)


def test_a_common_prefix_is_taken_off(tmp_path):
    state = {f"module.{k}": v for k, v in load_state_dict(srvgg(tmp_path / "a.pth")).items()}
    assert "body.0.weight" in load_state_dict(write(tmp_path / "b.pth", state))


class Malice:
    """What a pickle would run when it is read."""

    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return os.mkdir, (str(self.canary),)


def test_a_pickle_that_acts_does_not(tmp_path):
    canary = tmp_path / "canary"
    torch.save({"params": {"body.0.weight": Malice(canary)}}, tmp_path / "bad.pth")
    with pytest.raises(ModelError, match=r"bad\.pth: not a readable \.pth of tensors alone"):
        load_state_dict(tmp_path / "bad.pth")
    assert not canary.exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not a readable"),
        (b"PK\x03\x04 and nothing more", "not a readable"),
        ({"params": {"a": 3}}, "'a' is no tensor"),
        ({"params": {"a": torch.tensor([1.0, float("nan")])}}, "'a' holds NaN"),
        ([torch.zeros(2)], "no state dict"),
        ({}, "no state dict"),
    ],
)
def test_damaged_files_are_named(tmp_path, content, words):
    path = tmp_path / "x.pth"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(ModelError, match=rf"x\.pth.*{words}"):
        load_state_dict(path)


def test_missing_files_and_other_endings_are_named(tmp_path):
    with pytest.raises(ModelError, match="no such model file"):
        load_state_dict(tmp_path / "none.pth")
    (tmp_path / "x.ckpt").write_bytes(b"x")
    with pytest.raises(ModelError, match=r"\.safetensors or \.pth"):
        load_state_dict(tmp_path / "x.ckpt")


def test_only_who_reads_tensors_is_given_a_pth(tmp_path):
    path = srvgg(tmp_path / "net.pth")
    assert locate(str(path), pickled=True) == path
    with pytest.raises(ModelError, match="can run code"):
        locate(str(path))


# ------------------------------------------------------------------ the compact upscaler


@pytest.mark.parametrize(("width", "depth", "scale"), [(8, 2, 4), (12, 5, 2), (4, 1, 1)])
def test_width_depth_and_scale_are_read_off_the_file(tmp_path, width, depth, scale):
    net = CompactUpscaler(srvgg(tmp_path / "x.pth", width=width, depth=depth, scale=scale), scale=scale)
    assert net.reach == depth + 2 and net.scale == scale
    large = net.upscale(frames())
    assert large.shape == (2, 3, 37 * scale, 53 * scale) and large.dtype == torch.float32
    assert float(large.min()) >= 0 and float(large.max()) <= 1


def test_it_computes_what_the_layout_stands_for(tmp_path):
    """Without a residual it is the nearest neighbour; with one, a plain re-computation of the published net agrees."""
    x = frames()
    plain = CompactUpscaler(srvgg(tmp_path / "plain.pth", strength=0), scale=2).upscale(x)
    assert torch.equal(plain, torch.nn.functional.interpolate(x, scale_factor=2))
    path = srvgg(tmp_path / "x.pth", depth=2, scale=2)
    state, y = load_state_dict(path), x
    for layer in range(0, 5, 2):
        y = torch.nn.functional.conv2d(
            y, state[f"body.{layer}.weight"], state[f"body.{layer}.bias"], padding=1
        )
        y = torch.nn.functional.prelu(y, state[f"body.{layer + 1}.weight"])
    y = torch.nn.functional.conv2d(y, state["body.6.weight"], state["body.6.bias"], padding=1)
    y = torch.nn.functional.pixel_shuffle(y, 2) + plain
    assert torch.allclose(CompactUpscaler(path, scale=2).upscale(x), y.clamp(0, 1), atol=1e-6)
    assert not torch.equal(y, plain)


def test_frames_are_enlarged_each_by_itself(tmp_path):
    net = CompactUpscaler(srvgg(tmp_path / "x.pth"), scale=2, tile=24, overlap=4)
    x = frames(4)
    whole = net.upscale(x)
    assert torch.equal(net.upscale(x.flip(0)), whole.flip(0))
    assert all(torch.equal(net.upscale(x[i : i + 1])[0], whole[i]) for i in range(4))
    assert net.upscale(x[:0]).shape == (0, 3, 74, 106)


def spoiled(**changes):
    def change(state):
        state = {k: v for k, v in state.items() if k not in changes.get("without", ())}
        return state | changes.get("more", {})

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (spoiled(without=("body.0.weight",)), "no body.0.weight"),
        (spoiled(without=("body.2.bias",)), "'body.2.bias' does not fit"),
        (spoiled(without=("body.1.weight", "body.3.weight", "body.5.weight")), "not PReLU"),
        (spoiled(more={"body.2.weight": torch.zeros(9, 8, 3, 3)}), "'body.2.weight' does not fit"),
        (spoiled(more={"extra": torch.zeros(1)}), "'extra' does not fit"),
        (spoiled(more={"body.6.weight": torch.zeros(13, 8, 3, 3)}), "3 channels to 13"),
        (spoiled(more={"body.8888.weight": torch.zeros(1)}), "no body.0.weight"),
    ],
)
def test_another_network_is_refused(tmp_path, change, words):
    path = write(tmp_path / "x.pth", change(load_state_dict(srvgg(tmp_path / "good.pth"))))
    with pytest.raises(ModelError, match=rf"x\.pth: not a compact upscaler \(.*{words}"):
        CompactUpscaler(path, scale=2)


def test_another_scale_is_refused_with_the_cure(tmp_path):
    with pytest.raises(ModelError, match=r"enlarges 2×, not 4×\. Give scale = 2 in \[restore\]"):
        CompactUpscaler(srvgg(tmp_path / "x.pth"), scale=4)


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_half_precision_is_for_gpus(tmp_path, precision):
    with pytest.raises(ConfigError, match=f"restoration in {precision} needs a GPU"):
        CompactUpscaler(srvgg(tmp_path / "x.pth"), scale=2, precision=precision)
    with pytest.raises(ConfigError, match=r"[Nn]o precision is called 'half'"):
        CompactUpscaler(srvgg(tmp_path / "x.pth"), scale=2, precision="half")


def test_half_precision_keeps_all_shades(tmp_path):
    """Only the residual is in the weights' type: a ramp of 256 shades comes out as it went in."""
    ramp = (torch.arange(256) / 255).expand(1, 3, 4, 256)
    plain = Srvgg.from_state(load_state_dict(srvgg(tmp_path / "plain.pth", strength=0))).bfloat16()
    assert torch.equal(plain(ramp), torch.nn.functional.interpolate(ramp, scale_factor=2))
    path = srvgg(tmp_path / "x.pth", strength=0.05)
    whole, half = Srvgg.from_state(load_state_dict(path)), Srvgg.from_state(load_state_dict(path)).bfloat16()
    with torch.no_grad():
        assert 0 < float((half(ramp) - whole(ramp)).abs().max()) < 5e-4


@needs_assets
def test_the_published_checkpoints_give_what_their_onnx_gives():
    import onnxruntime

    x = frames(1, 24, 40)
    net = CompactUpscaler(ASSETS / "sr" / "realesr-animevideov3-x4.pth")
    session = onnxruntime.InferenceSession(ASSETS / "sr" / "realesr-animevideov3-x4.onnx")
    (y,) = session.run(None, {"input": x.numpy()})
    assert torch.allclose(net.upscale(x), torch.from_numpy(y).clamp(0, 1), atol=1e-5)
    general = CompactUpscaler(ASSETS / "sr" / "RealESRGAN_General_x4_v3.pth")
    assert (net.reach, general.reach) == (18, 34)
    picture = Image.open(ASSETS / "photos" / "public_domain" / "astronaut.png").convert("RGB")
    photo = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None, :, :256, 128:384] / 255
    low = torch.nn.functional.avg_pool2d(photo, 4)
    for upscaler in (net, general):
        large = upscaler.upscale(low)
        assert (
            float(-10 * torch.log10((large - photo).square().mean())) > 23
        )  # bicubic: 26.3, a GAN is sharper
        assert float((torch.nn.functional.avg_pool2d(large, 4) - low).square().mean().sqrt()) < 0.05


# ------------------------------------------------------------------ tiles


@pytest.mark.parametrize(
    ("length", "tile", "overlap", "multiple"),
    [(100, 32, 5, 1), (101, 40, 8, 8), (64, 64, 9, 1), (65, 64, 3, 4), (400, 33, 16, 1)],
)
def test_tiles_cover_an_axis_once(length, tile, overlap, multiple):
    found = spans(length, tile, overlap, multiple)
    kept = [pixel for s in found for pixel in range(s.keep, s.until)]
    assert kept == list(range(length))
    for s in found:
        assert s.start % multiple == 0 and s.stop - s.start <= tile + multiple
        assert s.start == 0 or s.keep - s.start >= overlap
        assert s.stop == length or s.stop - s.until >= overlap


def test_tiles_that_keep_nothing_are_refused():
    with pytest.raises(ConfigError, match="leave nothing to keep"):
        spans(100, 32, 16)


@pytest.mark.parametrize("tile", [16, 21, 30])
def test_tiles_show_no_seams(tmp_path, tile):
    path, x = srvgg(tmp_path / "x.pth", depth=3, strength=1.0), frames(1)
    whole = CompactUpscaler(path, scale=2).upscale(x)
    tiled = CompactUpscaler(path, scale=2, tile=tile, overlap=5).upscale(x)  # its reach is 5
    assert float((tiled - whole).abs().max()) < 1e-5
    seams = CompactUpscaler(path, scale=2, tile=tile, overlap=0).upscale(x)
    assert float((seams - whole).abs().max()) > 1e-3, "the test could not fail"


class Short:
    """Runs out of memory for anything larger than ``side``."""

    def __init__(self, side, error=torch.OutOfMemoryError):
        self.side, self.error, self.seen = side, error, []

    def __call__(self, x):
        self.seen.append(tuple(x.shape))
        if max(x.shape[-2:]) > self.side:
            raise self.error("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
        return torch.nn.functional.interpolate(x, scale_factor=2)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError])
def test_out_of_memory_halves_the_tiles_once(caplog, error):
    net, x = Short(32, error), frames(3)
    run = TiledFrames(net, "net.pth", scale=2, batch=2, overlap=4)
    with caplog.at_level(logging.WARNING, "facelock"):
        assert torch.equal(run(x), torch.nn.functional.interpolate(x, scale_factor=2))
        run(x)
    (line,) = caplog.messages
    assert "net.pth: out of memory on cpu; from here on frames are enlarged in tiles of 26 pixels" in line
    assert sum(max(shape) > 32 for shape in net.seen) == 1 and net.seen[-1][0] == 1


def test_the_second_try_has_the_memory_of_the_first():
    """An error that is kept keeps, with its traceback, every tensor that was alive when it was raised."""
    held, left = [], []

    def net(x):
        left.append(any(ref() is not None for ref in held))
        features = x.repeat(1, 2, 1, 1)
        held.append(weakref.ref(features))
        if max(x.shape[-2:]) > 32:
            raise torch.OutOfMemoryError("full")
        return torch.nn.functional.interpolate(features[:, :3], scale_factor=2)

    TiledFrames(net, "net.pth", scale=2, overlap=4)(frames(1))
    assert len(left) > 2 and not any(left)


def test_out_of_memory_after_that_is_an_error():
    with pytest.raises(
        DeviceError, match=r"too little memory to enlarge frames in tiles of 26 pixels.*smaller tile"
    ):
        TiledFrames(Short(8), "net.pth", scale=2, overlap=4)(frames())
    with pytest.raises(DeviceError, match="too little memory to enlarge frames as a whole"):
        TiledFrames(Short(8), "net.pth", scale=2, overlap=20)(frames())


def test_tiles_are_not_halved_again_later():
    net = Short(32)
    run = TiledFrames(net, "net.pth", scale=2, overlap=4)
    run(frames(1))
    net.side = 20
    with pytest.raises(DeviceError, match="in tiles of 26 pixels"):
        run(frames(1))
    assert run.tile == 26


def test_other_failures_are_not_taken_for_it():
    def broken(x):
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes do not fit"):
        TiledFrames(broken, "net", scale=2)(frames())


def test_what_is_no_number_is_an_error_with_the_frame():
    def half(x):
        y = torch.nn.functional.interpolate(x, scale_factor=2)
        return torch.where(x.mean() > 0.6, torch.nan, y)

    x = frames(4) * 0.5
    x[2] += 0.5
    with pytest.raises(ModelError, match="net: its result for frame 2 of this chunk holds NaN"):
        TiledFrames(half, "net", scale=2)(x)
