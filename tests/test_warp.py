"""The aligner ``warp``: texture goes where the landmarks are, what must stay the frame's stays bit for bit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from facelock.alignment import aligner_class, mesh, shape
from facelock.alignment.dressing import Dressing, Face
from facelock.alignment.warp import WarpAligner, worth
from facelock.closed_loop import changed
from facelock.errors import ConfigError, InputError
from facelock.faces.dense import DenseReader
from facelock.faces.layouts import Layout
from facelock.geometry import ARCFACE112, REFERENCE384, wide_crop
from facelock.lock_loop import Locker
from facelock.types import Faces, Identity, Thresholds

SIZE = 256


def ring(x: float, y: float, wide: float, high: float, count: int) -> list[tuple[float, float]]:
    """Points of an ellipse, from its left end over its top."""
    turns = np.arange(count) / count * 2 * np.pi
    return [(x - wide * np.cos(t), y - high * np.sin(t)) for t in turns]


PARTS = {
    "oval": ring(0, 8, 62, 85, 24),
    "left_eye": ring(-28, -16, 12, 5, 8),
    "right_eye": ring(28, -16, 12, 5, 8),
    "left_brow": ring(-28, -34, 16, 4, 6),
    "right_brow": ring(28, -34, 16, 4, 6),
    "outer_lips": ring(0, 46, 24, 13, 8),
    "inner_lips": ring(0, 46, 17, 8, 8),
    "nose": [(0, 16), (-10, 20), (10, 20)],
}
"""A face whose eyes are 56 pixels apart, around the origin, in pixels of a crop of 256."""
FACE = np.array([point for part in PARTS.values() for point in part])
_starts = np.cumsum([0, *(len(part) for part in PARTS.values())])
LAYOUT = Layout(
    "toy",
    len(FACE),
    **{name: tuple(range(a, b)) for name, a, b in zip(PARTS, _starts[:-1], _starts[1:], strict=True)},
)


class Reader:
    """The toy face, where the crop's first pixels say: red moves the nose to the right, green closes the picture."""

    layout = LAYOUT

    def read(self, crops: Tensor) -> tuple[Tensor, Tensor]:
        rows = []
        for crop in crops:
            points = FACE.copy()
            points[list(LAYOUT.nose), 0] += 20 * float(crop[0, 0, 0])
            rows.append(points * crop.shape[-1] / SIZE + (crop.shape[-1] - 1) / 2)
        points = np.stack(rows) if rows else np.zeros((0, len(FACE), 2))
        return torch.from_numpy(points).float(), 1 - crops[:, 1, 0, 0]


def toy_crop(seed: int = 0, size: int = SIZE, base: float = 0.5) -> Tensor:
    """(1, 3, size, size): a smooth random picture; its first pixel is black."""
    g = torch.Generator().manual_seed(seed)
    noise = torch.rand(1, 3, 24, 24, generator=g) * 0.3 + base - 0.15
    crop = torch.nn.functional.interpolate(noise, size=(size, size), mode="bicubic").clamp(0, 1)
    crop[..., 0, 0] = 0
    return crop


def identity(*crops: Tensor) -> Identity:
    return Identity("maria", {}, crops=torch.cat(crops))


def aligner(**settings) -> WarpAligner:
    return WarpAligner(encoder="toy", size=SIZE, reader=Reader(), dressing=Dressing(**settings))


def warped(crop: Tensor, whose: Identity, strength: float = 1.0, **settings) -> Tensor:
    toy = aligner(**settings)
    return toy.align(crop, torch.zeros(len(crop), 4), strength, references=[whose] * len(crop))


def place(part: str, size: int = SIZE) -> np.ndarray:
    return np.array(PARTS[part]) * size / SIZE + (size - 1) / 2


def inside(part: str) -> Tensor:
    return torch.from_numpy(mesh.polygon(place(part), SIZE)) > 0.99


def test_a_face_on_itself_stays():
    reference = toy_crop(1, 384)
    own = torch.nn.functional.interpolate(reference, size=(SIZE, SIZE), mode="bilinear", antialias=True)
    own[..., 0, 0] = 0
    result = warped(own, identity(reference))
    assert (result - own).abs().mean() < 0.004 and (result - own).abs().max() < 0.06
    assert not torch.equal(result, own)


def test_a_reference_that_overshoots_is_no_harm():
    reference = toy_crop(1, 384)
    reference[..., 100:280, 100:280] -= 0.5
    assert float(reference.min()) < -0.1
    assert bool(torch.isfinite(warped(toy_crop(2), identity(reference))).all())


def test_texture_takes_the_references_pattern():
    reference, own = toy_crop(1, 384), toy_crop(2)
    goal = torch.nn.functional.interpolate(reference, size=(SIZE, SIZE), mode="bilinear", antialias=True)
    result = warped(own, identity(reference), gain=1.0001, light=3.0)
    cheek = (slice(None), slice(None), slice(134, 150), slice(90, 108))
    assert torch.corrcoef(torch.stack([result[cheek].flatten(), goal[cheek].flatten()]))[0, 1] > 0.95
    assert torch.corrcoef(torch.stack([own[cheek].flatten(), goal[cheek].flatten()]))[0, 1] < 0.7


def test_texture_follows_the_landmarks():
    reference = torch.full((1, 3, 384, 384), 0.5)
    reference[..., 0, 0] = 0
    x, y = (round(float(v)) for v in place("nose", 384)[0])
    reference[..., y - 6 : y + 7, x - 6 : x + 7] = 0.9
    for red, shift in ((0.0, 0.0), (0.5, 10.0), (1.0, 20.0)):
        own = torch.full((1, 3, SIZE, SIZE), 0.5)
        own[..., 0, 0] = 0
        own[:, 0, 0, 0] = red
        result = warped(own, identity(reference), shape=0.0)
        spot = (result[0].mean(0) - 0.5).clamp(min=0.08) - 0.08
        found = (spot.sum(0) * torch.arange(SIZE)).sum() / spot.sum()
        assert abs(float(found) - float(place("nose")[0, 0]) - shift) < 2.5


def test_shape_moves_towards_the_reference():
    reference, own = toy_crop(1, 384), toy_crop(2)
    reference[:, 0, 0, 0] = 1.0
    reader = Reader()
    there, here = (reader.read(c)[0][0].double().numpy() for c in (reference, own))
    there = there * SIZE / 384
    nose = list(LAYOUT.nose)
    apart = shape.difference(there, here, LAYOUT)
    unit = 56.0
    moves = [shape.move(apart, here, LAYOUT, amount, unit)[nose, 0].mean() for amount in (0.0, 0.5, 1.0, 2.0)]
    assert moves[0] == 0 and 1 < moves[1] < moves[2] < moves[3] < shape.FARTHEST * unit
    bent = shape.bend(
        own[0].permute(1, 2, 0).numpy(), here, here + shape.move(apart, here, LAYOUT, 1, unit), LAYOUT
    )
    same = (torch.from_numpy(bent).permute(2, 0, 1) == own[0]).all(0)
    assert same[:10].all() and same[:, :30].all() and same[:, -30:].all()
    assert not same[140:150, 125:135].any()


def test_an_open_mouth_is_no_difference_of_shape():
    here = FACE + 128
    wide = here.copy()
    low = list(LAYOUT.inner_lips[5:] + LAYOUT.outer_lips[5:])
    wide[low, 1] += 14
    assert np.abs(shape.difference(wide, here, LAYOUT)[list(LAYOUT.inner_lips[5:])]).max() < 6
    assert np.abs(shape.difference(here, here, LAYOUT)).max() < 1e-9


def test_rows_are_independent_bit_for_bit():
    toy, references = aligner(), [identity(toy_crop(k, 384), toy_crop(k + 9, 384)) for k in range(4)]
    crops = torch.cat([toy_crop(k + 20) for k in range(4)])
    together = toy.align(crops, torch.zeros(4, 4), 1.5, references=references)
    for row in (3, 0, 2):
        alone = aligner().align(
            crops[row : row + 1], torch.zeros(1, 4), 1.5, references=references[row : row + 1]
        )
        assert torch.equal(alone[0], together[row])
    assert toy.align(crops[:0], torch.zeros(0, 4), 1.0, references=[]).shape == (0, 3, SIZE, SIZE)


def test_strength_is_a_share():
    own, whose = toy_crop(2), identity(toy_crop(1, 384))
    assert torch.equal(warped(own, whose, 0.0), own)
    half, whole = (warped(own, whose, strength, shape=0.0) - own for strength in (0.5, 1.0))
    assert torch.allclose(2 * half, whole, atol=1e-5)
    further = (warped(own, whose, 2.0, shape=0.0) - own) - whole
    assert further.abs().max() < 1e-6  # beyond 1 only the shape goes on


def test_pixels_outside_of_the_outline_keep_their_bits():
    own = toy_crop(2)
    result = warped(own, identity(toy_crop(1, 384)), 2.0, shape=0.0)
    outside = torch.from_numpy(mesh.polygon(place("oval"), SIZE)) == 0
    assert torch.equal(result[..., outside], own[..., outside])
    assert ((result - own).abs().amax((0, 1)) > 1e-4)[inside("oval")].float().mean() > 0.5


def test_eyes_and_mouth_are_the_frames():
    own, reference = toy_crop(2), toy_crop(1, 384)
    for part, colour in (("inner_lips", 0.9), ("left_eye", 0.1), ("right_eye", 0.1)):
        ys, xs = torch.nonzero(torch.from_numpy(mesh.polygon(place(part, 384), 384)) > 0, as_tuple=True)
        reference[..., ys, xs] = 1 - colour
        own[:, :, inside(part)] = colour
    result = warped(own, identity(reference))
    for part in ("inner_lips", "left_eye", "right_eye"):
        core = torch.from_numpy(mesh.inward(place(part), SIZE, 4.0)) > 0.9
        assert core.sum() > 8
        assert (result - own)[..., core].abs().max() < 0.02
    lips = inside("outer_lips") & ~inside("inner_lips")
    assert (result - own)[..., lips].abs().mean() > 0.01


def test_light_and_skin_tone_are_the_frames():
    reference, own = toy_crop(1, 384, base=0.7), toy_crop(2, base=0.35)
    result = warped(own, identity(reference))
    skin = torch.from_numpy(mesh.inward(place("oval"), SIZE, 20.0)) > 0.9
    assert abs(float((result - own)[..., skin].mean())) < 0.02
    assert float(reference.mean() - own.mean()) > 0.3


def test_a_doubtful_face_fades_out():
    own, whose = toy_crop(2), identity(toy_crop(1, 384))
    changes = []
    for green in (0.0, 0.85, 0.97):
        own[:, 1, 0, 0] = green
        changes.append(float((warped(own, whose) - own).abs().mean()))
    assert changes[0] > changes[1] > 0 == changes[2]


def test_a_mesh_beside_the_detectors_points_is_worth_nothing():
    points, spec = FACE + 127.5, wide_crop(SIZE)
    assert worth(points, 1.0, LAYOUT, spec) == 1
    assert 0 < worth(points + 11, 1.0, LAYOUT, spec) < 1
    assert worth(points + 40, 1.0, LAYOUT, spec) == 0 == worth(points, 0.01, LAYOUT, spec)


def test_what_is_turned_away_is_not_trusted():
    source = FACE + 128
    turned = source.copy()
    right = turned[:, 0] > 128
    turned[right, 0] = 128 + (turned[right, 0] - 128) * 0.04  # a profile: the right half is gone
    triangles = mesh.triangulate(source)
    trust = mesh.reliability(source, turned, triangles)
    assert trust[~right & (source[:, 0] < 100)].min() > 0.8
    assert trust[right & (source[:, 0] > 160)].max() < 0.2
    assert mesh.reliability(source, source, triangles).min() == 1.0


def test_the_photo_nearest_in_pose_counts_most_and_none_jumps():
    toy = aligner()
    sources = toy.sources(identity(*(toy_crop(k, 384) for k in range(5))))
    face = Face(toy_crop(9)[0].permute(1, 2, 0).numpy(), FACE + 127.5, LAYOUT, Dressing())
    yaw, pitch = sources[0].pose

    def weights(*yaws):
        posed = [replace(s, pose=(yaw + y, pitch)) for s, y in zip(sources, yaws, strict=True)]
        return {round(s.pose[0] - yaw, 3): w for w, s in face._nearest(posed)}

    spread = weights(0, 5, 10, 20, 40)
    assert max(spread, key=spread.get) == 0 and sum(spread.values()) == pytest.approx(1) and 40 not in spread
    assert (
        weights(0, 4, 8, 8.01, 30).get(8, 0) < 0.01
    )  # of two that are about to change places neither counts
    assert weights(0, 4, 8, 30, 40)[8] > 0.15


def test_interpolation_is_exact_for_a_linear_field():
    g = np.random.default_rng(0)
    points = np.concatenate([g.uniform(8, 56, (30, 2)), [(0, 0), (63, 0), (0, 63), (63, 63)]])
    values = points @ np.array([[0.5, -1.0], [0.25, 2.0]]) + [3, 4]
    triangles = mesh.triangulate(points)
    index = mesh.raster(points, triangles, 64)
    field = mesh.interpolate(values, points, triangles, index)
    ys, xs = np.mgrid[:64, :64]
    exact = np.stack([0.5 * xs + 0.25 * ys + 3, -xs + 2.0 * ys + 4], -1)
    assert (index >= 0).all()
    np.testing.assert_allclose(field, exact, atol=1e-3)


def test_references_without_pictures_or_faces_are_one_sentence():
    own = toy_crop(2)
    with pytest.raises(InputError, match=r"maria: holds no picture .* --keep-crops"):
        warped(own, Identity("maria", {}))
    unreadable = toy_crop(1, 384)
    unreadable[:, 1, 0, 0] = 1
    with pytest.raises(InputError, match="maria: no landmarks could be read"):
        warped(own, identity(unreadable))
    with pytest.raises(ValueError, match="1 crops need as many references"):
        aligner().align(own, torch.zeros(1, 4), 1.0)
    with pytest.raises(ConfigError, match="no crop of 100"):
        WarpAligner(encoder="toy", size=100, reader=Reader())


def test_it_is_found_by_name():
    assert aligner_class("warp") is WarpAligner
    assert isinstance(Reader(), DenseReader)
    with pytest.raises(ConfigError, match="inswapper, warp"):
        aligner_class("none")


@pytest.mark.parametrize("size", [256, 384, 512])
def test_wide_crops_show_what_references_show(size):
    spec = wide_crop(size)
    assert np.allclose((np.array(spec.template) + 0.5) / size, (np.array(REFERENCE384.template) + 0.5) / 384)


class Painter:
    """Paints a square in the middle of each crop."""

    crop, encoder = wide_crop(SIZE), "toy"

    def __init__(self, only_changes: bool) -> None:
        self.only_changes = only_changes

    def align(self, crops, identity, strength, *, references=()):
        out = crops.clone()
        out[..., 120:136, 120:136] = 1.0
        return out


class Pack:
    """One face in the middle of frames of 200 pixels; its embedding is the brightness there."""

    class encoder:
        id, crop, thresholds = "toy", ARCFACE112, Thresholds(0.7, 0.8, 0.9)

    def detect(self, frames):
        points = (torch.tensor(ARCFACE112.template) + 44).expand(len(frames), -1, -1)
        box = torch.tensor([60.0, 60, 140, 140]).expand(len(frames), -1)
        return Faces(torch.arange(len(frames)), box, points, torch.ones(len(frames)))

    def embed(self, frames, faces):
        bright = frames[faces.frame][..., 90:110, 90:110].mean((1, 2, 3))
        return normalize(torch.stack([bright, 1 - bright], 1), dim=1)


def test_only_what_changed_is_pasted():
    frames = torch.rand(2, 3, 200, 200, generator=torch.Generator().manual_seed(0)) * 0.5
    white = Identity("white", {"toy": torch.tensor([1.0, 0.0])})
    results = {}
    for only in (True, False):
        locker = Locker(Pack(), Painter(only), ladder=[1.0], target=2.0)
        results[only], records = locker.lock(frames, [white])
        assert [r.rung for r in records] == [0, 0]
    touched = {only: (result != frames).any(1) for only, result in results.items()}
    assert touched[False].sum() > 10 * touched[True].sum() > 0
    rows = torch.nonzero(touched[True][0].any(1)).flatten()
    assert 6 <= len(rows) <= 22 and 85 < float(rows.float().mean()) < 120
    middle = (slice(None), slice(None), slice(107, 109), slice(99, 101))
    assert results[True][middle].min() > 0.99 and torch.allclose(
        results[True][middle], results[False][middle]
    )


def test_changed_covers_every_change():
    before = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    after = before.clone()
    after[1, 2, 10, 12] += 0.1
    share = changed(before, after)
    assert share.shape == (3, 32, 32) and share[0].max() == 0 and share[2].max() == 0
    assert share[1, 10, 12] == 1 and share[1, 10, 18] == 0 and share[1].max() <= 1
