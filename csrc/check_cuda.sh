#!/bin/sh
# Compiles every CUDA source as an object, for sm_80 and sm_90, against the installed torch, which may be the CPU-only wheel.
# PYTHON names the interpreter that has torch (default: .venv/bin/python, else python3), NVCC the compiler (default: nvcc).
set -eu
cd "$(dirname "$0")/.."

nvcc=${NVCC:-nvcc}
if ! command -v "$nvcc" >/dev/null 2>&1; then
  echo "nvcc not found, skipped"
  exit 0
fi
python=${PYTHON:-}
if [ -z "$python" ]; then
  if [ -x .venv/bin/python ]; then python=.venv/bin/python; else python=python3; fi
fi
torch=$("$python" -c 'import importlib.util, pathlib; print(pathlib.Path(importlib.util.find_spec("torch").origin).parent)')

out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
for source in csrc/cuda/*.cu; do
  for arch in 80 90; do
    echo "$source sm_$arch"
    "$nvcc" -c "$source" -o "$out/$(basename "$source").$arch.o" -O3 -std=c++17 \
      -gencode "arch=compute_$arch,code=sm_$arch" -DUSE_CUDA -DTORCH_TARGET_VERSION=0x020a000000000000 \
      -Xcompiler -fPIC -Icsrc -I"$torch/include" -I"$torch/include/torch/csrc/api/include"
  done
done
