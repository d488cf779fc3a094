"""Record preference losses by their published formulas in float64: run with a Python that has torch.

Inputs are `SET/NAME` of the sets `random` (log-probabilities of sequences), `average` (per token) and
`extreme` (differences of up to 4e4). Each case is `SET/CASE/WHAT`: the value, a mean weighted with `weights`,
its gradients by chosen and rejected (for `kto`, by the single log-probabilities), and metrics if it has any.
"""

from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file
from torch.nn.functional import logsigmoid

N = 12


def draw(rng, name):
    """Draw log-probabilities; some pairs weigh nothing, some more than one."""
    shape = (4, N)
    if name == "random":
        logps = -20 - 8 * rng.normal(size=shape)
    elif name == "average":
        logps = -np.exp(rng.normal(size=shape) - 1)
        logps[:, 0], logps[:, 1], logps[:, 2] = -1e-5, -30, -np.log(2)
    else:
        logps = rng.choice([-1e4, -20.0, -1.0, -1e-3], shape)
    names = ("chosen", "rejected", "ref_chosen", "ref_rejected")
    return {
        **{name: part.astype(np.float32) for name, part in zip(names, logps, strict=True)},
        "weights": np.resize(np.array([1, 0, 2, 0.5, 1], np.float32), N),
        "desirable": (rng.uniform(size=N) < 0.5).astype(np.float32),
        "kl": rng.normal(size=N).astype(np.float32) + 0.4,
    }


def sigmoid(h, smoothing=0.0):
    """Return the smoothed negative log-likelihood of a margin."""
    return -(1 - smoothing) * logsigmoid(h) - smoothing * logsigmoid(-h)


def log1m_exp(x):
    """Return log(1 - exp(x))."""
    return torch.log(-torch.expm1(x))


LOSSES = {
    "dpo": lambda c, r, rc, rr: sigmoid(0.1 * ((c - r) - (rc - rr))),
    "dpo_smoothed": lambda c, r, rc, rr: sigmoid(0.3 * ((c - r) - (rc - rr)), 0.2),
    "dpo_free": lambda c, r, rc, rr: sigmoid(0.1 * (c - r)),
    "dpo_hinge": lambda c, r, rc, rr: torch.relu(1 - 0.1 * ((c - r) - (rc - rr))),
    "dpo_ipo": lambda c, r, rc, rr: ((c - r) - (rc - rr) - 1 / (2 * 0.3)) ** 2,
    "cpo": lambda c, r, rc, rr: sigmoid(0.1 * (c - r)) - c,
    "cpo_hinge": lambda c, r, rc, rr: torch.relu(1 - 0.2 * (c - r)) - 0.5 * rc,
    "simpo": lambda c, r, rc, rr: sigmoid(2.0 * (c - r) - 0.5),
    "simpo_smoothed": lambda c, r, rc, rr: sigmoid(2.5 * (c - r) - 1.5, 0.1),
    "orpo": lambda c, r, rc, rr: -c - 0.1 * logsigmoid((c - r) - (log1m_exp(c) - log1m_exp(r))),
}


def pairs(inputs, loss):
    """Return value and gradients of a loss on pairs."""
    c, r, rc, rr, w = (
        torch.tensor(inputs[name], dtype=torch.float64)
        for name in ("chosen", "rejected", "ref_chosen", "ref_rejected", "weights")
    )
    c, r = c.requires_grad_(), r.requires_grad_()
    value = (loss(c, r, rc, rr) * w).sum() / w.sum()
    value.backward()
    return {"value": value.detach(), "chosen": c.grad, "rejected": r.grad}


def kto(inputs, beta, desirable_weight, undesirable_weight, shift):
    """Return value and gradient of the loss on single completions."""
    x = {name: torch.tensor(part, dtype=torch.float64) for name, part in inputs.items()}
    logps, w = x["chosen"].requires_grad_(), x["weights"]
    point = torch.clamp((x["kl"] + shift).mean(), min=0)
    moved = logps - x["ref_chosen"]
    good = 1 - torch.sigmoid(beta * (moved - point))
    bad = 1 - torch.sigmoid(beta * (point - moved))
    losses = torch.where(x["desirable"] > 0, desirable_weight * good, undesirable_weight * bad)
    value = (losses * w).sum() / w.sum()
    value.backward()
    return {"value": value.detach(), "chosen": logps.grad, "kl": point}


def metrics(inputs, beta):
    """Return what is reported beside DPO."""
    x = {name: inputs[name].astype(np.float64) for name in inputs}
    chosen, rejected = beta * (x["chosen"] - x["ref_chosen"]), beta * (x["rejected"] - x["ref_rejected"])
    parts = {
        "rewards_chosen": chosen,
        "rewards_rejected": rejected,
        "rewards_margins": chosen - rejected,
        "rewards_accuracies": chosen > rejected,
    }
    return {name: np.average(part, weights=x["weights"]) for name, part in parts.items()}


def main():
    """Write the file."""
    rng, flat = np.random.default_rng(0), {}
    for name in ("random", "average", "extreme"):
        inputs = draw(rng, name)
        cases = {case: pairs(inputs, loss) for case, loss in LOSSES.items()}
        cases["dpo_metrics"] = metrics(inputs, 0.1)
        cases["kto"] = kto(inputs, 0.1, 1.0, 1.0, 0.0)
        cases["kto_weighted"] = kto(inputs, 0.2, 1.3, 0.7, -9.0)
        flat |= {f"{name}/{what}": part for what, part in inputs.items()}
        flat |= {
            f"{name}/{case}/{what}": np.asarray(part)
            for case, parts in cases.items()
            for what, part in parts.items()
        }
    assert all(np.isfinite(part).all() for part in flat.values())
    save_file(flat, Path(__file__).with_name("preference.safetensors"))


if __name__ == "__main__":
    main()
