"""Identity guidance: while stage 1 denoises, its prediction is led toward the references' faces.

At each step within a range of noise levels the predicted clean latents are decoded with a tiny decoder, faces are
found on those frames, and the gradient of their similarity, through aligned crops in several views, is walked one
short step on the latents. The recipe for it is old (classifier guidance, Dhariwal & Nichol 2021, arXiv:2105.05233;
on the predicted x0, universal guidance, Bansal et al. 2023, arXiv:2302.07121), and so is its danger: a gradient finds
what pleases one network and nobody else. So the step is normalised and short, views and augmentations vary, faces
that are small, turned or already alike are left alone, and whether it helps is for the judge to say.

Shapes: z latent channels, F latents, h w their size; T frames decoded, one of each latent; N faces; K references.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from facelock.blueprint.fits import other_latents
from facelock.closed_loop import assign, likeness_bar, similarity
from facelock.errors import ModelError
from facelock.geometry import estimate_pose, similarity_from_landmarks
from facelock.guidance.embedder import TorchEmbedder
from facelock.guidance.views import View, draw_views
from facelock.identity import embedding_of
from facelock.nets.taehv import TinyDecoder
from facelock.protocols import FacePack
from facelock.runtime import derive_seed
from facelock.types import Faces, Identity

MARGIN = 6
"""Latents around the faces that are decoded with them: what lies further away hardly shows in a face."""


@dataclass(frozen=True)
class GuidanceSettings:
    """How guidance works; what a recipe does not say is in ``facelock.recipe.sections.GuidanceRecipe``."""

    scale: float
    """Length of one edit: L2 norm of a latent frame's change ÷ that latent frame's own."""
    trust_radius: float
    """Most that all edits of a latent frame may add up to in one window, in the same unit."""
    window: tuple[float, float]
    """Noise levels, lowest and highest, between which there is guidance. At high ones the denoising that
    follows makes a face of the edit; at low ones it shows as smudges."""
    views: int
    """Looks at each face per step, the plain one among them."""
    ceiling: float
    """Similarity from which a face is left alone."""
    minimum_face: float
    """Height of the face's box in pixels of the blueprint's frames."""
    maximum_yaw: float
    """Degrees from frontal."""


@dataclass(frozen=True)
class _Target:
    """The faces of one step that are to change."""

    faces: Faces
    """``frame`` counts the decoded frames."""
    reference: Tensor
    """(N, D)."""
    latent: Tensor
    """(N,) index of the latent that each face's frame belongs to."""


class IdentityGuide:
    """A :class:`facelock.protocols.Guide` toward the similarity that the lock's own recogniser measures."""

    def __init__(
        self,
        decoder: TinyDecoder,
        embedder: TorchEmbedder,
        pack: FacePack,
        settings: GuidanceSettings,
        columns: int = 1,
    ) -> None:
        """``embedder`` is ``pack``'s recogniser as a torch module; both networks lie on the blueprint's device.

        ``columns`` is the lock's: how many people the blueprint draws side by side.
        """
        self.decoder, self.embedder, self.pack, self.settings = decoder, embedder, pack, settings
        self.columns = columns
        self._references = torch.zeros(0, 0)
        self._spent = torch.zeros(0)

    def begin(self, references: Sequence[Identity]) -> None:
        """Take the references of the next window; none: nothing is edited. Raises ``InputError`` when one was not
        embedded by the pack's recogniser."""
        rows = [embedding_of(identity, self.pack.encoder.id).float().cpu() for identity in references]
        self._references = torch.stack(rows) if rows else torch.zeros(0, 0)

    def __call__(self, x0: Tensor, sigma: float, step: int, known: int) -> Tensor:
        """See :class:`facelock.protocols.Guide`. Raises ``ModelError`` for latents of another autoencoder."""
        if step == 0 or len(self._spent) != x0.shape[2]:
            self._spent = torch.zeros(x0.shape[2])
        low, high = self.settings.window
        if not len(self._references) or not low <= sigma <= high:
            return x0
        if bool((self._spent[known:] >= self.settings.trust_radius).all()):
            return x0
        if x0.shape[1] != self.decoder.channels:
            raise ModelError(other_latents(self.decoder.channels, x0.shape[1]))
        shown = self.shown(x0.shape[2], step, known)
        with torch.no_grad():
            frames = self.decoder(x0, shown)[0]
        target = self._target(frames, known)
        return self._edited(x0, shown, target, step) if len(target.faces) else x0

    def shown(self, latents: int, step: int, known: int) -> Tensor:
        """Indices of the frames that are looked at in this step: one of each new latent, another one every step."""
        time = self.decoder.time
        return torch.tensor(
            [max(0, (f - 1) * time + 1 + step % time) if f else 0 for f in range(known, latents)]
        )

    def _target(self, frames: Tensor, known: int) -> _Target:
        """Faces of (T, 3, H, W) frames that belong to a reference, pass the gates and are not alike yet."""
        settings, faces = self.settings, self.pack.detect(frames)
        own = self.pack.embed(frames, faces)
        strangers = likeness_bar(self.pack.encoder.thresholds, len(self._references), self.columns)
        width = int(frames.shape[-1])
        index, who = assign(faces, own, self._references, strangers, width)
        faces, reference = faces.select(index), self._references[who]
        height = faces.box[:, 3] - faces.box[:, 1]
        wanted = (height >= settings.minimum_face) & (similarity(own[index], reference) < settings.ceiling)
        if len(faces):
            wanted &= estimate_pose(faces.landmarks)[0].abs() <= settings.maximum_yaw
        latent = faces.frame + known
        wanted &= self._spent[latent] < settings.trust_radius
        return _Target(faces.select(wanted), reference[wanted], latent[wanted])

    def _edited(self, x0: Tensor, shown: Tensor, target: _Target, step: int) -> Tensor:
        """One step along the gradient, of each latent frame that shows a face of ``target``."""
        gradient = self._gradient(
            x0,
            shown,
            target,
            draw_views(self.settings.views, self.pack.encoder.crop, derive_seed(0, "views", step)),
        )
        result = x0.clone()
        for latent in target.latent.unique().tolist():
            length = float(gradient[:, :, latent].norm())
            room = self.settings.trust_radius - float(self._spent[latent])
            share = min(self.settings.scale, room)
            if length > 0 and torch.isfinite(gradient[:, :, latent]).all():
                change = gradient[:, :, latent] * (share * float(x0[:, :, latent].norm()) / length)
                result[:, :, latent] += change
                self._spent[latent] += share
        return result

    def _gradient(self, x0: Tensor, shown: Tensor, target: _Target, views: Sequence[View]) -> Tensor:
        """Gradient by ``x0`` of the faces' similarity to their references, summed over faces and views."""
        top, bottom, left, right = region(target.faces.box, self.decoder.space, x0.shape[-2:])
        spec, space = self.pack.encoder.crop, self.decoder.space
        moved = target.faces.landmarks - torch.tensor([left * space, top * space])
        matrices = similarity_from_landmarks(moved, spec)
        reference = target.reference.to(x0.device).repeat(len(views), 1)
        with torch.enable_grad():
            latents = x0.detach().clone().requires_grad_()
            frames = self.decoder(latents[..., top:bottom, left:right], shown)[0]
            crops = torch.cat([view.of(frames, target.faces.frame, matrices, spec.size) for view in views])
            alike = (self.embedder(crops) * reference).sum()
            return torch.autograd.grad(alike, latents)[0]


def region(boxes: Tensor, space: int, size: Sequence[int]) -> tuple[int, int, int, int]:
    """Top, bottom, left and right, in latents, of what must be decoded to see (N, 4) boxes in pixels."""
    low = (boxes[:, :2].amin(0) / space).floor().long() - MARGIN
    high = (boxes[:, 2:].amax(0) / space).ceil().long() + MARGIN
    (left, top), (right, bottom) = low.clamp(min=0).tolist(), high.tolist()
    return top, min(bottom, int(size[0])), left, min(right, int(size[1]))
