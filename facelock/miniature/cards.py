"""Model cards: what each bundled model is, how it was trained, and its figures on held-out characters.

The figures are measured on the exported files, through the code that serves users::

    python -m facelock.miniature --root /work cards
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from facelock.alignment import aligner_class
from facelock.faces import load_encoder, load_pack
from facelock.miniature import data, world
from facelock.miniature.alignment import PairPool, recogniser_view
from facelock.miniature.parameters import sample_appearance, sample_nuisance
from facelock.miniature.recognition import Embed, degrade, shipped
from facelock.restoration import restorer_class, upscaler_class
from facelock.runtime import derive_seed
from facelock.weights import locate

Figures = Mapping[str, float]
CPU = torch.device("cpu")

COMMON = (
    "Trained from scratch by this repository on characters rendered by `facelock/miniature/world.py`; no photo of a "
    "real person, no other model and no downloaded data went into it. It knows that drawn world and nothing else: "
    "real faces are out of its range. Identities are split by seed into `train`, `judge` and `heldout`; the figures "
    "below are from held-out ones. Licence: Apache-2.0."
)

CARDS: dict[str, tuple[str, tuple[str, ...], str]] = {
    "faces/README.md": (
        "Face pack: SCRFD-format detector and ArcFace-format recogniser",
        ("detector", "recogniser"),
        "`FaceAnalysis(name=<this folder>)` of insightface opens it. `detector.onnx`: an SCRFD (Guo et al. 2021, "
        "arXiv:2105.04714) of 1.0 M weights, strides 8, 16 and 32, two anchors, five landmarks; any side divisible by "
        "32. `recogniser.onnx`: a small residual network on the 112 px ArcFace crop, trained to regress the "
        "identity's parameters and to classify 6,000 people with CosFace (Wang et al. 2018, arXiv:1801.09414), then "
        "whitened within identities and laid into 512 dimensions. It is the lock's recogniser: what it says of a "
        "locked clip is no evidence, see the judge.",
    ),
    "judge/README.md": (
        "Judge: a CRATE transformer",
        ("judge",),
        "A white-box transformer (Yu et al. 2023, arXiv:2306.01129): subspace "
        "attention with tied Q, K and V (MSSA) and "
        "an ISTA step in place of the MLP. Another family, other identities, other pictures than the lock's "
        "recogniser, and no stage optimises it. Input: (N, 3, 112, 112) in [0, 1], ArcFace crop; output: 64 numbers.",
    ),
    "aligner.md": (
        "Aligner, inswapper format",
        ("reader", "identity_reader", "aligner"),
        "`aligner.onnx`: `target` (N, 3, 128, 128), `source` (N, 512), and `emap` (the unit matrix). Analysis by "
        "synthesis, as 3-D morphable model methods have it (Blanz & Vetter 1999; Thies et al. 2019, arXiv:1904.12356): "
        "one network reads pose, expression, gaze, light, glasses and beard off the crop, another reads the face's "
        "parameters off the identity embedding alone, **the world's own renderer, as a fixed differentiable layer, "
        "draws that face in that moment** (at 64 pixels, all that the blueprint holds), and a small U-Net blends in "
        "its outline and the hair. Be clear about what this means: the decoder knows the drawn world exactly, so its "
        "figures say what the closed loop does with a good aligner, not how well an aligner can be learned for real "
        "faces. The identity travels only through the 512 numbers.",
    ),
    "restorer.md": (
        "Face restorer, identity-conditioned, inswapper format",
        ("restorer",),
        "`restorer.onnx`: the aligner's architecture at 128 pixels with a larger U-Net, which began as an earlier "
        "aligner's (2500 steps) and was trained on with the right person, blurred, as input in 85 of 100 pictures. "
        "What is said of the aligner's decoder holds here too.",
    ),
    "upscaler.md": (
        "Upscaler ×4",
        ("upscaler",),
        "`upscaler.onnx`: a compact network in the manner of SRVGG (Real-ESRGAN, Wang et al. 2021, arXiv:2107.10833), "
        "`input` (N, 3, H, W) in [0, 1] to (N, 3, 4H, 4W).",
    ),
    "tiny_decoder.md": (
        "Tiny decoder, TAEHV's layout",
        ("tiny_decoder",),
        "`tiny_decoder.safetensors`: normalised latents of the blueprint (N, 8, F, 16, 16) to frames "
        "(N, 4F - 3, 3, 64, 64) in [0, 1], at a small part of the autoencoder's cost, for identity guidance "
        "(docs/guidance.md). The layout and the names of its tensors are those of TAEHV "
        "(github.com/madebyollin/taehv): memory blocks in three stages. "
        "Distilled from the blueprint's own autoencoder.",
    ),
    "blueprint/README.md": (
        "Blueprint: SkyReels-V2 diffusion forcing, miniature",
        ("vae", "blueprint"),
        "A diffusers folder: `AutoencoderKLWan` (×4 in space and time, 8 channels), `SkyReelsV2Transformer3DModel` "
        "(6 layers of 256, patches of 4 × 4 latents), `UMT5EncoderModel` (2 layers) with a word-level tokenizer, "
        "`UniPCMultistepScheduler` with flow shift 3. Trained by diffusion forcing (Chen et al. 2024, "
        "arXiv:2407.01392; SkyReels-V2, arXiv:2504.13074): one noise level per latent frame, so that it continues "
        "from clean context frames. 64 × 64 pixels, 12 frames a second, windows of 17 frames. Prompts: "
        "docs/vocabulary.md. `SkyReelsV2DiffusionForcingPipeline.from_pretrained` opens it; give it "
        "`max_sequence_length=24`. It forgets faces by construction and by size: that is the disease FaceLock cures.",
    ),
}


def write(
    models: Path, sittings: Mapping[str, Sequence[Mapping[str, Any]]], figures: Mapping[str, Figures]
) -> None:
    """Write a card beside each model of ``models/miniature``: what it went through, and what it can do."""
    for name, (title, parts, text) in CARDS.items():
        rows = [f"| {p} | {k} | {v:.4g} |" for p in parts for k, v in figures.get(p, {}).items()]
        lines = [_training(part, sittings[part]) for part in parts if part in sittings]
        card = f"# {title}\n\n{text}\n\n{COMMON}\n\n## Training\n\n" + "\n".join(lines)
        card += "\n\nCommands, sets and seeds: docs/training.md. On two CPU cores, November 2026.\n\n"
        card += "## Held-out figures\n\n"
        card += "| part | figure | value |\n| --- | --- | --- |\n" + "\n".join(rows) + "\n"
        (models / "miniature" / name).write_text(card)


def _training(part: str, sittings: Sequence[Mapping[str, Any]]) -> str:
    steps = ", then from those weights ".join(f"{s['steps']} steps" for s in sittings)
    said = ", ".join(f"{k} {v:.4g}" for k, v in sittings[-1]["last"].items())
    return f"- `{part}`: {steps}; last logged: {said}."


@torch.no_grad()
def measure(pool: Path, known: Mapping[str, Figures]) -> dict[str, Figures]:
    """Held-out figures of every exported model; ``pool`` holds the ``heldout`` set, ``known`` are the recognisers'."""
    return {
        **known,
        "detector": _detector(),
        "aligner": _swapper("aligner", pool, same=0.0, smallest=0.2),
        "restorer": _swapper("restorer", pool, same=1.0, smallest=0.26),
        "upscaler": _upscaler(),
        "vae": _autoencoder(),
        "tiny_decoder": _tiny_decoder(),
    }


def encoders() -> dict[str, Embed]:
    """The exported recognisers, by part."""
    kinds = {"recogniser": "onnx_pack", "judge": "crate"}
    return {
        part: shipped(load_encoder(kind, locate(f"miniature/{part}"), name=f"miniature/{part}", device=CPU))
        for part, kind in kinds.items()
    }


def _frames(count: int, size: int) -> tuple[Tensor, Tensor]:
    g = data.seeded(123)
    face = data.identities("heldout", count)
    look, now = sample_appearance(count, g, face["feminine"]), sample_nuisance(count, g)
    return world.render(face, look, now, size), world.landmarks(face, now, size)[0]


def _detector() -> Figures:
    pack = load_pack(
        "onnx_pack",
        detector=locate("miniature/detector"),
        encoder=locate("miniature/recogniser"),
        name="miniature/recogniser",
        detection_size=128,
        threshold=0.5,
        batch=16,
        device=CPU,
    )
    out: dict[str, float] = {}
    for size in (64, 256):
        frames, points = _frames(200, size)
        found = pack.detect(frames)
        eyes = (points[:, 1] - points[:, 0]).norm(dim=-1)
        error = (found.landmarks - points[found.frame]).norm(dim=-1).mean(1) / eyes[found.frame]
        own = error < 0.5
        out[f"frames of {size} px with their face found"] = found.frame[own].unique().numel() / 200
        out[f"false faces per frame of {size} px"] = float((~own).sum()) / 200
        out[f"landmark error at {size} px, % of the eye distance"] = float(error[own].mean() * 100)
    return out


def _swapper(part: str, pool: Path, *, same: float, smallest: float) -> Figures:
    embed = encoders()
    g = torch.Generator().manual_seed(17)
    x, y, e, _ = PairPool("heldout", pool, embed["recogniser"]).draw(192, same, g)
    x = degrade(x, g, smallest)
    net = (
        aligner_class("inswapper")(locate("miniature/aligner"), encoder="any", batch=16, device=CPU)
        if part == "aligner"
        else restorer_class("onnx_restorer")(
            locate("miniature/restorer"), encoder="any", batch=16, device=CPU
        )
    )
    out = net.align(x, e, 1.0) if part == "aligner" else net.restore(x, e)
    seen = lambda z: embed["recogniser"](recogniser_view(z))  # noqa: E731
    judged = lambda z: embed["judge"](recogniser_view(z))  # noqa: E731
    alike = lambda a, b: float((a * b).sum(1).mean())  # noqa: E731
    psnr = lambda z: float(-10 * torch.log10((z - y).square().mean()))  # noqa: E731
    return {
        "recogniser to the reference, input": alike(seen(x), e),
        "recogniser to the reference, output": alike(seen(out), e),
        "recogniser to the reference, true render": alike(seen(y), e),
        "judge to the true render, input": alike(judged(x), judged(y)),
        "judge to the true render, output": alike(judged(out), judged(y)),
        "PSNR to the true render, input, dB": psnr(x),
        "PSNR to the true render, output, dB": psnr(out),
    }


def _upscaler() -> Figures:
    truth, _ = _frames(48, 256)
    small = F.avg_pool2d(truth, 4)
    net = upscaler_class("onnx_upscaler")(locate("miniature/upscaler"), scale=4, batch=16, device=CPU)
    psnr = lambda z: float(-10 * torch.log10((z - truth).square().mean()))  # noqa: E731
    cubic = F.interpolate(small, scale_factor=4, mode="bicubic", antialias=True).clamp(0, 1)
    return {"PSNR, dB": psnr(net.upscale(small)), "PSNR of bicubic, dB": psnr(cubic)}


def _autoencoder() -> Figures:
    from facelock.blueprint import backbone_class

    net = backbone_class("skyreels_v2")(
        locate("miniature/blueprint"), size=(64, 64), fps=12.0, window=17, context=5, device=CPU
    )
    face, look, now, _ = data.draw_clips("heldout", derive_seed(0, "cards") % 1000, 8, 200, 17)
    clips = world.render(face, look, now, 64).view(8, 17, 3, 64, 64)
    again = torch.stack([net.reconstruct(clip) for clip in clips])
    return {"PSNR of 17-frame windows, dB": float(-10 * torch.log10((again - clips).square().mean()))}


def _tiny_decoder() -> Figures:
    """Against what the autoencoder shows of the same latents."""
    from facelock.blueprint import backbone_class
    from facelock.guidance import load_tiny_decoder

    vae = backbone_class("skyreels_v2")(
        locate("miniature/blueprint"), size=(64, 64), fps=12.0, window=17, context=5, device=CPU
    )
    net = load_tiny_decoder(locate("miniature/tiny_decoder"))
    face, look, now, _ = data.draw_clips("heldout", derive_seed(0, "cards") % 1000, 8, 200, 17)
    clips = world.render(face, look, now, 64).view(8, 17, 3, 64, 64)
    latents = [vae._encode(clip) for clip in clips]
    shown, truth = torch.cat([net(z)[0] for z in latents]), torch.cat([vae._decode(z) for z in latents])
    return {
        "PSNR to the autoencoder's frames, dB": float(-10 * torch.log10((shown - truth).square().mean())),
        "recogniser, its faces to the autoencoder's": _alike(truth, shown),
    }


def _alike(truth: Tensor, other: Tensor) -> float:
    """Mean cosine of the same faces in two sets of frames, found in the first."""
    pack = load_pack(
        "onnx_pack",
        detector=locate("miniature/detector"),
        encoder=locate("miniature/recogniser"),
        name="miniature/recogniser",
        device=CPU,
    )
    faces = pack.detect(truth)
    return float((pack.embed(truth, faces) * pack.embed(other, faces)).sum(1).mean())
