"""The activation rounding that is part of DeepSeek V4's trained graph, for torch.

The checkpoint was trained with its attention rows rounded to FP8 and, in the channels that RoPE
turns, BF16, and with its indexer rounded to FP4.
`transformers` leaves that out; `patch_transformers` adds it, so that a model trained or measured
there sees the numbers that the engine sees.

    fp8_round_trip   e4m3 with one power-of-two scale per block: key/value rows
    bf16_round_trip  their rotated channels
    hadamard         orthonormal Walsh-Hadamard transform: indexer queries and keys
    fp4_round_trip   e2m1 with one power-of-two scale per block: the same, afterwards

`python tools/rounding.py` checks itself.
"""

import math

import torch

FP8_MAX = 448.0
FP8_FLOOR = 1e-4
FP4_MAX = 6.0
FP4_FLOOR = 6.0 * 2.0**-126
FP4_GRID = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


class _StraightThrough(torch.autograd.Function):
    """Forward: the rounded value, to the bit. Backward: as if nothing had been rounded."""

    @staticmethod
    def forward(ctx, x, rounded):
        return rounded.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad, None


def _blocks(x, block):
    width = x.shape[-1]
    if block < 1 or width % block:
        raise ValueError(f"width {width} is not a whole number of blocks of {block}")
    return x.detach().float().reshape(*x.shape[:-1], width // block, block)


def _power_of_two_scale(blocks, largest, floor):
    """2^ceil(log2(amax / largest)) per block, from the exponent field, so without log2's error."""
    amax = blocks.abs().amax(dim=-1, keepdim=True).clamp_min(floor)
    mantissa, exponent = torch.frexp(amax / largest)
    exponent = torch.where(mantissa == 0.5, exponent - 1, exponent)
    return torch.ldexp(torch.ones_like(amax), exponent)


def _give_back(x, rounded, straight_through):
    rounded = rounded.reshape(x.shape).to(x.dtype)
    return _StraightThrough.apply(x, rounded) if straight_through else rounded


def fp8_round_trip(x, block=64, straight_through=False):
    """Round the last dimension to e4m3 in blocks that share a power-of-two scale."""
    blocks = _blocks(x, block)
    scale = _power_of_two_scale(blocks, FP8_MAX, FP8_FLOOR)
    codes = (blocks / scale).clamp(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn)
    return _give_back(x, codes.float() * scale, straight_through)


def bf16_round_trip(x, straight_through=False):
    """Round to bf16, ties to even."""
    return _give_back(x, x.detach().bfloat16().float(), straight_through)


def fp4_round_trip(x, block=32, straight_through=False):
    """Round the last dimension to e2m1 in blocks that share a power-of-two scale."""
    blocks = _blocks(x, block)
    scale = _power_of_two_scale(blocks, FP4_MAX, FP4_FLOOR)
    a = (blocks / scale).abs()
    # A value half way between two codes takes the even one: hence > and >= by turns.
    code = (
        (a > 0.25).int() + (a >= 0.75) + (a > 1.25) + (a >= 1.75) + (a > 2.5) + (a >= 3.5) + (a > 5)
    )
    grid = torch.tensor(FP4_GRID, dtype=torch.float32, device=x.device)
    return _give_back(x, torch.copysign(grid[code.long()], blocks) * scale, straight_through)


def hadamard(x):
    """Walsh-Hadamard transform of the last dimension (natural order), scaled to be orthonormal.

    Linear, so autograd's own gradient is the right one.
    """
    width = x.shape[-1]
    if width & (width - 1) or not width:
        raise ValueError(f"width {width} is not a power of two")
    y, stride = x.float(), 1
    while stride < width:
        pairs = y.reshape(*x.shape[:-1], width // (2 * stride), 2, stride)
        a, b = pairs.unbind(-2)
        y = torch.stack((a + b, a - b), dim=-2).reshape(x.shape)
        stride *= 2
    return (y * width**-0.5).to(x.dtype)


def kv_block(unrotated):
    """FP8 block for a row with `unrotated` channels outside RoPE: 64, as in the real model, or,
    for the small models of tests, the largest power of two that divides it."""
    return 64 if unrotated % 64 == 0 else unrotated & -unrotated


def patch_transformers(model, straight_through=False):
    """Switch the rounding on in a `DeepseekV4ForCausalLM`; returns a function that undoes it.

    Key/value rows and main compressor rows: FP8 of the channels outside RoPE. RoPE leaves those
    alone, so rounding the output of the norm before it gives the same row as rounding after it.
    The channels that RoPE turns are rounded to BF16 after it: a row is rotated right after its
    norm, so the first rotation that follows a row's norm is that row's.
    Indexer queries and keys: Hadamard, then FP4, where they enter the scorer (after RoPE). The
    cache keeps the unrounded key there; rounding depends on the row alone, so doing it again at
    each call changes nothing.
    """
    from transformers.models.deepseek_v4 import modeling_deepseek_v4 as modeling

    config = model.config
    unrotated = config.head_dim - config.qk_rope_head_dim
    block = kv_block(unrotated)
    index_block = min(32, config.index_head_dim)

    pending = []

    def round_row(_module, _inputs, row):
        pending.append(True)
        head = fp8_round_trip(row[..., :unrotated], block, straight_through)
        return torch.cat((head, row[..., unrotated:]), dim=-1)

    def round_index(x):
        return fp4_round_trip(hadamard(x), index_block, straight_through)

    def round_scorer(_module, inputs):
        queries, keys, hidden = inputs
        return round_index(queries), round_index(keys), hidden

    plain_rotary = modeling.apply_rotary_pos_emb

    def rotary(x, *args, **kwargs):
        row = plain_rotary(x, *args, **kwargs)
        if not pending:
            return row
        pending.clear()
        tail = bf16_round_trip(row[..., unrotated:], straight_through)
        return torch.cat((row[..., :unrotated], tail), dim=-1)

    modeling.apply_rotary_pos_emb = rotary
    hooks = []
    for layer in model.model.layers:
        attention = layer.self_attn
        hooks.append(attention.kv_norm.register_forward_hook(round_row))
        compressor = attention.compressor
        if compressor is None:
            continue
        hooks.append(compressor.kv_norm.register_forward_hook(round_row))
        indexer = getattr(compressor, "indexer", None)
        if indexer is not None:
            hooks.append(indexer.scorer.register_forward_pre_hook(round_scorer))

    def undo():
        modeling.apply_rotary_pos_emb = plain_rotary
        for hook in hooks:
            hook.remove()

    return undo


def self_check():
    x = torch.tensor([3 * math.sin(0.37 * i) for i in range(64)], dtype=torch.float32)
    y = fp8_round_trip(x)
    assert y[:8].tolist() == [0, 1.125, 2, 2.75, 3, 3, 2.5, 1.625], y[:8]
    assert y.double().sum().item() == 7.52734375, y.double().sum()
    assert torch.equal(fp8_round_trip(y), y)
    assert fp8_round_trip(torch.zeros(64)).abs().sum() == 0

    # e4m3 by hand: 3 bits after the leading one, subnormal step 2^-9, ties to even.
    for value, want in [(448, 448), (17, 16), (19, 20), (2**-9, 2**-9), (3 * 2.0**-10, 2**-8)]:
        got = fp8_round_trip(torch.tensor([448.0, float(value)]), block=2)[1].item()
        assert got == want, (value, got, want)
    for amax, want in [(448.0, 1.0), (448.00003, 2.0), (447.99997, 1.0), (7.0, 2.0**-6)]:
        got = _power_of_two_scale(torch.tensor([[amax]]), FP8_MAX, FP8_FLOOR).item()
        assert got == want, (amax, got, want)

    x = torch.tensor([math.cos(0.11 * i) + 0.01 * i for i in range(128)], dtype=torch.float32)
    h = hadamard(x)
    want = torch.tensor([8.027283, -0.0173286, -0.03441859, -0.005126464])
    assert torch.allclose(h[:4], want, atol=2e-6, rtol=0), h[:4]
    assert torch.allclose(hadamard(h), x, atol=1e-5)
    scales = _power_of_two_scale(_blocks(h, 32), FP4_MAX, FP4_FLOOR).flatten().tolist()
    assert scales == [2, 1, 1, 0.5], scales

    midpoints = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 6.0])
    assert fp4_round_trip(midpoints, 8).tolist() == [0, 1, 1, 2, 2, 4, 4, 6]
    assert fp4_round_trip(-midpoints, 8).tolist() == [0, -1, -1, -2, -2, -4, -4, -6]
    assert fp4_round_trip(torch.zeros(32)).abs().sum() == 0

    assert bf16_round_trip(torch.tensor([1 + 2.0**-8, 1 + 3 * 2.0**-8])).tolist() == [1, 1 + 2.0**-6]

    for op in (fp8_round_trip, bf16_round_trip, fp4_round_trip):
        x = torch.randn(3, 64, requires_grad=True)
        y = op(x, straight_through=True)
        assert torch.equal(y, op(x))
        y.sum().backward()
        assert torch.equal(x.grad, torch.ones_like(x))
    assert [kv_block(n) for n in (448, 64, 24, 48, 96)] == [64, 64, 8, 16, 32]
    print("rounding: all checks passed")


if __name__ == "__main__":
    self_check()
