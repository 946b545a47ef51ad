#!/usr/bin/env bash
# Sets up a virtual environment and makes the first clip: a prompt and samples/faces/maria.png → first-clip/maria.mp4
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
venv="${FACELOCK_VENV:-.venv}"
[ -x "$venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$venv"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
mkdir -p first-clip
"$venv/bin/facelock" generate "a woman with long red hair talking in a forest" \
    --face samples/faces/maria.png --seconds 10 --overwrite -o first-clip/maria.mp4
echo "Look at first-clip/maria.mp4 and first-clip/maria.report.html"
