"""Record distillation losses in torch and float64: run with a Python that has torch and optax.

Each case is `SET/CASE/WHAT`: the value, a mean weighted with `SET/weights`, and its gradient by the student's
logits. Inputs are `SET/NAME`, `SET` being `random` or `extreme` (logits of 1e4 either way). The top-k cases
gather first and put the rest of the mass into one more class. Where torch and optax both have the loss, they
are compared here.
"""

from pathlib import Path

import jax
import numpy as np
import optax
import torch
from safetensors.numpy import save_file
from torch.nn.functional import cross_entropy, kl_div

BATCH, LENGTH, VOCAB, K = 2, 5, 9, 3


def draw(rng, extreme):
    """Draw logits, targets with some to ignore, weights with zeros, and the teacher's largest logits."""
    shape = (BATCH, LENGTH, VOCAB)
    if extreme:
        student, teacher = (rng.choice([-1e4, 0.0, 1e4], shape) + rng.normal(size=shape) for _ in range(2))
    else:
        student, teacher = 2 * rng.normal(size=shape), 3 * rng.normal(size=shape)
    student, teacher = student.astype(np.float32), teacher.astype(np.float32)
    indices = np.argsort(-teacher, axis=-1)[..., :K]
    targets = rng.integers(0, VOCAB, (BATCH, LENGTH))
    targets[0, 1] = -100
    return {
        "student": student,
        "teacher": teacher,
        "indices": indices.astype(np.int32),
        "targets": targets.astype(np.int32),
        "weights": np.resize(np.array([1, 1, 0, 0.5, 2, 1], np.float32), (BATCH, LENGTH)),
    }


def full(student, teacher, temperature):
    """Return the log-probabilities of teacher and student over the vocabulary."""
    return torch.log_softmax(teacher / temperature, -1), torch.log_softmax(student / temperature, -1)


def with_rest(student, teacher, indices, temperature):
    """Return log-probabilities of the teacher's largest classes, and of all others together."""
    out = []
    for logps in full(student, teacher, temperature):
        others = logps.scatter(-1, indices, -torch.inf)
        out.append(torch.cat([logps.gather(-1, indices), others.logsumexp(-1, keepdim=True)], -1))
    return out


def renormalized(student, teacher, indices, temperature):
    """Return the same with a teacher that has no mass elsewhere."""
    _, log_q = with_rest(student, teacher, indices, temperature)
    log_p = torch.log_softmax(teacher.gather(-1, indices) / temperature, -1)
    return torch.cat([log_p, torch.full_like(log_p[..., :1], -torch.inf)], -1), log_q


def divergence(name, log_p, log_q, beta=0.5):
    """Return KL either way or the generalized Jensen-Shannon divergence."""

    def kl(log_a, log_b):
        return kl_div(log_b, log_a, reduction="none", log_target=True).nan_to_num(nan=0.0).sum(-1)

    if name == "forward_kl":
        return kl(log_p, log_q)
    if name == "reverse_kl":
        return kl(log_q, log_p)
    log_m = torch.log(beta * log_p.exp() + (1 - beta) * log_q.exp() + 1e-300)
    return beta * kl(log_p, log_m) + (1 - beta) * kl(log_q, log_m)


def record(inputs):
    """Return the cases of one set of inputs."""
    x = {
        name: torch.tensor(part, dtype=torch.float64 if part.dtype == np.float32 else torch.int64)
        for name, part in inputs.items()
    }
    cases = {}

    def add(case, losses, weights=x["weights"]):
        student = x["student"].clone().requires_grad_()
        value = (losses(student) * weights).sum() / weights.sum()
        value.backward()
        cases[case] = {"value": value.detach().numpy(), "gradient": student.grad.numpy()}

    teacher, indices = x["teacher"], x["indices"]
    for name in ("forward_kl", "reverse_kl", "jsd"):
        add(name, lambda s, name=name: 16 * divergence(name, *full(s, teacher, 4.0)))
        add(f"{name}_top", lambda s, name=name: 4 * divergence(name, *with_rest(s, teacher, indices, 2.0)))
    add("jsd_0.2", lambda s: divergence("jsd", *full(s, teacher, 1.0), beta=0.2))
    for name in ("forward_kl", "jsd"):
        add(
            f"{name}_bare", lambda s, name=name: 4 * divergence(name, *renormalized(s, teacher, indices, 2.0))
        )
    kept = x["weights"] * (x["targets"] != -100)

    def mixed(student):
        hard = cross_entropy(
            student.reshape(-1, VOCAB), x["targets"].reshape(-1), ignore_index=-100, reduction="none"
        )
        soft = divergence("forward_kl", *full(student, teacher, 4.0))
        return 0.7 * 16 * soft + 0.3 * hard.reshape(BATCH, LENGTH)

    add("mixed", mixed, kept)
    return cases


def check_against_optax(inputs, cases):
    """Compare with optax where it has the loss."""
    with jax.enable_x64(True):
        student, teacher = (
            jax.numpy.asarray(inputs[name], "float64") / 4.0 for name in ("student", "teacher")
        )
        losses = 16 * optax.kl_divergence(jax.nn.log_softmax(student), jax.nn.softmax(teacher))
        value = np.average(losses, weights=inputs["weights"])
    np.testing.assert_allclose(value, cases["forward_kl"]["value"], rtol=1e-9)


def main():
    """Write the file."""
    rng, flat = np.random.default_rng(0), {}
    for name in ("random", "extreme"):
        inputs = draw(rng, name == "extreme")
        cases = record(inputs)
        check_against_optax(inputs, cases)
        flat |= {f"{name}/{what}": part for what, part in inputs.items()}
        for case, parts in cases.items():
            flat |= {f"{name}/{case}/{what}": np.asarray(part) for what, part in parts.items()}
    for key, part in flat.items():
        assert np.isfinite(part).all(), key
    save_file(flat, Path(__file__).with_name("distillation.safetensors"))


if __name__ == "__main__":
    main()
