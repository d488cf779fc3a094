"""Distillation: losses that fit a student's distribution to a teacher's, in full or to its top k classes."""

import math
from typing import NamedTuple

import mlx.core as mx

from purestep._core import checks
from purestep._core.mean import Mean
from purestep._losses.core import inputs, numerics, validity, weighting
from purestep._losses.core.divergence import DIVERGENCES, Divergence, divergence_of


def soft_target_loss(
    student_logits: mx.array,
    teacher_logits: mx.array,
    *,
    temperature: float | mx.array = 4.0,
    divergence: Divergence = "forward_kl",
    beta: float = 0.5,
    teacher_indices: mx.array | None = None,
    teacher_rest: mx.array | None = None,
    weights: mx.array | None = None,
) -> Mean:
    """Return the divergence between teacher and student at a temperature, times temperature².

    With `p = softmax(teacher_logits / T)`, `q = softmax(student_logits / T)` and, for "jsd",
    `m = beta * p + (1 - beta) * q`:

        forward_kl   T² * sum p * log(p / q)                   the student covers all classes of the teacher
        reverse_kl   T² * sum q * log(q / p)                   the student stays within the teacher's classes
        jsd          T² * (beta * KL(p || m) + (1 - beta) * KL(q || m))

    The factor T² makes the size of the gradient independent of the temperature. The teacher has no gradient.

    A teacher can be stored as its `k` largest logits with their indices (see `top_k_logits`). All its other
    classes then form one more class, and so do the student's: the result is a divergence over k + 1 classes,
    which never exceeds that over the whole vocabulary. `teacher_rest` is the mass of that extra class. If it
    is missing, the mass is zero: the k probabilities are normalized to a sum of 1, and the student, whose
    probabilities still cover the whole vocabulary, learns to give the other classes none.

    Args:
        student_logits: floating [..., vocab].
        teacher_logits: floating [..., vocab], or [..., k] with `teacher_indices`.
        temperature: above 0: a number, or a 0-d array, which is not checked.
        divergence: "forward_kl", "reverse_kl" or "jsd".
        beta: in (0, 1), weight of the teacher in the mixture; "jsd" only.
        teacher_indices: integer [..., k], distinct: the classes of the teacher's logits. An index outside
            [0, vocab) makes the loss NaN.
        teacher_rest: floating [...], the logarithm of the sum of `exp(logit / temperature)` over the
            teacher's other classes. "reverse_kl" requires it, because the divergence from a teacher
            without mass elsewhere is infinite.
        weights: [...] or a shape that broadcasts to it; a position of weight 0 is skipped, and its other
            inputs may be infinite or NaN.

    Returns:
        A `Mean` over positions, in nats times temperature².

    Raises:
        ValueError: if shapes do not fit, an option is out of range, or a required argument is missing.
        TypeError: if logits are not floating or indices not integers.

    References: Hinton et al., arXiv:1503.02531; reverse, Gu et al., arXiv:2306.08543; Jensen-Shannon, Agarwal
    et al., arXiv:2306.13649.

    >>> soft_target_loss(mx.array([0.0, 0.0]), mx.array([4.0, -4.0])).value
    array(5.24501, dtype=float32)
    """
    caller = "soft_target_loss"
    teacher = _Teacher(teacher_logits, teacher_indices, teacher_rest)
    form = _Form(checks.python_number(temperature), divergence, checks.python_number(beta))
    weights = _check(caller, student_logits, teacher, form, weights)
    student = weighting.masked(weights, student_logits.astype(mx.float32))
    return Mean.of(_soft(student, teacher, form, weights), weights)


def top_k_logits(
    teacher_logits: mx.array, k: int, *, temperature: float | mx.array = 4.0
) -> tuple[mx.array, mx.array, mx.array]:
    """Return a teacher's `k` largest logits, their classes, and the mass of the other classes.

    Args:
        teacher_logits: floating [..., vocab].
        k: from 1 to vocab.
        temperature: above 0, the temperature of the loss that will use them.

    Returns:
        `(logits, indices, rest)`, [..., k], [..., k] and float32 [...]: the arguments `teacher_logits`,
        `teacher_indices` and `teacher_rest` of `soft_target_loss`.

    Raises:
        ValueError: if k or the temperature is out of range.
        TypeError: if the logits are not floating.

    >>> top_k_logits(mx.array([[0.0, 8.0, 4.0, 0.0]]), 2)[0::2]
    (array([[8, 4]], dtype=float32), array([0.693147], dtype=float32))
    """
    caller = "top_k_logits"
    inputs.floating(caller, "teacher_logits", teacher_logits)
    temperature = checks.number(caller, "temperature", temperature, above=0)
    k = checks.integer(caller, "k", k, least=1)
    if teacher_logits.ndim == 0 or teacher_logits.shape[-1] < k:
        raise checks.error(caller, f"k must be at most the vocabulary of {teacher_logits.shape}, got {k}")
    indices = mx.argsort(-teacher_logits, axis=-1)[..., :k]
    wide = teacher_logits.astype(mx.float32) / temperature
    rest = numerics.logsumexp(mx.put_along_axis(wide, indices, mx.array(-math.inf), axis=-1))
    return mx.take_along_axis(teacher_logits, indices, axis=-1), indices, rest


def distillation_loss(
    student_logits: mx.array,
    teacher_logits: mx.array,
    targets: mx.array,
    *,
    temperature: float | mx.array = 4.0,
    alpha: float | mx.array = 0.7,
    divergence: Divergence = "forward_kl",
    beta: float = 0.5,
    teacher_indices: mx.array | None = None,
    teacher_rest: mx.array | None = None,
    ignore_index: int | None = None,
    weights: mx.array | None = None,
) -> tuple[Mean, dict[str, Mean]]:
    """Return a mixture of the loss against the teacher and the loss against the targets.

        alpha * soft_target_loss + (1 - alpha) * cross_entropy

    Args:
        student_logits: floating [..., vocab].
        teacher_logits: floating [..., vocab], or [..., k] with `teacher_indices`.
        targets: integer [...]. A target outside [0, vocab) at a position whose weight is not 0 makes the loss
            NaN.
        temperature: above 0, for the soft targets; cross entropy uses temperature 1.
        alpha: in [0, 1], weight of the soft targets.
        divergence: as in `soft_target_loss`.
        beta: as in `soft_target_loss`.
        teacher_indices: as in `soft_target_loss`.
        teacher_rest: as in `soft_target_loss`.
        ignore_index: positions with this target are skipped, by both losses.
        weights: as in `soft_target_loss`.

    Returns:
        `(Mean, metrics)` over positions. Metrics, in nats: `soft`, the soft target loss with its
        factor temperature²; `hard`, the cross entropy.

    Raises:
        ValueError, TypeError: as `soft_target_loss`, and for targets that are not integers of shape [...].

    Reference: Hinton et al., arXiv:1503.02531.

    >>> loss, metrics = distillation_loss(mx.zeros((1, 2)), mx.zeros((1, 2)), mx.array([1]), alpha=0.5)
    >>> metrics["soft"].value, metrics["hard"].value, loss.value
    (array(0, dtype=float32), array(0.693147, dtype=float32), array(0.346574, dtype=float32))
    """
    caller = "distillation_loss"
    alpha = checks.number(caller, "alpha", alpha, least=0, most=1)
    if ignore_index is not None:
        ignore_index = checks.integer(caller, "ignore_index", ignore_index)
    teacher = _Teacher(teacher_logits, teacher_indices, teacher_rest)
    form = _Form(checks.python_number(temperature), divergence, checks.python_number(beta))
    weights = _check(caller, student_logits, teacher, form, weights)
    names = ("student_logits", "targets")
    student, labels, valid, weights = inputs.classes(
        caller, student_logits, targets, weights, names, ignore_index
    )
    soft = _soft(student, teacher, form, weights)
    hard = -numerics.gather(numerics.log_softmax(student), labels) * valid
    metrics = {
        "soft": Mean.of(mx.stop_gradient(soft), weights),
        "hard": Mean.of(mx.stop_gradient(hard), weights),
    }
    return Mean.of(alpha * soft + (1 - alpha) * hard, weights), metrics


class _Teacher(NamedTuple):
    """A teacher's logits: all of them, or some with their classes and the mass of the rest."""

    logits: mx.array
    indices: mx.array | None
    rest: mx.array | None


class _Form(NamedTuple):
    """The options of the divergence, documented in `soft_target_loss`."""

    temperature: float | mx.array
    divergence: Divergence
    beta: float


def _soft(student: mx.array, teacher: _Teacher, form: _Form, weights: mx.array | None) -> mx.array:
    """Return each position's divergence, times temperature², for student logits in float32."""
    log_q = numerics.log_softmax(student / form.temperature)
    scores = weighting.masked(weights, teacher.logits.astype(mx.float32))
    scores = mx.stop_gradient(scores) / form.temperature
    valid = None
    if teacher.indices is not None:
        scores, log_q, valid = _joined(scores, log_q, teacher.indices, teacher.rest, weights)
    losses = divergence_of(numerics.log_softmax(scores), log_q, form.divergence, form.beta)
    losses = losses * (form.temperature * form.temperature)
    return losses if valid is None else losses * valid


def _joined(
    scores: mx.array, log_q: mx.array, indices: mx.array, rest: mx.array | None, weights: mx.array | None
) -> tuple[mx.array, mx.array, mx.array]:
    """Return the teacher's scores and the student's log-probabilities over k classes and all others joined.

    The third array is a factor for the losses, NaN where an index is out of range.
    """
    vocab, indices = log_q.shape[-1], inputs.signed(indices)
    valid = mx.logical_and(indices >= 0, indices < vocab).all(axis=-1)
    indices = mx.clip(indices, 0, vocab - 1)
    others = mx.put_along_axis(log_q, indices, mx.array(numerics.LOG_ZERO), axis=-1)
    log_q = mx.take_along_axis(log_q, indices, axis=-1)
    if indices.shape[-1] < vocab:
        if rest is None:
            mass = mx.full(scores[..., :1].shape, numerics.LOG_ZERO)
        else:
            mass = mx.stop_gradient(weighting.masked(weights, rest.astype(mx.float32)))[..., None]
        scores = mx.concatenate([scores, mass], axis=-1)
        # The student's own others: 1 - sum(q) would lose all digits of a small remainder.
        log_q = mx.concatenate([log_q, numerics.logsumexp(others, keepdims=True)], axis=-1)
    return scores, log_q, validity.nan_unless(valid, weights)


def _check(
    caller: str, student: mx.array, teacher: _Teacher, form: _Form, weights: mx.array | None
) -> mx.array | None:
    """Check the arguments, and return the weight of each position."""
    logits, indices, rest = teacher
    inputs.floating(caller, "student_logits", student)
    inputs.floating(caller, "teacher_logits", logits)
    if student.ndim == 0 or student.shape[-1] == 0:
        raise checks.error(
            caller, f"student_logits must be [..., vocab] with vocab >= 1, got {student.shape}"
        )
    if indices is None:
        inputs.same_shape(caller, "teacher_logits", logits, "student_logits", student)
        if rest is not None:
            raise checks.error(caller, "teacher_rest must come with teacher_indices, got it alone")
    else:
        _check_top(caller, student, logits, indices)
    if rest is not None:
        inputs.floating(caller, "teacher_rest", rest)
        if rest.shape != student.shape[:-1]:
            raise checks.error(caller, f"teacher_rest must have shape {student.shape[:-1]}, got {rest.shape}")
    checks.number(caller, "temperature", form.temperature, above=0)
    checks.one_of(caller, "divergence", form.divergence, DIVERGENCES)
    if isinstance(form.beta, mx.array):
        raise TypeError(f"{caller}: beta must be a Python number, got an array")
    checks.number(caller, "beta", form.beta, above=0, below=1)
    if form.divergence == "reverse_kl" and indices is not None and rest is None:
        raise checks.error(caller, "teacher_rest must be given for a reverse_kl of top-k logits, got None")
    return weighting.broadcast(caller, weights, student.shape[:-1], "the positions'")


def _check_top(caller: str, student: mx.array, logits: mx.array, indices: mx.array) -> None:
    inputs.integers(caller, "teacher_indices", indices)
    if logits.shape[:-1] != student.shape[:-1] or not 0 < logits.shape[-1] <= student.shape[-1]:
        raise checks.error(
            caller,
            f"teacher_logits must have student_logits' {student.shape}, the last axis shortened to k of "
            f"1 to {student.shape[-1]}, got {logits.shape}",
        )
    inputs.same_shape(caller, "teacher_indices", indices, "teacher_logits", logits)
