"""IP-Adapter FaceID files: read without running code, and refused when they are something else.

Ye et al. 2023, "IP-Adapter" (arXiv:2308.06721); the FaceID variant (h94/IP-Adapter-FaceID) puts a face recogniser's
embedding in the place of CLIP's. Layout, as diffusers reads it (``loaders/unet.py``):

* ``image_proj``: ``proj.0`` (2 E, E), ``proj.2`` (4 C, 2 E), ``norm`` (C,), for embeddings of E numbers and a UNet
  whose cross attention takes C; four tokens come out;
* ``ip_adapter``: ``1.to_k_ip.weight``, ``1.to_v_ip.weight``, ``3. …``, one odd number per cross attention; and a LoRA,
  ``0.to_q_lora.down.weight`` …, one number per attention of either kind.

A ``.bin`` file holds two dictionaries of these names, a ``.safetensors`` file the names with a prefix.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from diffusers.models.model_loading_utils import load_state_dict
from torch import Tensor

from facelock.errors import ConfigError, ModelError
from facelock.portrait.fits import read_config
from facelock.weights import load_safetensors
from facelock.weights.onnx_header import require_width

State = dict[str, dict[str, Tensor]]
PARTS = ("image_proj", "ip_adapter")
TOKENS = 4
"""Tokens of a FaceID embedding: diffusers 0.42 writes the number into its attention."""
BUFFALO_L = "4c06341c33c2"
"""First 12 hex of the sha256 of buffalo_l's ``w600k_r50.onnx``, with which the published FaceID files were trained."""
REMEDY = "Give ip-adapter-faceid_sd15 or ip-adapter-faceid_sdxl (docs/faceid.md)."


def require_encoder(found: str, trained_with: str | None = None) -> None:
    """Refuse embeddings of a recogniser that the adapter was not trained with.

    ``found`` is the id of the loop's encoder, ``<name>@<digest>``; ``trained_with`` the first 12 hex of the sha256 of
    the adapter's, None for insightface's buffalo_l. Raises ``ConfigError``.
    """
    wanted = trained_with or BUFFALO_L
    if found.rpartition("@")[2] != wanted:
        whose = f"a recogniser with the digest {wanted}" if trained_with else "insightface's buffalo_l"
        raise ConfigError(
            f"The FaceID adapter takes embeddings of {whose}, but the recogniser in the loop is {found}. "
            "Name that one as faces.encoder, or the adapter's own as lock.faceid.encoder."
        )


def read_adapter(path: str | Path) -> State:
    """The file's tensors by part. ``path`` may be a folder that holds one such file.

    Raises ``ModelError`` for a file that is missing, damaged or not finite, and for adapters of other kinds.
    """
    file = _file(Path(path))
    state = _safetensors(file) if file.suffix == ".safetensors" else _binary(file)
    _check_kind(file, state)
    for part, tensors in state.items():
        for name, tensor in tensors.items():
            if not bool(tensor.isfinite().all()):
                raise ModelError(f"{file}: {part}.{name} holds values that are not finite. Fetch it again.")
    return state


def dimension(state: State) -> int:
    """Numbers of the embedding that the adapter takes."""
    return int(state["image_proj"]["proj.0.weight"].shape[1])


def check_fit(path: str | Path, state: State, unet: Any) -> None:
    """Refuse an adapter made for another UNet (SD 1.5's for SDXL, say). Raises ``ModelError``."""
    width = int(state["image_proj"]["norm.weight"].shape[0])
    wanted = int(unet.config.cross_attention_dim)
    layers = sum(name.endswith("attn2.processor") for name in unet.attn_processors)
    found = sum(name.endswith(".to_k_ip.weight") for name in state["ip_adapter"])
    if (width, found) != (wanted, layers):
        raise ModelError(
            f"{path}: made for a UNet of {found} cross attentions of {width} numbers, but the checkpoint has {layers} "
            f"of {wanted}. Give the adapter of the same family, SD 1.5 or SDXL."
        )
    tokens = int(state["image_proj"]["proj.2.weight"].shape[0])
    if tokens != TOKENS * width:
        raise ModelError(f"{path}: makes {tokens / width:g} tokens of a face, not {TOKENS}. {REMEDY}")


def require_family(path: str | Path, folder: Path, encoder: Path | None = None) -> None:
    """Raise ``ModelError`` for an adapter that is none, of another family than the checkpoint in ``folder``, or for
    embeddings of another size than the recogniser ``encoder`` gives.

    Reads the adapter, and of the checkpoint its configuration alone; what that does not tell is left to the loading.
    """
    state = read_adapter(path)
    width = int(state["image_proj"]["norm.weight"].shape[0])
    wanted = read_config(folder, "unet").get("cross_attention_dim", width)
    if wanted != width:
        raise ModelError(
            f"{path}: made for a UNet of cross attentions of {width} numbers, but {folder} has {wanted}. "
            "Give the adapter of the same family, SD 1.5 or SDXL."
        )
    if encoder is not None:
        require_width(Path(path), dimension(state), encoder)


def without_lora(state: State) -> State:
    """The adapter's own weights alone: what diffusers loads without peft."""
    plain = {name: tensor for name, tensor in state["ip_adapter"].items() if "_lora." not in name}
    return {**state, "ip_adapter": plain}


def merge_lora(unet: Any, state: State) -> None:
    """Add the adapter's LoRA to the UNet's attention, in place and for good: W + up · down (Hu et al. 2021).

    That is what diffusers does through peft, with neither peft nor its products at every step. Numbers count all
    attentions, in the order of ``unet.attn_processors``. Raises ``KeyError`` or ``RuntimeError`` where it does not fit.
    """
    tensors = state["ip_adapter"]
    for number, name in enumerate(unet.attn_processors):
        attention = unet.get_submodule(name.removesuffix(".processor"))
        layers = {"q": attention.to_q, "k": attention.to_k, "v": attention.to_v, "out": attention.to_out[0]}
        for part, layer in layers.items():
            key = f"{number}.to_{part}_lora"
            if f"{key}.down.weight" not in tensors and f"{key}.up.weight" not in tensors:
                continue
            change = tensors[f"{key}.up.weight"].float() @ tensors[f"{key}.down.weight"].float()
            if change.shape != layer.weight.shape:
                raise RuntimeError(f"{key} is {tuple(change.shape)}, not {tuple(layer.weight.shape)}")
            layer.weight.copy_((layer.weight.float() + change).to(layer.weight.dtype))


def _file(path: Path) -> Path:
    """``path``, or the one adapter in a folder: safetensors before ``.bin``, LoRA files apart."""
    if not path.is_dir():
        if path.is_file():
            return path
        raise ModelError(f"{path}: there is no such adapter file. {REMEDY}")
    for suffix in (".safetensors", ".bin"):
        files = sorted(file for file in path.glob(f"*{suffix}") if "lora" not in file.stem)
        if len(files) == 1:
            return files[0]
        if files:
            raise ModelError(f"{path} holds {len(files)} adapters, {files[0].name} first. Name one of them.")
    raise ModelError(f"{path} holds no .safetensors or .bin file. {REMEDY}")


def _safetensors(file: Path) -> State:
    state: State = {part: {} for part in PARTS}
    for name, tensor in load_safetensors(file).items():
        part, _, key = name.partition(".")
        if part in state:
            state[part][key] = tensor
    return state


def _binary(file: Path) -> State:
    """Read with ``weights_only``, so that nothing in the file can run."""
    try:
        found = load_state_dict(str(file))
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise ModelError(f"{file}: not a readable adapter file. Fetch it again.") from error
    parts = {part: found.get(part) if isinstance(found, dict) else None for part in PARTS}
    for part, tensors in parts.items():
        if not isinstance(tensors, dict) or not all(isinstance(t, Tensor) for t in tensors.values()):
            raise ModelError(f"{file}: has no {part}, so it is no IP-Adapter. {REMEDY}")
    return {part: dict(tensors or {}) for part, tensors in parts.items()}


def _check_kind(file: Path, state: State) -> None:
    """Only plain FaceID: one embedding in, four tokens out."""
    names = state["image_proj"]
    if any(name.startswith("perceiver_resampler.") for name in names):
        raise ModelError(
            f"{file}: a FaceID Plus adapter, which needs a CLIP picture of the face besides its embedding. {REMEDY}"
        )
    wanted = {"proj.0.weight": 2, "proj.2.weight": 2, "norm.weight": 1}
    if any(name not in names or names[name].ndim != rank for name, rank in wanted.items()):
        what = "an IP-Adapter of another kind" if names and state["ip_adapter"] else "no IP-Adapter"
        raise ModelError(f"{file}: {what}, not FaceID. {REMEDY}")
    if not all(torch.is_floating_point(tensor) for tensors in state.values() for tensor in tensors.values()):
        raise ModelError(f"{file}: holds tensors that are not floating point. {REMEDY}")
