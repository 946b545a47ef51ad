"""The face networks of ``facelock bench gpu``: shapes of the published ones, random, made on the device."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from facelock.bench.gpu_bench import Bench
from facelock.bench.gpu_networks import kept, made_on
from facelock.bench.gpu_sizes import Sizes
from facelock.faces.pack import Pack
from facelock.geometry import ARCFACE112, INSWAPPER128
from facelock.guidance import TorchEmbedder
from facelock.nets.compact_sr import Srvgg
from facelock.nets.scrfd import Scrfd
from facelock.portrait import PortraitDiffusion, PortraitSettings
from facelock.portrait.adapter import BUFFALO_L
from facelock.restoration.tiles import TiledFrames
from facelock.types import Faces, Identity, Thresholds

ENCODER = f"random@{BUFFALO_L}"
"""Id of the random recogniser: the digest is the one that the FaceID adapter asks for."""
PLACES = ((0.3, 0.38), (0.7, 0.38), (0.5, 0.6), (0.35, 0.8), (0.65, 0.8))
"""A frontal face's landmarks as shares of its box."""
EMBEDDING = 512


class ForcedDetector:
    """A detector that runs, and whose answer is ``count`` upright boxes in a row, whatever it saw."""

    def __init__(self, bench: Bench, count: int) -> None:
        """As many boxes as ``count`` on every frame."""
        faces = bench.sizes.faces
        with torch.device(bench.device):
            self.net = Scrfd(faces.detector).eval().requires_grad_(False)
        self.count, self.side, self.device, self.face = count, faces.look, bench.device, bench.sizes.face

    def detect(self, frames: Tensor) -> Faces:
        """Look at every frame at the detector's own size; then the same boxes."""
        for group in frames.split(16):
            seen = functional.interpolate(group.to(self.device), (self.side, self.side), mode="bilinear")
            self.net(seen * 2 - 1)
        return forced(len(frames), self.count, tuple(frames.shape[-2:]), self.face)


def forced(frames: int, count: int, size: Sequence[int], face: tuple[float, float]) -> Faces:
    """``count`` faces side by side on each of ``frames`` frames of ``size`` (height, width)."""
    height, width = size
    high, wide = face[1] * height, min(face[0] * height, width / count)
    middle = (torch.arange(count) + 0.5) * width / count
    top = torch.full_like(middle, (height - high) / 2)
    box = torch.stack([middle - wide / 2, top, middle + wide / 2, top + high], 1)
    marks = box[:, None, :2] + torch.tensor(PLACES) * torch.tensor([wide, high])
    return Faces(
        torch.arange(frames).repeat_interleave(count),
        box.repeat(frames, 1),
        marks.repeat(frames, 1, 1),
        torch.ones(frames * count),
    )


class TorchEncoder:
    """The recogniser as the loop's :class:`facelock.protocols.Encoder`, in torch: onnxruntime may have no GPU."""

    id = ENCODER
    crop = ARCFACE112
    thresholds = Thresholds(0.2, 0.3, 0.4)

    def __init__(self, embed: TorchEmbedder, device: torch.device, batch: int = 64) -> None:
        self.embed, self.device, self.batch = embed, device, batch

    def embed_crops(self, crops: Tensor) -> Tensor:
        """(N, 3, 112, 112) in [0, 1] → (N, D) unit rows on the CPU."""
        rows = [self.embed(part.to(self.device)).float().cpu() for part in crops.split(self.batch)]
        return torch.cat(rows) if rows else torch.zeros(0, EMBEDDING)


def recogniser(bench: Bench) -> TorchEmbedder:
    """A random ArcFace-format file of IResNet's shape, run by torch as identity guidance runs it."""
    with tempfile.TemporaryDirectory() as folder:
        path = write_iresnet(Path(folder, "recogniser.onnx"), *bench.sizes.faces.recogniser)
        return TorchEmbedder(path).to(bench.device).eval()


def write_iresnet(path: Path, widths: Sequence[int], blocks: Sequence[int]) -> Path:
    """ArcFace's improved residual network (Deng et al. 2019, arXiv:1801.07698; insightface's ``iresnet``) as ONNX.

    A block is batch norm, convolution, PReLU, strided convolution, beside a shortcut; norms behind convolutions are
    folded into them, as exporters do.
    """
    from onnx import TensorProto, helper, numpy_helper, save_model

    nodes: list[Any] = []
    weights: list[Any] = []
    draw = np.random.default_rng(0)

    def weight(*shape: int, fill: float | None = None) -> str:
        values = draw.standard_normal(shape, np.float32) * (2 / max(1, int(np.prod(shape[1:])))) ** 0.5
        values = values if fill is None else np.full(shape, fill, np.float32)
        weights.append(numpy_helper.from_array(values, f"w{len(weights)}"))
        return str(weights[-1].name)

    def add(kind: str, inputs: list[str], **attributes: Any) -> str:
        nodes.append(helper.make_node(kind, inputs, [f"x{len(nodes)}"], **attributes))
        return f"x{len(nodes) - 1}"

    def conv(x: str, old: int, new: int, side: int, stride: int) -> str:
        inputs = [x, weight(new, old, side, side), weight(new, fill=0.0)]
        return add("Conv", inputs, kernel_shape=[side] * 2, strides=[stride] * 2, pads=[side // 2] * 4)

    def norm(x: str, width: int) -> str:
        return add("BatchNormalization", [x, *(weight(width, fill=v) for v in (1.0, 0.0, 0.0, 1.0))])

    def prelu(x: str, width: int) -> str:
        return add("PRelu", [x, weight(width, 1, 1, fill=0.25)])

    width = widths[0]
    x = prelu(conv("input", 3, width, 3, 1), width)
    for new, count in zip(widths, blocks, strict=True):
        for block in range(count):
            stride = 1 if block else 2
            short = conv(x, width, new, 1, stride) if not block else x
            y = prelu(conv(norm(x, width), width, new, 3, 1), new)
            x, width = add("Add", [conv(y, new, new, 3, stride), short]), new
    x = add("Flatten", [norm(x, width)], axis=1)
    x = add("Gemm", [x, weight(EMBEDDING, width * 49), weight(EMBEDDING, fill=0.0)], transB=1)
    nodes.append(
        helper.make_node(
            "BatchNormalization", [x, *(weight(EMBEDDING, fill=v) for v in (1.0, 0, 0, 1.0))], ["output"]
        )
    )
    entry = helper.make_tensor_value_info("input", TensorProto.FLOAT, ["n", 3, 112, 112])
    leaving = helper.make_tensor_value_info("output", TensorProto.FLOAT, ["n", EMBEDDING])
    graph = helper.make_graph(nodes, "iresnet", [entry], [leaving], weights)
    save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), str(path))
    return path


def face_pack(bench: Bench, count: int) -> Pack:
    """Detector and recogniser of production's cost, ``count`` faces forced, in the pack that recipes use."""
    encoder = TorchEncoder(kept(bench, "recogniser", lambda: recogniser(bench)), bench.device)
    return Pack(ForcedDetector(bench, count), encoder, cut="library", look_again=True)


def cast(count: int) -> list[Identity]:
    """``count`` identities, their embeddings random."""
    rows = functional.normalize(torch.randn(count, EMBEDDING, generator=torch.Generator().manual_seed(5)))
    return [Identity(f"character {k}", {ENCODER: row}) for k, row in enumerate(rows)]


class Styled(nn.Module):
    """A residual block whose two convolutions are normalised and then scaled and shifted by the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(width, width, 3) for _ in range(2))
        self.styles = nn.ModuleList(nn.Linear(EMBEDDING, 2 * width) for _ in range(2))

    def forward(self, x: Tensor, identity: Tensor) -> Tensor:
        """(N, C, H, W) and (N, D) → the same shape."""
        y = x
        for place, (conv, style) in enumerate(zip(self.convs, self.styles, strict=True)):
            scale, shift = style(identity)[..., None, None].chunk(2, 1)
            y = functional.instance_norm(conv(functional.pad(y, (1, 1, 1, 1), "reflect"))) * scale + shift
            y = y.relu() if place == 0 else y
        return x + y


class SwapNet(nn.Module):
    """The shape of insightface's inswapper_128: down to 32 × 32 of eight times the width, styled blocks, up again."""

    def __init__(self, width: int, blocks: int) -> None:
        super().__init__()
        w, leaky = width, nn.LeakyReLU(0.2)
        self.down = nn.Sequential(
            nn.Conv2d(3, w, 7, padding=3), leaky, nn.Conv2d(w, 2 * w, 3, 1, 1), leaky,
            nn.Conv2d(2 * w, 4 * w, 3, 2, 1), leaky, nn.Conv2d(4 * w, 8 * w, 3, 2, 1), leaky,
        )  # fmt: skip
        self.styled = nn.ModuleList(Styled(8 * w) for _ in range(blocks))
        self.up = nn.Sequential(
            nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(8 * w, 4 * w, 3, 1, 1), leaky,
            nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(4 * w, 2 * w, 3, 1, 1), leaky,
            nn.Conv2d(2 * w, w, 3, 1, 1), leaky, nn.Conv2d(w, 3, 7, padding=3),
        )  # fmt: skip

    def forward(self, x: Tensor, identity: Tensor) -> Tensor:
        """(N, 3, 128, 128) in [0, 1] and (N, D) → (N, 3, 128, 128) in [0, 1]."""
        y = self.down(x)
        for block in self.styled:
            y = block(y, identity)
        return (self.up(y).tanh() + 1) / 2


class SwapAligner:
    """An aligner of inswapper's shape in torch, batched: :class:`facelock.protocols.Aligner`."""

    crop, encoder = INSWAPPER128, ENCODER

    def __init__(self, bench: Bench, batch: int = 32) -> None:
        with torch.device(bench.device):
            self.net = SwapNet(*bench.sizes.faces.swap).eval().requires_grad_(False)
        self.device, self.batch = bench.device, batch

    def align(
        self, crops: Tensor, identity: Tensor, strength: float, *, references: Sequence[Identity] = ()
    ) -> Tensor:
        """(N, 3, 128, 128) → the same shape on the crops' device."""
        pairs = zip(crops.split(self.batch), identity.split(self.batch), strict=True)
        return torch.cat([self.net(c.to(self.device), i.to(self.device)).to(crops) for c, i in pairs])


class CompactFrames:
    """The compact upscaler's network over whole frames, as the upscaler ``compact_upscaler`` runs it."""

    def __init__(self, bench: Bench, batch: int = 4) -> None:
        width, depth, self.scale = bench.sizes.faces.upscaler
        with torch.device(bench.device):
            net: Any = Srvgg(width, depth, self.scale).eval().requires_grad_(False)
        net = net.to(bench.sizes.dtype).to(memory_format=torch.channels_last)
        self.upscale = TiledFrames(
            net, "a random upscaler", scale=self.scale, device=bench.device, batch=batch
        )


class BuiltPortrait(PortraitDiffusion):
    """The portrait diffusion over random networks of Stable Diffusion 1.5's shape."""

    def __init__(self, bench: Bench, settings: PortraitSettings) -> None:
        self._sizes: Sizes = bench.sizes
        super().__init__(
            "", adapter="", encoder=ENCODER, batch=bench.sizes.portrait.batch, device=bench.device, settings=settings
        )  # fmt: skip

    def _load(self, folder: Path, adapter: str | Path) -> tuple[int, Any]:
        from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel

        from facelock.portrait.checkpoint import SAMPLERS, assemble

        sizes, masked = self._sizes.portrait, self.settings.mask is not None
        stages = len(sizes.vae["block_out_channels"])
        with made_on(self.device, self._dtype):
            unet: Any = UNet2DConditionModel(in_channels=9 if masked else 4, out_channels=4, **sizes.unet)
        with torch.device(self.device):
            vae: Any = AutoencoderKL(
                in_channels=3, out_channels=3, latent_channels=4, **sizes.vae,
                down_block_types=("DownEncoderBlock2D",) * stages, up_block_types=("UpDecoderBlock2D",) * stages,
            )  # fmt: skip
        schedule: Any = DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            steps_offset=1,
        )
        parts = {
            "unet": unet.eval(), "vae": vae.eval().requires_grad_(False), "tokenizer": None, "text_encoder": None,
            "scheduler": SAMPLERS[self.settings.sampler].from_config(schedule.config),
            "safety_checker": None, "feature_extractor": None, "requires_safety_checker": False,
        }  # fmt: skip
        state = adapter_state(unet)
        return EMBEDDING, assemble(
            parts, state, where="a random adapter", large=False, inpaint=masked, dtype=self._dtype
        )

    def _encode_prompt(self) -> dict[str, Tensor]:
        shape = (1, 77, self._sizes.portrait.unet["cross_attention_dim"])
        names = ("prompt_embeds", "negative_prompt_embeds")[: 2 if self._guided else 1]
        return {name: torch.randn(shape, device=self.device) for name in names}


def adapter_state(unet: Any) -> dict[str, dict[str, Tensor]]:
    """A FaceID adapter that fits ``unet``, on its device; its LoRA, which is merged into the weights, left out."""
    wide, device = int(unet.config.cross_attention_dim), unet.device

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, device=device) * shape[-1] ** -0.5

    projection = {
        "proj.0.weight": random(2 * EMBEDDING, EMBEDDING), "proj.0.bias": random(2 * EMBEDDING),
        "proj.2.weight": random(4 * wide, 2 * EMBEDDING), "proj.2.bias": random(4 * wide),
        "norm.weight": torch.ones(wide, device=device), "norm.bias": torch.zeros(wide, device=device),
    }  # fmt: skip
    own: dict[str, Tensor] = {}
    crossing = [name for name in unet.attn_processors if name.endswith("attn2.processor")]
    for place, name in enumerate(crossing):
        inner = unet.get_submodule(name.removesuffix(".processor")).to_q.in_features
        own |= {f"{2 * place + 1}.to_{part}_ip.weight": random(inner, wide) for part in "kv"}
    return {"image_proj": projection, "ip_adapter": own}
