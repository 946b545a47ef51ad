"""``facelock bench gpu``: models of production size with random weights, at true shapes, on a CUDA device.

Time and memory do not depend on the values of weights, so nothing is downloaded: the networks are built on the device
from the published sizes. What does depend on values is fixed: the detector's answer (so many boxes a frame). FLOPs are
counted by torch (2 × MAC) and printed beside the times with their share of the rate that a large matrix product
reaches on the same device in the same run.

Without a CUDA device the same code runs the same classes at tiny shapes on the CPU, and every line says so.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from facelock.bench import cast
from facelock.bench.tables import number, publish, table
from facelock.bench.timing import Timing, interleaved
from facelock.errors import FaceLockError
from facelock.pipeline import Pipeline
from facelock.protocols import FacePack, Progress
from facelock.runtime import resolve_device
from facelock.types import Faces

ROUNDS = 3
BOXES = 2
"""Faces that every frame is taken to show."""
STEPS = 50
FEW = 4
"""Steps of a distilled denoiser."""
NO_GPU = "No CUDA device: tiny shapes of the same classes on a CPU. Nothing here says how fast a GPU is."


@dataclass(frozen=True)
class Sizes:
    """One set of shapes."""

    name: str
    network: dict[str, Any]
    vae: dict[str, Any]
    tiny: int
    """Channels of the tiny decoder."""
    matrix: int
    """Side of the square matrices whose product gives the device's rate."""
    window: int
    """Frames of a window."""
    blueprint: tuple[int, int]
    direct: tuple[tuple[int, int], ...]
    """Sizes at which a clip could be made directly instead of enlarged."""
    tokens: int
    """Of a prompt."""
    dtype: torch.dtype


FULL = Sizes(
    name="Wan 2.1 / SkyReels-V2 1.3B",
    network={"num_attention_heads": 12, "attention_head_dim": 128, "ffn_dim": 8960, "num_layers": 30,
             "text_dim": 4096, "freq_dim": 256, "rope_max_seq_len": 1024},
    vae={}, tiny=64, matrix=8192, window=81, blueprint=(480, 832), direct=((720, 1280), (1088, 1920)), tokens=512,
    dtype=torch.bfloat16,
)  # fmt: skip
TINY = Sizes(
    name="tiny",
    network={"num_attention_heads": 2, "attention_head_dim": 12, "ffn_dim": 64, "num_layers": 2, "text_dim": 32,
             "freq_dim": 32, "rope_max_seq_len": 64},
    vae={"base_dim": 8, "dim_mult": [1, 2, 2, 2], "num_res_blocks": 1}, tiny=8, matrix=256, window=9,
    blueprint=(64, 64), direct=((96, 96), (144, 144)), tokens=16, dtype=torch.float32,
)  # fmt: skip


@dataclass
class Line:
    """One line of the table."""

    what: str
    timing: Timing | None = None
    flops: float = 0.0
    ratio: float | None = None
    goal: str = ""
    note: str = ""


@dataclass
class Bench:
    """The models on one device, and the lines measured so far."""

    sizes: Sizes
    device: torch.device
    rounds: int
    rate: float = 0.0
    """FLOP/s of a large matrix product."""
    lines: list[Line] = field(default_factory=list)

    @property
    def where(self) -> str:
        """What every line says."""
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "CPU, tiny shapes"

    def time(self, what: str, work: Callable[[], object], **more: Any) -> Line:
        """Measure one arm alone, its FLOPs counted in a run of its own."""
        with torch.no_grad():
            timing = interleaved({what: work}, self.rounds, self.device)[what]
            with FlopCounterMode(display=False) as counter:
                work()
        line = Line(what, timing, float(counter.get_total_flops()), **more)
        self.lines.append(line)
        return line


def run(
    *,
    seconds: float = 1.0,
    identities: int = BOXES,
    seed: int = 0,
    out: Path | None = None,
    device: str = "auto",
    progress: Progress | None = None,
    rounds: int = ROUNDS,
) -> dict[str, Any]:
    """Measure everything; ``identities`` faces a frame are forced, ``seconds`` is not used."""
    where = resolve_device(device)
    bench = Bench(FULL if where.type == "cuda" else TINY, where, rounds)
    torch.manual_seed(seed)
    parts: list[Callable[[Bench], None]] = [
        matrix, denoiser, decoders, lambda bench: faces(bench, device, identities), sizes, guided,
    ]  # fmt: skip
    for done, part in enumerate(parts, 1):
        part(bench)
        if progress:
            progress("parts", done, len(parts))
    return publish("gpu", "facelock bench gpu", _body(bench), _results(bench), out)


def matrix(bench: Bench) -> None:
    """The rate that all shares refer to."""
    side = bench.sizes.matrix
    left = torch.randn(side, side, device=bench.device, dtype=bench.sizes.dtype)
    line = bench.time(f"matrix product {side}²", lambda: left @ left)
    assert line.timing  # noqa: S101 - it was just measured
    bench.rate = line.flops / line.timing.warm


def denoiser(bench: Bench) -> None:
    """One forward pass of a window, and the same continued from locked latents, by the diffusion-forcing class."""
    network = transformer(bench)
    bench.time("denoiser, one pass", lambda: forward(bench, network, bench.sizes.blueprint))


def decoders(bench: Bench) -> None:
    """A window decoded by the full VAE and by a tiny decoder, and the context encoded."""
    vae, latents = autoencoder(bench), latents_of(bench, bench.sizes.blueprint, torch.float32)
    full = bench.time("VAE decodes a window", lambda: vae.decode(latents, return_dict=False))
    video = torch.rand(1, 3, 5, *bench.sizes.blueprint, device=bench.device) * 2 - 1
    bench.time("VAE encodes a context of 5 frames", lambda: vae.encode(video))
    tiny = tiny_decoder(bench)
    if tiny is None:
        bench.lines.append(Line("tiny decoder", note="not in this build"))
        return
    small = latents.to(bench.sizes.dtype)
    line = bench.time("tiny decoder, the same window", lambda: tiny(small))
    if full.timing and line.timing:
        line.ratio, line.note = full.timing.warm / line.timing.warm, "times as fast as the VAE"


def faces(bench: Bench, device: str, count: int) -> None:
    """Lock and restoration of a window with ``count`` faces forced on every frame, by the miniature's networks."""
    try:
        pipeline = Pipeline.from_recipe("miniature", device)
        locker, restorer = pipeline.parts.locker, pipeline.parts.restorer
    except FaceLockError as error:
        bench.lines.append(Line("lock and restoration", note=f"not measured: {error}"))
        return
    side = pipeline.recipe.blueprint.size[0]
    clip, _ = cast.true_clip(cast.member(1), bench.sizes.window, side, 1)
    people = [cast.identity(cast.member(0), pipeline.parts)]
    for stage in (locker, restorer):
        stage.pack = Forced(stage.pack, count)  # type: ignore[union-attr]
    names = f"a window, {count} faces a frame, the miniature's networks"
    bench.time(f"lock of {names}", lambda: locker.lock(clip, people))
    bench.time(f"restoration of {names}", lambda: restorer.restore(clip, people))


class Forced:
    """A pack whose detector runs, and whose answer is so many boxes on every frame, whatever it saw."""

    def __init__(self, pack: FacePack, count: int) -> None:
        self._pack, self.count, self.encoder = pack, count, pack.encoder

    def detect(self, frames: Tensor) -> Faces:
        """The same boxes side by side on each frame, with landmarks at their usual places."""
        self._pack.detect(frames)
        height, width = frames.shape[-2:]
        wide = width / self.count
        left = torch.arange(self.count) * wide
        box = torch.stack(
            [left, torch.full_like(left, 0.1 * height), left + wide, torch.full_like(left, 0.9 * height)], 1
        )
        places = torch.tensor([[0.34, 0.46], [0.66, 0.46], [0.5, 0.64], [0.37, 0.82], [0.63, 0.82]])
        marks = torch.stack(
            [left[:, None] + places[:, 0] * wide, (0.1 + 0.8 * places[:, 1]).expand(self.count, 5) * height],
            2,
        )
        count = len(frames)
        return Faces(
            torch.arange(count).repeat_interleave(self.count), box.repeat(count, 1), marks.repeat(count, 1, 1),
            torch.ones(count * self.count),
        )  # fmt: skip

    def embed(self, frames: Tensor, faces: Faces) -> Tensor:
        """As the pack does."""
        return self._pack.embed(frames, faces)


def sizes(bench: Bench) -> None:
    """A clip made directly at a large size against one made small, locked and enlarged: from the times above.

    Both with 50 steps of guidance and one decoding. The small one adds lock and restoration.
    """
    at = {line.what: line for line in bench.lines}
    one_pass, decoding = _seconds(at["denoiser, one pass"]), _seconds(at["VAE decodes a window"])
    small = one_pass * 2 * STEPS + decoding
    added = sum(_seconds(line) for line in bench.lines if line.what.startswith(("lock", "restoration")))
    network, vae = transformer(bench), autoencoder(bench)
    for steps, goal in ((STEPS, "≤ 0.015"), (FEW, "≤ 0.12")):
        base = (
            small
            if steps == STEPS
            else _seconds(at["denoiser, one pass"]) * FEW + _seconds(at["VAE decodes a window"])
        )
        share = added / base
        bench.lines.append(Line(f"lock + restoration ÷ {steps}-step window", ratio=share, goal=goal))
    for size, goal in zip(bench.sizes.direct, ("≥ 4", "≥ 15"), strict=True):
        name = f"{size[1]}x{size[0]}"
        one = bench.time(f"denoiser at {name}, one pass", lambda size=size: forward(bench, network, size))  # type: ignore[misc]
        latents = latents_of(bench, size, torch.float32)
        with _tiled(vae):
            shown = bench.time(
                f"VAE decodes {name} in tiles", partial(vae.decode, latents, return_dict=False)
            )
        direct = _seconds(one) * 2 * STEPS + _seconds(shown)
        label = f"direct {name} ÷ {bench.sizes.blueprint[1]}x{bench.sizes.blueprint[0]} + lock + restoration"
        bench.lines.append(Line(label, ratio=direct / (small + added), goal=goal))


def guided(bench: Bench) -> None:
    """Identity guidance's share of a step, where this build has it; its own benchmark measures the whole."""
    try:
        import_module("facelock.guidance")
    except ImportError:
        bench.lines.append(Line("guided step ÷ plain step", goal="≤ 1.08", note="not in this build"))
        return
    bench.lines.append(Line("guided step ÷ plain step", goal="≤ 1.08", note="facelock bench guidance"))


# ---------------------------------------------------------------------- models


def transformer(bench: Bench) -> Any:
    """The diffusion-forcing transformer, its weights random, made on the device."""
    from diffusers import SkyReelsV2Transformer3DModel

    with torch.device(bench.device):
        network: Any = SkyReelsV2Transformer3DModel(in_channels=16, out_channels=16, **bench.sizes.network)
    for name, parameter in network.named_parameters():
        if not any(part in name for part in network._keep_in_fp32_modules):
            parameter.data = parameter.data.to(bench.sizes.dtype)
    return network.eval().requires_grad_(False)


def forward(bench: Bench, network: Any, size: tuple[int, int]) -> object:
    """One pass over a window of ``size`` whose first latents are the clean past."""
    dtype = bench.sizes.dtype
    latents = latents_of(bench, size, dtype)
    levels = torch.full(latents.shape[:1] + latents.shape[2:3], 500, device=bench.device)
    levels[:, :2] = 0
    words = torch.randn(
        1, bench.sizes.tokens, bench.sizes.network["text_dim"], device=bench.device, dtype=dtype
    )
    return network(
        hidden_states=latents, timestep=levels, encoder_hidden_states=words, enable_diffusion_forcing=True,
        fps=[1], return_dict=False,
    )  # fmt: skip


def autoencoder(bench: Bench) -> Any:
    """Wan's video VAE in float32."""
    from diffusers import AutoencoderKLWan

    with torch.device(bench.device):
        vae: Any = AutoencoderKLWan(**bench.sizes.vae)
    return vae.eval().requires_grad_(False)


def tiny_decoder(bench: Bench) -> Any | None:
    """A TAEHV-format decoder for the same latents; None where this build has none."""
    try:
        kind = import_module("facelock.nets.taehv").TinyDecoder
    except ImportError:
        return None
    with torch.device(bench.device):
        try:
            decoder = kind(16, widths=tuple(bench.sizes.tiny * n for n in (4, 2, 1, 1)))
        except TypeError:
            return None
    return decoder.to(bench.sizes.dtype).eval().requires_grad_(False)


def latents_of(bench: Bench, size: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """(1, 16, F, h, w) noise of a window."""
    frames = (bench.sizes.window - 1) // 4 + 1
    return torch.randn(1, 16, frames, size[0] // 8, size[1] // 8, device=bench.device, dtype=dtype)


@contextmanager
def _tiled(vae: Any) -> Any:
    vae.enable_tiling()
    try:
        yield
    finally:
        vae.disable_tiling()


# ---------------------------------------------------------------------- tables


def _seconds(line: Line) -> float:
    return line.timing.warm if line.timing else 0.0


def _body(bench: Bench) -> str:
    rows = [_row(bench, line) for line in bench.lines]
    head = ["what", "device", "cold, s", "warm, s", "GFLOP", "share of the matrix rate", "ratio", "goal", ""]
    said = "" if bench.device.type == "cuda" else f"\n\n{NO_GPU}"
    return f"Models: {bench.sizes.name}, random weights.\n\n{table(head, rows)}{said}"


def _row(bench: Bench, line: Line) -> list[str]:
    timing = line.timing
    share = line.flops / timing.warm / bench.rate if timing and line.flops and bench.rate else None
    times = (timing.cold, timing.warm) if timing else (None, None)
    counted = number(line.flops / 1e9, 3) if line.flops else "–"
    figures = [*(number(value, 4) for value in times), counted, number(share, 2), number(line.ratio, 3)]
    return [line.what, bench.where, *figures, line.goal, line.note]


def _results(bench: Bench) -> dict[str, Any]:
    return {
        "device": bench.where,
        "matrix_rate": bench.rate,
        "lines": [
            {"what": line.what, "warm": _seconds(line) or None, "flops": line.flops, "ratio": line.ratio,
             "goal": line.goal, "note": line.note}
            for line in bench.lines
        ],
    }  # fmt: skip
