"""What works on this machine, what does not, and the commands that mend it: behind ``facelock doctor``.

::

    diagnosis = diagnose(examine(), recipes())
    for finding in diagnosis.problems:
        print(finding.what, *finding.mend)
    diagnosis.standing("miniature").runs

``examine`` (:mod:`facelock.doctor.machine`) gathers facts: it opens things and runs them, and believes no list of what
should work. ``recipes`` (:mod:`facelock.doctor.needs`) says which weights each recipe needs and which are here. All
judgement is in pure functions over both (:mod:`facelock.doctor.checks`, :func:`diagnose`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from facelock.doctor.checks import Finding, findings, usable_gpu
from facelock.doctor.machine import Machine, Running, examine
from facelock.doctor.needs import RecipeNeeds, WeightState, recipes
from facelock.errors import ConfigError
from facelock.mistakes import did_you_mean

GIB = 2**30
HEAVY = 4 * GIB
"""Bytes of weights from which a CPU would take hours for a second of film."""
SMALLEST_GPU = 15 * GIB // 2
"""Bytes of GPU memory that the smallest memory plan is made for: what a card of 8 GiB shows."""
HEADROOM = 1.1
"""Memory that loading weights takes, in units of their size."""


@dataclass(frozen=True)
class Standing:
    """Whether one recipe can run here."""

    name: str
    purpose: str
    runs: bool
    """Whether it runs as it stands, with ``--device auto``."""
    device: str
    """``cuda`` or ``cpu``, what it would run on; empty where it does not run at all."""
    why: tuple[str, ...]
    """What is in its way besides weights, one phrase each."""
    missing: tuple[WeightState, ...]
    """Weights that are not here or damaged."""
    hint: str = ""
    """What to know although nothing is in the way."""
    mistakes: tuple[str, ...] = ()
    """What of the recipe itself cannot work here, a sentence each: what, and what to do."""

    @property
    def reasons(self) -> tuple[str, ...]:
        """Everything that is in its way; empty when it runs."""
        sentences = (mistake.rstrip(".") for mistake in self.mistakes)
        return (*(f"{weight.name} is {weight.state}" for weight in self.missing), *self.why, *sentences)


@dataclass(frozen=True)
class Diagnosis:
    """Everything ``facelock doctor`` says."""

    machine: Machine
    findings: tuple[Finding, ...]
    standings: tuple[Standing, ...]

    @property
    def problems(self) -> tuple[Finding, ...]:
        """What should be mended."""
        return tuple(finding for finding in self.findings if finding.level == "problem")

    def standing(self, recipe: str) -> Standing:
        """That of one recipe. Raises ``ConfigError`` naming the nearest."""
        for standing in self.standings:
            if standing.name == recipe:
                return standing
        names = [standing.name for standing in self.standings]
        guess = did_you_mean(recipe, names)
        raise ConfigError(f"No recipe is called {recipe!r}{guess or '.'} Give one of {', '.join(names)}.")

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        plain: dict[str, Any] = asdict(self)
        plain["machine"]["cache"] = str(self.machine.cache)
        return {
            "machine": plain["machine"],
            "findings": plain["findings"],
            "recipes": plain["standings"],
        }


def diagnose(machine: Machine, needs: Sequence[RecipeNeeds]) -> Diagnosis:
    """Judge the facts."""
    found = tuple(findings(machine))
    return Diagnosis(machine, found, tuple(_standing(machine, need) for need in needs))


def _standing(machine: Machine, need: RecipeNeeds) -> Standing:
    missing = tuple(weight for weight in need.weights if weight.state != "here")
    lacking = [*_lacking_parts(machine), *([need.error] if need.error else [])]
    device, in_the_way = _device(machine, need)
    why = (*lacking, *in_the_way)
    runs = not why and not missing and not need.mistakes
    device = "" if lacking or missing or need.mistakes else device
    return Standing(
        need.name, need.purpose, runs, device, why, missing, _hint(machine, need), mistakes=need.mistakes
    )


def _hint(machine: Machine, need: RecipeNeeds) -> str:
    gpu = usable_gpu(machine)
    if gpu is None or need.vram <= gpu.memory:
        return ""
    return f"its weights take {need.vram / GIB:.0f} GiB of GPU memory, {gpu.memory / GIB:.0f} are here: give --vram"


def _lacking_parts(machine: Machine) -> list[str]:
    """What every recipe needs and this machine has not."""
    needed = {
        "torch cannot be used": machine.torch.ok,
        "OpenCV cannot be imported": machine.opencv.ok,
        "onnxruntime does not run at all": any(provider.ok for provider in machine.providers),
        "no encoder for H.264 works": any(e.ok for e in machine.encoders if e.name == "libx264"),
    }
    return [what for what, there in needed.items() if not there]


def _device(machine: Machine, need: RecipeNeeds) -> tuple[str, list[str]]:
    """What it would run on, and what of the device is in the way."""
    size, why = need.vram or need.bytes, []
    if size and size * HEADROOM > machine.memory > 0:
        why.append(
            f"its weights take {size * HEADROOM / GIB:.0f} GiB of memory, {machine.memory / GIB:.0f} are here"
        )
    gpu, heavy = usable_gpu(machine), size > HEAVY or (need.unknown_size and not need.vram)
    if gpu is None:
        return "cpu", [*why, "it needs a CUDA GPU"] if heavy else why
    if heavy and gpu.memory < SMALLEST_GPU:
        why.append(f"it needs a GPU of 8 GiB, this one has {gpu.memory / GIB:.0f}")
    if not cuda_runs(machine):
        return "cpu", [
            *why,
            "onnxruntime does not run on the GPU" + ("" if heavy else " (--device cpu works)"),
        ]
    return "cuda", why


def cuda_runs(machine: Machine) -> bool:
    """Whether onnxruntime really computed on the GPU."""
    return any(provider.ok for provider in machine.providers if provider.name == "CUDAExecutionProvider")


__all__ = [
    "Diagnosis",
    "Finding",
    "Machine",
    "RecipeNeeds",
    "Running",
    "Standing",
    "WeightState",
    "cuda_runs",
    "diagnose",
    "examine",
    "recipes",
]
