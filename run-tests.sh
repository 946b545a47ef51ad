#!/usr/bin/env bash
# Runs the whole test suite in the environment that first-clip.sh made.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
venv="${FACELOCK_VENV:-.venv}"
[ -x "$venv/bin/python" ] || { echo "no environment in $venv: run bash first-clip.sh first" >&2; exit 2; }
exec "$venv/bin/python" -m pytest "$@"
