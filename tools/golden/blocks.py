"""Blocks of each quantised format with the values that PyPI's `gguf` reads from them.

    python tools/golden/blocks.py

writes, into custom-ops/tests/golden/blocks/, FORMAT.blocks.bin and FORMAT.f32.bin (see the README
there). Bytes are random; scales are finite, and the first blocks hold the awkward ones. Every
product of these formats fits an f32 exactly, so a decoder has no freedom: compare bits.
"""

from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type

OUT = Path(__file__).resolve().parents[2] / "custom-ops" / "tests" / "golden" / "blocks"

# zero, minus zero, smallest subnormal, a larger one, smallest normal, minus one, largest, its negative
AWKWARD = np.array([0x0000, 0x8000, 0x0001, 0x03FF, 0x0400, 0xBC00, 0x7BFF, 0xFBFF], np.uint16)


def scales(rng, n):
    """`n` half-precision scales: the awkward ones first, then ordinary ones of either sign."""
    ordinary = (rng.standard_normal(n) * 2.0 ** rng.integers(-12, 2, n)).astype(np.float16)
    s = ordinary.view(np.uint16)
    s[: len(AWKWARD)] = AWKWARD[:n]
    return s.view(np.uint8).reshape(n, 2)


def random_blocks(rng, kind, n):
    return rng.integers(0, 256, (n, gguf.GGML_QUANT_SIZES[kind][1]), dtype=np.uint8)


def q8_0(rng):
    b = random_blocks(rng, Type.Q8_0, 64)
    b[:, :2] = scales(rng, len(b))
    b[8, 2:], b[9, 2:] = 0x80, 0x7F  # -128, which no encoder writes, and 127
    return b


def q2_k(rng):
    b = random_blocks(rng, Type.Q2_K, 28)
    b[:, 80:82], b[:, 82:84] = scales(rng, len(b)), scales(rng, len(b))[::-1]
    b[8, :80], b[9, :80], b[10, :16], b[11, :16] = 0xFF, 0x00, 0x0F, 0xF0
    return b


def q4_k(rng):
    b = random_blocks(rng, Type.Q4_K, 28)
    b[:, 0:2], b[:, 2:4] = scales(rng, len(b)), scales(rng, len(b))[::-1]
    b[8, 4:], b[9, 4:] = 0xFF, 0x00
    # One of the twelve packed scale bytes at a time, so that a wrong shift cannot hide.
    for i in range(12):
        b[10 + i, 4:16] = 0
        b[10 + i, 4 + i] = 0xFF
    return b


def iq2_xxs(rng):
    b = random_blocks(rng, Type.IQ2_XXS, 28)
    b[:, :2] = scales(rng, len(b))
    # Blocks 8..15 visit every grid entry once and every sign pattern twice.
    b[8:16, 2:] = 0
    groups = b[8:16, 2:].reshape(64, 8)
    signs = np.concatenate((np.arange(128), rng.permutation(128))).reshape(64, 4)
    groups[:, :4] = rng.permutation(256).reshape(64, 4)
    word = sum(signs[:, k].astype(np.uint32) << np.uint32(7 * k) for k in range(4))
    word |= (np.arange(64, dtype=np.uint32) % 16) << np.uint32(28)
    groups[:, 4:] = word.astype("<u4").view(np.uint8).reshape(64, 4)
    b[8:16, 2:] = groups.reshape(8, 64)
    return b


def every_exponent(rng, exponent_bits, mantissa_bits):
    """16-bit floats: zeros, infinities, and three of each sign and exponent; no NaN."""
    top = (1 << exponent_bits) - 1
    out = [0, top << mantissa_bits]
    for e in range(top):
        m = [0, (1 << mantissa_bits) - 1, int(rng.integers(1, 1 << mantissa_bits))]
        out += [(e << mantissa_bits) | x for x in m]
    out = np.array(out, np.uint16)
    return np.concatenate((out, out | 0x8000)).view(np.uint8).reshape(-1, 2)


FORMATS = {
    "q8_0": (Type.Q8_0, q8_0),
    "q2_k": (Type.Q2_K, q2_k),
    "q4_k": (Type.Q4_K, q4_k),
    "iq2_xxs": (Type.IQ2_XXS, iq2_xxs),
    "f16": (Type.F16, lambda rng: every_exponent(rng, 5, 10)),
    "bf16": (Type.BF16, lambda rng: every_exponent(rng, 8, 7)),
}


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    for name, (kind, make) in FORMATS.items():
        blocks = np.ascontiguousarray(make(np.random.default_rng(list(name.encode()))))
        values = gguf.dequantize(blocks, kind).astype("<f4")
        assert not np.isnan(values).any(), name
        (OUT / f"{name}.blocks.bin").write_bytes(blocks.tobytes())
        (OUT / f"{name}.f32.bin").write_bytes(values.tobytes())
        print(f"{name}: {len(blocks)} blocks, {values.size} values, |max| {np.abs(values).max():.4g}")

    # The encoder of Q8_0 has one right answer too: amax / 127, halves away from zero.
    rng = np.random.default_rng(8)
    x = (rng.standard_normal((48, 32)) * 2.0 ** rng.integers(-10, 8, (48, 1))).astype(np.float32)
    x[0] = 0
    x[1] = np.arange(32) - 15.5
    x[2] = np.where(np.arange(32) == 5, -127, np.arange(32) / 2 - 8)  # exact halves, negative amax
    (OUT / "q8_0.encode.f32.bin").write_bytes(x.astype("<f4").tobytes())
    (OUT / "q8_0.encode.blocks.bin").write_bytes(gguf.quantize(x, Type.Q8_0).tobytes())

    # The tables and vectors that the format's description gives, so that these files and any
    # decoder written from it cannot drift apart together.
    b = np.array([(37 * i + 11) & 255 for i in range(256)], np.uint8)
    half = lambda v: np.float16(v).reshape(1).view(np.uint8)  # noqa: E731
    for kind, raw, first, total in (
        (Type.IQ2_XXS, [half(0.0625), b[:64]], [-0.1953125, -0.0625, -0.0625, -0.1953125], -30.3359375),
        (Type.Q2_K, [b[:80], half(0.0625), half(0.03125)], [2.0625, 0, 0.6875, 1.375], 128.6875),
        (Type.Q4_K, [half(0.0625), half(0.03125), b[:140]], [3.84375, 7.28125, -0.28125, 3.15625], 2781.5),
    ):
        values = gguf.dequantize(np.concatenate(raw).reshape(1, -1), kind).ravel()
        assert values[:4].tolist() == first and values.sum(dtype=np.float64) == total, (kind, values)


if __name__ == "__main__":
    main()
