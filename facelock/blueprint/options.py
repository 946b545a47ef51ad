"""What a recipe may say in [blueprint.options]: the settings that one kind of blueprint has of its own.

::

    check_options("wan_vace", {"conditioning_scale": 0.8})   # {"conditioning_scale": 0.8, "reference_pictures": 1}

The values are keyword arguments of the kind's class, which describes what they do. Knows nothing of torch, so that a
recipe can be checked before anything is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from facelock.mistakes import did_you_mean


class Options(BaseModel):
    """The options of a kind that has none; base of all others."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, strict=True)


class WanVaceOptions(Options):
    """Of :class:`facelock.blueprint.wan_vace.WanVace`."""

    conditioning_scale: float = Field(default=1.0, ge=0, le=2)
    """Weight of the control branch, which holds the locked tail and the reference pictures."""
    reference_pictures: int = Field(default=1, ge=0, le=4)
    """Pictures of each character that are shown to the model, best first; each costs a latent frame."""
    guidance_scale_2: float | None = Field(default=None, ge=0, le=50)
    """Guidance of the second transformer, where there is one; None: the recipe's ``guidance_scale``."""


class LTX2Options(Options):
    """Of :class:`facelock.blueprint.ltx2.LTX2`."""

    audio_guidance_scale: float = Field(default=7.0, ge=1, le=50)
    """Guidance of the sound, as ``guidance_scale`` is of the pictures; 1: none."""
    modality_scale: float = Field(default=1.0, ge=1, le=10)
    """How far pictures and sound move away from what each would be without the other; costs a pass per step."""
    guidance_rescale: float = Field(default=0.0, ge=0, le=1)
    """Holds back the overexposure of strong guidance."""
    stg_scale: float = Field(default=0.0, ge=0, le=10)
    """Spatio-temporal guidance: away from the network with one block's attention skipped; costs a pass per step."""
    stg_block: int = Field(default=29, ge=0)
    """That block: 29 of LTX-2.0, 28 of LTX-2.3."""
    reference_strength: float = Field(default=0.0, ge=0, le=1)
    """How clean the characters' pictures stand beside the frames, for a checkpoint that was trained with them; 0: not
    at all."""


class ConsisIDOptions(Options):
    """Of :class:`facelock.blueprint.consisid.ConsisID`."""

    features: str = ""
    """Folder of ``<name>.safetensors`` files (:mod:`facelock.blueprint.consisid_features`), as seen from where the
    command is given."""


OPTIONS: dict[str, type[Options]] = {
    "wan_vace": WanVaceOptions,
    "ltx2": LTX2Options,
    "consisid": ConsisIDOptions,
}
"""Kind → its options; a kind that is not named here has none."""


def check_options(kind: str, given: Any) -> dict[str, Any]:
    """All options of ``kind``: those that were ``given``, and the defaults of the others.

    Raises ``ValidationError`` with every mistake: unknown keys, wrong types, values out of range.
    """
    model = OPTIONS.get(kind, Options)
    try:
        return model.model_validate(given).model_dump()
    except ValidationError as error:
        mistakes = [_named(detail, model) for detail in error.errors(include_url=False)]
        raise ValidationError.from_exception_data(kind, mistakes) from None


def _named(detail: Mapping[str, Any], model: type[Options]) -> InitErrorDetails:
    """A mistake whose sentence needs no knowledge of the kind any more."""
    place, text, found = detail["loc"], str(detail["msg"]), detail["input"]
    if detail["type"] == "extra_forbidden":
        text, found = f"unknown key{did_you_mean(str(place[-1]), model.model_fields)}", None
    elif detail["type"] == "model_type":
        text = "must be a table"
    reason = PydanticCustomError("option", "{text}", {"text": text})
    return InitErrorDetails(type=reason, loc=place, input=found)
