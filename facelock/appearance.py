"""What can be read off the pixels of a face: sharpness, mouth and eyes, restlessness, thumbnails.

Crops are canonical (``facelock.geometry.warp_crops``): (N, 3, S, S) float32 RGB in [0, 1], laid out by the
template of a ``CropSpec``. Every value depends on its own crop alone, or on a pair of crops.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional

from facelock.types import CropSpec

Bytes = NDArray[np.uint8]

RESIDUAL_SIDE = 56
"""Side in pixels of the crops that are compared between frames, half an ArcFace crop: above that a clip would
be charged for its sharpness, since fine texture never matches to the pixel."""
THUMBNAIL_SIDE = 96
"""Side in pixels of one face on the contact sheet."""
THUMBNAIL_MARGIN = 1.45
"""Side of a thumbnail ÷ longer side of the face's box."""
_LUMA = (0.299, 0.587, 0.114)


def luma(pictures: Tensor) -> Tensor:
    """(..., 3, H, W) RGB → (..., H, W) brightness, same range."""
    red, green, blue = pictures.unbind(-3)
    return red * _LUMA[0] + green * _LUMA[1] + blue * _LUMA[2]


def sharpness(crops: Tensor) -> Tensor:
    """(N,) variance of the Laplacian of the crops' brightness on the scale 0 to 255; 0 is flat."""
    gray = luma(crops.float()) * 255
    centre = gray[:, 1:-1, 1:-1]
    around = gray[:, :-2, 1:-1] + gray[:, 2:, 1:-1] + gray[:, 1:-1, :-2] + gray[:, 1:-1, 2:]
    edges = (around - 4 * centre).flatten(1)
    return (edges - edges.mean(1, keepdim=True)).square().mean(1)


def _patch(gray: Tensor, centre: Sequence[float], half_width: float, half_height: float) -> Tensor:
    """(N,) mean brightness of a rectangle around ``centre`` (x, y)."""
    size = gray.shape[-1]
    left, right = (round(centre[0] + side * half_width) for side in (-1, 1))
    top, bottom = (round(centre[1] + side * half_height) for side in (-1, 1))
    rows = slice(max(0, top), min(size, bottom + 1))
    return gray[:, rows, max(0, left) : min(size, right + 1)].mean((1, 2))


def mouth_and_eyes(crops: Tensor, spec: CropSpec) -> tuple[Tensor, Tensor]:
    """Brightness of the mouth's and the eyes' regions relative to the face, (N,) each.

    An opening mouth shows its dark inside, a closing lid hides a dark eye: five landmarks do not say
    either, these two numbers move with them. They mean nothing but their own change over time.
    """
    left_eye, right_eye, _, left_corner, right_corner = spec.template
    eye_distance = right_eye[0] - left_eye[0]
    gray = luma(crops.float())
    face = gray.mean((1, 2)).clamp_min(1e-3)
    mouth = [(left_corner[axis] + right_corner[axis]) / 2 for axis in (0, 1)]
    mouth[1] += 0.08 * eye_distance  # the lower lip and the chin move, the upper lip hardly does
    lips = _patch(gray, mouth, 0.35 * eye_distance, 0.28 * eye_distance)
    eyes = [_patch(gray, eye, 0.22 * eye_distance, 0.13 * eye_distance) for eye in (left_eye, right_eye)]
    return lips / face, (eyes[0] + eyes[1]) / 2 / face


def residual(before: Tensor, after: Tensor) -> float:
    """Mean absolute difference in [0, 1] of two crops (3, S, S) after dense motion compensation.

    ``before`` is moved onto ``after`` along the optical flow between them (DIS, OpenCV); what is left
    is change that no motion explains.
    """
    return residual_of_stills(still(before), still(after))


def residual_of_stills(first: Bytes, second: Bytes) -> float:
    """The same of two crops that were made small already (:func:`still`)."""
    grays = [cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY) for picture in (second, first)]
    rest = np.zeros((*grays[0].shape, 2), dtype=np.float32)
    flow = cv2.DISOpticalFlow.create(cv2.DISOpticalFlow_PRESET_FAST).calc(grays[0], grays[1], rest)
    rows, columns = np.indices(grays[0].shape, dtype=np.float32)
    moved = cv2.remap(
        first, columns + flow[..., 0], rows + flow[..., 1], cv2.INTER_LINEAR, None, cv2.BORDER_REPLICATE
    )
    difference = cv2.absdiff(moved, second)
    edge = RESIDUAL_SIDE // 14  # what enters at the border was not there to be moved
    return float(difference[edge:-edge, edge:-edge].mean() / 255)


def still(crop: Tensor) -> Bytes:
    """A crop (3, S, S) as small as it is compared between frames: (56, 56, 3) bytes."""
    side = (RESIDUAL_SIDE, RESIDUAL_SIDE)
    small = functional.interpolate(
        crop[None].float(), side, mode="bilinear", antialias=True, align_corners=False
    )
    return to_bytes(small[0])


def to_bytes(picture: Tensor) -> Bytes:
    """(3, H, W) in [0, 1], or bytes already → (H, W, 3) uint8."""
    if picture.dtype == torch.uint8:
        return picture.detach().permute(1, 2, 0).cpu().numpy()
    return (picture.detach().clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()


def jpeg(picture: Bytes, quality: int = 85) -> str:
    """Base64 text of the (H, W, 3) uint8 picture as a JPEG."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=quality, subsampling=0)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def face_tile(frame: Tensor, box: Sequence[float] | None, side: int = THUMBNAIL_SIDE) -> Bytes:
    """(side, side, 3) picture of the face in ``box``, or of the whole frame's middle without one."""
    height, width = frame.shape[-2:]
    if box is None:
        centre, reach = (width / 2, height / 2), float(min(height, width))
    else:
        centre = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
        reach = THUMBNAIL_MARGIN * max(box[2] - box[0], box[3] - box[1], 4.0)
    reach = min(reach, 2 * max(height, width))
    corner = [round(middle - reach / 2) for middle in centre]
    return _resized(_window(frame, corner, max(2, round(reach))), side)


def _window(frame: Tensor, corner: Sequence[int], reach: int) -> Bytes:
    """The square of ``reach`` pixels from ``corner`` (x, y), edge pixels repeated outside."""
    spans, around = [], []
    for start, limit in zip(corner, (frame.shape[-1], frame.shape[-2]), strict=True):
        first = min(max(start, 0), limit - 1)
        last = max(first + 1, min(start + reach, limit))
        lead = min(max(first - start, 0), reach - (last - first))
        spans.append(slice(first, last))
        around.append((lead, reach - (last - first) - lead))
    inside = to_bytes(frame[:, spans[1], spans[0]])
    return np.pad(inside, (around[1], around[0], (0, 0)), mode="edge")


def _resized(picture: Bytes, side: int) -> Bytes:
    shrinks = picture.shape[0] > side
    resized = cv2.resize(picture, (side, side), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)
    return np.asarray(resized, dtype=np.uint8)
