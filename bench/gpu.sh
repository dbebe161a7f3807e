#!/bin/sh
# Correctness, ceilings, tuning, every shape against its peers, on the GPU at hand: raw JSON in OUT.
#
#   bench/gpu.sh [OUT] [arguments of python -m soroq.bench.kernels.gpu]
#
# Needs a Python with PyTorch and Triton (PYTHON names another) and no installation of soroq. The
# CUDA C++ kernel is built into OUT where nvcc is, unless SOROQ_CUDA_LIBRARY names one. Parts that are
# there are skipped: run it again to go on.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
out=${1:-gpu}
[ $# -gt 0 ] && shift
mkdir -p "$out"
out=$(cd "$out" && pwd)
if [ -z "${SOROQ_CUDA_LIBRARY:-}" ] && command -v nvcc >/dev/null; then
  [ -f "$out/_cuda.so" ] || nvcc -O3 -std=c++17 -arch=native -shared -Xcompiler -fPIC \
    -o "$out/_cuda.so" "$root/kernels/cuda/matmul_tiles.cu"
  export SOROQ_CUDA_LIBRARY="$out/_cuda.so"
fi
PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" exec "${PYTHON:-python3}" -m soroq.bench.kernels.gpu --out "$out" "$@"
