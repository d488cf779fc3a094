"""Record log-probabilities as torch has them, in float64: run with a Python that has torch.

Names are `CASE/WHAT`: `logits`, `targets`, `cotangent` and `mask` go in, `logps`, `gradient` (of the sum of
cotangent times log-probability), `sums` and `averages` (over the mask) come out. A case is called by its
temperature; `extreme` has logits of 1e4 either way.
"""

from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file

BATCH, LENGTH, VOCAB = 3, 6, 9


def record(rng, temperature, logits):
    """Return everything of one case."""
    targets = rng.integers(0, VOCAB, (BATCH, LENGTH))
    cotangent = rng.normal(size=(BATCH, LENGTH)).astype(np.float32)
    mask = (rng.uniform(size=(BATCH, LENGTH)) < 0.6).astype(np.float32)
    mask[1] = 0
    variable = torch.tensor(logits, dtype=torch.float64, requires_grad=True)
    logps = torch.log_softmax(variable / temperature, dim=-1)
    logps = logps.gather(-1, torch.tensor(targets)[..., None])[..., 0]
    (logps * torch.tensor(cotangent)).sum().backward()
    sums = (logps * torch.tensor(mask)).sum(-1)
    averages = sums / torch.tensor(mask).sum(-1).clamp(min=1)
    return {
        "logits": logits,
        "targets": targets.astype(np.int32),
        "cotangent": cotangent,
        "mask": mask,
        "logps": logps.detach().numpy(),
        "gradient": variable.grad.numpy(),
        "sums": sums.detach().numpy(),
        "averages": averages.detach().numpy(),
    }


def main():
    """Write the file."""
    rng = np.random.default_rng(0)
    shape = (BATCH, LENGTH, VOCAB)
    cases = {
        "1.0": record(rng, 1.0, rng.normal(size=shape).astype(np.float32)),
        "0.7": record(rng, 0.7, 3 * rng.normal(size=shape).astype(np.float32)),
        "extreme": record(rng, 1.0, rng.choice([-1e4, 0, 1e4], shape).astype(np.float32)),
    }
    flat = {f"{case}/{what}": part for case, parts in cases.items() for what, part in parts.items()}
    save_file(flat, Path(__file__).with_name("sequence.safetensors"))


if __name__ == "__main__":
    main()
