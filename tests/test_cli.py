"""The command line: help, exit codes, one-line errors, signals. The stages are toys; the rest is real."""

from __future__ import annotations

import json
import logging
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import toys

import facelock
from facelock import cli
from facelock.cli import terminal
from facelock.journal import claim

HERE = Path(__file__).resolve().parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{HERE.parent}:{HERE}:{os.environ.get('PYTHONPATH', '')}"}
RESULTS = ["clip.mp4", "clip.report.html", "clip.report.json"]


@pytest.fixture
def toy(monkeypatch, tmp_path):
    """Toy stages behind the real command, in an empty folder with one picture."""
    toys.write_plainly(monkeypatch.setattr)
    parts = toys.Parts()
    monkeypatch.setattr("facelock.pipeline.Pipeline.from_recipe", lambda *_: toys.pipeline(parts))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "maria.png").write_bytes(b"red")
    return parts


@pytest.fixture
def facelock_command(toy, capsys):
    """Run ``facelock`` in this process: (exit code, stdout, stderr)."""

    def run(*arguments):
        with pytest.raises(SystemExit) as left:
            cli.main([str(argument) for argument in arguments])
        return left.value.code, *capsys.readouterr()

    return run


def generate(*more, prompt="a woman talking", face="maria.png", seconds=1, output="clip.mp4"):
    return ["generate", prompt, "--face", face, "--seconds", seconds, "-o", output, *more]


def left(folder):
    return sorted(path.name for path in folder.iterdir() if path.name != "maria.png")


def test_help_answers_at_once_without_torch():
    def seconds():
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        code = "import sys\nfrom facelock.cli import main\n"
        code += "try: main(['--help'])\nfinally: print('torch' in sys.modules)"
        done = subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert done.returncode == 0 and "generate" in done.stdout and done.stdout.endswith("False\n"), (
            done.stderr
        )
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(seconds() for _ in range(3)) < 0.4


@pytest.mark.parametrize(
    "command", [(), ("generate",), ("verify",), ("bench",), ("bench", "drift"), ("bench", "lock")]
)
def test_every_command_has_help(facelock_command, command):
    code, out, err = facelock_command(*command, "--help")
    assert code == 0 and err == ""
    assert out.startswith("Usage: facelock")
    for line in out.splitlines():
        option = line.split()[:1]
        assert not option or not option[0].startswith("--") or len(line.split()) > 2, f"undocumented: {line}"
    if command in (("generate",), ("verify",), ("bench", "drift")):
        assert f"facelock {' '.join(command)}" in out.split("Example")[1]


def test_no_command_shows_the_help(facelock_command):
    code, out, err = facelock_command()
    assert code == 2 and out == "" and err.startswith("Usage: facelock") and "\n  generate" in err


def test_version(facelock_command):
    assert facelock_command("--version") == (0, f"facelock {facelock.__version__}\n", "")


def test_generate_leaves_clip_and_report(facelock_command, tmp_path):
    code, out, err = facelock_command(*generate())
    assert code == 0, err
    assert left(tmp_path) == RESULTS
    assert out.startswith("clip.mp4: ") and out.count("\n") == 1
    assert "encode 12/12 frames" in err


def test_quiet_says_nothing(facelock_command):
    assert facelock_command(*generate("--quiet", prompt="a zyzzy woman")) == (0, "", "")


def test_json_is_one_object_on_stdout(facelock_command):
    code, out, _ = facelock_command(*generate("--json"))
    summary = json.loads(out)
    assert code == 0 and summary["output"] == "clip.mp4" and summary["share_recognised"] == 1.0
    assert summary["misses"] == 0 and "ledger" not in summary and len(out) < 20_000
    assert summary["settings"]["inputs"]["seconds"] == 1


def test_options_reach_the_run(facelock_command, toy, tmp_path, monkeypatch):
    monkeypatch.setattr("facelock.recipe.load_recipe", lambda _: toys.recipe())  # whose sizes are the toys'
    options = ("--seed", 7, "--size", "16x16", "--no-lock", "--no-restore", "--target", 0.5, "--json")
    code, out, _ = facelock_command(*generate(*options))
    settings = json.loads(out)["settings"]
    assert code == 0 and settings["target"] == 0.5
    assert settings["inputs"] == {
        "prompt": "a woman talking", "seconds": 1.0, "seed": 7, "size": [16, 16],
        "lock": False, "restore": False,
    }  # fmt: skip
    assert len((tmp_path / "clip.mp4").read_bytes()) == 12 * 16 * 16 * 3


def test_several_faces(facelock_command, tmp_path):
    (tmp_path / "omar.png").write_bytes(b"blue")
    code, out, _ = facelock_command(*generate("--face", "omar.png", "--json"))
    assert code == 0 and [each["name"] for each in json.loads(out)["characters"]] == ["maria", "omar"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (generate(seconds=0), "positive number"),
        (generate(seconds=-5), "positive number"),
        (generate(seconds="nan"), "length is nan"),
        (generate(seconds="inf"), "length is inf"),
        (generate(seconds=90_000), "more than a day"),
        (generate(seconds="soon"), "'--seconds': Input should be a valid number"),
        (generate(seconds=0.01), "less than one frame"),
        (generate(prompt=""), "prompt is empty"),
        (generate(prompt=" \n"), "prompt is empty"),
        (generate(face="none.png"), "none.png"),
        (generate(output="clip.avi"), ".mp4"),
        (generate(output="none/clip.mp4"), "does not exist"),
        (generate(output="/proc/clip.mp4"), "cannot be written"),
        (generate(output="folder.mp4"), "is a folder"),
        (generate(output="old.mp4"), "exists already"),
        (generate("--size", "big"), "size is 'big'"),
        (generate("--size", ""), "size is ''"),
        (generate("--size", "4000"), "does not fit"),
        (generate("--seed", "-1"), "seed"),
        (generate("--seed", "one"), "'--seed': Input should be a valid integer"),
        (generate("--target", "2"), "share"),
        (generate("--target", "nan"), "share"),
        (generate("--recipe", "minature"), "did you mean 'miniature'"),
        (generate("--recipe", "none.toml"), "no such recipe"),
        (generate("--sed", "1"), "--sed"),
        (["generate", "a woman"], "--face"),
        (["generat"], "generat"),
        (["bench", "drift", "--identities", "0"], "identities"),
        (["bench", "drift", "--seconds", "-1"], "positive"),
        (["verify", "maria.mp4", "--face", "maria.png", "--target", "7"], "share"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(facelock_command, toy, tmp_path, arguments, words):
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "old.mp4").write_bytes(b"old")
    before = left(tmp_path)
    code, out, err = facelock_command(*arguments)
    lines = [line for line in err.splitlines() if line != "facelock: loading"]
    assert code == 2, err
    assert out == "" and len(lines) == 1, err
    assert lines[0].startswith("facelock: error: ") and words in lines[0] and lines[0].endswith(".")
    assert toy.backbone.calls == [] and left(tmp_path) == before


def test_overwrite(facelock_command, tmp_path):
    (tmp_path / "clip.mp4").write_bytes(b"old")
    assert facelock_command(*generate("--overwrite"))[0] == 0
    assert (tmp_path / "clip.mp4").read_bytes() != b"old"


def test_missed_target_is_exit_code_4_and_everything_is_written(facelock_command, toy, tmp_path):
    toy.judge = toys.Judge(wrong=range(3, 6))
    code, out, err = facelock_command(*generate())
    assert code == 4 and "3 of the clip's 12 frames" in err.splitlines()[-1]
    assert left(tmp_path) == RESULTS and out.startswith("clip.mp4")
    assert facelock_command(*generate("--overwrite", "--target", "0.75"))[0] == 0
    assert facelock_command(*generate("--overwrite", "--no-lock"))[0] == 0  # made for comparison
    assert facelock_command(*generate("--overwrite", "--no-lock", "--target", 1))[0] == 4


def test_busy_is_exit_code_5_at_once(facelock_command, tmp_path):
    with claim("clip.mp4"):
        began = time.perf_counter()
        code, _, err = facelock_command(*generate())
        assert time.perf_counter() - began < 30
    assert code == 5 and "another run" in err


def test_environment_is_exit_code_3(facelock_command, monkeypatch):
    def full(*_):
        raise facelock.StorageError("The disk is full. Make room.")

    monkeypatch.setattr("facelock.clip.require_space", full)
    code, _, err = facelock_command(*generate())
    assert code == 3 and err.splitlines()[-1] == "facelock: error: The disk is full. Make room."


def test_a_bug_is_exit_code_1_and_a_traceback_only_with_debug(facelock_command, toy):
    toy.backbone.extend = lambda *_, **__: {}["frames"]
    code, _, err = facelock_command(*generate())
    assert code == 1 and "this is a bug: KeyError" in err and "Traceback" not in err
    code, _, err = facelock_command(*generate("--debug"))
    assert code == 1 and "Traceback" in err


def test_changed_inputs_are_refused_line_by_line(facelock_command, toy, monkeypatch):
    extend = toy.backbone.extend
    toy.backbone.extend = lambda *args, **kwargs: extend(*args, **kwargs) if args[1] is None else {}["later"]
    assert facelock_command(*generate())[0] == 1
    toy.backbone.extend = extend
    code, _, err = facelock_command(*generate("--seed", 9, prompt="a man talking"))
    assert code == 2 and "inputs.seed: was 0, now 9" in err and "--restart" in err
    assert 'inputs.prompt: was "a woman talking", now "a man talking"' in err
    assert facelock_command(*generate("--seed", 9, "--restart"))[0] == 0


def test_unknown_words_are_warned_of(facelock_command, toy, monkeypatch):
    bounded = toys.pipeline(toy, vocabulary="miniature")
    monkeypatch.setattr("facelock.pipeline.Pipeline.from_recipe", lambda *_: bounded)
    code, _, err = facelock_command(*generate(prompt="a woman talkin in a forest"))
    assert code == 0 and "facelock: warning: " in err and "'talkin'" in err and "talking" in err


def test_bench_runs_the_module_of_its_name(facelock_command, monkeypatch):
    from types import SimpleNamespace

    seen = {}
    module = SimpleNamespace(run=lambda **options: seen.update(options) or {"text": "### drift\n"})
    monkeypatch.setitem(sys.modules, "facelock.bench.drift", module)
    monkeypatch.setattr(cli, "import_module", lambda name: sys.modules[name])
    code, out, _ = facelock_command("bench", "drift", "--seconds", 5, "--out", "here", "--json")
    assert code == 0 and json.loads(out) == {"text": "### drift\n"}
    assert seen.pop("progress") and seen == {"seconds": 5.0, "seed": 0, "out": Path("here"), "device": "auto"}
    assert facelock_command("bench", "drift")[1] == "### drift\n"  # the table, for a person


SLOW = """
import sys, time
from unittest import mock
import toys
from facelock import cli
from facelock.cli import terminal
toys.write_plainly(lambda name, value: mock.patch(name, value).start())
parts = toys.Parts()
extend = parts.backbone.extend
def slowly(*args, **kwargs):
    time.sleep(float(sys.argv[1]))
    return extend(*args, **kwargs)
parts.backbone.extend = slowly
mock.patch("facelock.pipeline.Pipeline.from_recipe", lambda *_: toys.pipeline(parts)).start()
cli.main(sys.argv[2:])
"""


def start(folder, pause, *more):
    arguments = [str(argument) for argument in generate(*more)]
    return subprocess.Popen(
        [sys.executable, "-c", SLOW, str(pause), *arguments], cwd=folder, env=ENVIRONMENT,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def wait_for(path):
    for _ in range(600):
        if path.exists():
            return
        time.sleep(0.05)
    raise AssertionError(f"{path} did not appear")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_after_its_step_and_it_resumes(toy, tmp_path, number):
    first = tmp_path / "clip.mp4.partial" / "00000.json"
    process = start(tmp_path, 0.4)
    wait_for(first)
    process.send_signal(number)
    began = time.perf_counter()
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130 and time.perf_counter() - began < 30
    assert f"Interrupted by {number.name}" in err and "resume" in err and "Traceback" not in err
    assert first.exists() and not (tmp_path / "clip.mp4").exists()
    process = start(tmp_path, 0)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0 and "resuming after" in err
    assert left(tmp_path) == RESULTS


def test_a_step_that_takes_long_is_cut_short(toy, tmp_path):
    process = start(tmp_path, 60)
    wait_for(tmp_path / "clip.mp4.partial" / "run.json")
    time.sleep(0.3)
    began = time.perf_counter()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130 and time.perf_counter() - began < 30, err


def test_two_runs_on_one_output(toy, tmp_path):
    process = start(tmp_path, 60)
    wait_for(tmp_path / "clip.mp4.partial" / "run.json")
    other = start(tmp_path, 0)
    _, err = other.communicate(timeout=30)
    assert other.returncode == 5 and "another run" in err
    process.kill()
    process.communicate()
    third = start(tmp_path, 0)
    third.communicate(timeout=60)
    assert third.returncode == 0 and left(tmp_path) == RESULTS


def test_bars_on_a_terminal(toy, tmp_path):
    import pty

    ours, theirs = pty.openpty()
    arguments = [str(argument) for argument in generate()]
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, "0.2", *arguments], cwd=tmp_path, stdout=subprocess.PIPE, stderr=theirs,
        env={**ENVIRONMENT, "TERM": "xterm", "COLUMNS": "120"},
    )  # fmt: skip
    os.close(theirs)
    shown = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        shown += part
    os.close(ours)
    process.communicate(timeout=30)
    assert process.returncode == 0
    for word in (b"blueprint", b"lock", b"restore", b"judge", b"encode", b"12/12", b"ETA"):
        assert word in shown


def test_what_was_said_is_not_said_again(capfd):
    terminal.show_log(quiet=False, debug=False)
    log = logging.getLogger("facelock.somewhere")
    for _ in range(3):
        log.info("no CUDA device: running on the %s", "CPU")
    log.warning("something else")
    said = capfd.readouterr().err
    assert said == "facelock: no CUDA device: running on the CPU\nfacelock: warning: something else\n"
