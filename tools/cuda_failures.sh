#!/usr/bin/env bash
# What a user meets when a GPU fails them: no such GPU, too little memory to load, none left while a server
# serves, weights that are no numbers. Needs a GPU, python3 with torch, and curl; takes about a minute.
#
#   tools/cuda_failures.sh MODEL [DS4 [DS4_SERVER]]
#
# MODEL is a GGUF file; programs are looked for in the present folder, then in target/release. With a file of
# less than 1 GiB, weights are damaged too, in a copy. Prints each program's own words, then ok or FAILED;
# ends with 1 if anything failed.
set -uo pipefail

model=${1:?"usage: $0 MODEL [DS4 [DS4_SERVER]]"}
find_program() { for at in "./$1" "target/release/$1"; do [ -x "$at" ] && echo "$at" && return; done; echo "$1"; }
ds4=${2:-$(find_program ds4)}
server=${3:-$(find_program ds4-server)}
port=${PORT:-18457}
work=$(mktemp -d)
failed=0
hog= serving=

finish() {
  [ -n "$hog" ] && kill "$hog" 2> /dev/null
  [ -n "$serving" ] && kill "$serving" 2> /dev/null
  wait 2> /dev/null
  rm -rf "$work"
}
trap finish EXIT

step() { printf '\n== %s\n' "$*"; }

# judge WHAT CONDITION...
judge() {
  local what=$1
  shift
  if "$@"; then printf 'ok      %s\n' "$what"; else printf 'FAILED  %s\n' "$what"; failed=1; fi
}

said() { grep -Eq "$1" "$work/said"; }
never_said() { ! grep -Eq "$1" "$work/said"; }

# refused WHAT PATTERN COMMAND...: it must end by itself, not by a panic or a signal, and say so.
refused() {
  local what=$1 pattern=$2 status=0
  shift 2
  timeout 60 "$@" > "$work/said" 2>&1 < /dev/null || status=$?
  sed 's/^/    /' "$work/said" | tail -n 8
  judge "$what: ends with 1 or 2 (ended with $status)" test "$status" = 1 -o "$status" = 2
  judge "$what: says why" said "$pattern"
  judge "$what: no panic" never_said 'panicked|core dumped'
}

# Takes all of the GPU's memory but so many MiB, until it is killed.
take_all_but() {
  PYTORCH_NO_CUDA_MEMORY_CACHING=1 python3 - "$1" > "$work/hog" << 'PYTHON' &
import sys, time, torch
leave = int(sys.argv[1]) << 20
held = [torch.empty(1, dtype=torch.uint8, device="cuda")]
piece = 1 << 36
while piece >= 1 << 20:
    if torch.cuda.mem_get_info()[0] - piece < leave:
        piece //= 2
        continue
    try:
        held.append(torch.empty(piece, dtype=torch.uint8, device="cuda"))
    except torch.OutOfMemoryError:
        piece //= 2
print(f"held; {torch.cuda.mem_get_info()[0] >> 20} MiB are free", flush=True)
time.sleep(600)
PYTHON
  hog=$!
  for _ in $(seq 300); do
    if grep -q held "$work/hog"; then cat "$work/hog"; return; fi
    kill -0 "$hog" 2> /dev/null || break
    sleep 0.1
  done
  echo "the memory could not be taken" && exit 1
}

give_back() {
  kill "$hog" 2> /dev/null
  wait "$hog" 2> /dev/null
  hog=
}

# ask WORDS TOKENS: status in $work/status, body in $work/said. Each prompt begins in another way, so that
# nothing of it is known.
asked=0
ask() {
  asked=$((asked + 1))
  python3 - "$1" "$2" "$asked" > "$work/body" << 'PYTHON'
import json, sys
words, tokens, asked = map(int, sys.argv[1:])
text = f"{asked}. " + " ".join(f"stone {asked * 7919 + i}" for i in range(words))
print(json.dumps({"model": "m", "messages": [{"role": "user", "content": text}], "max_tokens": tokens,
                  "temperature": 0}))
PYTHON
  : > "$work/said"
  curl -sS -m 60 -o "$work/said" -w '%{http_code}' -H 'Content-Type: application/json' \
    --data-binary "@$work/body" "http://127.0.0.1:$port/v1/chat/completions" > "$work/status" \
    2> "$work/curl" || true
  printf '    %s words: %s %s\n' "$1" "$(cat "$work/status")" "$(head -c 300 "$work/said")"
}
answered() { [ "$(cat "$work/status")" = "$1" ]; }

step "no such GPU, and no GPU at all"
refused 'a GPU that is not there' 'there is no GPU 99' "$ds4" -m "$model" --device cuda:99 -p hi
CUDA_VISIBLE_DEVICES=-1 refused 'no GPU visible' 'no GPU|not usable' "$ds4" -m "$model" --device cuda -p hi

step "too little memory for the weights and room to work"
take_all_but 1800
refused 'a GPU that is nearly full' 'GiB free of|cannot be opened' "$ds4" -m "$model" --device cuda -p hi
refused 'the same, server' 'GiB free of|cannot be opened' \
  "$server" -m "$model" --device cuda --port "$port"
give_back
take_all_but 40
refused 'a GPU that is full' 'GiB free of|cannot be opened' "$ds4" -m "$model" --device cuda -p hi
give_back

step "no memory left while a server serves"
"$server" -m "$model" --device cuda --port "$port" > "$work/log" 2>&1 &
serving=$!
for _ in $(seq 600); do
  grep -q 'listening on' "$work/log" && break
  kill -0 "$serving" 2> /dev/null || break
  sleep 0.1
done
judge 'the server listens' grep -q 'listening on' "$work/log"
ask 20 8
judge 'before: an answer' answered 200
take_all_but 4
# Some eight tokens a word.
for words in 100 400 1900; do
  ask "$words" 8
  if answered 503; then break; fi
done
judge 'meanwhile: a long prompt is turned away with 503' answered 503
judge 'meanwhile: it says why' said 'no memory left'
judge 'meanwhile: the server is alive' kill -0 "$serving"
ask 5 4
judge 'meanwhile: a short one is answered or turned away' test "$(cat "$work/status")" = 200 -o \
  "$(cat "$work/status")" = 503
give_back
ask 400 8
judge 'afterwards: a long prompt is answered' answered 200
ask 20 8
judge 'afterwards: a short one too' answered 200
kill -TERM "$serving"
wait "$serving"
status=$?
serving=
sed 's/^/    /' "$work/log" | tail -n 12
judge "the server ends when told (ended with $status)" test "$status" = 0
cp "$work/log" "$work/said"
judge 'the server did not panic' never_said 'panicked'

if [ "$(stat -c %s "$model")" -lt $((1 << 30)) ]; then
  step "weights that are no numbers"
  python3 - "$model" "$work/damaged.gguf" << 'PYTHON'
import struct, sys
# Overwrites the first values of output.weight by ones: a NaN in every format that has a scale or floats.
data = bytearray(open(sys.argv[1], "rb").read())
at = 8
def number(form):
    global at
    value = struct.unpack_from("<" + form, data, at)[0]
    at += struct.calcsize("<" + form)
    return value
def text():
    global at
    length = number("Q")
    at += length
    return bytes(data[at - length:at]).decode()
SIZES = [1, 1, 2, 2, 4, 4, 4, 1, None, None, 8, 8, 8]
def skip(kind):
    global at
    if kind == 8: text()
    elif kind == 9:
        of = number("I")
        for _ in range(number("Q")): skip(of)
    else: at += SIZES[kind]
tensors, pairs, align = number("Q"), number("Q"), 32
for _ in range(pairs):
    key, kind = text(), number("I")
    if key == "general.alignment": align = struct.unpack_from("<I", data, at)[0]
    skip(kind)
offset = None
for _ in range(tensors):
    name = text()
    for _ in range(number("I")): number("Q")
    number("I")
    here = number("Q")
    if name == "output.weight": offset = here
start = (at + align - 1) // align * align + offset
data[start:start + 4096] = b"\xff" * 4096
open(sys.argv[2], "wb").write(data)
PYTHON
  refused 'damaged weights' 'not finite' "$ds4" -m "$work/damaged.gguf" --device cuda --nothink -p hi
fi

echo
if [ "$failed" = 0 ]; then echo "all as wanted"; else echo "something FAILED"; fi
exit "$failed"
