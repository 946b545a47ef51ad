"""What the facts about a machine mean, and the exact commands that mend what is wrong. Pure functions.

::

    [finding.mend for finding in findings(machine) if finding.level == "problem"]

The clashes are those of dependencies that write the same files: ``onnxruntime`` and ``onnxruntime-gpu`` (insightface
pulls the first), ``opencv-python`` and ``opencv-python-headless``; and of CUDA versions that differ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from facelock.doctor.machine import Gpu, Machine
from facelock.restoration.extra import TORCH_INDEX, torchvision_command

GIB = 2**30
ORT_GPU = "1.31.1"
"""The onnxruntime-gpu that is known to go with :data:`ORT_CUDA`."""
ORT_CUDA = "13"
TORCH_BUILDS = {"12": "cu126"}
"""CUDA's major → the build that torch 2.12 to 2.14 publishes for it (pytorch#178665), where that is not its first."""
LITTLE_ROOM = 2 * GIB
CUDA = "CUDAExecutionProvider"


@dataclass(frozen=True)
class Finding:
    """One thing that was seen."""

    level: Literal["ok", "note", "problem"]
    topic: str
    what: str
    """A sentence, or two."""
    mend: tuple[str, ...] = ()
    """Commands, in this order."""


def findings(machine: Machine) -> Iterator[Finding]:
    """All of :data:`CHECKS`."""
    for check in CHECKS:
        yield from check(machine)


def usable_gpu(machine: Machine) -> Gpu | None:
    """The GPU that torch would use: the first, if it can use any."""
    return machine.gpus[0] if machine.gpus and machine.torch.ok and machine.torch_gpus else None


def python_version(machine: Machine) -> Iterator[Finding]:
    """FaceLock and diffusers need 3.11."""
    if tuple(int(part) for part in machine.python.split(".")[:2]) < (3, 11):
        yield Finding("problem", "python", f"Python {machine.python} is too old. Use 3.11 or newer.")


def torch_works(machine: Machine) -> Iterator[Finding]:
    """torch is there, and uses the GPU that is there."""
    if not machine.torch.ok:
        version = machine.packages.get("torch")
        mend = f"pip install --force-reinstall torch=={version}" if version else "pip install torch"
        yield Finding("problem", "torch", f"torch cannot be used: {machine.torch.reason}.", (mend,))
    elif machine.gpus and not machine.torch_cuda:
        yield Finding(
            "problem",
            "torch",
            f"{machine.gpus[0].name} is here, but this torch is built for the CPU alone.",
            (torch_for(machine, machine.onnxruntime_cuda or ORT_CUDA),),
        )
    elif machine.gpus and not machine.torch_gpus:
        yield Finding(
            "problem",
            "torch",
            f"torch is built for CUDA {machine.torch_cuda}, but can use no GPU with the driver {machine.driver}. "
            "Update the NVIDIA driver, or check CUDA_VISIBLE_DEVICES.",
        )


def torch_for(machine: Machine, cuda: str) -> str:
    """The command that installs the same torch, built for CUDA of this version's major."""
    version = machine.packages.get("torch", "").partition("+")[0]
    wanted = f"torch=={version}" if version else "torch"
    major = cuda.partition(".")[0]
    return f"pip install --force-reinstall {wanted} --index-url {TORCH_INDEX}/{TORCH_BUILDS.get(major, f'cu{major}0')}"


def onnxruntime_twice(machine: Machine) -> Iterator[Finding]:
    """Two distributions that write one folder: what was installed last is what runs, and removing one breaks both."""
    if {"onnxruntime", "onnxruntime-gpu"} <= machine.packages.keys():
        yield Finding(
            "problem",
            "onnxruntime",
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other (insightface asks for the "
            "first). Keep one; pip check then says that insightface wants onnxruntime, which it has.",
            ("pip uninstall -y onnxruntime onnxruntime-gpu", reinstall_onnxruntime(machine)),
        )


def reinstall_onnxruntime(machine: Machine) -> str:
    """The command that installs the one onnxruntime this machine should have."""
    if machine.gpus:
        version = machine.packages.get("onnxruntime-gpu", ORT_GPU)
        return f"pip install --force-reinstall --no-deps onnxruntime-gpu=={version}"
    return f"pip install --force-reinstall --no-deps onnxruntime=={machine.packages.get('onnxruntime', '1.32.0')}"


def onnxruntime_runs(machine: Machine) -> Iterator[Finding]:
    """The providers that really compute: a CPU always, the GPU where there is one."""
    for provider in machine.providers:
        if provider.ok:
            yield Finding("ok", "onnxruntime", f"{provider.name} computes.")
        elif provider.name != CUDA:
            mend = ("pip uninstall -y onnxruntime onnxruntime-gpu", reinstall_onnxruntime(machine))
            yield Finding("problem", "onnxruntime", f"onnxruntime does not run: {provider.reason}.", mend)
    if usable_gpu(machine) is not None and not any(p.ok for p in machine.providers if p.name == CUDA):
        yield _gpu_unused(machine)


def _gpu_unused(machine: Machine) -> Finding:
    """Why onnxruntime does not compute on the GPU, and what to do."""
    if CUDA not in machine.listed:
        what = (
            "onnxruntime has no CUDA provider: it is the CPU build. Networks for faces would not use the GPU."
        )
        mend: tuple[str, ...] = (
            "pip uninstall -y onnxruntime onnxruntime-gpu",
            reinstall_onnxruntime(machine),
        )
    else:
        reason = next((p.reason for p in machine.providers if p.name == CUDA), "").rstrip(".")
        what = f"onnxruntime lists the CUDA provider, but it does not compute: {reason}."
        version = machine.packages.get("onnxruntime-gpu", ORT_GPU)
        mend = (f'pip install --force-reinstall "onnxruntime-gpu[cuda,cudnn]=={version}"',)
        if "onnxruntime-gpu" not in machine.packages:
            mend = ("pip uninstall -y onnxruntime", *mend)
    return Finding("problem", "onnxruntime", what, mend)


def cuda_versions(machine: Machine) -> Iterator[Finding]:
    """torch and onnxruntime-gpu built for CUDA of two majors: each would need its own libraries."""
    ours, theirs = (v.partition(".")[0] for v in (machine.torch_cuda, machine.onnxruntime_cuda))
    if ours and theirs and ours != theirs:
        works = any(p.ok for p in machine.providers if p.name == CUDA)
        yield Finding(
            "note" if works else "problem",
            "cuda",
            f"torch is built for CUDA {machine.torch_cuda}, onnxruntime-gpu for CUDA {machine.onnxruntime_cuda}"
            + ("; both compute here." if works else ", so that onnxruntime does not find its libraries."),
            () if works else (torch_for(machine, machine.onnxruntime_cuda),),
        )


def opencv(machine: Machine) -> Iterator[Finding]:
    """Wheels of OpenCV that overwrite each other, or one that cannot be imported."""
    there = [name for name in machine.packages if name.startswith("opencv-")]
    keep = _opencv_to_keep(machine, there)
    version = machine.packages.get(keep, "")
    install = f"pip install --force-reinstall --no-deps {keep}" + (f"=={version}" if version else "")
    if len(there) > 1:
        yield Finding(
            "note" if machine.opencv.ok else "problem",
            "opencv",
            f"{' and '.join(there)} are all installed and overwrite each other; removing one breaks the rest.",
            (f"pip uninstall -y {' '.join(there)}", install),
        )
    elif not machine.opencv.ok:
        first = (f"pip uninstall -y {there[0]}",) if there and there[0] != keep else ()
        yield Finding(
            "problem", "opencv", f"OpenCV cannot be imported: {machine.opencv.reason}.", (*first, install)
        )


def _opencv_to_keep(machine: Machine, there: list[str]) -> str:
    """Without a display's libraries only the headless wheel works."""
    no_display = any(word in machine.opencv.reason for word in ("libGL", "libgthread", "libxcb", "libglib"))
    if no_display or "opencv-python" not in there:
        return next((name for name in there if name.endswith("headless")), "opencv-python-headless")
    return "opencv-python"


def torchvision(machine: Machine) -> Iterator[Finding]:
    """Nothing needs it but the extra ``sr``; a broken one breaks what only looks whether it is there."""
    if machine.torchvision is None or machine.torchvision.ok:
        return
    build = f"cu{machine.torch_cuda.replace('.', '')}" if machine.torch_cuda else "cpu"
    command = torchvision_command(machine.packages.get("torch", ""), build)
    yield Finding(
        "problem",
        "torchvision",
        f"torchvision does not fit this torch ({machine.torchvision.reason.rstrip('.')}). Remove it; or, for the "
        "extra sr, install the build of this torch.",
        ("pip uninstall -y torchvision", command),
    )


def encoders(machine: Machine) -> Iterator[Finding]:
    """A software encoder must work; a hardware one is a bonus, which data-centre GPUs do not have."""
    for tried in machine.encoders:
        if tried.ok:
            yield Finding("ok", "encoder", f"{tried.name} encodes.")
        elif tried.name == "libx264":
            yield Finding(
                "problem", "encoder", f"ffmpeg does not encode with libx264: {tried.reason.rstrip('.')}.",
                ("pip install --force-reinstall imageio-ffmpeg",),
            )  # fmt: skip
        elif machine.gpus:
            what = f"{tried.name} does not encode here ({tried.reason.rstrip('.')}); libx264 is used."
            yield Finding("note", "encoder", what)


def room(machine: Machine) -> Iterator[Finding]:
    """The folder, and the disk, on which weights are put."""
    elsewhere = "Mend that, or set FACELOCK_HOME to a folder where weights may lie."
    if machine.cache_trouble:
        what = f"{machine.cache}: no weights can lie there, because {machine.cache_trouble}. {elsewhere}"
        yield Finding("problem", "disk", what)
    elif machine.cache_read_only:
        what = f"{machine.cache} cannot be written to, so no weights can be pulled. {elsewhere}"
        yield Finding("note", "disk", what)
    if machine.cache_free < LITTLE_ROOM:
        yield Finding(
            "note",
            "disk",
            f"{machine.cache}: {machine.cache_free / GIB:.1f} GiB are free. Production weights need tens of them; "
            "FACELOCK_HOME names a folder on another disk.",
        )


CHECKS: tuple[Callable[[Machine], Iterator[Finding]], ...] = (
    python_version, torch_works, onnxruntime_twice, onnxruntime_runs, cuda_versions, opencv, torchvision, encoders,
    room,
)  # fmt: skip
