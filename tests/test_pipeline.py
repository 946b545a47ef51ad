"""The loop: what flows where, in which order, and what happens when a stage fails."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
import toys

from facelock.errors import ConfigError, DeviceError, FaceLockError, InputError
from facelock.job import Job, Span, check_size, parse_size, plan_chunks
from facelock.journal import Resume
from facelock.pipeline import Pipeline, fit, resize
from facelock.runtime import derive_seed

CAST = (toys.identity(),)
JOB = Job("a woman talking", seconds=15 / 12, seed=3)  # 15 frames: 6 + 4 + 4 + 1


def run(job=JOB, parts=None, **options):
    return list(toys.pipeline(parts).run(job, CAST, **options))


def frames_of(made):
    return torch.cat([each.chunk.frames for each in made])


def test_plan_covers_every_frame_once():
    for frames in range(1, 60):
        for first, chunk in ((6, 4), (17, 12), (1, 1)):
            spans = plan_chunks(frames, first=first, chunk=chunk)
            assert [i for span in spans for i in range(span.start, span.end)] == list(range(frames))
            assert [span.index for span in spans] == list(range(len(spans)))
            assert all(span.length <= chunk for span in spans[1:])
    assert plan_chunks(15, first=6, chunk=4)[-1] == Span(3, 14, 1)


def test_frame_count_is_exact():
    assert Job("a", 30).frame_count(Fraction(12)) == 360
    assert Job("a", 1).frame_count(Fraction(30000, 1001)) == 30
    assert Job("a", 0.2).frame_count(Fraction(12)) == 2
    with pytest.raises(InputError, match="less than one frame"):
        Job("a", 0.01).frame_count(Fraction(12))


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf"), 86401, "10", None, True])
def test_absurd_lengths(seconds):
    with pytest.raises(InputError, match="length"):
        Job("a woman", seconds).check()


@pytest.mark.parametrize("prompt", ["", "  \n", None, 7, "a\0b", "x" * 10_001, "\ud800"])
def test_empty_and_broken_prompts(prompt):
    with pytest.raises(InputError, match="prompt"):
        Job(prompt, 1).check()


@pytest.mark.parametrize("seed", [-1, 1.5, "1", 2**63, True])
def test_bad_seeds(seed):
    with pytest.raises(InputError, match="seed"):
        Job("a woman", 1, seed).check()


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("256", 256), ("1080p", 1080), (" 720P ", 720), ("480p", 480), ("540p", 540), ("1440p", 1440), ("4K", 2160),
        ("832x480", (480, 832)), ("832 × 480", (480, 832)),
    ],
)  # fmt: skip
def test_sizes_as_people_write_them(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "x", "256x", "12x12x12", "-5", "1e3", "big", "1080i", "8k", "9" * 40, "١٠٨٠"]
)
def test_sizes_that_are_none(text):
    with pytest.raises(ConfigError, match=r"Give a short side .*480p, .*4k\), or WIDTHxHEIGHT \(1920x1080\)"):
        parse_size(text)


@pytest.mark.parametrize(
    ("size", "native", "final"),
    [
        (None, (256, 256), (256, 256)),
        (128, (256, 256), (128, 128)),
        ((128, 128), (256, 256), (128, 128)),
        (1080, (2176, 3840), (1080, 1906)),  # 544x960 enlarged four times: the long side is rounded to even
        (1080, (3840, 2176), (1906, 1080)),
        (720, (1440, 2560), (720, 1280)),
        ((1080, 1920), (2176, 3840), (1080, 1920)),  # another shape: 16 of 2176 rows are cut away
        ((384, 512), (256, 256), (384, 512)),  # the most that may be cut
    ],
)
def test_sizes_that_a_recipe_can_make(size, native, final):
    assert check_size(size, native) == final == check_size(final, native)


@pytest.mark.parametrize(
    ("size", "said"),
    [
        (255, r"The size 255x255 does not fit: its sides must be even numbers\. Give 256x256, say\."),
        (
            32,
            r"The size 32x32 does not fit this recipe, which makes 256x256\. Give a short side from 64 to 512",
        ),
        (
            (717, 1279),
            "The size 1279x717 does not fit this recipe, which makes 256x256",
        ),  # not: give even numbers
        (1080, r"does not fit this recipe.*or a recipe that makes larger pictures"),
        ((0, 0), "does not fit"),
        (
            (256, 128),
            r"does not fit .*: 50% of each picture would be cut away\. .*the short side alone \(128\)",
        ),
        ((1, 2, 3), r"Give a short side in pixels, or \(height, width\)"),
        ((256.0, 256.0), r"Give a short side in pixels, or \(height, width\)"),
    ],
)
def test_sizes_that_it_cannot(size, said):
    with pytest.raises(ConfigError, match=said):
        check_size(size, (256, 256))


@pytest.mark.parametrize("size", [None, 128, (128, 128)])
def test_a_recipe_of_no_size_is_one_sentence(size):
    with pytest.raises(ConfigError, match="makes pictures of 256x0 pixels"):
        check_size(size, (0, 256))


def test_another_shape_is_cut_not_stretched():
    rows = torch.linspace(0, 1, 32)[:, None].expand(32, 64)
    frames = torch.stack([rows, rows, torch.linspace(0, 1, 64).expand(32, 64)])[None]
    made = fit(frames, (32, 48))  # the same scale: nothing but a cut of 8 columns on both sides
    assert torch.equal(made, frames[..., 8:56])
    assert fit(frames, (16, 32)).shape == (1, 3, 16, 32) and fit(frames, (32, 64)) is not None
    assert torch.equal(fit(frames, (16, 32)), resize(frames, (16, 32)))
    tall = fit(frames.transpose(2, 3), (48, 32))
    assert torch.equal(tall, frames.transpose(2, 3)[..., 8:56, :])


def test_a_clip_of_another_size_says_which():
    pipeline: Pipeline = toys.pipeline()
    clip = pipeline.generate("a woman", toys.identity(), seconds=0.5, size=16)
    assert clip.size == (16, 16) and clip.job.inputs()["size"] == [16, 16]
    clip = pipeline.generate("a woman", toys.identity(), seconds=0.5, size=(24, 32))
    assert next(iter(clip)).frames.shape[-2:] == (24, 32)


def test_chunks_in_order_with_exact_lengths():
    made = run()
    assert [(each.span.start, len(each.chunk)) for each in made] == [(0, 6), (6, 4), (10, 4), (14, 1)]
    assert all(each.chunk.frames.shape[1:] == (3, 32, 32) for each in made)
    assert all(each.chunk.fps == 12 for each in made)
    rows = [row.frame for each in made for row in each.records.ledger]
    assert rows == list(range(15))
    assert [row.frame for each in made for row in each.records.ledger_unlocked] == rows
    assert [record.frame for each in made for record in each.records.lock] == rows
    assert set(made[0].records.seconds) == {"blueprint", "lock", "restore", "judge"}
    assert made[1].records.ledger[0].residual is not None  # the seam is measured


def test_seeds_and_context_reach_the_backbone():
    parts = toys.Parts()
    made = run(parts=parts)
    seeds = [seed for seed, _ in parts.backbone.calls]
    assert seeds == [derive_seed(3, index, "blueprint") for index in range(4)]
    contexts = [context for _, context in parts.backbone.calls]
    assert contexts[0] is None
    for before, context in zip(made, contexts[1:], strict=False):
        locked_tail = before.chunk.frames[-2:, :, ::2, ::2] / 0.99
        torch.testing.assert_close(context, locked_tail)  # the locked frames, not the blueprint's


def test_no_lock_continues_from_the_raw_tail():
    parts = toys.Parts()
    made = run(Job("a woman talking", 15 / 12, 3, lock=False), parts)
    assert parts.backbone.calls[1][1].max() > 0.9 * frames_of(made)[4:6].max()
    assert all(each.records.lock == () and each.records.ledger_unlocked == () for each in made)
    raw_tail = made[0].chunk.frames[-2:, :, ::2, ::2] / 0.99
    torch.testing.assert_close(parts.backbone.calls[1][1], raw_tail)


def test_no_restore_is_the_plain_upscaler_at_the_same_size():
    plain, full = run(Job("a woman", 0.5, restore=False)), run(Job("a woman", 0.5))
    assert plain[0].chunk.frames.shape == full[0].chunk.frames.shape
    assert plain[0].records.restore == ()
    torch.testing.assert_close(plain[0].chunk.frames * 0.99, full[0].chunk.frames)


@pytest.mark.parametrize("changed", [{"seed": 4}, {"prompt": "a man"}, {"lock": False}, {"restore": False}])
def test_every_input_changes_the_clip(changed):
    from dataclasses import replace

    assert not torch.equal(frames_of(run()), frames_of(run(replace(JOB, **changed))))


def test_same_seed_same_bytes_and_zero_is_a_seed():
    assert torch.equal(frames_of(run()), frames_of(run()))
    zero = Job("a woman talking", 15 / 12, 0)
    assert torch.equal(frames_of(run(zero)), frames_of(run(zero)))


def test_a_shorter_clip_is_the_beginning_of_a_longer_one():
    assert torch.equal(frames_of(run(Job("a woman talking", 8 / 12, 3))), frames_of(run())[:8])


@pytest.mark.parametrize("chunks", [1, 2, 3, 4])
def test_resumed_equals_uninterrupted(chunks):
    whole = run()
    resumed = run(resume=Resume(chunks, whole[chunks - 1].tail))
    assert [each.span for each in resumed] == [each.span for each in whole[chunks:]]
    for one, other in zip(resumed, whole[chunks:], strict=True):
        assert torch.equal(one.chunk.frames, other.chunk.frames)
        assert one.records.ledger == other.records.ledger
        assert one.records.ledger_unlocked == other.records.ledger_unlocked


def test_the_toy_backbone_notices_one_changed_bit_of_the_context():
    whole = run()
    tail = whole[0].tail
    bent = tail.context.clone()
    bent[0, 0, 0, 0] = torch.nextafter(bent[0, 0, 0, 0], torch.tensor(2.0))
    from dataclasses import replace

    resumed = run(resume=Resume(1, replace(tail, context=bent)))
    assert not torch.equal(frames_of(resumed), frames_of(whole[1:]))


def test_context_longer_than_a_chunk():
    parts = toys.Parts(backbone=toys.Backbone(first_chunk=6, chunk=2, context=5))
    run(parts=parts)
    assert all(context.shape[0] == 5 for _, context in parts.backbone.calls[1:])


def test_size_resizes_the_final_frames():
    made = run(Job("a woman", 0.5, size=(16, 16)))
    assert made[0].chunk.frames.shape[-2:] == (16, 16)
    frames = torch.rand(2, 3, 8, 8)
    assert resize(frames, (8, 8)) is frames


def test_progress_tells_every_stage():
    seen = []
    run(progress=lambda *step: seen.append(step))
    assert seen[:4] == [("blueprint", 6, 15), ("lock", 6, 15), ("restore", 6, 15), ("judge", 6, 15)]
    assert seen[-1] == ("judge", 15, 15)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("stage", ["blueprint", "lock", "restore"])
def test_frames_that_are_no_pictures_are_found_at_once(stage, bad):
    parts, calls = toys.Parts(), []

    def poison(result):
        calls.append(1)
        frames = result[0] if isinstance(result, tuple) else result
        if len(calls) == 2:
            frames[-1, 0, 3, 3] = bad
        return result

    owner = {"blueprint": parts.backbone, "lock": parts.locker, "restore": parts.restorer}[stage]
    name = {"blueprint": "extend", "lock": "lock", "restore": "restore"}[stage]
    real = getattr(owner, name)
    setattr(owner, name, lambda *args, **kwargs: poison(real(*args, **kwargs)))
    made = []
    with pytest.raises(FaceLockError, match=f"Chunk 1 .*stage {stage}.*NaN") as caught:
        made.extend(toys.pipeline(parts).run(JOB, CAST))
    assert caught.value.exit_code == 1


def test_too_few_frames_are_an_error_of_the_stage():
    parts = toys.Parts()
    parts.backbone.extend = lambda *_, **__: torch.rand(3, 3, 16, 16)
    with pytest.raises(FaceLockError, match=r"Chunk 0 .*stage blueprint.*\(3, 3, 16, 16\)"):
        run(parts=parts)


def test_out_of_memory_is_tried_again_and_then_named():
    parts = toys.Parts()
    real, calls = parts.backbone.extend, []

    def extend(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return real(*args, **kwargs)

    parts.backbone.extend = extend
    assert torch.equal(frames_of(run(parts=parts)), frames_of(run()))
    parts.backbone.extend = lambda *_, **__: (_ for _ in ()).throw(torch.OutOfMemoryError("2 GiB"))
    with pytest.raises(DeviceError, match=r"stage blueprint: out of memory.*2 GiB.*resumes") as caught:
        run(parts=parts)
    assert caught.value.exit_code == 3


def test_equal_names_are_told_apart(tmp_path):
    pipeline = toys.pipeline()
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "maria.png").write_bytes(folder.encode())
    cast = pipeline.identities([tmp_path / "a" / "maria.png", tmp_path / "b" / "maria.png", toys.identity()])
    assert [identity.name for identity in cast] == ["maria", "maria-2", "maria-3"]


def test_an_anchor_keeps_the_first_tail_in_every_context():
    parts = toys.Parts()
    blueprint = {**toys.recipe().blueprint.model_dump(), "anchor": 0.25}
    pipeline = toys.pipeline(parts, blueprint=blueprint)
    made = list(pipeline.run(Job("a woman", 14 / 12, 3), [toys.identity()]))
    contexts = [context for _, context in parts.backbone.calls]
    first = made[0].tail.context
    assert contexts[0] is None
    assert torch.equal(contexts[1], first)  # a tail mixed with itself
    assert torch.equal(contexts[2], torch.lerp(made[1].tail.context, first, 0.25))
    assert all(torch.equal(m.tail.anchor, first) for m in made)
    resumed = list(
        pipeline.run(Job("a woman", 14 / 12, 3), [toys.identity()], resume=Resume(2, made[1].tail))
    )
    assert torch.equal(resumed[0].chunk.frames, made[2].chunk.frames)
