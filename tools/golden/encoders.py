"""How close ggml's own encoders come: figures for the tests of ours.

    npm pack @node-llama-cpp/linux-x64@3.22.1 && tar xzf node-llama-cpp-linux-x64-3.22.1.tgz
    python tools/golden/encoders.py package/bins/linux-x64/libggml-base.so [--cut assets/tiny/tiny.gguf]

writes custom-ops/tests/golden/encoders/figures.json: for each matrix, with and without column
weights, the mean of w·(x − x̂)² after ggml_quantize_chunk and back, the nanoseconds of processor time a value took,
and for Q8_0 the SHA-256 of the bytes. Matrices are 64 x 1024 Gaussian values, and rows cut out of the demo
model's experts (`--cut` writes them anew to trained.f16, f16 [96, 256]).

IQ2_XXS cannot be had from ggml without column weights: there the figure is the lower of two, with
all weights 1 and with the columns' own sums of squares.
"""

import ctypes
import hashlib
import json
import math
import sys
import time
from pathlib import Path

import numpy as np

OUT = Path(__file__).resolve().parents[2] / "custom-ops" / "tests" / "golden" / "encoders"
# name: ggml's number, values and bytes of a block
FORMATS = {
    "F16": (1, 1, 2),
    "Q8_0": (8, 32, 34),
    "Q2_K": (10, 256, 84),
    "Q4_K": (12, 256, 144),
    "IQ2_XXS": (16, 256, 66),
}
FLOATS = ctypes.POINTER(ctypes.c_float)


def uniforms(seed, n):
    """SplitMix64 as numbers in (0, 1]; the tests have the same."""
    state = (np.arange(1, n + 1, dtype=np.uint64)) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(seed)
    z = state
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    return ((z >> np.uint64(11)).astype(np.float64) + 1) / 2.0**53


def gaussians(seed, n):
    """Box and Muller, cosine branch only."""
    u = uniforms(seed, 2 * n).reshape(n, 2)
    return (np.sqrt(-2 * np.log(u[:, 0])) * np.cos(2 * math.pi * u[:, 1])).astype(np.float32)


def cut(model):
    """24 rows of four expert matrices."""
    from gguf import GGUFReader, dequantize

    tensors = {t.name: t for t in GGUFReader(model).tensors}
    rows = []
    for name in ("blk.1.ffn_gate_exps", "blk.3.ffn_up_exps", "blk.4.ffn_down_exps", "blk.2.attn_kv"):
        t = tensors[name + ".weight"]
        values = dequantize(t.data, t.tensor_type).reshape(-1, 256)
        rows.append(values[:: len(values) // 24][:24])
    np.concatenate(rows).astype(np.float16).tofile(OUT / "trained.f16")


def encode(ggml, name, x, weights):
    number, block, size = FORMATS[name]
    rows, cols = x.shape
    out = np.zeros(x.size // block * size, np.uint8)
    imatrix = None if weights is None else weights.ctypes.data_as(FLOATS)
    start = time.process_time()
    n = ggml.ggml_quantize_chunk(
        number, x.ctypes.data_as(FLOATS), out.ctypes.data_as(ctypes.c_void_p), 0, rows, cols, imatrix
    )
    took = time.process_time() - start
    assert n == out.size, (name, n, out.size)
    return out, took / x.size * 1e9


def main():
    ggml = ctypes.CDLL(sys.argv[1])
    ggml.ggml_quantize_chunk.restype = ctypes.c_size_t
    ggml.ggml_quantize_chunk.argtypes = [
        ctypes.c_int, FLOATS, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, FLOATS,
    ]  # fmt: skip
    ggml.ggml_quantize_init.argtypes = [ctypes.c_int]
    if "--cut" in sys.argv:
        cut(sys.argv[sys.argv.index("--cut") + 1])
    from gguf import GGMLQuantizationType, dequantize

    matrices = {
        "gaussian": gaussians(1, 64 * 1024).reshape(64, 1024),
        "trained": np.fromfile(OUT / "trained.f16", np.float16).astype(np.float32).reshape(96, 256),
    }
    figures = []
    for matrix, x in matrices.items():
        x = np.ascontiguousarray(x)
        importance = np.exp(gaussians(2, x.shape[1]))
        for name, (number, _, _) in FORMATS.items():
            ggml.ggml_quantize_init(number)
            for weighted in (False, True):
                w = importance if weighted else np.ones(x.shape[1], np.float32)
                tries = [w if weighted else None]
                if name == "IQ2_XXS" and not weighted:
                    tries = [w, np.ascontiguousarray((x * x).sum(0))]
                best = None
                for given in tries:
                    blocks, nanos = encode(ggml, name, x, given)
                    back = dequantize(blocks, GGMLQuantizationType(number)).reshape(x.shape)
                    error = float((w * (x.astype(np.float64) - back) ** 2).mean())
                    if best is None or error < best[0]:
                        best = (error, nanos, blocks)
                row = {"matrix": matrix, "format": name, "weighted": weighted, "error": best[0]}
                row["nanoseconds_a_value"] = round(best[1], 1)
                if name == "Q8_0":
                    row["sha256"] = hashlib.sha256(best[2].tobytes()).hexdigest()
                figures.append(row)
                print(row)
    rows = ",\n".join("  " + json.dumps(row) for row in figures)
    (OUT / "figures.json").write_text(f"[\n{rows}\n]\n")


main()
