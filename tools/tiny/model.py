"""The DeepSeek V4 architecture at toy size, written for training.

Parameters carry the names of the GGUF tensors, so that the export is a plain copy. The forward
pass follows the V4 paper; `check.py` compares it with the implementation in `transformers`.

A forward takes whole sequences (`ids [B, T]`, T a multiple of 128, padded on the right): attention
over the raw window is computed block by block, attention over the compressed rows densely. There is
no cache; decoding repeats the forward, which is cheap enough at this size.
"""

import math
import pathlib
import sys
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import nn

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
from rounding import bf16_round_trip, fp4_round_trip, fp8_round_trip, hadamard  # noqa: E402


@dataclass(frozen=True)
class Shape:
    """Hyper-parameters. Those marked 'family' are the same in every V4 model."""

    vocab: int = 2688
    hidden: int = 256
    ratios: tuple = (0, 0, 4, 128, 4, 128)
    heads: int = 4
    head_dim: int = 512  # family
    rope: int = 64  # family
    q_lora: int = 64
    o_groups: int = 2
    o_lora: int = 64
    window: int = 128  # family
    experts: int = 4
    experts_used: int = 2
    expert_width: int = 256
    hash_layers: int = 2
    index_heads: int = 16
    index_head_dim: int = 128  # family
    top_k: int = 256
    streams: int = 4  # family
    sinkhorn: int = 20  # family
    route_scale: float = 1.5  # family
    clamp: float = 10.0  # family
    eps: float = 1e-6  # family
    context: int = 16384
    theta: float = 1e4  # family
    compress_theta: float = 1.6e5  # family
    yarn_factor: float = 16.0  # family
    yarn_original: int = 65536  # family
    yarn_betas: tuple = (32.0, 1.0)  # family

    def as_dict(self):
        return asdict(self)


def rms(x, eps, weight=None):
    y = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
    return y if weight is None else y * weight


def frequencies(shape, compressed):
    """Rotation per position of each channel pair: plain, or YaRN for compressed layers."""
    pairs = torch.arange(0, shape.rope, 2, dtype=torch.float64) / shape.rope
    if not compressed:
        return (shape.theta**-pairs).float()
    base = shape.compress_theta**-pairs

    def channel(turns):
        return (
            shape.rope
            * math.log(shape.yarn_original / (turns * 2 * math.pi))
            / (2 * math.log(shape.compress_theta))
        )

    low, high = (channel(b) for b in shape.yarn_betas)
    low, high = max(math.floor(low), 0), min(math.ceil(high), shape.rope - 1)
    ramp = ((torch.arange(len(pairs), dtype=torch.float64) - low) / (high - low)).clamp(0, 1)
    return (base * (1 - ramp) + base / shape.yarn_factor * ramp).float()


def rotate(x, cos, sin):
    """Rotate the last channels of x in interleaved pairs; cos, sin broadcast to [..., rope/2]."""
    width = 2 * cos.shape[-1]
    plain, turned = x[..., :-width], x[..., -width:]
    a, b = turned[..., 0::2], turned[..., 1::2]
    turned = torch.stack((a * cos - b * sin, a * sin + b * cos), dim=-1).flatten(-2)
    return torch.cat((plain, turned.to(x.dtype)), dim=-1)


def queries(q, cos, sin, eps, scale, dtype):
    """Per-head norm, rotation and softmax scale of q [B, T, heads, width]."""
    return (rotate(rms(q.float(), eps), cos[:, None], sin[:, None]) * scale).to(dtype)


def unrotated(out, cos, sin, dtype):
    """Attention's output [B, T, heads, width] turned back, as the values carried rotation."""
    return rotate(out.float(), cos[:, None], -sin[:, None]).to(dtype)


def rows(x, norm, cos, sin, eps, rope, rounding, dtype):
    """Key/value or compressed rows [B, rows, width]: norm, rotation, rounding."""
    row = rotate(rms(x.float(), eps, norm), cos, sin)
    if rounding:
        row = round_row(row, rope)
    return row.to(dtype)


def round_row(row, rope):
    """FP8 of the plain channels, BF16 of those that turned."""
    head = fp8_round_trip(row[..., :-rope], 64, straight_through=True)
    return torch.cat((head, bf16_round_trip(row[..., -rope:], straight_through=True)), dim=-1)


def round_index(v):
    return fp4_round_trip(hadamard(v), 32, straight_through=True)


def overlap(v, width, fill):
    first, second = v.split(width, dim=-1)
    return torch.cat((F.pad(first[:, :-1], (0, 0, 0, 0, 1, 0), value=fill), second), dim=2)


def pool(u, z, ape, width):
    """Windows [B, rows, ratio, series·width] pooled per channel by softmax over time."""
    u, z = u.float(), z.float() + ape
    if u.shape[-1] == 2 * width:
        u, z = overlap(u, width, 0.0), overlap(z, width, float("-inf"))
    return (u * z.softmax(2)).sum(2)


class Sinkhorn(torch.autograd.Function):
    """Rows and columns of positive [N, 4, 4] matrices normalised in turn, columns first and last.

    The backward pass is written out because autograd's own keeps four times as many tensors.
    """

    @staticmethod
    def forward(ctx, m, iterations, eps):
        kept = []
        for i in range(2 * iterations - 1):
            axis = 1 if i % 2 == 0 else 2
            scale = m.sum(axis, keepdim=True).add_(eps).reciprocal_()
            m = m * scale
            kept += [m, scale]
        ctx.save_for_backward(*kept)
        return m

    @staticmethod
    def backward(ctx, grad):
        kept = ctx.saved_tensors
        for i in reversed(range(len(kept) // 2)):
            axis = 1 if i % 2 == 0 else 2
            m, scale = kept[2 * i], kept[2 * i + 1]
            grad = (grad - (grad * m).sum(axis, keepdim=True)) * scale
        return grad, None, None


def mixing(state, fn, base, scale, eps):
    """The hyper-connection's raw mixing values m·scale + base for states [N, streams, hidden]."""
    flat = state.flatten(1)
    m = F.linear(flat, fn) * torch.rsqrt(flat.square().mean(-1, keepdim=True) + eps)
    return m * scale + base


def mixes(state, fn, base, scale, eps):
    """(pre, post, comb before Sinkhorn) of a hyper-connection; scale has one value each."""
    n = state.shape[1]
    m = mixing(state, fn, 0.0, 1.0, eps)
    pre = (m[:, :n] * scale[0] + base[:n]).sigmoid() + eps
    post = 2 * (m[:, n : 2 * n] * scale[1] + base[n : 2 * n]).sigmoid()
    comb = m[:, 2 * n :] * scale[2] + base[2 * n :]
    return pre, post, comb.view(-1, n, n).softmax(-1) + eps


def collapse(state, pre, norm, eps):
    return rms((pre.unsqueeze(-1) * state).sum(1), eps, norm)


def expand(state, y, post, comb):
    mixed = (comb.unsqueeze(-1) * state.unsqueeze(2)).sum(1)
    return mixed + post.unsqueeze(-1) * y.unsqueeze(1)


def attention_weights(raw, comp, sink, raw_mask, comp_mask):
    """Softmax over raw and compressed scores and the sink, which has a weight but no value.

    raw [B, blocks, 128, heads, 256], comp [B, T, heads, rows]; returns both parts of the weights.
    """
    raw = raw.float().masked_fill(~raw_mask, float("-inf"))
    top = torch.maximum(raw.amax(-1, keepdim=True), sink)
    if comp is not None:
        comp = comp.float().masked_fill(~comp_mask, float("-inf")).view(*raw.shape[:-1], -1)
        top = torch.maximum(top, comp.amax(-1, keepdim=True))
    top = top.detach()
    raw = (raw - top).exp()
    total = raw.sum(-1, keepdim=True) + (sink - top).exp()
    if comp is None:
        return raw / total, None
    comp = (comp - top).exp()
    total = total + comp.sum(-1, keepdim=True)
    return raw / total, comp / total


def weighted_relu(scores, weights):
    return (scores.float().relu() * weights.unsqueeze(-1)).sum(2)


def gated(gate, up, route, clamp):
    """SwiGLU with V4's clamps; route [N, experts] scales each expert's part of its columns."""
    h = F.silu(gate.float().clamp(max=clamp)) * up.float().clamp(-clamp, clamp)
    return (h.view(*route.shape, -1) * route.unsqueeze(-1)).flatten(1).to(gate.dtype)


class HyperConnection(nn.Module):
    def __init__(self, shape):
        super().__init__()
        n = shape.streams
        self.shape = shape
        self.fn = nn.Parameter(torch.randn(2 * n + n * n, n * shape.hidden) * 0.02)
        # Streams start identical: only random bases let them grow apart.
        base = torch.cat((-1.1 + 0.5 * torch.randn(n), 0.7 * torch.randn(n)))
        self.base = nn.Parameter(
            torch.cat((base, (3 * torch.eye(n) + 0.5 * torch.randn(n, n)).flatten()))
        )
        self.scale = nn.Parameter(torch.full((3,), 0.2))

    def open(self, state, norm):
        """The sub-layer's input and what `close` needs, from states [N, streams, hidden]."""
        eps = self.shape.eps
        with torch.autocast(state.device.type, enabled=False):
            pre, post, comb = fast("mixes", mixes)(state, self.fn, self.base, self.scale, eps)
            comb = fast("sinkhorn", Sinkhorn.apply)(comb, self.shape.sinkhorn, eps)
            return fast("collapse", collapse)(state, pre, norm, eps), post, comb

    def close(self, state, y, post, comb):
        return fast("expand", expand)(state, y.float(), post, comb)


class Compressor(nn.Module):
    """Pools windows of `ratio` tokens into one row; at ratio 4 windows overlap by one."""

    def __init__(self, shape, ratio, width):
        super().__init__()
        self.shape, self.ratio, self.width = shape, ratio, width
        self.series = 2 if ratio == 4 else 1
        self.kv = linear(shape.hidden, self.series * width)
        self.gate = linear(shape.hidden, self.series * width)
        self.ape = nn.Parameter(torch.randn(ratio, self.series * width) * 0.5)
        self.norm = nn.Parameter(torch.ones(width))

    def forward(self, x):
        """[B, T, hidden] -> pooled values [B, T // ratio, width], before norm and rotation."""
        windows = (x.shape[0], x.shape[1] // self.ratio, self.ratio, -1)
        u, z = (F.linear(x, w).view(windows) for w in (self.kv, self.gate))
        return fast(f"pool {self.ratio}", pool)(u, z, self.ape, self.width)


class Indexer(nn.Module):
    """Scores the compressed rows for each query; the best `top_k` are attended."""

    def __init__(self, shape):
        super().__init__()
        self.shape = shape
        self.q_b = linear(shape.q_lora, shape.index_heads * shape.index_head_dim)
        self.proj = linear(shape.hidden, shape.index_heads)
        self.compressor = Compressor(shape, 4, shape.index_head_dim)

    def forward(self, x, qr, cos, sin, rounding):
        s = self.shape
        b, t, _ = x.shape
        q = F.linear(qr, self.q_b).float().view(b, t, s.index_heads, s.index_head_dim)
        q = fast("rotate", rotate)(q, cos[:, None], sin[:, None])
        pooled = self.compressor(x)
        at = slice(0, t, 4)
        keys = rows(pooled, self.compressor.norm, cos[at], sin[at], s.eps, s.rope, False, q.dtype)
        if rounding:
            q, keys = (
                fast("index rounding", round_index)(v.flatten(0, -2)).view(v.shape)
                for v in (q, keys)
            )
        weights = F.linear(x, self.proj).float() * (s.index_head_dim * s.index_heads) ** -0.5
        scores = q.flatten(1, 2) @ keys.transpose(1, 2)
        return fast("weighted_relu", weighted_relu)(scores.view(b, t, s.index_heads, -1), weights)


class Attention(nn.Module):
    def __init__(self, shape, ratio):
        super().__init__()
        s = self.shape = shape
        self.ratio = ratio
        self.q_a = linear(s.hidden, s.q_lora)
        self.q_a_norm = nn.Parameter(torch.ones(s.q_lora))
        self.q_b = linear(s.q_lora, s.heads * s.head_dim)
        self.kv = linear(s.hidden, s.head_dim)
        self.kv_a_norm = nn.Parameter(torch.ones(s.head_dim))
        self.sinks = nn.Parameter(torch.randn(s.heads) * 0.5)
        group = s.heads // s.o_groups * s.head_dim
        self.output_a = linear(group, s.o_groups * s.o_lora)
        self.output_b = linear(s.o_groups * s.o_lora, s.hidden, 0.3)
        self.compressor = Compressor(s, ratio, s.head_dim) if ratio else None
        self.indexer = Indexer(s) if ratio == 4 else None

    def forward(self, x, cos, sin, mode):
        """x [B, T, hidden] -> the same; the second result is the indexer's own loss, or None."""
        s = self.shape
        b, t, _ = x.shape
        blocks = t // s.window
        qr = rms(F.linear(x, self.q_a).float(), s.eps, self.q_a_norm)
        q = F.linear(qr, self.q_b).view(b, t, s.heads, s.head_dim)
        dtype = torch.bfloat16 if mode.bf16 else torch.float32
        q = fast("queries", queries)(q, cos, sin, s.eps, s.head_dim**-0.5, dtype)
        settings = (s.eps, s.rope, mode.rounding, dtype)
        kv = fast("rows", rows)(F.linear(x, self.kv), self.kv_a_norm, cos, sin, *settings)

        # Each block of 128 queries sees its own block of rows and the one before.
        near = kv.view(b, blocks, s.window, -1)
        near = torch.cat((F.pad(near[:, :-1], (0, 0, 0, 0, 1, 0)), near), dim=2)
        scores = q.view(b, blocks, -1, s.head_dim) @ near.transpose(2, 3)
        scores = scores.view(b, blocks, s.window, s.heads, 2 * s.window)
        at = torch.arange(s.window, device=x.device)
        back = at[:, None] + s.window - torch.arange(2 * s.window, device=x.device)
        raw_mask = ((back >= 0) & (back < s.window)).expand(blocks, -1, -1).clone()
        raw_mask[0, :, : s.window] = False
        raw_mask = raw_mask[None, :, :, None]

        far, far_scores, seen, picks, picked = None, None, None, None, None
        if self.ratio:
            at_rows = [v[:: self.ratio].contiguous() for v in (cos, sin)]
            far = fast("rows", rows)(self.compressor(x), self.compressor.norm, *at_rows, *settings)
            n = far.shape[1]
            limit = (torch.arange(t, device=x.device) + 1) // self.ratio
            seen = (torch.arange(n, device=x.device) < limit[:, None])[None, :, None]
            if self.indexer is not None and (mode.index_loss or (mode.sparse and n > s.top_k)):
                picks = self.indexer(x.detach(), qr.detach(), cos, sin, mode.rounding)
                picks = picks.masked_fill(~seen[:, :, 0], float("-inf"))
                if mode.sparse and n > s.top_k:
                    best = picks.detach().topk(s.top_k, dim=-1).indices
                    picked = torch.zeros_like(picks, dtype=torch.bool).scatter_(2, best, True)
                    picked = (picked & seen[:, :, 0]).unsqueeze(2)
            far_scores = (q.flatten(1, 2) @ far.transpose(1, 2)).view(b, t, s.heads, n)

        sink = self.sinks[:, None]
        w_near, w_far = fast("attention_weights", attention_weights)(
            scores, far_scores, sink, raw_mask, seen if picked is None else picked
        )
        out = (w_near.to(dtype).view(b, blocks, -1, 2 * s.window) @ near).view(
            b, t, s.heads, s.head_dim
        )
        if w_far is not None:
            out = out + (w_far.to(dtype).view(b, t * s.heads, -1) @ far).view(out.shape)
        out = fast("unrotated", unrotated)(out, cos, sin, dtype).view(b, t, s.o_groups, -1)
        weight = self.output_a.view(s.o_groups, s.o_lora, -1)
        low = torch.einsum("btgi,goi->btgo", out, weight.to(dtype)).flatten(2)
        index_loss = None
        if mode.index_loss and picks is not None:
            index_loss = index_divergence(picks, w_far.view(b, t, s.heads, -1), mode.real)
        return F.linear(low.to(x.dtype), self.output_b), index_loss


def index_divergence(picks, weights, real):
    """Cross entropy of the indexer's distribution against the attention's over compressed rows."""
    mass = weights.detach().float().sum(2)
    total = mass.sum(-1, keepdim=True)
    logp = picks.log_softmax(-1).masked_fill(mass == 0, 0.0)
    per_query = -(mass / total.clamp_min(1e-9) * logp).sum(-1)
    use = real & (total[..., 0] > 1e-3) & torch.isfinite(per_query)
    return torch.where(use, per_query, 0.0).sum() / use.sum().clamp_min(1)


class Experts(nn.Module):
    """Router, routed experts and the shared expert.

    With so few experts all of them are computed for every token and weighted, by zero where not
    chosen: the same numbers as a gather, in three large products.
    """

    def __init__(self, shape, hashed):
        super().__init__()
        s = self.shape = shape
        e, w, h = s.experts, s.expert_width, s.hidden
        self.gate_inp = nn.Parameter(torch.randn(e, h) * h**-0.5)
        self.gate_exps = nn.Parameter(torch.randn(e, w, h) * h**-0.5)
        self.up_exps = nn.Parameter(torch.randn(e, w, h) * h**-0.5)
        self.down_exps = nn.Parameter(torch.randn(e, h, w) * 0.3 * w**-0.5)
        self.gate_shexp = linear(h, w)
        self.up_shexp = linear(h, w)
        self.down_shexp = linear(w, h, 0.3)
        if hashed:
            self.register_buffer("tid2eid", torch.zeros(s.vocab, s.experts_used, dtype=torch.long))
        else:
            self.register_buffer("bias", torch.randn(e) * 0.02)
        self.load = None

    def route(self, x, ids, real):
        """Weights [N, experts], zero for experts not chosen; notes the load of real tokens."""
        s = self.shape
        with torch.autocast(x.device.type, enabled=False):
            p = F.softplus(F.linear(x.float(), self.gate_inp)).sqrt()
        if hasattr(self, "tid2eid"):
            chosen = self.tid2eid[ids]
        else:
            chosen = (p.detach() + self.bias).topk(s.experts_used, dim=-1).indices
        keep = torch.zeros_like(p).scatter_(1, chosen, 1.0)
        if real is not None:
            self.load = real.float() @ keep / real.sum()
        p = p * keep
        return p / p.sum(-1, keepdim=True) * s.route_scale

    def forward(self, x, ids, mode):
        s = self.shape
        real = None if mode.real is None else mode.real.flatten()
        route = self.route(x, ids, real)
        route = torch.cat((route, torch.ones_like(route[:, :1])), dim=1)
        gate = torch.cat((self.gate_exps.flatten(0, 1), self.gate_shexp))
        up = torch.cat((self.up_exps.flatten(0, 1), self.up_shexp))
        down = torch.cat((self.down_exps.permute(0, 2, 1).flatten(0, 1), self.down_shexp.t()))
        h = fast("gated", gated)(F.linear(x, gate), F.linear(x, up), route, s.clamp)
        return F.linear(h, down.t())


class Layer(nn.Module):
    def __init__(self, shape, ratio, hashed):
        super().__init__()
        self.hc_attn, self.hc_ffn = HyperConnection(shape), HyperConnection(shape)
        self.attn_norm = nn.Parameter(torch.ones(shape.hidden))
        self.ffn_norm = nn.Parameter(torch.ones(shape.hidden))
        self.attn = Attention(shape, ratio)
        self.ffn = Experts(shape, hashed)

    def forward(self, state, ids, cos, sin, mode):
        b, t = ids.shape
        x, post, comb = self.hc_attn.open(state, self.attn_norm)
        y, index_loss = self.attn(x.view(b, t, -1), cos, sin, mode)
        state = self.hc_attn.close(state, y.flatten(0, 1), post, comb)
        x, post, comb = self.hc_ffn.open(state, self.ffn_norm)
        return self.hc_ffn.close(state, self.ffn(x, ids.flatten(), mode), post, comb), index_loss


@dataclass
class Mode:
    """How to run: FP8/FP4 rounding, top-k selection, bf16 products, the indexer's loss."""

    rounding: bool = True
    sparse: bool = True
    bf16: bool = False
    index_loss: bool = False
    real: torch.Tensor | None = None  # [B, T]: positions that are not padding


class TinyV4(nn.Module):
    def __init__(self, shape):
        super().__init__()
        s = self.shape = shape
        self.token_embd = nn.Parameter(torch.randn(s.vocab, s.hidden) * 0.5)
        self.blk = nn.ModuleList(
            Layer(s, ratio, i < s.hash_layers) for i, ratio in enumerate(s.ratios)
        )
        self.output_hc_fn = nn.Parameter(torch.randn(s.streams, s.streams * s.hidden) * 0.02)
        self.output_hc_base = nn.Parameter(-1.1 + 0.5 * torch.randn(s.streams))
        self.output_hc_scale = nn.Parameter(torch.full((1,), 0.2))
        self.output_norm = nn.Parameter(torch.ones(s.hidden))
        self.output = linear(s.hidden, s.vocab, 0.3)
        for kind in (False, True):
            angle = torch.arange(s.context).float()[:, None] * frequencies(s, kind)
            self.register_buffer(f"cos{int(kind)}", angle.cos(), persistent=False)
            self.register_buffer(f"sin{int(kind)}", angle.sin(), persistent=False)

    def forward(self, ids, mode, at=None):
        """Logits [B, T, vocab], or [len(at), vocab] at flat positions `at`; and indexer losses."""
        s = self.shape
        b, t = ids.shape
        if t % s.window:
            raise ValueError(f"{t} tokens: pad to a multiple of {s.window}")
        x = F.embedding(ids.flatten(), self.token_embd)
        state = x.unsqueeze(1).expand(-1, s.streams, -1).contiguous()
        losses = []
        for layer, ratio in zip(self.blk, s.ratios):
            k = int(ratio > 0)
            cos, sin = getattr(self, f"cos{k}")[:t], getattr(self, f"sin{k}")[:t]
            state, loss = layer(state, ids, cos, sin, mode)
            if loss is not None:
                losses.append(loss)
        if at is not None:
            state = state[at]
        with torch.autocast(state.device.type, enabled=False):
            m = mixing(state, self.output_hc_fn, self.output_hc_base, self.output_hc_scale, s.eps)
            x = collapse(state, m.sigmoid() + s.eps, self.output_norm, s.eps)
        logits = F.linear(x, self.output).float()
        return (logits if at is not None else logits.view(b, t, -1)), losses


def linear(inputs, outputs, gain=1.0):
    return nn.Parameter(torch.randn(outputs, inputs) * gain * inputs**-0.5)


_compiled = {}
_compile = False


def compile_hot_parts(on):
    """Let `torch.compile` fuse the element-wise functions (shapes must then stay few)."""
    global _compile
    _compile = on
    torch._dynamo.config.recompile_limit = 64


def fast(name, function):
    if not _compile:
        return function
    if name not in _compiled:
        _compiled[name] = torch.compile(function, dynamic=None)
    return _compiled[name]


def spread_hash_table(model, counts):
    """Give tokens expert pairs in turn, by falling frequency, so that experts see equal load."""
    s = model.shape
    pairs = [(i, j) for i in range(s.experts) for j in range(s.experts) if i != j]
    order = sorted(range(s.vocab), key=lambda i: (-counts[i], i))
    for number, layer in enumerate(model.blk[: s.hash_layers]):
        for rank, token in enumerate(order):
            layer.ffn.tid2eid[token] = torch.tensor(pairs[(rank * (2 * number + 5)) % len(pairs)])
