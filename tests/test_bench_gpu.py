"""``facelock bench gpu`` on the CPU: every line is measured, a line that fails says why, and a budget ends it."""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from facelock.bench import gpu, gpu_face_nets, gpu_faces, gpu_parts
from facelock.bench.gpu_bench import LATE, Bench, Line
from facelock.bench.gpu_sizes import FULL, TINY
from facelock.faces.device_pixels import as_bytes
from facelock.faces.pack import to_planes
from facelock.guidance import TorchEmbedder

SMALLER = dataclasses.replace(
    TINY, window=5, blueprint=(32, 32), direct=((32, 48), (48, 48)), matrix=64, chunk=(5, 1, 4)
)


@pytest.fixture
def bench() -> Bench:
    return Bench(SMALLER, torch.device("cpu"), rounds=1)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, str]:
    folder = tmp_path_factory.mktemp("gpu")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu, "TINY", SMALLER)
        results = gpu.run(device="cpu", rounds=1, out=folder)
    return results, (folder / "gpu.md").read_text()


def test_every_line_is_measured_and_says_that_it_is_the_cpu(found) -> None:
    results, text = found
    lines = [line for line in text.splitlines() if line.startswith("|")][2:]
    assert len(lines) == len(results["lines"]) > 30
    assert all("| CPU, tiny shapes |" in line for line in lines)
    assert gpu.NO_GPU in text
    without = {
        line["what"]: line["note"]
        for line in results["lines"]
        if line["warm"] is None and line["ratio"] is None
    }
    here = {"copy to the host, pinned", "the same: peak memory", "denoiser, one pass, compiled"}
    assert set(without) == here | {what for what, *_ in gpu.ELSEWHERE}
    assert all(note.startswith("not run") and ": " in note for note in without.values())
    assert not [line["what"] for line in results["lines"] if "failed" in line["note"] or line["trace"]]


def test_every_goal_has_a_line(found) -> None:
    goals = {line["goal"] for line in found[0]["lines"]}
    wanted = {
        "≤ 1.005",
        "≤ 0.015",
        "≤ 0.12",
        "≤ 0.2",
        "≥ 12",
        "≥ 4",
        "≥ 15",
        "≤ 1.02",
        "≤ 1.01",
        "≥ 0.95",
        "≤ 1.08",
    }
    assert wanted <= goals


def test_flops_are_counted(found) -> None:
    flops = {line["what"]: line["flops"] for line in found[0]["lines"]}
    assert flops["matrix product 64², float32, 1 in a row"] == 2 * 64**3
    small = flops["denoiser, one pass, 32x32, 5 frames"]
    assert 0 < small < flops["denoiser at 48x48, one pass"]
    assert flops["guided step, 8 views"] > flops["guided step, 2 faces a frame, 2 views"]
    assert flops["guided step, 2 faces a frame, 2 views"] > flops["plain step of a window"] >= small


def test_a_line_that_fails_says_why_and_the_next_is_measured(bench) -> None:
    def fails() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3 GiB.\nmore")

    bench.part("broken", lambda _: fails(), 0)
    pair = bench.compare({"good": lambda: None, "bad": fails}, keys=["a", "b"])
    whole = bench.time("whole", lambda: torch.ones(2) @ torch.ones(2), key="c")
    assert [line.what for line in bench.lines] == ["broken", "good", "bad", "whole"]
    for line in (bench.lines[0], *pair):
        assert line.note == "failed: OutOfMemoryError: CUDA out of memory. Tried to allocate 3 GiB"
        assert line.timing is None and "in fails" in line.trace
    assert whole.timing and not whole.note and bench.seconds("a") is None and bench.seconds("c")


def test_what_a_failed_line_held_is_given_back(bench) -> None:
    class Held:
        gone = False

        def __del__(self) -> None:
            Held.gone = True

    def fails() -> None:
        held = Held()  # noqa: F841 - held by the traceback alone
        try:
            raise torch.OutOfMemoryError("full")
        except torch.OutOfMemoryError as error:
            raise RuntimeError("no room") from error

    bench.time("fails", fails)
    assert Held.gone


def test_nothing_begins_that_would_end_after_the_budget(bench, monkeypatch) -> None:
    monkeypatch.setattr(Bench, "on_gpu", property(lambda _: True))
    monkeypatch.setattr(Bench, "where", "a GPU")
    bench.budget, ran = 5.0, []
    bench.time("short", lambda: ran.append("short"), cost=1, rounds=0)
    bench.time("long", lambda: ran.append("long"), cost=6)
    bench.part("part", lambda _: ran.append("part"), 6)
    assert ran == ["short"]
    assert [line.note for line in bench.lines] == ["", LATE, LATE]


def test_results_are_written_after_every_line(monkeypatch, tmp_path) -> None:
    seen = []

    def second(bench: Bench) -> None:
        seen.extend(json.loads((tmp_path / "gpu.json").read_text())["lines"])

    parts = {"first": (lambda bench: bench.add(Line("first")), 0), "second": (second, 0)}
    monkeypatch.setattr(gpu, "_parts", lambda _: parts)
    gpu.run(device="cpu", out=tmp_path)
    assert [line["what"] for line in seen] == ["first"]


def test_ratios_of_what_was_not_measured_say_so(bench) -> None:
    gpu_faces.overheads(bench, 3.0)
    assert len(bench.lines) == 6
    assert {line.note for line in bench.lines} == {"a part of it was not measured"}


def test_the_overhead_is_lock_and_restoration_over_the_window(bench, monkeypatch) -> None:
    seconds = {
        "pass": 1.0,
        "decode": 2.0,
        "tiny": 0.5,
        "lock": 0.3,
        "restore": 0.2,
        "lock host": 1.0,
        "restore host": 0.5,
    }
    monkeypatch.setattr(bench, "seconds", seconds.get)
    gpu_faces.overheads(bench, 3.0)
    assert [line.ratio for line in bench.lines] == pytest.approx(
        [0.5 / 102, 0.5 / 6, 0.5 / 4.5, 2.5 / 102, 2.5 / 6, 2.5 / 4.5]
    )


def test_direct_takes_both_arms_with_guidance_and_a_decoding(bench, monkeypatch) -> None:
    seconds = {"pass": 1.0, "decode": 4.0, "lock": 1.0, "restore": 1.0}
    monkeypatch.setattr(bench, "seconds", seconds.get)
    timing = SimpleNamespace(warm=10.0, cold=10.0)
    monkeypatch.setattr(bench, "time", lambda *_, **__: Line("", timing))
    gpu_parts.direct(bench)
    assert [line.ratio for line in bench.lines] == pytest.approx([(1000 + 6) / 106, (1000 + 9) / 106])


def test_forced_boxes_are_the_same_on_every_frame() -> None:
    faces = gpu_face_nets.forced(4, 3, (60, 90), (0.22, 0.45))
    assert faces.frame.tolist() == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
    torch.testing.assert_close(faces.box[:3], faces.box[9:])
    inside = (faces.landmarks >= faces.box[:, None, :2]) & (faces.landmarks <= faces.box[:, None, 2:])
    assert bool(inside.all()) and bool((faces.box >= 0).all()) and bool((faces.box[:, 2] <= 90).all())
    assert bool((faces.box[0::3, 2] <= faces.box[1::3, 0]).all())


def test_the_recogniser_is_read_as_arcface_and_tells_faces_apart(bench) -> None:
    embed = gpu_face_nets.recogniser(bench)
    assert isinstance(embed, TorchEmbedder) and embed.scale == 2.0
    rows = embed(torch.rand(3, 3, 112, 112))
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(3))
    assert rows.std(0).max() > 0


def test_face_networks_have_the_published_sizes() -> None:
    from facelock.nets.compact_sr import Srvgg

    with torch.device("meta"):
        swap, compact = gpu_face_nets.SwapNet(*FULL.faces.swap), Srvgg(*FULL.faces.upscaler)
    assert sum(p.numel() for p in swap.parameters()) == pytest.approx(
        138e6, rel=0.03
    )  # inswapper_128: 554 MB
    assert sum(p.numel() for p in compact.parameters()) == pytest.approx(1.21e6, rel=0.01)  # 4.9 MB


def test_bytes_made_on_a_device_are_those_that_opencv_makes() -> None:
    frame = torch.cat(
        [torch.rand(3, 33, 40), (torch.arange(120).reshape(3, 1, 40) + 0.5) / 255, torch.ones(3, 1, 40)], 1
    )
    frame[:, 0, :3] = torch.tensor([-0.1, 1.2, 0.0])
    planes = np.stack(to_planes(frame))
    assert (as_bytes(frame).numpy() == planes).all() and planes.max() == 255 and planes.min() == 0
