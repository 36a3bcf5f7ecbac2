"""Small random DeepSeek V4 models with the logits that `transformers` computes for them.

    python tools/golden/model.py [NAME ...]

writes, for each name in CONFIGS, into tests/golden/model/:

    NAME.gguf         weights (F16, small vectors F32) and metadata, as the engine reads them
    NAME.tokens.txt   token ids, separated by white space
    NAME.logits.npy   f32 [tokens, vocab]: logits after each token, about unit variance

Every number a bug could hide behind is random: sinks, window biases, norms, hyper-connection
bases, router biases, hash tables. A seed is kept only if no choice of the model (expert, row of
the indexer, rounding of a row) is so close that another order of summation could turn it; the
margins are printed. Before a file stays, the model is rebuilt from the GGUF alone and has to give
the same logits, and token-by-token decoding has to agree with the single pass.
"""

import sys
from pathlib import Path

import gguf
import numpy as np
import torch
from transformers import DeepseekV4Config, DeepseekV4ForCausalLM
from transformers.cache_utils import DynamicCache

HERE = Path(__file__).resolve()
sys.path.insert(0, str(HERE.parents[1]))
import rounding  # noqa: E402

OUT = HERE.parents[2] / "tests" / "golden" / "model"
ARCH = "deepseek4"
SLIDING, SPARSE, HEAVY = (
    "sliding_attention",
    "compressed_sparse_attention",
    "heavily_compressed_attention",
)

# What most of them share; each entry of CONFIGS says what differs.
BASE = dict(
    vocab=48, hidden=24, experts=6, experts_used=2, expert_width=16, hash_layers=0,
    heads=4, head_dim=32, rope=8, q_lora=8, o_groups=2, o_lora=4,
    index_heads=16, index_dim=16, index_topk=3, window=8,
    theta=10000.0, compress_theta=160000.0, factor=16.0, original=64, betas=(32.0, 1.0),
    swiglu=1.5, route_scale=1.5, sinkhorn=20, hc_eps=1e-6, rms_eps=1e-6,
    rounding=False,
)  # fmt: skip

CONFIGS = {
    # window alone; nothing hashed
    "sliding": dict(ratios=(0, 0), tokens=40),
    # indexer behind one plain layer, first layer hashed
    "sparse": dict(ratios=(0, 4), tokens=63, hash_layers=1, o_groups=1, vocab=96, q_lora=16),
    # all-visible compressed rows, every layer hashed
    "heavy8": dict(ratios=(0, 8), tokens=50, hash_layers=2, hidden=40, heads=6,
                   rope=16, original=256, experts=8, experts_used=3, expert_width=8),
    # another ratio, compressed from the first layer on; epsilons that cannot be swapped unseen
    "heavy16": dict(ratios=(16, 16), tokens=70, hash_layers=1, window=16, heads=8, o_groups=4,
                    head_dim=24, theta=5000.0, compress_theta=40000.0, factor=8.0,
                    hc_eps=1e-3, rms_eps=1e-4, sinkhorn=5, route_scale=2.5),
    # the real model's order of layers, in small
    "mixed": dict(ratios=(0, 0, 4, 8, 4, 8), tokens=61, hash_layers=3, hidden=16, experts=4,
                  heads=2, o_lora=8, index_dim=8, index_heads=20),
    # several windows long; wider rotation with a ramp that covers several pairs
    "long": dict(ratios=(0, 4, 16), tokens=100, window=16, rope=16, original=1024, betas=(16.0, 2.0),
                 index_topk=5, index_dim=32, experts=5, experts_used=1, o_lora=8),
    # every layer sparse, one row kept, nothing clamped
    "sparse_only": dict(ratios=(4, 4), tokens=48, heads=8, head_dim=16, o_groups=4,
                        index_topk=1, index_dim=32, index_heads=24, hidden=32, swiglu=10.0),
    # the rounding of the trained graph switched on: one FP8 block a row, two FP4 blocks a key
    "rounded": dict(ratios=(0, 4, 8), tokens=45, hash_layers=1, hidden=16, head_dim=96, rope=32,
                    heads=2, index_dim=64, original=512, rounding=True),
    # two FP8 blocks a row, four FP4 blocks a key
    "rounded_wide": dict(ratios=(4, 8), tokens=70, hidden=16, head_dim=160, rope=32, heads=2,
                         index_dim=128, window=16, index_topk=4, original=512, rounding=True),
}  # fmt: skip


def torch_config(c):
    """The `transformers` configuration of one entry."""
    heavy = [r for r in c["ratios"] if r not in (0, 4)]
    factor = c["rope"] / c["head_dim"]
    return DeepseekV4Config(
        vocab_size=c["vocab"],
        hidden_size=c["hidden"],
        moe_intermediate_size=c["expert_width"],
        num_hidden_layers=len(c["ratios"]),
        num_attention_heads=c["heads"],
        num_key_value_heads=1,
        head_dim=c["head_dim"],
        qk_rope_head_dim=c["rope"],
        q_lora_rank=c["q_lora"],
        o_groups=c["o_groups"],
        o_lora_rank=c["o_lora"],
        index_n_heads=c["index_heads"],
        index_head_dim=c["index_dim"],
        index_topk=c["index_topk"],
        sliding_window=c["window"],
        compress_rates={SPARSE: 4, HEAVY: heavy[0] if heavy else 128},
        layer_types=[{0: SLIDING, 4: SPARSE}.get(r, HEAVY) for r in c["ratios"]],
        mlp_layer_types=["hash_moe" if i < c["hash_layers"] else "moe" for i in range(len(c["ratios"]))],
        n_routed_experts=c["experts"],
        num_experts_per_tok=c["experts_used"],
        n_shared_experts=1,
        routed_scaling_factor=c["route_scale"],
        swiglu_limit=c["swiglu"],
        hc_mult=4,
        hc_sinkhorn_iters=c["sinkhorn"],
        hc_eps=c["hc_eps"],
        rms_norm_eps=c["rms_eps"],
        max_position_embeddings=int(c["factor"] * c["original"]),
        rope_parameters={
            "main": {
                "rope_type": "default",
                "rope_theta": c["theta"],
                "partial_rotary_factor": factor,
            },
            "compress": {
                "rope_type": "yarn",
                "rope_theta": c["compress_theta"],
                "partial_rotary_factor": factor,
                "factor": c["factor"],
                "original_max_position_embeddings": c["original"],
                "beta_fast": c["betas"][0],
                "beta_slow": c["betas"][1],
                "attention_factor": 1.0,
            },
        },
        attn_implementation="eager",
        pad_token_id=None,
    )


def build(c):
    config = torch_config(c)
    config._experts_implementation = "eager"
    model = DeepseekV4ForCausalLM(config).float().eval()
    assert config.qk_rope_head_dim == c["rope"], config.qk_rope_head_dim
    if c["rounding"]:
        rounding.patch_transformers(model)
    return model


def is_vector(name):
    """Kept as F32 in the file; everything else is stored, and so drawn, as F16."""
    return name.endswith((".base", ".scale", "hc_base", "hc_scale", "norm.weight", "sinks")) or (
        name.endswith(("layernorm.weight", "e_score_correction_bias"))
    )


@torch.no_grad()
def randomise(model, c, seed):
    g = torch.Generator().manual_seed(seed)

    def normal(t, std, mean=0.0):
        return torch.randn(t.shape, generator=g) * std + mean

    for name, t in model.state_dict().items():
        if name.endswith("tid2eid"):
            order = torch.rand(c["vocab"], c["experts"], generator=g).argsort(dim=-1)
            t.copy_(order[:, : c["experts_used"]])
            continue
        if name.endswith("norm.weight"):
            value = normal(t, 0.25, 1.0)
        elif name.endswith("sinks"):
            value = normal(t, 1.0)
        elif name.endswith(("base", "position_bias")):
            value = normal(t, 0.7)
        elif name.endswith("scale"):
            value = torch.rand(t.shape, generator=g) * 0.8 + 0.4
        elif name.endswith("e_score_correction_bias"):
            value = normal(t, 0.3)
        elif name.endswith("embed_tokens.weight"):
            value = normal(t, 1.0)
        else:
            value = normal(t, 1.3 * t.shape[-1] ** -0.5)
        t.copy_(value if is_vector(name) else value.half().float())
    return torch.randint(0, c["vocab"], (1, c["tokens"]), generator=g)


@torch.no_grad()
def logits_of(model, ids):
    return model(ids, use_cache=False).logits[0]


@torch.no_grad()
def in_pieces(model, ids, cuts):
    cache, out, start = DynamicCache(config=model.config), [], 0
    for end in [*cuts, ids.shape[1]]:
        out.append(model(ids[:, start:end], past_key_values=cache, use_cache=True).logits[0])
        start = end
    return torch.cat(out)


class Margins:
    """How near the model came to another choice, over one forward pass."""

    def __init__(self, model, c):
        self.smallest = {kind: float("inf") for kind in ("expert", "row", "fp8", "bf16")}
        self.hooks = []
        self.bf16_round_trip = rounding.bf16_round_trip
        rounding.bf16_round_trip = self.bf16
        for layer in model.model.layers:
            if not layer.mlp.is_hash:
                gate = layer.mlp.gate
                self.hooks.append(gate.register_forward_hook(self.expert(gate)))
            compressor = layer.self_attn.compressor
            indexer = getattr(compressor, "indexer", None)
            if indexer is not None:
                self.hooks.append(indexer.scorer.register_forward_hook(self.row(c["index_topk"])))
            if c["rounding"]:
                for norm in [layer.self_attn.kv_norm] + ([compressor.kv_norm] if compressor else []):
                    self.hooks.append(norm.register_forward_hook(self.fp8(c), prepend=True))

    def note(self, kind, values):
        if values.numel():
            self.smallest[kind] = min(self.smallest[kind], values.min().item())

    def expert(self, gate):
        def hook(_module, _inputs, output):
            s = (gate.score_fn(output[0]) + gate.e_score_correction_bias).sort(-1, descending=True)[0]
            self.note("expert", s[:, gate.top_k - 1] - s[:, gate.top_k])

        return hook

    def row(self, top_k):
        def hook(_module, _inputs, scores):
            for t, s in enumerate(scores[0]):
                s = s[: (t + 1) // 4].sort(descending=True)[0]
                self.note("row", s[top_k - 1 : top_k] - s[top_k : top_k + 1] if len(s) > top_k else s[:0])

        return hook

    def fp8(self, c):
        unrotated = c["head_dim"] - c["rope"]
        block = rounding.kv_block(unrotated)

        def hook(_module, _inputs, row):
            x = row[..., :unrotated]
            # Relative distance to the nearest value that rounds another way; by bisection over
            # widening steps, so that it needs no knowledge of the grid.
            here = rounding.fp8_round_trip(x, block)
            for step in (3e-7, 1e-6, 3e-6, 1e-5, 3e-5, 1e-4):
                if any(
                    (rounding.fp8_round_trip(x * (1 + s), block) != here).any() for s in (step, -step)
                ):
                    self.note("fp8", torch.tensor([step]))
                    return

        return hook

    def bf16(self, x, straight_through=False):
        # A flip moves a value by 2^-8 of itself at most: it matters where that is not tiny.
        large = x[x.abs() > 2.0**-6]
        half_way = (large.view(torch.int32) & 0xFFFF) - 0x8000
        self.note("bf16", half_way.abs() * 2.0**-23)
        return self.bf16_round_trip(x, straight_through)

    def done(self):
        rounding.bf16_round_trip = self.bf16_round_trip
        for hook in self.hooks:
            hook.remove()
        return self.smallest


def margins(model, c, ids):
    m = Margins(model, c)
    logits = logits_of(model, ids)
    return m.done(), logits


def draw(c):
    """A model whose choices are clear, its ids and its logits."""
    model = build(c)
    need = {"expert": 5e-4, "row": 2e-3, "fp8": 1e-5, "bf16": 1e-6}
    for seed in range(4000):
        ids = randomise(model, c, seed)
        found, logits = margins(model, c, ids)
        if all(found[k] >= need[k] for k in need):
            break
    else:
        raise SystemExit("no seed is clear enough")
    with torch.no_grad():
        head = model.lm_head.weight
        head.copy_((head / logits.std()).half().float())
    return model, ids, seed, found


def names(c):
    """(GGUF name, transformers name, part) for every tensor; part cuts gate from up."""
    yield "token_embd.weight", "model.embed_tokens.weight", None
    for i, ratio in enumerate(c["ratios"]):
        b, m = f"blk.{i}.", f"model.layers.{i}."
        a = m + "self_attn."
        for ours, theirs in (("hc_attn", "attn_hc"), ("hc_ffn", "ffn_hc")):
            for leaf in ("fn", "base", "scale"):
                yield f"{b}{ours}_{leaf}.weight", f"{m}{theirs}.{leaf}", None
        yield b + "attn_norm.weight", m + "input_layernorm.weight", None
        yield b + "ffn_norm.weight", m + "post_attention_layernorm.weight", None
        for ours, theirs in (
            ("attn_q_a", "q_a_proj"), ("attn_q_a_norm", "q_a_norm"), ("attn_q_b", "q_b_proj"),
            ("attn_kv", "kv_proj"), ("attn_kv_a_norm", "kv_norm"),
            ("attn_output_a", "o_a_proj"), ("attn_output_b", "o_b_proj"),
        ):  # fmt: skip
            yield f"{b}{ours}.weight", f"{a}{theirs}.weight", None
        yield b + "attn_sinks.weight", a + "sinks", None
        compressors = [("attn_compressor", a + "compressor.")] if ratio else []
        if ratio == 4:
            compressors.append(("indexer_compressor", a + "compressor.indexer."))
            yield b + "indexer.attn_q_b.weight", a + "compressor.indexer.q_b_proj.weight", None
            yield b + "indexer.proj.weight", a + "compressor.indexer.scorer.weights_proj.weight", None
        for ours, theirs in compressors:
            yield f"{b}{ours}_kv.weight", theirs + "kv_proj.weight", None
            yield f"{b}{ours}_gate.weight", theirs + "gate_proj.weight", None
            yield f"{b}{ours}_ape.weight", theirs + "position_bias", None
            yield f"{b}{ours}_norm.weight", theirs + "kv_norm.weight", None
        yield b + "ffn_gate_inp.weight", m + "mlp.gate.weight", None
        if i < c["hash_layers"]:
            yield b + "ffn_gate_tid2eid.weight", m + "mlp.gate.tid2eid", None
        else:
            yield b + "exp_probs_b.bias", m + "mlp.gate.e_score_correction_bias", None
        yield b + "ffn_gate_exps.weight", m + "mlp.experts.gate_up_proj", 0
        yield b + "ffn_up_exps.weight", m + "mlp.experts.gate_up_proj", 1
        yield b + "ffn_down_exps.weight", m + "mlp.experts.down_proj", None
        for leaf in ("gate", "up", "down"):
            yield f"{b}ffn_{leaf}_shexp.weight", f"{m}mlp.shared_experts.{leaf}_proj.weight", None
    for leaf in ("fn", "base", "scale"):
        yield f"output_hc_{leaf}.weight", f"model.hc_head.hc_{leaf}", None
    yield "output_norm.weight", "model.norm.weight", None
    yield "output.weight", "lm_head.weight", None


def write_gguf(path, model, c):
    w = gguf.GGUFWriter(path, ARCH)
    w.add_name(f"golden {path.stem}")
    for key, value in {
        "vocab_size": c["vocab"],
        "context_length": int(c["factor"] * c["original"]),
        "embedding_length": c["hidden"],
        "block_count": len(c["ratios"]),
        "attention.head_count": c["heads"],
        "attention.head_count_kv": 1,
        "attention.key_length": c["head_dim"],
        "attention.value_length": c["head_dim"],
        "rope.dimension_count": c["rope"],
        "attention.q_lora_rank": c["q_lora"],
        "attention.output_lora_rank": c["o_lora"],
        "attention.output_group_count": c["o_groups"],
        "attention.sliding_window": c["window"],
        "attention.indexer.head_count": c["index_heads"],
        "attention.indexer.key_length": c["index_dim"],
        "attention.indexer.top_k": c["index_topk"],
        "expert_count": c["experts"],
        "expert_used_count": c["experts_used"],
        "expert_feed_forward_length": c["expert_width"],
        "expert_shared_count": 1,
        "expert_group_count": 0,
        "expert_group_used_count": 0,
        "expert_gating_func": 4,
        "hash_layer_count": c["hash_layers"],
        "hyper_connection.count": 4,
        "hyper_connection.sinkhorn_iterations": c["sinkhorn"],
        "nextn_predict_layers": 0,
        "rope.scaling.original_context_length": c["original"],
    }.items():
        w.add_uint32(f"{ARCH}.{key}", value)
    for key, value in {
        "attention.layer_norm_rms_epsilon": c["rms_eps"],
        "hyper_connection.epsilon": c["hc_eps"],
        "expert_weights_scale": c["route_scale"],
        "rope.freq_base": c["theta"],
        "attention.compress_rope_freq_base": c["compress_theta"],
        "rope.scaling.factor": c["factor"],
        "rope.scaling.yarn_beta_fast": c["betas"][0],
        "rope.scaling.yarn_beta_slow": c["betas"][1],
    }.items():
        w.add_float32(f"{ARCH}.{key}", value)
    w.add_string(f"{ARCH}.rope.scaling.type", "yarn")
    w.add_bool(f"{ARCH}.expert_weights_norm", True)
    w.add_array(f"{ARCH}.attention.compress_ratios", list(c["ratios"]))
    w.add_array(f"{ARCH}.swiglu_clamp_exp", [float(c["swiglu"])] * len(c["ratios"]))
    if not c["rounding"]:
        w.add_bool(f"{ARCH}.activation_rounding", False)

    state, used = model.state_dict(), set()
    for ours, theirs, part in names(c):
        t = state[theirs]
        used.add(theirs)
        if part is not None:
            t = t.chunk(2, dim=1)[part]
        kind = np.float32 if is_vector(theirs) else np.float16
        if theirs.endswith("tid2eid"):
            kind = np.int32
        w.add_tensor(ours, np.ascontiguousarray(t.numpy()).astype(kind))
    assert used == set(state), set(state) - used
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def read_gguf(path):
    """The model again, from the file alone."""
    r = gguf.GGUFReader(path)

    def get(key, default=None):
        field = r.get_field(f"{ARCH}.{key}")
        return default if field is None else field.contents()

    swiglu = get("swiglu_clamp_exp")
    c = dict(
        ratios=tuple(get("attention.compress_ratios")), vocab=get("vocab_size"),
        hidden=get("embedding_length"), experts=get("expert_count"),
        experts_used=get("expert_used_count"), expert_width=get("expert_feed_forward_length"),
        hash_layers=get("hash_layer_count"), heads=get("attention.head_count"),
        head_dim=get("attention.key_length"), rope=get("rope.dimension_count"),
        q_lora=get("attention.q_lora_rank"), o_groups=get("attention.output_group_count"),
        o_lora=get("attention.output_lora_rank"), window=get("attention.sliding_window"),
        index_heads=get("attention.indexer.head_count"),
        index_dim=get("attention.indexer.key_length"), index_topk=get("attention.indexer.top_k"),
        theta=get("rope.freq_base"), compress_theta=get("attention.compress_rope_freq_base"),
        factor=get("rope.scaling.factor"), original=get("rope.scaling.original_context_length"),
        betas=(get("rope.scaling.yarn_beta_fast"), get("rope.scaling.yarn_beta_slow")),
        swiglu=swiglu[0], route_scale=get("expert_weights_scale"),
        sinkhorn=get("hyper_connection.sinkhorn_iterations"),
        hc_eps=get("hyper_connection.epsilon"), rms_eps=get("attention.layer_norm_rms_epsilon"),
        rounding=get("activation_rounding", True),
    )  # fmt: skip
    assert len(swiglu) == len(c["ratios"]) == get("block_count")
    model = build(c)
    tensors = {t.name: torch.from_numpy(np.array(t.data)) for t in r.tensors}
    state = model.state_dict()
    for ours, theirs, part in names(c):
        t = state[theirs] if part is None else state[theirs].chunk(2, dim=1)[part]
        assert tuple(t.shape) == tuple(tensors[ours].shape), (ours, t.shape, tensors[ours].shape)
        t.copy_(tensors.pop(ours))
    assert not tensors, list(tensors)
    return model


@torch.no_grad()
def unsteadiness(model, ids, logits):
    """Largest change of a logit when every embedding is off by one part in a million."""
    g, table = torch.Generator().manual_seed(1), model.model.embed_tokens.weight
    kept, worst = table.clone(), 0.0
    for _ in range(10):
        table.copy_(kept * (1 + 1e-6 * torch.randn(kept.shape, generator=g)))
        worst = max(worst, (logits_of(model, ids) - logits).abs().max().item())
    table.copy_(kept)
    return worst


def make(name):
    c = {**BASE, **CONFIGS[name]}
    model, ids, seed, found = draw(c)
    logits = logits_of(model, ids)
    path = OUT / f"{name}.gguf"
    write_gguf(path, model, c)

    with torch.no_grad():
        again = logits_of(read_gguf(path), ids)
    assert torch.equal(again, logits), f"{name}: the file does not hold the model"
    t = ids.shape[1]
    by_token = (in_pieces(model, ids, range(1, t)) - logits).abs().max().item()
    by_chunk = (in_pieces(model, ids, (t // 5, t // 2, t // 2 + 5)) - logits).abs().max().item()
    wide = build(c).double()
    wide.load_state_dict(model.state_dict())
    # The norms of `transformers` compute in f32 even here.
    in_f64 = (logits_of(wide, ids).float() - logits).abs().max().item()
    shaken = unsteadiness(model, ids, logits)
    assert max(by_token, by_chunk, in_f64) < 5e-5, (name, by_token, by_chunk, in_f64)
    # So much turns a few BF16 roundings; the seed keeps clear of what other arithmetic may turn.
    assert shaken < (2e-2 if c["rounding"] else 5e-4), (name, shaken)

    np.save(OUT / f"{name}.logits.npy", logits.numpy().astype(np.float32))
    (OUT / f"{name}.tokens.txt").write_text(" ".join(map(str, ids[0].tolist())) + "\n")
    size = sum((OUT / f"{name}{end}").stat().st_size for end in (".gguf", ".logits.npy", ".tokens.txt"))
    clear = ", ".join(f"{k} {v:.1e}" for k, v in found.items() if v < float("inf"))
    print(
        f"{name}: {t} tokens, seed {seed}, {size / 1000:.0f} kB, logit std {logits.std():.3f}; max "
        f"difference: token by token {by_token:.1e}, chunks {by_chunk:.1e}, f64 {in_f64:.1e}, "
        f"embeddings off by 1e-6 {shaken:.1e}; "
        f"closest choice: {clear or 'none made'}",
        flush=True,
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    OUT.mkdir(parents=True, exist_ok=True)
    for chosen in sys.argv[1:] or CONFIGS:
        make(chosen)
