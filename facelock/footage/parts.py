"""What ``facelock lock`` works with: the recipe's own stages, or other recognisers with an aligner that suits them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from facelock.alignment import ALIGNERS, aligner_class
from facelock.assembly import Assembly
from facelock.errors import ConfigError
from facelock.faces.dense import landmarks
from facelock.ledger import Judge
from facelock.lock_loop import Locker
from facelock.perception import MINIATURE, Perception, open_perception
from facelock.pipeline import Pipeline
from facelock.preflight import require
from facelock.protocols import FacePack
from facelock.recipe import Recipe, load_recipe
from facelock.recipe.uses import REFERENCES, RESTORER, Uses
from facelock.restore_loop import RestoreLoop
from facelock.runtime import resolve_device
from facelock.weights import require_commercial

WARP = "warp"
"""The aligner for recognisers that no generative aligner was trained with."""
WARP_LADDER = (1.0, 1.5, 2.0)
"""Its strengths: all of the texture, then more and more of the face's shape."""
CHOOSY = {"faceid"}
"""Kinds that know themselves which recogniser they take, and refuse every other."""


class SameSize:
    """Stage 3's first half where the size stays: an upscaler by one."""

    scale = 1

    def upscale(self, frames: Tensor) -> Tensor:
        """The frames themselves."""
        return frames


@dataclass(frozen=True)
class LockParts:
    """The stages that work on an existing clip."""

    recipe: Recipe
    pack: FacePack
    """Detector and recogniser of the loop."""
    locker: Locker
    restorer: RestoreLoop | None
    """At the clip's own size; None: faces are left as the lock made them."""
    judge: Judge
    aligner: str
    """Its kind."""
    perception: tuple[str, str]
    """Names of the loop's pack and of the judge."""
    weights: Mapping[str, str]
    """Role of each model → sha256, as far as the recipe names it."""
    device: str
    reader: Pipeline
    """Reads references with these recognisers."""

    @property
    def frames_device(self) -> str:
        """Where frames lie between the stages: a chunk is small, so only the plain code keeps them on the CPU."""
        return "cpu" if self.recipe.speed.choices().reference else self.device

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the pixels, as plain JSON values."""
        return {
            "recipe": self.recipe.settings(),
            "aligner": self.aligner,
            "perception": {"faces": self.pack.encoder.id, "judge": self.judge.encoder},
            "restore": self.restorer is not None,
            "weights": dict(self.weights),
            "device": self.device,
        }


def open_parts(
    recipe: str | Path | Recipe = MINIATURE,
    device: str = "auto",
    *,
    aligner: str | None = None,
    packs: str | None = None,
    judge: str | None = None,
    restore: bool = True,
    commercial: bool = False,
) -> LockParts:
    """Load what locks a clip.

    Without ``packs`` and ``judge`` the recipe's own recognisers, aligner and restorer; with other ones (names as
    :func:`facelock.perception.open_perception` takes them) the aligner ``warp``, unless the recipe's is ``faceid``,
    which looks for itself whether they are its own. ``aligner`` names another kind. Of the recipe only what works on
    the clip is asked for, never its blueprint. ``commercial`` refuses weights among that, and other landmarks for
    ``warp``, whose licence does not allow commercial use. Raises ``ConfigError`` then and where they do not fit
    together, ``ModelError``, ``DeviceError``.
    """
    chosen = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    _require_aligner(chosen, aligner)
    kind = chosen.lock.kind
    if commercial and kind != aligner == WARP:
        require_commercial([landmarks()])
    if packs in (None, MINIATURE) and judge in (None, MINIATURE):
        aligner = aligner or kind
        used = REFERENCES | _stages(chosen, aligner, restore)
        return _of_recipe(Assembly(chosen, device, commercial, used=used), aligner, restore)
    where, aligner = resolve_device(device), aligner or (kind if kind in CHOOSY else WARP)
    used = _stages(chosen, aligner, restore=False)
    require(chosen, used=used, commercial=commercial)  # before the packs are loaded
    seen = open_perception(packs or MINIATURE, judge, device=where, commercial=commercial)
    return _of_packs(Assembly(chosen, str(where), commercial, seen, used), seen, aligner)


def _stages(recipe: Recipe, aligner: str, restore: bool) -> Uses:
    """What of the recipe works on the clip besides its recognisers."""
    own = aligner == recipe.lock.kind
    return frozenset({"encode"}) | ({"lock"} if own else set()) | (RESTORER if own and restore else set())


def _of_recipe(parts: Assembly, aligner: str, restore: bool) -> LockParts:
    recipe, own = parts.recipe, aligner == parts.recipe.lock.kind
    return LockParts(
        recipe=recipe,
        pack=parts.pack,
        locker=parts.locker if own else _locker(parts, aligner),
        restorer=_restorer(recipe, parts) if own and restore else None,
        judge=_independent(parts.judge, parts.pack),
        aligner=aligner,
        perception=(MINIATURE, MINIATURE),
        weights=parts.weights,
        device=parts.device,
        reader=Pipeline(recipe, parts),
    )


def _of_packs(parts: Assembly, seen: Perception, aligner: str) -> LockParts:
    recipe = parts.recipe
    own = aligner == recipe.lock.kind and aligner in CHOOSY
    if aligner == recipe.lock.kind and not own and aligner != WARP:
        raise ConfigError(
            f"The recipe's aligner {aligner} was made for its own recogniser, not for {seen.names[0]}. "
            f"Give --aligner {WARP}, or leave --faces and --judge out."
        )
    return LockParts(
        recipe=recipe,
        pack=parts.pack,
        locker=parts.locker if own else _locker(parts, aligner),
        restorer=None,
        judge=_independent(parts.judge, parts.pack),
        aligner=aligner,
        perception=seen.names,
        weights={role: sha for role, sha in parts.weights.items() if role.startswith("lock.")},
        device=parts.device,
        reader=Pipeline(recipe, parts),
    )


def _locker(parts: Assembly, aligner: str) -> Locker:
    """An aligner that no recogniser was trained with; done when the encoder is sure."""
    lock, pack = parts.recipe.lock, parts.pack
    made: Any = parts.locker.aligner if aligner == lock.kind else None  # with the recipe's own landmarks
    if made is None:
        kind: Any = aligner_class(aligner)
        made = kind(encoder=pack.encoder.id, batch=lock.batch, device=parts.device)
    return Locker(pack, made, ladder=WARP_LADDER, target=pack.encoder.thresholds.far_1e4)


def _require_aligner(recipe: Recipe, aligner: str | None) -> None:
    """Raise ``ConfigError`` for an aligner that is not known, or whose models ``recipe`` does not name."""
    if aligner in (None, WARP, recipe.lock.kind):
        return
    if aligner not in ALIGNERS:
        aligner_class(aligner)  # which has the sentence
    raise ConfigError(
        f"The aligner {aligner} has models of its own, which this recipe does not name. Give a recipe of that kind "
        f"with --recipe, or --aligner {WARP}."
    )


def _restorer(recipe: Recipe, parts: Assembly) -> RestoreLoop | None:
    """The recipe's restoration, for frames that keep their size."""
    restorer = parts.face_restorer
    if restorer is None:
        return None
    return RestoreLoop(parts.pack, SameSize(), restorer, **recipe.restore.loop_options())


def _independent(judge: Judge, pack: FacePack) -> Judge:
    """A recogniser that the lock optimises proves nothing."""
    if judge.encoder == pack.encoder.id:
        raise ConfigError(
            f"The judge would be {judge.encoder}, which the lock itself optimises: its word would prove nothing. "
            "Name another recogniser with --judge."
        )
    return judge
