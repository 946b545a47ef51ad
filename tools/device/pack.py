"""Training states small enough to carry: the averaged weights, in half precision where they are large; and, beside an
autoencoder, what its latents are divided by.

    python tools/device/pack.py out WORKSHOP FOLDER     # on the machine that trained
    python tools/device/pack.py in FOLDER WORKSHOP      # here: work/miniature

A packed state goes on as a start (its moments are gone), and exports as the whole one does.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from facelock.miniature.workshop import STATISTICS

GROUPS = {
    "blueprint": ("blueprint",),
    "pictures": ("vae", "upscaler", "tiny_decoder", "detector"),
    "faces": ("recogniser", "judge", "reader", "identity_reader"),
    "aligners": ("aligner", "restorer"),
}
"""File → the parts in it; what is larger than ``MOST`` becomes several files."""
MOST = 15 << 20
"""Bytes of a file: rented machines give back no larger ones than 16 MiB."""
LEFT_OUT = ("classes.", "regress.")
"""Heads that only teach."""


def pack(root: Path, folder: Path) -> None:
    """Write one file for each of ``GROUPS``, and print what was trained."""
    folder.mkdir(parents=True, exist_ok=True)
    for group, parts in GROUPS.items():
        tensors, about = {}, {}
        for part in parts:
            path = root / "train" / part / "state.safetensors"
            if not path.is_file():
                continue
            with safe_open(path, "pt") as file:
                meta = file.metadata()
            measured = path.with_name(STATISTICS)
            if measured.is_file():
                meta |= {STATISTICS: measured.read_text()}
            about[part] = json.dumps(meta)
            for name, tensor in load_file(path).items():
                own = name.removeprefix("average.")
                if own == name or own.startswith(LEFT_OUT):
                    continue
                large = tensor.is_floating_point() and tensor.numel() >= 4096
                tensors[f"{part}/{own}"] = (tensor.half() if large else tensor).contiguous()
            last = (json.loads(meta["history"]) or [{}])[-1]
            steps, spent = int(meta["step"]), json.loads(meta["spent"])
            print(f"{part}: {steps} steps in {spent:.0f} s, {steps / max(spent, 1e-9):.1f} a second; {last}")
        for number, some in enumerate(_files(tensors)):
            save_file(some, folder / f"{group}-{number}.safetensors", metadata=about)


def _files(tensors: dict[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
    """The tensors in as few files as hold them, in their order."""
    files: list[dict[str, torch.Tensor]] = []
    room = 0
    for name, tensor in tensors.items():
        if tensor.nbytes > room:
            files, room = [*files, {}], MOST
        files[-1][name] = tensor
        room -= tensor.nbytes
    return files


def unpack(folder: Path, root: Path) -> None:
    """Write a training state of every packed part."""
    packed, about = {}, {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            about |= opened.metadata()
        packed |= load_file(file)
    for part, meta in about.items():
        own = {k.split("/", 1)[1]: v for k, v in packed.items() if k.startswith(f"{part}/")}
        state = {}
        for name, tensor in own.items():
            whole = tensor.float() if tensor.dtype is torch.float16 else tensor
            state |= {f"model.{name}": whole.clone(), f"average.{name}": whole}
        target = root / "train" / part
        target.mkdir(parents=True, exist_ok=True)
        told = json.loads(meta)
        if STATISTICS in told:
            (target / STATISTICS).write_text(told.pop(STATISTICS))
        save_file(state, target / "state.safetensors", metadata=told)
        print(f"{part}: {len(own)} tensors, {told['step']} steps on {told['device']}")


if __name__ == "__main__":
    {"out": pack, "in": unpack}[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]))
