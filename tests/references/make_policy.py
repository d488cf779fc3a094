"""Record policy losses by their published formulas, in torch and float64: run with a Python that has torch.

Inputs are `inputs/NAME`. `grpo/LOSS_TYPE/LEVEL/KL/WHAT` holds the value, weight and gradient by the policy's
log-probabilities for beta 0.3, epsilon 0.2 and epsilon_high 0.28; `grpo/bare`, `grpo/delta` and
`grpo/truncated` are for the variations that the code below shows, and `metrics/NAME` for the bare one.
`advantages/NAME`, `gae/NAME`, `reinforce/NAME` and `ppo/NAME` are what they say.

Written from the papers, with the normalizations as TRL documents them: a mean over the sequences ("grpo"),
over the tokens ("bnpo", "dapo"), or a sum over a constant ("dr_grpo"). Sequences without a token are dropped
first, here by indexing.
"""

from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file

N, LENGTH, GROUP, MAX_LENGTH = 8, 7, 4, 11
BETA, LOW, HIGH = 0.3, 0.2, 0.28


def draw(rng):
    """Draw completions of different lengths: one empty, one with a hole, one of a single token."""
    logps = -np.abs(rng.normal(size=(N, LENGTH))) - 0.1
    start, stop = [1, 0, 2, 3, 1, 0, 2, 2], [7, 4, 5, 7, 2, 7, 7, 2]
    place = np.arange(LENGTH)
    mask = (place >= np.array(start)[:, None]) & (place < np.array(stop)[:, None])
    mask[5, 3] = False
    inputs = {
        "logps": logps,
        "behavior_logps": logps + 0.35 * rng.normal(size=logps.shape),
        "ref_logps": logps + 0.6 * rng.normal(size=logps.shape),
        "advantages": rng.normal(size=N),
        "token_advantages": rng.normal(size=logps.shape),
        "mask": mask,
        "truncated": np.array([0, 1, 0, 0, 0, 0, 1, 0]),
        "rewards": np.concatenate([rng.normal(size=GROUP), 1e4 + rng.integers(0, 9, GROUP)]),
        "token_rewards": rng.normal(size=logps.shape),
        "values": rng.normal(size=logps.shape),
        "behavior_values": rng.normal(size=logps.shape),
        "returns": rng.normal(size=logps.shape),
    }
    return {name: np.asarray(values, np.float32) for name, values in inputs.items()}


def grpo(inputs, loss_type, level, kl, *, beta=BETA, delta=None, truncated=None):
    """Return value, weight, gradient and metrics."""
    keep = inputs["mask"].sum(-1) > 0
    if truncated is not None:
        keep &= truncated == 0
    keep = torch.tensor(keep)
    variable = torch.tensor(inputs["logps"], dtype=torch.float64, requires_grad=True)
    x = {name: torch.tensor(part, dtype=torch.float64) for name, part in inputs.items()}
    logps, old, ref, mask = (a[keep] for a in (variable, x["behavior_logps"], x["ref_logps"], x["mask"]))
    log_weights = logps - old
    if level == "sequence":
        log_weights = ((log_weights * mask).sum(-1) / mask.sum(-1))[:, None]
    ratio = log_weights.exp()
    advantages = x["advantages"][keep][:, None]
    clipped = ratio.clamp(1 - LOW, 1 + HIGH)
    held = ((advantages < 0) & (ratio < 1 - LOW)) | ((advantages > 0) & (ratio > 1 + HIGH))
    unbounded = ratio if delta is None else ratio.clamp(max=delta)
    tokens = -torch.minimum(unbounded * advantages, clipped * advantages)
    difference = ref - logps
    divergence = {
        "k1": -difference,
        "k2": 0.5 * difference**2,
        "k3": difference.exp() - difference - 1,
    }[kl]
    tokens = (tokens + beta * divergence) * mask
    count = mask.sum()
    if loss_type == "grpo":
        value, weight = (tokens.sum(-1) / mask.sum(-1)).mean(), len(mask)
    elif loss_type == "dr_grpo":
        value, weight = tokens.sum() / (len(mask) * MAX_LENGTH), len(mask) * MAX_LENGTH
    else:
        value, weight = tokens.sum() / count, count.item()
    value.backward()
    weights = mask if level == "token" else torch.ones(len(mask), 1, dtype=torch.float64)
    metrics = {
        "ratio": (ratio * weights).sum() / weights.sum(),
        "clip_fraction": (held * weights).sum() / weights.sum(),
        "kl": (divergence * mask).sum() / count,
    }
    out = {"value": value.detach().numpy(), "weight": np.float64(weight), "gradient": variable.grad.numpy()}
    return out, {name: part.detach().numpy() for name, part in metrics.items()}


def advantages(rewards):
    """Return the advantages of groups, one completion at a time."""
    groups = rewards.astype(np.float64).reshape(-1, GROUP)
    scaled = [(r - g.mean()) / (np.std(g, ddof=1) + 1e-4) for g in groups for r in g]
    unscaled = [r - g.mean() for g in groups for r in g]
    left_out = [r - (g.sum() - r) / (GROUP - 1) for g in groups for r in g]
    return {"group": np.array(scaled), "unscaled": np.array(unscaled), "leave_one_out": np.array(left_out)}


def gae(inputs, gamma, lam):
    """Return advantages and returns by the recursion, row by row from the end; a hole is an end."""
    rewards, values = (inputs[name].astype(np.float64) for name in ("token_rewards", "values"))
    out = np.zeros_like(values)
    for row in range(N):
        following, advantage = 0.0, 0.0
        for t in reversed(range(LENGTH)):
            if inputs["mask"][row, t]:
                delta = rewards[row, t] + gamma * following - values[row, t]
                advantage = delta + gamma * lam * advantage
                following, out[row, t] = values[row, t], advantage
            else:
                following, advantage = 0.0, 0.0
    return {"advantages": out, "returns": (out + values) * inputs["mask"]}


def reinforce(inputs):
    """Return the value and gradient of the mean of minus advantage times the sequence's log-probability."""
    x = {name: torch.tensor(part, dtype=torch.float64) for name, part in inputs.items()}
    logps = x["logps"].requires_grad_()
    keep = x["mask"].sum(-1) > 0
    value = -(x["advantages"] * (logps * x["mask"]).sum(-1))[keep].mean()
    value.backward()
    return {"value": value.detach().numpy(), "gradient": logps.grad.numpy()}


def ppo(inputs):
    """Return the value and gradients of policy and value loss, by token means."""
    x = {name: torch.tensor(part, dtype=torch.float64) for name, part in inputs.items()}
    logps, values = x["logps"].requires_grad_(), x["values"].requires_grad_()
    on = x["mask"] > 0
    ratio = (logps - x["behavior_logps"]).exp()[on]
    policy = torch.maximum(
        -x["token_advantages"][on] * ratio, -x["token_advantages"][on] * ratio.clamp(1 - LOW, 1 + LOW)
    )
    near = torch.clamp(values, x["behavior_values"] - 0.5, x["behavior_values"] + 0.5)
    first, second = (values - x["returns"])[on] ** 2, (near - x["returns"])[on] ** 2
    value_loss = 0.5 * torch.maximum(first, second).mean()
    value = policy.mean() + 0.7 * value_loss
    value.backward()
    return {
        "value": value.detach().numpy(),
        "gradient": logps.grad.numpy(),
        "values_gradient": values.grad.numpy(),
        "value_loss": value_loss.detach().numpy(),
        "value_clip_fraction": (second > first).double().mean().numpy(),
    }


def main():
    """Write the file."""
    inputs = draw(np.random.default_rng(0))
    flat = {f"inputs/{name}": part for name, part in inputs.items()}

    def add(prefix, parts):
        flat.update({f"{prefix}/{name}": np.asarray(part) for name, part in parts.items()})

    for loss_type in ("grpo", "bnpo", "dr_grpo", "dapo"):
        for level in ("token", "sequence"):
            for kl in ("k1", "k2", "k3"):
                out, metrics = grpo(inputs, loss_type, level, kl)
                add(f"grpo/{loss_type}/{level}/{kl}", out)
                if loss_type == "grpo":
                    add(f"metrics/{level}/{kl}", metrics)
    add("grpo/bare", grpo(inputs, "grpo", "token", "k3", beta=0)[0])
    add("grpo/delta", grpo(inputs, "dapo", "token", "k3", beta=0, delta=1.35)[0])
    add("grpo/truncated", grpo(inputs, "grpo", "token", "k3", truncated=inputs["truncated"])[0])
    add("advantages", advantages(inputs["rewards"]))
    add("gae", gae(inputs, 0.97, 0.9))
    add("reinforce", reinforce(inputs))
    add("ppo", ppo(inputs))
    save_file(flat, Path(__file__).with_name("policy.safetensors"))


if __name__ == "__main__":
    main()
