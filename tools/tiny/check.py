"""Compare model.py with the DeepSeek V4 implementation of `transformers`, in float32 on the CPU.

Usage: python check.py [MODEL.gguf]
"""

import sys

import torch
from transformers import DeepseekV4Config, DeepseekV4ForCausalLM

from export import read
from model import Mode, Shape, TinyV4, spread_hash_table

# model.py has put the folder above on the path.
from rounding import patch_transformers  # isort: skip

RENAMED = {
    "attn.q_a": "self_attn.q_a_proj.weight",
    "attn.q_a_norm": "self_attn.q_a_norm.weight",
    "attn.q_b": "self_attn.q_b_proj.weight",
    "attn.kv": "self_attn.kv_proj.weight",
    "attn.kv_a_norm": "self_attn.kv_norm.weight",
    "attn.sinks": "self_attn.sinks",
    "attn.output_a": "self_attn.o_a_proj.weight",
    "attn.output_b": "self_attn.o_b_proj.weight",
    "attn.indexer.q_b": "self_attn.compressor.indexer.q_b_proj.weight",
    "attn.indexer.proj": "self_attn.compressor.indexer.scorer.weights_proj.weight",
    "attn_norm": "input_layernorm.weight",
    "ffn_norm": "post_attention_layernorm.weight",
    "ffn.gate_inp": "mlp.gate.weight",
    "ffn.bias": "mlp.gate.e_score_correction_bias",
    "ffn.tid2eid": "mlp.gate.tid2eid",
    "ffn.down_exps": "mlp.experts.down_proj",
    "ffn.gate_shexp": "mlp.shared_experts.gate_proj.weight",
    "ffn.up_shexp": "mlp.shared_experts.up_proj.weight",
    "ffn.down_shexp": "mlp.shared_experts.down_proj.weight",
}
for _part in ("fn", "base", "scale"):
    RENAMED[f"hc_attn.{_part}"] = f"attn_hc.{_part}"
    RENAMED[f"hc_ffn.{_part}"] = f"ffn_hc.{_part}"
for _ours, _theirs in (("attn.", ""), ("attn.indexer.", "indexer.")):
    for _a, _b in (
        ("kv", "kv_proj.weight"),
        ("gate", "gate_proj.weight"),
        ("ape", "position_bias"),
        ("norm", "kv_norm.weight"),
    ):
        RENAMED[f"{_ours}compressor.{_a}"] = f"self_attn.compressor.{_theirs}{_b}"
TOP = {
    "token_embd": "model.embed_tokens.weight",
    "output": "lm_head.weight",
    "output_norm": "model.norm.weight",
    "output_hc_fn": "model.hc_head.hc_fn",
    "output_hc_base": "model.hc_head.hc_base",
    "output_hc_scale": "model.hc_head.hc_scale",
}


def config(shape):
    return DeepseekV4Config(
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        moe_intermediate_size=shape.expert_width,
        num_hidden_layers=len(shape.ratios),
        num_attention_heads=shape.heads,
        num_key_value_heads=1,
        head_dim=shape.head_dim,
        qk_rope_head_dim=shape.rope,
        q_lora_rank=shape.q_lora,
        o_groups=shape.o_groups,
        o_lora_rank=shape.o_lora,
        sliding_window=shape.window,
        compress_ratios=list(shape.ratios),
        num_hash_layers=shape.hash_layers,
        n_routed_experts=shape.experts,
        num_experts_per_tok=shape.experts_used,
        n_shared_experts=1,
        routed_scaling_factor=shape.route_scale,
        swiglu_limit=shape.clamp,
        index_n_heads=shape.index_heads,
        index_head_dim=shape.index_head_dim,
        index_topk=shape.top_k,
        hc_mult=shape.streams,
        hc_sinkhorn_iters=shape.sinkhorn,
        hc_eps=shape.eps,
        rms_norm_eps=shape.eps,
        rope_theta=shape.theta,
        compress_rope_theta=shape.compress_theta,
        max_position_embeddings=shape.context,
        rope_parameters={
            "type": "yarn",
            "rope_type": "yarn",
            "factor": shape.yarn_factor,
            "beta_fast": shape.yarn_betas[0],
            "beta_slow": shape.yarn_betas[1],
            "original_max_position_embeddings": shape.yarn_original,
            "attention_factor": 1.0,
        },
        attn_implementation="eager",
        experts_implementation="eager",
        tie_word_embeddings=False,
    )


def to_transformers(model):
    """The same weights in a `DeepseekV4ForCausalLM`."""
    theirs = DeepseekV4ForCausalLM(config(model.shape)).float().eval()
    wanted = theirs.state_dict()
    state = {}
    for key, value in model.state_dict().items():
        if key in TOP:
            state[TOP[key]] = value
            continue
        _, number, name = key.split(".", 2)
        prefix = f"model.layers.{number}."
        if name == "ffn.gate_exps":
            up = model.state_dict()[f"blk.{number}.ffn.up_exps"]
            state[prefix + "mlp.experts.gate_up_proj"] = torch.cat((value, up), dim=1)
        elif name != "ffn.up_exps":
            state[prefix + RENAMED[name]] = value
    for key, value in state.items():
        if key not in wanted:
            raise ValueError(f"transformers has no {key}")
        state[key] = value.to(wanted[key].dtype)
    missing, _ = theirs.load_state_dict(state, strict=False)
    if missing:
        raise ValueError(f"not set: {missing}")
    return theirs


@torch.no_grad()
def compare(model, tokens, rounding):
    torch.manual_seed(1)
    ids = torch.randint(3, model.shape.vocab, (1, tokens))
    mine, _ = model(ids, Mode(rounding=rounding))
    theirs = to_transformers(model)
    if rounding:
        patch_transformers(theirs)
    other = theirs(ids, use_cache=False).logits
    worst = (mine - other).abs().max().item()
    same = (mine.argmax(-1) == other.argmax(-1)).float().mean().item()
    print(
        f"{tokens} tokens, rounding {'on' if rounding else 'off'}: "
        f"largest difference {worst:.2e} (logits up to {other.abs().max().item():.1f}), "
        f"same choice {100 * same:.1f} %"
    )
    return worst


def main():
    torch.manual_seed(0)
    shape = Shape()
    if len(sys.argv) > 1:
        model = read(sys.argv[1], shape)
    else:
        shape = Shape(top_k=32)
        model = TinyV4(shape).eval()
        spread_hash_table(model, list(range(shape.vocab)))
        with torch.no_grad():
            for name, value in model.named_parameters():
                if "norm" in name:
                    value.add_(torch.randn_like(value) * 0.2)
    # With rounding, sums in another order land on other sides of a rounding boundary now and then.
    for tokens in (128, 512):
        assert compare(model, tokens, rounding=False) < 2e-3
        compare(model, tokens, rounding=True)
    assert compare(model, 6 * shape.top_k, rounding=False) < 2e-3


if __name__ == "__main__":
    main()
