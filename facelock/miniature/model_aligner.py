"""The miniature's aligner: analysis by synthesis, in inswapper's format.

Three learned networks around a fixed decoder, as 3-D morphable model methods have it (Blanz & Vetter 1999; Thies et
al. 2016, arXiv:2007.14808; deferred neural rendering, Thies et al. 2019, arXiv:1904.12356):

1. :class:`Reader` reads pose, expression, gaze, light, glasses and beard off the crop, never the identity;
2. :class:`IdentityReader` reads the face's parameters off the identity embedding alone;
3. the world's own differentiable renderer draws that face in that moment (``world.Portrait.draw_face``);
4. :class:`Compositor`, a small U-Net, decides where the drawing replaces the crop, and corrects its colours.

All three are trained with the renderer's exact labels and pairs. What this means for figures is said in the model
card: the decoder knows the world, so a learned decoder would do worse; the identity still travels only through the
512 numbers of the embedding.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from facelock.miniature import world
from facelock.miniature.parameters import IDENTITY, Params
from facelock.nets.modulated import Modulated
from facelock.nets.recogniser import Residual, _down

SIDE = 128
"""Pixels of a crop."""
LOW = 64
"""Side at which the aligner draws and blends: the blueprint's crops hold no more, for a quarter of the pixels."""
HAIRLINE = 24
"""Row of the crop above which hair may hang; the drawing has none."""
MOMENT = (
    "yaw",
    "pitch",
    "roll",
    "scale",
    "tx",
    "ty",
    "open",
    "smile",
    "blink",
    "gaze_x",
    "gaze_y",
    "brow_raise",
    "light_x",
    "light_y",
    "ambient",
    "intensity",
    "temperature",
)
"""What the reader estimates of the moment, in the crop's own frame units."""
LOOK = (
    "glasses",
    "glasses_r",
    "glasses_square",
    "beard",
    "hair_r",
    "hair_g",
    "hair_b",
    "gl_r",
    "gl_g",
    "gl_b",
)
"""And of the look: worn or not (±1), sizes, colours."""
DOUBT = 0.3
"""Reading of ``glasses`` below which none are drawn. On generated frames of 12 people it is below -.06 where the prompt
names none (97th percentile) and above .5 in three of four where it does; a face that grows glasses is worse than one
that loses them."""
OUTPUTS = (*MOMENT, *LOOK)


EYES = (slice(34, 70), slice(20, 108))
"""Rows and columns of the crop between which eyes and brows lie."""
LIPS = (slice(76, 116), slice(36, 92))
"""And the mouth."""


def _near(width: int = 16) -> nn.Sequential:
    """Reads a part of the crop pixel by pixel: an eighth of its size, 16 channels, flat."""
    layers = [_down(3, width), _down(width, 2 * width), Residual(2 * width), _down(2 * width, 3 * width)]
    return nn.Sequential(*layers, nn.Conv2d(3 * width, 16, 1), nn.PReLU(16), nn.Flatten())


class Reader(nn.Module):
    """(B, 3, 128, 128) crop in [0, 1] → (B, len(OUTPUTS)) values, de-standardised.

    All of the crop is looked at at half its size, eyes and mouth as they are.
    """

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        w = width
        self.features = nn.Sequential(
            _down(3, w, 5),
            Residual(w),
            _down(w, 2 * w),
            Residual(2 * w),
            Residual(2 * w),
            _down(2 * w, 4 * w),
            Residual(4 * w),
            nn.Conv2d(4 * w, 48, 1),
            nn.PReLU(48),
            nn.Flatten(),
        )
        self.eyes, self.lips = _near(), _near()
        self.head = nn.Sequential(
            nn.Linear(48 * 64 + 16 * 55 + 16 * 35, 192), nn.PReLU(192), nn.Linear(192, len(OUTPUTS))
        )
        self.register_buffer("mean", torch.zeros(len(OUTPUTS)))
        self.register_buffer("deviation", torch.ones(len(OUTPUTS)))

    @torch.no_grad()
    def standardise(self, labels: Tensor) -> None:
        """Take the units of the values from a sample of labels (n, len(OUTPUTS))."""
        self.get_buffer("mean").copy_(labels.mean(0))
        self.get_buffer("deviation").copy_(labels.std(0).clamp(min=1e-3))

    def standard(self, crops: Tensor) -> Tensor:
        """Standardised values, what training compares."""
        x = crops * 2 - 1
        whole = self.features(
            F.avg_pool2d(x, 2)
        )  # first, as it is defined: exporters number what they fold in order
        near = [self.eyes(x[..., EYES[0], EYES[1]]), self.lips(x[..., LIPS[0], LIPS[1]])]
        return self.head(torch.cat([whole, *near], 1))

    def forward(self, crops: Tensor) -> Tensor:
        """Values in the renderer's own units."""
        return self.standard(crops) * self.get_buffer("deviation") + self.get_buffer("mean")


class IdentityReader(nn.Module):
    """(B, 512) unit-norm identity embedding → (B, V) identity parameters in the scale of ``identity_vector``."""

    def __init__(self, lift: Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("lift", torch.zeros(512, 64) if lift is None else lift.clone())
        self.net = nn.Sequential(
            nn.Linear(64, 384), nn.SiLU(), nn.Linear(384, 384), nn.SiLU(), nn.Linear(384, len(IDENTITY))
        )

    def forward(self, source: Tensor) -> Tensor:
        """The parameters, each about in [-1, 1]."""
        return self.net(source @ self.get_buffer("lift") * 8.0)


def face_parameters(vector: Tensor) -> Params:
    """Identity vector (B, V) → renderer parameters, clamped to their ranges."""
    out: Params = {}
    for i, (name, (lo, hi)) in enumerate(IDENTITY.items()):
        x = vector[:, i]
        if name in ("freckles", "mole"):
            out[name] = torch.where(
                x > 0.2, ((x + 0.6) / 2 - 0.6).clamp(min=0.02) / 0.4, torch.full_like(x, -1.0)
            ).clamp(max=1.0)
        else:
            out[name] = ((x.clamp(-1, 1) + 1) / 2) * (hi - lo) + lo
    return out


def resized(pictures: Tensor, side: int) -> Tensor:
    """(B, C, S, S) at ``side``: averaged when that is smaller, bilinear when it is larger."""
    if pictures.shape[-1] > side:
        return F.avg_pool2d(pictures, pictures.shape[-1] // side)
    if pictures.shape[-1] < side:
        return F.interpolate(pictures, size=(side, side), mode="bilinear", align_corners=False)
    return pictures


class Compositor(nn.Module):
    """Where the drawn face replaces the crop, and what is left to correct: a U-Net on cells of ``side`` ÷ 32 pixels."""

    def __init__(
        self,
        channels: int = 32,
        deep: int = 3,
        embedding: int = 512,
        condition: int = 96,
        trust: float = 1.0,
        side: int = SIDE,
    ) -> None:
        """``trust`` in the drawing away from its outline: 1 for the aligner, 0 for the restorer."""
        super().__init__()
        self.trust, self.side, self.cell = trust, side, side // 32
        c, area = channels, self.cell**2
        self.condition = nn.Sequential(nn.Linear(embedding, condition), nn.SiLU())
        self.enter = nn.Conv2d(7 * area, c, 3, padding=1)
        self.shallow_in = Modulated(c, condition)
        self.down = nn.Conv2d(c, 2 * c, 3, 2, 1)
        self.deep = nn.ModuleList([Modulated(2 * c, condition) for _ in range(deep)])
        self.up = nn.Conv2d(2 * c, 4 * c, 1)
        self.shallow_out = nn.ModuleList([Modulated(c, condition) for _ in range(2)])
        self.leave = nn.Conv2d(c, 4 * area, 3, padding=1)
        scale = side / SIDE
        below = ((torch.arange(side) - HAIRLINE * scale) / (12 * scale)).clamp(0, 1).view(1, 1, side, 1)
        self.register_buffer("below_hair", below, persistent=False)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def forward(self, crop: Tensor, drawn: Tensor, alpha: Tensor, source: Tensor) -> Tensor:
        """(B, 3, 128, 128) crop, drawing (B, 3, side, side), its coverage (B, 1, side, side) → (B, 3, 128, 128)."""
        condition = self.condition(source * 22.6)
        seen = torch.cat([resized(crop, self.side) * 2 - 1, drawn * 2 - 1, alpha * 2 - 1], 1)
        a = self.shallow_in(self.enter(F.pixel_unshuffle(seen, self.cell)), condition)
        h = self.down(a)
        for block in self.deep:
            h = block(h, condition)
        h = F.pixel_shuffle(self.up(h), 2) + a
        for block in self.shallow_out:
            h = block(h, condition)
        change = F.pixel_shuffle(self.leave(h), self.cell)
        mask = torch.sigmoid(change[:, 3:] + alpha * 8 - 4)
        # Trained on blurred pictures, the mask hedges between crop and drawing, which fades eyes and mouth. Away from
        # the outline, and below the hair, the aligner has nothing to blend: the drawing is taken as it is.
        inner = ((self._coverage_around(alpha) - 0.55) / 0.45).clamp(0, 1) * self.below_hair * self.trust
        mask = resized(torch.maximum(mask, inner), SIDE)
        return crop + mask * (resized(drawn + change[:, :3] * (1 - inner), SIDE) - crop)

    def _coverage_around(self, alpha: Tensor) -> Tensor:
        """Mean coverage of the tenth of the side around each pixel: below 1 near the outline."""
        reach = 6 * self.side // SIDE
        return F.avg_pool2d(alpha, 2 * reach + 1, 1, reach)


class ModelAligner(nn.Module):
    """inswapper's: ``target`` (B, 3, 128, 128) in [0, 1], ``source`` (B, 512) unit norm → (B, 3, 128, 128)."""

    def __init__(self, lift: Tensor | None = None, *, restores: bool = False) -> None:
        """The aligner, or with ``restores`` the restorer: it draws finer, and trusts its input more."""
        super().__init__()
        self.reader, self.identity = Reader(), IdentityReader(lift)
        self.compositor = (
            Compositor(trust=0.0) if restores else Compositor(channels=16, deep=2, condition=32, side=LOW)
        )

    def draw(self, target: Tensor, source: Tensor) -> tuple[Tensor, Tensor]:
        """The reference's face in the crop's moment, and its coverage."""
        values = self.reader(target)
        v = {name: values[:, i] for i, name in enumerate(OUTPUTS)}
        # On decoded frames the reader hedges: open eyes are read mostly below .3, shut ones around .6.
        v["glasses"] = v["glasses"] - DOUBT
        v["blink"] = ((v["blink"] - 0.3) / 0.4).clamp(0, 1)
        return draw_face(face_parameters(self.identity(source)), v, self.compositor.side)

    def forward(self, target: Tensor, source: Tensor) -> Tensor:
        """Repaint ``target`` with the identity of ``source``."""
        drawn, alpha = self.draw(target, source)
        return self.compositor(target, drawn, alpha, source)


class _Face(world.Portrait):
    """A portrait whose glasses have a colour of their own instead of a named one, and any shape from round to square.

    A frame often does not tell the shape: what is read then stays between, and does not flip from frame to frame.
    """

    def glasses_square(self) -> Tensor:
        """(B, 1, 1)."""
        return self.look["glasses_square"].clamp(0, 1)

    def glasses_colour(self) -> Tensor:
        """(B, 3)."""
        return torch.cat([self.look[k].view(-1, 1) for k in ("gl_r", "gl_g", "gl_b")], 1).clamp(0, 1)


def draw_face(face: Params, values: Params, side: int = SIDE) -> tuple[Tensor, Tensor]:
    """Draw ``face`` with the reader's values: (B, 3, side, side) and coverage (B, 1, side, side)."""
    now = {k: values[k] for k in MOMENT}
    now["scale"] = now["scale"].clamp(0.3, 3.0)
    look = {k: values[k] for k in LOOK}
    for k in ("hair_r", "hair_g", "hair_b"):
        look[k] = look[k].clamp(0, 1)
    zero = torch.zeros_like(values["yaw"])
    look["hair_style"] = zero
    rays = world.frame_rays(values["yaw"].shape[0], side, values["yaw"].device)
    return _Face(face, look, now, rays).draw_face()
