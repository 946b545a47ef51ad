"""``python tools/mean_weights.py A B OUT``: a diffusers folder whose weights are halfway between those of A and B.

For two folders of one network that went different ways from the same weights: their mean is often better than either
(Wortsman et al. 2022, arXiv:2203.05482). All that is no weight is B's.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import load_file, save_file


def mean_weights(first: Path, second: Path, out: Path) -> None:
    """Write ``out``; weights keep the second's dtype. Raises ``ValueError`` where the networks are not the same."""
    files = [path.relative_to(second) for path in sorted(second.rglob("*.safetensors"))]
    pairs = {name: (load_file(first / name), load_file(second / name)) for name in files}
    for name, (ours, theirs) in pairs.items():
        if {k: v.shape for k, v in ours.items()} != {k: v.shape for k, v in theirs.items()}:
            raise ValueError(f"{first / name} and {second / name} are of different networks")
    shutil.copytree(second, out)
    for name, (ours, theirs) in pairs.items():
        with safe_open(second / name, "pt") as file:
            metadata = file.metadata()
        mixed = {
            k: ((ours[k].float() + v.float()) / 2).to(v.dtype) if v.is_floating_point() else v
            for k, v in theirs.items()
        }
        save_file(mixed, out / name, metadata=metadata)


if __name__ == "__main__":
    mean_weights(*map(Path, sys.argv[1:4]))
