#!/usr/bin/env bash
# Bring llama.cpp and ik_llama.cpp as shared libraries with this CPU's instruction sets.
#
#     bench/peers/get_llama.sh llama.cpp DIR       # seconds: prebuilt, a CPU library for each set
#     bench/peers/get_llama.sh ik_llama.cpp DIR    # compiles: 20 minutes on two cores
#
# The Python wheels of both are built for AVX2 alone, which would be no fair peer. llama.cpp comes
# out of node-llama-cpp's npm package (needs npm); it picks the CPU library itself. ik_llama.cpp is
# compiled with -march=native from the source archive of its Python bindings (needs pip, cmake, a
# C++ compiler). Then: export SOROQ_LLAMA_CPP=DIR, or SOROQ_IK_LLAMA_CPP=DIR.
set -euo pipefail

if [ $# -ne 2 ]; then
  echo "usage: $0 llama.cpp|ik_llama.cpp DIR" >&2
  exit 2
fi
mkdir -p "$2"
out=$(cd "$2" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

case $1 in
llama.cpp)
  npm pack --silent @node-llama-cpp/linux-x64@3.22.1 >/dev/null
  tar xzf ./*.tgz
  cp package/LICENSE package/bins/linux-x64/*.so "$out/"
  ;;
ik_llama.cpp)
  "${PYTHON:-python3}" -m pip download --quiet --no-deps --no-binary ik-llama-cpp-python ik-llama-cpp-python==0.1.5
  tar xzf ./*.tar.gz
  cmake -S ik_llama_cpp_python-*/vendor/ik_llama.cpp -B build -DCMAKE_BUILD_TYPE=Release \
    -DBUILD_SHARED_LIBS=ON -DGGML_NATIVE=ON -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF \
    -DLLAMA_BUILD_SERVER=OFF -DCMAKE_BUILD_RPATH='$ORIGIN' -DCMAKE_BUILD_RPATH_USE_ORIGIN=ON
  cmake --build build --target ggml llama -j "${JOBS:-2}"
  cp ik_llama_cpp_python-*/vendor/ik_llama.cpp/LICENSE build/ggml/src/libggml.so build/src/libllama.so "$out/"
  ;;
*)
  echo "$0: '$1' is neither llama.cpp nor ik_llama.cpp" >&2
  exit 2
  ;;
esac
ls "$out"
