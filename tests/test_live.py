"""Training that renders its batches: everything lies where the network does, and shows what its labels say."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch

from facelock.miniature import data, live, moments, train, world
from facelock.miniature import windows as windows_of
from facelock.miniature.alignment import CROP_TEMPLATE, warp
from facelock.miniature.diffusion import DiffusionTask
from facelock.miniature.model_aligner import OUTPUTS, face_parameters
from facelock.miniature.parameters import IDENTITY, identity_vector, sample_nuisance
from facelock.miniature.tasks import compiled
from facelock.miniature.trainer import Trainer, averaged, moved
from facelock.miniature.vae import feature_weight, make_vae
from facelock.miniature.workshop import STATISTICS, Workshop
from facelock.nets.recogniser import Recogniser


@cache
def windows() -> windows_of.Windows:
    torch.manual_seed(0)
    vae = make_vae().eval()
    made = windows_of.make_windows(vae, 3, "cpu", batch=2)
    return replace(made, frames=windows_of.decoded(vae, made, 2, "cpu", batch=1))


def recogniser() -> Recogniser:
    torch.manual_seed(1)
    return Recogniser()


def tiny_decoder() -> live.LiveTinyDecoder:
    return live.LiveTinyDecoder(windows(), make_vae(), (torch.zeros(16), torch.ones(16)), 10, 2)


TASKS = {
    "recogniser": lambda: live.LiveRecognition("recogniser", 10, 8, 64),
    "judge": lambda: live.LiveRecognition("judge", 10, 8, 64),
    "vae": lambda: live.LiveVae(10, 1),
    "reader": lambda: live.LiveReader(windows(), 10, 8),
    "identity_reader": lambda: live.LiveIdentityReader(recogniser(), 10, 8),
    "aligner": lambda: live.LiveAlignment("aligner", windows(), recogniser(), 10, 4),
    "restorer": lambda: live.LiveAlignment("restorer", windows(), recogniser(), 10, 4),
    "detector": lambda: live.LiveDetection(windows(), 10, 4),
    "upscaler": lambda: live.LiveUpscaling(10, 4),
    "tiny_decoder": tiny_decoder,
}


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("part", TASKS)
def test_a_batch_is_made_where_the_network_is(part, monkeypatch):
    """The meta device refuses to meet the CPU just as a GPU does, whichever kind of batch a step draws."""
    task = TASKS[part]()
    task.module.to("meta")
    if hasattr(task, "windows"):
        monkeypatch.setattr(task, "windows", windows_of.Windows(**vars(task.windows)))
    for step in range(3):
        loss, figures = task.loss(step, moved(task.draw(step, seeded(step)), "meta"))
        loss.backward()
        assert loss.device.type == "meta" and all(f.device.type == "meta" for f in figures.values())


@pytest.mark.parametrize("step", [0, 3])
def test_the_blueprint_learns_where_its_latents_lie(step, monkeypatch):
    made = windows()
    latents, weights = made.latents.to("meta"), torch.ones(3, 2, 5, 16, 16, device="meta")
    task = DiffusionTask(latents, made.captions, 10, 4, torch.zeros(2, 16, 145), weights)
    task.module.to("meta")
    # transformers asks a mask for its value, which no tensor here has
    monkeypatch.setattr(
        task.module, "encode", lambda ids, mask: (ids * mask).unsqueeze(-1).expand(-1, -1, 96).float()
    )
    loss, figures = task.loss(step, moved(task.draw(step, seeded(step)), "meta"))
    assert loss.device.type == "meta" and {*figures} == {"loss", "plain"}


@pytest.mark.parametrize("part", ["recogniser", "vae", "reader", "identity_reader", "aligner", "detector"])
def test_the_same_seed_gives_the_same_batch(part):
    def shown(seed: int) -> tuple[torch.Tensor, ...]:
        task = TASKS[part]()
        with torch.no_grad():
            return task.show(moved(task.draw(2, seeded(seed)), "cpu"))

    assert torch.equal(shown(5)[0], shown(5)[0])
    assert not torch.equal(shown(5)[0], shown(6)[0])


def test_windows_know_what_they_show(tmp_path):
    made = windows()
    assert made.latents.shape == (3, 2, 16, 5, 16, 16) and made.frames.shape == (2, 17, 3, 64, 64)
    assert len(made.captions) == 3 and all(text.startswith("a ") for text in made.captions)
    made.save(tmp_path)
    made.save_frames(tmp_path)
    again = windows_of.Windows.load(tmp_path)
    assert torch.equal(again.frames, made.frames) and again.captions == made.captions
    assert windows_of.Windows.load(tmp_path, frames=False).frames.numel() == 0
    clip, frame = torch.tensor([1, 1]), torch.tensor([0, 16])
    face, _, now = made.rows(clip, frame)
    begin = int(made.first[1])
    row = moments.MOVING.index("yaw")
    assert torch.equal(now["yaw"], made.moving[row, 1, torch.tensor([begin, begin + 16])])
    assert float(face["jaw"][0]) == float(face["jaw"][1])
    points = torch.cat([*made.landmarks(clips=2)])
    assert points.shape == (3, 25, 5, 2)
    there, _ = world.landmarks(face, now, 64)
    assert torch.allclose(points[1, torch.tensor([begin, begin + 16])], there, atol=1e-4)


@torch.no_grad()
def test_a_crop_of_the_small_frame_is_the_crop_of_the_large_one():
    """What the aligner gets of a window lies over what it is asked for."""
    face, look = moments.people(4, seeded(3))
    now = sample_nuisance(4, seeded(4))
    points, _ = world.landmarks(face, now, moments.FRAME)
    matrices = data.fit_similarity(points, CROP_TEMPLATE)
    small, _ = world.landmarks(face, now, 64)
    placed = data.apply(live._of_smaller(matrices), small)
    assert torch.allclose(placed, data.apply(matrices, points), atol=1e-3)
    still, moving = moments.packed(face | look, moments.STILL), moments.packed(now, moments.MOVING)
    large = moments.rendered(still, moving, matrices, 128)
    frame = world.render(face, look, now, 64)
    cut = warp(frame, live._of_smaller(matrices))
    assert float((cut - large).abs().mean()) < 0.05
    assert float((cut - large.flip(0)).abs().mean()) > 2 * float((cut - large).abs().mean())


def test_the_reader_meets_two_moments_of_each_clip():
    task = TASKS["reader"]()
    kept = [OUTPUTS.index(name) for name in ("temperature", "beard", "glasses", "hair_r", "intensity")]
    for seed in range(4):
        *_, labels, _, _ = task.draw(0, seeded(seed))
        assert torch.allclose(labels[:4, kept], labels[4:, kept], atol=1e-5)


def test_the_aligner_is_asked_for_the_other_person_in_the_same_moment():
    task = TASKS["aligner"]()
    task.same = 0.0
    still, wanted, *_ = task.draw(1, seeded(1))
    own = len(IDENTITY)
    assert not torch.equal(still[:own], wanted[:own]) and torch.equal(still[own:], wanted[own:])
    task.same = 1.0
    still, wanted, *_ = task.draw(1, seeded(1))
    assert torch.equal(still, wanted)


def test_eyes_and_mouth_weigh_most():
    points = torch.tensor([[20.0, 24.0], [40.0, 24.0], [30.0, 34.0], [24.0, 44.0], [36.0, 44.0]])
    weight = feature_weight(points, 64, 8.0)[0]
    assert float(weight[24, 20]) == pytest.approx(8, abs=1e-4) == float(weight[44, 30])
    assert float(weight[34, 30]) < 2 and float(weight[5, 5]) < 1e-3


def test_landmarks_teach_what_standardised_labels_do_not():
    """A wrong pose costs pixels; parameters that are read right cost none."""
    task = TASKS["identity_reader"]()
    faces = data.identities("heldout", 8)
    vectors = identity_vector(faces)
    module = task.module

    class Fixed(torch.nn.Module):
        def forward(self, source: torch.Tensor) -> torch.Tensor:
            return source

    task.module = Fixed()
    loss = lambda read: live.IdentityReaderTask.loss(task, 0, (read, vectors))[1]  # noqa: E731
    assert float(loss(vectors)["pixels"]) == 0
    off = vectors.clone()
    off[:, list(IDENTITY).index("eye_y")] -= 0.5
    assert float(loss(off)["pixels"]) > 0.1
    task.module = module
    assert set(face_parameters(vectors)) == set(IDENTITY)


def test_the_clock_ends_a_training_and_leads_its_rate(tmp_path):
    task = TASKS["upscaler"]()
    trainer = Trainer(task, tmp_path, seconds=0.0001)
    trainer.run()
    assert trainer.step == 1 and trainer.spent >= 0.0001
    resumed = Trainer(TASKS["upscaler"](), tmp_path, seconds=0.0001)
    resumed.run()
    assert resumed.step == 1 and resumed.spent == trainer.spent
    assert trainer.schedule(500, 1.0) < 0.02 * trainer.schedule(500, 0.0)


def test_parts_and_their_seconds_are_read_from_the_command(capsys):
    import argparse

    parser = argparse.ArgumentParser()
    assert train._wanted(parser, ["vae=90", "judge"]) == [("vae", 90.0), ("judge", None)]
    assert [part for part, _ in train._wanted(parser, ["all"])] == list(train.ORDER)
    for bad in ("vea", "vae=soon", "all=3"):
        with pytest.raises(SystemExit):
            train._wanted(parser, [bad])
    assert "no part to train" in capsys.readouterr().err


def test_what_a_rented_machine_learned_is_carried_home(tmp_path):
    task = TASKS["upscaler"]()
    Trainer(task, tmp_path / "there" / "train" / "upscaler", seconds=0.0001).run()
    vae = tmp_path / "there" / "train" / "vae"
    Trainer(TASKS["vae"](), vae, seconds=0.0001).run()
    (vae / STATISTICS).write_text('{"mean": [0.5], "deviation": [2.0]}')
    tool = Path(__file__).parents[1] / "tools" / "device" / "pack.py"
    for words in (("out", tmp_path / "there", tmp_path / "box"), ("in", tmp_path / "box", tmp_path / "here")):
        subprocess.run([sys.executable, str(tool), *map(str, words)], check=True, capture_output=True)
    folder = Path("train") / "upscaler"
    there = averaged(tmp_path / "there" / folder, TASKS["upscaler"]().module).state_dict()
    here = averaged(tmp_path / "here" / folder, TASKS["upscaler"]().module).state_dict()
    assert Workshop(tmp_path / "here").statistics() == ([0.5], [2.0])
    assert all(torch.allclose(there[k], here[k], atol=1e-3) for k in there)


def test_what_a_gpu_compiles_keeps_its_names(monkeypatch):
    """The state of a compiled network loads into one that is not."""
    task = TASKS["vae"]()
    names = [*task.module.state_dict()]
    asked: list[str] = []
    for name in ("encoder", "decoder"):
        part = getattr(task.module.vae, name)
        monkeypatch.setattr(part, "compile", lambda *, dynamic, name=name: asked.append(name))
    assert compiled(task) is task
    assert asked == ["encoder", "decoder"] and [*task.module.state_dict()] == names
