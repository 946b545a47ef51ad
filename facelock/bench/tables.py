"""Results of a benchmark as Markdown, with the device and the date they were measured on."""

from __future__ import annotations

import datetime
import json
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from facelock.errors import ConfigError


def require_cpu(name: str, device: str) -> None:
    """Raise ``ConfigError`` for another device: the benchmark ``name`` compares code that runs on the CPU alone."""
    if device not in ("auto", "cpu"):
        raise ConfigError(f"The benchmark {name} runs on the CPU alone, not on {device}. Leave --device out.")


def machine() -> str:
    """What the figures were measured on."""
    name = platform.processor() or platform.machine()
    cpu = Path("/proc/cpuinfo")
    if cpu.is_file():
        models = [
            line.split(":", 1)[1].strip()
            for line in cpu.read_text().splitlines()
            if line.startswith("model name")
        ]
        name = models[0] if models else name
    gpu = f"{torch.cuda.get_device_name()}, " if torch.cuda.is_available() else ""
    return (
        f"{gpu}{name}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, torch {torch.__version__}"
    )


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    return "\n".join([*lines, *("| " + " | ".join(str(c) for c in row) + " |" for row in rows)])


def number(value: float | None, digits: int = 3) -> str:
    """A figure, or a dash."""
    return "–" if value is None else f"{value:.{digits}f}"


def interval(estimate: Mapping[str, Any] | None, digits: int = 3) -> str:
    """``value [low, high]`` of an estimate."""
    if not estimate or estimate.get("value") is None:
        return "–"
    text = f"{estimate['value']:+.{digits}f}"
    if estimate.get("low") is not None:
        text += f" [{estimate['low']:+.{digits}f}, {estimate['high']:+.{digits}f}]"
    return text


def publish(
    name: str, command: str, body: str, results: Mapping[str, Any], out: Path | None
) -> dict[str, Any]:
    """Write ``<name>.md`` and ``<name>.json`` to ``out`` if given; return the results, with the table as ``text``."""
    stamp = datetime.date.today().isoformat()
    text = f"### {name}\n\n`{command}` · {machine()} · {stamp}\n\n{body}\n"
    final = {"bench": name, "command": command, "machine": machine(), "date": stamp, **results}
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / f"{name}.md").write_text(text)
        (out / f"{name}.json").write_text(json.dumps(final, indent=1, default=str) + "\n")
    return final | {"text": text}
