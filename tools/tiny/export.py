"""Write a trained model and its tokenizer as GGUF (Q8_0 matrices), and read one back.

Usage: python export.py CHECKPOINT TOKENIZER.json OUT.gguf
"""

import argparse
import json
import pathlib

import gguf
import numpy as np
import torch

from model import Shape, TinyV4
from template import BOS, EOS, PAD

Q8, F16, F32, I32 = (
    gguf.GGMLQuantizationType.Q8_0,
    gguf.GGMLQuantizationType.F16,
    gguf.GGMLQuantizationType.F32,
    gguf.GGMLQuantizationType.I32,
)
NAME = "DeepSeek V4 tiny demo"

# (parameter of model.py, GGUF name, type), for a layer and for the whole model.
LAYER = (
    ("hc_attn.fn", "hc_attn_fn.weight", F16),
    ("hc_attn.base", "hc_attn_base.weight", F32),
    ("hc_attn.scale", "hc_attn_scale.weight", F32),
    ("attn_norm", "attn_norm.weight", F32),
    ("attn.q_a", "attn_q_a.weight", Q8),
    ("attn.q_a_norm", "attn_q_a_norm.weight", F32),
    ("attn.q_b", "attn_q_b.weight", Q8),
    ("attn.kv", "attn_kv.weight", Q8),
    ("attn.kv_a_norm", "attn_kv_a_norm.weight", F32),
    ("attn.sinks", "attn_sinks.weight", F32),
    ("attn.output_a", "attn_output_a.weight", Q8),
    ("attn.output_b", "attn_output_b.weight", Q8),
    ("attn.compressor.kv", "attn_compressor_kv.weight", Q8),
    ("attn.compressor.gate", "attn_compressor_gate.weight", Q8),
    ("attn.compressor.ape", "attn_compressor_ape.weight", F16),
    ("attn.compressor.norm", "attn_compressor_norm.weight", F32),
    ("attn.indexer.q_b", "indexer.attn_q_b.weight", Q8),
    ("attn.indexer.proj", "indexer.proj.weight", Q8),
    ("attn.indexer.compressor.kv", "indexer_compressor_kv.weight", Q8),
    ("attn.indexer.compressor.gate", "indexer_compressor_gate.weight", Q8),
    ("attn.indexer.compressor.ape", "indexer_compressor_ape.weight", F16),
    ("attn.indexer.compressor.norm", "indexer_compressor_norm.weight", F32),
    ("hc_ffn.fn", "hc_ffn_fn.weight", F16),
    ("hc_ffn.base", "hc_ffn_base.weight", F32),
    ("hc_ffn.scale", "hc_ffn_scale.weight", F32),
    ("ffn_norm", "ffn_norm.weight", F32),
    ("ffn.gate_inp", "ffn_gate_inp.weight", F16),
    ("ffn.bias", "exp_probs_b.bias", F32),
    ("ffn.tid2eid", "ffn_gate_tid2eid.weight", I32),
    ("ffn.gate_exps", "ffn_gate_exps.weight", Q8),
    ("ffn.up_exps", "ffn_up_exps.weight", Q8),
    ("ffn.down_exps", "ffn_down_exps.weight", Q8),
    ("ffn.gate_shexp", "ffn_gate_shexp.weight", Q8),
    ("ffn.up_shexp", "ffn_up_shexp.weight", Q8),
    ("ffn.down_shexp", "ffn_down_shexp.weight", Q8),
)
GLOBAL = (
    ("token_embd", "token_embd.weight", Q8),
    ("output_hc_fn", "output_hc_fn.weight", F16),
    ("output_hc_base", "output_hc_base.weight", F32),
    ("output_hc_scale", "output_hc_scale.weight", F32),
    ("output_norm", "output_norm.weight", F32),
    ("output", "output.weight", Q8),
)


def placement(state, layers):
    """(parameter, GGUF name, type) for every tensor that the state holds."""
    rows = list(GLOBAL)
    for i in range(layers):
        rows += [(f"blk.{i}.{p}", f"blk.{i}.{n}", kind) for p, n, kind in LAYER]
    rows = [r for r in rows if r[0] in state]
    left = set(state) - {r[0] for r in rows}
    if left:
        raise ValueError(f"no GGUF name for {sorted(left)}")
    return rows


def encode(array, kind):
    if kind == Q8:
        return gguf.quants.quantize(array.astype(np.float32), Q8)
    return array.astype({F16: np.float16, F32: np.float32, I32: np.int32}[kind])


def decode(data, kind):
    return gguf.quants.dequantize(data, Q8) if kind == Q8 else data


def as_stored(state, layers):
    """The state as a reader of the GGUF sees it: matrices rounded to Q8_0 or F16."""
    out = {}
    for parameter, _, kind in placement(state, layers):
        array = encode(state[parameter].float().cpu().numpy(), kind)
        value = torch.from_numpy(np.array(decode(array, kind)))
        out[parameter] = value.to(state[parameter].dtype).reshape(state[parameter].shape)
    return out


def metadata(writer, shape, tokenizer_path):
    prefix = "deepseek4."
    integers = {
        "block_count": len(shape.ratios),
        "context_length": shape.context,
        "embedding_length": shape.hidden,
        "vocab_size": shape.vocab,
        "attention.head_count": shape.heads,
        "attention.head_count_kv": 1,
        "attention.key_length": shape.head_dim,
        "attention.value_length": shape.head_dim,
        "rope.dimension_count": shape.rope,
        "attention.q_lora_rank": shape.q_lora,
        "attention.output_lora_rank": shape.o_lora,
        "attention.output_group_count": shape.o_groups,
        "attention.sliding_window": shape.window,
        "attention.indexer.head_count": shape.index_heads,
        "attention.indexer.key_length": shape.index_head_dim,
        "attention.indexer.top_k": shape.top_k,
        "expert_count": shape.experts,
        "expert_used_count": shape.experts_used,
        "expert_feed_forward_length": shape.expert_width,
        "expert_shared_count": 1,
        "expert_group_count": 0,
        "expert_group_used_count": 0,
        "expert_gating_func": 4,
        "hash_layer_count": shape.hash_layers,
        "nextn_predict_layers": 0,
        "hyper_connection.count": shape.streams,
        "hyper_connection.sinkhorn_iterations": shape.sinkhorn,
        "rope.scaling.original_context_length": shape.yarn_original,
    }
    floats = {
        "rope.freq_base": shape.theta,
        "attention.compress_rope_freq_base": shape.compress_theta,
        "rope.scaling.factor": shape.yarn_factor,
        "rope.scaling.yarn_beta_fast": shape.yarn_betas[0],
        "rope.scaling.yarn_beta_slow": shape.yarn_betas[1],
        "expert_weights_scale": shape.route_scale,
        "attention.layer_norm_rms_epsilon": shape.eps,
        "hyper_connection.epsilon": shape.eps,
    }
    writer.add_string("general.name", NAME)
    writer.add_string("general.license", "mit")
    for key, value in integers.items():
        writer.add_uint32(prefix + key, value)
    for key, value in floats.items():
        writer.add_float32(prefix + key, value)
    writer.add_bool(prefix + "expert_weights_norm", True)
    writer.add_string(prefix + "rope.scaling.type", "yarn")
    u32, f32 = gguf.GGUFValueType.UINT32, gguf.GGUFValueType.FLOAT32
    array = gguf.GGUFValueType.ARRAY
    ratios = prefix + "attention.compress_ratios"
    writer.add_key_value(ratios, list(shape.ratios), array, u32)
    clamps = [shape.clamp] * len(shape.ratios)
    writer.add_key_value(prefix + "swiglu_clamp_exp", clamps, array, f32)

    described = json.loads(pathlib.Path(tokenizer_path).read_text(encoding="utf-8"))
    vocab = described["model"]["vocab"]
    added = {t["content"] for t in described["added_tokens"]}
    tokens = sorted(vocab, key=vocab.get)
    control, defined, normal = 3, 4, 1
    kinds = [control if t in (BOS, EOS, PAD) else defined if t in added else normal for t in tokens]
    merges = [m if isinstance(m, str) else " ".join(m) for m in described["model"]["merges"]]
    tok = "tokenizer.ggml."
    writer.add_string(tok + "model", "gpt2")
    writer.add_string(tok + "pre", "joyai-llm")
    writer.add_array(tok + "tokens", tokens)
    writer.add_array(tok + "token_type", kinds)
    writer.add_array(tok + "merges", merges)
    for key, token in (("bos", BOS), ("eos", EOS), ("padding", PAD)):
        writer.add_uint32(f"{tok}{key}_token_id", vocab[token])
    writer.add_bool(tok + "add_bos_token", False)
    writer.add_bool(tok + "add_eos_token", False)


def write(state, shape, tokenizer_path, out):
    writer = gguf.GGUFWriter(str(out), "deepseek4")
    metadata(writer, shape, tokenizer_path)
    for parameter, name, kind in placement(state, len(shape.ratios)):
        array = encode(state[parameter].float().cpu().numpy(), kind)
        writer.add_tensor(name, np.ascontiguousarray(array), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def read(path, shape):
    """The model rebuilt from the file's bytes."""
    tensors = {t.name: t for t in gguf.GGUFReader(str(path)).tensors}
    model = TinyV4(shape)
    state = model.state_dict()
    rows = placement(state, len(shape.ratios))
    if set(tensors) != {name for _, name, _ in rows}:
        raise ValueError(f"{path}: tensors differ from the model's")
    for parameter, name, kind in rows:
        value = torch.from_numpy(np.array(decode(tensors[name].data, kind)))
        state[parameter] = value.to(state[parameter].dtype).reshape(state[parameter].shape)
    model.load_state_dict(state)
    return model.eval()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint")
    parser.add_argument("tokenizer")
    parser.add_argument("out")
    args = parser.parse_args()
    saved = torch.load(args.checkpoint, map_location="cpu", weights_only=True)
    shape = Shape(**saved["shape"])
    state = {k: v.float() if v.is_floating_point() else v for k, v in saved["state"].items()}
    write(state, shape, args.tokenizer, args.out)
    again = read(args.out, shape).state_dict()
    stored = as_stored(state, len(shape.ratios))
    for key, value in stored.items():
        if not torch.equal(value, again[key]):
            raise SystemExit(f"{args.out}: {key} reads back differently")
    size = pathlib.Path(args.out).stat().st_size
    print(f"{args.out}: {len(stored)} tensors, {size:,} bytes, reads back exactly")


if __name__ == "__main__":
    main()
