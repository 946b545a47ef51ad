"""``facelock lock``: the command for clips that exist already."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from facelock.cli.options import (
    RESUME_HINT,
    AlignerKind,
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
    Replace,
    Restart,
    Target,
    Vram,
    require,
    tell,
)
from facelock.cli.terminal import running

EXAMPLES = """\
Examples:

\b
  facelock lock drifted.mp4 --face samples/faces/maria.png -o fixed.mp4
  facelock lock actor.mp4 --face maria.face --aligner warp -o maria.mp4
  facelock lock scene.mp4 --face maria.face --replace actor.jpg -o maria.mp4

Interrupted or killed, the same command goes on where it stopped."""


def lock(
    video: Annotated[Path, typer.Argument(metavar="CLIP", help="An existing video, of any origin.")],
    face: Faces,
    output: Out,
    recipe: RecipeName = "miniature",
    device: Device = "auto",
    aligner: AlignerKind = None,
    faces: FacesSpec = None,
    judge: JudgeSpec = None,
    replace: Replace = None,
    no_restore: NoRestore = False,
    target: Target = None,
    overwrite: Overwrite = False,
    restart: Restart = False,
    face_index: FaceIndex = None,
    vram: Vram = None,
    commercial: Commercial = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Give a character of CLIP the face of PICTURE in every frame; all else stays as it is.

    Frame times, size, colours and sound are kept; other people's faces keep every pixel. Leaves OUT.mp4,
    OUT.report.json and OUT.report.html; while it runs, OUT.mp4.partial/ holds what is finished.
    """
    from facelock.job import check_share
    from facelock.journal import claim
    from facelock.recipe import load_recipe, tuned
    from facelock.video.reading import probe

    check_share(target)
    chosen = tuned(load_recipe(recipe), vram=vram)
    with ExitStack() as stack:
        display = stack.enter_context(running(quiet, debug, RESUME_HINT))
        probe(video)  # refused at once, before an output is claimed or a model is loaded
        from facelock.footage import refuse_onto_itself

        refuse_onto_itself(video, output)
        journal = stack.enter_context(claim(output, overwrite=overwrite, restart=restart))
        display.say("loading")
        from facelock import api

        footage = api.lock(
            video,
            face,
            recipe=chosen,
            device=device,
            aligner=aligner,
            packs=faces,
            judge=judge,
            restore=not no_restore,
            replace=replace or None,
            faces=face_index or (),
            commercial=commercial,
            progress=display.step,
        )
        report = footage.save(journal, restart=restart, target=target)
    tell(report, output, as_json=as_json, quiet=quiet)
    require(report, chosen.target if target is None else target)
