"""Memory plans: what has to leave the GPU, and when, so that a recipe fits into so many GiB. Knows no torch.

::

    plan = choose_plan(read_footprint(folder), Shape((544, 960), window=97), vram=16, recipe="skyreels-v2-1.3b")

The peak is the largest of four moments: encoding text, denoising a window, decoding it, restoring its frames. Each is
the weights that are on the GPU then, the later stages' among them, and what is computed with them:

=========  ==========================================================================================
denoising  tokens × channels × :data:`PER_TOKEN` bytes and what the control branch holds, twice when both halves of
           guidance share a pass
decoding   pixels of a frame × (:data:`PER_PIXEL` × the VAE's channels / 96 + 12 bytes a frame), or what
           :data:`OTHER_VAES` says; in tiles: one tile's instead, and 2.5 times the frames
restoring  rows of a batch × pixels × (512 + 24 × scale²) bytes, beside :data:`FACE_NETS`
text       the text encoder itself, and the states of its layers where they are kept
=========  ==========================================================================================

The factors were found by running diffusers' classes at production sizes on fake tensors and adding up what is alive
at once (``tests/test_memory_factors.py`` does it again at a small size); :data:`RESERVE` and :data:`OVERHEAD` are
allowances for what such a count does not see. No figure here was measured on a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from facelock.errors import DeviceError
from facelock.tuning.footprint import Footprint

VRAM = (8, 12, 16, 24, 48, 80)
"""GiB that a plan can be asked for."""
GIB = 2**30
BYTES: Mapping[str, int] = {"float32": 4, "bfloat16": 2, "float16": 2}
PER_TOKEN: Mapping[str, tuple[int, int]] = {
    "SkyReelsV2Transformer3DModel": (74, 124), "HeliosTransformer3DModel": (84, 122),
    "LTX2VideoTransformer3DModel": (92, 170),
}  # fmt: skip
"""Transformer → bytes per token and channel at the peak of a block, in 16 bits and in float32: SkyReels-V2 and LTX-2
give every token its own noise level, Helios has the tokens of its history beside those that are counted."""
ANY_TRANSFORMER = (36, 72)
"""The same of all others."""
PER_PIXEL = 19_500
"""Bytes per pixel of a frame while a Wan VAE of 96 channels decodes in float32, four frames at a time."""
OTHER_VAES: Mapping[str, tuple[int, int]] = {
    "AutoencoderKLCogVideoX": (22_900, 0), "AutoencoderKLLTX2Video": (0, 43),
}  # fmt: skip
"""VAE → numbers held per pixel of a frame while it decodes, and the same for each frame."""
ONE_PASS = frozenset(OTHER_VAES)
"""VAEs of pipelines that always take both halves of guidance in one pass."""
TEXT_TOKENS = 1024
"""Longest prompt of a text encoder whose layers' states are kept; they are there three times."""
FACE_NETS = 1 * GIB
"""Allowance for what detector, recognisers, aligner and restorer compute with."""
RESERVE = 1.1
"""Share for fragments between allocations."""
HELD = 3
"""Copies of a chunk's frames at once: as enlarged, as restored and as resized, or as they wait for the encoder."""
OVERHEAD = 1 * GIB
"""CUDA's own context and libraries."""


@dataclass(frozen=True)
class Plan:
    """What is done to need less memory; the defaults do nothing."""

    text: str = "stay"
    """The text encoder: ``stay`` on the GPU, go ``after`` each prompt, or come layer by layer (``layers``)."""
    tiling: bool = False
    """The VAE works in tiles, which may show faint seams."""
    pair: bool = True
    """Both halves of guidance in one pass; apart takes half the memory and a little longer."""
    groups: int = 0
    """Transformer blocks on the GPU at once, the next coming while one computes; 0: all stay."""
    batch: int | None = None
    """Most frames enlarged at once; None: as the recipe says."""

    def slowness(self) -> int:
        """A rank by expected loss of time: plans are tried in this order."""
        text = {"stay": 0, "after": 1, "layers": 3}[self.text]
        groups = {0: 0, 4: 16, 1: 20}.get(self.groups, 20)
        return (
            text + 4 * self.tiling + 6 * (not self.pair) + {None: 0, 4: 1, 1: 2}.get(self.batch, 2) + groups
        )

    def __str__(self) -> str:
        said = [
            {
                "stay": "",
                "after": "text encoder off the GPU after each prompt",
                "layers": "text encoder layer by layer",
            }[self.text],
            "VAE in tiles" if self.tiling else "",
            "" if self.pair else "guidance in two passes",
            f"transformer {self.groups} blocks at a time" if self.groups else "",
            f"{self.batch} frames enlarged at once" if self.batch else "",
        ]
        return ", ".join(part for part in said if part) or "everything on the GPU"


@dataclass(frozen=True)
class Shape:
    """What is computed: sizes, counts and precisions."""

    size: tuple[int, int]
    """(height, width) of the blueprint's frames in pixels."""
    window: int
    """Frames denoised at once."""
    guided: bool = True
    precision: str = "bfloat16"
    """Of text encoder and transformer; the VAE is float32."""
    float8: bool = False
    """The transformer's weights are held in one byte each."""
    scale: int = 4
    batch: int = 16
    """Frames enlarged at once."""
    after: int = 0
    """Bytes of the weights of the stages after the blueprint, which stay on the GPU."""


def plans() -> list[Plan]:
    """All plans, fastest first."""
    choices = product(("stay", "after", "layers"), (False, True), (True, False), (0, 4, 1), (None, 4, 1))
    return sorted((Plan(*choice) for choice in choices), key=Plan.slowness)


def peak(found: Footprint, shape: Shape, plan: Plan) -> int:
    """Bytes of GPU memory at the worst moment."""
    weights = _weights(found, shape)
    text = sum(size for name, size in weights.items() if name.startswith("text_encoder"))
    denoisers = sum(size for name, size in weights.items() if name.startswith("transformer"))
    others = sum(weights.values()) - text - denoisers
    if plan.groups:
        single = max((w for name, w in weights.items() if name.startswith("transformer")), default=0)
        denoisers = min(denoisers, 2 * plan.groups * single // max(1, found.blocks))
    moment = {"stay": 0, "after": text, "layers": _largest_layer(found, shape)}[plan.text]
    moment += 3 * TEXT_TOKENS * found.states * BYTES[shape.precision]
    kept = shape.after + others + denoisers + (text if plan.text == "stay" else 0)
    moments = (
        kept + moment,
        kept + _denoising(found, shape, plan),
        kept + _decoding(found, shape, plan),
        kept + _restoring(shape, plan),
    )
    return int(RESERVE * max(moments) + OVERHEAD)


def resident(shape: Shape) -> int:
    """Bytes of a chunk's frames on the GPU from the decoder to the encoder, the largest moment of the stages after the
    blueprint: float32, :data:`HELD` copies of the enlarged ones and as many of those that the blueprint wrote."""
    return HELD * 12 * shape.window * shape.size[0] * shape.size[1] * (1 + shape.scale**2)


def room_for_frames(found: Footprint, shape: Shape, plan: Plan, usable: int) -> bool:
    """Whether a chunk's frames fit into ``usable`` bytes beside the plan's peak."""
    return peak(found, shape, plan) + resident(shape) <= usable


def choose_plan(
    found: Footprint, shape: Shape, *, vram: float, recipe: str, smaller: Sequence[str] = ()
) -> Plan:
    """The fastest plan whose peak lies within ``vram`` GiB.

    ``smaller`` names recipes that need less. Raises :class:`DeviceError` when no plan fits, with what would.
    """
    for plan in plans():
        if peak(found, shape, plan) <= vram * GIB:
            return plan
    least = min(peak(found, shape, plan) for plan in plans()) / GIB
    more = next((f"--vram {size}" for size in VRAM if size >= least), "a larger card")
    other = f", or --recipe {smaller[0]}" if smaller else ""
    raise DeviceError(
        f"The recipe {recipe} needs about {least:.1f} GiB of GPU memory at {shape.size[1]}x{shape.size[0]} with a "
        f"window of {shape.window} frames, more than the {vram:g} GiB given. Choose {more}, a smaller size or window "
        f"in the recipe{other}."
    )


def report(found: Footprint, shape: Shape) -> Iterator[tuple[int, Plan | None, float]]:
    """For each size of :data:`VRAM` the plan chosen, None where nothing fits, and its peak in GiB."""
    for vram in VRAM:
        fits = next((plan for plan in plans() if peak(found, shape, plan) <= vram * GIB), None)
        yield vram, fits, (peak(found, shape, fits) if fits else 0) / GIB


def _weights(found: Footprint, shape: Shape) -> dict[str, int]:
    """Component → bytes of its weights where it runs."""
    sizes = {}
    for name, count in found.parameters.items():
        per = 4 if name in found.float32 else BYTES[shape.precision]
        if name.startswith("transformer") and shape.float8:
            per = 1
        sizes[name] = count * per
    return sizes


def _largest_layer(found: Footprint, shape: Shape) -> int:
    sizes = [size for name, size in found.largest.items() if name.startswith("text_encoder")]
    return max(sizes, default=0) * BYTES[shape.precision]


def _denoising(found: Footprint, shape: Shape, plan: Plan) -> int:
    passes = 2 if shape.guided and (plan.pair or found.vae in ONE_PASS) else 1
    width = BYTES[shape.precision]
    per = PER_TOKEN.get(found.network, ANY_TRANSFORMER)[width == 4] + found.control * width
    return passes * found.tokens(shape.window, shape.size) * found.width * per


def _decoding(found: Footprint, shape: Shape, plan: Plan) -> int:
    pixels = shape.size[0] * shape.size[1]
    frames = 12 * shape.window * pixels
    each = PER_PIXEL * found.base // 96
    if found.vae in OTHER_VAES:
        once, per_frame = OTHER_VAES[found.vae]
        each = (once + per_frame * shape.window) * BYTES[shape.precision]
    if plan.tiling:
        return min(found.tile, pixels) * each + frames * 5 // 2
    return pixels * each + frames


def _restoring(shape: Shape, plan: Plan) -> int:
    rows = min(shape.batch, plan.batch or shape.batch)
    return FACE_NETS + rows * shape.size[0] * shape.size[1] * (512 + 24 * shape.scale**2)
