"""What stands between a recipe and its first frame here, all of it at once, before anything is loaded.

::

    require(load_recipe("skyreels-v2-1.3b"))       # raises one error that lists everything
    for error in lacking(recipe):                  # what `facelock doctor` shows
        print(error)
    require(recipe, used=VERIFY)                   # of a command that uses some of it: facelock.recipe.uses

Looks at names, file headers and configurations: weights that are missing, files that are not what the recipe says,
packages that are not installed, numbers that the checkpoint cannot do. The rules themselves stand beside the stages
(``fits`` and ``formats`` modules), which hold what they load against them once more. Knows nothing of torch, which is
imported for the sizes in a ``.pth`` alone.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from facelock.alignment import ALIGNERS, aligner_class
from facelock.alignment import formats as alignment_formats
from facelock.blueprint import BACKBONES, backbone_class, fits
from facelock.blueprint.index import PIPELINES, Config, broken_parts, read_configs, read_index
from facelock.errors import ConfigError, FaceLockError, ModelError, caught, together
from facelock.nets.taehv_layout import read_shape
from facelock.portrait import fits as portrait_fits
from facelock.recipe import Recipe, load_recipe, model_names, recipe_names
from facelock.recipe.uses import ALL, Uses, uses
from facelock.restoration import RESTORERS, UPSCALERS, restorer_class, upscaler_class
from facelock.restoration import formats as restoration_formats
from facelock.restoration.extra import SPANDREL, lacking_extra
from facelock.tuning.options import cache_misfit
from facelock.tuning.packages import lacking_packages
from facelock.weights import place, require_commercial, require_here, require_known
from facelock.weights.onnx_header import require_recogniser

Found = Iterator[FaceLockError]
Paths = Mapping[str, Path]
"""Role → file or folder, of the weights that are here."""


def wanted(names: Sequence[str], recipe: str | Path | None = None, *, only: bool = False) -> list[str]:
    """Weights that are to be fetched: ``names``, and all that the ``recipe`` of this name or path names.

    A name that is a shipped recipe's too stands for all that the recipe names, unless ``only`` the weights of these
    very names are asked for. Raises ``ConfigError`` where there are none, or for a recipe that cannot be read.
    """
    recipes = {} if only else recipe_names()
    found: list[str] = []
    for name in names:
        found += model_names(load_recipe(name)).values() if name in recipes else [name]
    found += model_names(load_recipe(recipe)).values() if recipe else ()
    if not found:
        raise ConfigError(
            "No weight is named. Give names as 'facelock models list' shows them, or --recipe NAME."
        )
    return list(dict.fromkeys(found))


def require(
    recipe: Recipe, *, used: Uses = ALL, commercial: bool = False, also: Sequence[FaceLockError] = ()
) -> None:
    """Raise what :func:`lacking` finds and what was found ``also``, as one error (:func:`facelock.errors.together`)."""
    found = [*lacking(recipe, used=used, commercial=commercial), *also]
    if found:
        raise together(f"The recipe {recipe.name} cannot run here", found)


def lacking(
    recipe: Recipe, *, used: Uses = ALL, commercial: bool = False, weights: bool = True
) -> list[FaceLockError]:
    """Everything that is in the way of what is ``used`` of ``recipe``; empty: nothing that can be told.

    ``commercial`` refuses weights whose licence does not allow commercial use; without ``weights`` those that are
    missing are not told, but for names that mean nothing, since somebody else does.
    """
    names, found = model_names(recipe, used), list(_kinds(recipe, used))
    refused = caught(*(partial(require_commercial, [name]) for name in names.values())) if commercial else []
    found += refused
    paths = {role: path for role, name in names.items() if (path := place(name)) is not None}
    found += caught(*(partial(require_known, name) for name in names.values()))
    if weights and not refused:  # what is refused need not be fetched
        found += caught(lambda: require_here(names.values()))
    for check in CHECKS:
        found += check(recipe, paths, used)
    return found


def _kinds(recipe: Recipe, used: Uses) -> Found:
    """Stages of a kind that is not known; imports none of them."""
    restore = recipe.restore
    kinds: list[tuple[str, str, Collection[str], Callable[[str], Any]]] = [
        ("blueprint", recipe.blueprint.kind, BACKBONES, backbone_class),
        ("lock", recipe.lock.kind, ALIGNERS, aligner_class),
        ("restore.upscaler", restore.upscaler_kind, UPSCALERS, upscaler_class),
        ("restore.restorer", restore.restorer_kind, RESTORERS, restorer_class),
    ]
    for role, kind, known, find in kinds:
        if kind not in known and uses(used, role):
            yield from caught(partial(find, kind))


def _speed(recipe: Recipe, paths: Paths, used: Uses) -> Found:
    """Of the blueprint: its choices leave the other stages as they are."""
    if not uses(used, "blueprint"):
        return
    speed = recipe.speed.choices()
    yield from lacking_packages(speed)
    if speed.cache:
        control = recipe.blueprint.kind == "wan_vace"
        misfit = cache_misfit(speed.cache, control=control, steps=recipe.blueprint.steps)
        yield from [misfit] if misfit else []


def _blueprint(recipe: Recipe, paths: Paths, used: Uses) -> Found:
    if not uses(used, "blueprint"):
        return
    low, folder = recipe.blueprint, paths.get("blueprint.model")
    configs: dict[str, Config] = {}
    if folder and low.kind in PIPELINES:
        try:
            index = read_index(folder, PIPELINES[low.kind])
        except ModelError as error:
            yield error
            return
        yield from broken_parts(folder, index)
        configs = read_configs(folder, index)
    asked = fits.Asked(
        low.size,
        low.window,
        low.context,
        low.steps,
        low.context_noise,
        low.flow_shift,
        guided=recipe.guidance is not None,
        options={**low.options, "regions": low.regions, "region_width": low.region_width},
    )
    yield from fits.misfits(low.kind, str(folder), configs, asked)
    if "guidance.decoder" in paths:
        yield from _decoder(low.kind, paths["guidance.decoder"], configs)


def _decoder(kind: str, path: Path, configs: fits.Configs) -> Found:
    try:
        shape = read_shape(path)
    except ModelError as error:
        yield error
        return
    latents = fits.latents(kind, configs)
    if latents is not None and shape.channels != latents[0]:
        yield ModelError(fits.other_latents(shape.channels, latents[0]))
    elif latents is not None and shape.scales != latents[1:]:
        (time, space), (frames, pixels) = shape.scales, latents[1:]
        yield ModelError(
            f"{path}: makes {time} frames and {space} pixels of a latent, the blueprint's holds {frames} and {pixels}. "
            "Name the one that belongs to the blueprint in [guidance] decoder."
        )


def _recogniser(recipe: Recipe, paths: Paths, used: Uses) -> Found:
    encoder = paths.get("faces.encoder")
    if encoder and recipe.faces.kind == "onnx_pack":
        yield from caught(lambda: require_recogniser(encoder))


def _aligner(recipe: Recipe, paths: Paths, used: Uses) -> Found:
    model, encoder = paths.get("lock.model"), paths.get("faces.encoder")
    if recipe.lock.kind == "inswapper" and model:
        wrong = caught(lambda: alignment_formats.require_inswapper(model))
        if not wrong and encoder and recipe.faces.kind == "onnx_pack":
            wrong = caught(lambda: alignment_formats.require_width(model, encoder))
        yield from wrong
    if recipe.lock.kind == "faceid" and recipe.lock.faceid and model:
        faceid = recipe.lock.faceid
        yield from portrait_fits.checked(model, mask=faceid.mask, size=faceid.size)


def spandrel_is_used(recipe: Recipe, used: Uses) -> bool:
    """Whether a stage that is ``used`` is one of spandrel's (extra ``sr``)."""
    restore = recipe.restore
    enlarges = restore.upscaler_kind in SPANDREL and uses(used, "restore.upscaler")
    restores = restore.restorer_kind in SPANDREL and bool(restore.restorer)
    return enlarges or (restores and uses(used, "restore.restorer"))


def _restorer(recipe: Recipe, paths: Paths, used: Uses) -> Found:
    missing = lacking_extra() if spandrel_is_used(recipe, used) else None
    yield from [missing] if missing else []
    restore, upscaler, model = recipe.restore, paths.get("restore.upscaler"), paths.get("restore.restorer")
    kind, scale = restore.upscaler_kind, restore.scale
    if upscaler and kind in UPSCALERS:
        yield from caught(lambda: restoration_formats.require_upscaler(upscaler, kind, scale))
    if restore.restorer_kind == "onnx_restorer" and model:
        wrong = caught(lambda: restoration_formats.require_restorer(model))
        encoder = paths.get("faces.encoder")
        if not wrong and encoder and recipe.faces.kind == "onnx_pack":
            wrong = caught(lambda: restoration_formats.require_width(model, encoder))
        yield from wrong
    if restore.restorer_kind == "faceid_restorer" and restore.faceid and model:
        yield from portrait_fits.checked(model, mask=restore.faceid.mask, size=restore.faceid.size)


def _encoder(recipe: Recipe, paths: Paths, used: Uses) -> Found:
    """A hardware encoder is tried; the software one when a clip is begun."""
    if recipe.encode.encoder != "x264" and uses(used, "encode"):
        from facelock.video.encoders import require_encoder

        yield from caught(lambda: require_encoder(recipe.encode.encoder))


CHECKS: tuple[Callable[[Recipe, Paths, Uses], Found], ...] = (
    _speed,
    _blueprint,
    _recogniser,
    _aligner,
    _restorer,
    _encoder,
)
"""What is looked at besides the weights' names, stage by stage."""


def require_features(recipe: Recipe, names: Sequence[str]) -> None:
    """Raise ``InputError`` where a recipe of ConsisID has no features of the first of the characters ``names``."""
    features = recipe.blueprint.options.get("features")
    if recipe.blueprint.kind == "consisid" and features and names:
        fits.feature_file(Path(features), names[0])
