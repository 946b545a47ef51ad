"""Options that several commands share, and how a result is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from facelock.report import Report

RESUME_HINT = "Finished chunks are kept; give the same command again to resume."

Faces = Annotated[
    list[str],
    typer.Option(
        "--face",
        metavar="PICTURE",
        help="Reference picture or .face file; once per character, left to right.",
    ),
]
FaceIndex = Annotated[
    list[int] | None,
    typer.Option("--face-index", metavar="N", help="Which face of a picture with several; once per --face."),
]
RecipeName = Annotated[
    str, typer.Option("--recipe", metavar="NAME|PATH", help="A shipped recipe or a .toml file.")
]
Device = Annotated[str, typer.Option("--device", metavar="NAME", help="auto, cpu, cuda or cuda:N.")]
Target = Annotated[
    float | None,
    typer.Option(
        "--target",
        metavar="SHARE",
        help="Share of frames, 0 to 1, that must match the face; missed: exit code 4. Default: the recipe's.",
    ),
]
Commercial = Annotated[
    bool, typer.Option("--commercial", help="Refuse weights whose licence does not allow commercial use.")
]
FacesSpec = Annotated[
    str | None,
    typer.Option(
        "--faces",
        metavar="SPEC",
        help="Face pack: miniature, insightface:NAME, opencv:yunet+sface, or DETECTOR+RECOGNISER.",
    ),
]
JudgeSpec = Annotated[
    str | None,
    typer.Option(
        "--judge", metavar="SPEC", help="The recogniser that measures: a pack, or a recogniser alone."
    ),
]
NoRestore = Annotated[
    bool,
    typer.Option("--no-restore", help="Leave the restoration out; what is enlarged is enlarged plainly."),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an existing OUT.mp4.")]
Out = Annotated[
    Path, typer.Option("-o", "--output", metavar="OUT.mp4", help="The clip; its report goes beside it.")
]
Size = Annotated[
    str | None,
    typer.Option(
        "--size",
        metavar="SIZE",
        help="Final size: 480p, 540p, 720p, 1080p, 1440p, 4k or a short side in pixels, of the recipe's shape; "
        "or WxH, cut to that shape. Default: the recipe's.",
    ),
]
AlignerKind = Annotated[
    str | None,
    typer.Option("--aligner", metavar="KIND", help="inswapper, warp or faceid. Default: what suits."),
]
Replace = Annotated[
    list[str] | None,
    typer.Option(
        "--replace", metavar="PICTURE", help="Who in CLIP is to have the face; once per --face, in order."
    ),
]
Vram = Annotated[
    int | None,
    typer.Option("--vram", metavar="GIB", help="GPU memory to plan for: 8, 12, 16, 24, 48 or 80."),
]
Reference = Annotated[
    bool, typer.Option("--reference", help="The plain code path, without any [speed] choice, for comparison.")
]
Restart = Annotated[bool, typer.Option("--restart", help="Forget an unfinished run instead of resuming.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress, no warnings.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show a traceback with an error, and log more.")]


def tell(report: Report, output: Path, *, as_json: bool, quiet: bool) -> None:
    """The result on stdout: one JSON object, or one line."""
    if as_json:
        left_out: Any = {"ledger": True, "ledger_unlocked": True, "sheet": True, "settings": {"recipe"}}
        summary = report.model_dump(mode="json", by_alias=True, exclude=left_out)
        for character in summary["characters"]:
            character.pop("portrait")
        print(json.dumps({"output": str(output), "misses": report.misses(report.target), **summary}))
    elif not quiet:
        from facelock.report.explained import lines

        print("\n".join([f"{output}: {report.verdict}", *lines(report)]))


def require(report: Report, target: float) -> None:
    """Leave with exit code 4 when the report misses the target."""
    from facelock.clip import require_target

    require_target(report, target)
