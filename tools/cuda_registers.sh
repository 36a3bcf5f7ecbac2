#!/usr/bin/env bash
# Registers of every CUDA kernel, and bytes of spill stores, for sm_80 and sm_90a: a table in Markdown.
# Needs nvcc (tools/cuda-toolkit.sh).
set -euo pipefail
cd "$(dirname "$0")/../custom-ops"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

for arch in 80 90a; do
    for source in src/*/kernel*.cu; do
        nvcc -O3 -std=c++17 -arch="sm_$arch" -Xptxas -v -cubin -o "$work/cubin" -Iinclude "$source" 2>&1
    done | awk '
        /Compiling entry function/ { split($0, part, "\047"); kernel = part[2] }
        /bytes spill stores/ && kernel != "" { match($0, /[0-9]+ bytes spill stores/); spilled = $0; sub(/.*, /, "", spilled)
            spilled = substr($0, RSTART, RLENGTH) + 0 }
        /Used [0-9]+ registers/ && kernel != "" { match($0, /Used [0-9]+/); used = substr($0, RSTART + 5, RLENGTH - 5)
            print kernel, used (spilled ? ", " spilled " B" : ""); kernel = "" }' | sort > "$work/$arch"
done
printf '| kernel | sm_80 | sm_90a |\n|---|---|---|\n'
join <(sed 's/ /\t/' "$work/80") <(sed 's/ /\t/' "$work/90a") -t "$(printf '\t')" |
    awk -F '\t' '{ printf "| `%s` | %s | %s |\n", $1, $2, $3 }'
