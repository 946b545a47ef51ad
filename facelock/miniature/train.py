"""The commands of ``python -m facelock.miniature``."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from facelock.assets import asset_dir
from facelock.errors import ConfigError, FaceLockError, InterruptedRunError
from facelock.miniature import data
from facelock.miniature.bundled import load_bundled
from facelock.miniature.tasks import make_task
from facelock.miniature.trainer import Trainer, averaged
from facelock.miniature.workshop import (
    LEARNS_FROM,
    LIVE_STEPS,
    MADE_OF,
    ORDER,
    SETS,
    STEPS,
    WINDOWS,
    Workshop,
)
from facelock.runtime import resolve_device

log = logging.getLogger(__name__)


def build_set(shop: Workshop, kind: str, count: int | None) -> None:
    """Render a set; ``decoded`` needs the trained autoencoder, the others nothing."""
    if kind == "decoded" and shop.live:
        shop.windows()
    elif kind == "decoded":
        from facelock.miniature.vae import build_decoded

        build_decoded(shop.vae(), count or SETS[kind], shop.pool)
    else:
        data.build(kind, count or SETS[kind], shop.pool, shop.device)


def render_missing(shop: Workshop, kinds: Sequence[str]) -> None:
    """Render the sets that are not there, and go on with those whose rendering was stopped."""
    for kind in kinds:
        planned = data.planned(kind, shop.pool)
        if planned is not None or not (shop.pool / kind).is_dir():
            build_set(shop, kind, planned)


def export(shop: Workshop, parts: tuple[str, ...], models: Path) -> None:
    """Write the trained parts to ``models/miniature`` and the catalog."""
    from facelock.miniature import export as out

    folder = models / "miniature"
    writers: dict[str, Callable[[], Any]] = {
        "recogniser": lambda: out.export_recogniser(shop.recogniser(), folder),
        "judge": lambda: out.export_judge(shop.judge(), folder),
        "detector": lambda: out.export_detector(averaged(shop.folder("detector"), _net("detector")), folder),
        "aligner": lambda: out.export_swapper(_swapper(shop, "aligner"), folder / "aligner.onnx"),
        "restorer": lambda: out.export_swapper(_swapper(shop, "restorer"), folder / "restorer.onnx"),
        "upscaler": lambda: out.export_upscaler(averaged(shop.folder("upscaler"), _net("upscaler")), folder),
        "blueprint": lambda: _export_blueprint(shop, folder),
        "tiny_decoder": lambda: out.export_tiny_decoder(_tiny_decoder(shop), folder),
    }
    learned = [part for part in ORDER if shop.trained_here(part)]
    for part in parts:
        if part in writers and {part, *MADE_OF.get(part, ())} & {*learned}:
            log.info("exporting %s", part)
            writers[part]()
    record_training(shop, models, parts)
    out.write_catalog(models, evaluate(shop, models))


def trained(models: Path) -> dict[str, list[dict[str, Any]]]:
    """What each part that ships went through: part → its sittings, oldest first."""
    path = models / "miniature" / "training.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def record_training(shop: Workshop, models: Path, parts: Sequence[str]) -> None:
    """Write beside the models what each exported part went through: the states themselves do not ship."""
    from facelock.miniature import curves

    known = trained(models)
    within = {*parts, *(inner for part in parts for inner in MADE_OF.get(part, ()))}
    for part in filter(shop.trained_here, sorted(within)):
        meta = shop.metadata(part)
        known[part] = [*json.loads(meta["origin"]), curves.sitting(meta)]
    (models / "miniature" / "training.json").write_text(json.dumps(known, indent=1) + "\n")


def _net(kind: str) -> nn.Module:
    from facelock.nets.compact_sr import CompactSR
    from facelock.nets.scrfd import Scrfd

    return {"detector": Scrfd, "upscaler": CompactSR}[kind]()


def _tiny_decoder(shop: Workshop) -> nn.Module:
    from facelock.miniature.tiny_decoder import make_tiny_decoder

    return averaged(shop.folder("tiny_decoder"), make_tiny_decoder())


def _swapper(shop: Workshop, part: str) -> nn.Module:
    """The compositor of ``part`` around the latest readers, which may have learned on; else as they ship."""
    from facelock.miniature.model_aligner import ModelAligner
    from facelock.miniature.reading import MomentPool, keep_motion
    from facelock.miniature.vae import build_decoded

    net = ModelAligner(restores=part == "restorer")
    for name, module in ((part, net), ("reader", net.reader), ("identity_reader", net.identity)):
        if name == part or shop.trained_here(name):
            shop.latest(name, module)
            if name == "reader" and part == "aligner":  # what the restorer reads is sharp
                if not data.count("decoded", shop.pool):  # a GPU trains without sets
                    build_decoded(shop.vae(), 1, shop.pool)
                log.info("stretched by %s", keep_motion(module, MomentPool(shop.pool)))
    return net.eval()


def _export_blueprint(shop: Workshop, folder: Path) -> None:
    from facelock.miniature import export as out
    from facelock.miniature.diffusion import Blueprint, make_tokenizer
    from facelock.miniature.vae import make_vae

    mean, deviation = shop.statistics() or shop.normal_latents()[1:]
    vae = make_vae(mean, deviation)
    vae.load_state_dict({k: v.cpu() for k, v in shop.vae().state_dict().items()})
    tokenizer = make_tokenizer()
    model = Blueprint(len(tokenizer))
    shop.latest("blueprint", model)
    out.export_blueprint(vae, model, tokenizer, folder)


def evaluate(shop: Workshop, models: Path) -> dict[str, dict[str, float]]:
    """Held-out verification figures of the exported recognisers, clean and degraded.

    The thresholds that ship come from the degraded ones.
    """
    from facelock.miniature.cards import encoders
    from facelock.miniature.recognition import FacePool, verification

    render_missing(shop, ["heldout"])
    pool, figures = FacePool("heldout", shop.pool), {}
    for part, embed in encoders(models).items():
        figures[part] = verification(embed, pool, blur=True)
        for kind, found in (("clean", verification(embed, pool)), ("degraded", figures[part])):
            log.info("%s %s %s", part, kind, json.dumps({k: round(v, 4) for k, v in found.items()}))
    return figures


def train(
    shop: Workshop,
    part: str,
    steps: int | None,
    seed: int,
    bundled: bool = False,
    seconds: float | None = None,
    rate: float | None = None,
    batch: int | None = None,
) -> None:
    """Train one part to its last step, or for so many seconds, resuming what was saved. Sets it lacks are rendered.

    With ``bundled`` and nothing saved, it starts from the weights that ship, at half the learning rate, unless
    ``rate`` says another. ``batch`` instead of the part's own size of its batches: not every part has one.
    """
    if shop.live:
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.benchmark = True
    else:
        render_missing(shop, LEARNS_FROM[part])
    planned = (LIVE_STEPS if shop.live else STEPS)[part]
    # By the clock, the margins of the losses grow as planned, and no number of steps ends the training.
    task, origin = make_task(part, shop, steps or planned), list[Any]()
    if bundled:
        load_bundled(part, task.module)
        if part == "vae":
            load_bundled("reader", task.module.reader)
        task.rate, origin = task.rate / 2, trained(asset_dir("models")).get(part, [])
    task.rate = rate or task.rate
    if batch:
        if not hasattr(task, "batch"):
            raise ConfigError(f"The batches of {part} have a size of their own. Leave --batch out.")
        task.batch = batch
    Trainer(task, shop.folder(part), device=shop.device, seed=seed, origin=origin, seconds=seconds).run()


def _wanted(parser: argparse.ArgumentParser, given: Sequence[str]) -> list[tuple[str, float | None]]:
    """``recogniser`` and ``vae=120`` → parts and the seconds they may take."""
    out: list[tuple[str, float | None]] = []
    for text in ORDER if [*given] == ["all"] else given:
        part, _, seconds = text.partition("=")
        if part not in ORDER or not (seconds or "1").replace(".", "", 1).isdigit():
            parser.error(f"{text!r} is no part to train; there are all, {', '.join(ORDER)}, each =SECONDS")
        out.append((part, float(seconds) if seconds else None))
    return out


def learning_rate(text: str) -> float:
    """A learning rate: a number above 0 and up to 1."""
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is no learning rate; it is above 0 and at most 1")
    return value


def batch_size(text: str) -> int:
    """A size of batches: an even number above 0, since some parts learn from pairs."""
    value = int(text)
    if value < 2 or value % 2:
        raise argparse.ArgumentTypeError(f"{text} is no batch size; it is an even number, 2 or more")
    return value


def _options(parser: argparse.ArgumentParser, default: bool) -> argparse.ArgumentParser:
    """What every command takes, before its name or after it."""

    def kept(value: Any) -> Any:
        return value if default else argparse.SUPPRESS

    parser.add_argument(
        "--root", type=Path, default=kept(Path("work/miniature")), help="folder of sets and training states"
    )
    parser.add_argument("--device", default=kept("cpu"), help="cpu or cuda")
    parser.add_argument(
        "--threads",
        type=int,
        default=kept(0),
        help="threads of this process; 1 where several share a machine",
    )
    parser.add_argument(
        "--windows", type=int, default=kept(WINDOWS), help="clips that a GPU encodes for the blueprint"
    )
    return parser


def _parser() -> argparse.ArgumentParser:
    parser = _options(argparse.ArgumentParser(prog="python -m facelock.miniature", description=__doc__), True)
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, text: str) -> argparse.ArgumentParser:
        return _options(commands.add_parser(name, help=text), False)

    p = command("data", "render the training sets")
    p.add_argument("kind", choices=[*SETS, "all"])
    p.add_argument("--shards", type=int)
    p = command("train", "train one part, or all in order; renders the sets it lacks; resumes")
    p.add_argument(
        "parts", nargs="+", metavar="PART", help=f"all, or any of {', '.join(ORDER)}; PART=SECONDS"
    )
    p.add_argument("--steps", type=int)
    p.add_argument(
        "--rate",
        type=learning_rate,
        help="learning rate at its peak; smaller ones disturb less what is known",
    )
    p.add_argument("--batch", type=batch_size, help="samples of a batch; larger ones say less of chance")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument(
        "--bundled", action="store_true", help="start from the weights that ship, not from scratch"
    )
    p = command("export", "write trained parts to models/miniature and the catalog")
    p.add_argument("parts", nargs="*", choices=[[], *ORDER], default=[])
    command("cards", "measure the exported models and write their model cards")
    command("evaluate", "held-out figures of the recognisers")
    command("parts", "measure which parts of a face the judge sees: for verify --explain")
    p = command("crate", "what the judge's layers do and look at: a table and a picture")
    p.add_argument("picture", type=Path, nargs="?", default=Path("docs/judge.png"))
    p = command("samples", "render the sample faces")
    p.add_argument("folder", type=Path, nargs="?", default=Path("samples/faces"))
    return parser


def _run(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    shop = Workshop(args.root, str(resolve_device(args.device)), args.windows)
    if args.command == "data":
        every = [kind for kind in SETS if kind != "decoded"]  # that one waits for the autoencoder
        for kind in every if args.kind == "all" else (args.kind,):
            build_set(shop, kind, args.shards)
    elif args.command == "train":
        parts = _wanted(parser, args.parts)
        if args.batch and len(parts) > 1:
            parser.error("--batch is for one part: what suits one is too much for another")
        for part, seconds in parts:
            train(shop, part, args.steps, args.seed, args.bundled, seconds, args.rate, args.batch)
    elif args.command == "export":
        export(shop, tuple(args.parts) or ORDER, asset_dir("models"))
    elif args.command == "cards":
        from facelock.miniature import cards

        models = asset_dir("models")
        render_missing(shop, ["heldout"])
        cards.write(models, trained(models), cards.measure(shop.pool))
    elif args.command == "samples":
        from facelock.miniature import samples

        samples.write(args.folder)
    elif args.command == "parts":
        from facelock.miniature import parts_of_face

        parts_of_face.write(asset_dir("models"))
    elif args.command == "crate":
        from facelock.miniature import inside_crate

        sys.stdout.write(inside_crate.write(args.picture))
    else:
        evaluate(shop, asset_dir("models"))


def main(argv: list[str] | None = None) -> None:
    """Entry point of ``python -m facelock.miniature``; ends by ``SystemExit`` with the codes of the command line."""
    parser = _parser()
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    if args.threads:
        torch.set_num_threads(args.threads)
    try:
        _run(parser, args)
    except FaceLockError as error:
        sys.stderr.write(f"{error}\n")
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt:
        sys.stderr.write("Stopped. The same command goes on from what was saved within the last minute.\n")
        raise SystemExit(InterruptedRunError.exit_code) from None
