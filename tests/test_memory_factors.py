"""The factors of the memory plans, against what diffusers' classes keep alive at production sizes on fake tensors, and
what follows for each shipped recipe."""

from __future__ import annotations

import re
import weakref
from collections.abc import Callable
from typing import Any

import published_sizes
import pytest
import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    AutoencoderKLLTX2Video,
    AutoencoderKLWan,
    ConsisIDTransformer3DModel,
    HeliosTransformer3DModel,
    LTX2VideoTransformer3DModel,
    SkyReelsV2Transformer3DModel,
    WanVACETransformer3DModel,
)
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from facelock.assets import asset_dir
from facelock.memory import shape_of
from facelock.recipe import load_recipe
from facelock.tuning.footprint import SECTIONS
from facelock.tuning.plan import (
    ANY_TRANSFORMER,
    BYTES,
    OTHER_VAES,
    PER_PIXEL,
    PER_TOKEN,
    Plan,
    Shape,
    peak,
    report,
)

NAMES = [*published_sizes.TRANSFORMERS, *published_sizes.OTHERS]
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


class Alive(TorchDispatchMode):
    """Adds up the bytes of all tensors that are alive, fake ones too, but for the weights of ``network``."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.weights = [tensor.untyped_storage() for tensor in [*network.parameters(), *network.buffers()]]
        self.seen: weakref.WeakSet = weakref.WeakSet(self.weights)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in tree_iter(out):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage() not in self.seen:
                storage = tensor.untyped_storage()
                self.seen.add(storage)
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._gone, storage.nbytes())
        return out

    def _gone(self, count: int) -> None:
        self.now -= count


def most_alive(
    make: Callable[[], torch.nn.Module], call: Callable[[Any, torch.dtype], object], precision: str
) -> int:
    """Bytes that ``call(network, dtype)`` keeps alive at once, beside the weights."""
    dtype = DTYPES[precision]
    with FakeTensorMode(allow_non_fake_inputs=True):
        torch.set_default_dtype(dtype)
        try:
            network = make().eval()
        finally:
            torch.set_default_dtype(torch.float32)
        with torch.no_grad(), Alive(network) as alive:
            call(network, dtype)
    return alive.peak


def texts(dtype: torch.dtype) -> dict[str, Any]:
    return {"encoder_hidden_states": torch.empty(1, 512, 4096, dtype=dtype), "return_dict": False}


def skyreels(network: Any, dtype: torch.dtype) -> None:
    latents, levels = torch.empty(1, 16, 25, 68, 120, dtype=dtype), torch.zeros(1, 25, dtype=torch.long)
    network(latents, timestep=levels, enable_diffusion_forcing=True, fps=[1], **texts(dtype))


def vace(network: Any, dtype: torch.dtype) -> None:
    scales = torch.ones(len(network.config.vace_layers), dtype=dtype)
    network(
        torch.empty(1, 16, 21, 60, 104, dtype=dtype), timestep=torch.zeros(1), control_hidden_states_scale=scales,
        control_hidden_states=torch.empty(1, 96, 21, 60, 104, dtype=dtype), **texts(dtype),
    )  # fmt: skip


def helios(network: Any, dtype: torch.dtype) -> None:
    history = {"short": (torch.tensor([[0, 19]]), 2), "mid": (torch.tensor([[17, 18]]), 2)}
    history["long"] = (torch.arange(1, 17)[None], 16)
    past = {f"indices_latents_history_{name}": places for name, (places, _) in history.items()}
    past |= {
        f"latents_history_{name}": torch.empty(1, 16, count, 48, 80, dtype=dtype)
        for name, (_, count) in history.items()
    }
    network(
        torch.empty(1, 16, 9, 48, 80, dtype=dtype), timestep=torch.zeros(1),
        indices_hidden_states=torch.arange(20, 29)[None], **past, **texts(dtype),
    )  # fmt: skip


def ltx2(network: Any, dtype: torch.dtype) -> None:
    tokens, heard = 16 * 16 * 24, 127
    text = torch.empty(1, 1024, 3840, dtype=dtype)
    network(
        torch.empty(1, tokens, 128, dtype=dtype), torch.empty(1, heard, 128, dtype=dtype),
        encoder_hidden_states=text, audio_encoder_hidden_states=text, timestep=torch.zeros(1, tokens),
        audio_timestep=torch.zeros(1, heard), num_frames=16, height=16, width=24, fps=24.0, audio_num_frames=heard,
        return_dict=False,
    )  # fmt: skip


def consisid(network: Any, dtype: torch.dtype) -> None:
    angles, seen = torch.empty(13 * 30 * 45, 64), torch.empty(1, 577, 1024, dtype=dtype)
    network(
        torch.empty(1, 13, 32, 60, 90, dtype=dtype), torch.empty(1, 226, 4096, dtype=dtype), torch.zeros(1),
        image_rotary_emb=(angles, angles), id_cond=torch.empty(1, 1280, dtype=dtype), id_vit_hidden=[seen] * 5,
        return_dict=False,
    )  # fmt: skip


WAN = {"in_channels": 16, "out_channels": 16, "text_dim": 4096, "num_layers": 2, "rope_max_seq_len": 1024}
SMALL, LARGE = (
    {k: v for k, v in kind.items() if k != "num_layers"}
    for kind in (published_sizes.SMALL, published_sizes.LARGE)
)
HELIOS = {k: v for k, v in (WAN | LARGE).items() if k != "rope_max_seq_len"}
EIGHT = {"num_layers": 8, "vace_layers": list(range(8)), "vace_in_channels": 96}
FACE = published_sizes.CONSISID | {"num_layers": 2}
DENOISERS: dict[str, tuple[Any, Any, int, int, int]] = {
    # a block's peak does not grow with their number, but what the control branch holds does
    "skyreels 1.3b": (lambda: SkyReelsV2Transformer3DModel(**(WAN | SMALL)), skyreels, 25 * 34 * 60, 1536, 0),
    "vace 1.3b": (lambda: WanVACETransformer3DModel(**(WAN | SMALL | EIGHT)), vace, 21 * 30 * 52, 1536, 8),
    "vace 14b": (lambda: WanVACETransformer3DModel(**(WAN | LARGE | EIGHT)), vace, 21 * 30 * 52, 5120, 8),
    "helios": (lambda: HeliosTransformer3DModel(**HELIOS), helios, SECTIONS["HeliosTransformer3DModel"] * 960, 5120, 0),
    "ltx2": (lambda: LTX2VideoTransformer3DModel(num_layers=2), ltx2, 16 * 16 * 24, 4096, 0),
    "consisid": (lambda: ConsisIDTransformer3DModel(**FACE), consisid, 13 * 30 * 45, 3072, 0),
}  # fmt: skip
"""Network, a call of it, its tokens, their channels, and layers of its control branch."""


@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("name", DENOISERS)
def test_denoising_takes_what_the_formula_says(name: str, precision: str) -> None:
    """At a real width and many tokens, on fake tensors: some per cent below the formula, and never above."""
    make, call, tokens, width, control = DENOISERS[name]
    kinds: list[str] = []
    found = most_alive(
        make, lambda net, dtype: (kinds.append(type(net).__name__), call(net, dtype)), precision
    )
    factor = PER_TOKEN.get(kinds[0], ANY_TRANSFORMER)[precision == "float32"] + control * BYTES[precision]
    assert 0.55 < found / (tokens * width * factor) <= 1.0, found / (tokens * width)


def decode(network: Any, dtype: torch.dtype) -> None:
    shape = {"AutoencoderKLWan": (1, 16, 3, 60, 104), "AutoencoderKLCogVideoX": (1, 16, 5, 60, 90)}
    latents = torch.empty(*shape.get(type(network).__name__, (1, 128, 16, 16, 24)), dtype=dtype)
    level = (None,) if type(network).__name__ == "AutoencoderKLLTX2Video" else ()
    network.decode(latents, *level, return_dict=False)


def wide() -> AutoencoderKLLTX2Video:
    return AutoencoderKLLTX2Video(spatial_compression_ratio=32, temporal_compression_ratio=8)


@pytest.mark.parametrize(
    ("make", "pixels", "tile", "frames", "precision", "tiled"),
    [
        (AutoencoderKLWan, 480 * 832, 256 * 256, 9, "float32", False),
        (AutoencoderKLCogVideoX, 480 * 720, 240 * 360, 17, "bfloat16", False),
        (AutoencoderKLCogVideoX, 480 * 720, 240 * 360, 17, "float32", False),
        (AutoencoderKLCogVideoX, 480 * 720, 240 * 360, 17, "bfloat16", True),
        (wide, 512 * 768, 512 * 512, 121, "bfloat16", False),
        (wide, 512 * 768, 512 * 512, 121, "float32", False),
        (wide, 512 * 768, 512 * 512, 121, "bfloat16", True),
    ],
)
def test_decoding_takes_what_the_formula_says(
    make: Any, pixels: int, tile: int, frames: int, precision: str, tiled: bool
) -> None:
    def made() -> Any:
        vae = make()
        if tiled:
            vae.enable_tiling()
        return vae

    found = most_alive(made, decode, precision)
    kind = "AutoencoderKLLTX2Video" if make is wide else make.__name__
    once, each = OTHER_VAES.get(kind, (PER_PIXEL / 4, 0))
    held = (once + each * frames) * BYTES[precision]
    expected = tile * held + 30 * frames * pixels if tiled else pixels * (held + 12 * frames)
    assert 0.5 < found / expected <= 1.05, found / expected


# ---------------------------------------------------------------------- recipes


@pytest.mark.parametrize("name", [*NAMES, "wan2.1-vace-1.3b-commercial"])
def test_a_recipe_says_which_plans_it_has(name: str) -> None:
    """By the published configurations: the sizes of ``--vram`` that are not refused."""
    recipe = load_recipe(name)
    found, after = published_sizes.footprint(recipe.blueprint.model), published_sizes.after(recipe)
    taken = [str(vram) for vram, plan, _ in report(found, shape_of(recipe, after)) if plan]
    text = (asset_dir("pipelines") / f"{name}.toml").read_text()
    told = re.search(r"^# VRAM plan: --vram ([0-9, or]+) \(estimated", text, re.MULTILINE)
    assert told and re.findall("[0-9]+", told[1]) == taken, f"say: # VRAM plan: --vram {', '.join(taken)}"
    table = (asset_dir("pipelines") / "README.md").read_text().splitlines()
    row = next(line for line in table if line.startswith(f"| `{name}`"))
    assert f"`--vram {taken[0]}` and up" in row


def test_guidance_in_two_passes_helps_no_pipeline_that_takes_one() -> None:
    """LTX-2 and ConsisID let diffusers' pipelines take both halves at once."""
    shape = Shape((512, 768), 121)
    for name in ("ltx-2", "consisid-5b"):
        found = published_sizes.footprint(name)
        assert peak(found, shape, Plan(pair=False)) == peak(found, shape, Plan())
        assert all(plan.pair for _, plan, _ in report(found, shape) if plan)
