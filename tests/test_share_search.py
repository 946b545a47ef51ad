"""How much of a restored face is kept: the search alone with known curves, and inside of the loop."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

import pytest
import torch
from test_closed_loop import ENCODER, GREEN, RED, SIDE, Pack, Restorer, Upscaler, clip, person
from torch import Tensor

from facelock.geometry import INSWAPPER128
from facelock.restore_loop import RestoreLoop
from facelock.share_search import Bisection, Ladder, Search
from facelock.types import CropSpec


def run(search: Search, score, agrees, plain: Tensor) -> tuple[Tensor, Tensor, list[int]]:
    """Search with the curves ``score(share)`` and ``agrees(share)``; the shares kept, their scores, tries per step."""
    best, share, tries = plain.clone(), torch.zeros(len(plain)), []
    faces, asked = search.next()
    while len(faces):
        tries.append(len(faces))
        told = torch.stack([score(i, s) for i, s in zip(faces.tolist(), asked, strict=True)])
        holds = torch.tensor([bool(agrees(i, s)) for i, s in zip(faces.tolist(), asked, strict=True)])
        good = search.tell(faces, told, holds, best[faces])
        best[faces[good]], share[faces[good]] = told[good], asked[good]
        faces, asked = search.next()
    return share, best, tries


def bisection(plain, target=0.5, tolerance=0.0, steps=7) -> Bisection:
    return Bisection(plain, target=target, tolerance=tolerance, steps=steps)


@pytest.mark.parametrize("steps", [1, 4, 8])
def test_the_largest_share_that_costs_no_more_than_the_tolerance(steps):
    """Similarity falls linearly from .9, by .4 over the whole: .1 of tolerance is a quarter."""
    plain = torch.tensor([0.9])
    share, best, tries = run(
        bisection(plain, tolerance=0.10001, steps=steps), lambda i, s: 0.9 - 0.4 * s, lambda i, s: True, plain
    )
    assert 0.25 - 2**-steps <= float(share) <= 0.25
    assert tries == [1] * (steps + 1)
    assert not float(share) or float(best) > 0.7999


def test_the_target_is_never_undercut_whatever_the_tolerance():
    plain = torch.tensor([0.9])
    share, best, _ = run(
        bisection(plain, target=0.69999, tolerance=0.9), lambda i, s: 0.9 - 0.4 * s, lambda i, s: True, plain
    )
    assert 0.49 < float(share) <= 0.5 and float(best) > 0.6999


def test_data_consistency_bounds_the_share():
    plain = torch.tensor([0.4, 0.4])
    limit = (0.3, 0.71)
    share, best, _ = run(
        bisection(plain, target=0.5), lambda i, s: 0.4 + 0.5 * s, lambda i, s: s <= limit[i], plain
    )
    assert all(limit[i] - 1 / 128 <= float(share[i]) <= limit[i] for i in range(2))
    assert float(best[0]) >= 0.5


def test_a_face_that_needs_some_restoring_to_be_itself_finds_the_upper_end():
    """Identity holds from .4 on, consistency up to .6: the search climbs past the lower bound to the upper."""
    plain = torch.tensor([0.3])
    share, *_ = run(bisection(plain, target=0.5), lambda i, s: 0.3 + 0.5 * s, lambda i, s: s <= 0.6, plain)
    assert 0.6 - 1 / 128 <= float(share) <= 0.6


def test_what_improves_a_face_short_of_the_target_is_kept_for_want_of_better():
    plain = torch.tensor([0.3])
    share, best, _ = run(
        bisection(plain, target=0.8), lambda i, s: 0.3 + 0.2 * s, lambda i, s: s <= 0.5, plain
    )
    assert 0.5 - 1 / 128 <= float(share) <= 0.5 and 0.39 < float(best) < 0.4001
    share, best, tries = run(
        bisection(plain, target=0.8), lambda i, s: 0.3 + 0.2 * s, lambda i, s: True, plain
    )
    assert float(share) == 1 and tries == [1]


def test_a_share_that_holds_is_not_given_up_for_one_that_is_only_better_than_the_plain_face():
    """Similarity peaks at .55: the target holds from .35 to .65, everything up to .9 is better than the plain face."""
    plain, curve = torch.tensor([0.3]), lambda i, s: 0.6 - abs(s - 0.55) * 1.0
    peak = lambda i, s: curve(i, s) if s < 0.9 else torch.tensor(0.1)  # noqa: E731
    share, best, _ = run(bisection(plain, target=0.5), peak, lambda i, s: True, plain)
    assert 0.65 - 1 / 128 <= float(share) <= 0.65 and float(best) >= 0.5


def test_nothing_is_kept_where_nothing_holds():
    plain = torch.tensor([0.9, 0.9, 0.3])
    share, best, _ = run(
        bisection(plain, tolerance=0.001, steps=4),
        lambda i, s: torch.tensor(float("nan")) if i == 1 else plain[i] - 0.2,
        lambda i, s: True,
        plain,
    )
    assert share.tolist() == [0, 0, 0] and torch.equal(best, plain)


def test_faces_that_are_done_are_not_tried_again():
    plain = torch.tensor([0.9, 0.9])
    share, _, tries = run(
        bisection(plain, steps=3), lambda i, s: 0.9 + (0.05 if i else -0.1) * s, lambda i, s: True, plain
    )
    assert share.tolist() == [0, 1] and tries == [2, 1, 1, 1]


def test_a_face_does_not_depend_on_the_others():
    plain = torch.rand(20, generator=torch.Generator().manual_seed(1))
    falls = torch.rand(20, generator=torch.Generator().manual_seed(2)) - 0.3
    curve = lambda order: lambda i, s: plain[order[i]] - falls[order[i]] * s  # noqa: E731
    order = torch.randperm(20, generator=torch.Generator().manual_seed(3))
    every = torch.arange(20)
    whole, *_ = run(bisection(plain, tolerance=0.1), curve(every), lambda i, s: s < 0.9, plain)
    mixed, *_ = run(bisection(plain[order], tolerance=0.1), curve(order), lambda i, s: s < 0.9, plain[order])
    assert torch.equal(mixed, whole[order]) and len(set(whole.tolist())) > 5
    one, *_ = run(bisection(plain[7:8], tolerance=0.1), curve(every[7:8]), lambda i, s: s < 0.9, plain[7:8])
    assert torch.equal(one, whole[7:8])


def test_a_ladder_stops_at_the_first_share_that_reaches_the_target():
    plain = torch.tensor([0.5, 0.5, 0.5])
    curves = (lambda s: 0.5 + 0.4 * s, lambda s: 0.5 + 0.1 * s, lambda s: 0.9 - 0.5 * s)
    share, _, tries = run(
        Ladder((1.0, 0.5, 0.25), plain, target=0.7), lambda i, s: curves[i](s), lambda i, s: True, plain
    )
    assert share.tolist() == [1, 1, 0.25] and tries == [3, 2, 2]
    none = Ladder((), plain, target=0.7)
    assert len(none.next()[0]) == 0


# ------------------------------------------------------------------ in the loop


def loop(restorer, **changes) -> RestoreLoop:
    options = {"ladder": (1.0, 0.5), "target": 0.2, "consistency": 1.0, "search": "bisect"} | changes
    return RestoreLoop(Pack(), Upscaler(), restorer, **options)


def test_the_share_found_is_the_largest_that_holds():
    """The toy restorer leads away from red: the share found holds, and a little more of it does not."""
    frames, cast = clip(3, RED), [person("red", RED)]
    away = Restorer(mix=0.6, paint=GREEN)
    out, records = loop(away, tolerance=0.05, steps=6).restore(frames, cast)
    for frame, record in enumerate(records):
        assert 0 < record.share < 1 and record.rung > 0 and record.met
        assert record.after >= record.before - 0.05
        more = loop(away, ladder=(record.share + 2**-6,), target=-1, search="ladder")
        more.target = -1.0
        _, (next_one,) = loop(away, tolerance=0.05, steps=0).restore(frames[frame : frame + 1], cast)
        assert next_one.share == 0, "the whole of it does not hold"
        assert _score(away, frames[frame : frame + 1], record.share + 2**-6) < record.before - 0.05
    assert not torch.equal(out, Upscaler().upscale(frames))


def _score(restorer, frames, share) -> float:
    """Similarity of a single frame with exactly ``share`` of the restorer in it."""
    one = loop(restorer)
    work = one.take(one.upscaler.upscale(frames), [person("red", RED)])
    index = torch.tensor([0])
    crops, _ = one._candidates(
        work, restorer.restore(work.crops, work.reference), index, torch.tensor([share])
    )
    return float(one.embed(work, one.paste(work, crops, index), index) @ RED)


def test_consistency_bounds_what_is_kept_of_a_face():
    frames, cast = clip(2, GREEN), [person("red", RED)]
    _, free = loop(Restorer(mix=0.9)).restore(frames, cast)
    assert all(r.share == 1 and r.rung == 0 for r in free)
    limit = free[0].consistency / 3
    _, bound = loop(Restorer(mix=0.9), consistency=limit, steps=6, target=-1.0).restore(frames[:1], cast)
    assert 1 / 3 - 2**-5 < bound[0].share <= 1 / 3 + 1e-6 and bound[0].consistency <= limit


def test_a_face_that_cannot_be_restored_stays_as_it_was_enlarged():
    frames, cast = clip(2, RED), [person("red", RED)]
    out, records = loop(Restorer(mix=0.9, paint=GREEN), tolerance=0.0, steps=3).restore(frames, cast)
    assert torch.equal(out, Upscaler().upscale(frames))
    assert all((r.rung, r.share, r.consistency) == (-1, 0, 0) and r.after == r.before for r in records)


def test_bisecting_is_a_function_of_each_frame_alone():
    frames, cast = clip(20, RED), [person("red", RED)]
    restore = loop(Restorer(mix=0.6, paint=GREEN), tolerance=0.05).restore
    whole, records = restore(frames, cast)
    assert len({r.share for r in records}) > 2
    flipped, back = restore(frames.flip(0), cast)
    assert torch.equal(flipped, whole.flip(0)) and [r.share for r in back] == [r.share for r in records][::-1]
    for cut in (1, 3, 17):
        assert torch.equal(torch.cat([restore(part, cast)[0] for part in frames.split(cut)]), whole)


@dataclass
class Graded:
    """A restorer with a weight of its own: it paints red, by the square of what it is allowed."""

    asked: list[float] = field(default_factory=list)
    crop: CropSpec = INSWAPPER128
    encoder: str = ENCODER
    graded: bool = True

    def restore(self, crops: Tensor, identity: Tensor) -> Tensor:
        raise AssertionError("a graded restorer is asked for a share")

    def restore_by(self, crops: Tensor, identity: Tensor, shares: Tensor) -> Tensor:
        self.asked += shares.tolist()
        mix = shares.square()[:, None, None, None]
        return crops * (1 - mix) + mix * GREEN.view(3, 1, 1)


@pytest.mark.parametrize("search", ["bisect", "ladder"])
def test_a_weight_of_the_restorer_is_searched_in_place_of_a_blend(search):
    net = Graded()
    ladder = (1.0, 0.25)
    _, (record,) = loop(net, tolerance=0.05, search=search, ladder=ladder).restore(
        clip(1, RED), [person("red", RED)]
    )
    if search == "ladder":
        assert net.asked == list(ladder) and record.share == 0
    else:
        assert net.asked[:2] == [1.0, 0.5] and record.share in net.asked


def test_faces_that_are_no_number_stay_and_are_told(caplog):
    @dataclass
    class Half(Restorer):
        def restore(self, crops: Tensor, identity: Tensor) -> Tensor:
            out = super().restore(crops, identity)
            out[1] = float("nan")
            return out

    frames, cast = clip(3), [person("red", RED)]
    for search in ("ladder", "bisect"):
        caplog.clear()
        half = loop(Half(), search=search, target=0.99)
        with caplog.at_level(logging.WARNING, "facelock"):
            half.restore(frames, cast)
            out, records = half.restore(frames, cast)
        assert half.not_finite == 2
        assert [r.rung for r in records] == [0, -1, 0] and bool(out.isfinite().all())
        assert torch.equal(out[1], Upscaler().upscale(frames)[1])
        assert caplog.text.count("the restorer gave NaN or infinity for 1 faces: they stay as they came") == 1
    one = loop(Half())
    work = one.take(one.upscaler.upscale(frames), cast)
    restored, index = one.restorer.restore(work.crops, work.reference), torch.arange(3)
    crops, finite = one._candidates(work, restored, index, torch.ones(3))
    assert finite.tolist() == [True, False, True] and torch.equal(crops[1], work.crops[1])


def test_faces_beside_each_other_do_not_weigh_on_each_other():
    def weights(*places):
        one = RestoreLoop(Pack(places), Upscaler(), Restorer(), ladder=(1.0,), target=1, consistency=1)
        work = one.take(
            one.upscaler.upscale(clip(1)), [person("red", RED), person("green", GREEN)][: len(places)]
        )
        return [at.weight for at in one._patches(work, torch.arange(len(work.faces)))]

    left, right = (0.4, 0.5), (0.6, 0.5)
    both, alone = weights(left, right), weights(left) + weights(right)
    assert len(both) == 2 and all(any(torch.equal(a, b) for b in alone) for a in both)


def test_what_a_face_covers_is_what_is_pasted():
    """The distance looks at the face's own pixels; at the border, at scale one, and outside of the frame too."""
    for places in (((0.5, 0.5),), ((0.02, 0.98),)):
        one = RestoreLoop(Pack(places), Upscaler(), Restorer(), ladder=(1.0,), target=1, consistency=1)
        frames = clip(1)
        work = one.take(one.upscaler.upscale(frames), [person("red", RED)])
        (at,) = one._patches(work, torch.tensor([0]))
        blank, index = torch.zeros_like(work.frames), torch.tensor([0])
        work.frames = blank
        full = one.paste(work, torch.ones_like(work.crops), index)
        weight = torch.nn.functional.avg_pool2d(full, 2)[0].double()
        assert torch.equal(weight[:, at.rows, at.columns], at.weight)
        weight[:, at.rows, at.columns] = 0
        assert float(weight.max()) == 0
        assert at.rows.stop <= SIDE and at.columns.stop <= SIDE
