"""``facelock identity create``, ``show``, ``embed`` and ``revoke``: identities as files. It has no logic of its own.

Everything heavy is imported when a command runs.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from facelock.cli.options import AsJson, Commercial, Debug, Device, FacesSpec, JudgeSpec, Quiet
from facelock.cli.terminal import running

if TYPE_CHECKING:
    from facelock.identity.storage import Record
    from facelock.types import Consent

identity = typer.Typer(add_completion=False, no_args_is_help=True, rich_markup_mode=None)

File = Annotated[Path, typer.Argument(metavar="FILE.face", help="An identity.")]
CREATE_EXAMPLES = """\
Examples:

\b
  facelock identity create maria photos/*.jpg -o maria.face
  facelock identity create leo leo.png -o leo.face --consent self --consent-scope "my own clips"

Photos that are blurred, dark, turned away or of somebody else are left out, and named."""


@identity.command(epilog=CREATE_EXAMPLES)
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What to call the person.")],
    photos: Annotated[list[Path], typer.Argument(metavar="PHOTO...", help="One or more photos of them.")],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="OUT.face", help="The identity; only you can read it.")
    ],
    faces: FacesSpec = None,
    judge: JudgeSpec = None,
    device: Device = "auto",
    keep_crops: Annotated[
        bool,
        typer.Option(
            "--keep-crops",
            help="Store aligned crops too, for aligners that need them and for other recognisers.",
        ),
    ] = False,
    consent: Annotated[
        str,
        typer.Option("--consent", metavar="KIND", help="self, granted, fictional, licensed or unknown."),
    ] = "unknown",
    consent_by: Annotated[str, typer.Option("--consent-by", metavar="WHO", help="Who gave it.")] = "",
    consent_scope: Annotated[
        str, typer.Option("--consent-scope", metavar="TEXT", help="What it covers.")
    ] = "",
    consent_expires: Annotated[
        str, typer.Option("--consent-expires", metavar="DATE", help="Its last day, such as 2026-12-31.")
    ] = "",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")] = False,
    face_index: Annotated[
        list[int] | None,
        typer.Option("--face-index", metavar="N", help="Which face of a photo with several; once per photo."),
    ] = None,
    commercial: Commercial = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Make one identity of one or more PHOTOs of a person: NAME's natural range, robust against bad photos.

    Photos are not stored. What became of each is said on stderr.
    """
    with running(quiet, debug) as display:
        record = _consent(consent, consent_by, consent_scope, consent_expires)
        display.say(f"looking at {len(photos)} photo{'s' if len(photos) > 1 else ''}")
        from facelock import api
        from facelock.identity.consent import remark_unknown
        from facelock.identity.storage import check_target, read_record

        check_target(output, overwrite=overwrite)
        made = api.create_identity(
            photos, name=name, faces=faces or "miniature", judge=judge, device=device,
            keep_crops=keep_crops, consent=record,
            face=face_index or None, commercial=commercial, progress=display.step,
        )  # fmt: skip
        for remark in made.remarks:
            display.say(remark)
        remark_unknown(made.identity)
        api.save_identity(made, output, overwrite=overwrite)
    _tell(output, read_record(output), f"{name} from {made.identity.source}", as_json=as_json, quiet=quiet)


def _consent(kind: str, who: str, scope: str, expires: str) -> Consent:
    """The record that the options make, given today."""
    from facelock.identity.consent import check_consent, today
    from facelock.types import Consent

    given = "" if kind == "unknown" else today().isoformat()
    return check_consent(Consent(kind, who, given, scope, expires))


@identity.command()
def show(file: File, as_json: AsJson = False, debug: Debug = False) -> None:
    """Show what FILE.face says: encoders, natural range, quality, consent, when and with what it was made."""
    with running(quiet=False, debug=debug):
        from facelock.identity.storage import describe, read_record

        record = read_record(file)
    typer.echo(json.dumps(_summary(file, record)) if as_json else "\n".join(describe(record)))


@identity.command()
def embed(
    file: File,
    faces: FacesSpec = None,
    judge: JudgeSpec = None,
    device: Device = "auto",
    commercial: Commercial = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Add other recognisers' embeddings to FILE.face, which must hold crops (--keep-crops); the old ones stay."""
    with running(quiet, debug):
        from facelock.identity.storage import embed_file
        from facelock.perception import MINIATURE, open_perception
        from facelock.runtime import resolve_device

        seen = open_perception(
            faces or MINIATURE, judge, device=resolve_device(device), commercial=commercial
        )
        record = embed_file(file, seen)
    known = ", ".join(record.identity.embeddings)
    _tell(file, record, f"embedded by {known}", as_json=as_json, quiet=quiet)


@identity.command()
def revoke(file: File, quiet: Quiet = False, as_json: AsJson = False, debug: Debug = False) -> None:
    """Mark the consent of FILE.face as taken back today: it is refused wherever it is used from now on."""
    with running(quiet, debug):
        from facelock.identity.storage import revoke as take_back

        record = take_back(file)
    day = record.identity.consent.revoked
    _tell(file, record, f"consent revoked on {day}", as_json=as_json, quiet=quiet)


def _summary(path: Path, record: Record) -> dict[str, Any]:
    from facelock.identity.storage import summary

    return {"file": str(path), **summary(record)}


def _tell(path: Path, record: Record, text: str, *, as_json: bool, quiet: bool) -> None:
    """The result on stdout: one JSON object, or one line."""
    if as_json:
        typer.echo(json.dumps(_summary(path, record)))
    elif not quiet:
        typer.echo(f"{path}: {text}")
