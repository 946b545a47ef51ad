"""The bench of the blueprint: each of its figures follows what is put in, and can fail."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
import toys
from torch.nn import functional

from facelock.bench import blueprint, blueprint_clips, cast, frechet, slots
from facelock.bench.blueprint_clips import Sample, Shown, Window
from facelock.bench.fading import Trace, fading, slope
from facelock.bench.renders import MOUTH, SIDE, SIGNALS, SLOT, VALUES, act, named, sheets, wanted
from facelock.bench.slots import Lessons, accuracy, by_word, chance, learn
from facelock.errors import ConfigError, ModelError
from facelock.job import Job
from facelock.miniature import world
from facelock.miniature.data import ARCFACE
from facelock.miniature.parameters import HAIR_STYLES
from facelock.miniature.vocabulary import SLOTS, unknown_words
from facelock.types import Faces

# ---------------------------------------------------------------------- labels and renders


def test_every_slot_of_the_vocabulary_is_measured() -> None:
    assert set(VALUES) == (set(SLOTS) - {"accessory"}) | set(SLOTS["accessory"])


def test_what_a_prompt_names_is_what_its_clip_was_drawn_with() -> None:
    labels = wanted(60, 3)
    clips = act(labels, "heldout", 3, 3)
    assert [named(prompt) for prompt in clips.prompts] == [tuple(row) for row in labels.tolist()]
    assert not any(unknown_words(prompt) for prompt in clips.prompts)
    assert clips.frames == 3
    woman = clips.face["feminine"].view(60, 3)[:, 0] > 0.5
    assert torch.equal(woman, labels[:, SLOT["who"]] == 0)


def test_a_prompt_that_leaves_a_slot_open_has_no_label_there() -> None:
    found = dict(zip(VALUES, named("a bald man smiling"), strict=True))
    assert found["hair style"] == HAIR_STYLES.index("bald")
    assert [found[slot] for slot in ("hair colour", "head motion", "place")] == [-1, -1, -1]
    assert (found["glasses"], found["beard"], found["light"]) == (0, 0, 0)
    assert dict(zip(VALUES, named("a woman looking around"), strict=True))["head motion"] == 3
    assert dict(zip(VALUES, named("a woman"), strict=True))["beard"] == -1


def test_words_come_up_equally_often() -> None:
    labels = wanted(240, 0)
    assert labels.equal(wanted(240, 0)) and not labels.equal(wanted(240, 1))
    for slot in ("who", "glasses", "action", "head motion", "place", "light"):
        counts = torch.bincount(labels[:, SLOT[slot]])
        assert counts.max() == counts.min() == 240 // len(VALUES[slot])
        assert chance(labels, slot) == pytest.approx(1 / len(VALUES[slot]))
    women = labels[:, SLOT["who"]] == 0
    assert (labels[women, SLOT["beard"]] == -1).all() and (labels[~women, SLOT["beard"]] >= 0).all()
    assert not (labels[women, SLOT["hair style"]] == HAIR_STYLES.index("bald")).any()


def test_identities_of_the_splits_are_others() -> None:
    labels = wanted(40, 0)
    train, held_out = act(labels, "train", 1, 0), act(labels, "heldout", 1, 0)
    both = [
        torch.stack([c.face[k] for k in ("jaw", "eye_x", "nose_w", "skull_w")], 1) for c in (train, held_out)
    ]
    assert float(torch.cdist(*both).min()) > 0


def test_renders_are_the_frames_that_were_asked_for() -> None:
    clips = act(wanted(3, 0), "train", 5, 0)
    whole, some = clips.render(slice(None)), clips.render(slice(1, 3), 2)
    assert whole.shape == (3, 5, 3, 64, 64)
    torch.testing.assert_close(some, whole[1:3, ::2])
    assert clips.signals(slice(1, 3), 2).shape == (2, 3, len(SIGNALS))


# ---------------------------------------------------------------------- the classifier


def test_chance_is_of_those_with_a_label() -> None:
    labels = torch.full((8, 9), -1)
    assert chance(labels, "place") == 0
    labels[:5, SLOT["place"]] = torch.tensor([0, 1, 1, 1, 2])
    assert chance(labels, "place") == pytest.approx(0.6)


def test_accuracy_leaves_out_what_has_no_label() -> None:
    labels, read = torch.zeros(4, 9, dtype=torch.long), torch.zeros(4, 9, dtype=torch.long)
    labels[:, SLOT["action"]] = torch.tensor([0, 1, 1, -1])
    found = accuracy(read, labels, "action")
    assert found.value == pytest.approx(1 / 3)
    assert found.low is not None and 0 <= found.low < 1 / 3 < found.high <= 1
    assert by_word(read, labels, "action") == {"silent": 1.0, "talking": 0.0}
    assert accuracy(read, labels - 1, "place").value is None


def test_wilsons_interval() -> None:
    """Wilson 1927: 9 of 10 lies between .596 and .982."""
    found = slots.share(torch.tensor([True] * 9 + [False]))
    assert (found.low, found.high) == (pytest.approx(0.596, abs=1e-3), pytest.approx(0.982, abs=1e-3))
    assert slots.share(torch.ones(5, dtype=torch.bool)).high == 1.0


def painted(count: int, seed: int) -> Lessons:
    """Clips in which the frame's hue is the place, and a mouth that opens and shuts the action."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.full((count, 9), -1)
    place, moves, phase = (torch.randint(n, (count,), generator=g) for n in (3, 2, 2))
    labels[:, SLOT["place"]], labels[:, SLOT["action"]] = place, moves
    frames = 0.2 + 0.1 * torch.rand(count, 4, 3, 64, 64, generator=g)
    frames[torch.arange(count), :, place] += 0.4
    wide = torch.where(moves[:, None] == 1, (torch.arange(4) + phase[:, None]) % 2, phase[:, None]).bool()
    frames[..., 34:46, 26:38][wide] = 1.0
    points = (torch.tensor(ARCFACE) * 0.36 + torch.tensor([11.8, 7.0])).expand(count * 4, 5, 2)
    drawn = sheets(frames.flatten(0, 1), points).view(count, 4, 3, SIDE + MOUTH, SIDE)
    signals = torch.zeros(count, 4, len(SIGNALS))
    signals[..., list(SIGNALS).index("open")] = wide.float()
    return Lessons(drawn, labels, signals, drawn[:, :1], labels, signals[:, :1])


def test_the_classifier_learns_what_is_seen_and_what_takes_time() -> None:
    told: list[int] = []
    reader = learn(painted(64, 0), 0, epochs=4, told=told.append)
    test = painted(60, 1)
    read = reader.read(test.clips)
    assert told == [1, 2, 3, 4]
    assert accuracy(read, test.labels, "place").value > 0.9
    assert accuracy(read, test.labels, "action").value > 0.9
    still = test.clips[:, :1].expand(-1, 4, -1, -1, -1)
    assert accuracy(reader.read(still), test.labels, "action").value < 0.7  # a single frame does not tell
    assert reader.describe(test.clips).shape == (60, 4, slots.FEATURES)
    torch.testing.assert_close(reader.describe(test.clips)[7:9], reader.describe(test.clips[7:9]))


def test_a_mirror_turns_the_signals_that_have_a_side() -> None:
    sheet = torch.zeros(2, 3, SIDE + MOUTH, SIDE)
    sheet[..., :SIDE, :] = torch.linspace(0, 1, SIDE)
    seen = set()
    for seed in range(8):
        torch.manual_seed(seed)
        varied, _, signals = slots._varied(sheet, torch.zeros(2, 9), torch.ones(2, len(SIGNALS)))
        mirrored = bool(varied[0, 0, 5, 5] > varied[0, 0, 5, 58])
        signs = dict(zip(SIGNALS, signals[0].tolist(), strict=True))
        side = -1 if mirrored else 1
        assert (
            signs["yaw"] == signs["roll"] == signs["gaze_x"] == side and signs["open"] == signs["pitch"] == 1
        )
        seen.add(mirrored)
    assert seen == {False, True}


def test_a_sheet_holds_the_mouth_upright_and_nothing_without_a_face() -> None:
    clips = act(wanted(2, 1), "heldout", 1, 1)
    frames = clips.render(slice(None))[:, 0]
    points, _ = world.landmarks(clips.face, clips.now, SIDE)
    drawn = sheets(frames, torch.stack([points[0], torch.full((5, 2), torch.nan)]))
    assert drawn.shape == (2, 3, SIDE + MOUTH, SIDE) and drawn.dtype == torch.uint8
    assert torch.equal(drawn[:, :, :SIDE], (frames * 255).round().byte())
    assert drawn[0, :, SIDE:, :MOUTH].float().std() > 5 and not drawn[1, :, SIDE:].any()
    turned = sheets(frames[:1].flip(-1).flip(-2), SIDE - 1 - points[:1])  # upside down, as are its landmarks
    error = (turned[0, :, SIDE:].int() - drawn[0, :, SIDE:].int()).abs().float().mean()
    assert error < 2


# ---------------------------------------------------------------------- distances


def test_frechet_of_known_gaussians() -> None:
    g = np.random.default_rng(0)
    one, other = (g.normal(size=(40000, 3)) for _ in range(2))
    assert frechet.between(frechet.moments(one), frechet.moments(other)) == pytest.approx(0, abs=1e-3)
    moved = frechet.between(frechet.moments(one + np.array([1.0, 2.0, 0.0])), frechet.moments(other))
    assert moved == pytest.approx(5, rel=0.02)
    # tr(4 + 1 - 2·2) in each of three dimensions
    wider = frechet.between(frechet.moments(2 * one), frechet.moments(other))
    assert wider == pytest.approx(3, rel=0.02)
    a, b = np.array([[2.0, 1.0], [1.0, 2.0]]), np.array([[3.0, -1.0], [-1.0, 1.0]])
    root = np.sqrt(np.linalg.eigvals(a @ b)).sum()
    exact = frechet.between((np.zeros(2), a), (np.zeros(2), b))
    assert exact == pytest.approx(np.trace(a + b) - 2 * root.real)
    assert exact == pytest.approx(frechet.between((np.zeros(2), b), (np.zeros(2), a)))


def test_the_distance_has_no_scale_and_takes_few_samples() -> None:
    g = np.random.default_rng(1)
    truth, made = g.normal(size=(300, 4)), g.normal(size=(300, 4)) + 0.5
    assert frechet.distance(7 * made, 7 * truth) == pytest.approx(frechet.distance(made, truth), rel=1e-6)
    few = frechet.distance(g.normal(size=(3, 8)), g.normal(size=(3, 8)))
    assert math.isfinite(few) and few > 0


def test_a_ladder_is_measured_by_its_base() -> None:
    g = np.random.default_rng(2)
    truth = [g.normal(size=(4, 2)) for _ in range(30)]
    off = {"far": 2.0, "near": 1.0}
    arms = {name: [clip + shift for clip in truth] for name, shift in off.items()}
    found = frechet.ladder(arms, truth, "near")
    assert found["far"]["ratio"] == pytest.approx(4, rel=0.01)
    assert found["near"]["ratio"] == 1 and found["near"]["deviation"] is None
    assert 0 < found["far"]["deviation"] < 2 and found["far"]["samples"] == 120


# ---------------------------------------------------------------------- long clips


def still(count: int) -> torch.Tensor:
    picture = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0))
    return picture.expand(count, 3, 32, 32).clone()


def test_a_clip_that_stays_does_not_fade() -> None:
    found = fading(Trace.of(still(90)), 3.0)
    assert found["levels"] == found["delta_e"] == 0
    assert found["chroma"] == found["sharpness"] == 1
    assert found["lightness_slope"] == pytest.approx(0, abs=1e-9)


def test_a_ramp_of_colour_is_measured_in_levels() -> None:
    """Every level of brightness goes up by 60 in a minute; ends of 10 s lie 50 s apart."""
    frames = (80 + torch.arange(180) / 3.0).view(-1, 1, 1, 1).expand(-1, 3, 8, 8) / 255
    found = fading(Trace.of(frames), 3.0)
    assert found["levels"] == pytest.approx(50, abs=0.1)
    assert found["delta_e"] == pytest.approx(found["lightness_slope"] * 50 / 60, rel=0.03)
    assert found["lightness_slope"] > 15
    assert found["sharpness"] == pytest.approx(0, abs=1e-6) or found["sharpness"] == pytest.approx(1, abs=0.5)


def test_blur_and_grey_are_seen() -> None:
    frames = still(90)
    grey = torch.lerp(frames, frames.mean(1, keepdim=True), torch.linspace(0, 1, 90).view(-1, 1, 1, 1))
    found = fading(Trace.of(grey), 3.0)
    assert found["chroma"] < 0.4 and found["chroma_slope"] < 0
    frames[60:] = functional.avg_pool2d(functional.pad(frames[60:], [1] * 4, mode="replicate"), 3, 1)
    found = fading(Trace.of(frames), 3.0)
    assert found["sharpness"] < 0.5 and found["sharpness_slope"] < 0


def test_a_place_that_changes_is_seen_where_the_mean_stays() -> None:
    frames = torch.zeros(30, 3, 16, 16)
    frames[:15, :, :8], frames[15:, :, 8:] = 1.0, 1.0
    found = fading(Trace.of(frames), 1.0)
    assert found["levels"] == pytest.approx(0, abs=1e-6) and found["delta_e"] > 90


def test_traces_join_and_slopes_are_per_minute() -> None:
    frames = torch.rand(7, 3, 16, 16)
    joined = Trace.joined([Trace.of(frames[:3]), Trace.of(frames[3:])])
    for name in ("rgb", "lab", "sharpness"):
        np.testing.assert_allclose(getattr(joined, name), getattr(Trace.of(frames), name))
    assert slope(np.arange(10.0), 2.0) == pytest.approx(120)


def test_a_locked_chain_is_the_pipelines_and_an_unlocked_one_goes_on_by_itself() -> None:
    anchored = toys.recipe()
    anchored = anchored.model_copy(
        update={"blueprint": anchored.blueprint.model_copy(update={"anchor": 0.5})}
    )
    pipeline = toys.pipeline()
    pipeline.recipe = anchored
    who, backbone = toys.identity(), pipeline.parts.backbone
    job = Job("a woman", 14 / 12, 5, None, True, False)
    locked = list(blueprint_clips.chained(pipeline, job, [who]))
    ours = [(made.span.length, made.tail.context) for made in pipeline.run(job, [who])]
    assert [len(chunk) for chunk in locked] == [length for length, _ in ours] == [6, 4, 4]
    assert all(torch.equal(c[-2:], context) for c, (_, context) in zip(locked, ours, strict=True))
    backbone.calls.clear()
    free = list(blueprint_clips.chained(pipeline, Job("a woman", 14 / 12, 5, None, False, False), [who]))
    assert [context is None for _, context in backbone.calls] == [True, False, False]
    for chunk, (_, context) in zip(free[:-1], backbone.calls[1:], strict=True):
        torch.testing.assert_close(context, chunk[-2:])  # its own last frames, and no anchor


# ---------------------------------------------------------------------- the whole


POINTS = torch.tensor(ARCFACE)[None] * 0.36 + 11


class Pack:
    """A face in every frame but the first, embedded by its colours."""

    def detect(self, frames: torch.Tensor) -> Faces:
        n = len(frames) - 1
        box = torch.tensor([[10.0, 10.0, 50.0, 50.0]]).repeat(n, 1)
        return Faces(torch.arange(1, n + 1), box, POINTS.repeat(n, 1, 1), torch.ones(n))

    def embed(self, frames: torch.Tensor, faces: Faces) -> torch.Tensor:
        return frames[faces.frame].mean((2, 3))


class Oracle(toys.Backbone):
    """Shows what the prompt names, and forgets the place at few steps; its autoencoder loses nothing."""

    def __init__(self) -> None:
        super().__init__(size=(64, 64), first_chunk=17, chunk=12, context=5)
        self.steps = 8
        self.seen: list[int] = []
        self.drawn: dict[tuple[str, bool], torch.Tensor] = {}

    def extend(self, prompt, context, *, seed, references=()):
        self.seen.append(self.steps)
        key = (prompt, self.steps < 6)
        if key not in self.drawn:
            labels = torch.tensor([named(prompt)])
            labels[:, SLOT["place"]] *= self.steps >= 6
            self.drawn[key] = act(labels, "heldout", 17, 0).render(slice(None))[0]
        return self.drawn[key][-17 if context is None else -12 :]

    def reconstruct(self, frames):
        return frames


@pytest.fixture
def oracle(monkeypatch: pytest.MonkeyPatch) -> Oracle:
    parts = toys.Parts(backbone=Oracle())
    parts.judge.pack = Pack()
    pipeline = toys.pipeline(parts)
    low = pipeline.recipe.blueprint.model_copy(update={"steps": 8})
    pipeline.recipe = pipeline.recipe.model_copy(update={"blueprint": low})
    for module in (blueprint, blueprint_clips):
        monkeypatch.setattr(module, "pipeline_of", lambda *_: pipeline)
    monkeypatch.setattr(cast, "identity", lambda who, parts: toys.identity(who.name))
    monkeypatch.setattr(blueprint_clips, "_reference", lambda device: toys.identity())
    monkeypatch.setattr(blueprint_clips, "DECODED", 2)
    monkeypatch.setattr(blueprint_clips, "ACTED", 2)
    monkeypatch.setattr(blueprint_clips, "PLAIN", 2)
    return parts.backbone


def test_the_bench_shows_every_table(oracle: Oracle, tmp_path) -> None:
    told = []
    found = blueprint.run(
        seconds=2, identities=2, out=tmp_path, device="cpu", against=tmp_path, jobs=1,
        sizes=blueprint.Sizes(1, 1), progress=lambda *step: told.append(step),
    )  # fmt: skip
    assert {what for what, done, count in told if done == count} == {
        "true renders", "classifier", "prompts", "long clips"
    }  # fmt: skip
    assert set(oracle.seen) == {4, 6, 8, 30} and oracle.steps == 8
    assert list(found["slots"]) == list(VALUES) and list(found["stillness"]) == [
        "true",
        "blueprint",
        "against",
    ]
    assert (
        list(found["fading"])[1:3] == ["blueprint, locked", "blueprint, unlocked"]
        and len(found["fading"]) == 5
    )
    stored, text = (
        json.loads((tmp_path / "blueprint.json").read_text()),
        (tmp_path / "blueprint.md").read_text(),
    )
    command = f"facelock bench blueprint --seconds 2 --identities 2 --seed 0 --against {tmp_path}"
    assert stored["command"] == command
    for word in ("hair colour (≥ 90% wanted)", "against, unlocked", "÷ 30 steps", "other true renders", "ΔE"):
        assert word in text
    samples = found["frechet"]["against"]["judge"]["4 steps"]["samples"]
    assert samples == 2 * 4  # four of five frames have a face


def window(place: int, faces: float = 0.0) -> Window:
    """A window that shows a place, and faces that lie so far off."""
    g = np.random.default_rng(place)
    return Window(torch.full((9, 3, SIDE + MOUTH, SIDE), place).byte(), g.normal(size=(4, 2)) + faces)


class Reader:
    """Reads the place that a window shows."""

    def read(self, clips: torch.Tensor) -> torch.Tensor:
        return clips[:, 0, 0, 0, :1].long().expand(-1, 9)

    def describe(self, clips: torch.Tensor) -> torch.Tensor:
        return clips.float()[:, :, :, 0, 0]


def test_figures_set_what_was_made_beside_what_was_named() -> None:
    labels = (torch.arange(8) % 2)[:, None].expand(-1, 9)
    shows = [window(int(row[0])) for row in labels]
    wrong = [window(3, faces=2.0) for _ in labels]
    still = {"blueprint": {"value": 0.5}, "true": {"value": 1.0}}
    samples = [
        Sample((w, w), {"blueprint": Shown({8: w, 4: bad}, (w, bad))}, still)
        for w, bad in zip(shows, wrong, strict=True)
    ]
    fadings = [{"true renders": {"levels": 1.0}}, {"true renders": {"levels": 3.0}}]
    found = blueprint.figures(Reader(), samples, fadings, labels, (8, 4))
    place = found["slots"]["place"]
    assert place["chance"] == 0.5 and place["true"]["value"] == 1.0
    assert place["blueprints"]["blueprint"]["decoded"]["value"] == 0.5
    assert place["blueprints"]["blueprint"]["made"]["value"] == 1.0
    few = blueprint.figures(Reader(), samples, fadings, labels, (4, 8))
    assert few["slots"]["place"]["blueprints"]["blueprint"]["made"]["value"] == 0.0
    assert found["stillness"]["blueprint"]["value"]["value"] == pytest.approx(0.5)
    assert found["fading"] == {"true renders": {"levels": 2.0}}
    ladder = found["frechet"]["blueprint"]["judge"]
    assert ladder["8 steps"]["distance"] == pytest.approx(0, abs=1e-6) and ladder["4 steps"]["distance"] > 1


def test_a_prompt_is_rendered_and_made(oracle: Oracle) -> None:
    work = {"prompts": 4, "steps": (8, 4), "seed": 0, "models": (None,), "device": "cpu"}
    one, other = (blueprint_clips.one_prompt(index, **work) for index in (0, 1))
    assert one.stillness.keys() == {"blueprint", "true"} and other.stillness == {}
    shown = one.shown["blueprint"]
    assert list(shown.windows) == [8, 4]
    assert shown.decoded[0].sheets.equal(one.truth[0].sheets)  # this autoencoder loses nothing
    assert not one.truth[0].sheets.equal(one.truth[1].sheets)
    assert shown.windows[8].faces.shape == (4, 3)  # the pack misses the first of five


def test_motion_is_a_ratio_of_variances() -> None:
    found = blueprint._stillness([{"value": 0.5, "yaw": None}, {"value": 2.0, "yaw": 4.0}, None])
    assert found["value"]["value"] == pytest.approx(1)
    assert found["yaw"]["value"] == pytest.approx(4)
    assert blueprint._stillness([None]) == {}


def test_what_cannot_be_measured_is_refused(tmp_path) -> None:
    with pytest.raises(ConfigError, match="at least 2 prompts"):
        blueprint.run(identities=1)
    with pytest.raises(ConfigError, match="--seconds 2"):
        blueprint.run(seconds=1)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError):
        blueprint.run(identities=2, against=tmp_path / "empty", device="cpu", jobs=1)
