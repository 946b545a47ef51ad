"""One training loop for every part: seeded, resumable, with an exponential moving average, on a CPU or a GPU."""

from __future__ import annotations

import json
import logging
import math
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

log = logging.getLogger(__name__)

Batch = Tensor | Sequence[Any]
"""Tensors, nested in tuples or lists as a task likes."""


class Task(Protocol):
    """What a part needs to be trained."""

    name: str
    module: nn.Module
    """Everything that learns, in training's own shape."""
    steps: int
    rate: float
    bf16: bool
    """Whether bfloat16 is enough, where the device gains by it."""

    def draw(self, step: int, generator: torch.Generator) -> Batch:
        """Draw a batch, and all else that is random, on the CPU: a seed means the same on every device."""
        ...

    def loss(self, step: int, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch that was moved to the module's device, and figures to log."""
        ...


@dataclass
class Schedule:
    """Linear warm-up, then a cosine to 1 % of the peak."""

    peak: float
    warmup: int = 150

    def __call__(self, step: int, done: float) -> float:
        """The rate of ``step``, when ``done`` of the training, from 0 to 1, is over."""
        ramp = min(1.0, (step + 1) / self.warmup)
        return self.peak * ramp * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))


class Trainer:
    """Runs a :class:`Task` to its last step, saving ``state.safetensors`` in ``folder`` as it goes."""

    def __init__(
        self,
        task: Task,
        folder: Path,
        *,
        device: str = "cpu",
        save_every: float = 60.0,
        seed: int = 0,
        origin: Sequence[dict[str, Any]] = (),
        seconds: float | None = None,
    ) -> None:
        """``origin`` tells what the weights that ``task`` starts with went through; it is kept with the state.

        With ``seconds`` the clock ends the training instead of the task's number of steps, and the learning rate
        follows it: for rented time. How far such a run comes depends on the machine, so it is not repeatable.
        """
        self.task, self.folder, self.device, self.seed = task, folder, device, seed
        self.save_every, self.origin, self.seconds = save_every, list(origin), seconds
        task.module.to(device)
        self.params = {n: p for n, p in task.module.named_parameters() if p.requires_grad}
        self.average = {n: v.detach().clone() for n, v in task.module.state_dict().items()}
        self.optimiser = torch.optim.AdamW(
            self.params.values(), lr=task.rate, weight_decay=1e-3, betas=(0.9, 0.98)
        )
        self.schedule = Schedule(task.rate)
        self.step, self.spent = 0, 0.0
        self.history: list[dict[str, float]] = []
        if (folder / "state.safetensors").is_file():
            self._load()

    def run(self, on_save: Callable[[int], None] | None = None, until: int | None = None) -> None:
        """Train to the last step (or to ``until``), continuing from whatever was saved."""
        last = min(self.task.steps, until or self.task.steps) if self.seconds is None else sys.maxsize
        started = saved = time.monotonic()
        first, before, window = self.step, self.spent, list[dict[str, Tensor]]()
        while self.step < last and (self.seconds is None or self.spent < self.seconds):
            window.append(self._update())
            self.step += 1
            self.spent = before + time.monotonic() - started
            if self.step % 100 == 0:
                figures = {k: float(sum(w[k] for w in window)) / len(window) for k in window[-1]}
                self.history.append({"step": self.step} | figures)
                if self.seconds is None:
                    left = (time.monotonic() - started) / (self.step - first) * (last - self.step)
                else:
                    left = self.seconds - self.spent
                text = " ".join(f"{k} {v:.4f}" for k, v in figures.items())
                log.info("%s step %d %s (%.0f s left)", self.task.name, self.step, text, max(0.0, left))
                window = []
            over = self.step == last or (self.seconds is not None and self.spent >= self.seconds)
            if over or time.monotonic() - saved > self.save_every:
                self._save()
                saved = time.monotonic()
                if on_save:
                    on_save(self.step)

    def _update(self) -> dict[str, Tensor]:
        done = self.step / max(self.task.steps, 1) if self.seconds is None else self.spent / self.seconds
        for group in self.optimiser.param_groups:
            group["lr"] = self.schedule(self.step, done)
        generator = torch.Generator().manual_seed(self.seed * 10_000_019 + self.step)
        batch = moved(self.task.draw(self.step, generator), self.device)
        fast = self.task.bf16 and fast_in_bfloat16(self.device)
        with torch.autocast(self.device.split(":")[0], torch.bfloat16, enabled=fast):
            loss, figures = self.task.loss(self.step, batch)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.params.values(), 1.0)
        self.optimiser.step()
        self._average()
        return {k: v.detach() for k, v in figures.items()}

    @torch.no_grad()
    def _average(self) -> None:
        keep = min(0.997, (self.step + 1) / (self.step + 20))
        now = self.task.module.state_dict()
        smooth = [name for name, value in now.items() if value.is_floating_point()]
        torch._foreach_lerp_([self.average[n] for n in smooth], [now[n] for n in smooth], 1 - keep)
        for name in now.keys() - {*smooth}:
            self.average[name].copy_(now[name])

    def _save(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        tensors = {f"model.{n}": v for n, v in self.task.module.state_dict().items()}
        tensors |= {f"average.{n}": v for n, v in self.average.items()}
        for n, p in self.params.items():
            state = self.optimiser.state.get(p)
            if state:
                tensors[f"first.{n}"], tensors[f"second.{n}"] = state["exp_avg"], state["exp_avg_sq"]
        tensors = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
        meta = {
            "step": str(self.step),
            "history": json.dumps(self.history),
            "origin": json.dumps(self.origin),
            "spent": json.dumps(self.spent),
            "device": device_name(self.device),
        }
        temporary = self.folder / "state.part"
        save_file(tensors, temporary, metadata=meta)
        temporary.rename(self.folder / "state.safetensors")

    def _load(self) -> None:
        from safetensors import safe_open

        path = self.folder / "state.safetensors"
        with safe_open(path, "pt") as f:
            meta = f.metadata()
        tensors = load_file(path, device=self.device)
        pick = lambda prefix: {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}  # noqa: E731
        self.task.module.load_state_dict(pick("model."))
        self.average = pick("average.")
        first, second = pick("first."), pick("second.")
        self.step, self.history = int(meta["step"]), json.loads(meta["history"])
        self.origin, self.spent = json.loads(meta["origin"]), json.loads(meta.get("spent", "0"))
        for n, p in self.params.items():
            if n in first:
                self.optimiser.state[p] = {
                    "step": torch.tensor(float(self.step)),
                    "exp_avg": first[n],
                    "exp_avg_sq": second[n],
                }


def moved(batch: Any, device: str | torch.device) -> Any:
    """A batch on ``device``; numbers stay numbers. A GPU fetches it when it comes to it."""
    if isinstance(batch, Tensor):
        ahead = torch.device(device).type == "cuda" and batch.device.type == "cpu"
        return batch.pin_memory().to(device, non_blocking=True) if ahead else batch.to(device)
    return tuple(moved(part, device) for part in batch) if isinstance(batch, list | tuple) else batch


def seed_of(generator: torch.Generator) -> int:
    """A seed for what is too large to be drawn on the CPU and carried over: the noise of pixels and latents."""
    return int(torch.randint(2**62, (1,), generator=generator))


def normal_numbers(seed: int, device: str | torch.device) -> Callable[[Sequence[int]], Tensor]:
    """Shape → standard normal numbers, drawn on ``device``; the same for a seed on the same kind of device."""
    where = torch.device(device)
    generator = None if where.type == "meta" else torch.Generator(where).manual_seed(seed)
    return lambda shape: torch.randn(tuple(shape), generator=generator, device=where)


def device_name(device: str | torch.device) -> str:
    """What a card or a processor calls itself."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{torch.get_num_threads()} CPU threads"


def fast_in_bfloat16(device: str | torch.device) -> bool:
    """Whether networks run faster in bfloat16 there; a processor without instructions for it takes twice as long."""
    if torch.device(device).type != "cpu":
        return True
    known = getattr(torch.cpu, "get_capabilities", dict[str, bool])()  # older versions of torch do not tell
    return bool(known.get("amx_bf16") or known.get("avx512_bf16"))


def in_float32(device: torch.device) -> AbstractContextManager[Any]:
    """Holds autocast off, where ``device`` knows it at all."""
    known = torch.amp.is_autocast_available(device.type)
    return torch.autocast(device.type, enabled=False) if known else nullcontext()


def in_bfloat16(device: torch.device) -> AbstractContextManager[Any]:
    """Holds autocast to bfloat16 on a GPU; on a CPU it would cost precision and win nothing."""
    return torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else nullcontext()


def averaged(folder: Path, module: nn.Module, within: str = "") -> nn.Module:
    """Load the averaged weights of a training folder into ``module`` and set it to evaluation.

    ``within`` picks a part of what was trained, by what its names begin with.
    """
    tensors, begin = load_file(folder / "state.safetensors"), f"average.{within}"
    module.load_state_dict({k[len(begin) :]: v for k, v in tensors.items() if k.startswith(begin)})
    return module.eval()
