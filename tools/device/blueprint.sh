#!/bin/bash
# Trains the autoencoder, the blueprint and the tiny decoder on, on one rented GPU, by the clock.
#   tools/device/blueprint.sh OUT UNTIL AUTOENCODER CLIPS
# UNTIL: seconds from the start when the blueprint is to be done; AUTOENCODER: seconds for that, or 0 to leave it and its
# tiny decoder as they ship; CLIPS to encode for the blueprint; RATE in the environment: the blueprint's learning rate.
# READER, too: seconds in which the aligner's reader learns on afterwards, on what the autoencoder leaves of 8,000 clips.
# It begins with what ships, or with a state that lies in $START (tools/device/pack.py out).
set -u
out=$1 until=$2 autoencoder=$3 clips=$4 root=${ROOT:-/dev/shm/miniature}
export HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1 OMP_NUM_THREADS=8
mkdir -p "$out" "$root"
log=$out/log.txt
miniature() { python3 -m facelock.miniature --root "$root" --device cuda --windows "$clips" "$@" >>"$log" 2>&1; }
bundled=--bundled
[ -d "${START:-}" ] && bundled= && python3 tools/device/pack.py in "$START" "$root"
later=$((autoencoder > 0 ? 100 : 0))  # the autoencoder compiles first
(sleep $later; OMP_NUM_THREADS=4 python3 tools/device/warm.py >>"$log" 2>&1) & warm=$!
if [ "$autoencoder" -gt 0 ]; then
    miniature train --bundled "vae=$autoencoder" ||
        TORCH_COMPILE_DISABLE=1 miniature train --bundled "vae=$((autoencoder - SECONDS))" || echo "FAILED: vae"
    echo "autoencoder after $SECONDS s"
    python3 tools/device/pack.py out "$root" "$out"
fi
# with what the latents are divided by, once for those who learn side by side
python3 -c "from pathlib import Path; from facelock.miniature.workshop import Workshop
Workshop(Path('$root'), 'cuda', $clips).normal_latents()" >>"$log" 2>&1
echo "windows after $SECONDS s"
wait $warm || export TORCH_COMPILE_DISABLE=1
echo "compiled after $SECONDS s"
tiny=
[ "$autoencoder" -gt 0 ] && { miniature train --bundled tiny_decoder=30 & tiny=$!; }
miniature train $bundled ${RATE:+--rate "$RATE"} "blueprint=$((until - SECONDS - 20))" || echo "FAILED: blueprint"
echo "blueprint after $SECONDS s"
[ -z "$tiny" ] || wait "$tiny" || echo "FAILED: tiny decoder"
if [ "${READER:-0}" -gt 0 ]; then
    python3 tools/device/pack.py out "$root" "$out"
    miniature --windows 16000 train --bundled "reader=$READER" || echo "FAILED: reader"
    echo "reader after $SECONDS s"
fi
python3 tools/device/pack.py out "$root" "$out"
nvidia-smi --query-gpu=name,memory.used --format=csv,noheader
echo "done after $SECONDS s"
