#!/bin/sh
# Correctness, ceilings, every shape against its peers, tuning, on the GPU at hand: raw JSON in OUT.
#
#   bench/gpu.sh [OUT] [arguments of python -m soroq.bench.kernels.gpu]
#
# Needs a Python with PyTorch and Triton (PYTHON names another) and no installation of soroq. Parts
# that are there are skipped: run it again to go on.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
out=${1:-gpu}
[ $# -gt 0 ] && shift
PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" exec "${PYTHON:-python3}" -m soroq.bench.kernels.gpu --out "$out" "$@"
