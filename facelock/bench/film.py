"""``facelock bench film``: what a storyboard costs beyond its shots, and whether models stay loaded.

One film of equal shots of one held-out character, without the edit: the first shot loads the models, all
others must cost a warm shot and no more.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from facelock.bench import cast
from facelock.bench.tables import number, publish, table
from facelock.protocols import Progress
from facelock.storyboard import Storyboard
from facelock.storyboards.events import Event, ShotBegan, ShotEnded, StageDone

SHOTS = 8


def run(
    *,
    seconds: float = 5.0,
    identities: int = SHOTS,
    seed: int = 0,
    out: Path | None = None,
    device: str = "auto",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """A film of ``identities`` shots (at least three) of ``seconds`` each."""
    shots = max(3, identities)
    watch = Watch(shots, progress)
    with tempfile.TemporaryDirectory() as folder:
        board = board_of(Path(folder), shots, seconds, seed)
        from facelock.storyboards.render import render

        watch.began = time.perf_counter()
        render(board, Path(folder, "film"), on_event=watch.hear, device=device)
    results = watch.results()
    rows = [
        ["all shots, s", number(results["total"], 2)],
        ["one warm shot, s", number(results["warm"], 2)],
        ["all ÷ (shots × one warm shot)", number(results["ratio"], 3)],
        ["start-up of the first shot, s", number(results["first_startup"], 2)],
        ["start-up of the second shot, s", number(results["second_startup"], 3)],
        ["second ÷ first", number(results["startup_ratio"], 3)],
    ]
    command = f"facelock bench film --seconds {seconds:g} --identities {shots}"
    return publish("film", command, table([f"{shots} shots of {seconds:g} s", ""], rows), results, out)


def board_of(folder: Path, shots: int, seconds: float, seed: int) -> Storyboard:
    """A storyboard of equal shots of the first held-out character, whose picture goes into ``folder``."""
    from PIL import Image

    who = cast.member(0)
    pixels = (cast.portrait(who)[0].permute(1, 2, 0) * 255).round().byte().numpy()
    Image.fromarray(pixels).save(folder / "face.png")
    shot = {"prompt": "{who} " + who.prompt, "seconds": seconds, "target": 0.0}
    data = {
        "schema": "facelock.storyboard.v1",
        "cast": {"who": {"face": "face.png", "look": "a"}},
        "defaults": {"seed": seed},
        "shots": [shot] * shots,
    }
    return Storyboard.from_data(data, folder)


class Watch:
    """When each shot began, had its first stage done, and ended; seconds of ``perf_counter``."""

    def __init__(self, shots: int, progress: Progress | None = None) -> None:
        self.shots, self.progress = shots, progress
        self.began = 0.0
        self.starts: list[float] = []
        self.first_stages: dict[int, float] = {}
        self.ends: list[float] = []

    def hear(self, event: Event, now: float | None = None) -> None:
        """Take the time of an event (``now`` in tests)."""
        now = time.perf_counter() if now is None else now
        if isinstance(event, ShotBegan):
            self.starts.append(now)
        elif isinstance(event, StageDone):
            self.first_stages.setdefault(len(self.starts) - 1, now)
        elif isinstance(event, ShotEnded):
            self.ends.append(now)
            if self.progress:
                self.progress("shots", len(self.ends), self.shots)

    def results(self) -> dict[str, Any]:
        """Start-up is what a shot's first stage takes longer than the median of the third and later shots'."""
        before = [self.began, *self.ends[:-1]]
        firsts = [self.first_stages[i] - before[i] for i in range(len(self.ends))]
        usual = statistics.median(firsts[2:])
        warm = statistics.median(end - start for start, end in zip(before[1:], self.ends[1:], strict=True))
        first, second = firsts[0] - usual, max(0.0, firsts[1] - usual)
        total = self.ends[-1] - self.began
        return {
            "shots": len(self.ends),
            "total": total,
            "warm": warm,
            "ratio": total / (len(self.ends) * warm),
            "first_startup": first,
            "second_startup": second,
            "startup_ratio": second / first if first > 0 else None,
        }
