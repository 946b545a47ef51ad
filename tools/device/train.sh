#!/bin/bash
# Trains every bundled model on one rented GPU, by the clock, three chains side by side (small networks leave gaps).
#   tools/device/train.sh OUT SCALE CLIPS     SCALE 1: about 500 s; CLIPS for the blueprint: 48000
# What comes back lies in OUT (tools/device/pack.py); logs in OUT/log.txt.
set -u
out=$1 scale=$2 clips=$3 root=${ROOT:-/dev/shm/miniature}
export HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1 OMP_NUM_THREADS=4
mkdir -p "$out" "$root"
seconds() { python3 -c "print(round($1 * $scale, 1))"; }
train() {  # [--bundled] PART SECONDS ...
    local more=() parts=()
    while [ $# -gt 0 ]; do
        case $1 in --*) more+=("$1"); shift ;; *) parts+=("$1=$(seconds "$2")"); shift 2 ;; esac
    done
    python3 -m facelock.miniature --root "$root" --device cuda --windows "$clips" train "${parts[@]}" "${more[@]}" >>"$out/log.txt" 2>&1 ||
        echo "FAILED: ${parts[*]}: $(tail -n 3 "$out/log.txt")"
}
started=$SECONDS
train recogniser 85 identity_reader 20 & recogniser=$!
train judge 95 upscaler 20 & judge=$!
train --bundled vae 140
python3 -m facelock.miniature --root "$root" --device cuda --windows "$clips" data decoded >>"$out/log.txt" 2>&1
echo "autoencoder and windows after $((SECONDS - started)) s"
train --bundled blueprint 320 & blueprint=$!
wait $recogniser
train reader 120 aligner 70 restorer 60 & aligners=$!
wait $judge
train detector 100 tiny_decoder 50 & detector=$!
wait $aligners $detector
python3 tools/device/pack.py out "$root" "$out"
wait $blueprint
echo "all after $((SECONDS - started)) s"
python3 tools/device/pack.py out "$root" "$out"
nvidia-smi --query-gpu=name,memory.used --format=csv,noheader
