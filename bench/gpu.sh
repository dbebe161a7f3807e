#!/bin/sh
# Correctness, ceilings, tuning, every shape against its peers, on the GPU at hand: raw JSON in OUT.
#
#   bench/gpu.sh [OUT] [arguments of python -m soroq.bench.kernels.gpu]
#
# Needs a Python with PyTorch and Triton (PYTHON names another) and no installation of soroq. The
# CUDA C++ kernels are built into OUT where nvcc is, unless SOROQ_CUDA_LIBRARY names them. Parts that
# are there are skipped: run it again to go on.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
out=${1:-gpu}
[ $# -gt 0 ] && shift
mkdir -p "$out"
out=$(cd "$out" && pwd)
if [ -z "${SOROQ_CUDA_LIBRARY:-}" ] && command -v nvcc >/dev/null; then
  if [ ! -f "$out/_cuda.so" ]; then
    hopper=
    case $(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -n 1) in
    9.0)
      hopper=$out/hopper.o
      nvcc -O3 -std=c++17 -gencode=arch=compute_90a,code=sm_90a -Xcompiler -fPIC -c \
        -o "$hopper" "$root/kernels/cuda/matmul_warpgroups.cu" &
      ;;
    esac
    nvcc -O3 -std=c++17 -arch=native -Xcompiler -fPIC -c -o "$out/tiles.o" \
      "$root/kernels/cuda/matmul_tiles.cu"
    wait
    nvcc -shared -o "$out/_cuda.so" "$out/tiles.o" $hopper
  fi
  export SOROQ_CUDA_LIBRARY="$out/_cuda.so"
fi
PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" exec "${PYTHON:-python3}" -m soroq.bench.kernels.gpu --out "$out" "$@"
