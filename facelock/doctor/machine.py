"""The facts about this machine: versions, GPUs, and what really runs when it is tried.

Whatever can crash or hang is tried in a process of its own (:mod:`facelock.doctor.probes`), all of them side by side.
Nothing heavy is imported here; torch is only started where its build could use a GPU.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from facelock.errors import EncoderError
from facelock.weights.catalog import cache_dir

PACKAGES = (
    "torch", "torchvision", "diffusers", "transformers", "accelerate", "safetensors", "huggingface_hub", "numpy",
    "onnx", "onnxruntime", "onnxruntime-gpu", "opencv-python", "opencv-python-headless", "opencv-contrib-python",
    "opencv-contrib-python-headless", "insightface", "av", "imageio-ffmpeg", "spandrel",
)  # fmt: skip
"""Distributions whose versions are shown."""
PATIENCE = 60.0
"""Seconds after which a probe counts as hanging."""
ENCODERS = {"x264": "libx264", "nvenc": "h264_nvenc"}
"""Encoder of a recipe → ffmpeg's name of it."""


@dataclass(frozen=True)
class Running:
    """Something that was tried: a provider, an encoder, a library."""

    name: str
    ok: bool
    reason: str = ""
    """Why it does not work."""


@dataclass(frozen=True)
class Gpu:
    """One GPU as its driver shows it."""

    name: str
    memory: int
    """Bytes."""
    free: int = 0
    capability: str = ""
    """Compute capability, ``"9.0"``."""


@dataclass(frozen=True)
class Machine:
    """All facts that the checks look at."""

    python: str
    system: str
    memory: int
    """Bytes of main memory; 0: not known."""
    packages: Mapping[str, str]
    """Installed distribution → version."""
    torch: Running
    torch_cuda: str = ""
    """CUDA version torch is built for; empty for a CPU build."""
    driver: str = ""
    """Version of the NVIDIA driver; empty: none."""
    gpus: tuple[Gpu, ...] = ()
    """Those that torch can use, in its order; where it can use none, those that the driver lists."""
    torch_gpus: int = 0
    """How many of them torch can use."""
    onnxruntime_cuda: str = ""
    """CUDA version that the onnxruntime in use is built for; empty for a CPU build."""
    listed: tuple[str, ...] = ()
    """Providers that onnxruntime lists, whether they work or not."""
    providers: tuple[Running, ...] = ()
    """Providers on which a small network was run, and what came of it."""
    torchvision: Running | None = None
    """None: not installed."""
    opencv: Running = field(default_factory=lambda: Running("opencv", True))
    ffmpeg: str = ""
    """Path; empty: none."""
    ffmpeg_version: str = ""
    encoders: tuple[Running, ...] = ()
    cache: Path = Path()
    cache_free: int = 0
    """Bytes free on the disk of the cache folder."""
    cache_trouble: str = ""
    """Why no weights can lie there; empty where they can, or could once it is made."""
    cache_read_only: bool = False
    """Whether weights that lie there can be used, but none can be put there."""


def examine() -> Machine:
    """Look at this machine; takes a few seconds."""
    packages = _packages()
    build = _torch_build()
    driver, gpus = _driver()
    with ThreadPoolExecutor(4, "facelock-doctor") as side:
        light = side.submit(probe, "light")
        torch = side.submit(probe, "torch") if build.get("gpu") else None
        vision = side.submit(probe, "torchvision") if "torchvision" in packages else None
        video = side.submit(_encoders)
        light_facts, (ffmpeg, encoders) = light.result(), video.result()
        untried: dict[str, Any] = {"ok": bool(build), "reason": "torch is not installed"}
        torch_facts = torch.result() if torch else untried
        vision_facts = vision.result() if vision else None
    ort = light_facts.get("onnxruntime", {"reason": light_facts.get("reason", "")})
    cache = cache_dir()
    return Machine(
        python=platform.python_version(),
        system=f"{platform.system()} {platform.machine()}",
        memory=_memory(),
        packages=packages,
        torch=_running("torch", torch_facts),
        torch_cuda=str(build.get("cuda", "")),
        driver=driver,
        gpus=tuple(Gpu(**device) for device in torch_facts.get("devices", ())) or gpus,
        torch_gpus=len(torch_facts.get("devices", ())),
        onnxruntime_cuda=str(ort.get("cuda", "")),
        listed=tuple(ort.get("listed", ())),
        providers=tuple(_running(row["name"], row) for row in ort.get("providers", ()))
        or (Running("onnxruntime", False, str(ort.get("reason", ""))),),
        torchvision=_running("torchvision", vision_facts) if vision_facts is not None else None,
        opencv=_running("opencv", light_facts.get("opencv", light_facts)),
        ffmpeg=ffmpeg,
        ffmpeg_version=ffmpeg_version(ffmpeg),
        encoders=encoders,
        cache=cache,
        cache_free=_free(cache),
        cache_trouble=_trouble(cache),
        cache_read_only=_read_only(cache),
    )


def _running(name: str, facts: Mapping[str, Any]) -> Running:
    ok = bool(facts.get("ok"))
    return Running(name, ok, "" if ok else str(facts.get("reason", "")))


def _packages() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _torch_build() -> dict[str, Any]:
    """What torch is built for, read in its files: importing it would take a second. Empty: not installed."""
    spec = importlib.util.find_spec("torch")
    if spec is None or not spec.origin:
        return {}
    try:
        text = Path(spec.origin).with_name("version.py").read_text()
    except OSError:
        return {"gpu": True}  # ask torch itself
    cuda, hip = (re.search(rf"^{name}\b[^=\n]*= *'([\d.]+)", text, re.MULTILINE) for name in ("cuda", "hip"))
    return {"cuda": cuda[1] if cuda else "", "gpu": bool(cuda or hip)}


def _driver() -> tuple[str, tuple[Gpu, ...]]:
    """The driver's version and its GPUs, from ``nvidia-smi``; empty where there is none or it fails."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return "", ()
    query = "--query-gpu=driver_version,memory.total,memory.free,compute_cap,name"
    try:
        done = subprocess.run(
            [program, query, "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
    except (OSError, subprocess.TimeoutExpired):
        return "", ()
    return parse_driver(done.stdout)


def parse_driver(text: str) -> tuple[str, tuple[Gpu, ...]]:
    """What ``nvidia-smi`` printed, a GPU a line; lines that are no GPU are passed over."""
    driver, gpus = "", []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split(",", 4)]
        if len(cells) == 5 and cells[1].isdigit():
            free = int(cells[2]) if cells[2].isdigit() else 0
            gpus.append(Gpu(cells[4], int(cells[1]) * 2**20, free * 2**20, cells[3]))
            driver = cells[0]
    return driver, tuple(gpus)


def probe(name: str) -> dict[str, Any]:
    """Run one of :mod:`facelock.doctor.probes` in a process of its own; what it found, or how it died."""
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-W", "ignore", "-m", "facelock.doctor.probes", name]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        return {"ok": False, "reason": f"it hangs for more than {PATIENCE:.0f} s"}
    except OSError as error:
        return {"ok": False, "reason": str(error)}
    with suppress(ValueError, IndexError):
        found = json.loads(done.stdout.strip().splitlines()[-1])
        if isinstance(found, dict):
            return found
    words = (done.stderr.strip().splitlines() or [""])[-1][:200]
    return {"ok": False, "reason": words or f"it died with code {done.returncode}"}


def _encoders() -> tuple[str, tuple[Running, ...]]:
    """Path of ffmpeg, and which encoders really encode a frame."""
    from facelock.video.encoders import why_not
    from facelock.video.ffmpeg_process import find_ffmpeg

    try:
        program = find_ffmpeg()
    except EncoderError as error:
        return "", tuple(Running(name, False, str(error)) for name in ENCODERS.values())
    reasons = {name: why_not(program, encoder) for encoder, name in ENCODERS.items()}
    return program, tuple(Running(name, not why, why) for name, why in reasons.items())


def ffmpeg_version(program: str) -> str:
    """What ``program`` calls itself; empty where it does not say."""
    with suppress(OSError, subprocess.TimeoutExpired):
        done = subprocess.run([program, "-version"], capture_output=True, text=True, timeout=PATIENCE)
        found = re.match(r"ffmpeg version (\S+)", done.stdout)
        return found[1] if found else ""
    return ""


def _memory() -> int:
    with suppress(OSError, ValueError, AttributeError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return 0


def _trouble(folder: Path) -> str:
    """Why ``folder`` can be none, or not be looked into; empty where there is no reason."""
    for place in (folder, *folder.parents):
        with suppress(FileNotFoundError, NotADirectoryError):
            try:
                mode = place.stat().st_mode
            except PermissionError as error:
                return f"{place} cannot be looked at ({error.strerror})"
            if not stat.S_ISDIR(mode):
                return f"{place} is not a folder"
            return "" if os.access(place, os.R_OK | os.X_OK) else f"{place} cannot be entered"
    return ""


def _read_only(folder: Path) -> bool:
    """Whether nothing can be written into ``folder``, or the nearest of its parents that is there."""
    for place in (folder, *folder.parents):
        with suppress(OSError):
            place.stat()
            return not os.access(place, os.W_OK)
    return False


def _free(folder: Path) -> int:
    """Bytes free where ``folder`` is, or would be."""
    for place in (folder, *folder.parents):
        with suppress(OSError):
            return shutil.disk_usage(place).free
    return 0
