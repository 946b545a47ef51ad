"""Where training reads and writes, which parts there are, and how long each is trained."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from facelock.miniature import data
from facelock.miniature.bundled import autoencoder_config, load_bundled
from facelock.miniature.trainer import averaged
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
    "recogniser": 1200,
    "judge": 1200,
    "detector": 500,
    "vae": 2100,
    "reader": 1200,
    "identity_reader": 500,
    "aligner": 400,
    "restorer": 400,
    "upscaler": 500,
    "blueprint": 3000,
    "tiny_decoder": 600,
}
"""On a GPU, where batches are large and rendered as they are needed (:mod:`facelock.miniature.live`): half an hour."""
WINDOWS = 48000
"""Clips that a GPU encodes for the blueprint; half of them are decoded again, for those who read faces."""
STATISTICS = "statistics.json"
"""Beside the autoencoder's state: what its latents are divided by, as the blueprint learned them."""
GAIN = 16.0
"""What an error in the middle of an eye or mouth counts for more than one elsewhere, while the blueprint learns."""
SETS = {"faces": 16, "judge": 4, "heldout": 2, "people": 24, "decoded": 20, "frames": 6, "clips": 14}
LEARNS_FROM: dict[str, tuple[str, ...]] = {
    "recogniser": ("faces",),
    "judge": ("judge",),
    "vae": ("clips",),
    "detector": ("frames", "decoded"),
    "reader": ("frames", "decoded"),
    "identity_reader": ("people",),
    "aligner": ("faces",),
    "restorer": ("faces",),
    "upscaler": (),
    "blueprint": ("clips",),
    "tiny_decoder": ("clips",),
}
"""Part → the sets that it is trained on, where pictures are not rendered anew for every batch."""
STEPS = {
    "recogniser": 3500,
    "judge": 7000,
    "detector": 4500,
    "vae": 11800,
    "reader": 5000,
    "identity_reader": 4000,
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
        from facelock.miniature.recognition import FacePool, turn, whiten
        from facelock.nets.crate import Crate

        net: Any = averaged(self.folder(part), Crate() if part == "judge" else Recogniser(), "net.")
        path = self.folder(part) / "whiten.safetensors"
        from safetensors.torch import load_file, save_file

        if (
            not path.is_file()
            or path.stat().st_mtime < (self.folder(part) / "state.safetensors").stat().st_mtime
        ):
            if (self.pool / kind).is_dir():
                pool: Any = FacePool(kind, self.pool)
            else:
                from facelock.miniature.live import LiveFaces

                pool = LiveFaces("judge" if part == "judge" else "train", self.device)
            whiten(net, pool)
            # One that began with what ships: spares those who read it most of their learning.
            if part == "recogniser" and self.metadata(part)["origin"] != "[]":
                turn(net, load_bundled(part, Recogniser()).eval(), pool)
            save_file({"weight": net.whiten.weight.data, "bias": net.whiten.bias.data}, path)
        net.whiten.load_state_dict(load_file(path))
        return net

    def metadata(self, part: str) -> dict[str, str]:
        """What the training state of ``part`` tells of itself."""
        from safetensors import safe_open

        with safe_open(self.folder(part) / "state.safetensors", "pt") as file:
            return dict(file.metadata())

    def vae(self) -> nn.Module:
        """The trained autoencoder, or the one that ships, accelerated."""
        from facelock.miniature.vae import Watched

        vae: nn.Module = self.latest("vae", Watched()).vae  # type: ignore[assignment]
        return vae.to(self.device)

    def windows(self, *, frames: bool = True) -> Any:
        """The windows of a training that renders, made once; without their frames where they are not needed."""
        from facelock.miniature.windows import Windows, decoded, make_windows

        folder, name = self.root / "windows", f"windows {frames}"
        if not (folder / "latents.safetensors").is_file():
            make_windows(self.vae(), self.clips, self.device).save(folder)
        if frames and not (folder / "frames.safetensors").is_file():
            known = Windows.load(folder, frames=False)
            known.frames = decoded(self.vae(), known, self.clips // 2, self.device)
            known.save_frames(folder)
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
            save_file({"latents": encode_clips(self.vae(), ClipPool(self.pool), data.OFFSETS).half()}, path)
        return load_file(path)["latents"].float()

    def latent_weights(self) -> Tensor:
        """What each place of :meth:`latents` counts for while the blueprint learns (clips, 2, 5, 16, 16), half."""
        from facelock.miniature.vae import latent_weight

        clips = self.windows(frames=False).landmarks() if self.live else data.clip_landmarks(self.pool)
        parts = [
            torch.stack(
                [latent_weight(some[:, o : o + data.WINDOW], 64, GAIN) for o in data.OFFSETS], 1
            ).half()
            for some in (points.to(self.device) for points in clips)
        ]
        return torch.cat(parts)

    def normal_latents(self) -> tuple[Tensor, list[float], list[float]]:
        """:meth:`latents` with unit statistics per channel, and the mean and deviation that they had.

        Mean and deviation are the autoencoder's own (:meth:`statistics`), once they are known.
        """
        from facelock.miniature.diffusion import normalise

        latents, mean, deviation = normalise(self.latents(), self.statistics())
        path = self.folder("vae") / STATISTICS
        if self.trained_here("vae") and not path.is_file():
            with data.whole(path) as part:
                part.write_text(json.dumps({"mean": mean, "deviation": deviation}))
        return latents, mean, deviation

    def statistics(self) -> tuple[list[float], list[float]] | None:
        """Mean and deviation of the latents' channels: those that ship with the autoencoder, or that were measured.

        None if it was trained here and nothing has been made of its latents yet.
        """
        path = self.folder("vae") / STATISTICS
        if not self.trained_here("vae"):
            known = autoencoder_config()
            return known["latents_mean"], known["latents_std"]
        if not path.is_file():
            return None
        measured = json.loads(path.read_text())
        return measured["mean"], measured["deviation"]
