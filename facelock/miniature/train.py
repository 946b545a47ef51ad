"""The commands of ``python -m facelock.miniature``."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from facelock.assets import asset_dir
from facelock.miniature import data
from facelock.miniature.bundled import load_bundled
from facelock.miniature.trainer import Task, Trainer, averaged
from facelock.nets.recogniser import Recogniser

log = logging.getLogger(__name__)

ORDER = (
    "recogniser",
    "judge",
    "vae",
    "detector",
    "reader",
    "identity_reader",
    "aligner",
    "restorer",
    "upscaler",
    "blueprint",
    "tiny_decoder",
)
LIVE_STEPS = {
    "recogniser": 3000,
    "judge": 3000,
    "detector": 3000,
    "vae": 3000,
    "reader": 3000,
    "identity_reader": 1000,
    "aligner": 2000,
    "restorer": 2000,
    "upscaler": 1000,
    "blueprint": 8000,
    "tiny_decoder": 1000,
}
"""On a GPU, where batches are large and rendered as they are needed (:mod:`facelock.miniature.live`)."""
WINDOWS = 48000
"""Clips that a GPU encodes for the blueprint; half of them are decoded again, for those who read faces."""
SETS = {"faces": 16, "judge": 4, "heldout": 2, "frames": 6, "clips": 14}
OFFSETS = (0, 8)
"""First frames of the 17-frame windows that a clip is encoded at."""
STEPS = {
    "recogniser": 1700,
    "judge": 4000,
    "detector": 3400,
    "vae": 11800,
    "reader": 5000,
    "identity_reader": 3000,
    "aligner": 2500,
    "restorer": 3000,
    "upscaler": 1000,
    "blueprint": 7900,
    "tiny_decoder": 1000,
}


MADE_OF = {
    "aligner": ("reader", "identity_reader"),
    "restorer": ("reader", "identity_reader"),
    "blueprint": ("vae",),
}
"""Exported file → other parts that are in it."""


@dataclass(frozen=True)
class Workshop:
    """Where training reads and writes, and on which device."""

    root: Path
    device: str = "cpu"
    clips: int = WINDOWS
    kept: dict[str, Any] = field(default_factory=dict, compare=False)
    """What several parts need and none changes."""

    @property
    def live(self) -> bool:
        """Whether pictures are rendered while training instead of read from sets."""
        return torch.device(self.device).type == "cuda"

    @property
    def pool(self) -> Path:
        """Rendered sets."""
        return self.root / "pool"

    def folder(self, part: str) -> Path:
        """Training state of a part."""
        return self.root / "train" / part

    def trained_here(self, part: str) -> bool:
        """Whether the part has a training state."""
        return (self.folder(part) / "state.safetensors").is_file()

    def latest(self, part: str, module: nn.Module) -> nn.Module:
        """Give ``module`` the weights of ``part`` that were trained here, else those that ship; in evaluation."""
        if self.trained_here(part):
            return averaged(self.folder(part), module)
        log.info("no %s was trained here: taking the one that ships", part)
        return load_bundled(part, module).eval()

    def recogniser(self) -> nn.Module:
        """The trained, whitened recogniser of the lock."""
        if not self.trained_here("recogniser"):
            return self.latest("recogniser", Recogniser())
        return self._whitened("recogniser", "faces")

    def judge(self) -> nn.Module:
        """The trained, whitened judge."""
        return self._whitened("judge", "judge")

    def _whitened(self, part: str, kind: str) -> nn.Module:
        from facelock.miniature.recognition import FacePool, whiten
        from facelock.nets.crate import Crate

        net: Any = averaged(self.folder(part), Crate() if part == "judge" else Recogniser(), "net.")
        path = self.folder(part) / "whiten.safetensors"
        from safetensors.torch import load_file, save_file

        if (
            not path.is_file()
            or path.stat().st_mtime < (self.folder(part) / "state.safetensors").stat().st_mtime
        ):
            if (self.pool / kind).is_dir():
                whiten(net, FacePool(kind, self.pool))
            else:
                from facelock.miniature.live import LiveFaces

                whiten(net, LiveFaces("judge" if part == "judge" else "train", self.device))
            save_file({"weight": net.whiten.weight.data, "bias": net.whiten.bias.data}, path)
        net.whiten.load_state_dict(load_file(path))
        return net

    def vae(self) -> nn.Module:
        """The trained autoencoder, or the one that ships, accelerated."""
        from facelock.blueprint.wan_vae_cpu import accelerate_vae
        from facelock.miniature.vae import make_vae

        vae = self.latest("vae", make_vae())
        accelerate_vae(vae)  # type: ignore[arg-type]
        return vae.to(self.device)

    def windows(self, *, frames: bool = True) -> Any:
        """The windows of a training that renders, made once; without their frames where they are not needed."""
        from facelock.miniature.live import Windows, make_windows

        folder, name = self.root / "windows", f"windows {frames}"
        if not (folder / "latents.safetensors").is_file():
            make_windows(self.vae(), self.clips, self.clips // 2, self.device).save(folder)
        if name not in self.kept:
            self.kept[name] = Windows.load(folder, frames=frames)
        return self.kept[name]

    def latents(self) -> Tensor:
        """Latents of every clip, encoded once."""
        from safetensors.torch import load_file, save_file

        from facelock.miniature.vae import ClipPool, encode_clips

        if self.live:
            return self.windows(frames=False).latents.to(self.device).float()
        path = self.folder("vae") / "latents.safetensors"
        if not path.is_file():
            log.info("encoding the clips")
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file({"latents": encode_clips(self.vae(), ClipPool(self.pool), OFFSETS).half()}, path)
        return load_file(path)["latents"].float()


def make_task(part: str, shop: Workshop, steps: int) -> Any:
    """Build the training task of ``part``; what it depends on must be trained already."""
    if shop.live:
        return _live_task(part, shop, steps)
    if part in ("recogniser", "judge"):
        from facelock.miniature.recognition import RecognitionTask

        return RecognitionTask(part, shop.pool, steps)
    if part == "detector":
        from facelock.miniature.detection import DetectionTask

        return DetectionTask(shop.pool, steps)
    if part == "vae":
        from facelock.miniature.vae import VaeTask

        return VaeTask(shop.pool, steps)
    if part == "reader":
        from facelock.miniature.alignment import ReaderTask

        return ReaderTask(shop.pool, steps)
    if part == "identity_reader":
        from facelock.miniature.alignment import IdentityReaderTask

        return IdentityReaderTask(shop.pool, shop.recogniser(), steps)  # type: ignore[arg-type]
    if part in ("aligner", "restorer"):
        return _alignment_task(part, shop, steps)
    if part == "upscaler":
        from facelock.miniature.upscaling import UpscalingTask

        return UpscalingTask(steps, device=shop.device)
    if part == "tiny_decoder":
        return _tiny_decoder_task(shop, steps)
    from facelock.miniature.diffusion import captions_of

    return _diffusion_task(shop, captions_of(shop.pool), steps, 16)


def _diffusion_task(shop: Workshop, captions: Sequence[str], steps: int, batch: int) -> Task:
    from facelock.miniature.diffusion import DiffusionTask, normalise
    from facelock.miniature.vae import fit_round_trip

    latents, mean, deviation = normalise(shop.latents())
    trip = fit_round_trip(shop.vae(), latents, mean, deviation)
    return DiffusionTask(latents, captions, steps, batch, trip)


def _live_task(part: str, shop: Workshop, steps: int) -> Task:
    """The same for a GPU: pictures are rendered as they are needed."""
    from facelock.miniature import live

    if part in ("recogniser", "judge"):
        return live.LiveRecognition(part, steps)
    if part == "vae":
        return live.LiveVae(steps)
    if part == "upscaler":
        return live.LiveUpscaling(steps)
    if part == "identity_reader":
        return live.LiveIdentityReader(shop.recogniser().to(shop.device), steps)  # type: ignore[arg-type]
    if part == "blueprint":
        return _diffusion_task(shop, shop.windows(frames=False).captions, steps, 1024)
    if part == "tiny_decoder":
        from facelock.miniature.diffusion import normalise

        statistics = [torch.tensor(v) for v in normalise(shop.latents())[1:]]
        windows = shop.windows(frames=False)
        return live.LiveTinyDecoder(windows, shop.vae(), (statistics[0], statistics[1]), steps)
    if part == "detector":
        return live.LiveDetection(shop.windows(), steps)
    if part == "reader":
        return live.LiveReader(shop.windows(), steps)
    task = live.LiveAlignment(part, shop.windows(), shop.recogniser(), steps)  # type: ignore[arg-type]
    return _with_readers(task, shop)


def build_set(shop: Workshop, kind: str, count: int | None) -> None:
    """Render a set; ``decoded`` needs the trained autoencoder, the others nothing."""
    if kind == "decoded" and shop.live:
        shop.windows(frames=False)
        return
    if kind != "decoded":
        data.build(kind, count or SETS[kind], shop.pool, shop.device)
        return
    from facelock.miniature.vae import build_decoded

    build_decoded(shop.vae(), OFFSETS, shop.pool)


def _tiny_decoder_task(shop: Workshop, steps: int) -> Task:
    """Taught by the blueprint's autoencoder as it ships: guidance works on that one's latents."""
    from facelock.blueprint.wan_vae_cpu import accelerate_vae
    from facelock.miniature.tiny_decoder import TinyDecoderTask, pairs_of
    from facelock.miniature.vae import ClipPool, make_vae

    config = asset_dir("models") / "miniature" / "blueprint" / "vae" / "config.json"
    vae: Any = load_bundled("vae", make_vae()).eval()
    accelerate_vae(vae)
    statistics = json.loads(config.read_text())
    pairs = pairs_of(shop.folder("tiny_decoder"), vae.to(shop.device), statistics, ClipPool(shop.pool))
    return TinyDecoderTask(pairs, steps)


def _alignment_task(part: str, shop: Workshop, steps: int) -> Task:
    from facelock.miniature.alignment import AlignmentTask

    return _with_readers(AlignmentTask(part, shop.pool, shop.recogniser(), steps), shop)  # type: ignore[arg-type]


def _with_readers(task: Any, shop: Workshop) -> Task:
    shop.latest("reader", task.module.reader)  # type: ignore[arg-type]
    shop.latest("identity_reader", task.module.identity)  # type: ignore[arg-type]
    task.module.train()
    return task


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
    out.write_catalog(models, evaluate(shop))


def trained(models: Path) -> dict[str, list[dict[str, Any]]]:
    """What each part that ships went through: part → its sittings, oldest first."""
    path = models / "miniature" / "training.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def record_training(shop: Workshop, models: Path, parts: Sequence[str]) -> None:
    """Write beside the models what each exported part went through: the states themselves do not ship."""
    from safetensors import safe_open

    from facelock.miniature import curves

    known = trained(models)
    for part in filter(shop.trained_here, parts):
        with safe_open(shop.folder(part) / "state.safetensors", "pt") as file:
            meta = file.metadata()
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
    from facelock.miniature.alignment import MomentPool, keep_motion
    from facelock.miniature.model_aligner import ModelAligner

    net = ModelAligner(restores=part == "restorer")
    for name, module in ((part, net), ("reader", net.reader), ("identity_reader", net.identity)):
        if name == part or shop.trained_here(name):
            shop.latest(name, module)
            if name == "reader" and part == "aligner":  # what the restorer reads is sharp
                log.info("pose stretched by %s", keep_motion(module, MomentPool(shop.pool)))
    return net.eval()


def _export_blueprint(shop: Workshop, folder: Path) -> None:
    from facelock.miniature import export as out
    from facelock.miniature.diffusion import Blueprint, make_tokenizer, normalise
    from facelock.miniature.vae import make_vae

    _, mean, deviation = normalise(shop.latents())
    vae = make_vae(mean, deviation)
    vae.load_state_dict({k: v.cpu() for k, v in shop.vae().state_dict().items()})
    tokenizer = make_tokenizer()
    model = Blueprint(len(tokenizer))
    shop.latest("blueprint", model)
    out.export_blueprint(vae, model, tokenizer, folder)


def evaluate(shop: Workshop) -> dict[str, dict[str, float]]:
    """Held-out verification figures of the exported recognisers, clean and degraded.

    The thresholds that ship come from the degraded ones.
    """
    from facelock.miniature.cards import encoders
    from facelock.miniature.recognition import FacePool, verification

    pool, figures = FacePool("heldout", shop.pool), {}
    for part, embed in encoders().items():
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
) -> None:
    """Train one part to its last step, or for so many seconds, resuming what was saved.

    With ``bundled`` and nothing saved, it starts from the weights that ship, at half the learning rate.
    """
    if shop.live:
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.benchmark = True
    planned = (LIVE_STEPS if shop.live else STEPS)[part]
    # By the clock, the margins of the losses grow as planned, and no number of steps ends the training.
    task, origin = make_task(part, shop, steps or planned), list[Any]()
    if bundled:
        load_bundled(part, task.module)
        task.rate, origin = task.rate / 2, trained(asset_dir("models")).get(part, [])
    Trainer(task, shop.folder(part), device=shop.device, seed=seed, origin=origin, seconds=seconds).run()
    if part == "vae":
        build_set(shop, "decoded", None)


def _wanted(parser: argparse.ArgumentParser, given: Sequence[str]) -> list[tuple[str, float | None]]:
    """``recogniser`` and ``vae=120`` → parts and the seconds they may take."""
    out: list[tuple[str, float | None]] = []
    for text in ORDER if [*given] == ["all"] else given:
        part, _, seconds = text.partition("=")
        if part not in ORDER or not (seconds or "1").replace(".", "", 1).isdigit():
            parser.error(f"{text!r} is no part to train; there are all, {', '.join(ORDER)}, each =SECONDS")
        out.append((part, float(seconds) if seconds else None))
    return out


def main(argv: list[str] | None = None) -> None:
    """Entry point of ``python -m facelock.miniature``."""
    parser = argparse.ArgumentParser(prog="python -m facelock.miniature", description=__doc__)
    parser.add_argument(
        "--root", type=Path, default=Path("work/miniature"), help="folder of sets and training states"
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument(
        "--threads", type=int, default=0, help="threads of this process; 1 where several share a machine"
    )
    parser.add_argument(
        "--windows", type=int, default=WINDOWS, help="clips that a GPU encodes for the blueprint"
    )
    commands = parser.add_subparsers(dest="command", required=True)
    p = commands.add_parser("data", help="render the training sets")
    p.add_argument("kind", choices=[*SETS, "decoded", "all"])
    p.add_argument("--shards", type=int)
    p = commands.add_parser("train", help="train one part, or all in order; resumes")
    p.add_argument(
        "parts", nargs="+", metavar="PART", help=f"all, or any of {', '.join(ORDER)}; PART=SECONDS"
    )
    p.add_argument("--steps", type=int)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument(
        "--bundled", action="store_true", help="start from the weights that ship, not from scratch"
    )
    p = commands.add_parser("export", help="write trained parts to models/miniature and the catalog")
    p.add_argument("parts", nargs="*", choices=[[], *ORDER], default=[])
    commands.add_parser("cards", help="measure the exported models and write their model cards")
    commands.add_parser("evaluate", help="held-out figures of the recognisers")
    commands.add_parser("parts", help="measure which parts of a face the judge sees: for verify --explain")
    p = commands.add_parser("crate", help="what the judge's layers do and look at: a table and a picture")
    p.add_argument("picture", type=Path, nargs="?", default=Path("docs/judge.png"))
    p = commands.add_parser("samples", help="render the sample faces")
    p.add_argument("folder", type=Path, nargs="?", default=Path("samples/faces"))
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    if args.threads:
        torch.set_num_threads(args.threads)
    shop = Workshop(args.root, args.device, args.windows)
    if args.command == "data":
        for kind in SETS if args.kind == "all" else (args.kind,):
            build_set(shop, kind, args.shards)
    elif args.command == "train":
        for part, seconds in _wanted(parser, args.parts):
            train(shop, part, args.steps, args.seed, args.bundled, seconds)
    elif args.command == "export":
        export(shop, tuple(args.parts) or ORDER, asset_dir("models"))
    elif args.command == "cards":
        from facelock.miniature import cards

        cards.write(
            asset_dir("models"), trained(asset_dir("models")), cards.measure(shop.pool, evaluate(shop))
        )
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
        evaluate(shop)
