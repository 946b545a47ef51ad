"""Similarities, crops out and in, masks and pose."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
import torch

from facelock.geometry import (
    ARCFACE112,
    HEAD,
    INSWAPPER128,
    estimate_pose,
    paste_crops,
    similarity_from_landmarks,
    soft_mask,
    warp_crops,
)

TEMPLATE = torch.tensor(ARCFACE112.template, dtype=torch.float64)


def similarity(scale: float, degrees: float, x: float, y: float) -> torch.Tensor:
    c, s = scale * math.cos(math.radians(degrees)), scale * math.sin(math.radians(degrees))
    return torch.tensor([[c, -s, x], [s, c, y]], dtype=torch.float64)


def landmarks(count: int, side: int = 256, height: float = 120, seed: int = 0) -> torch.Tensor:
    """(count, 5, 2) of faces somewhere in a square, turned and uneven."""
    g = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        to_crop = similarity(height / 112, g.uniform(-30, 30), *(g.uniform(0.2, 0.6, 2) * side))
        rows.append((TEMPLATE - 56) @ to_crop[:, :2].T + to_crop[:, 2] + torch.tensor(g.normal(0, 2, (5, 2))))
    return torch.stack(rows).float()


def picture(side: int = 256, seed: int = 0) -> torch.Tensor:
    """A smooth random picture (3, side, side)."""
    noise = np.random.default_rng(seed).random((side, side, 3)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 4)
    smooth = (smooth - smooth.min()) / (smooth.max() - smooth.min())
    return torch.from_numpy(smooth).permute(2, 0, 1).contiguous()


@pytest.mark.parametrize("spec", [ARCFACE112, INSWAPPER128])
def test_known_similarity_comes_back(spec):
    back = similarity(2.3, 27, 31, -12)
    points = torch.tensor(spec.template, dtype=torch.float64) @ back[:, :2].T + back[:, 2]
    matrix = similarity_from_landmarks(points[None], spec)[0].double()
    assert matrix.dtype == torch.float64
    assert torch.allclose(matrix[:, :2] @ back[:, :2], torch.eye(2, dtype=torch.float64), atol=1e-6)
    assert torch.allclose(
        points @ matrix[:, :2].T + matrix[:, 2], torch.tensor(spec.template).double(), atol=1e-4
    )


@pytest.mark.parametrize("spec", [ARCFACE112, INSWAPPER128])
def test_same_matrices_as_insightface(spec):
    from insightface.utils.face_align import estimate_norm

    points = landmarks(20)
    ours = similarity_from_landmarks(points, spec).numpy()
    theirs = np.stack([estimate_norm(p.numpy().astype(np.float64), spec.size) for p in points])
    assert ours.shape == (20, 2, 3)
    np.testing.assert_allclose(ours, theirs, atol=2e-4, rtol=1e-5)


def test_degenerate_landmarks_give_a_finite_matrix():
    points = torch.zeros(2, 5, 2)
    points[1] = torch.tensor(ARCFACE112.template).flip(1)  # mirrored: not much of a similarity
    matrices = similarity_from_landmarks(points, ARCFACE112)
    assert torch.isfinite(matrices).all()
    assert torch.isfinite(warp_crops(picture()[None], torch.zeros(2, dtype=torch.int64), matrices, 112)).all()


def test_crops_match_opencv():
    points, frame = landmarks(6), picture()
    matrices = similarity_from_landmarks(points, INSWAPPER128)
    crops = warp_crops(frame[None], torch.zeros(6, dtype=torch.int64), matrices, 128)
    source = frame.permute(1, 2, 0).numpy()
    for crop, matrix in zip(crops, matrices, strict=True):
        theirs = cv2.warpAffine(
            source, matrix.numpy(), (128, 128), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        )
        assert np.abs(crop.permute(1, 2, 0).numpy() - theirs).max() < 0.01


def test_a_crop_takes_its_own_frame():
    frames = torch.stack([torch.full((3, 64, 64), value) for value in (0.1, 0.5, 0.9)])
    matrices = similarity_from_landmarks(landmarks(3, 64, 30), ARCFACE112)
    crops = warp_crops(frames, torch.tensor([2, 0, 1]), matrices, 112)
    assert torch.allclose(crops.mean((1, 2, 3)), torch.tensor([0.9, 0.1, 0.5]), atol=1e-6)


@pytest.mark.parametrize("shrink", [1.6, 2.0, 3.3, 9.0])
def test_shrinking_does_not_alias(shrink):
    side = round(112 * shrink) + 40
    rows = torch.arange(side)
    stripes = ((rows[:, None] + rows) % 2).float().expand(1, 3, side, side)
    matrix = similarity(1 / shrink, 0, -20 / shrink, -20 / shrink)[None]
    crop = warp_crops(stripes, torch.zeros(1, dtype=torch.int64), matrix, 112)
    assert crop[..., 2:-2, 2:-2].sub(0.5).abs().max() < 0.27
    assert crop.std() < 0.12  # sampled bilinearly alone it is about 0.2 and more


@pytest.mark.parametrize("shrink", [1.2, 2.5, 6.0, 9.5])
def test_shrinking_keeps_positions(shrink):
    side = round(112 * shrink)
    ramp = ((torch.arange(side) + 0.5) / side).expand(1, 3, side, side)
    step = side / 112
    matrix = torch.tensor([[[1 / step, 0, (1 / step - 1) / 2], [0, 1 / step, (1 / step - 1) / 2]]])
    crop = warp_crops(ramp, torch.zeros(1, dtype=torch.int64), matrix, 112)[0, 0, 50]
    expected = (torch.arange(112) + 0.5) / 112
    assert (crop - expected)[4:-4].abs().max() < 0.05 / 112


def test_bits_do_not_depend_on_the_batch():
    frames = torch.stack([picture(seed=n) for n in range(4)])
    index = torch.tensor([0, 0, 1, 2, 3, 3, 3])
    points = landmarks(7, height=200)
    points[1] = points[1] * 0.4 + 60
    matrices = similarity_from_landmarks(points, INSWAPPER128)
    crops = warp_crops(frames, index, matrices, 128)
    pasted = paste_crops(frames, index, matrices, 1 - crops, soft_mask(128))
    for n in range(7):
        alone = similarity_from_landmarks(points[n : n + 1], INSWAPPER128)
        assert torch.equal(alone[0], matrices[n])
        assert torch.equal(warp_crops(frames[index[n]][None], torch.tensor([0]), alone, 128)[0], crops[n])
    for frame in range(4):
        mine = index == frame
        alone = paste_crops(
            frames[frame : frame + 1], torch.zeros(int(mine.sum()), dtype=torch.int64), matrices[mine],
            1 - crops[mine], soft_mask(128),
        )  # fmt: skip
        assert torch.equal(alone[0], pasted[frame])


def test_paste_touches_nothing_else():
    frames = torch.rand(3, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    before = frames.clone()
    matrices = similarity_from_landmarks(landmarks(2, 96, 40), INSWAPPER128)
    pasted = paste_crops(
        frames, torch.tensor([0, 2]), matrices, torch.ones(2, 3, 128, 128), torch.ones(128, 128)
    )
    assert torch.equal(frames, before)
    assert torch.equal(pasted[1], frames[1])
    grid = torch.stack(torch.meshgrid(torch.arange(96.0), torch.arange(96.0), indexing="xy"), -1)
    for index, matrix in ((0, matrices[0]), (2, matrices[1])):
        inside = grid @ matrix[:, :2].T + matrix[:, 2]
        outside = ((inside < -3) | (inside > 130)).any(-1)
        assert torch.equal(pasted[index][:, outside], frames[index][:, outside])
        within = ((inside > 2) & (inside < 125)).all(-1)
        assert within.sum() > 500
        assert torch.allclose(pasted[index][:, within], torch.tensor(1.0), atol=1e-5)


@pytest.mark.parametrize("height", [40, 100, 160])
def test_out_and_in_again_is_nearly_nothing(height):
    frame = picture()[None]
    matrices = similarity_from_landmarks(landmarks(1, height=height), INSWAPPER128)
    index = torch.tensor([0])
    crops = warp_crops(frame, index, matrices, 128)
    pasted = paste_crops(frame, index, matrices, crops, soft_mask(128))
    assert (pasted - frame).abs().mean() < 1e-3
    assert (pasted - frame).abs().max() < 0.02


def test_faces_outside_and_at_the_border():
    frame = picture(64)[None]
    matrices = torch.stack([similarity(1, 0, 500, 0), similarity(1, 0, 100, 100)]).float()
    index = torch.zeros(2, dtype=torch.int64)
    pasted = paste_crops(frame, index, matrices, torch.ones(2, 3, 128, 128), torch.ones(128, 128))
    assert torch.equal(pasted[..., 30:, :], frame[..., 30:, :])
    assert torch.allclose(pasted[..., :27, :27], torch.tensor(1.0))


def test_no_faces():
    frames = picture(64)[None]
    none = torch.zeros(0, dtype=torch.int64)
    matrices = similarity_from_landmarks(torch.zeros(0, 5, 2), ARCFACE112)
    assert matrices.shape == (0, 2, 3)
    crops = warp_crops(frames, none, matrices, 112)
    assert crops.shape == (0, 3, 112, 112)
    assert torch.equal(paste_crops(frames, none, matrices, crops, soft_mask(112)), frames)


def test_soft_mask():
    mask = soft_mask(128)
    assert mask.shape == (128, 128) and mask.dtype == torch.float32
    assert mask.min() == 0 and mask.max() == 1
    assert mask[0].max() == 0 and mask[:, -1].max() == 0
    assert torch.allclose(mask, mask.T) and torch.allclose(mask, mask.flip(0))
    assert mask[40:90, 40:90].min() == 1
    assert mask.diff(dim=0).abs().max() < 0.1


def turned(yaw: float, pitch: float, roll: float) -> torch.Tensor:
    """Landmarks of the average head; the yaw is first, as a neck turns, then the rest."""
    y, p, r = (math.radians(angle) for angle in (yaw, pitch, roll))
    head = torch.tensor(HEAD)
    nod = torch.tensor([[1, 0, 0], [0, math.cos(p), -math.sin(p)], [0, math.sin(p), math.cos(p)]])
    shake = torch.tensor([[math.cos(y), 0, math.sin(y)], [0, 1, 0], [-math.sin(y), 0, math.cos(y)]])
    tilt = torch.tensor([[math.cos(r), -math.sin(r), 0], [math.sin(r), math.cos(r), 0], [0, 0, 1]])
    return (head @ (tilt @ shake @ nod).T)[None, :, :2] * 40 + 100


@pytest.mark.parametrize("yaw", [-70, -30, 0, 20, 60])
@pytest.mark.parametrize("roll", [-25, 0, 40])
def test_yaw_and_roll_come_back(yaw, roll):
    found = [float(angle) for angle in estimate_pose(turned(yaw, 0, roll))]
    assert found == pytest.approx([yaw, 0, roll], abs=0.5)


@pytest.mark.parametrize("pitch", [-30, 0, 30])
def test_pitch_comes_back(pitch):
    found = [float(angle) for angle in estimate_pose(turned(0, pitch, 0))]
    assert found == pytest.approx([0, pitch, 0], abs=0.5)


def test_signs_of_the_pose():
    right, up = torch.tensor(HEAD)[None, :, :2].clone(), torch.tensor(HEAD)[None, :, :2].clone()
    right[0, 2, 0] += 0.2  # the nose moves to the picture's right
    up[0, 2, 1] -= 0.2
    assert float(estimate_pose(right)[0]) > 5
    assert float(estimate_pose(up)[1]) > 5
    assert all(torch.isfinite(angle).all() for angle in estimate_pose(torch.zeros(1, 5, 2)))
