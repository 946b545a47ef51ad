"""From a recipe to its stages: models found and checked at once, loaded when first needed.

::

    parts = Assembly(load_recipe("miniature"), "cpu")
    parts.identity("maria.png")     # loads the two face packs, not the backbone
    parts.backbone                  # loads the backbone

That order matters: a picture without a face is refused before a video model is read from the disk.
"""

from __future__ import annotations

import hashlib
import inspect
import logging
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from facelock.alignment import aligner_class
from facelock.blueprint import backbone_class
from facelock.errors import ConfigError, FaceLockError, together
from facelock.faces import load_pack
from facelock.guidance import GuidanceSettings, open_guide
from facelock.identity import identity_from_picture
from facelock.identity.storage import is_face_file, stored_identity
from facelock.ledger import Judge, ReadabilityLimits
from facelock.lock_loop import Locker
from facelock.memory import memory_plan, shape_of, usable_memory, weights_after
from facelock.perception import Perception, pack_member, pack_of
from facelock.preflight import require
from facelock.protocols import Backbone, FacePack, FaceRestorer, Guide, Upscaler
from facelock.recipe import Recipe, model_names
from facelock.recipe.sections import AcceptRecipe, FacesRecipe, JudgeRecipe
from facelock.recipe.uses import ALL, Uses, uses
from facelock.restoration import restorer_class, upscaler_class
from facelock.restore_loop import RestoreLoop
from facelock.runtime import resolve_device
from facelock.suitability import not_on
from facelock.tuning import Speed
from facelock.tuning.frames import frames_device
from facelock.tuning.placement import Placement
from facelock.tuning.plan import Plan
from facelock.types import Identity, Thresholds
from facelock.weights import digest, encoder_id, locate

logger = logging.getLogger(__name__)

PICKLED = {"lock.faceid.adapter", "restore.faceid.adapter", "restore.upscaler", "restore.restorer"}
"""Roles whose published files are pickles; they are read with ``weights_only``."""


def _digest(path: Path) -> str:
    """sha256 of a file, or of the names and digests of a folder's files but its model card."""
    if path.is_file():
        return digest(path)
    files = sorted(file for file in path.rglob("*") if file.is_file() and file.suffix != ".md")
    listing = "".join(f"{file.relative_to(path).as_posix()} {digest(file)}\n" for file in files)
    return hashlib.sha256(listing.encode()).hexdigest()


def _pack_files(recipe: Recipe, paths: Mapping[str, Path]) -> dict[str, Path]:
    """Of parts of the kind ``pack``, the detector and the recognisers that whole packs stand for."""
    roles: list[tuple[str, FacesRecipe | JudgeRecipe]] = [
        ("faces.detector", recipe.faces),
        ("faces.encoder", recipe.faces),
        ("judge.encoder", recipe.judge),
    ]
    return {
        role: pack_member(paths[role], detector=role.endswith("detector"))
        for role, part in roles
        if part.kind == "pack" and role in paths
    }


class Assembly:
    """The stages of one recipe on one device: :class:`facelock.parts.Parts`."""

    def __init__(
        self,
        recipe: Recipe,
        device: str = "auto",
        commercial: bool = False,
        perception: Perception | None = None,
        used: Uses = ALL,
    ) -> None:
        """Hold the recipe against this machine (:mod:`facelock.preflight`), find every model and check its digest.

        All that is in the way is one error. ``commercial`` refuses weights whose licence does not allow commercial
        use, or is not known. ``perception`` takes the place of the recipe's face packs. What of the recipe is not
        ``used`` is neither asked for nor there. Raises ``ConfigError`` for a
        stage of an unknown kind, a refused weight, numbers that a checkpoint cannot do or a precision that the device
        cannot work in, ``DeviceError``, also for a recipe that does not fit into the memory it was given,
        ``ModelError``, ``EnvironmentFailure`` for a package that is missing.
        """
        self.recipe = recipe
        self._device = resolve_device(device)
        self._perception, self._used = perception, used
        require(recipe, used=used, commercial=commercial, also=not_on(recipe, self._device, used))
        self._paths = self._located()
        self._paths |= _pack_files(recipe, self._paths)
        self._require_adapters()
        self._after = weights_after(self._paths)
        self.plan = memory_plan(recipe, self._device, self._paths.get("blueprint.model"), self._after)

    def _located(self) -> dict[str, Path]:
        """Role → file or folder of every model, read once for its digest; those that differ are told together."""
        found: dict[str, Path] = {}
        wrong: list[FaceLockError] = []
        for role, name in model_names(self.recipe, self._used).items():
            try:
                found[role] = locate(name, pickled=role in PICKLED)
            except FaceLockError as error:
                wrong.append(error)
        if wrong:
            raise together(f"The recipe {self.recipe.name} cannot run here", wrong)
        return found

    def _require_adapters(self) -> None:
        """Raise ``ConfigError`` for a FaceID adapter of another recogniser, ``ModelError`` for one of another UNet."""
        for part, model in (("lock", "lock.model"), ("restore", "restore.restorer")):
            if getattr(self.recipe, part).faceid and model in self._paths:
                from facelock.portrait.adapter import require_encoder, require_family

                encoder = None if self._perception else self._paths["faces.encoder"]
                if encoder:
                    name = model_names(self.recipe)["faces.encoder"]
                    require_encoder(encoder_id(name, encoder), self._trained_with(part))
                require_family(self._paths[f"{part}.faceid.adapter"], self._paths[model], encoder)

    @property
    def device(self) -> str:
        """``"cpu"``, ``"cuda:0"``."""
        return str(self._device)

    @cached_property
    def frames_device(self) -> str:
        """Where frames lie between the stages: :func:`facelock.tuning.frames.frames_device`."""
        usable = usable_memory(self.recipe, self._device)
        speed, folder = self.recipe.speed.choices(), self._paths["blueprint.model"]
        return frames_device(
            self._device, speed, folder, shape_of(self.recipe, self._after), self.plan, usable
        )

    @cached_property
    def weights(self) -> Mapping[str, str]:
        """Role of each model → sha256 of its file, or of all files of its folder; of encoders that were named in
        place of the recipe's, their ids."""
        weights = {role: _digest(path) for role, path in self._paths.items()}
        if self._perception:
            seen = {"faces.encoder": self.pack.encoder.id, "judge.encoder": self.judge.encoder}
            weights = {r: d for r, d in weights.items() if not r.startswith(("faces.", "judge."))} | seen
        return weights

    @cached_property
    def pack(self) -> FacePack:
        """Detector and recogniser of the loop."""
        if self._perception:
            return self._perception.faces
        settings = self.recipe.faces
        return self._pack("faces.encoder", settings.kind, settings.encoder, settings.thresholds)

    @cached_property
    def judge(self) -> Judge:
        """The measure: the loop's detector, but a recogniser that no stage optimised."""
        settings = self.recipe.judge
        limits = ReadabilityLimits(
            minimum_face=settings.minimum_face,
            maximum_yaw=settings.maximum_yaw,
            minimum_sharpness=settings.minimum_sharpness,
        )
        if self._perception:
            return Judge(self._perception.judge, limits)
        pack = self._pack("judge.encoder", settings.kind, settings.encoder, settings.thresholds)
        return Judge(pack, limits)

    def _pack(self, role: str, kind: str, name: str, accepted: AcceptRecipe | None) -> FacePack:
        """The recipe's detector with one of its recognisers."""
        settings = self.recipe.faces
        if kind == "pack":
            return pack_of(
                self._paths["faces.detector"],
                self._paths[role],
                detection_size=settings.detection_size,
                threshold=settings.threshold,
                thresholds=Thresholds(**accepted.model_dump()) if accepted else None,
                device=self._device,
            )
        return load_pack(
            kind,
            detector=self._paths["faces.detector"],
            encoder=self._paths[role],
            name=name,
            thresholds=Thresholds(**accepted.model_dump()) if accepted else None,
            detection_size=settings.detection_size,
            threshold=settings.threshold,
            batch=settings.batch,
            device=self._device,
        )

    @cached_property
    def locker(self) -> Locker:
        """Stage 2."""
        settings = self.recipe.lock
        kind: Any = aligner_class(settings.kind)
        aligner = kind(
            self._paths["lock.model"],
            encoder=self.pack.encoder.id,
            batch=self._batch(settings.batch),
            device=self._device,
            **self._faceid("lock"),
        )
        columns = self._columns
        return Locker(self.pack, aligner, ladder=settings.ladder, target=settings.target, columns=columns)

    @property
    def _columns(self) -> int:
        """How many people the blueprint draws side by side, each in a column of its own."""
        return self.recipe.blueprint.regions

    def _batch(self, asked: int) -> int:
        """Rows that a network after the blueprint takes at once: as the recipe says, if the memory plan allows it."""
        return min(asked, self.plan.batch or asked)

    def _trained_with(self, part: str) -> str | None:
        """First 12 hex of the digest of the recogniser that the FaceID adapter was trained with, where it is named."""
        own = self._paths.get(f"{part}.faceid.encoder")
        return digest(own)[:12] if own else None

    def _faceid(self, part: str) -> dict[str, Any]:
        """What ``faceid`` takes besides as the aligner (``lock``) or the restorer (``restore``); nothing for others."""
        settings = getattr(self.recipe, part).faceid
        if settings is None:
            return {}
        from facelock.portrait import PortraitSettings

        own = {"start": settings.start} if part == "lock" else {"strength": settings.strength}
        return {
            "adapter": self._paths[f"{part}.faceid.adapter"],
            "trained_with": self._trained_with(part),
            "settings": PortraitSettings(**settings.settings),
            **own,
        }

    def _shared_portrait(self) -> dict[str, Any]:
        """The lock's diffusion for the restorer, where both would load the same: it is then loaded once."""
        lock, restore = self.recipe.lock.faceid, self.recipe.restore.faceid
        if not lock or not restore or lock.settings != restore.settings:
            return {}
        pairs = (("lock.model", "restore.restorer"), ("lock.faceid.adapter", "restore.faceid.adapter"))
        if "lock.model" not in self._paths or any(self._paths[a] != self._paths[b] for a, b in pairs):
            return {}
        aligner: Any = self.locker.aligner
        return {"core": aligner.core}

    @cached_property
    def upscaler(self) -> Upscaler:
        """Stage 3's first half."""
        settings = self.recipe.restore
        return upscaler_class(settings.upscaler_kind)(
            self._paths["restore.upscaler"],
            scale=settings.scale,
            batch=self._batch(settings.batch),
            device=self._device,
            **settings.upscaler_options(),
        )

    @cached_property
    def face_restorer(self) -> FaceRestorer | None:
        """Stage 3's second half; None where the recipe has none."""
        settings = self.recipe.restore
        if not settings.restorer:
            return None
        return restorer_class(settings.restorer_kind)(
            self._paths["restore.restorer"],
            encoder=self.pack.encoder.id,
            batch=self._batch(settings.batch),
            device=self._device,
            **settings.restorer_options(),
            **self._faceid("restore"),
            **self._shared_portrait(),
        )

    @cached_property
    def restorer(self) -> RestoreLoop:
        """Stage 3."""
        options = self.recipe.restore.loop_options()
        return RestoreLoop(self.pack, self.upscaler, self.face_restorer, **options, columns=self._columns)

    @cached_property
    def guide(self) -> Guide | None:
        """What leads stage 1 toward the references; None where the recipe does not ask for it."""
        settings = self.recipe.guidance
        if settings is None:
            return None
        values = settings.model_dump(exclude={"decoder"})
        paths = self._paths["guidance.decoder"], self._paths["faces.encoder"]
        return open_guide(*paths, self.pack, GuidanceSettings(**values), self._device, self._columns)

    @cached_property
    def backbone(self) -> Backbone:
        """Stage 1. Raises ``ConfigError`` where the recipe asks for guidance that its kind does not take."""
        settings = self.recipe.blueprint
        several = settings.regions > 1
        regions = {"regions": settings.regions, "region_width": settings.region_width} if several else {}
        kind = backbone_class(settings.kind)
        logger.info("loading the blueprint %s on %s", settings.model, self.device)
        return kind(
            self._paths["blueprint.model"],
            size=settings.size,
            fps=float(settings.fps),
            window=settings.window,
            context=settings.context,
            steps=settings.steps,
            guidance_scale=settings.guidance_scale,
            flow_shift=settings.flow_shift,
            negative_prompt=settings.negative_prompt,
            context_noise=settings.context_noise,
            **regions,
            device=self._device,
            precision=settings.precision,
            **settings.options,
            **self._tuning(kind),
            **self._guided(kind),
        )

    def _guided(self, kind: type[Any]) -> dict[str, Any]:
        """The guide, where the recipe asks for one. Raises ``ConfigError`` for a backbone that takes none."""
        if self.guide is None:
            return {}
        if "guide" not in inspect.signature(kind).parameters:
            raise ConfigError(
                f"A blueprint of kind {self.recipe.blueprint.kind} takes no identity guidance. "
                "Leave [guidance] out of the recipe."
            )
        return {"guide": self.guide}

    def _tuning(self, kind: type[Any]) -> dict[str, Any]:
        """What the recipe's [speed] and the memory plan add to a backbone's settings, where they add something.

        Raises ``ConfigError`` for a backbone that cannot be told.
        """
        speed = self.recipe.speed.choices()
        wanted: dict[str, Any] = {}
        if replace(speed, overlap=False, reference=False) != Speed() or self.plan != Plan():
            steps = self.recipe.blueprint.steps
            wanted["place"] = Placement(self._device, speed, self.plan, steps=steps)
        if not self.plan.pair:
            wanted["pair_guidance"] = False
        if speed.reference:
            wanted["reference"] = True
        taken = inspect.signature(kind).parameters
        if "place" in wanted and "place" not in taken:
            sentence = (
                f"A blueprint of kind {self.recipe.blueprint.kind!r} takes no [speed] choices and no plan."
            )
            if self.recipe.memory.vram or wanted["place"].speed != Speed():
                raise ConfigError(f"{sentence} Leave them out.")
            logger.warning("%s It runs as it is.", sentence)
        return {key: value for key, value in wanted.items() if key in taken}

    def identity(self, reference: Any, *, name: str | None = None, face: int | None = None) -> Identity:
        """Read one reference: a picture, or a ``.face`` file.

        It is embedded with the recognisers that are used: the loop's and the judge's, or the judge's alone.

        Raises ``InputError`` when the picture holds no face that can be used, or the file was made for others.
        """
        loops = self._perception is not None or uses(self._used, "faces.encoder")
        packs = [self.pack, self.judge.pack] if loops else [self.judge.pack]
        if is_face_file(reference):
            return stored_identity(reference, [pack.encoder.id for pack in packs], name=name, face=face)
        limits = self.recipe.reference
        identity = identity_from_picture(
            reference,
            packs,
            name=name,
            face=face,
            minimum_face=limits.minimum_face,
            minimum_sharpness=limits.minimum_sharpness,
            maximum_yaw=limits.maximum_yaw,
        )
        return replace(identity, perception=self._perception.names) if self._perception else identity
