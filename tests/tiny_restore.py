"""Tiny restoration weights in their published layouts, and a small stand-in for spandrel's documented API."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from facelock.nets.compact_sr import Srvgg


def srvgg(
    path: Path, *, width=8, depth=2, scale=2, seed=0, strength=0.2, wrap: str | None = "params"
) -> Path:
    """A random compact net in the published layout; ``strength`` 0 makes it a nearest-neighbour enlargement."""
    torch.manual_seed(seed)
    state = Srvgg(width, depth, scale).state_dict()
    last = f"body.{2 * depth + 2}."
    for key in (last + "weight", last + "bias"):
        state[key] *= strength
    return write(path, state, wrap)


def write(path: Path, state: dict[str, Any], wrap: str | None = "params") -> Path:
    """A ``.safetensors``, or a ``.pth`` with the state dict under ``wrap``."""
    if path.suffix == ".safetensors":
        save_file({key: tensor.contiguous() for key, tensor in state.items()}, path)
    else:
        torch.save({wrap: state} if wrap else state, path)
    return path


# ------------------------------------------------------------------ spandrel's API


class _Up(nn.Module):
    """Twice as large; draws noise, as some upscalers do."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        large = functional.interpolate(x, scale_factor=2)
        return large * self.up + 0.1 * torch.rand_like(large)


class _Face(nn.Module):
    """Brighter by its weight, in [0, 1]."""

    def __init__(self) -> None:
        super().__init__()
        self.face = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.face


class _Gfpgan(nn.Module):
    """Works in [-1, 1]; stored noise, or fresh noise as spandrel's own call would have it."""

    def __init__(self) -> None:
        super().__init__()
        self.gfpgan = nn.Parameter(torch.zeros(()))

    def forward(
        self, x: Tensor, return_rgb: bool = True, randomize_noise: bool = True
    ) -> tuple[Tensor, list[Tensor]]:
        noise = torch.randn_like(x) if randomize_noise else torch.zeros_like(x)
        return x * self.gfpgan + noise, []


class _Codeformer(nn.Module):
    """In [-1, 1]: white where everything may be invented (weight 0), the input where nothing may (weight 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.codeformer = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, weight: float = 0.5) -> tuple[Tensor, None]:
        return weight * x + (1 - weight) * self.codeformer, None


class _Tiling(Enum):
    SUPPORTED = 1
    DISCOURAGED = 2
    INTERNAL = 3


@dataclass
class _Size:
    minimum: int = 0
    multiple_of: int = 1


@dataclass
class _Architecture:
    id: str


@dataclass
class ImageModelDescriptor:
    """What the documentation says of it: attributes, ``to``, ``eval``, and a call in [0, 1] that pads."""

    model: nn.Module
    architecture: _Architecture
    purpose: str
    scale: int = 1
    input_channels: int = 3
    output_channels: int = 3
    supports_half: bool = False
    supports_bfloat16: bool = True
    size_requirements: _Size = None  # type: ignore[assignment]
    tiling: _Tiling = _Tiling.SUPPORTED

    def to(self, device: torch.device, dtype: torch.dtype) -> ImageModelDescriptor:
        self.model.to(device, dtype)
        return self

    def eval(self) -> ImageModelDescriptor:
        self.model.eval()
        return self

    @torch.inference_mode()
    def __call__(self, image: Tensor) -> Tensor:
        assert image.shape[0] == 1
        height, width = image.shape[-2:]
        m = self.size_requirements.multiple_of
        image = functional.pad(image, (0, -width % m, 0, -height % m), "replicate")
        out = self.model(image)
        out = out[0] if isinstance(out, tuple) else out
        return out.clamp(0, 1)[..., : height * self.scale, : width * self.scale]


class MaskedImageModelDescriptor:
    """Inpainting."""

    purpose = "Inpainting"


class UnsupportedModelError(Exception):
    """No architecture has these tensors."""


class _Registry:
    def copy(self) -> _Registry:
        return _Registry()


class ModelLoader:
    """Tells architectures apart by their tensors."""

    made: ClassVar[dict[str, Callable[[], Any]]] = {
        "up": lambda: ImageModelDescriptor(
            _Up(), _Architecture("Up"), "SR", 2, supports_half=True, size_requirements=_Size(0, 8)
        ),
        "whole": lambda: ImageModelDescriptor(
            _Face(), _Architecture("Whole"), "SR", 1, size_requirements=_Size(), tiling=_Tiling.INTERNAL
        ),
        "mend": lambda: ImageModelDescriptor(
            _Face(), _Architecture("Mend"), "Restoration", 1, size_requirements=_Size()
        ),
        "face": lambda: ImageModelDescriptor(
            _Face(), _Architecture("RestoreFormer"), "FaceSR", size_requirements=_Size(0, 32)
        ),
        "gfpgan": lambda: ImageModelDescriptor(
            _Gfpgan(), _Architecture("GFPGAN"), "FaceSR", size_requirements=_Size(512)
        ),
        "codeformer": lambda: ImageModelDescriptor(
            _Codeformer(), _Architecture("CodeFormer"), "FaceSR", size_requirements=_Size(0, 512)
        ),
        "grey": lambda: ImageModelDescriptor(
            _Face(), _Architecture("Grey"), "SR", input_channels=1, size_requirements=_Size()
        ),
    }

    def __init__(self, registry: _Registry) -> None:
        self.registry = registry

    def load_from_file(self, path: Path) -> Any:
        raise AssertionError("spandrel's own unpickler was used")

    def load_from_state_dict(self, state: dict[str, Tensor]) -> Any:
        (key,) = state.keys() if len(state) == 1 else ("",)
        if key == "mask":
            return MaskedImageModelDescriptor()
        if key not in self.made:
            raise UnsupportedModelError
        found = self.made[key]()
        found.model.load_state_dict(
            state if key in dict(found.model.named_parameters()) else {"face": state[key]}
        )
        return found


@pytest.fixture
def spandrel(monkeypatch) -> type[ModelLoader]:
    """The stand-in in place of spandrel, for one test."""
    fake = ModuleType("spandrel")
    for name, value in {
        "ImageModelDescriptor": ImageModelDescriptor,
        "ModelLoader": ModelLoader,
        "UnsupportedModelError": UnsupportedModelError,
        "MAIN_REGISTRY": _Registry(),
    }.items():
        setattr(fake, name, value)
    monkeypatch.setitem(sys.modules, "spandrel", fake)
    monkeypatch.setitem(sys.modules, "spandrel_extra_arches", None)
    return ModelLoader


def single(path: Path, key: str, value: float = 1.0) -> Path:
    """A file whose one tensor says what the stand-in takes it for."""
    return write(path, {key: torch.tensor(value)}, "params_ema")
