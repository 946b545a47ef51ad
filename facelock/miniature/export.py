"""Trained weights → the files that ship: ONNX, safetensors, a diffusers folder, and their rows in the catalog."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save_file
from torch import Tensor, nn

from facelock.weights import sha256_file

log = logging.getLogger(__name__)

OPSET = 17


def to_onnx(
    net: nn.Module,
    args: tuple[Tensor, ...],
    path: Path,
    inputs: Sequence[str],
    outputs: Sequence[str],
    axes: dict[str, dict[int, str]],
) -> None:
    """Export with torch's TorchScript exporter (it needs only ``onnx``), weights stored as float16."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".part")
    torch.onnx.export(
        net.eval(),
        args,
        str(temporary),
        input_names=list(inputs),
        output_names=list(outputs),
        dynamic_axes=axes,
        opset_version=OPSET,
        dynamo=False,
    )
    model = onnx.load(temporary)
    halve(model)
    onnx.checker.check_model(model)
    onnx.save(model, temporary)
    temporary.rename(path)


def halve(model: onnx.ModelProto, smallest: int = 256) -> None:
    """Store large float32 initializers as float16, cast back by the graph (runtimes fold the cast on loading)."""
    graph = model.graph
    casts = []
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and int(np.prod(tensor.dims)) >= smallest:
            name = tensor.name
            half = numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), f"{name}_half")
            tensor.CopyFrom(half)
            casts.append(
                helper.make_node("Cast", [f"{name}_half"], [name], name=f"cast_{name}", to=TensorProto.FLOAT)
            )
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)


def append_emap(path: Path, size: int = 512) -> None:
    """Add inswapper's ``emap`` as the graph's last initializer, where insightface reads it. Ours is the identity."""
    model = onnx.load(path)
    emap = numpy_helper.from_array(np.eye(size, dtype=np.float32), "emap")
    model.graph.initializer.append(emap)
    onnx.save(model, path)


def export_recogniser(net: nn.Module, folder: Path) -> None:
    """``faces/recogniser.onnx``: (B, 3, 112, 112) in [-1, 1] → (B, 512)."""
    x = torch.zeros(1, 3, 112, 112)
    to_onnx(
        net,
        (x,),
        folder / "faces" / "recogniser.onnx",
        ["input.1"],
        ["embedding"],
        {"input.1": {0: "n"}, "embedding": {0: "n"}},
    )


def export_detector(net: nn.Module, folder: Path) -> None:
    """``faces/detector.onnx`` in SCRFD's layout, any batch and any side divisible by 32."""
    from facelock.nets.scrfd import STRIDES, ScrfdExport

    names = [f"{kind}_{s}" for kind in ("score", "bbox", "kps") for s in STRIDES]
    axes: dict[str, dict[int, str]] = {"input.1": {0: "n", 2: "h", 3: "w"}}
    axes |= {name: {0: "n", 1: "cells"} for name in names}
    to_onnx(
        ScrfdExport(net),
        (torch.zeros(1, 3, 128, 128),),
        folder / "faces" / "detector.onnx",
        ["input.1"],
        names,
        axes,
    )


class _Clamped(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, target: Tensor, source: Tensor) -> Tensor:
        return self.net(target, source).clamp(0, 1)


def export_swapper(net: nn.Module, path: Path) -> None:
    """Aligner or restorer in inswapper's format."""
    axes = {name: {0: "n"} for name in ("target", "source", "output")}
    args = (torch.zeros(1, 3, 128, 128), torch.zeros(1, 512))
    to_onnx(_Clamped(net), args, path, ["target", "source"], ["output"], axes)
    append_emap(path)


class _ClampedOne(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).clamp(0, 1)


def export_upscaler(net: nn.Module, folder: Path) -> None:
    """``upscaler.onnx``: (B, 3, H, W) → (B, 3, 4H, 4W)."""
    axes = {"input": {0: "n", 2: "h", 3: "w"}, "output": {0: "n", 2: "h4", 3: "w4"}}
    to_onnx(
        _ClampedOne(net), (torch.zeros(1, 3, 64, 64),), folder / "upscaler.onnx", ["input"], ["output"], axes
    )


def export_judge(net: nn.Module, folder: Path) -> None:
    """``judge/model.safetensors`` (float16) and ``judge/config.json``."""
    target = folder / "judge"
    target.mkdir(parents=True, exist_ok=True)
    tensors = {k: v.half().contiguous() if v.is_floating_point() else v for k, v in net.state_dict().items()}
    save_file(tensors, target / "model.safetensors")
    (target / "config.json").write_text(json.dumps({"architecture": "crate", **net.config}, indent=2) + "\n")  # type: ignore[call-overload]


def export_blueprint(vae: nn.Module, model: nn.Module, tokenizer: object, folder: Path) -> None:
    """``blueprint/``: a diffusers folder of the SkyReels-V2 diffusion-forcing classes, weights in float16.

    Its scheduler says what the transformer predicts: the clean sample, not the velocity of published checkpoints.
    """
    from diffusers import SkyReelsV2DiffusionForcingPipeline, UniPCMultistepScheduler

    scheduler = UniPCMultistepScheduler(
        prediction_type="sample", use_flow_sigmas=True, flow_shift=3.0, num_train_timesteps=1000
    )
    parts = {"text_encoder": model.text, "transformer": model.transformer, "vae": vae}
    pipe = SkyReelsV2DiffusionForcingPipeline(
        tokenizer=tokenizer,
        scheduler=scheduler,
        **{k: v.eval().half() for k, v in parts.items()},  # type: ignore[operator, union-attr]
    )
    pipe.save_pretrained(folder / "blueprint")


def export_tiny_decoder(net: nn.Module, folder: Path) -> None:
    """``tiny_decoder.safetensors`` (float16): TAEHV's layout, and which of its stages double height and width."""
    from facelock.guidance.tiny_decoder import ENLARGE
    from facelock.miniature.tiny_decoder import SHAPE

    tensors = {name: tensor.half().contiguous() for name, tensor in net.state_dict().items()}
    marks = "".join("1" if doubles else "0" for doubles in SHAPE["enlarge"])  # type: ignore[attr-defined]
    save_file(tensors, folder / "tiny_decoder.safetensors", metadata={ENLARGE: marks})


def write_catalog(models: Path, figures: dict[str, dict[str, float]]) -> None:
    """Rewrite ``models/catalog.toml`` for every bundled file: size, sha256, task, licence, layout, thresholds."""
    layouts = {
        "recogniser": (
            "faces/recogniser.onnx",
            "recognition",
            "input.1 (N,3,112,112) RGB (x-127.5)/127.5 -> (N,512)",
        ),
        "detector": (
            "faces/detector.onnx",
            "detection",
            "SCRFD: input.1 (N,3,H,W) RGB (x-127.5)/128 -> 9 outputs",
        ),
        "aligner": ("aligner.onnx", "alignment", "inswapper: target (N,3,128,128) RGB 0..1, source (N,512)"),
        "upscaler": ("upscaler.onnx", "upscaling", "input (N,3,H,W) RGB 0..1 -> (N,3,4H,4W)"),
        "restorer": (
            "restorer.onnx",
            "restoration",
            "inswapper: target (N,3,128,128) RGB 0..1, source (N,512)",
        ),
        "faces": ("faces", "face pack", "insightface model pack: SCRFD detector, ArcFace recogniser"),
        "judge": ("judge", "recognition", "CRATE: (N,3,112,112) RGB 0..1, ArcFace crop -> (N,64)"),
        "blueprint": ("blueprint", "video diffusion", "diffusers folder, SkyReelsV2DiffusionForcingPipeline"),
        "tiny_decoder": (
            "tiny_decoder.safetensors",
            "latent preview",
            "TAEHV: normalised latents (N,16,F,h,w) -> (N,4F-3,3,4h,4w) RGB 0..1",
        ),
    }
    text = "# Every weight FaceLock knows. Written by `python -m facelock.miniature export`; the licence is ours.\n"
    for name, (relative, task, layout) in layouts.items():
        path = models / "miniature" / relative
        if not path.exists():
            continue
        text += f'\n[models."miniature/{name}"]\npath = "miniature/{relative}"\n'
        if path.is_dir():
            files = sorted(
                f for f in path.rglob("*") if f.is_file() and f.suffix != ".md" and f.name[0] != "."
            )
            text += f"bytes = {sum(f.stat().st_size for f in files)}\n"
        else:
            files = []
            text += f'sha256 = "{sha256_file(path)}"\nbytes = {path.stat().st_size}\n'
        text += f'task = "{task}"\nlicence = "Apache-2.0"\ncommercial = true\n'
        text += 'source = "trained here, on rendered characters"\n'
        user = "guidance" if name == "tiny_decoder" else "miniature"
        text += f'layout = "{layout}"\nused_by = ["{user}"]\n'
        found = figures.get("recogniser" if name == "faces" else name)  # the pack's recogniser is that one
        if found:
            values = ", ".join(f"{k} = {found[k]:.4f}" for k in ("far_1e2", "far_1e3", "far_1e4"))
            text += f"thresholds = {{ {values} }}\n"
        if files:
            text += f'[models."miniature/{name}".files]\n'
            text += "".join(f'"{f.relative_to(path).as_posix()}" = "{sha256_file(f)}"\n' for f in files)
    (models / "catalog.toml").write_text(text)
