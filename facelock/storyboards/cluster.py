"""The engine ``ray``: long-lived actors, one per GPU or CPU core, that make takes on a shared folder.

An actor keeps its models from shot to shot. All state lies on the disk: a take is an idempotent unit under its
own lock, so that a lost worker's take is simply given out again and goes on within its chunk. Only this
process writes ``film.json``. Needs ``ray`` (extra ``cluster``).
"""

from __future__ import annotations

import importlib.util
import logging
import os
import socket
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from facelock.errors import ConfigError, EnvironmentFailure, FaceLockError, OutputBusyError
from facelock.storyboard import Storyboard
from facelock.storyboards.events import ChunkMade, Event, OnEvent
from facelock.storyboards.film import FilmFolder, Take
from facelock.storyboards.plan import Plan
from facelock.storyboards.render import Cluster, ShotLoop, by_recipe
from facelock.storyboards.takes import Build, Pace, Worker

logger = logging.getLogger(__name__)

RESTARTS = 20
"""Times that a worker may be lost before its take counts as failed."""
LISTEN = 0.2
"""Seconds between two looks at what the workers tell."""
REACH = 5.0
"""Seconds that a cluster may take to answer."""
BUSY_WAIT = 0.5
BUSY_TRIES = 7200
"""An hour for another worker to finish the same take."""


class Actor:
    """What runs in each process: a :class:`Worker` whose events go to the queue of that name.

    A name, not the queue itself: Ray warns of handles that a restarted actor may not find again.
    """

    def __init__(
        self,
        data: dict[str, Any],
        folder: str,
        film: str,
        device: str,
        queue: str,
        build: Build | None,
        vram: Mapping[str, int | None],
    ) -> None:
        board = Storyboard.from_data(data, folder)
        self.plan = Plan.of(board).planned(vram)
        self._queue_name = queue
        self._queue: Any = None
        self.worker = Worker(board, FilmFolder(film), self._tell, device, build)

    def base(self, index: int) -> str | None:
        """See :meth:`Worker.base`."""
        return self.worker.base(self.plan.units[index])

    def make(self, index: int, number: int) -> Take:
        """See :meth:`Worker.make`; the same take in another worker is waited for."""
        unit = self.plan.units[index]
        pace = Pace(total=unit.frames)
        for _ in range(BUSY_TRIES):
            try:
                return self.worker.make(unit, number, pace, len(self.plan.units))
            except OutputBusyError:
                time.sleep(BUSY_WAIT)
        raise OutputBusyError(f"{unit.name}: another worker does not finish it. Stop that one first.")

    def _tell(self, event: Event) -> None:
        import ray

        self._queue = self._queue or ray.get_actor(self._queue_name)
        ray.get(self._queue.put.remote(event))


def make_on_cluster(
    plan: Plan, film: FilmFolder, tell: OnEvent, cluster: Cluster, build: Build | None = None
) -> None:
    """Make every shot of ``plan`` on Ray actors; ``film`` must be held and lie where all of them see it.

    Raises ``EnvironmentFailure`` without Ray, without the resources that the recipe needs, or without the
    cluster; else like :class:`Worker`.
    """
    with _started(cluster) as ray:
        slots, gpus = _slots(ray, cluster)
        count = max(1, min(slots, len(plan.units)))
        from ray.util.queue import Queue

        name = f"facelock-{uuid.uuid4().hex}"
        queue = Queue(actor_options={"num_cpus": 0, "name": name})
        device = cluster.device if cluster.device != "auto" else "cuda" if gpus else "cpu"
        actor = ray.remote(num_cpus=1, num_gpus=gpus, max_restarts=RESTARTS, max_task_retries=RESTARTS)(Actor)
        board = plan.board
        vram = {unit.name: unit.recipe.memory.vram for unit in plan.units}
        given = (board.data(), str(board.folder), str(film.folder), device, name, build, vram)
        logger.info("%d workers on %s", count, "one GPU each" if gpus else "one CPU core each")
        _Pool(ray, [actor.remote(*given) for _ in range(count)], queue, plan, film, tell).run()


class _Pool:
    """Gives takes to whichever actor is free, and hears of what they tell."""

    def __init__(
        self, ray: Any, actors: list[Any], queue: Any, plan: Plan, film: FilmFolder, tell: OnEvent
    ) -> None:
        self.ray, self.queue, self.plan, self.film, self.tell = ray, queue, plan, film, tell
        self.free = actors
        self.waiting = [ShotLoop(unit, film) for unit in reversed(by_recipe(plan))]
        self.running: dict[Any, tuple[Any, ShotLoop, int | None]] = {}
        """Ray's promise → actor, shot, and number of the take; None: its base key is asked for."""
        self.pace = _FilmPace(plan)

    def run(self) -> None:
        """Until every shot is done; an error of no single shot ends it."""
        while self.waiting or self.running:
            while self.free and self.waiting:
                self._give(self.free.pop(), self.waiting.pop(), None)
            done, _ = self.ray.wait(list(self.running), timeout=LISTEN)
            self._listen()
            for promise in done:
                self._take_in(promise)
        self._listen()

    def _give(self, actor: Any, loop: ShotLoop, number: int | None) -> None:
        index = loop.unit.index
        promise = actor.base.remote(index) if number is None else actor.make.remote(index, number)
        self.running[promise] = (actor, loop, number)

    def _take_in(self, promise: Any) -> None:
        actor, loop, number = self.running.pop(promise)
        result, lost = self._result(promise)
        if lost is not None:
            self._give_up(loop, number or 0, lost)
            return  # the actor is gone for good
        if number is None:
            loop.begin(result)
        else:
            loop.add(result)
        following = loop.next_take()
        if following is not None:
            self._give(actor, loop, following)
            return
        self._finish(loop)
        self.free.append(actor)

    def _finish(self, loop: ShotLoop) -> None:
        loop.finish()
        self.pace.finish(loop.unit.name)

    def _give_up(self, loop: ShotLoop, number: int, sentence: str) -> None:
        """A shot whose worker is lost for good; the last worker takes those that wait with it."""
        seed = loop.unit.seed_of_take(number)
        take = Take(number, seed, "", "failed", sentence=sentence, exit_code=EnvironmentFailure.exit_code)
        loop.add(take)
        self._finish(loop)
        if not self.free and not self.running and self.waiting:
            self._give_up(self.waiting.pop(), 0, sentence)

    def _result(self, promise: Any) -> tuple[Any, str | None]:
        """What an actor returned; or, when it was lost for good, the sentence to say. Its errors are raised."""
        from ray.exceptions import RayError, RayTaskError

        try:
            return self.ray.get(promise), None
        except RayTaskError as error:
            cause = error.cause
            raise cause if isinstance(cause, FaceLockError) else error from None
        except RayError as error:
            logger.debug("a worker is lost", exc_info=error)
            return None, f"its worker was lost more than {RESTARTS} times ({type(error).__name__})"

    def _listen(self) -> None:
        while (waiting := self.queue.qsize()) > 0:
            for event in self.queue.get_nowait_batch(waiting):
                self.tell(self.pace.told(event))


class _FilmPace:
    """How far the whole film is, from what each worker knows of its own shot."""

    def __init__(self, plan: Plan) -> None:
        self.frames = {unit.name: unit.frames for unit in plan.units}
        self.total = sum(self.frames.values())
        self.done: dict[str, int] = {}
        self.began, self.made = time.monotonic(), 0

    def finish(self, name: str) -> None:
        """A shot is done."""
        self.done[name] = self.frames[name]

    def told(self, event: Event) -> Event:
        """The event with the film's progress in place of the shot's."""
        if not isinstance(event, ChunkMade):
            return event
        from dataclasses import replace

        before = self.done.get(event.shot, 0)
        self.made += max(0, event.frame - before)
        self.done[event.shot] = max(before, event.frame)
        film = sum(self.done.values())
        pace = (time.monotonic() - self.began) / self.made if self.made else None
        eta = None if pace is None else pace * (self.total - film)
        return replace(event, film_frame=film, film_frames=self.total, eta=eta)


@contextmanager
def _started(cluster: Cluster) -> Iterator[Any]:
    """Ray, connected or begun; left alone again at the end. No dashboard; a token where an address is given."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if cluster.address:
        os.environ.setdefault("RAY_AUTH_MODE", "token")  # read when ray is imported
    if importlib.util.find_spec("ray") is None:
        raise EnvironmentFailure(
            "The engine ray needs Ray. Give pip install 'facelock-video[cluster]', or leave --engine out."
        )
    import ray

    if cluster.workers is not None and cluster.workers < 1:
        raise ConfigError(f"{cluster.workers} workers make no film. Give at least 1.")
    _require_reachable(cluster.address)
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if cluster.address is None:
        cores = cluster.workers or os.cpu_count() or 1
        options |= {
            "address": "local",
            "include_dashboard": False,
            "num_cpus": max(cores, os.cpu_count() or 1),
        }
    else:
        options["address"] = cluster.address
    try:
        ray.init(**options)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise EnvironmentFailure(
            f"The Ray cluster at {cluster.address or 'this machine'} cannot be used ({reason}). Start it, or "
            "leave --address out."
        ) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _require_reachable(address: str | None) -> None:
    """Ask whether somebody listens at ``host:port``: Ray itself would try for minutes."""
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=REACH).close()
    except (OSError, OverflowError) as error:
        raise EnvironmentFailure(
            f"The Ray cluster at {address} cannot be used ({error}). Start it, or leave --address out."
        ) from error


def _slots(ray: Any, cluster: Cluster) -> tuple[int, int]:
    """How many actors, and GPUs for each (0 or 1). Raises at once what Ray would wait for without end."""
    there = ray.cluster_resources()
    cpus, gpus = int(there.get("CPU", 0)), int(there.get("GPU", 0))
    on_gpu = cluster.device.startswith("cuda") or (cluster.device == "auto" and gpus > 0)
    most = min(gpus, cpus) if on_gpu else cpus
    wanted = cluster.workers or most
    if most < 1 or wanted > most:
        kind = "GPUs" if on_gpu else "CPU cores"
        raise EnvironmentFailure(
            f"The Ray cluster has {gpus if on_gpu else cpus} {kind}, one for each worker, and {max(wanted, 1)} "
            f"{'is' if wanted <= 1 else 'are'} wanted. "
            "Give fewer --workers, another --device, or add nodes."
        )
    return wanted, int(on_gpu)
