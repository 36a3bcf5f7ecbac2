"""Training batches: batch number i is a function of the seed and i alone."""

import random

import numpy as np
import torch

import tokenizer as bpe
from corpus import sample
from template import ASSISTANT, EOS, PAD

# Sequence lengths and their shares, by progress through the run: short first, then longer.
CURRICULUM = (
    (0.10, {256: 50, 512: 35, 1024: 15}),
    (0.45, {256: 20, 512: 22, 1024: 41, 2048: 11, 4096: 6}),
    (1.00, {256: 13, 512: 17, 1024: 36, 2048: 13, 4096: 14, 8192: 7}),
)
CHARACTERS_PER_TOKEN = 4.4
PADDING, CONTEXT, REPLY = 0, 1, 2


class Batches(torch.utils.data.Dataset):
    """Item i: (ids [B, T], kind [B, T]) with B·T = tokens; kind says padding, context or reply."""

    def __init__(self, tokenizer_path, seed, steps, tokens, longest=8192, done=0.0):
        self.path, self.seed, self.steps, self.tokens = tokenizer_path, seed, steps, tokens
        self.longest, self.done = longest, done
        self.tokenizer = None

    def __len__(self):
        return self.steps

    def __getitem__(self, i):
        if self.tokenizer is None:  # once in each worker process
            self.tokenizer = bpe.load(self.path)
        rng = random.Random(f"{self.seed}/{i}")
        progress = self.done + (1 - self.done) * i / self.steps
        shares = next(s for until, s in CURRICULUM if progress < until)
        shares = {t: w for t, w in shares.items() if t <= self.longest}
        length = rng.choices(list(shares), list(shares.values()))[0]
        count = self.tokens // length
        texts = [sample(rng.random(), length * CHARACTERS_PER_TOKEN) for _ in range(count)]
        return self.encode(texts, length)

    def encode(self, texts, length):
        ids = np.full((len(texts), length), self.tokenizer.token_to_id(PAD), np.int16)
        kind = np.zeros((len(texts), length), np.uint8)
        assistant, eos = (self.tokenizer.token_to_id(t) for t in (ASSISTANT, EOS))
        for row, text in enumerate(texts):
            line = np.array(self.tokenizer.encode(text).ids)
            # A reply starts after <｜Assistant｜> and the think tag, and ends with its EOS.
            edges = np.zeros(len(line) + 3, np.int32)
            edges[np.flatnonzero(line == assistant) + 2] += 1
            edges[np.flatnonzero(line == eos) + 1] -= 1
            reply = np.cumsum(edges)[: len(line)] > 0
            n = min(len(line), length)
            ids[row, :n] = line[:n]
            kind[row, :n] = np.where(reply, REPLY, CONTEXT)[:n]
        return torch.from_numpy(ids), torch.from_numpy(kind)


def loader(batches, workers):
    return torch.utils.data.DataLoader(
        batches,
        batch_size=None,
        shuffle=False,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        pin_memory=torch.cuda.is_available(),
    )
