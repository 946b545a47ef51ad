"""How large a checkpoint is, from its folder alone: the headers of its safetensors files and its configs.

Nothing is loaded: a header is some kilobytes in front of the weights. Knows no torch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from facelock.errors import ModelError

LONGEST_HEADER = 100 << 20
"""Bytes; safetensors' own limit."""
SECTIONS: Mapping[str, int] = {"HeliosTransformer3DModel": 9}
"""Transformer → latents that it makes at once, however many the window holds."""
FLOAT32: Mapping[str, frozenset[str]] = {
    "AutoencoderKLLTX2Video": frozenset({"audio_vae", "vocoder"}),
    "AutoencoderKLCogVideoX": frozenset(),
}
"""VAE → components in full precision; of a VAE that is not named the VAE itself."""
COMPRESSION: Mapping[str, tuple[int, int]] = {
    "AutoencoderKLWan": (4, 8),
    "AutoencoderKLLTXVideo": (8, 32),
    "AutoencoderKLLTX2Video": (8, 32),
    "AutoencoderKLCogVideoX": (4, 8),
}
"""VAE → frames per latent, pixels per latent, where its config does not say."""


@dataclass(frozen=True)
class Footprint:
    """Sizes of one checkpoint folder in diffusers format."""

    parameters: Mapping[str, int]
    """Component (``"transformer"``) → number of weights."""
    largest: Mapping[str, int]
    """Component → weights of its largest tensor: what streaming layer by layer still needs at once."""
    blocks: int
    """Repeated blocks of the transformer."""
    width: int
    """Channels of the transformer's tokens."""
    network: str
    """Class of the transformer."""
    compression: tuple[int, int]
    """Frames per latent, pixels per latent."""
    patch: tuple[int, int]
    """Latents per token in time, and along a side."""
    base: int
    """Channels of the VAE at full resolution."""
    vae: str = "AutoencoderKLWan"
    """Class of the VAE."""
    tile: int = 256 * 256
    """Pixels of a VAE's tile."""
    control: int = 0
    """Layers of a control branch, whose outputs are kept until the transformer has used them."""
    states: int = 0
    """Channels of a text token, where the states of all layers are kept: layers × channels."""

    @property
    def float32(self) -> frozenset[str]:
        """Components in full precision whatever a recipe says."""
        return FLOAT32.get(self.vae, frozenset({"vae"}))

    def tokens(self, frames: int, size: tuple[int, int]) -> int:
        """Tokens of a window of ``frames`` frames of (height, width) pixels."""
        time, space = self.compression
        latents = SECTIONS.get(self.network, -(-(frames - 1) // time) + 1)
        height, width = (math.ceil(side / space / self.patch[1]) for side in size)
        return math.ceil(latents / self.patch[0]) * height * width


NOTHING = Footprint({}, {}, blocks=1, width=0, network="", compression=(4, 8), patch=(1, 1), base=0)
"""No checkpoint at all: a command that uses no blueprint."""


def read_footprint(folder: Path) -> Footprint:
    """Measure the checkpoint in ``folder``; :class:`ModelError` when its files cannot be read."""
    counts, largest = {}, {}
    for part in sorted(path for path in folder.iterdir() if path.is_dir()):
        shapes = [shape for file in sorted(part.glob("*.safetensors")) for shape in _shapes(file)]
        if shapes:
            sizes = [math.prod(shape) for shape in shapes]
            counts[part.name], largest[part.name] = sum(sizes), max(sizes)
    network, vae, text = (_config(folder / part) for part in ("transformer", "vae", "text_encoder"))
    network = network or _config(folder / "transformer_2")
    patch = network.get("patch_size") or 1
    if isinstance(patch, int):
        patch = (int(network.get("patch_size_t") or 1), patch, patch)
    return Footprint(
        parameters=counts,
        largest=largest,
        blocks=int(network.get("num_layers") or 1),
        width=int(network.get("num_attention_heads", 1)) * int(network.get("attention_head_dim", 1)),
        network=str(network.get("_class_name", "")),
        compression=_compression(vae),
        patch=(int(patch[0]), int(patch[-1])),
        base=int(vae.get("decoder_base_dim") or vae.get("base_dim") or 96),
        vae=str(vae.get("_class_name", "AutoencoderKLWan")),
        tile=_tile(vae),
        control=len(network.get("vace_layers") or ()),
        states=_states(text.get("text_config") or {}),
    )


def _tile(vae: Mapping[str, Any]) -> int:
    """Pixels of a tile as diffusers' ``enable_tiling`` chooses it."""
    if vae.get("_class_name") == "AutoencoderKLCogVideoX":
        return int(vae.get("sample_height") or 480) // 2 * (int(vae.get("sample_width") or 720) // 2)
    side = 512 if vae.get("_class_name") == "AutoencoderKLLTX2Video" else 256
    return side * side


def _states(text: Mapping[str, Any]) -> int:
    return (int(text.get("num_hidden_layers") or -1) + 1) * int(text.get("hidden_size") or 0)


def _compression(vae: Mapping[str, Any]) -> tuple[int, int]:
    halvings = vae.get("temperal_downsample")
    if halvings:
        patch = int(vae.get("patch_size") or 1)
        return 2 ** sum(bool(half) for half in halvings), patch * 2 ** len(halvings)
    known = COMPRESSION.get(str(vae.get("_class_name")), (4, 8))
    return (
        int(vae.get("temporal_compression_ratio") or known[0]),
        int(vae.get("spatial_compression_ratio") or known[1]),
    )


def _config(part: Path) -> dict[str, Any]:
    try:
        found = json.loads((part / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ModelError(f"{part}/config.json: cannot be read ({error}). Pull the model again.") from error
    return found if isinstance(found, dict) else {}


def _shapes(path: Path) -> Iterator[tuple[int, ...]]:
    """Shapes of the tensors in a safetensors file: 8 bytes of length, then JSON, then the weights."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 0 < length <= LONGEST_HEADER:
                raise ValueError("no safetensors header")
            header = json.loads(file.read(length))
            yield from (tuple(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ModelError(f"{path}: is damaged ({error}). Pull the model again.") from error
