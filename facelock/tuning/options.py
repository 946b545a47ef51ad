"""What can be chosen to make a backbone faster, by name. Knows no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from facelock.errors import ConfigError
from facelock.mistakes import did_you_mean

ATTENTION: Mapping[str, str] = {
    "native": "native",
    "native_math": "_native_math",
    "native_flash": "_native_flash",
    "native_efficient": "_native_efficient",
    "native_cudnn": "_native_cudnn",
    "flex": "flex",
    "flash": "flash",
    "flash_3": "_flash_3",
    "sage": "sage",
    "xformers": "xformers",
}
"""Name in a recipe → diffusers' name. Those that fetch kernels from a hub while running are left out."""
GPU_ATTENTION = frozenset({"native_efficient", "native_cudnn", "flash", "flash_3", "sage", "xformers"})
"""Of these, what has no code for a CPU (torch 2.13's own two say "no viable backend" there)."""
HALF_ATTENTION = frozenset({"native_flash", "native_cudnn", "flash", "flash_3", "sage"})
"""What computes in half precision only on a GPU."""
COMPILE = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
"""Modes of ``torch.compile``."""
CACHES: Mapping[str, tuple[str, ...]] = {
    "first_block": ("threshold",),
    "mag": ("threshold", "ratios", "most"),
    "pab": ("every", "window"),
    "sea": ("threshold", "most"),
}
"""Step caches, and the keys of ``[speed.cache]`` that each goes by."""
REFUSED_CACHES: Mapping[str, str] = {
    "faster": "FasterCache needs both halves of guidance in diffusers' own order, and fails on Wan-like models",
    "taylorseer": "TaylorSeer finds no blocks to skip in Wan-like models, so it would only cost time",
}
"""Seen with diffusers 0.42 (FasterCache: IndexError; TaylorSeer: nothing skipped)."""
QUANTISE = ("float8", "int8")
REFUSED_QUANTISE: Mapping[str, str] = {
    "int4": "int4 weights change faces visibly and need a package of the card's maker",
    "nf4": "nf4 needs bitsandbytes, which this project does not test",
    "bitsandbytes": "bitsandbytes is not tested here",
    "quanto": "quanto is no longer kept up",
}
VAE_PRECISIONS = ("float32", "bfloat16")


@dataclass(frozen=True)
class StepCache:
    """A step cache: denoising steps that change little reuse what an earlier one computed."""

    kind: str
    """One of :data:`CACHES`."""
    threshold: float | None = None
    """How much change is still passed over; None: diffusers' default. Not of ``pab``."""
    every: int = 2
    """Of ``pab``: attention is computed every so many steps."""
    window: tuple[int, int] = (100, 800)
    """Of ``pab``: noise levels (0..1000) between which attention may be reused."""
    ratios: tuple[float, ...] = ()
    """Of ``mag``: how the residual's size changes from step to step, measured once for a checkpoint."""
    most: int = 3
    """Of ``mag`` and ``sea``: steps in a row that may be skipped."""


@dataclass(frozen=True)
class Speed:
    """The choices of a recipe's ``[speed]`` table; the defaults change nothing."""

    reference: bool = False
    """Plain code everywhere: nothing below applies, no pairing of guidance, no overlap."""
    attention: str | None = None
    """One of :data:`ATTENTION`."""
    compile: str | None = None
    """One of :data:`COMPILE`."""
    cache: StepCache | None = None
    quantise: str | None = None
    """One of :data:`QUANTISE`, for the transformer's weights."""
    channels_last: bool = False
    """The VAE's convolutions on channels-last memory."""
    vae_precision: str = "float32"
    """One of :data:`VAE_PRECISIONS`: in which the VAE computes. Its weights stay float32."""
    overlap: bool = False
    """The next chunk's blueprint is made while this chunk is restored, judged and encoded."""

    def effective(self) -> Speed:
        """The choices that hold: none of them in reference mode."""
        return Speed(reference=True) if self.reference else self

    def check(self) -> Speed:
        """Return itself; raise :class:`ConfigError` for a name that is not known or not offered."""
        _check("attention", self.attention, tuple(ATTENTION))
        _check("compile", self.compile, COMPILE)
        _check("quantise", self.quantise, QUANTISE, REFUSED_QUANTISE)
        _check("vae_precision", self.vae_precision, VAE_PRECISIONS)
        if self.cache:
            _check_cache(self.cache)
        return self

    def without(self, **choices: object) -> Speed:
        """A copy with other choices, checked."""
        return replace(self, **choices).check()  # type: ignore[arg-type]


def _check(
    key: str, name: str | None, known: tuple[str, ...], refused: Mapping[str, str] | None = None
) -> None:
    if name is None or name in known:
        return
    choice = f"Give one of: {', '.join(known)}."
    if refused and name in refused:
        raise ConfigError(f"speed.{key} = {name!r} is not offered: {refused[name]}. {choice}")
    guess = did_you_mean(name, known) or ", which is not known."
    raise ConfigError(f"speed.{key} = {name!r}{guess} {choice}")


def _check_cache(cache: StepCache) -> None:
    _check("cache.kind", cache.kind, tuple(CACHES), REFUSED_CACHES)
    if cache.kind == "mag" and not cache.ratios:
        raise ConfigError(
            "speed.cache.kind = 'mag' needs the checkpoint's own ratios. Measure them with "
            "facelock.tuning.ratios.measure_ratios, or choose another cache."
        )
    low, high = cache.window
    if not 0 <= low < high <= 1000:
        raise ConfigError(
            f"speed.cache.window = [{low}, {high}] holds no noise level. "
            "Give the lower one, then the higher, of 0 to 1000."
        )
    if cache.every < 2 or cache.most < 1:
        raise ConfigError(
            f"speed.cache.every = {cache.every}, most = {cache.most} skip nothing. Give 2 and 1 or more."
        )


def unused_cache_key(kind: str, given: Iterable[str]) -> str:
    """A sentence on the first of the ``given`` keys of ``[speed.cache]`` that ``kind`` does not go by; else empty."""
    used = CACHES.get(kind, tuple(given))
    for key in given:
        if key != "kind" and key not in used:
            guess = did_you_mean(key, used) or "."
            return (
                f"speed.cache.{key} has no effect with kind = {kind!r}{guess} It goes by {' and '.join(used)}"
            )
    return ""


def cache_misfit(cache: StepCache, *, control: bool, steps: int) -> ConfigError | None:
    """Why a transformer cannot be cached: one with a ``control`` branch, as VACE's, or one that takes few ``steps``."""
    if cache.kind != "pab" and control:
        return ConfigError(
            f"speed.cache.kind = {cache.kind!r} would count VACE's control signal twice. Choose pab, or none."
        )
    if steps < 2:
        return ConfigError("speed.cache: with one denoising step nothing can be reused. Remove it.")
    return None


def attention_misfit(name: str, *, gpu: bool, precision: str) -> ConfigError | None:
    """Why the attention ``name`` cannot compute on such a device in such a ``precision``; None where it can."""
    said = f"speed.attention = {name!r}"
    if not gpu and name in GPU_ATTENTION:
        there = ", ".join(other for other in ATTENTION if other not in GPU_ATTENTION)
        return ConfigError(f"{said} needs a GPU. Give one of {there}, or --device cuda.")
    if gpu and name in HALF_ATTENTION and precision == "float32":
        return ConfigError(
            f"{said} computes in half precision only. Give bfloat16 as blueprint.precision, or choose native."
        )
    return None
