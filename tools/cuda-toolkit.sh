#!/usr/bin/env bash
# Puts a CUDA compiler into DIR where there is no CUDA toolkit, from NVIDIA's wheels on PyPI.
#
#   tools/cuda-toolkit.sh [--link] [DIR]    then: . DIR/env.sh
#
# With --link also what a program with the feature `cuda` is linked with: cuBLAS, cuRAND, NVRTC and a
# library that has the driver's names and nothing behind them. Nothing here runs CUDA code: that takes a
# driver. The version is 13.0 because older drivers refuse PTX of newer compilers.
set -euo pipefail

link=
if [ "${1:-}" = --link ]; then link=yes; shift; fi
dir=${1:-${XDG_CACHE_HOME:-$HOME/.cache}/ds4-cuda-13.0}
version=13.0

mkdir -p "$dir"
[ -x "$dir/python/bin/pip" ] || python3 -m venv "$dir/python"
wheels=()
for part in nvcc crt cccl runtime; do wheels+=("nvidia-cuda-$part==$version.*"); done
wheels+=("nvidia-nvvm==$version.*")
if [ -n "$link" ]; then
  wheels+=("nvidia-cuda-nvrtc==$version.*" "nvidia-cublas==$version.*" "nvidia-curand==10.4.0.*")
fi
"$dir/python/bin/pip" install --quiet --disable-pip-version-check --no-deps "${wheels[@]}"

home=$(find "$dir/python/lib" -type d -path '*/nvidia/cu13' | head -n 1)
if [ -n "$link" ]; then
  # Wheels name libraries by their versions only; linkers look for the plain names.
  for library in "$home"/lib/lib*.so.*; do ln -sf "$(basename "$library")" "${library%%.so.*}.so"; done
  ln -sfn lib "$home/lib64"
  grep -oEh '\bcu[A-Z][A-Za-z0-9_]*' "$home/include/cuda.h" | sort -u | sed 's/.*/void &(void) {}/' > "$dir/driver.c"
  cc -shared -fPIC -Wl,-soname,libcuda.so.1 -w -o "$home/lib/libcuda.so" "$dir/driver.c"
fi
cat > "$dir/env.sh" <<ENV
export CUDA_HOME='$home' CUDA_PATH='$home' CUDA_TOOLKIT_ROOT_DIR='$home'
export PATH='$home/bin':"\$PATH"
export LIBRARY_PATH='$home/lib'"\${LIBRARY_PATH:+:\$LIBRARY_PATH}"
ENV
echo "$dir/env.sh"
