"""The bundled models are real checkpoints: other people's libraries open them, and the main job works with them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

import facelock
from facelock.assets import asset_dir
from facelock.bench import cast
from facelock.miniature import world
from facelock.miniature.parameters import take
from facelock.pipeline import Pipeline
from facelock.video.writing import probe, read_chunks

ROOT = Path(__file__).resolve().parents[1]
MODELS = asset_dir("models") / "miniature"
MARIA = ROOT / "samples" / "faces" / "maria.png"
PROMPT = "a woman with long red hair talking in a forest"

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def pipeline():
    return Pipeline.from_recipe("miniature", "cpu")


@pytest.fixture(scope="module")
def maria(pipeline):
    return pipeline.parts.identity(MARIA, name=None, face=None)


@pytest.fixture(scope="module")
def made(tmp_path_factory, pipeline):
    path = tmp_path_factory.mktemp("clip") / "maria.mp4"
    report = pipeline.generate(PROMPT, MARIA, seconds=3, seed=1).save(path)
    return path, report


# ------------------------------------------------------------------ formats


def test_insightface_opens_the_pack_and_agrees_with_ours(pipeline, maria):
    from insightface.app import FaceAnalysis

    app = FaceAnalysis(name=str(MODELS / "faces"), providers=["CPUExecutionProvider"])
    app.prepare(ctx_id=-1, det_size=(128, 128), det_thresh=0.5)
    picture = np.array(Image.open(MARIA).convert("RGB"))[..., ::-1].copy()
    (face,) = app.get(picture)
    own = maria.embeddings[pipeline.parts.locker.pack.encoder.id].numpy()
    assert float(face.normed_embedding @ own) > 0.98


def test_insightface_opens_the_aligner_and_the_restorer(pipeline, maria):
    from insightface.app import FaceAnalysis
    from insightface.model_zoo import get_model

    app = FaceAnalysis(name=str(MODELS / "faces"), providers=["CPUExecutionProvider"])
    app.prepare(ctx_id=-1, det_size=(128, 128), det_thresh=0.5)
    other = np.array(Image.open(ROOT / "samples" / "faces" / "aisha.png").convert("RGB"))[..., ::-1].copy()
    (face,) = app.get(other)

    class Source:
        normed_embedding = maria.embeddings[pipeline.parts.locker.pack.encoder.id].numpy()

    for name in ("aligner", "restorer"):
        swapper = get_model(str(MODELS / f"{name}.onnx"), providers=["CPUExecutionProvider"])
        assert type(swapper).__name__ == "INSwapper"
        swapped = swapper.get(other.copy(), face, Source, paste_back=True)
        (after,) = app.get(swapped)
        before = float(face.normed_embedding @ Source.normed_embedding)
        assert float(after.normed_embedding @ Source.normed_embedding) > max(before + 0.2, 0.4), name


def test_diffusers_opens_the_blueprint():
    from diffusers import SkyReelsV2DiffusionForcingPipeline

    pipe = SkyReelsV2DiffusionForcingPipeline.from_pretrained(MODELS / "blueprint")
    frames = pipe(
        PROMPT, height=64, width=64, num_frames=17, base_num_frames=17, num_inference_steps=2,
        guidance_scale=1.0, fps=12, max_sequence_length=24, output_type="np", ar_step=0,
        generator=torch.Generator().manual_seed(0),
    ).frames  # fmt: skip
    assert np.asarray(frames).shape == (1, 17, 64, 64, 3)


def test_every_model_has_a_card_with_held_out_figures():
    for card in (
        "blueprint/README.md",
        "faces/README.md",
        "judge/README.md",
        "aligner.md",
        "restorer.md",
        "upscaler.md",
        "tiny_decoder.md",
    ):
        text = (MODELS / card).read_text()
        table = text.split("## Held-out figures")[1]
        assert table.count("\n|") > 2, card
        assert "Apache-2.0" in text and "steps" in text


# ------------------------------------------------------------------ the lock on real networks


@pytest.fixture(scope="module")
def strangers():
    """Eight small frames of somebody else, moving."""
    who, other = cast.member(0), cast.member(9)
    _, now = cast.true_clip(who, 8, 64, 3)
    same = torch.zeros(8, dtype=torch.long)
    return world.render(take(other.face, same), take(who.look, same), now, 64)


def test_locking_does_not_depend_on_time(pipeline, maria, strangers):
    lock = pipeline.parts.locker.lock
    whole, records = lock(strangers, [maria])
    order = torch.tensor([5, 2, 7, 0, 1, 6, 3, 4])
    assert torch.equal(lock(strangers[order], [maria])[0], whole[order])
    for index in (0, 5):
        assert torch.equal(lock(strangers[index : index + 1], [maria])[0][0], whole[index])
    assert torch.equal(torch.cat([lock(part, [maria])[0] for part in strangers.split(3)]), whole)
    assert all(record.after > record.before for record in records)


def test_restoring_does_not_depend_on_time(pipeline, maria, strangers):
    restore = pipeline.parts.restorer.restore
    locked, _ = pipeline.parts.locker.lock(strangers, [maria])
    whole, _ = restore(locked, [maria])
    assert whole.shape == (8, 3, 256, 256)
    assert torch.equal(restore(locked.flip(0), [maria])[0], whole.flip(0))
    assert torch.equal(restore(locked[3:4], [maria])[0][0], whole[3])


def test_only_the_faces_region_changes(pipeline, maria, strangers):
    locked, _ = pipeline.parts.locker.lock(strangers, [maria])
    change = (locked - strangers).abs().amax(1)
    line = torch.arange(64.0)
    for frame, box in zip(change, pipeline.parts.locker.pack.detect(strangers).box, strict=True):
        margin = 0.35 * (box[2:] - box[:2])
        (x1, y1), (x2, y2) = (box[:2] - margin).tolist(), (box[2:] + margin).tolist()
        near = ((line >= y1) & (line <= y2))[:, None] & ((line >= x1) & (line <= x2))
        assert float(frame[near].max()) > 0.05
        assert float(frame[~near].max()) == 0


# ------------------------------------------------------------------ the main job


def test_the_clip_is_the_character_in_every_frame(made):
    path, report = made
    assert report.frames == 36 and probe(path).frames == 36
    figures = report.characters[0].figures
    assert figures.coverage > 0.95
    assert report.share_recognised >= 0.95, report.verdict
    assert report.characters[0].unlocked.mean.value < figures.mean.value - 0.1
    assert path.with_name("maria.report.html").stat().st_size > 10_000


def test_the_file_says_what_it_is(made):
    with av.open(str(made[0])) as container:
        said = " ".join(container.metadata.values())
    assert "AI-generated" in said and "miniature" in said and "seed" in said.lower()


OFFLINE = """
import socket, sys
def refuse(*address, **_):
    sys.exit(f"it asked the network for {address}")
socket.getaddrinfo = socket.create_connection = socket.socket.connect = socket.socket.sendto = refuse
from facelock.cli import main
main(sys.argv[1:])
"""


def test_a_clip_needs_no_network(tmp_path):
    command = ["generate", PROMPT, "--face", str(MARIA), "--seconds", "1", "-o", str(tmp_path / "clip.mp4")]
    done = subprocess.run([sys.executable, "-c", OFFLINE, *command], capture_output=True, text=True)
    assert done.returncode == 0 and (tmp_path / "clip.mp4").exists(), done.stderr[-2000:]


def test_the_same_inputs_give_the_same_frames(made, pipeline, tmp_path):
    path, _ = made
    pipeline.generate(PROMPT, MARIA, seconds=3, seed=1).save(tmp_path / "again.mp4")
    one, two = (torch.cat([c.frames for c in read_chunks(p, 24)]) for p in (path, tmp_path / "again.mp4"))
    assert torch.equal(one, two)


def test_a_longer_clip_begins_with_the_shorter_one(pipeline):
    """Chunk by chunk: what comes later changes nothing before."""
    short, long = (pipeline.generate(PROMPT, MARIA, seconds=s, seed=1) for s in (17 / 12, 29 / 12))
    first = next(iter(short)).frames
    chunks = list(long)
    assert torch.equal(first, chunks[0].frames)
    assert [c.start for c in chunks] == [0, 17]


def test_another_seed_and_no_lock_give_other_clips(pipeline):
    one, other, raw = (
        next(iter(pipeline.generate(PROMPT, MARIA, seconds=1, **options))).frames
        for options in ({"seed": 1}, {"seed": 2}, {"seed": 1, "lock": False, "restore": False})
    )
    assert float((one - other).abs().mean()) > 0.02
    assert not torch.equal(one, raw)


def test_a_finished_clip_can_be_verified(made):
    path, report = made
    again = facelock.verify(path, MARIA, device="cpu")
    assert again.kind == "verify" and again.frames == 36
    one, two = report.characters[0].figures.mean.value, again.characters[0].figures.mean.value
    assert abs(one - two) < 0.03  # what the encoder costs
    stranger = facelock.verify(path, ROOT / "samples" / "faces" / "leo.png", device="cpu")
    assert stranger.share_recognised < 0.05
