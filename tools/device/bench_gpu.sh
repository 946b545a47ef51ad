#!/bin/bash
# facelock bench gpu on a rented GPU, within SECONDS; figures and log lie in OUT, also where it was cut short.
#   tools/device/bench_gpu.sh OUT [SECONDS]
# Needs on that machine, besides torch, transformers, accelerate, onnx, onnxruntime, opencv and typer: diffusers,
# ftfy, wcwidth, pydantic, pydantic_core, annotated-types and typing-inspection. Nothing else is imported.
set -u
out=$1 seconds=${2:-150}
export HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error PYTHONUNBUFFERED=1 PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
mkdir -p "$out"
timeout -k 5 $((seconds + 40)) python3 -m facelock bench gpu --out "$out" --seconds "$seconds" --quiet \
    2>"$out/gpu.log" || { echo "ended with $?"; tail -n 20 "$out/gpu.log"; }
cat "$out/gpu.md"
