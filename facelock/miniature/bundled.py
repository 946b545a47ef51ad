"""Training that goes on from the weights that ship, where no training state is at hand.

What ships as safetensors is read by name. The ONNX files hold their networks with batch norm folded into the
convolution before it: such a pair is read back as the folded convolution and a batch norm that does nothing, in
evaluation, so the network computes what it did and can learn on.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from safetensors.torch import load_file
from torch import Tensor, nn

from facelock.assets import asset_dir
from facelock.errors import ConfigError

FILES = {
    "vae": {"vae.": "blueprint/vae/diffusion_pytorch_model.safetensors"},
    "blueprint": {
        "text.": "blueprint/text_encoder/model.safetensors",
        "transformer.": "blueprint/transformer/diffusion_pytorch_model.safetensors",
    },
    "judge": {"net.": "judge/model.safetensors"},
    "tiny_decoder": {"": "tiny_decoder.safetensors"},
}
"""Part → prefix of its module's names → file under ``models/miniature``."""
GRAPHS = {
    "aligner": ("aligner.onnx", "net."),
    "restorer": ("restorer.onnx", "net."),
    "recogniser": ("faces/recogniser.onnx", ""),
    "reader": ("aligner.onnx", "net.reader."),
    "identity_reader": ("aligner.onnx", "net.identity."),
    "detector": ("faces/detector.onnx", "net."),
    "upscaler": ("upscaler.onnx", "net."),
}
"""Part → file, and what its graph puts before the module's names."""
DERIVED = ("embed_tokens.weight", "num_batches_tracked", "running_mean", "running_var")
"""Ends of names that are not stored: they share another's tensor, or count."""
CONSTANT = {"recogniser": ("lift",)}
"""Part → names that its file holds under another's name, transposed; the module makes them anew, always the same."""


def load_bundled(part: str, module: nn.Module, folder: Path | None = None) -> nn.Module:
    """Give ``module``, in training's shape, the weights of ``part`` that ship; what they lack keeps its own.

    Raises ``ConfigError`` for a part that cannot be read back, or whose shapes have changed since.
    """
    folder = folder or asset_dir("models") / "miniature"
    if part == "recogniser" and isinstance(module, nn.ModuleDict):
        load_bundled(part, module["net"], folder)  # what taught it does not ship
        return module
    if part in FILES:
        heads = tuple(FILES[part])
        tensors = {
            prefix + name: tensor
            for prefix, file in FILES[part].items()
            for name, tensor in load_file(folder / file).items()
        }
    elif part in GRAPHS:
        heads = ("",)
        tensors = _from_graph(module, folder / GRAPHS[part][0], GRAPHS[part][1])
    else:
        raise ConfigError(f"{part} cannot go on from what ships. Train it without --bundled.")
    own = module.state_dict()
    odd = [name for name, tensor in tensors.items() if name not in own or own[name].shape != tensor.shape]
    known = {*tensors, *CONSTANT.get(part, ())}
    lacking = [
        name for name in own if name.startswith(heads) and name not in known and not name.endswith(DERIVED)
    ]
    if odd or lacking:
        raise ConfigError(
            f"{part}: what ships is of another network ({sorted([*odd, *lacking])[0]}). "
            "Train it without --bundled."
        )
    whole = {k: v.float() if v.is_floating_point() else v for k, v in tensors.items()}
    module.load_state_dict(whole, strict=False)
    return module


def autoencoder_config() -> dict[str, Any]:
    """The configuration of the autoencoder that ships: ``latents_mean`` and ``latents_std`` among it."""
    path = asset_dir("models") / "miniature" / "blueprint" / "vae" / "config.json"
    return cast(dict[str, Any], json.loads(path.read_text()))


def _from_graph(module: nn.Module, path: Path, prefix: str) -> dict[str, Tensor]:
    """Tensors of an ONNX file by the names that ``module`` gives them; its batch norms come to rest."""
    stored = {
        tensor.name.removesuffix("_half"): torch.from_numpy(numpy_helper.to_array(tensor).astype(np.float32))
        for tensor in onnx.load(path).graph.initializer
    }
    own = module.state_dict()
    tensors = {
        name.removeprefix(prefix): tensor
        for name, tensor in stored.items()
        if name.startswith(prefix) and name.removeprefix(prefix) in own
    }
    # The exporter numbers what it folded in the order in which the network runs, which is that of its modules.
    folded = [tensor for name, tensor in stored.items() if name.startswith("onnx::Conv_")]
    slopes = [tensor for name, tensor in stored.items() if name.startswith("onnx::PRelu_")]
    for (conv, norm), weight, bias in zip(_pairs(module), folded[::2], folded[1::2], strict=False):
        layer = module.get_submodule(norm)
        assert isinstance(layer, nn.BatchNorm2d)  # noqa: S101 - what _pairs finds
        layer.reset_running_stats()
        layer.eval()
        still = torch.full_like(bias, (1 + layer.eps) ** 0.5)
        tensors |= {f"{conv}.weight": weight, f"{norm}.weight": still, f"{norm}.bias": bias}
        if f"{conv}.bias" in own:
            tensors[f"{conv}.bias"] = torch.zeros_like(bias)
    shared = [
        name
        for name, layer in module.named_modules()
        if isinstance(layer, nn.PReLU) and f"{name}.weight" not in tensors
    ]
    for name, slope in zip(shared, slopes, strict=False):
        tensors[f"{name}.weight"] = slope.flatten()
    return tensors


def _pairs(module: nn.Module) -> Iterator[tuple[str, str]]:
    """Names of each convolution that a batch norm follows, and of that batch norm."""
    before = ""
    for name, layer in module.named_modules():
        if isinstance(layer, nn.BatchNorm2d):
            yield before, name
        if isinstance(layer, nn.Conv2d):
            before = name
