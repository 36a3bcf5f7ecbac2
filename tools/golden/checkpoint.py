"""Checkpoints in both published namings, with the logits that `transformers` computes for them.

    python tools/golden/checkpoint.py

writes into tests/golden/checkpoint/:

    original/      config.json, tokenizer.json, three safetensors files and their index: DeepSeek's
                   names and types (FP8 E4M3 with E8M0 scales of 128 x 128, FP4 in pairs with E8M0
                   scales of 32, BF16, F32, I64), a draft head's tensor among them
    original.{tokens.txt,logits.npy}   the logits of a float model that was read back from those bytes
    transformers/  the model of tests/golden/model/mixed.gguf with the names of a state dict, F16 and F32

The packing here is written from the published description of the formats, by torch's own casts
where it has them. Scales vary by block, and no dimension is a round number of blocks everywhere.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

HERE = Path(__file__).resolve()
sys.path.insert(0, str(HERE.parent))
import model as golden  # noqa: E402

OUT = HERE.parents[2] / "tests" / "golden" / "checkpoint"
SHAPE = dict(
    golden.BASE, ratios=(0, 4, 8), tokens=36, vocab=272, hidden=32, experts=4, expert_width=32,
    hash_layers=1, heads=5, head_dim=32, q_lora=32, o_groups=1, o_lora=144, index_topk=3,
)  # fmt: skip
FP4 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])


def e8m0(power):
    return (power + 127).to(torch.uint8).view(torch.float8_e8m0fnu)


def blocks(t, rows, cols):
    """Powers of two, one for each block, spread out again over the values too."""
    r, c = -(-t.shape[0] // rows), -(-t.shape[1] // cols)
    padded = torch.zeros(r * rows, c * cols)
    padded[: t.shape[0], : t.shape[1]] = t
    most = padded.view(r, rows, c, cols).abs().amax((1, 3)).clamp_min(1e-12)
    return most, lambda p: p.repeat_interleave(rows, 0).repeat_interleave(cols, 1)[: t.shape[0], : t.shape[1]]


def fp8(t):
    most, spread = blocks(t, 128, 128)
    power = (most / 448).log2().ceil()
    return {"weight": (t / 2 ** spread(power)).to(torch.float8_e4m3fn), "scale": e8m0(power)}


def fp4(t):
    most, spread = blocks(t, 1, 32)
    power = (most / 6).log2().ceil()
    x = t / 2 ** spread(power)
    code = (x.abs()[..., None] - FP4).abs().argmin(-1) + 8 * (x < 0)
    return {"weight": (code[:, ::2] + 16 * code[:, 1::2]).to(torch.uint8).view(torch.int8), "scale": e8m0(power)}


def unpack(weight, scale):
    """The float matrix behind packed bytes."""
    power = 2.0 ** (scale.view(torch.uint8).float() - 127)
    if weight.dtype == torch.int8:
        pairs = weight.view(torch.uint8).long()
        code = torch.stack([pairs & 15, pairs >> 4], -1).flatten(1)
        value = FP4[code & 7] * torch.where(code >= 8, -1.0, 1.0)
        return value * power.repeat_interleave(32, 1)
    value = weight.float()
    spread = power.repeat_interleave(128, 0).repeat_interleave(128, 1)
    return value * spread[: value.shape[0], : value.shape[1]]


LAYER = {
    "self_attn.q_a_proj.weight": "attn.wq_a.weight", "self_attn.q_b_proj.weight": "attn.wq_b.weight",
    "self_attn.kv_proj.weight": "attn.wkv.weight", "self_attn.o_a_proj.weight": "attn.wo_a.weight",
    "self_attn.o_b_proj.weight": "attn.wo_b.weight", "self_attn.q_a_norm.weight": "attn.q_norm.weight",
    "self_attn.kv_norm.weight": "attn.kv_norm.weight", "self_attn.sinks": "attn.attn_sink",
    "input_layernorm.weight": "attn_norm.weight", "post_attention_layernorm.weight": "ffn_norm.weight",
    "mlp.gate.weight": "ffn.gate.weight", "mlp.gate.tid2eid": "ffn.gate.tid2eid",
    "mlp.gate.e_score_correction_bias": "ffn.gate.bias",
    "mlp.shared_experts.gate_proj.weight": "ffn.shared_experts.w1.weight",
    "mlp.shared_experts.up_proj.weight": "ffn.shared_experts.w3.weight",
    "mlp.shared_experts.down_proj.weight": "ffn.shared_experts.w2.weight",
    "self_attn.compressor.indexer.q_b_proj.weight": "attn.indexer.wq_b.weight",
    "self_attn.compressor.indexer.scorer.weights_proj.weight": "attn.indexer.weights_proj.weight",
    **{f"{a}_hc.{x}": f"hc_{a}_{x}" for a in ("attn", "ffn") for x in ("fn", "base", "scale")},
}  # fmt: skip
for theirs, ours in (("compressor.", "compressor."), ("compressor.indexer.", "indexer.compressor.")):
    for a, b in (("kv_proj.weight", "wkv.weight"), ("gate_proj.weight", "wgate.weight"),
                 ("position_bias", "ape"), ("kv_norm.weight", "norm.weight")):  # fmt: skip
        LAYER[f"self_attn.{theirs}{a}"] = f"attn.{ours}{b}"
TOP = {
    "model.embed_tokens.weight": "embed.weight", "lm_head.weight": "head.weight", "model.norm.weight": "norm.weight",
    **{f"model.hc_head.hc_{x}": f"hc_head_{x}" for x in ("fn", "base", "scale")},
}  # fmt: skip
FLOAT = ("_fn", "_base", "_scale", "attn_sink", "gate.bias", "ape")
EIGHT = (".wq_a.weight", ".wq_b.weight", ".wkv.weight", ".wo_a.weight", ".wo_b.weight")


def packed(name, t):
    """One tensor of the state dict as the original has it."""
    if name.endswith("tid2eid"):
        return {name: t.contiguous()}
    if name.endswith(FLOAT):
        return {name: t.float().contiguous()}
    attention = name.endswith(EIGHT) and "compressor" not in name
    if attention or "shared_experts" in name:
        return {name.removesuffix("weight") + k: v for k, v in fp8(t).items()}
    return {name: t.bfloat16().contiguous()}


def pack(model):
    """The whole model, and where each tensor of the state dict went."""
    out, back = {}, []
    for name, t in model.state_dict().items():
        if name in TOP:
            ours = TOP[name]
            out |= packed(ours, t)
        else:
            _, _, layer, leaf = name.split(".", 3)
            if leaf.startswith("mlp.experts."):
                for e in range(len(t)):
                    parts = {"w2": t[e]}
                    if leaf.endswith("gate_up_proj"):
                        parts = dict(zip(("w1", "w3"), t[e].chunk(2)))
                    for w, part in parts.items():
                        for k, v in fp4(part).items():
                            out[f"layers.{layer}.ffn.experts.{e}.{w}.{k}"] = v
                back.append((name, [f"layers.{layer}.ffn.experts.{{}}.{w}" for w in parts]))
                continue
            ours = f"layers.{layer}.{LAYER[leaf]}"
            out |= packed(ours, t)
        back.append((name, ours))
    return out, back


@torch.no_grad()
def read_back(model, tensors, back):
    state = model.state_dict()

    def get(name):
        stem = name.removesuffix(".weight")
        if stem + ".scale" in tensors:
            return unpack(tensors[stem + ".weight"], tensors[stem + ".scale"])
        return tensors[name]

    for name, ours in back:
        if isinstance(ours, list):
            for e in range(len(state[name])):
                state[name][e].copy_(torch.cat([get(w.format(e) + ".weight") for w in ours]))
        else:
            state[name].copy_(get(ours))


def vocabulary():
    """Bytes in the alphabet of GPT-2, the control tokens that prompts need, one merge."""
    own = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    shifted = {b: 0x100 + i for i, b in enumerate(b for b in range(256) if b not in own)}
    tokens = {chr(shifted.get(b, b)): 2 + b for b in range(256)}
    tokens["th"] = 258
    texts = ["<｜User｜>", "<｜Assistant｜>", "<think>", "</think>", "｜DSML｜"]
    added = [(0, "<｜begin▁of▁sentence｜>", True), (1, "<｜end▁of▁sentence｜>", True)]
    added += [(259 + i, text, False) for i, text in enumerate(texts)]
    keys = ("id", "content", "special")
    model = {"type": "BPE", "vocab": tokens, "merges": [["t", "h"]]}
    return {"version": "1.0", "added_tokens": [dict(zip(keys, a)) for a in added], "model": model}


def config(c):
    """In the words of the original's config.json."""
    return {
        "model_type": "deepseek_v4", "vocab_size": c["vocab"], "hidden_size": c["hidden"],
        "num_hidden_layers": len(c["ratios"]), "num_attention_heads": c["heads"], "num_key_value_heads": 1,
        "head_dim": c["head_dim"], "qk_rope_head_dim": c["rope"], "q_lora_rank": c["q_lora"],
        "o_groups": c["o_groups"], "o_lora_rank": c["o_lora"], "sliding_window": c["window"],
        "max_position_embeddings": int(c["factor"] * c["original"]),
        "compress_ratios": [*c["ratios"], 0], "rope_theta": c["theta"], "compress_rope_theta": c["compress_theta"],
        "rope_scaling": {
            "type": "yarn", "factor": c["factor"], "original_max_position_embeddings": c["original"],
            "beta_fast": c["betas"][0], "beta_slow": c["betas"][1],
        },
        "index_n_heads": c["index_heads"], "index_head_dim": c["index_dim"], "index_topk": c["index_topk"],
        "n_routed_experts": c["experts"], "n_shared_experts": 1, "num_experts_per_tok": c["experts_used"],
        "moe_intermediate_size": c["expert_width"], "num_hash_layers": c["hash_layers"],
        "scoring_func": "sqrtsoftplus", "topk_method": "noaux_tc", "norm_topk_prob": True,
        "routed_scaling_factor": c["route_scale"], "swiglu_limit": c["swiglu"], "hidden_act": "silu",
        "hc_mult": 4, "hc_sinkhorn_iters": c["sinkhorn"], "hc_eps": c["hc_eps"], "rms_norm_eps": c["rms_eps"],
        "num_nextn_predict_layers": 1, "bos_token_id": 0, "eos_token_id": 1, "tie_word_embeddings": False,
        "activation_rounding": False,
    }  # fmt: skip


def write(path, value):
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n")


def original():
    folder = OUT / "original"
    folder.mkdir(parents=True, exist_ok=True)
    model = golden.build(SHAPE)
    for seed in range(4000):
        ids = golden.randomise(model, SHAPE, seed)
        tensors, back = pack(model)
        read_back(model, tensors, back)
        found, logits = golden.margins(model, SHAPE, ids)
        if found["expert"] >= 5e-4 and found["row"] >= 2e-3:
            break
    tensors["mtp.0.enorm.weight"] = torch.ones(SHAPE["hidden"], dtype=torch.bfloat16)
    # Every third tensor to each file, so that matrices and their scales part.
    index, size = {}, 0
    for n in range(3):
        file = f"model-{n + 1:05}-of-00003.safetensors"
        part = {k: tensors[k].contiguous() for k in sorted(tensors)[n::3]}
        save_file(part, folder / file)
        index |= {k: file for k in part}
        size += sum(t.nbytes for t in part.values())
    write(folder / "model.safetensors.index.json", {"metadata": {"total_size": size}, "weight_map": index})
    write(folder / "config.json", config(SHAPE))
    write(folder / "tokenizer.json", vocabulary())

    again, files = {}, sorted(folder.glob("*.safetensors"))
    for file in files:
        again |= load_file(file)
    fresh = golden.build(SHAPE)
    read_back(fresh, again, back)
    check = golden.logits_of(fresh, ids)
    assert torch.equal(check, logits), (check - logits).abs().max()
    np.save(OUT / "original.logits.npy", check.numpy())
    (OUT / "original.tokens.txt").write_text(" ".join(map(str, ids[0].tolist())) + "\n")
    print(f"original: seed {seed}, {found}, logits std {logits.std():.2f}, {len(tensors)} tensors, {size} bytes")


def transformers():
    folder = OUT / "transformers"
    folder.mkdir(parents=True, exist_ok=True)
    model = golden.read_gguf(golden.OUT / "mixed.gguf")
    model = model[0] if isinstance(model, tuple) else model
    state = {
        k: (v if golden.is_vector(k) or k.endswith("tid2eid") else v.half()).contiguous()
        for k, v in model.state_dict().items()
    }
    save_file(state, folder / "model.safetensors")
    model.config.save_pretrained(folder)
    saved = json.loads((folder / "config.json").read_text())
    write(folder / "config.json", dict(saved, activation_rounding=False, bos_token_id=0, eos_token_id=1))
    write(folder / "tokenizer.json", {"added_tokens": [], "model": {"type": "BPE", "vocab": {}, "merges": []}})


if __name__ == "__main__":
    torch.set_num_threads(1)
    original()
    transformers()
