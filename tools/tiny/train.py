"""Train the demo model.

Usage: python train.py --tokenizer TOKENIZER.json --out DIR [--steps N] [--minutes M]
"""

import argparse
import os
import pathlib
import time
from collections import Counter

import torch
import torch.nn.functional as F

import tokenizer as bpe
from batches import PADDING, REPLY, Batches, loader
from evaluate import load, report
from model import Mode, Shape, TinyV4, compile_hot_parts, spread_hash_table
from optimizer import Muon, split

CONTEXT_WEIGHT = {256: 0.1, 512: 0.1, 1024: 0.05, 2048: 0.02, 4096: 0.01, 8192: 0.01}
ROUNDING_FROM, SPARSE_FROM, INDEX_FROM = 0.3, 0.45, 0.1
WARMUP, DECAY_FROM, LAST = 100, 0.4, 0.01
BIAS_RATE, BIAS_UNTIL = 1e-3, 0.85


def rate(step, progress):
    falling = 1 - (1 - LAST) * max(0.0, progress - DECAY_FROM) / (1 - DECAY_FROM)
    return min(1.0, (step + 1) / WARMUP) * min(1.0, falling)


def save(model, path):
    state = {k: v.detach().cpu().clone() for k, v in model.state_dict().items()}
    torch.save({"shape": model.shape.as_dict(), "state": state}, f"{path}.part")
    os.replace(f"{path}.part", path)


def token_counts(batches, vocab, number=4):
    counts = Counter()
    for i in range(number):
        ids, kind = batches[batches.steps - 1 - i]
        counts.update(ids[kind != PADDING].tolist())
    return [counts[i] for i in range(vocab)]


def step_loss(model, ids, kind, progress, bf16):
    ids = ids.long()
    real = kind != PADDING
    mode = Mode(
        rounding=progress >= ROUNDING_FROM,
        sparse=progress >= SPARSE_FROM,
        bf16=bf16,
        index_loss=progress >= INDEX_FROM and ids.shape[1] >= 1024,
        real=real,
    )
    with torch.autocast(ids.device.type, torch.bfloat16, enabled=bf16):
        logits, index_losses = model(ids, mode)
    weight = torch.where(kind == REPLY, 1.0, CONTEXT_WEIGHT[ids.shape[1]]) * real
    weight = weight[:, 1:].flatten()
    each = F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    language = (each * weight).sum() / weight.sum()
    reply = (kind[:, 1:] == REPLY).flatten()
    shown = (each.detach() * reply).sum() / reply.sum()
    index = sum(index_losses) / len(index_losses) if index_losses else None
    return language, shown, index


def balance(model, progress):
    """Move each router's selection bias toward equal load."""
    for layer in model.blk[model.shape.hash_layers :]:
        if progress < BIAS_UNTIL:
            load = layer.ffn.load
            layer.ffn.bias += BIAS_RATE * torch.sign(load.mean() - load)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--held-out")
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--tokens", type=int, default=65536, help="tokens in a batch")
    parser.add_argument("--longest", type=int, default=8192)
    parser.add_argument("--minutes", type=float, default=1e9, help="finish within this time")
    parser.add_argument("--muon-lr", type=float, default=0.02)
    parser.add_argument("--adam-lr", type=float, default=3e-3)
    parser.add_argument("--workers", type=int, default=14)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--init", help="start from this GGUF or checkpoint")
    parser.add_argument("--from-progress", type=float, default=0.0, help="skip so much of the plan")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--stop-at", type=int, help="stop after this many steps (for trials)")
    args = parser.parse_args()
    args.tokenizer = str(pathlib.Path(args.tokenizer).resolve())

    torch.manual_seed(args.seed)
    torch.set_float32_matmul_precision("high")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    out = pathlib.Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    shape = Shape()
    model = TinyV4(shape)
    done = args.from_progress
    batches = Batches(args.tokenizer, args.seed, args.steps, args.tokens, args.longest, done)
    if args.init:
        model.load_state_dict(load(args.init).state_dict())
    else:
        spread_hash_table(model, token_counts(batches, shape.vocab))
        batches.tokenizer = None
    model.to(device).train()
    compile_hot_parts(args.compile)
    named, others = split(model)
    muon = Muon(named)
    adam = torch.optim.AdamW(
        others, lr=args.adam_lr, betas=(0.9, 0.95), weight_decay=0.0, fused=device == "cuda"
    )
    start, losses = time.time(), {}
    progress = 0.0
    for step, (ids, kind) in enumerate(loader(batches, args.workers)):
        minutes = (time.time() - start) / 60
        part = max(step / args.steps, minutes / args.minutes)
        progress = max(progress, done + (1 - done) * part)
        if progress >= 1 or step == args.stop_at:
            break
        began = time.time()
        ids, kind = (x.to(device, non_blocking=True) for x in (ids, kind))
        loss, shown, index = step_loss(model, ids, kind, progress, device == "cuda")
        (loss if index is None else loss + index).backward()
        torch.nn.utils.clip_grad_norm_(others, 1.0)
        factor = rate(step, progress)
        for group in adam.param_groups:
            group["lr"] = args.adam_lr * factor
        adam.step()
        muon.step(args.muon_lr * factor)
        adam.zero_grad(set_to_none=True)
        with torch.no_grad():
            balance(model, progress)
        values = losses.setdefault(ids.shape[1], [])
        values.append((shown.detach(), index.detach() if index is not None else None))
        if step < 12 or step % 50 == 0 or step + 1 == args.stop_at:
            if device == "cuda":
                torch.cuda.synchronize()
            parts = []
            for length, seen in sorted(losses.items()):
                text = f"{length}:{torch.stack([s for s, _ in seen]).mean().item():.3f}"
                kl = [k for _, k in seen if k is not None]
                parts.append(text + (f"/{torch.stack(kl).mean().item():.2f}" if kl else ""))
            used = torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else 0
            print(
                f"{time.time() - start:6.0f} s step {step} progress {progress:.3f} "
                f"last {ids.shape[1]} {time.time() - began:.3f} s, {used:.0f} GiB; "
                f"reply loss {' '.join(parts)}",
                flush=True,
            )
            losses = {}
        if step and step % 500 == 0:
            save(model, out / "checkpoint.pt")
    save(model, out / "model.pt")
    print(f"{time.time() - start:.0f} s: saved {out / 'model.pt'}", flush=True)
    compile_hot_parts(False)
    if args.held_out:
        report(model.eval(), bpe.load(args.tokenizer), args.held_out, Mode())


if __name__ == "__main__":
    main()
