"""The benchmarks of real faces: what they need, and what the paste's touches."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from facelock.bench import paste, warp
from facelock.cli import main
from facelock.errors import InputError
from facelock.geometry import INSWAPPER128, paste_crops, paste_onto, similarity_from_landmarks, soft_mask
from facelock.types import Faces


def test_absent_assets_are_one_sentence_and_exit_2(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["bench", "warp", "--assets", str(tmp_path)])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert "--assets DIR" in error and error.count("\n") == 1 and "Traceback" not in error
    with pytest.raises(InputError, match="face_detection_yunet"):
        warp.run(assets=tmp_path)


def test_paste_in_place_is_the_paste():
    case = paste.case(90, 3)
    frame = case.frame[..., :300, :400].contiguous()
    matrices = similarity_from_landmarks(case.landmarks - torch.tensor([700.0, 400.0]), INSWAPPER128)
    index, mask = torch.zeros(1, dtype=torch.long), soft_mask(128)
    copied = paste_crops(frame, index, matrices, case.crop, mask)
    own = frame.clone()
    paste_onto(own, index, matrices, case.crop, mask)
    assert torch.equal(own, copied) and not torch.equal(own, frame)


def test_the_bench_pastes_where_insightface_does(monkeypatch):
    monkeypatch.setattr(paste, "ROUNDS", 1)
    theirs, case = paste.Theirs(), paste.case(240, 0)
    row = paste._measured(theirs, case, 240)
    assert row["untouched"] and row["insightface"] > 0 and row["in_place"] > 0
    bgr = np.zeros((1080, 1920, 3), np.uint8)
    own = theirs.get(bgr, case, True)[..., ::-1].astype(np.float32) / 255
    matrices = similarity_from_landmarks(case.landmarks, INSWAPPER128)
    index = torch.zeros(1, dtype=torch.long)
    ours = paste_crops(torch.zeros(1, 3, 1080, 1920), index, matrices, case.crop, soft_mask(128, 0.22))
    y, x = (int(v) for v in case.landmarks[0, 2].flip(0))
    core = np.s_[y - 30 : y + 30, x - 30 : x + 30]
    apart = np.abs(own - ours[0].permute(1, 2, 0).numpy())[core]
    assert apart.mean() < 0.05  # the same picture; the two sample noise differently
    assert np.corrcoef(own[core].ravel(), ours[0].permute(1, 2, 0).numpy()[core].ravel())[0, 1] > 0.95


def test_untouched_sees_a_touched_pixel():
    case = paste.case(120, 0)
    after = case.frame.clone()
    assert paste.untouched(case.frame, after, case.landmarks)
    after[0, 0, 5, 5] += 0.5
    assert not paste.untouched(case.frame, after, case.landmarks)


def test_one_thread_is_given_back():
    before = torch.get_num_threads()
    with paste.one_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before


def test_largest_takes_one_face_of_each_frame():
    box = torch.tensor([[0.0, 0, 10, 10], [0, 0, 20, 20], [0, 0, 5, 5]])
    faces = warp.largest(Faces(torch.tensor([0, 0, 2]), box, torch.zeros(3, 5, 2), torch.ones(3)))
    assert faces.frame.tolist() == [0, 2] and faces.box[0, 2] == 20
    assert len(warp.largest(faces.select(torch.zeros(2, dtype=torch.bool)))) == 0


def test_figures_count_lost_faces_as_not_raised():
    tally = warp.Tally()
    for name in warp.JUDGES:
        tally.own[name] += [(0.1, 0.5), (0.2, 0.1), (0.0, 0.4)]
        tally.third[name] += [(0.0, 0.0)] * 3
    tally.expression += [1.0, 2.0, 3.0]
    tally.restless += [(0.1, 0.12), (0.1, 0.1)]
    tally.lost = 1
    figures = warp._figures(tally)
    assert figures["w600k"]["raised"] == pytest.approx(0.5)
    assert figures["flicker"] == pytest.approx(1.1) and figures["expression"] == 2.0
    rows = [{"video": "v", "person": "p", "readable": 4, **figures, "ms": 5.0}] * 2
    assert warp._summary(rows)["w600k"]["raised"] == pytest.approx(0.5)
    assert warp._table(rows).count("50.0%") == 6
