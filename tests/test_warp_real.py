"""The aligner ``warp`` on a real video: the judge sees the reference, and everything else stays."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from real import ASSETS, needs_assets
from torch.nn.functional import normalize

from facelock.alignment.warp import WarpAligner
from facelock.faces.dense import load_reader
from facelock.geometry import ARCFACE112, REFERENCE384, similarity_from_landmarks, warp_crops
from facelock.images import read_picture
from facelock.lock_loop import Locker
from facelock.types import Faces, Identity, Thresholds
from facelock.video.writing import read_chunks


class RawEncoder:
    """A recogniser that takes RGB in 0..255 (the assets' README), or in [-1, 1]."""

    crop, thresholds = ARCFACE112, Thresholds(0.2, 0.3, 0.4)

    def __init__(self, file: str, scale: float = 255.0, shift: float = 0.0) -> None:
        from facelock.runtime import BatchSession

        self.id, self.scale, self.shift = file, scale, shift
        self.session = BatchSession(ASSETS / "recognisers" / file)

    def embed_crops(self, crops):
        (name,) = self.session.inputs
        rows = self.session.run({name: (crops * self.scale + self.shift).numpy()})[0]
        return normalize(torch.from_numpy(rows).float(), dim=1)


class RealPack:
    """YuNet with one recogniser, a face a frame."""

    def __init__(self, encoder):
        import cv2

        self.encoder = encoder
        path = ASSETS / "detectors" / "face_detection_yunet_2023mar.onnx"
        self.net = cv2.FaceDetectorYN.create(str(path), "", (320, 320))

    def detect(self, frames):
        rows = []
        for frame in frames:
            bgr = (frame.permute(1, 2, 0).numpy()[..., ::-1] * 255).round().astype(np.uint8)
            self.net.setInputSize(bgr.shape[1::-1])
            found = self.net.detect(np.ascontiguousarray(bgr))[1]
            rows.append(torch.from_numpy(found[found[:, 2].argmax()]))
        faces = torch.stack(rows)
        box = torch.cat([faces[:, :2], faces[:, :2] + faces[:, 2:4]], 1)
        return Faces(torch.arange(len(frames)), box, faces[:, 4:14].reshape(-1, 5, 2), faces[:, 14])

    def embed(self, frames, faces):
        matrices = similarity_from_landmarks(faces.landmarks, ARCFACE112)
        return self.encoder.embed_crops(warp_crops(frames, faces.frame, matrices, 112))


@pytest.fixture(scope="module")
def real():
    """Frames of a real video, locked to somebody else; the packs; the two people's embeddings by the judge."""
    guide = RealPack(RawEncoder("arcface_mbf_y1_ms1m.onnx"))
    judge = RealPack(RawEncoder("w600k_mbf_dequant_fp32.onnx", 2.0, -1.0))

    def person(folder, pack, *numbers):
        rows, crops = [], []
        for path in [sorted((ASSETS / "photos" / folder).glob("*.jpg"))[n] for n in numbers]:
            frames = read_picture(path).frames
            faces = pack.detect(frames)
            rows.append(pack.embed(frames, faces)[0])
            matrices = similarity_from_landmarks(faces.landmarks, REFERENCE384)
            crops.append(warp_crops(frames, faces.frame, matrices, 384).clamp(0, 1))
        return Identity(
            folder, {pack.encoder.id: normalize(torch.stack(rows).mean(0), dim=0)}, crops=torch.cat(crops)
        )

    video = ASSETS / "videos" / "retalk_3.mp4"
    frames = next(iter(read_chunks(video, 40))).frames[::8].clone()
    reader = load_reader(ASSETS / "landmarks" / "face_landmarker.task")
    warp = WarpAligner(encoder=guide.encoder.id, reader=reader)
    goal = person("deepface/df_img1", guide, 0, 1)
    locked, records = Locker(guide, warp, ladder=(1.0, 2.0), target=0.5).lock(frames, [goal])
    unseen = person("deepface/df_img1", judge, 2, 3), person("deepface/df_img12", judge, 0, 1, 2)
    return (
        frames,
        locked,
        records,
        judge,
        reader,
        [i.embeddings[judge.encoder.id] for i in unseen],
        warp,
        guide,
        goal,
    )


@needs_assets
def test_the_judge_sees_the_reference_and_not_somebody_else(real):
    frames, locked, records, judge, _, (goal, third), *_ = real
    before, after = (judge.embed(f, judge.detect(f)) for f in (frames, locked))
    gain, control = ((after - before) @ centre for centre in (goal, third))
    assert (gain > 0.15).all() and len(records) == len(frames)
    assert control.abs().max() < 0.15 < gain.mean() / 2


@needs_assets
def test_expression_and_surroundings_stay(real):
    frames, locked, _, judge, reader, *_ = real
    matrices = similarity_from_landmarks(judge.detect(frames).landmarks, REFERENCE384)
    index = torch.arange(len(frames))
    a, b = (reader.read(warp_crops(f, index, matrices, 384))[0] for f in (frames, locked))
    unit = (a[:, list(reader.layout.left_eye)].mean(1) - a[:, list(reader.layout.right_eye)].mean(1)).norm(
        dim=1
    )
    assert ((a - b).norm(dim=2).mean(1) / unit).max() < 0.08
    box = judge.detect(frames).box
    for k in index.tolist():
        far = torch.ones(frames.shape[-2:], dtype=torch.bool)
        left, top, right, bottom = box[k].round().int().tolist()
        reach = (bottom - top) // 3
        far[max(0, top - reach) : bottom + reach, max(0, left - reach) : right + reach] = False
        assert torch.equal(frames[k][:, far], locked[k][:, far])


@needs_assets
def test_one_frame_alone_equals_it_in_its_clip(real):
    frames, locked, _, _, _, _, warp, guide, goal = real
    alone, _ = Locker(guide, warp, ladder=(1.0, 2.0), target=0.5).lock(frames[3:4], [goal])
    assert torch.equal(alone[0], locked[3])
