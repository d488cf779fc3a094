"""Record what torch makes, in float64, of a projection and its cross entropy: run with a Python that has it.

Everything that a test needs, inputs too, goes into `chunked.safetensors` beside this file. Names are
`CASE/WHAT`: the inputs `hidden`, `weight`, `targets` and, where the case has them, `bias` and `weights`; then
`value`, the mean loss, and `grad/NAME` for each floating input. z-loss and soft cap, which torch lacks, are
written out: z logsumexp(x)^2 (arXiv:2204.02311, section 5), cap tanh(x / cap) (arXiv:2408.00118, section 2).
"""

from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file

BATCH, LENGTH, FEATURES, CLASSES = 2, 11, 6, 13

CASES = {  # inputs beside the usual, options of the loss, and a factor for hidden
    "plain": ((), {}, 1.0),
    "bias": (("bias",), {}, 1.0),
    "ignored": ((), {"ignore_index": -100}, 1.0),
    "smoothed": ((), {"label_smoothing": 0.1}, 1.0),
    "z_loss": ((), {"z_loss": 0.01}, 1.0),
    "soft_cap": ((), {"soft_cap": 1.5}, 1.0),
    "weighted": (("weights",), {}, 1.0),
    "everything": (
        ("bias", "weights"),
        {"ignore_index": -100, "label_smoothing": 0.2, "z_loss": 0.02, "soft_cap": 2.0},
        1.0,
    ),
    "large": (("bias",), {}, 4000.0),
    "large_smoothed": (("bias",), {"label_smoothing": 0.1}, 4000.0),
}


def draw(rng, extra, options, factor):
    """Return the inputs of a case."""
    inputs = {
        "hidden": (factor * rng.uniform(-1, 1, (BATCH, LENGTH, FEATURES))).astype(np.float32),
        "weight": rng.uniform(-1, 1, (CLASSES, FEATURES)).astype(np.float32),
        "targets": rng.integers(0, CLASSES, (BATCH, LENGTH)),
    }
    if "ignore_index" in options:
        inputs["targets"] = np.where(rng.uniform(size=(BATCH, LENGTH)) < 0.3, -100, inputs["targets"])
    if "bias" in extra:
        inputs["bias"] = rng.uniform(-1, 1, CLASSES).astype(np.float32)
    if "weights" in extra:
        inputs["weights"] = (0.7 * rng.integers(0, 4, (BATCH, LENGTH))).astype(np.float32)
    return inputs


def mean_loss(tensors, ignore_index=-1000, label_smoothing=0.0, z_loss=0.0, soft_cap=None):
    """Return the weighted mean of the loss."""
    logits = tensors["hidden"].reshape(-1, FEATURES) @ tensors["weight"].T
    if "bias" in tensors:
        logits = logits + tensors["bias"]
    if soft_cap is not None:
        logits = soft_cap * torch.tanh(logits / soft_cap)
    targets = tensors["targets"].reshape(-1)
    losses = torch.nn.functional.cross_entropy(
        logits, targets, ignore_index=ignore_index, label_smoothing=label_smoothing, reduction="none"
    )
    losses = losses + z_loss * torch.logsumexp(logits, -1) ** 2
    weights = (targets != ignore_index).double()
    if "weights" in tensors:
        weights = weights * tensors["weights"].reshape(-1)
    return (weights * losses).sum() / weights.sum().detach()


def main():
    """Write the file."""
    rng = np.random.Generator(np.random.PCG64(20250611))
    record = {}
    for case, (extra, options, factor) in CASES.items():
        inputs = draw(rng, extra, options, factor)
        tensors = {
            name: torch.tensor(x, dtype=torch.float64, requires_grad=True)
            if x.dtype == np.float32
            else torch.tensor(x)
            for name, x in inputs.items()
        }
        value = mean_loss(tensors, **options)
        value.backward()
        found = {f"grad/{name}": x.grad.numpy() for name, x in tensors.items() if x.requires_grad}
        record |= {
            f"{case}/{name}": x for name, x in {**inputs, "value": value.detach().numpy(), **found}.items()
        }
    arrays = {name: np.ascontiguousarray(x).reshape(np.shape(x)) for name, x in record.items()}
    save_file(arrays, Path(__file__).with_name("chunked.safetensors"))


if __name__ == "__main__":
    main()
