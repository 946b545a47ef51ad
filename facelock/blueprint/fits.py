"""What a checkpoint can do of what a recipe asks, told by its configuration files alone: nothing is loaded.

::

    folder = Path("skyreels")
    configs = read_configs(folder, read_index(folder, PIPELINES["skyreels_v2"]))
    for error in misfits("skyreels_v2", str(folder), configs, Asked((544, 960), 97, 17, 30)):
        print(error)

The one place of these rules: recipes are held against them before anything is loaded (:mod:`facelock.preflight`), and
the backbones hold what they have loaded against them once more. Knows nothing of torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from facelock.blueprint.index import REMEDY, Config, Found
from facelock.errors import ConfigError, InputError, ModelError

MOST_CONTEXT_NOISE: Mapping[str, float] = {"skyreels_v2": 0.06, "wan_vace": 0.0, "helios": 0.2, "ltx2": 0.5}
SECTION = 9
"""Latents that Helios makes at once, as the published checkpoints were trained."""
FEATURE_REMEDY = (
    "Compute it again with ConsisID's own tools (facelock/blueprint/consisid_features.py says how)."
)
MEL_COMPRESSION = 4
"""Bins of a spectrogram to a latent of LTX-2's sound; diffusers writes the number into its code."""

Configs = Mapping[str, Config]
"""Folder of a part → its configuration; ``model_index`` is that of the whole."""


@dataclass(frozen=True)
class Asked:
    """What a recipe asks of a checkpoint; the fields are those of ``[blueprint]``."""

    size: tuple[int, int]
    window: int
    context: int
    steps: int = 1
    context_noise: float = 0.0
    flow_shift: float | None = None
    guided: bool = False
    """Whether there is identity guidance."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """The kind's own (:mod:`facelock.blueprint.options`); of SkyReels-V2 ``regions`` and ``region_width``."""


def refused(found: str, allowed: str) -> ConfigError:
    """The error for what was ``found`` in the recipe, where ``allowed`` would be possible."""
    return ConfigError(f"The blueprint cannot work with the recipe's {found}. Give {allowed}.")


def misfits(kind: str, folder: str, configs: Configs, asked: Asked) -> Found:
    """Everything about ``asked`` that the checkpoint in ``folder`` cannot do, and what of it does not hold together.

    A rule whose numbers the ``configs`` do not give (older files lack some) is passed over: those of a loaded
    checkpoint have them all. Yields ``ConfigError`` and ``ModelError``.
    """
    for check in CHECKS.get(kind, ()):
        with suppress(KeyError, TypeError, ValueError, IndexError, ZeroDivisionError, OverflowError):
            yield from check(kind, folder, configs, asked)


def latents(kind: str, configs: Configs) -> tuple[int, int, int] | None:
    """What a latent of the checkpoint is: its channels, frames and pixels along each side; None where that is not
    told."""
    with suppress(KeyError, TypeError, ValueError):
        vae = configs["vae"]
        if kind == "ltx2":
            return (int(vae["latent_channels"]), *ltx2_scales(vae))
        time, space = wan_scales(vae)
        return int(vae["z_dim"]), time, space * int(vae.get("patch_size") or 1)
    return None


def other_latents(taken: int, made: int) -> str:
    """The sentence for a tiny decoder of latents of another autoencoder."""
    return (
        f"The tiny decoder takes latents of {taken} channels, the blueprint's have {made}. "
        "Name the one that belongs to the blueprint in [guidance] decoder."
    )


# ---------------------------------------------------------------------- every kind


def _window(kind: str, folder: str, configs: Configs, asked: Asked) -> Found:
    if not 1 <= asked.context < asked.window:
        yield refused(f"context = {asked.context}", f"less than the window, {asked.window}")
    if asked.steps < 1:
        yield refused(f"steps = {asked.steps}", "1 or more")


def _noise(kind: str, folder: str, configs: Configs, asked: Asked) -> Found:
    most = MOST_CONTEXT_NOISE[kind]
    if not 0 <= asked.context_noise <= most:
        allowed = f"between 0 and {most:g}" if most else "0"
        yield refused(f"context_noise = {asked.context_noise}", allowed)


def _sides(asked: Asked, step: int) -> Found:
    if min(asked.size) < 1 or any(side % step for side in asked.size):
        yield refused(f"size = {asked.size}", f"n * {step}")


def _prediction(folder: str, scheduler: Config, *known: str) -> Found:
    """Euler's names none: it follows a flow whatever is asked."""
    if (found := scheduler.get("prediction_type", known[0])) not in known:
        yield ModelError(
            f"{folder}: its scheduler expects {found}, its transformer gives {known[0]}. {REMEDY}"
        )


def _widths(folder: str, made: int, taken: int) -> Found:
    if made != taken:
        yield ModelError(
            f"{folder}: the text encoder makes states of {made} channels, its reader takes {taken}. "
            "Use the parts of one model."
        )


# ---------------------------------------------------------------------- the Wan family


def wan_scales(vae: Config) -> tuple[int, int]:
    """Frames per latent, pixels per latent, of an ``AutoencoderKLWan``."""
    halvings = vae["temperal_downsample"]
    return 2 ** sum(halvings), 2 ** len(halvings)


def _wan_transformer(configs: Configs) -> Config:
    return configs["transformer"] if "transformer" in configs else configs["transformer_2"]


def _wan_size(kind: str, folder: str, configs: Configs, asked: Asked) -> Found:
    yield from _sides(asked, wan_scales(configs["vae"])[1] * _wan_transformer(configs)["patch_size"][1])


def _wan_positions(kind: str, folder: str, configs: Configs, asked: Asked) -> Found:
    time, space = wan_scales(configs["vae"])
    longest = int(_wan_transformer(configs)["rope_max_seq_len"])
    largest = max(-(-(asked.window - 1) // time) + 1, *(side // space for side in asked.size))
    if largest > longest:
        yield refused(f"{largest} latents along one axis", f"at most {longest}")


def _skyreels_channels(kind: str, folder: str, configs: Configs, asked: Asked) -> Found:
    network, channels = configs["transformer"], configs["vae"]["z_dim"]
    depth = network["patch_size"][0]
    if network["in_channels"] != channels or depth != 1:
        yield ModelError(
            f"{folder}: the transformer takes {network['in_channels']} channels and patches {depth} latents "
            f"deep, the VAE makes {channels} channels. Use a text-to-video model."
        )


def _skyreels_frames(kind: str, folder: str, configs: Configs, asked: Asked) -> Found:
    time, _ = wan_scales(configs["vae"])
    block = configs["transformer"]["num_frame_per_block"]
    for name, frames in (("window", asked.window), ("context", asked.context)):
        latents = (frames - 1) // time + 1
        if frames < 1 or frames % time != 1 % time:
            yield refused(f"{name} = {frames}", f"n * {time} + 1 frames")
        elif latents % block:
            yield refused(f"{name} = {frames}", f"a multiple of {block} latents ({latents} now)")


def region_starts(count: int, width: int, window: int) -> tuple[int, ...]:
    """Left edges of ``count`` windows, ``window`` latents wide, spread evenly over a frame ``width`` latents wide.

    Raises ``ConfigError`` where they do not fit or leave gaps.
    """
    if not (0 < window <= width) or count < 1 or (count == 1 and window != width):
        raise ConfigError(
            f"{count} regions of {window} latents do not fit a frame of {width}. Correct the recipe's regions."
        )
    starts = tuple(round(i * (width - window) / max(count - 1, 1)) for i in range(count))
    if any(right - left > window for left, right in pairwise(starts)):
        raise ConfigError(
            f"{count} regions of {window} latents leave gaps in a frame of {width}. "
            "Give more regions, or a narrower size, in the recipe."
        )
    return starts


def _skyreels_regions(kind: str, folder: str, configs: Configs, asked: Asked) -> Found:
    count = asked.options.get("regions", 1)
    width = asked.size[1] if count == 1 else asked.options.get("region_width") or asked.size[0]
    _, space = wan_scales(configs["vae"])
    try:
        region_starts(count, asked.size[1] // space, width // space)
    except ConfigError as error:
        yield error


def _vace_boundary(kind: str, folder: str, configs: Configs, asked: Asked) -> Found:
    ratio, both = (
        configs["model_index"].get("boundary_ratio"),
        {"transformer", "transformer_2"} <= set(configs),
    )
    whole = isinstance(ratio, int | float) and not isinstance(ratio, bool) and 0 < ratio < 1
    if (ratio is not None or both) and not (both and whole):
        yield ModelError(
            f"{folder}/model_index.json: a boundary_ratio between 0 and 1 and two transformers belong together "
            f"(found {ratio!r} and {'two' if both else 'one'}). {REMEDY}"
        )
    second = asked.options.get("guidance_scale_2")
    if second is not None and ratio is None:
        yield refused(f"guidance_scale_2 = {second}", "it for a model of two transformers alone")


def _vace_channels(kind: str, folder: str, configs: Configs, asked: Asked) -> Found:
    channels, pixels = configs["vae"]["z_dim"], wan_scales(configs["vae"])[1]
    for name in sorted(configs.keys() & {"transformer", "transformer_2"}):
        found = configs[name]["in_channels"], configs[name]["vace_in_channels"]
        if found != (channels, 2 * channels + pixels**2):
            yield ModelError(
                f"{folder}: {name} takes {found[0]} and {found[1]} channels, the VAE makes {channels}. "
                "Use the parts of one model."
            )


def _helios_schedule(kind: str, folder: str, configs: Configs, asked: Asked) -> Found:
    if asked.flow_shift is not None:
        yield refused(f"flow_shift = {asked.flow_shift}", "none: Helios shifts by the picture's size")
    stages = configs["scheduler"]["stages"]
    if stages != 1:
        yield ModelError(f"The blueprint's scheduler works in {stages} stages. Use a Helios base checkpoint.")


def _helios_sections(kind: str, folder: str, configs: Configs, asked: Asked) -> Found:
    section = (SECTION - 1) * wan_scales(configs["vae"])[0] + 1
    if asked.context % section:
        yield refused(f"context = {asked.context}", f"n * {section} frames")
    taken, made = configs["transformer"]["in_channels"], configs["vae"]["z_dim"]
    if taken != made:
        yield ModelError(
            f"{folder}: the transformer takes {taken} channels, the VAE makes {made}. Use the parts of one model."
        )


def _wan_schedule(kind: str, folder: str, configs: Configs, asked: Asked) -> Found:
    scheduler = configs["scheduler"]
    yield from _prediction(folder, scheduler, "flow_prediction", "sample")
    if not scheduler.get("use_flow_sigmas", True):
        yield ModelError(f"{folder}: its scheduler follows no flow (use_flow_sigmas). {REMEDY}")
    if scheduler["use_dynamic_shifting"]:
        yield ModelError("The blueprint's scheduler shifts by picture size. Use one with a fixed flow_shift.")


def _wan_statistics(kind: str, folder: str, configs: Configs, asked: Asked) -> Found:
    count = configs["vae"]["z_dim"]
    for name in ("latents_mean", "latents_std"):
        values = configs["vae"][name]
        whole = isinstance(values, list | tuple) and all(isinstance(value, int | float) for value in values)
        if not whole or len(values) != count or (name == "latents_std" and min(values) <= 0):
            yield ModelError(f"{folder}/vae: its {name} is no list of {count} numbers. {REMEDY}")


def _wan_texts(kind: str, folder: str, configs: Configs, asked: Asked) -> Found:
    yield from _widths(folder, configs["text_encoder"]["d_model"], _wan_transformer(configs)["text_dim"])


# ---------------------------------------------------------------------- LTX-2


def ltx2_scales(vae: Config) -> tuple[int, int]:
    """Frames per latent, pixels per latent, of an ``AutoencoderKLLTX2Video``."""
    halvings = vae["spatio_temporal_scaling"]
    count = len(vae["layers_per_block"]) - 1 if halvings is True else sum(halvings)
    time, space = (vae.get(f"{axis}_compression_ratio") for axis in ("temporal", "spatial"))
    return int(time or vae["patch_size_t"] * 2**count), int(space or vae["patch_size"] * 2**count)


def _ltx2_settings(kind: str, folder: str, configs: Configs, asked: Asked) -> Found:
    if asked.flow_shift is not None:
        yield ConfigError("LTX-2 shifts its noise by the picture's size. Leave flow_shift out of the recipe.")
    strength = asked.options.get("reference_strength", 0.0)
    if not 0 <= strength <= 1:
        yield refused(f"reference_strength = {strength}", "between 0 and 1")


def _ltx2_patches(kind: str, folder: str, configs: Configs, asked: Asked) -> Found:
    if (configs["transformer"]["patch_size"], configs["transformer"]["patch_size_t"]) != (1, 1):
        yield ModelError(
            f"{folder}: its transformer joins latents to patches. Use an LTX-2 model, not LTX-Video."
        )


def _ltx2_channels(kind: str, folder: str, configs: Configs, asked: Asked) -> Found:
    network, sound = configs["transformer"], configs["audio_vae"]
    if min(sound["sample_rate"], sound["mel_hop_length"]) < 1:
        yield ModelError(f"{folder}/audio_vae: its sample_rate or mel_hop_length is below 1. {REMEDY}")
    made = configs["vae"]["latent_channels"], sound["latent_channels"] * sound["mel_bins"] // MEL_COMPRESSION
    taken = network["in_channels"], network["audio_in_channels"]
    if taken != made:
        yield ModelError(
            f"{folder}: the transformer takes {taken[0]} and {taken[1]} channels, the autoencoders make {made[0]} "
            f"and {made[1]}. {REMEDY}"
        )


def _ltx2_texts(kind: str, folder: str, configs: Configs, asked: Asked) -> Found:
    text, reader = configs["text_encoder"]["text_config"], configs["connectors"]
    yield from _widths(folder, text["hidden_size"], reader["caption_channels"])
    if text["num_hidden_layers"] + 1 != reader["text_proj_in_factor"]:
        yield ModelError(
            f"{folder}: the text encoder has {text['num_hidden_layers']} layers, the connectors read "
            f"{reader['text_proj_in_factor'] - 1}. Use the parts of one model."
        )


def _ltx2_frames(kind: str, folder: str, configs: Configs, asked: Asked) -> Found:
    time, space = ltx2_scales(configs["vae"])
    if asked.context % time != 1 % time:
        yield refused(f"context = {asked.context}", f"n * {time} + 1 frames")
    yield from _sides(asked, space)
    if configs["vae"]["decoder_spatial_padding_mode"] == "reflect" and 0 < min(asked.size) < 2 * space:
        yield refused(f"size = {asked.size}", f"{2 * space} or more")


def _ltx2_blocks(kind: str, folder: str, configs: Configs, asked: Asked) -> Found:
    if not asked.options.get("stg_scale"):
        return
    block, depth = asked.options.get("stg_block", 29), configs["transformer"]["num_layers"]
    if not configs["transformer"]["perturbed_attn"]:
        yield ConfigError(f"{folder} has no attention to skip. Give stg_scale = 0 in the recipe.")
    elif not 0 <= block < depth:
        yield refused(f"stg_block = {block}", f"0 to {depth - 1}")


# ---------------------------------------------------------------------- ConsisID


def _consisid_settings(kind: str, folder: str, configs: Configs, asked: Asked) -> Found:
    if asked.flow_shift is not None or asked.context_noise or asked.guided:
        yield ConfigError("ConsisID takes no flow_shift, context_noise or guidance. Leave them out.")


def _consisid_features(kind: str, folder: str, configs: Configs, asked: Asked) -> Found:
    features = asked.options.get("features", "")
    if callable(features):
        return
    if not str(features):
        yield ConfigError(
            "ConsisID needs each face's features, which its own tools compute. "
            "Name their folder as features under [blueprint.options], or use another recipe."
        )
    elif not Path(features).is_dir():
        yield ConfigError(f"{features}: is no folder of ConsisID features. Correct it in the recipe.")


def feature_file(folder: Path, name: str) -> Path:
    """ConsisID's features of the character ``name``. Raises ``InputError`` where there are none."""
    path = folder / f"{name}.safetensors"
    if not path.is_file():
        raise InputError(f"{path}: ConsisID's features of {name} are missing. {FEATURE_REMEDY}")
    return path


def _consisid_kind(kind: str, folder: str, configs: Configs, asked: Asked) -> Found:
    network, channels = configs["transformer"], configs["vae"]["latent_channels"]
    if network["is_kps"] or not network["is_train_face"] or network["in_channels"] != 2 * channels:
        yield ModelError(f"{folder}: its transformer is not told of a face. Use ConsisID's own checkpoint.")


def _consisid_schedule(kind: str, folder: str, configs: Configs, asked: Asked) -> Found:
    yield from _prediction(folder, configs["scheduler"], "v_prediction")
    yield from _widths(folder, configs["text_encoder"]["d_model"], configs["transformer"]["text_embed_dim"])


def _consisid_size(kind: str, folder: str, configs: Configs, asked: Asked) -> Found:
    network, scale = configs["transformer"], 2 ** (len(configs["vae"]["block_out_channels"]) - 1)
    native = network["sample_height"] * scale, network["sample_width"] * scale
    if network["use_learned_positional_embeddings"] and tuple(asked.size) != native:
        yield refused(f"size = {asked.size}", f"{native}, the only size it knows")
    else:
        yield from _sides(asked, scale * network["patch_size"])


def _consisid_window(kind: str, folder: str, configs: Configs, asked: Asked) -> Found:
    longest = int(configs["transformer"]["sample_frames"])
    if not 1 < asked.window <= longest:
        yield refused(f"window = {asked.window}", f"2 to {longest}")


WAN = (_wan_statistics, _wan_texts, _wan_size)
CHECKS: Mapping[str, tuple[Callable[[str, str, Configs, Asked], Found], ...]] = {
    "skyreels_v2": (_window, _noise, _wan_schedule, *WAN, _skyreels_channels, _skyreels_frames, _wan_positions,
                    _skyreels_regions),
    "wan_vace": (_window, _noise, _wan_schedule, *WAN, _vace_boundary, _vace_channels, _wan_positions),
    "helios": (_window, _noise, _helios_schedule, *WAN, _helios_sections),
    "ltx2": (_ltx2_settings, _window, _noise, _ltx2_patches, _ltx2_channels, _ltx2_texts, _ltx2_frames, _ltx2_blocks),
    "consisid": (_consisid_settings, _window, _consisid_features, _consisid_kind, _consisid_schedule, _consisid_size,
                 _consisid_window),
}  # fmt: skip
"""Kind → its rules, in the order in which they are told."""
