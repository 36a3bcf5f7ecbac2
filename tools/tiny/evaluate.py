"""Greedy answers to the held-out sets.

Usage: python evaluate.py MODEL TOKENIZER.json HELD_OUT_DIR [--limit N]

MODEL is a GGUF or a training checkpoint, whose weights are then rounded as the export would.
"""

import argparse
import json
import pathlib
import re

import torch

import tokenizer as bpe
from model import Mode, Shape, TinyV4
from template import DSML, END_THINK, EOS, PAD, render

NEW_TOKENS = {"tools": 140, "json": 90}
PARAMETER = re.compile(
    rf'<{DSML}parameter name="([^"]*)" string="(true|false)">(.*?)</{DSML}parameter>', re.S
)


def as_stored(name, value):
    """A parameter as it reads back from the GGUF: Q8_0 blocks of 32, or F16."""
    if not value.is_floating_point() or value.dim() < 2:
        return value
    if any(k in name for k in ("hc_", "ape", "gate_inp")):
        return value.half().float()
    blocks = value.float().view(-1, 32)
    d = blocks.abs().amax(1, keepdim=True) / 127
    q = blocks * torch.where(d > 0, 1 / d, 0.0)
    q = (q.abs() + 0.5).floor() * q.sign()
    return (q * d.half().float()).view(value.shape)


def load(path):
    if str(path).endswith(".gguf"):
        from export import read

        return read(path, Shape())
    saved = torch.load(path, map_location="cpu", weights_only=True)
    model = TinyV4(Shape(**saved["shape"]))
    model.load_state_dict({k: as_stored(k, v) for k, v in saved["state"].items()})
    return model.eval()


@torch.no_grad()
def generate(model, tokenizer, prompts, new_tokens, mode, batch_tokens=150_000):
    """Greedy replies to the prompts, without the final EOS."""
    device = model.token_embd.device
    eos, pad = tokenizer.token_to_id(EOS), tokenizer.token_to_id(PAD)
    lines = [tokenizer.encode(p).ids for p in prompts]
    order = sorted(range(len(lines)), key=lambda i: len(lines[i]))
    replies = [None] * len(lines)
    while order:
        longest = len(lines[order[-1]]) + new_tokens
        width = (longest + 127) // 128 * 128
        picked = order[-max(1, batch_tokens // width) :]
        del order[-len(picked) :]
        ids = torch.full((len(picked), width), pad, dtype=torch.long, device=device)
        ends = torch.tensor([len(lines[i]) for i in picked], device=device)
        for row, i in enumerate(picked):
            ids[row, : len(lines[i])] = torch.tensor(lines[i], device=device)
        rows = torch.arange(len(picked), device=device)
        alive = torch.ones(len(picked), dtype=torch.bool, device=device)
        for _ in range(new_tokens):
            used = (int(ends.max()) + 127) // 128 * 128
            logits, _ = model(ids[:, :used], mode, at=rows * used + ends - 1)
            chosen = logits.argmax(-1)
            ids[rows[alive], ends[alive]] = chosen[alive]
            alive &= chosen != eos
            ends += alive
            if not alive.any():
                break
        for row, i in enumerate(picked):
            out = ids[row, len(lines[i]) : int(ends[row])].tolist()
            replies[i] = tokenizer.decode(out, skip_special_tokens=False)
    return replies


def without_thought(text, thinking):
    return text.split(END_THINK, 1)[-1] if thinking else text


def tool_call(text):
    """(name, arguments) of the only call in the reply, or None."""
    names = re.findall(rf'<{DSML}invoke name="([^"]*)">', text)
    if len(names) != 1 or not text.rstrip().endswith(f"</{DSML}tool_calls>"):
        return None
    arguments = {}
    for name, string, value in PARAMETER.findall(text):
        try:
            arguments[name] = value if string == "true" else json.loads(value)
        except json.JSONDecodeError:
            return None
    return names[0], arguments


def right(item, reply):
    expect = item["expect"]
    text = without_thought(reply, item["thinking"] == "on")
    if expect["kind"] == "contains":
        whole = [rf"(?<!\w){re.escape(v)}(?!\w)" for v in expect["all"]]
        return all(re.search(w, text) for w in whole)
    if expect["kind"] == "tool_call":
        return tool_call(text) == (expect["name"], expect["arguments"])
    try:
        return json.loads(text) == expect["value"]
    except json.JSONDecodeError:
        return False


def score(model, tokenizer, path, mode, limit=None):
    """(right, asked, wrong replies) for one held-out file."""
    items = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()][:limit]
    prompts = [render(i["messages"], i.get("tools"), i["thinking"] == "on") for i in items]
    new_tokens = NEW_TOKENS.get(path.stem, 70)
    replies = generate(model, tokenizer, prompts, new_tokens, mode)
    marks = [right(i, r) for i, r in zip(items, replies)]
    wrong = [(i["messages"][-1], i["expect"], r) for i, r, m in zip(items, replies, marks) if not m]
    return sum(marks), len(items), wrong


def report(model, tokenizer, folder, mode, limit=None, show=2):
    for path in sorted(pathlib.Path(folder).glob("*.jsonl")):
        good, asked, wrong = score(model, tokenizer, path, mode, limit)
        print(f"{path.stem:12} {good:4} of {asked:4}  {100 * good / asked:5.1f} %", flush=True)
        for message, expect, reply in wrong[:show]:
            print(f"    asked  {message['content'][-160:]!r}")
            print(f"    expect {expect}\n    got    {reply!r}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("tokenizer")
    parser.add_argument("held_out")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--no-rounding", action="store_true")
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = load(args.model).to(device)
    mode = Mode(rounding=not args.no_rounding)
    report(model, bpe.load(args.tokenizer), args.held_out, mode, args.limit)


if __name__ == "__main__":
    main()
