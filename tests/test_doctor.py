"""``facelock doctor``: every judgement on machines that are made up, and once on this one."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from facelock import cli, doctor
from facelock.doctor import Machine, RecipeNeeds, Running, WeightState, diagnose, machine, needs, probes
from facelock.doctor import recipes as needs_of
from facelock.doctor.checks import findings
from facelock.doctor.machine import Gpu, parse_driver
from facelock.doctor.needs import weight_state
from facelock.errors import ConfigError, ModelError
from facelock.video.encoders import why_not
from facelock.weights import catalog, is_here, locate
from facelock.weights.inventory import check
from facelock.weights.receipt import Kept, Receipt, write_receipt

GIB = 2**30
CPU, CUDA = Running("CPUExecutionProvider", True), Running("CUDAExecutionProvider", True)
X264, NO_NVENC = Running("libx264", True), Running("h264_nvenc", False, "Cannot load libcuda.so.1")
H100 = Gpu("NVIDIA H100", 80 * GIB, 79 * GIB, "9.0")

PLAIN = Machine(
    python="3.11.7",
    system="Linux x86_64",
    memory=24 * GIB,
    packages={"torch": "2.13.0+cpu", "onnxruntime": "1.32.0", "opencv-python": "5.0.0.93"},
    torch=Running("torch", True),
    listed=("CPUExecutionProvider",),
    providers=(CPU,),
    ffmpeg="/usr/bin/ffmpeg",
    encoders=(X264, NO_NVENC),
    cache=Path("/home/me/.cache/facelock/models"),
    cache_free=500 * GIB,
)
"""Two cores, no GPU, everything in order."""
BIG = replace(
    PLAIN,
    memory=128 * GIB,
    packages={"torch": "2.13.0", "onnxruntime-gpu": "1.31.1", "opencv-python": "5.0.0.93"},
    torch_cuda="13.0",
    driver="580.65",
    gpus=(H100,),
    torch_gpus=1,
    onnxruntime_cuda="13.0",
    listed=("CUDAExecutionProvider", "CPUExecutionProvider"),
    providers=(CPU, CUDA),
)
"""A GPU server, everything in order."""
SMALL = RecipeNeeds("miniature", "first clip", (WeightState("miniature/blueprint", "here", 16 << 20),))
LARGE = RecipeNeeds(
    "skyreels-v2-1.3b",
    "films",
    (
        WeightState(
            "skyreels-v2-1.3b", "here", 18 * GIB, "Skywork", True, "facelock models pull skyreels-v2-1.3b"
        ),
    ),
)


def problems(machine: Machine, topic: str | None = None) -> list[tuple[str, tuple[str, ...]]]:
    """(what, commands) of every problem, of one topic."""
    return [(f.what, f.mend) for f in findings(machine) if f.level == "problem" and topic in (None, f.topic)]


@pytest.mark.parametrize("machine", [PLAIN, BIG])
def test_nothing_is_wrong_where_everything_is_in_order(machine):
    assert problems(machine) == []
    seen = {finding.what for finding in findings(machine) if finding.level == "ok"}
    assert "CPUExecutionProvider computes." in seen and "libx264 encodes." in seen
    assert ("CUDAExecutionProvider computes." in seen) == (machine is BIG)


def test_both_onnxruntimes():
    both = replace(BIG, packages=BIG.packages | {"onnxruntime": "1.32.0"})
    ((what, mend),) = problems(both)
    assert "onnxruntime and onnxruntime-gpu are both installed" in what
    assert mend == (
        "pip uninstall -y onnxruntime onnxruntime-gpu",
        "pip install --force-reinstall --no-deps onnxruntime-gpu==1.31.1",
    )
    on_cpu = replace(PLAIN, packages=PLAIN.packages | {"onnxruntime-gpu": "1.31.1"})
    ((_, mend),) = problems(on_cpu)
    assert (
        mend[1] == "pip install --force-reinstall --no-deps onnxruntime==1.32.0"
    )  # no GPU: the CPU build is right


def test_the_cpu_build_of_onnxruntime_on_a_gpu():
    cpu_build = replace(
        BIG, packages=BIG.packages | {"onnxruntime": "1.32.0"}, listed=PLAIN.listed, providers=(CPU,)
    )
    cpu_build.packages.pop("onnxruntime-gpu")  # type: ignore[attr-defined]
    ((what, mend),) = problems(cpu_build)
    assert "it is the CPU build" in what
    assert mend == (
        "pip uninstall -y onnxruntime onnxruntime-gpu",
        "pip install --force-reinstall --no-deps onnxruntime-gpu==1.31.1",
    )


def test_a_provider_that_is_listed_and_does_not_compute():
    """What onnxruntime-gpu does where CUDA's libraries are missing: it lists the provider all the same."""
    silent = Running("CUDAExecutionProvider", False, "it runs on CPUExecutionProvider.")
    ((what, mend),) = problems(replace(BIG, providers=(CPU, silent)))
    assert what == (
        "onnxruntime lists the CUDA provider, but it does not compute: it runs on CPUExecutionProvider."
    )
    assert mend == ('pip install --force-reinstall "onnxruntime-gpu[cuda,cudnn]==1.31.1"',)


def test_an_onnxruntime_that_does_not_run_at_all():
    dead = replace(PLAIN, providers=(Running("onnxruntime", False, "No module named 'onnxruntime'"),))
    ((what, mend),) = problems(dead)
    assert what == "onnxruntime does not run: No module named 'onnxruntime'."
    assert mend[-1] == "pip install --force-reinstall --no-deps onnxruntime==1.32.0"
    assert "onnxruntime does not run at all" in diagnose(dead, [SMALL]).standing("miniature").why


def test_cuda_of_two_majors():
    apart = replace(
        BIG, torch_cuda="12.8", providers=(CPU, replace(CUDA, ok=False, reason="libcublas.so.13"))
    )
    found = problems(apart, "cuda")
    assert found == [
        (
            "torch is built for CUDA 12.8, onnxruntime-gpu for CUDA 13.0, so that onnxruntime does not find its "
            "libraries.",
            (
                "pip install --force-reinstall torch==2.13.0 --index-url https://download.pytorch.org/whl/cu130",
            ),
        )
    ]
    works = [f for f in findings(replace(BIG, torch_cuda="12.8")) if f.topic == "cuda"]
    assert [(f.level, f.mend) for f in works] == [("note", ())] and "both compute here" in works[0].what


def test_a_torch_for_cuda_12_is_one_that_is_published():
    older = replace(BIG, torch_cuda="", torch_gpus=0, onnxruntime_cuda="12.8")
    ((_, (command,)),) = problems(older, "torch")
    assert command.endswith("/whl/cu126")


def test_a_torch_that_cannot_use_the_gpu():
    on_cpu = replace(BIG, packages=BIG.packages | {"torch": "2.13.0+cpu"}, torch_cuda="", torch_gpus=0)
    ((what, mend),) = problems(on_cpu)
    assert what == "NVIDIA H100 is here, but this torch is built for the CPU alone."
    assert mend == (
        "pip install --force-reinstall torch==2.13.0 --index-url https://download.pytorch.org/whl/cu130",
    )
    ((what, _),) = problems(replace(BIG, torch_gpus=0))
    assert "can use no GPU with the driver 580.65. Update the NVIDIA driver" in what
    broken = replace(PLAIN, torch=Running("torch", False, "libtorch.so: cannot open"))
    ((what, mend),) = problems(broken)
    assert "torch cannot be used: libtorch.so" in what and mend == (
        "pip install --force-reinstall torch==2.13.0+cpu",
    )
    ((_, mend),) = problems(replace(broken, packages={}))
    assert mend == ("pip install torch",)


def test_two_wheels_of_opencv():
    both = replace(PLAIN, packages=PLAIN.packages | {"opencv-python-headless": "5.0.0.93"})
    assert problems(both) == []
    (note,) = [f for f in findings(both) if f.topic == "opencv"]
    assert note.mend == (
        "pip uninstall -y opencv-python opencv-python-headless",
        "pip install --force-reinstall --no-deps opencv-python==5.0.0.93",
    )
    no_display = replace(both, opencv=Running("opencv", False, "libGL.so.1: cannot open shared object file"))
    ((what, mend),) = problems(no_display)
    assert "all installed and overwrite each other" in what
    assert mend[1] == "pip install --force-reinstall --no-deps opencv-python-headless==5.0.0.93"


def test_an_opencv_that_cannot_be_imported():
    broken = Running("opencv", False, "libGL.so.1: cannot open shared object file")
    ((what, mend),) = problems(replace(PLAIN, opencv=broken))
    assert what == "OpenCV cannot be imported: libGL.so.1: cannot open shared object file."
    assert mend == (
        "pip uninstall -y opencv-python",
        "pip install --force-reinstall --no-deps opencv-python-headless",
    )
    removed = Running("opencv", False, "No module named 'cv2'")  # what uninstalling one of two leaves behind
    ((_, mend),) = problems(replace(PLAIN, opencv=removed))
    assert mend == ("pip install --force-reinstall --no-deps opencv-python==5.0.0.93",)
    assert (
        "OpenCV cannot be imported"
        in diagnose(replace(PLAIN, opencv=removed), [SMALL]).standing("miniature").why
    )


def test_a_torchvision_of_another_torch():
    wrong = Running("torchvision", False, "operator torchvision::nms does not exist")
    ((what, mend),) = problems(replace(PLAIN, torchvision=wrong))
    assert "operator torchvision::nms does not exist" in what
    assert mend == (
        "pip uninstall -y torchvision",
        "pip install --upgrade --no-deps 'torchvision==0.28.*' --index-url https://download.pytorch.org/whl/cpu",
    )
    assert problems(replace(BIG, torchvision=wrong))[0][1][1].endswith("/cu130")
    older = replace(BIG, torch_cuda="12.8", onnxruntime_cuda="12.8", torchvision=wrong)
    assert problems(older)[0][1][1].endswith("/cu128")  # there is no cu120
    assert problems(replace(PLAIN, torchvision=Running("torchvision", True))) == []


def test_encoders():
    without = replace(PLAIN, encoders=(Running("libx264", False, "Unknown encoder 'libx264'"), NO_NVENC))
    ((what, mend),) = problems(without)
    assert what == "ffmpeg does not encode with libx264: Unknown encoder 'libx264'."
    assert mend == ("pip install --force-reinstall imageio-ffmpeg",)
    assert "no encoder for H.264 works" in diagnose(without, [SMALL]).standing("miniature").why
    (note,) = [f for f in findings(BIG) if f.topic == "encoder" and f.level == "note"]
    assert note.what == "h264_nvenc does not encode here (Cannot load libcuda.so.1); libx264 is used."
    assert not [f for f in findings(PLAIN) if f.level == "note"]  # without a GPU nobody expects it


def test_a_cache_folder_that_is_none(tmp_path):
    file = tmp_path / "home"
    assert (machine._trouble(file / "models"), machine._read_only(file / "models")) == ("", False)
    file.write_text("")
    why = machine._trouble(file / "models")
    assert why == f"{file} is not a folder"
    ((what, _),) = problems(replace(PLAIN, cache_trouble=why))
    assert f"because {why}. Mend that, or set FACELOCK_HOME" in what


def test_a_cache_folder_of_somebody_else(tmp_path, monkeypatch):
    """As it is for who is not root; the tests may be."""
    monkeypatch.setattr(machine.os, "access", lambda _, wanted: not wanted & machine.os.W_OK)
    assert machine._trouble(tmp_path) == "" and machine._read_only(tmp_path / "models")
    shared = replace(PLAIN, cache_read_only=True)
    assert problems(shared) == []  # what is pulled already can be used
    (note,) = [f for f in findings(shared) if f.level == "note"]
    assert "cannot be written to, so no weights can be pulled" in note.what

    def forbidden(path, **_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "stat", forbidden)
    assert machine._trouble(tmp_path) == f"{tmp_path} cannot be looked at (Permission denied)"


def test_weights_in_a_folder_that_may_not_be_entered_are_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("FACELOCK_HOME", str(tmp_path))
    entry, real = catalog.Catalog.load().entry("opencv/yunet"), Path.is_file

    def is_file(path):
        if path.is_relative_to(tmp_path):
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(Path, "is_file", is_file)
    assert not is_here(entry) and check(["opencv/yunet"])[0].state == "missing"
    with pytest.raises(ModelError, match="opencv/yunet is not on this machine"):
        locate("opencv/yunet")


def test_little_room_and_an_old_python():
    (note,) = [f for f in findings(replace(PLAIN, cache_free=GIB)) if f.level == "note"]
    assert "/home/me/.cache/facelock/models: 1.0 GiB are free." in note.what and "FACELOCK_HOME" in note.what
    ((what, _),) = problems(replace(PLAIN, python="3.10.12"))
    assert "Python 3.10.12 is too old" in what


# recipes


def standing(machine: Machine, need: RecipeNeeds):
    return diagnose(machine, [need]).standings[0]


def test_where_a_recipe_runs():
    assert (standing(PLAIN, SMALL).runs, standing(PLAIN, SMALL).device) == (True, "cpu")
    assert (standing(BIG, SMALL).runs, standing(BIG, SMALL).device) == (True, "cuda")
    assert (standing(BIG, LARGE).runs, standing(BIG, LARGE).device) == (True, "cuda")
    assert standing(PLAIN, LARGE).why == ("it needs a CUDA GPU",)


@pytest.mark.parametrize(
    ("machine", "why"),
    [
        (replace(BIG, memory=16 * GIB), ("its weights take 20 GiB of memory, 16 are here",)),
        (replace(BIG, gpus=(replace(H100, memory=6 * GIB),)), ("it needs a GPU of 8 GiB, this one has 6",)),
        (replace(BIG, providers=(CPU,)), ("onnxruntime does not run on the GPU",)),
        (replace(BIG, torch_gpus=0), ("it needs a CUDA GPU",)),
    ],
)
def test_why_a_large_recipe_does_not_run(machine, why):
    assert standing(machine, LARGE).why == why and not standing(machine, LARGE).runs


def test_a_gpu_that_needs_a_memory_plan():
    need = replace(LARGE, vram=30 * GIB)
    assert standing(BIG, need).hint == ""
    assert standing(replace(BIG, memory=32 * GIB), need).why == (
        "its weights take 33 GiB of memory, 32 are here",
    )
    found = standing(replace(BIG, gpus=(replace(H100, memory=24 * GIB),)), need)
    assert found.runs and found.hint == "its weights take 30 GiB of GPU memory, 24 are here: give --vram"


def test_a_small_recipe_beside_a_gpu_that_onnxruntime_does_not_use():
    found = standing(replace(BIG, providers=(CPU,)), SMALL)
    assert not found.runs and found.why == ("onnxruntime does not run on the GPU (--device cpu works)",)


def test_weights_that_are_missing_damaged_or_of_unknown_size():
    lost = WeightState("far", "missing", 0, "MIT", True, "facelock models pull far")
    need = replace(LARGE, weights=(lost, replace(lost, name="bad", state="damaged", bytes=GIB)))
    found = standing(BIG, need)
    assert found.reasons == ("far is missing", "bad is damaged") and found.why == () and found.device == ""
    assert not found.runs
    assert [weight.name for weight in found.missing] == ["far", "bad"]
    assert "it needs a CUDA GPU" in standing(PLAIN, need).why  # a checkpoint of unknown size is no small one
    assert standing(PLAIN, RecipeNeeds("mine", "", error="mine.toml: unknown key")).why == (
        "mine.toml: unknown key",
    )


def test_a_recipe_that_nobody_knows():
    with pytest.raises(ConfigError, match=r"No recipe is called 'minature', did you mean 'miniature'\?"):
        diagnose(PLAIN, [SMALL]).standing("minature")


PUBLIC = """
[models."far/folder"]
path = "hub/far"
licence = "MIT"
commercial = true
[models."far/folder".fetch]
kind = "hub"
repo = "far/folder"
"""


def test_which_weights_are_here(tmp_path, monkeypatch):
    (tmp_path / "catalog.toml").write_text(
        '[models."one"]\npath = "one.onnx"\nsha256 = '
        '"7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed"\n'
    )
    (tmp_path / "public.toml").write_text(PUBLIC)
    monkeypatch.setattr(catalog, "asset_dir", lambda _: tmp_path)
    monkeypatch.setenv("FACELOCK_HOME", str(tmp_path / "home"))
    known = catalog.Catalog.load()

    def state(name: str) -> str:
        return weight_state(name, known).state

    assert state("one") == "missing"
    (tmp_path / "one.onnx").write_bytes(b"one")
    assert state("one") == "here"
    (tmp_path / "one.onnx").write_bytes(b"two")
    assert state("one") == "damaged"
    folder = tmp_path / "home" / "models" / "hub" / "far"
    folder.mkdir(parents=True)
    (folder / "config.json").write_bytes(b"one")
    assert state("far/folder") == "missing"  # nobody knows what it should be
    kept = Kept("7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed", 3, 0)
    write_receipt(folder, Receipt("far/folder@" + "a" * 40, {"config.json": kept}))
    assert state("far/folder") == "here" and state(str(folder)) == "here"
    monkeypatch.setattr(
        needs, "READ", 2
    )  # a large file is not read, its size and time must be those recorded
    assert state("far/folder") == "damaged"
    stat = (folder / "config.json").stat()
    kept = replace(kept, mtime_ns=stat.st_mtime_ns)
    write_receipt(folder, Receipt("far/folder@" + "a" * 40, {"config.json": kept}))
    assert state("far/folder") == "here"
    monkeypatch.undo()
    monkeypatch.setattr(catalog, "asset_dir", lambda _: tmp_path)
    (folder / "config.json").write_bytes(b"bad")
    assert state("far-folder") == "damaged"
    assert state("/nowhere/at/all") == "missing"


def test_the_default_recipe_has_its_weights():
    first = needs_of()[0]
    assert first.name == "miniature" and first.purpose and not first.error
    assert {weight.state for weight in first.weights} == {"here"} and first.bytes < 64 << 20
    (broken,) = needs_of(["/nowhere/mine.toml"])
    assert broken.name == "mine" and "there is no such recipe file" in broken.error


# facts


def test_what_the_driver_prints():
    text = "580.65, 81559, 81000, 9.0, NVIDIA H100 80GB HBM3\n580.65, 24564, [N/A], 8.9, NVIDIA RTX 4090, rev 2\n"
    driver, (first, second) = parse_driver(text)
    assert driver == "580.65" and first == Gpu("NVIDIA H100 80GB HBM3", 81559 * 2**20, 81000 * 2**20, "9.0")
    assert second == Gpu("NVIDIA RTX 4090, rev 2", 24564 * 2**20, 0, "8.9")
    assert parse_driver("NVIDIA-SMI has failed because it couldn't communicate with the driver.\n") == (
        "",
        (),
    )


def test_the_build_of_torch_is_read_without_importing_it(tmp_path, monkeypatch):
    spec = SimpleNamespace(origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(machine.importlib.util, "find_spec", lambda _: spec)
    version = tmp_path / "version.py"
    version.write_text("cuda: Optional[str] = '13.0'\nhip: Optional[str] = None\n")
    assert machine._torch_build() == {"cuda": "13.0", "gpu": True}
    version.write_text("cuda: Optional[str] = None\nhip: Optional[str] = '6.4.1'\n")
    assert machine._torch_build() == {"cuda": "", "gpu": True}
    version.write_text("cuda = None\nhip = None\n")
    assert machine._torch_build() == {"cuda": "", "gpu": False}
    monkeypatch.setattr(machine.importlib.util, "find_spec", lambda _: None)
    assert machine._torch_build() == {}


def test_an_encoder_is_tried_not_looked_up():
    def run(code: int, words: str):
        return lambda *_, **__: SimpleNamespace(returncode=code, stderr=words)

    assert why_not("ffmpeg", "x264", run=run(0, "")) == ""
    assert why_not("ffmpeg", "nvenc", run=run(255, "\n[x] Cannot load libcuda.so.1\nmore")) == (
        "[x] Cannot load libcuda.so.1"
    )
    assert why_not("ffmpeg", "x264", run=run(8, "")) == "ffmpeg ends with code 8"
    assert "No such file" in why_not("/no/such/ffmpeg", "x264")


def test_a_probe_that_dies_says_how(monkeypatch):
    def answer(**result):
        return lambda *_, **__: SimpleNamespace(**{"stdout": "", "stderr": "", "returncode": -11} | result)

    monkeypatch.setattr(machine.subprocess, "run", answer())
    assert machine.probe("light") == {"ok": False, "reason": "it died with code -11"}
    monkeypatch.setattr(machine.subprocess, "run", answer(stderr="x\nImportError: no torch\n"))
    assert machine.probe("light")["reason"] == "ImportError: no torch"
    monkeypatch.setattr(machine.subprocess, "run", answer(stdout='words\n{"ok": true}\n'))
    assert machine.probe("light") == {"ok": True}

    def hang(*_, **__):
        raise subprocess.TimeoutExpired("x", 60)

    monkeypatch.setattr(machine.subprocess, "run", hang)
    assert machine.probe("light")["reason"] == "it hangs for more than 60 s"


def test_a_provider_is_believed_when_it_computes(monkeypatch):
    assert probes.try_provider("CPUExecutionProvider") == {"name": "CPUExecutionProvider", "ok": True}
    session = SimpleNamespace(get_providers=lambda: ["CPUExecutionProvider"])
    monkeypatch.setattr("facelock.runtime.open_session", lambda *_: session)
    found = probes.try_provider("CUDAExecutionProvider")
    assert found == {
        "name": "CUDAExecutionProvider",
        "ok": False,
        "reason": "it runs on CPUExecutionProvider",
    }
    import numpy as np

    wrong = SimpleNamespace(
        get_providers=lambda: ["CUDAExecutionProvider"], run=lambda *_: [np.zeros((1, 4, 6, 6), np.float32)]
    )
    monkeypatch.setattr("facelock.runtime.open_session", lambda *_: wrong)
    assert probes.try_provider("CUDAExecutionProvider")["reason"] == "it computes wrong numbers"


def test_a_probe_that_raises_is_one_line(monkeypatch, capsys):
    monkeypatch.setitem(probes.PROBES, "light", lambda: (_ for _ in ()).throw(OSError("first\nsecond")))
    probes.main("light")
    assert json.loads(capsys.readouterr().out.strip()) == {"ok": False, "reason": "first"}


# the command


@pytest.fixture
def command(monkeypatch, capsys):
    """Run ``facelock doctor`` on a made-up machine: (exit code, stdout, stderr)."""

    def run(machine: Machine, needs: tuple[RecipeNeeds, ...], *arguments: str):
        monkeypatch.setattr(doctor, "examine", lambda: machine)
        monkeypatch.setattr(doctor, "recipes", lambda: needs)
        with pytest.raises(SystemExit) as left:
            cli.main(["doctor", *arguments])
        return left.value.code, *capsys.readouterr()

    return run


def test_the_command_on_a_machine_in_order(command):
    code, out, err = command(BIG, (SMALL, LARGE))
    assert code == 0 and err == ""
    assert "GPU 0: NVIDIA H100, 80.0 GiB (79.0 free), compute capability 9.0, driver 580.65" in out
    assert "onnxruntime computes on: CPUExecutionProvider, CUDAExecutionProvider" in out
    assert "skyreels-v2-1.3b  yes   cuda" in out and "No problems found." in out


def test_the_command_on_one_that_is_not(command):
    clash = replace(
        BIG, packages=BIG.packages | {"onnxruntime": "1.32.0"}, listed=PLAIN.listed, providers=(CPU,)
    )
    lost = replace(LARGE, weights=(replace(LARGE.weights[0], state="missing"),))
    code, out, err = command(clash, (SMALL, lost))
    assert code == 3
    assert "    pip uninstall -y onnxruntime onnxruntime-gpu\n" in out
    assert "    pip install --force-reinstall --no-deps onnxruntime-gpu==1.31.1\n" in out
    assert "  facelock models pull skyreels-v2-1.3b    # missing: 18.0 GiB, Skywork\n" in out
    assert "onnxruntime does not run on the GPU, 1 of its weights to get\n" in out
    assert err == (
        "facelock: error: The recipe miniature does not run here: onnxruntime does not run on the GPU (--device cpu "
        "works). Give the commands under 'Problems'.\n"
    )


def test_the_command_asks_for_one_recipe(command):
    lost = replace(LARGE, weights=(replace(LARGE.weights[0], state="missing"),))
    assert command(BIG, (SMALL, lost))[0] == 0
    code, out, err = command(BIG, (SMALL, lost), "--recipe", "skyreels-v2-1.3b", "--json")
    found = json.loads(out)
    assert code == 3 and "skyreels-v2-1.3b is missing" in err
    assert found["runs"] is False and found["recipes"][1]["missing"][0]["pull"].endswith(
        "pull skyreels-v2-1.3b"
    )
    assert found["machine"]["gpus"][0]["name"] == "NVIDIA H100"
    assert command(BIG, (SMALL,), "--recipe", "minature")[0] == 2


def test_this_machine():
    done = subprocess.run(
        [sys.executable, "-m", "facelock", "doctor", "--json"], capture_output=True, text=True, timeout=120,
        cwd=Path(__file__).resolve().parents[1],
    )  # fmt: skip
    found = json.loads(done.stdout)
    assert done.returncode == (0 if found["runs"] else 3), done.stderr
    assert {row["name"] for row in found["machine"]["providers"] if row["ok"]} >= {"CPUExecutionProvider"}
    assert found["machine"]["encoders"][0] == {"name": "libx264", "ok": True, "reason": ""}
    assert found["machine"]["ffmpeg_version"]
    assert found["machine"]["packages"]["torch"] and "Traceback" not in done.stderr


# ---------------------------------------------------------------------- one recipe, by name or by path


@pytest.fixture
def asked_for(monkeypatch, capsys, tmp_path):
    """Run ``facelock doctor --recipe`` on a machine in order, for a recipe of one's own with other lines."""
    text = (Path(__file__).resolve().parents[1] / "pipelines" / "default.toml").read_text()
    path = tmp_path / "my.toml"

    def run(*changes: tuple[str, str], name: str = "", machine: Machine = PLAIN):
        own = text
        for before, after in changes:
            assert before in own
            own = own.replace(before, after)
        path.write_text(own)
        monkeypatch.setattr(doctor, "examine", lambda: machine)
        monkeypatch.setattr(
            doctor, "recipes", lambda names=None: needs_of(names) if names else (SMALL, LARGE)
        )
        with pytest.raises(SystemExit) as left:
            cli.main(["doctor", "--recipe", name or str(path)])
        return left.value.code, *capsys.readouterr()

    return run


def test_what_a_recipe_of_one_s_own_lacks_is_told_with_its_commands(asked_for, tmp_path, monkeypatch):
    monkeypatch.setenv("FACELOCK_HOME", str(tmp_path / "empty"))
    code, out, err = asked_for(
        ("window = 17", "window = 18"),
        ('"miniature/upscaler"', '"miniature/upscalr"'),
        ('encoder = "miniature/judge"', 'encoder = "opencv/sface"'),
    )
    own = tmp_path / "my.toml"
    assert code == 3
    told = out[out.index(f"The recipe {own} does not run here:") :]
    assert "  The blueprint cannot work with the recipe's window = 18. Give n * 4 + 1 frames.\n" in told
    assert "  no model is called 'miniature/upscalr'. Known ones near it: miniature/upscaler" in told
    assert f"  opencv/sface is missing.\n    facelock models pull --recipe {own}\n" in told
    assert "No problems found." not in out and err.count("facelock: error:") == 1
    assert f"The recipe {own} does not run here: opencv/sface is missing, " in err


def test_a_recipe_of_one_s_own_that_runs(asked_for):
    code, out, err = asked_for()
    assert (code, err) == (0, "") and out.rstrip().endswith("No problems found.")


def test_a_recipe_that_cannot_be_read_is_a_sentence_and_not_no_problems(asked_for):
    for name, words in (
        ("nowhere.toml", "nowhere.toml: there is no such recipe file."),
        ("skyrels-v2-1.3b", "No recipe is called 'skyrels-v2-1.3b', did you mean 'skyreels-v2-1.3b'? Give"),
    ):
        code, out, err = asked_for(name=name)
        assert code == 2 and words in err and "No problems found." not in out
    code, out, err = asked_for(("crf = 16", "crf = 99"))
    assert code == 2 and "encode.crf: " in err and "Correct the recipe." in err and "No problems" not in out


def test_a_small_machine_is_said_of_a_recipe_of_one_s_own(asked_for):
    code, out, err = asked_for(machine=replace(PLAIN, encoders=(replace(X264, ok=False), NO_NVENC)))
    assert code == 3 and "no encoder for H.264 works" in out and "Give the commands under 'Problems'" in err
