"""What happens inside the judge: how sparse its codes are, what its heads look at, where a changed part shows.

``python -m facelock.miniature crate`` measures it on held-out characters, prints a table and draws ``docs/judge.png``.

A token is one of 7 × 7 squares of the aligned face (16 pixels of the 112, though the stem sees a little beyond it), so
a token's place says which part of the face it shows. In MSSA query, key and value are one projection: a head attends
where the face looks alike in its subspace, and always to the token itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from facelock.assets import asset_dir
from facelock.miniature import data
from facelock.miniature.bundled import load_bundled
from facelock.miniature.parameters import Params, sample_appearance, sample_nuisance
from facelock.miniature.parts_of_face import PARTS, change, crops
from facelock.nets.crate import Crate

PEOPLE = 128
GRID = 7
"""Tokens to a side."""
REGIONS = (
    "hhhhhhh",
    "hfffffh",
    "obbbbbo",
    "oeeeeeo",
    "ocnnnco",
    "ocmmmco",
    "ojjjjjo",
)
"""The region that each token shows, row by row of the ArcFace crop: its eyes lie in row 3, its nose in 4, its mouth's
corners in 5."""
NAMES = {
    "h": "hair",
    "f": "forehead",
    "b": "brows",
    "e": "eyes",
    "n": "nose",
    "c": "cheeks",
    "m": "mouth",
    "j": "chin",
    "o": "sides",
}


BEGIN, END = "<!-- measured by python -m facelock.miniature crate -->", "<!-- end of what was measured -->"
"""Marks of the tables in a page."""


@dataclass(frozen=True)
class Inside:
    """Means over pictures."""

    face: Tensor
    """(3, 56, 56) in [0, 1]: the mean picture."""
    zeros: list[float]
    """Per layer, share of the code's numbers that are exactly zero after ISTA."""
    looks: Tensor
    """(layers, heads, 49): share of each head's attention that a token receives, over all tokens that look."""
    itself: Tensor
    """(layers, heads): share that stays at the token that looks."""
    strength: Tensor
    """(layers, heads, 49): share of the energy ``|Uₖᵀ z|²`` in a head's subspace that is a token's."""
    moved: Mapping[str, Tensor]
    """Part → (49,): mean absolute change of the last code when that part alone is changed."""


@torch.inference_mode()
def measure(net: Crate, people: int = PEOPLE, seed: int = 0) -> Inside:
    """Look into ``net`` with one picture of each of ``people`` held-out characters."""
    generator = data.seeded(950, seed)
    faces = data.identities("heldout", people)
    look = sample_appearance(people, generator, faces["feminine"])
    now = sample_nuisance(people, generator)
    x = crops(faces, look, now)
    zeros, looks, itself, strength, z = list[float](), [], [], [], _tokens(net, x)
    for layer in net.layers:
        seen = layer.attention.attention(layer.norm1(z))  # type: ignore[operator, union-attr]
        energy = layer.attention.project(layer.norm1(z)).square().sum(-1).mean(0)  # type: ignore[operator, union-attr]
        looks.append(seen.mean((0, 2)))
        itself.append(seen.diagonal(dim1=-2, dim2=-1).mean((0, 2)))
        strength.append(energy / energy.sum(-1, keepdim=True))
        z = layer(z)
        zeros.append(float((z == 0).float().mean()))
    moved = {part: _moved(net, z, faces, part, look, now, generator) for part in PARTS}
    stacked = (torch.stack(each) for each in (looks, itself, strength))
    return Inside(x.mean(0), zeros, *stacked, moved)


def _tokens(net: Crate, x: Tensor) -> Tensor:
    return net.stem(x * 2 - 1).flatten(2).transpose(1, 2) + net.position


def _moved(
    net: Crate,
    before: Tensor,
    faces: Params,
    part: str,
    look: Params,
    now: Params,
    generator: torch.Generator,
) -> Tensor:
    """(49,) how far each token's last code moves when ``part`` is another character's in the same picture."""
    after = net.tokens(crops(change(faces, part, generator), look, now) * 2 - 1)
    return (after - before).abs().mean((0, 2))


def by_region(shares: Tensor) -> dict[str, float]:
    """Sum of (49,) per region, by name."""
    letters = "".join(REGIONS)
    return {
        name: float(sum(shares[place] for place, each in enumerate(letters) if each == letter))
        for letter, name in NAMES.items()
    }


def describe(inside: Inside) -> str:
    """Four tables in Markdown: zeros per layer, where each head looks and is strong, where a changed part shows."""
    layers = [[k + 1, f"{share:.1%}"] for k, share in enumerate(inside.zeros)]
    even = torch.full((GRID * GRID,), 1 / GRID**2)
    looks = [["evenly spread", *_shares(even), f"{1 / GRID**2:.0%}"]]
    strong = [["evenly spread", *_shares(even)]]
    for k, layer in enumerate(inside.looks):
        for h, head in enumerate(layer):
            looks.append([f"{k + 1}.{h + 1}", *_shares(head), f"{float(inside.itself[k, h]):.0%}"])
            strong.append([f"{k + 1}.{h + 1}", *_shares(inside.strength[k, h])])
    moved = [[part, *_shares(where / where.sum())] for part, where in inside.moved.items()]
    names = list(NAMES.values())
    tables = (
        _table(["layer", "numbers that are zero after ISTA"], layers),
        _table(["layer.head looks at", *names, "itself"], looks),
        _table(["layer.head is strong in", *names], strong),
        _table(["changed part shows in", *names], moved),
    )
    return "\n\n".join(tables) + "\n"


def _shares(tokens: Tensor) -> list[str]:
    return [f"{share:.0%}" for share in by_region(tokens).values()]


def _table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def draw(inside: Inside, path: Path) -> None:
    """One picture: every head's attention and strength over the mean face, zeros per layer, changed parts."""
    from matplotlib.figure import Figure

    depth, heads = inside.looks.shape[:2]
    wide = max(2 * heads + 1, len(inside.moved))
    figure = Figure((0.95 * wide, 1.05 * (depth + 1)), dpi=80, layout="constrained")
    grid = figure.subplots(depth + 1, wide, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for k in range(depth):
        for h in range(heads):
            name = f"{k + 1}.{h + 1}"
            _map(grid[k, h], inside.face, inside.looks[k, h] * GRID**2, f"{name} looks", 2.0)
            _map(grid[k, heads + 1 + h], inside.face, inside.strength[k, h] * GRID**2, f"{name} strong", 2.0)
        _bar(grid[k, heads], inside.zeros[k])
    for place, (part, where) in enumerate(inside.moved.items()):
        _map(grid[depth, place], inside.face, where / where.max(), f"{part} changed", 1.0)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _map(axes: Any, face: Tensor, values: Tensor, title: str, top: float) -> None:
    """The mean face in grey under (49,) values from 0 to ``top``."""
    axes.imshow(face.mean(0).numpy(), cmap="gray", vmin=0, vmax=1.4, extent=(0, GRID, GRID, 0))
    fine = F.interpolate(values.view(1, 1, GRID, GRID), scale_factor=8, mode="nearest")[0, 0]
    axes.imshow(fine.numpy(), cmap="magma", vmin=0, vmax=top, alpha=0.6, extent=(0, GRID, GRID, 0))
    axes.set_title(title, fontsize=7, pad=2)


def _bar(axes: Any, share: float) -> None:
    """The share of zeros as a bar with its number."""
    axes.barh([0], [1.0], color="#e3e1dc", height=0.4)
    axes.barh([0], [share], color="#2457d6", height=0.4)
    axes.set(xlim=(0, 1), ylim=(-1, 1))
    axes.set_title(f"{share:.0%} zeros", fontsize=7, pad=2)


def write(picture: Path, people: int = PEOPLE) -> str:
    """Measure the judge that ships, draw ``picture`` and return the tables as text.

    Where a page of the picture's name with ``.md`` lies beside it, the tables between its marks are replaced too.
    """
    net = Crate()
    load_bundled("judge", torch.nn.ModuleDict({"net": net}), asset_dir("models") / "miniature")
    inside = measure(net.eval(), people)
    draw(inside, picture)
    text, page = describe(inside), picture.with_suffix(".md")
    if page.is_file():
        before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
        _, mark, after = rest.partition(END)
        if mark:
            page.write_text(f"{before}{BEGIN}\n\n{text}\n{END}{after}", encoding="utf-8")
    return text
