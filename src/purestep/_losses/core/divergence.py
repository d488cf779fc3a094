"""Divergences between two distributions, from their log-probabilities."""

import math
from typing import Literal, TypeAlias, get_args

import mlx.core as mx

from purestep._core import sums
from purestep._losses.core.numerics import LOG_ZERO

Divergence: TypeAlias = Literal["forward_kl", "reverse_kl", "jsd"]
DIVERGENCES: tuple[Divergence, ...] = get_args(Divergence)


def divergence_of(log_p: mx.array, log_q: mx.array, divergence: str, beta: float) -> mx.array:
    """Return the divergence of teacher `p` and student `q` over the last axis."""
    log_p, log_q = mx.maximum(log_p, LOG_ZERO), mx.maximum(log_q, LOG_ZERO)
    p, q = mx.exp(log_p), mx.exp(log_q)
    if divergence == "forward_kl":
        return sums.total(p * (log_p - log_q), -1)
    if divergence == "reverse_kl":
        return sums.total(q * (log_q - log_p), -1)
    log_m = mx.logaddexp(log_p + math.log(beta), log_q + math.log1p(-beta))
    return sums.total(beta * p * (log_p - log_m) + (1 - beta) * q * (log_q - log_m), -1)
