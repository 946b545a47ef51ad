"""What ``facelock bench gpu`` measures of the blueprint: denoiser, solver, decoders, guidance, long clips, sizes."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend

from facelock.bench.gpu_bench import GIB, LATE, Bench, Line, clear, peak
from facelock.bench.gpu_face_nets import cast, face_pack, recogniser
from facelock.bench.gpu_networks import (
    Built,
    autoencoder,
    forward,
    kept,
    latents_of,
    published,
    tiny_decoder,
    transformer,
)
from facelock.bench.timing import Timing, wait_for
from facelock.guidance import GuidanceSettings, IdentityGuide
from facelock.tuning import apply

STEPS = 50
FEW = 4
"""Steps of a distilled denoiser."""
VIEWS = 2
"""Looks at each face per guided step, by a recipe's defaults."""


def matrix(bench: Bench) -> None:
    """The rates that all else is compared with: matrix product, copies on the device and to the host."""
    side, device, dtype = bench.sizes.matrix, bench.device, bench.sizes.dtype
    left = torch.randn(side, side, device=device, dtype=dtype)
    many = 8 if bench.on_gpu else 1
    line = bench.time(
        f"matrix product {side}², {_name(dtype)}, {many} in a row",
        lambda: [left @ left for _ in range(many)],
        key="matrix",
        rounds=5,
    )
    if line.timing:
        bench.rate = line.flops / line.timing.warm
        line.note = f"{bench.rate / 1e12:.3g} TFLOP/s"
    source = torch.randn(bench.sizes.copied * 2**18, device=device)
    target = torch.empty_like(source)
    _rate(bench, "copy on the device (read + written)", lambda: target.copy_(source), 2 * source.nbytes)
    part = source[: max(1, len(source) // 4)]
    _rate(bench, "copy to the host, pageable", part.cpu, part.nbytes)
    if bench.on_gpu:
        held = torch.empty_like(part, device="cpu", pin_memory=True)
        _rate(bench, "copy to the host, pinned", lambda: held.copy_(part), part.nbytes)
    else:
        bench.add(Line("copy to the host, pinned", note="not run: there is no GPU to copy from"))


def _rate(bench: Bench, what: str, work: Callable[[], object], size: int) -> None:
    line = bench.time(f"{what}, {size / 2**20:.0f} MiB", work)
    if line.timing:
        line.note = f"{size / line.timing.warm / 1e9:.3g} GB/s"


def denoiser(bench: Bench) -> None:
    """One forward pass of a window by the diffusion-forcing class."""
    network = kept(bench, "transformer", lambda: transformer(bench))
    size = bench.sizes.blueprint
    what = f"denoiser, one pass, {size[1]}x{size[0]}, {bench.sizes.window} frames"
    bench.time(what, lambda: forward(bench, network, size), key="pass", cost=4)
    _kernel(bench)


def attention(bench: Bench) -> None:
    """The same pass with each of torch's attention kernels that a recipe can ask for."""
    network = kept(bench, "transformer", lambda: transformer(bench))
    for name in bench.sizes.backends:
        line = Line(f"denoiser, one pass, attention = {name}")
        with bench.guarded([line]):
            apply.set_attention(network, name)
            line = bench.time(
                line.what, lambda: forward(bench, network, bench.sizes.blueprint), cost=4, rounds=2
            )
            _against(bench, line, "pass", "times as fast as the default")
        if line.note.startswith("failed") and line not in bench.lines:
            bench.add(line)
    apply.set_attention(network, "native")


def _kernel(bench: Bench) -> None:
    """Which of its kernels torch's attention takes at these shapes."""
    heads, width = (bench.sizes.network[name] for name in ("num_attention_heads", "attention_head_dim"))
    latents = latents_of(bench, bench.sizes.blueprint, bench.sizes.dtype)
    tokens = latents[0, 0].numel() // 4
    query = torch.randn(1, heads, tokens, width, device=bench.device, dtype=bench.sizes.dtype)
    work = partial(torch.nn.functional.scaled_dot_product_attention, query, query, query)
    line = bench.time(f"attention alone, {tokens} tokens", work)
    with suppress(Exception), torch.no_grad():  # torch's own answer, of a function that may go away
        chosen = SDPBackend(torch._fused_sdp_choice(query, query, query))
        line.note = line.note or f"kernel: {chosen.name.lower()}"


def lock_off(bench: Bench) -> None:
    """A window by our backbone and by diffusers' pipeline, from the same networks and text states."""
    steps, frames = FEW, bench.sizes.short
    ours = Built(bench, window=frames, context=frames // 8 * 4 + 1, steps=steps, guidance_scale=5.0)
    arms = {
        f"diffusers' pipeline, {frames} frames, {steps} steps": published(bench, ours, steps),
        "FaceLock, lock off, the same": lambda: ours.extend("a prompt", None, seed=1),
    }
    lines = bench.compare(arms, keys=["theirs", "ours"], cost=25)
    _ratio(bench, "lock switched off ÷ plain diffusers call", "ours", "theirs", "≤ 1.005", lines)


def decoders(bench: Bench) -> None:
    """A window decoded by the full VAE and by a tiny decoder, and the context encoded."""
    vae = kept(bench, "vae", lambda: autoencoder(bench))
    latents = latents_of(bench, bench.sizes.blueprint, torch.float32)
    bench.time(
        "VAE decodes a window, float32",
        lambda: vae.decode(latents, return_dict=False),
        key="decode",
        cost=8,
        rounds=1,
    )
    video = torch.rand(1, 3, 5, *bench.sizes.blueprint, device=bench.device) * 2 - 1
    bench.time("VAE encodes a context of 5 frames", lambda: vae.encode(video), cost=2)
    tiny = tiny_decoder(bench, bench.sizes.dtype)
    small = latents.to(bench.sizes.dtype)
    line = bench.time("tiny decoder, the same window", lambda: tiny(small), key="tiny", cost=1)
    _against(bench, line, "decode", "times as fast as the VAE")
    if bench.sizes.dtype != torch.bfloat16:
        return
    half = autoencoder(bench)
    apply.vae_in_bfloat16(half)
    line = bench.time(
        "VAE decodes a window, vae_precision = bfloat16", lambda: half.decode(latents, return_dict=False),
        key="decode half", cost=8, rounds=1,
    )  # fmt: skip
    _against(bench, line, "decode", "times as fast as in float32")


def guided(bench: Bench) -> None:
    """One step of a window's denoising with and without identity guidance, solver and both halves of CFG included.

    The step is one that edits every face. By a recipe's defaults a latent is edited in one step of a window at most, so
    that a window pays for one such step.
    """
    guides = {views: _guide(bench, views) for views in (VIEWS, 8)}
    halved = _guide(bench, VIEWS)
    halved.decoder, halved.embedder = (_InBfloat16(net) for net in (halved.decoder, halved.embedder))  # type: ignore[assignment]
    backbone = Built(bench, window=bench.sizes.window, context=1, steps=1, guidance_scale=5.0)
    texts = backbone._texts("a prompt")

    def step(led: Any) -> Tensor:
        backbone.guide = led
        return backbone._denoise(texts, None, 1)

    arms = {
        "plain step of a window": lambda: step(None),
        f"guided step, 2 faces a frame, {VIEWS} views": lambda: step(guides[VIEWS]),
        "the same, guidance's networks in bfloat16": lambda: step(halved),
        "guided step, 8 views": lambda: step(guides[8]),
    }
    keys = ["plain step", "guided step", "halved step", "8 views"]
    lines = bench.compare(arms, keys=keys, cost=18, rounds=2)
    for key, what in zip(keys[1:], ("", ", guidance's networks in bfloat16", ", 8 views"), strict=True):
        _ratio(bench, f"guided step ÷ plain step{what}", key, "plain step", "≤ 1.08", lines)
    plain, led = bench.seconds("plain step"), bench.seconds("guided step")
    ratio = 1 + (led / plain - 1) / STEPS if plain and led else None
    note = "worked out: a recipe's defaults edit once in a window" if ratio else lines[-1].note
    bench.add(Line(f"mean of {STEPS} steps, one of them guided ÷ plain step", ratio=ratio, note=note))


class _InBfloat16:
    """A network that computes in bfloat16 where that is safe, and answers in float32."""

    def __init__(self, net: Any) -> None:
        self.net = net

    def __getattr__(self, name: str) -> Any:
        return getattr(self.net, name)

    def __call__(self, rows: Tensor, *more: Any) -> Tensor:
        with torch.autocast(rows.device.type, torch.bfloat16):
            return self.net(rows, *more).float()


def _guide(bench: Bench, views: int) -> IdentityGuide:
    """Edits two faces a frame in every step."""
    settings = GuidanceSettings(0.15, 1e9, (0.0, 1.0), views, ceiling=2.0, minimum_face=1.0, maximum_yaw=90.0)
    decoder = kept(bench, "tiny", lambda: tiny_decoder(bench))
    pack = face_pack(bench, 2)
    guide = IdentityGuide(decoder, kept(bench, "recogniser", lambda: recogniser(bench)), pack, settings)
    guide.begin(cast(2))
    return guide


def long_clip(bench: Bench) -> None:
    """Chunks one after another, each continued from the last frames of the one before: time and peak memory."""
    window, context, count = bench.sizes.chunk
    backbone = Built(bench, window=window, context=context, steps=2, guidance_scale=5.0)
    line = Line(f"late ÷ early chunk of {count}, {window} frames each, blueprint alone: time")
    memory = Line("the same: peak memory", goal="≤ 1.01")
    line.goal = "≤ 1.02"
    if not bench.fits(10):
        line.note = memory.note = LATE
    else:
        with bench.guarded([line, memory]):
            spans, peaks = _chunks(bench, backbone, count)
            line.ratio = sum(spans[-2:]) / sum(spans[1:3])
            line.timing = Timing(spans[0], spans[-1], 0.0)
            if bench.on_gpu:
                line.memory = memory.memory = peaks[-1]
                memory.ratio = peaks[-1] / peaks[1]
            else:
                memory.note = "not run: a CPU has no such figure; facelock bench stages has the process's"
    bench.add(line)
    bench.add(memory)


def _chunks(bench: Bench, backbone: Built, count: int) -> tuple[list[float], list[float]]:
    """Seconds and peak GiB of each chunk."""
    tail, spans, peaks = None, [], []
    for chunk in range(count):
        clear(bench.device)
        began = time.perf_counter()
        frames = backbone.extend("a prompt", tail, seed=chunk)
        wait_for(bench.device)
        spans.append(time.perf_counter() - began)
        peaks.append(peak(bench.device) or 0.0)
        tail = torch.cat([frames if tail is None else tail, frames])[-backbone.context :].clone()
    return spans, peaks


def direct(bench: Bench) -> None:
    """A clip made directly at a large size against one made small, locked and enlarged.

    Both with 50 steps of guidance and one decoding. The small one adds lock and restoration; the large one's decoding
    is taken from the small one's, by the number of pixels.
    """
    network = kept(bench, "transformer", lambda: transformer(bench))
    added = [bench.seconds(key) for key in ("lock", "restore")]
    own, one_pass, decode = bench.sizes.blueprint, bench.seconds("pass"), bench.seconds("decode")
    for size, goal, cost in zip(bench.sizes.direct, ("≥ 4", "≥ 15"), (7.0, 18.0), strict=True):
        name = f"{size[1]}x{size[0]}"
        line = bench.time(
            f"denoiser at {name}, one pass", partial(forward, bench, network, size), key=name, cost=cost,
            rounds=1 if cost < 10 else 0, note="" if cost < 10 else "one run only",
        )  # fmt: skip
        ratio = Line(f"direct {name} ÷ {own[1]}x{own[0]} + lock + restoration", goal=goal)
        if line.timing and one_pass and decode and all(added):
            more = sum(seconds for seconds in added if seconds)
            larger = line.timing.warm * 2 * STEPS + decode * size[0] * size[1] / (own[0] * own[1])
            ratio.ratio = larger / (one_pass * 2 * STEPS + decode + more)
            ratio.note = f"{STEPS} steps of guidance; the large decoding by its pixels"
        else:
            ratio.note = "a part of it was not measured"
        bench.add(ratio)


def large(bench: Bench) -> None:
    """One pass of the larger denoiser."""
    bench.kept.pop("transformer", None)
    clear(bench.device)
    network = transformer(bench, large=True)
    size, count = bench.sizes.blueprint, sum(p.numel() for p in network.parameters())
    what = f"denoiser {bench.sizes.large_name}, one pass, {size[1]}x{size[0]}, {bench.sizes.window} frames"
    note = f"{count / 1e9:.3g} billion weights, {sum(p.nbytes for p in network.parameters()) / GIB:.1f} GiB"
    bench.time(what, lambda: forward(bench, network, size), cost=8, rounds=1, note=note)


def quantised(bench: Bench) -> None:
    """The pass with the weights held in float8, and compiled block by block."""
    network = transformer(bench)
    apply.quantise(network, "float8", bench.device)
    line = bench.time(
        "denoiser, one pass, quantise = float8", lambda: forward(bench, network, bench.sizes.blueprint),
        cost=4, rounds=1,
    )  # fmt: skip
    _against(bench, line, "pass", "times as fast as the default")


def compiled(bench: Bench) -> None:
    """The pass compiled block by block, where there is a compiler and time."""
    if not bench.on_gpu:
        bench.add(
            Line("denoiser, one pass, compiled", note="not run: tiny shapes would time the compiler alone")
        )
        return
    network = transformer(bench)
    apply.compile_blocks(network, "default")
    line = bench.time(
        "denoiser, one pass, compile = default", lambda: forward(bench, network, bench.sizes.blueprint), rounds=2
    )  # fmt: skip
    _against(bench, line, "pass", "times as fast as the default")


def _against(bench: Bench, line: Line, other: str, note: str) -> None:
    """The ratio of an earlier line's time to this one's."""
    base = bench.seconds(other)
    if base and line.timing:
        line.ratio, line.note = base / line.timing.warm, note


def _ratio(bench: Bench, what: str, above: str, below: str, goal: str, lines: list[Line]) -> None:
    """A line of its own for the ratio of two others."""
    a, b = bench.seconds(above), bench.seconds(below)
    ratio = a / b if a and b else None
    bench.add(Line(what, ratio=ratio, goal=goal, note="" if ratio else lines[-1].note))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
