"""What the tests of identity guidance share: a toy recogniser as an ONNX file, tiny decoders, a pack that sees faces.

The toy recogniser is smooth, so that finite differences say something; its faces are where the pack says they are.
"""

from __future__ import annotations

from pathlib import Path

import torch
from onnx import TensorProto, helper, numpy_helper, save_model
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from facelock.faces import OnnxEncoder
from facelock.geometry import ARCFACE112
from facelock.guidance import GuidanceSettings, IdentityGuide, TorchEmbedder, load_tiny_decoder
from facelock.nets.taehv import TinyDecoder
from facelock.recipe.sections import GuidanceRecipe
from facelock.types import Faces, Identity, Thresholds

SIDE = 64
SHAPE = {"channels": 4, "widths": (8, 8, 6, 6), "growth": (1, 2, 2), "enlarge": (False, True, True)}


def write_onnx(path: Path, nodes: list, tensors: dict[str, Tensor], rows: object = "n") -> Path:
    """A graph from ``input`` (rows, 3, 112, 112) to ``output``."""
    weights = [numpy_helper.from_array(tensor.numpy(), name) for name, tensor in tensors.items()]
    entry = helper.make_tensor_value_info("input", TensorProto.FLOAT, [rows, 3, 112, 112])
    leaving = helper.make_tensor_value_info("output", TensorProto.FLOAT, [rows, None])
    graph = helper.make_graph(nodes, "toy", [entry], [leaving], weights)
    save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), str(path))
    return path


def recogniser(folder: Path, size: int = 16) -> Path:
    """A smooth convolution, a sigmoid and a projection: what a recogniser is made of, in small."""
    draw = torch.Generator().manual_seed(3)
    tensors = {
        "kernel": torch.randn(6, 3, 9, 9, generator=draw) / 12,
        "bias": torch.randn(6, generator=draw),
        "out": torch.randn(6 * 14 * 14, size, generator=draw) / 8,
    }
    nodes = [
        helper.make_node("Conv", ["input", "kernel", "bias"], ["a"], strides=[8, 8], pads=[4, 4, 4, 4]),
        helper.make_node("Sigmoid", ["a"], ["b"]),
        helper.make_node("Flatten", ["b"], ["c"]),
        helper.make_node("MatMul", ["c", "out"], ["output"]),
    ]
    return write_onnx(folder / "recogniser.onnx", nodes, tensors)


def tiny_decoder(path: Path, **changes: object) -> Path:
    """A random decoder of :data:`SHAPE`, whose pictures are not flat, in a file."""
    torch.manual_seed(4)
    shape = {**SHAPE, **changes}
    tensors = TinyDecoder(**shape).state_dict()
    tensors["decoder.22.bias"] = tensors["decoder.22.bias"] + 0.5
    tensors["decoder.22.weight"] = tensors["decoder.22.weight"] * 4
    marks = "".join("01"[bool(doubles)] for doubles in shape["enlarge"])
    save_file(tensors, path, metadata={"enlarge": marks})
    return path


class SeesFaces:
    """A :class:`facelock.protocols.FacePack` with a face of ``height`` pixels in the middle of each frame.

    ``yaw`` moves the nose to the side; ``blind`` frames (by their mean brightness rank) show none.
    """

    def __init__(self, recogniser: Path, *, height: float = 40.0, turned: bool = False) -> None:
        self.encoder = OnnxEncoder(recogniser, name="toy", thresholds=Thresholds(-1.0, 0.0, 0.5))
        self.height, self.turned = height, turned
        self.blind: set[int] = set()

    def detect(self, frames: Tensor) -> Faces:
        seen = [i for i in range(len(frames)) if i not in self.blind]
        n, (h, w) = len(seen), frames.shape[-2:]
        template = (torch.tensor(ARCFACE112.template) - 56) * (self.height / 112)
        if self.turned:
            template[2, 0] += 0.3 * self.height
        points = (template + torch.tensor([w / 2, h / 2])).expand(n, 5, 2).clone()
        half = self.height / 2
        box = torch.tensor([w / 2 - half, h / 2 - half, w / 2 + half, h / 2 + half]).expand(n, 4).clone()
        return Faces(torch.tensor(seen, dtype=torch.int64), box, points, torch.ones(n))

    def embed(self, frames: Tensor, faces: Faces) -> Tensor:
        from facelock.geometry import similarity_from_landmarks, warp_crops

        matrices = similarity_from_landmarks(faces.landmarks, self.encoder.crop)
        return self.encoder.embed_crops(warp_crops(frames, faces.frame, matrices, self.encoder.crop.size))


def person(pack: SeesFaces, seed: int = 0) -> Identity:
    """Somebody with a random embedding."""
    size = len(pack.encoder.embed_crops(torch.zeros(1, 3, 112, 112))[0])
    embedding = functional.normalize(torch.randn(size, generator=torch.Generator().manual_seed(seed)), dim=0)
    return Identity("somebody", {pack.encoder.id: embedding})


def guide(folder: Path, pack: SeesFaces | None = None, **settings: object) -> IdentityGuide:
    """A guide of toys; one view unless asked otherwise."""
    path = recogniser(folder)
    decoder = load_tiny_decoder(tiny_decoder(folder / "tiny.safetensors"))
    common = {"views": 1, "ceiling": 1.0, "window": (0.0, 1.0), "scale": 0.02, "trust_radius": 0.08}
    chosen = settings_of(**{**common, **settings})
    made = IdentityGuide(decoder, TorchEmbedder(path), pack or SeesFaces(path), chosen)
    made.begin([person(made.pack)])
    return made


def settings_of(**changes: object) -> GuidanceSettings:
    """A recipe's, as they are unless said otherwise."""
    return GuidanceSettings(**GuidanceRecipe(decoder="any", **changes).model_dump(exclude={"decoder"}))


def latents(frames: int = 5) -> Tensor:
    """(1, 4, frames, 16, 16)."""
    return torch.randn(1, 4, frames, SIDE // 4, SIDE // 4, generator=torch.Generator().manual_seed(8))
