"""The tables of a recipe, each with its keys, their types and what they may be. Knows nothing of torch."""

from __future__ import annotations

from fractions import Fraction
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from facelock.blueprint.options import check_options
from facelock.errors import ConfigError
from facelock.tuning.options import Speed, StepCache, unused_cache_key

Share = Annotated[float, Field(ge=0, le=1)]
Cosine = Annotated[float, Field(ge=-1, le=1)]
Ladder = Annotated[tuple[Annotated[float, Field(gt=0, le=2)], ...], Field(min_length=1, max_length=16)]
Model = Annotated[str, Field(min_length=1)]
"""Catalog name or path."""
Precision = Literal["float32", "bfloat16", "float16"]
Side = Annotated[int, Field(ge=1, le=16384)]
"""Pixels."""
Batch = Annotated[int, Field(ge=1, le=1024)]
"""Rows that a network takes at once on a GPU; on a CPU one to three, side by side (:mod:`facelock.runtime`)."""


def _exact(rate: object) -> object:
    """Read 12, 29.97 or "30000/1001" as an exact fraction."""
    if isinstance(rate, bool) or not isinstance(rate, int | float | str):
        return rate
    try:
        return Fraction(rate).limit_denominator(1001)
    except (ValueError, ZeroDivisionError, OverflowError) as error:
        raise ValueError("frames per second must be a number such as 12 or '30000/1001'") from error


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class BlueprintRecipe(_Part):
    """Stage 1: which video diffusion checkpoint, and how it is run."""

    kind: str = "skyreels_v2"
    model: Model
    """Catalog name or folder in diffusers format."""
    size: tuple[Side, Side]
    """(height, width) in pixels of the frames it writes."""
    fps: Annotated[Fraction, BeforeValidator(_exact), Field(gt=0, le=240)]
    window: int = Field(ge=1, le=1025)
    """Frames it denoises at once, context included."""
    context: int = Field(ge=1)
    """Frames of the window that are the locked past."""
    steps: int = Field(ge=1, le=1000)
    guidance_scale: float = Field(ge=0, le=50)
    flow_shift: float | None = Field(default=None, gt=0)
    """Replaces the checkpoint's own."""
    context_noise: float = Field(default=0.0, ge=0, le=0.2)
    """Share of noise mixed into the locked past, which smooths long clips: SkyReels takes up to 0.06, Helios 0.2."""
    anchor: Share = 0.0
    """Share of the first chunk's locked tail in every later context. The lock keeps the face; this keeps the scene
    around it, head and hair included, from drifting by the same rule: one fixed reference."""
    regions: int = Field(default=1, ge=1, le=8)
    """People side by side, each in a window of its own (:mod:`facelock.blueprint.regions`)."""
    region_width: int | None = Field(default=None, ge=8)
    """Pixels of such a window; None: as wide as the frame is high."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    negative_prompt: str = ""
    options: dict[str, Any] = Field(default_factory=dict, validate_default=True)
    """What this kind has of its own (:mod:`facelock.blueprint.options`)."""

    @field_validator("options", mode="before")
    @classmethod
    def _of_the_kind(cls, given: Any, info: ValidationInfo) -> dict[str, Any]:
        return check_options(str(info.data.get("kind")), given)

    @model_validator(mode="after")
    def _context_fits(self) -> BlueprintRecipe:
        if self.context >= self.window:
            raise ValueError(f"context ({self.context}) must be smaller than window ({self.window})")
        if self.regions > 1 and self.kind != "skyreels_v2":
            raise ValueError(f"regions ({self.regions}) are for the kind skyreels_v2, not for {self.kind}")
        return self


class GuidanceRecipe(_Part):
    """Identity guidance inside stage 1 (docs/guidance.md); a recipe without this table has none."""

    decoder: Model
    """Catalog name or file of a tiny decoder of the blueprint's latents, in TAEHV's layout."""
    scale: float = Field(default=0.6, gt=0, le=1)
    """Length of one edit, relative to the latent frame's own; by default one edit is all there is."""
    trust_radius: float = Field(default=0.6, gt=0, le=1)
    """Most that the edits of a latent frame add up to in one window, in the same unit."""
    window: tuple[Share, Share] = (0.6, 0.85)
    """Noise levels, lowest and highest, between which there is guidance."""
    views: int = Field(default=2, ge=1, le=32)
    """Looks at each face per step."""
    ceiling: Cosine = 0.7
    """Similarity, by the loop's own recogniser, from which a face is left alone."""
    minimum_face: float = Field(default=20.0, gt=0)
    """Pixels of height, in the blueprint's frames, below which a face is left alone."""
    maximum_yaw: float = Field(default=45.0, gt=0, le=180)

    @model_validator(mode="after")
    def _in_order(self) -> GuidanceRecipe:
        if self.window[0] >= self.window[1]:
            raise ValueError(f"window {list(self.window)} must go from the lower noise level to the higher")
        if self.scale > self.trust_radius:
            raise ValueError(f"scale ({self.scale:g}) must not exceed trust_radius ({self.trust_radius:g})")
        return self


class AcceptRecipe(_Part):
    """Similarities at which a recogniser accepts, per false-accept rate."""

    far_1e2: Cosine
    far_1e3: Cosine
    far_1e4: Cosine


class FacesRecipe(_Part):
    """The face pack inside the loop: detector and recogniser."""

    kind: str = "onnx_pack"
    """``onnx_pack``: an SCRFD and an ArcFace file; ``pack``: also YuNet, SFace and the folders of insightface, each
    file for what it is found to be (:mod:`facelock.perception`)."""
    detector: Model
    encoder: Model
    detection_size: int = Field(default=640, ge=32, le=4096)
    threshold: Share = 0.5
    """Detector score from which a box is a face."""
    batch: Batch = 16
    thresholds: AcceptRecipe | None = None
    """Of the encoder; needed where it is a file that the catalog does not know."""


class ReferenceRecipe(_Part):
    """What a reference photo must offer."""

    minimum_face: float = Field(default=64, gt=0)
    """Height of the face in pixels."""
    minimum_sharpness: float = Field(default=0.0, ge=0)
    """Laplacian variance of the canonical crop; 0 accepts every picture."""
    maximum_yaw: float = Field(default=60, gt=0, le=180)
    """Degrees away from frontal."""


class FaceIDRecipe(_Part):
    """Image diffusion on the portrait crop under IP-Adapter FaceID (docs/faceid.md)."""

    adapter: Model
    """The FaceID file, or a folder with one."""
    encoder: Model | None = None
    """The recogniser that the adapter was trained with; None: insightface's buffalo_l."""
    start: Literal["warp"] | None = None
    """What it starts from: the warp's result, or the frame itself."""
    prompt: str = "a photo of a person's face, natural skin, sharp focus"
    negative_prompt: str = ""
    sampler: Literal["ddim", "euler", "lcm"] = "ddim"
    steps: int = Field(default=6, ge=1, le=100)
    """Denoising steps that are run, whatever the strength."""
    guidance_scale: float = Field(default=3.0, ge=0, le=50)
    adapter_scale: float = Field(default=1.0, ge=0, le=2)
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    mask: Literal["face"] | None = None
    """``face``: only the face's oval is repainted; None: the whole crop."""
    size: int | None = Field(default=None, ge=16, le=2048)
    """The crop's side in pixels; None: what the checkpoint was trained with."""

    @property
    def settings(self) -> dict[str, Any]:
        """The fields of :class:`facelock.portrait.PortraitSettings`."""
        return self.model_dump(exclude={"adapter", "encoder", "start"})


class LockRecipe(_Part):
    """Stage 2: the aligner, its ladder of strengths, and when a face is done."""

    kind: str = "inswapper"
    model: Model
    ladder: Ladder
    target: Cosine
    """Similarity, by the loop's own recogniser, at which a face stops climbing the ladder."""
    batch: Batch = 16
    faceid: FaceIDRecipe | None = None
    """What the kind ``faceid`` needs besides."""

    @model_validator(mode="after")
    def _faceid_fits(self) -> LockRecipe:
        if (self.kind == "faceid") != (self.faceid is not None):
            lacks = "needs a table lock.faceid" if self.faceid is None else "takes no table lock.faceid"
            raise ValueError(f"kind {self.kind!r} {lacks}")
        if self.faceid and max(self.ladder) > 1:
            raise ValueError("faceid's strengths are shares of noise: the ladder must lie within (0, 1]")
        return self


class RestoreFaceIDRecipe(FaceIDRecipe):
    """The same as a face restorer: detail of the character's own, at one low strength."""

    strength: float = Field(default=0.25, gt=0, le=1)
    """Share of noise."""

    @model_validator(mode="after")
    def _starts_from_the_frame(self) -> RestoreFaceIDRecipe:
        if self.start:
            raise ValueError("a restorer starts from the frame: leave start out")
        return self

    @property
    def settings(self) -> dict[str, Any]:
        """The fields of :class:`facelock.portrait.PortraitSettings`."""
        return self.model_dump(exclude={"adapter", "encoder", "start", "strength"})


class RestoreRecipe(_Part):
    """Stage 3: frames enlarged, faces restored under two constraints (docs/restore.md)."""

    upscaler_kind: str = "onnx_upscaler"
    upscaler: Model
    scale: int = Field(default=4, ge=1, le=8)
    tile: int = Field(default=0, ge=0, le=8192)
    """Side in pixels, before enlarging, of what the upscaler sees at once; 0: whole frames."""
    overlap: int = Field(default=40, ge=0, le=1024)
    """Pixels at each edge of a tile that are seen and not kept."""
    precision: Precision = "float32"
    """Of the upscaler; all but float32 need a GPU."""
    restorer_kind: str = "onnx_restorer"
    restorer: Model | None = None
    """None: the upscaler alone."""
    restorer_precision: Precision = "float32"
    faceid: RestoreFaceIDRecipe | None = None
    """What the kind ``faceid_restorer`` needs besides; ``restorer`` is the checkpoint's folder."""
    search: Literal["ladder", "bisect"] = "ladder"
    """How the share of the restored face is found: from the ``ladder``, or the largest one that both constraints
    allow."""
    ladder: Ladder = (1.0,)
    """Shares to try, strongest first."""
    search_steps: int = Field(default=5, ge=1, le=16)
    """Halvings of the bisection: the share is found to within 2 ** -search_steps."""
    tolerance: Share = 0.0
    """Similarity that the bisection may cost a face whose plain enlargement lies above the target."""
    target: Cosine = 0.5
    consistency: float = Field(default=0.1, gt=0, le=1)
    """Largest RMS difference between the restored face, downsampled, and the locked one."""
    batch: Batch = 16

    @model_validator(mode="after")
    def _keys_are_used(self) -> RestoreRecipe:
        given = self.model_fields_set
        for keys, used, where in (
            (
                ("tile", "overlap", "precision"),
                self.upscaler_kind != "onnx_upscaler",
                "upscaler_kind onnx_upscaler",
            ),
            (("restorer_precision",), self._precise, f"restorer_kind {self.restorer_kind}"),
            (("search_steps", "tolerance"), self.search == "bisect", "search ladder"),
        ):
            if not used and (unused := [key for key in keys if key in given]):
                raise ValueError(f"{unused[0]} has no effect with {where}")
        if (self.restorer_kind == "faceid_restorer") != (self.faceid is not None):
            lacks = "needs a table restore.faceid" if self.faceid is None else "takes no table restore.faceid"
            raise ValueError(f"restorer_kind {self.restorer_kind!r} {lacks}")
        if self.tile and self.tile <= 2 * self.overlap:
            raise ValueError(f"tile ({self.tile}) must be larger than twice the overlap ({self.overlap})")
        return self

    def upscaler_options(self) -> dict[str, Any]:
        """What the upscaler of this kind takes besides scale, batch and device."""
        if self.upscaler_kind == "onnx_upscaler":
            return {}
        return {"tile": self.tile, "overlap": self.overlap, "precision": self.precision}

    def restorer_options(self) -> dict[str, Any]:
        """What the restorer of this kind takes besides encoder, batch and device."""
        return {"precision": self.restorer_precision} if self._precise else {}

    @property
    def _precise(self) -> bool:
        """Whether the restorer takes ``restorer_precision``."""
        return self.restorer_kind not in ("onnx_restorer", "faceid_restorer")

    def loop_options(self) -> dict[str, Any]:
        """Keyword arguments of :class:`facelock.restore_loop.RestoreLoop`."""
        return {
            "ladder": self.ladder,
            "target": self.target,
            "consistency": self.consistency,
            "search": self.search,
            "tolerance": self.tolerance,
            "steps": self.search_steps,
        }


class JudgeRecipe(_Part):
    """The recogniser that measures and that no stage optimises."""

    kind: str = "crate"
    encoder: Model
    thresholds: AcceptRecipe | None = None
    minimum_face: float = Field(default=24, gt=0)
    """Pixels of height below which a face is unreadable."""
    maximum_yaw: float = Field(default=60, gt=0, le=180)
    minimum_sharpness: float = Field(default=0.0, ge=0)


class EncodeRecipe(_Part):
    """H.264 settings; 16 is visually lossless."""

    crf: int = Field(default=16, ge=0, le=51)
    encoder: Literal["x264", "nvenc"] = "x264"
    """On CPU cores, in a process of its own; or on a GPU that has an encoder (data-centre cards have none)."""


class StepCacheRecipe(_Part):
    """A step cache of the transformer: :class:`facelock.tuning.options.StepCache`."""

    kind: str
    threshold: float | None = Field(default=None, gt=0, le=10)
    every: int = Field(default=2, ge=2, le=100)
    window: tuple[int, int] = (100, 800)
    ratios: tuple[Annotated[float, Field(gt=0)], ...] = ()
    most: int = Field(default=3, ge=1, le=100)

    @model_validator(mode="after")
    def _keys_are_used(self) -> StepCacheRecipe:
        fields = type(self).model_fields
        given = sorted(key for key in self.model_fields_set if getattr(self, key) != fields[key].default)
        if unused := unused_cache_key(self.kind, given):
            raise ValueError(unused)
        return self


class SpeedRecipe(_Part):
    """What makes the blueprint faster, off unless named: :class:`facelock.tuning.options.Speed`, docs/speed.md."""

    reference: bool = False
    attention: str | None = None
    compile: str | None = None
    cache: StepCacheRecipe | None = None
    quantise: str | None = None
    channels_last: bool = False
    vae_precision: str = "float32"
    overlap: bool = False

    @model_validator(mode="after")
    def _known(self) -> SpeedRecipe:
        try:
            self.choices()
        except ConfigError as error:
            raise ValueError(str(error)) from error
        return self

    def choices(self) -> Speed:
        """The choices that hold, as :mod:`facelock.tuning` takes them."""
        values = self.model_dump(exclude={"cache"})
        cache = StepCache(**self.cache.model_dump()) if self.cache else None
        return Speed(**values, cache=cache).check().effective()


class MemoryRecipe(_Part):
    """How much of a GPU's memory may be used: docs/speed.md."""

    vram: Literal[8, 12, 16, 24, 48, 80] | None = None
    """GiB; None: all of the card, or no plan on a CPU."""


class Recipe(_Part):
    """One complete pipeline."""

    schema_: Literal["facelock.recipe.v1"] = Field(alias="schema")
    name: str = Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    purpose: str = ""
    vocabulary: Literal["miniature"] | None = None
    """The bounded world of words the backbone knows; None: free text."""
    licence: str = ""
    """Of the strictest of its weights, for people to read; `--commercial` goes by the catalog."""
    vram_gib: float | None = Field(default=None, gt=0, le=1024, strict=True)
    """GiB of GPU memory that its weights take by their count, without a plan that moves them; for people to read."""
    target: Share = 0.99
    """Share of readable frames that must match the identity."""
    blueprint: BlueprintRecipe
    guidance: GuidanceRecipe | None = None
    faces: FacesRecipe
    reference: ReferenceRecipe = ReferenceRecipe()
    lock: LockRecipe
    restore: RestoreRecipe
    judge: JudgeRecipe
    encode: EncodeRecipe = EncodeRecipe()
    speed: SpeedRecipe = SpeedRecipe()
    memory: MemoryRecipe = MemoryRecipe()

    def settings(self) -> dict[str, Any]:
        """The whole recipe as plain JSON values, defaults included: what a report and a journal keep."""
        return self.model_dump(mode="json", by_alias=True)

    @property
    def native_size(self) -> tuple[int, int]:
        """(height, width) in pixels of the final frames when no size is asked for."""
        height, width = self.blueprint.size
        return height * self.restore.scale, width * self.restore.scale
