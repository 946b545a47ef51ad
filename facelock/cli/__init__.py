"""The command line: ``facelock generate``, ``verify``, ``identity`` and ``bench``. It has no logic of its own.

Everything heavy is imported when a command runs, so that ``facelock --help`` answers at once. Exit codes:
0 done, 1 a bug of ours, 2 bad input, 3 the machine cannot, 4 identity target missed, 5 output busy,
130 interrupted. Errors are one line on stderr: ``facelock: error: <what>. <what to do>.``
"""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from facelock import __version__
from facelock.cli.doctor import EXAMPLES as DOCTOR_EXAMPLES
from facelock.cli.doctor import doctor
from facelock.cli.identity import identity
from facelock.cli.lock import EXAMPLES as LOCK_EXAMPLES
from facelock.cli.lock import lock
from facelock.cli.models import models
from facelock.cli.options import (
    RESUME_HINT,
    AsJson,
    Commercial,
    Debug,
    Device,
    FaceIndex,
    Faces,
    FacesSpec,
    JudgeSpec,
    NoRestore,
    Out,
    Overwrite,
    Quiet,
    RecipeName,
    Reference,
    Restart,
    Size,
    Target,
    Vram,
    require,
    tell,
)
from facelock.cli.storyboard import storyboard
from facelock.cli.terminal import running
from facelock.errors import FaceLockError

ClickError: type[Exception] = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")
"""What typer raises for a wrong command line, from its own copy of click or from click."""

app = typer.Typer(
    add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None
)
bench = typer.Typer(add_completion=False, no_args_is_help=True, rich_markup_mode=None)
app.add_typer(
    bench, name="bench", help="Measure drift, decoupling, speed and the lock; held-out characters only."
)
app.add_typer(identity, name="identity", help="Make, show and revoke identities: .face files.")
app.add_typer(models, name="models", help="List, fetch and check weights, with their licences.")
app.add_typer(storyboard, name="storyboard", help="Many shots of one cast: check, render, one edit.")

GENERATE_EXAMPLES = """\
Examples:

\b
  facelock generate "a woman with red hair talking in a forest" \\
      --face samples/faces/maria.png --seconds 30 -o maria.mp4
  facelock generate "a man nodding" --face me.jpg --seconds 10 -o me.mp4 --audio voice.wav
  facelock generate "a man nodding" --face me.jpg --seconds 10 -o raw.mp4 --no-lock --no-restore

Interrupted or killed, the same command goes on where it stopped."""

VERIFY_EXAMPLES = """\
Example:

\b
  facelock verify maria.mp4 --face samples/faces/maria.png
  facelock verify maria.mp4 --face maria.face --explain
  facelock verify film.mp4 --face photo.jpg --faces opencv:yunet+sface"""

BENCH_EXAMPLES = """\
Example:

\b
  facelock bench drift --seconds 60 --identities 12 --out drift/"""


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"facelock {__version__}")
        raise typer.Exit()


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version.")
    ] = False,
) -> None:
    """Make long clips in which a character's face never drifts, and prove it.

    A prompt and a reference face go in; an mp4 comes out whose face is the reference in every frame, with a
    report that measures each one.
    """


@app.command(epilog=GENERATE_EXAMPLES)
def generate(
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="What the clip shows.")],
    face: Faces,
    seconds: Annotated[
        float, typer.Option("--seconds", metavar="S", help="Length of the clip; up to a day.")
    ],
    output: Out,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Another seed, another clip.")] = 0,
    size: Size = None,
    recipe: RecipeName = "miniature",
    device: Device = "auto",
    no_lock: Annotated[bool, typer.Option("--no-lock", help="Leave stage 2 out, for comparison.")] = False,
    no_restore: NoRestore = False,
    target: Target = None,
    audio: Annotated[
        Path | None,
        typer.Option("--audio", metavar="FILE", help="Sound in place of its own, cut or padded to it."),
    ] = None,
    overwrite: Overwrite = False,
    restart: Restart = False,
    face_index: FaceIndex = None,
    vram: Vram = None,
    reference: Reference = False,
    commercial: Commercial = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Make a clip of PROMPT whose face is PICTURE in every frame.

    Leaves OUT.mp4, OUT.report.json and OUT.report.html; while it runs, OUT.mp4.partial/ holds what is
    finished.
    """
    from facelock.job import Job, check_share, parse_size
    from facelock.journal import claim
    from facelock.recipe import load_recipe, tuned
    from facelock.recipe.uses import clip_uses

    job = Job(
        prompt, seconds, seed, None if size is None else parse_size(size), not no_lock, not no_restore
    ).check()
    check_share(target)
    chosen = tuned(load_recipe(recipe), vram=vram, reference=reference)
    with ExitStack() as stack:
        display = stack.enter_context(running(quiet, debug, RESUME_HINT))
        journal = stack.enter_context(claim(output, overwrite=overwrite, restart=restart))
        display.say("loading")
        from facelock.pipeline import Pipeline, checked_job

        job = checked_job(job, chosen)
        used = clip_uses(lock=job.lock, restore=job.restore, guided=chosen.guidance is not None)
        clip = Pipeline.from_recipe(chosen, device, commercial, used).clip(
            job, face, faces=face_index or (), progress=display.step
        )
        report = clip.save(journal, audio=audio, restart=restart, target=target)
    tell(report, output, as_json=as_json, quiet=quiet)
    if target is None and no_lock:
        return  # made for comparison: there is no target to miss
    require(report, chosen.target if target is None else target)


@app.command(epilog=VERIFY_EXAMPLES)
def verify(
    video: Annotated[Path, typer.Argument(metavar="CLIP", help="A finished video, of any origin.")],
    face: Faces,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", metavar="PREFIX", help="PREFIX.report.json and .html. Default: beside CLIP."
        ),
    ] = None,
    recipe: RecipeName = "miniature",
    device: Device = "auto",
    target: Target = None,
    faces: FacesSpec = None,
    judge: JudgeSpec = None,
    face_index: FaceIndex = None,
    explain: Annotated[
        bool,
        typer.Option("--explain", help="Say which part of the face differs most; the bundled judge only."),
    ] = False,
    commercial: Commercial = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Measure every frame of CLIP against PICTURE and write the report.

    The report goes beside the clip; where the one from its making already lies, to CLIP.verify.report.json.
    """
    from facelock.job import check_share
    from facelock.recipe import load_recipe

    check_share(target)
    chosen = load_recipe(recipe)
    with running(quiet, debug) as display:
        display.say("loading")
        from facelock import api
        from facelock.report import write_report

        paths = api.verify_paths(video, output)
        report = api.verify(
            video,
            face,
            recipe=chosen,
            device=device,
            target=target,
            faces=face_index or (),
            packs=faces,
            judge=judge,
            explain=explain,
            commercial=commercial,
            progress=display.step,
        )
        write_report(report, *paths)
    tell(report, paths[0], as_json=as_json, quiet=quiet)
    require(report, chosen.target if target is None else target)


app.command(epilog=LOCK_EXAMPLES)(lock)
app.command(epilog=DOCTOR_EXAMPLES)(doctor)

BENCHMARKS = {
    "drift": "Chained backbone, plain swap and FaceLock side by side over long clips.",
    "decoupling": "Whether locked faces keep the blueprint's pose, expression, gaze and light.",
    "speed": "Seconds per stage and peak memory.",
    "stages": "Each stage's cost against the plain tools', long clips, overlap, and every speed choice.",
    "gpu": "Production-size models with random weights at true shapes, for --seconds at most; tiny ones without a GPU.",
    "across": "How alike true renders of one person are within a clip and across clips.",
    "explain": "One part of a face changed: whether verify --explain names it.",
    "pairs": "Two people in one shot: wrong-person frames and margins.",
    "cluster": "Two Ray workers with a core each against one; needs the extra cluster.",
    "film": "What a storyboard of equal shots costs beyond its shots.",
    "lock": "The lock stage against a plain insightface loop with the same nets.",
    "real": "Real photos and videos: separation, verify against the libraries' own loops, false alarms.",
    "warp": "Real videos locked to other people's photos by the aligner warp; needs --assets.",
    "restore": "How much of a restored face to keep: a ladder of shares against bisection.",
    "blueprint": "What the miniature's blueprint shows of its prompts, alive, at few steps, and for how long.",
    "guidance": "Whether identity guidance inside the blueprint helps the judge, or only the recogniser it climbs.",
    "paste": "Pasting faces back on 1080p frames against insightface's own paste.",
}
ON_ASSETS = frozenset({"real", "warp"})
"""Benchmarks of real faces, which take ``--assets``."""
ON_BLUEPRINTS = frozenset({"blueprint"})
"""Benchmarks of stage 1, which take ``--against``."""


def _add_benchmark(name: str, purpose: str) -> None:
    @bench.command(name, help=purpose, epilog=BENCH_EXAMPLES)
    def command(
        seconds: Annotated[
            float | None, typer.Option("--seconds", metavar="S", help="Length of each clip.")
        ] = None,
        identities: Annotated[
            int | None, typer.Option("--identities", metavar="N", help="Held-out characters.")
        ] = None,
        seed: Annotated[int, typer.Option("--seed", metavar="N", help="First seed.")] = 0,
        out: Annotated[
            Path | None, typer.Option("--out", metavar="DIR", help="Where tables and figures go.")
        ] = None,
        assets: Annotated[
            Path | None, typer.Option("--assets", metavar="DIR", help="Real photos, videos and weights.")
        ] = None,
        against: Annotated[
            Path | None,
            typer.Option(
                "--against", metavar="DIR", help="Another blueprint's folder, set beside (blueprint)."
            ),
        ] = None,
        device: Device = "auto",
        quiet: Quiet = False,
        as_json: AsJson = False,
        debug: Debug = False,
    ) -> None:
        from facelock.job import check_bench

        check_bench(seconds, identities)
        given = {"seconds": seconds, "identities": identities, "seed": seed, "out": out, "device": device}
        if name in ON_ASSETS:
            given["assets"] = assets
        if name in ON_BLUEPRINTS:
            given["against"] = against
        options = {key: value for key, value in given.items() if value is not None}
        with running(quiet, debug) as display:
            results: Any = import_module(f"facelock.bench.{name}").run(**options, progress=display.step)
        if as_json:
            print(json.dumps(results, default=str))
        elif not quiet:
            print(results["text"], end="")


for _name, _purpose in BENCHMARKS.items():
    _add_benchmark(_name, _purpose)


COLLECTOR = (100_000, 50, 1000)
"""Of Python's garbage collector, in this process that is ours: at its usual thresholds it searches the libraries'
modules again and again while they are imported."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the ``facelock`` command; leaves through ``SystemExit`` with the code of the outcome."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    gc.set_threshold(*COLLECTOR)
    try:
        code = typer.main.get_command(app).main(given, prog_name="facelock", standalone_mode=False)
    except FaceLockError as error:
        _fail(str(error), debug)
        code = error.exit_code
    except ClickError as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            print(error.format_message(), file=sys.stderr)  # type: ignore[attr-defined]
        else:
            _fail(_usage(error), debug)
        code = 2
    except (KeyboardInterrupt, typer.Abort):
        _fail("Interrupted. The same command resumes.", debug)
        code = 130
    except BrokenPipeError:
        sys.stderr.close()
        code = 1
    except Exception as error:
        _fail(
            f"this is a bug: {type(error).__name__}: {error}. Please report it with --debug's output.", debug
        )
        code = 1
    raise SystemExit(code if isinstance(code, int) else 0)


def _fail(message: str, debug: bool) -> None:
    if debug:
        import traceback

        traceback.print_exc()
    print(f"facelock: error: {message}", file=sys.stderr)


def _usage(error: Any) -> str:
    """A usage error of the command line in our form: what, then what to do."""
    what = " ".join(error.format_message().split()).rstrip(".")
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "facelock"
    return f"{what}. See '{command} --help'."
