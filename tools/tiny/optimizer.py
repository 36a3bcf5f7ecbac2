"""Muon for the weight matrices, AdamW for everything else.

Muon steps along the nearest orthogonal matrix to the momentum, found by a Newton-Schulz iteration;
matrices of one shape are handled together.
"""

import torch

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
BY_ADAM = ("token_embd", "output", "hc_", "ape", "gate_inp")


def orthogonal(m, steps=5):
    """[K, rows, columns] -> about the same with all singular values near 1."""
    a, b, c = COEFFICIENTS
    x = m.bfloat16() if m.is_cuda else m
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.transpose(1, 2)
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        g = x @ x.transpose(1, 2)
        x = a * x + (b * g + c * g @ g) @ x
    return (x.transpose(1, 2) if tall else x).float()


class Muon:
    def __init__(self, named, momentum=0.95):
        self.momentum = momentum
        self.groups = {}
        for name, p in named:
            # The output projection's groups are separate matrices that share a tensor.
            parts = 2 if name.endswith("output_a") else 1
            rows = p.shape[-2] // parts
            self.groups.setdefault((rows, p.shape[-1]), []).append(p)
        self.buffers = {p: torch.zeros_like(p) for ps in self.groups.values() for p in ps}

    @torch.no_grad()
    def step(self, lr):
        for (rows, columns), params in self.groups.items():
            params = [p for p in params if p.grad is not None]
            if not params:
                continue
            updates = []
            for p in params:
                buffer = self.buffers[p].lerp_(p.grad, 1 - self.momentum)
                updates.append(p.grad.lerp(buffer, self.momentum).view(-1, rows, columns))
            counts = [len(u) for u in updates]
            scale = lr * max(1.0, rows / columns) ** 0.5
            steps = orthogonal(torch.cat(updates)).mul_(-scale).split(counts)
            for p, step in zip(params, steps):
                p.add_(step.reshape(p.shape))
                p.grad = None


def split(model):
    """(parameters for Muon with names, parameters for AdamW)."""
    muon, adam = [], []
    for name, p in model.named_parameters():
        own = name.split(".")[-1]
        by_adam = p.dim() < 2 or own in BY_ADAM or any(k in name for k in ("hc_", "ape"))
        adam.append(p) if by_adam else muon.append((name, p))
    return muon, adam
