"""How far two distributions are apart, from their log-probabilities."""

import math

import mlx.core as mx

from purestep._core import sums

DIVERGENCES = ("forward_kl", "reverse_kl", "jsd")
IMPOSSIBLE = -1e30  # stands for the logarithm of zero: finite, so that zero times it is zero


def divergence_of(log_p: mx.array, log_q: mx.array, divergence: str, beta: float) -> mx.array:
    """Return the divergence of the last axis, of teacher `p` and student `q`."""
    log_p, log_q = mx.maximum(log_p, IMPOSSIBLE), mx.maximum(log_q, IMPOSSIBLE)
    p, q = mx.exp(log_p), mx.exp(log_q)
    if divergence == "forward_kl":
        return sums.total(p * (log_p - log_q), -1)
    if divergence == "reverse_kl":
        return sums.total(q * (log_q - log_p), -1)
    log_m = mx.logaddexp(log_p + math.log(beta), log_q + math.log1p(-beta))
    return sums.total(beta * p * (log_p - log_m) + (1 - beta) * q * (log_q - log_m), -1)
