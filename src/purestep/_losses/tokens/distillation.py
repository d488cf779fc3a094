"""Distillation: losses that make a student's distribution like a teacher's, all of it or its largest part."""

import math

import mlx.core as mx

from purestep._core import checks
from purestep._core.mean import Mean
from purestep._losses.core import reduce
from purestep._losses.core.divergence import DIVERGENCES, IMPOSSIBLE, divergence_of


def soft_target_loss(
    student_logits: mx.array,
    teacher_logits: mx.array,
    *,
    temperature: float | mx.array = 4.0,
    divergence: str = "forward_kl",
    beta: float = 0.5,
    teacher_indices: mx.array | None = None,
    teacher_rest: mx.array | None = None,
    weights: mx.array | None = None,
) -> Mean:
    """Return the divergence between the softened distributions of teacher and student, times temperature².

    With `p = softmax(teacher_logits / T)`, `q = softmax(student_logits / T)` and, for "jsd",
    `m = beta * p + (1 - beta) * q`:

        forward_kl   T² * sum p * log(p / q)                   the student covers what the teacher does
        reverse_kl   T² * sum q * log(q / p)                   the student keeps to what the teacher does
        jsd          T² * (beta * KL(p || m) + (1 - beta) * KL(q || m))

    The square makes the size of the gradient independent of the temperature. The teacher is a constant.

    A teacher stored as its `k` largest logits is given with their indices, as `top_k_logits` makes them. Its
    other classes together are then one more, beside the student's own others: a divergence of k + 1 classes,
    never more than that of the whole vocabulary. Their mass is known only with `teacher_rest`. Without it
    it counts as zero: the k probabilities are normalized to one, and the student, whose probabilities
    remain those of the whole vocabulary, is taught to put nothing elsewhere.

    Args:
        student_logits: floating [..., vocab].
        teacher_logits: floating [..., vocab], or [..., k] with `teacher_indices`.
        temperature: above 0: a number or a 0-d array, which is not read.
        divergence: "forward_kl", "reverse_kl" or "jsd".
        beta: in (0, 1), the teacher's share of the mixture; "jsd" only.
        teacher_indices: integer [..., k], distinct: where the teacher's logits belong. One outside
            [0, vocab) makes the loss NaN.
        teacher_rest: floating [...], the logarithm of the sum of `exp(logit / temperature)` over the
            teacher's other classes. "reverse_kl" needs it: from a teacher without mass elsewhere, a
            student with any is infinitely far off.
        weights: [...] or a shape that broadcasts to it: what each position counts. Where it is zero,
            everything else may be infinite or NaN.

    Returns:
        A `Mean` over positions, in nats times temperature².

    Raises:
        ValueError: if shapes do not fit, an option is out of range, or what it needs is missing.
        TypeError: if logits are not floating or indices not integers.

    References: Hinton et al., arXiv:1503.02531; reverse, Gu et al., arXiv:2306.08543; Jensen-Shannon, Agarwal
    et al., arXiv:2306.13649.

    >>> soft_target_loss(mx.array([0.0, 0.0]), mx.array([4.0, -4.0])).value
    array(5.24501, dtype=float32)
    """
    caller = "soft_target_loss"
    top = teacher_indices, teacher_rest
    temperature, beta = checks.python_number(temperature), checks.python_number(beta)
    counts = _check(caller, student_logits, teacher_logits, *top, weights, temperature, divergence, beta)
    student = reduce.keep(counts, student_logits.astype(mx.float32))
    losses = _soft(student, teacher_logits, temperature, divergence, beta, *top, counts)
    return Mean.of(losses, counts)


def top_k_logits(
    teacher_logits: mx.array, k: int, *, temperature: float | mx.array = 4.0
) -> tuple[mx.array, mx.array, mx.array]:
    """Shorten a teacher's logits to its `k` likeliest classes and what the others weigh together.

    Args:
        teacher_logits: floating [..., vocab].
        k: from 1 to vocab.
        temperature: above 0, that of the loss they are meant for.

    Returns:
        `(logits, indices, rest)`, [..., k], [..., k] and float32 [...]: the first three things that
        `soft_target_loss` asks of such a teacher, `teacher_logits`, `teacher_indices`, `teacher_rest`.

    Raises:
        ValueError: if k or the temperature are out of range.
        TypeError: if the logits are not floating.

    >>> top_k_logits(mx.array([[0.0, 8.0, 4.0, 0.0]]), 2)[0::2]
    (array([[8, 4]], dtype=float32), array([0.693147], dtype=float32))
    """
    caller = "top_k_logits"
    reduce.floating(caller, "teacher_logits", teacher_logits)
    temperature = checks.number(caller, "temperature", temperature, above=0)
    k = checks.integer(caller, "k", k, least=1)
    if teacher_logits.ndim == 0 or teacher_logits.shape[-1] < k:
        raise checks.error(caller, f"k must be at most the vocabulary of {teacher_logits.shape}, got {k}")
    indices = mx.argsort(-teacher_logits, axis=-1)[..., :k]
    wide = teacher_logits.astype(mx.float32) / temperature
    rest = reduce.logsumexp(mx.put_along_axis(wide, indices, mx.array(-math.inf), axis=-1))
    return mx.take_along_axis(teacher_logits, indices, axis=-1), indices, rest


def distillation_loss(
    student_logits: mx.array,
    teacher_logits: mx.array,
    targets: mx.array,
    *,
    temperature: float | mx.array = 4.0,
    alpha: float | mx.array = 0.7,
    divergence: str = "forward_kl",
    beta: float = 0.5,
    teacher_indices: mx.array | None = None,
    teacher_rest: mx.array | None = None,
    ignore_index: int | None = None,
    weights: mx.array | None = None,
) -> tuple[Mean, dict[str, Mean]]:
    """Return a mixture of the teacher's soft targets and the data's hard ones.

        alpha * soft_target_loss + (1 - alpha) * cross_entropy

    Args:
        student_logits: floating [..., vocab].
        teacher_logits: floating [..., vocab], or [..., k] with `teacher_indices`.
        targets: integer [...]. One outside [0, vocab) that counts makes the loss NaN.
        temperature: above 0, of the soft targets; the hard ones are taken at 1.
        alpha: in [0, 1], the share of the soft targets.
        divergence: "forward_kl", "reverse_kl" or "jsd".
        beta: in (0, 1), the teacher's share of the mixture; "jsd" only.
        teacher_indices: integer [..., k], as for `soft_target_loss`.
        teacher_rest: [...], as for `soft_target_loss`.
        ignore_index: positions with this target are left out, of the soft targets as well.
        weights: [...], as for `soft_target_loss`.

    Returns:
        `(Mean, metrics)` over positions. Metrics: `soft`, times temperature², and `hard`, both in nats.

    Raises:
        ValueError, TypeError: as `soft_target_loss`, and for targets that do not fit.

    Reference: Hinton et al., arXiv:1503.02531.

    >>> loss, metrics = distillation_loss(mx.zeros((1, 2)), mx.zeros((1, 2)), mx.array([1]), alpha=0.5)
    >>> metrics["soft"].value, metrics["hard"].value, loss.value
    (array(0, dtype=float32), array(0.693147, dtype=float32), array(0.346574, dtype=float32))
    """
    caller = "distillation_loss"
    alpha = checks.number(caller, "alpha", alpha, least=0, most=1)
    if ignore_index is not None:
        ignore_index = checks.integer(caller, "ignore_index", ignore_index)
    top = teacher_indices, teacher_rest
    temperature, beta = checks.python_number(temperature), checks.python_number(beta)
    counts = _check(caller, student_logits, teacher_logits, *top, weights, temperature, divergence, beta)
    reduce.labelled(caller, student_logits, targets, ("student_logits", "targets"))
    reduce.integers(caller, "targets", targets)
    counts = reduce.ignoring(ignore_index, reduce.signed(targets), counts)
    names = ("student_logits", "targets")
    student, labels, valid, counts = reduce.classes(caller, student_logits, targets, counts, names)
    soft = _soft(student, teacher_logits, temperature, divergence, beta, *top, counts)
    hard = -reduce.chosen(reduce.log_softmax(student), labels) * valid
    metrics = {
        "soft": Mean.of(mx.stop_gradient(soft), counts),
        "hard": Mean.of(mx.stop_gradient(hard), counts),
    }
    return Mean.of(alpha * soft + (1 - alpha) * hard, counts), metrics


def _soft(
    student: mx.array,
    teacher: mx.array,
    temperature: float | mx.array,
    divergence: str,
    beta: float,
    indices: mx.array | None,
    rest: mx.array | None,
    counts: mx.array | None,
) -> mx.array:
    """Return each position's divergence, times temperature², of a student already in float32."""
    teacher = mx.stop_gradient(reduce.keep(counts, teacher.astype(mx.float32))) / temperature
    log_q = reduce.log_softmax(student / temperature)
    valid = None
    if indices is not None:
        vocab, indices = student.shape[-1], reduce.signed(indices)
        valid = mx.logical_and(indices >= 0, indices < vocab).all(axis=-1)
        if counts is not None:
            valid = mx.logical_or(valid, counts == 0)
        indices = mx.clip(indices, 0, vocab - 1)
        others = mx.put_along_axis(log_q, indices, mx.array(IMPOSSIBLE), axis=-1)
        log_q = mx.take_along_axis(log_q, indices, axis=-1)
        if indices.shape[-1] < vocab:
            if rest is None:
                mass = mx.full(teacher[..., :1].shape, IMPOSSIBLE)
            else:
                mass = mx.stop_gradient(reduce.keep(counts, rest.astype(mx.float32)))[..., None]
            teacher = mx.concatenate([teacher, mass], axis=-1)
            # From their own logits: 1 - sum q would have no digits left where it is small.
            log_q = mx.concatenate([log_q, reduce.logsumexp(others, keepdims=True)], axis=-1)
    losses = divergence_of(reduce.log_softmax(teacher), log_q, divergence, beta) * (temperature * temperature)
    return losses if valid is None else losses * mx.where(valid, 1.0, mx.nan)


def _check(
    caller: str,
    student: mx.array,
    teacher: mx.array,
    indices: mx.array | None,
    rest: mx.array | None,
    weights: mx.array | None,
    temperature: float | mx.array,
    divergence: str,
    beta: float,
) -> mx.array | None:
    reduce.floating(caller, "student_logits", student)
    reduce.floating(caller, "teacher_logits", teacher)
    if student.ndim == 0 or student.shape[-1] == 0:
        raise checks.error(
            caller, f"student_logits must be [..., vocab] with vocab >= 1, got {student.shape}"
        )
    if indices is None:
        reduce.same_shape(caller, "teacher_logits", teacher, "student_logits", student)
    else:
        reduce.integers(caller, "teacher_indices", indices)
        if teacher.shape[:-1] != student.shape[:-1] or not 0 < teacher.shape[-1] <= student.shape[-1]:
            raise checks.error(
                caller,
                f"teacher_logits must have student_logits' {student.shape}, the last axis shortened to k of "
                f"1 to {student.shape[-1]}, got {teacher.shape}",
            )
        reduce.same_shape(caller, "teacher_indices", indices, "teacher_logits", teacher)
    if rest is not None:
        reduce.floating(caller, "teacher_rest", rest)
        if rest.shape != student.shape[:-1]:
            raise checks.error(caller, f"teacher_rest must have shape {student.shape[:-1]}, got {rest.shape}")
    temperature = checks.number(caller, "temperature", temperature, above=0)
    checks.one_of(caller, "divergence", divergence, DIVERGENCES)
    if isinstance(beta, mx.array):
        raise TypeError(f"{caller}: beta must be a Python number, got an array")
    beta = checks.number(caller, "beta", beta, above=0, below=1)
    if rest is not None and indices is None:
        raise checks.error(caller, "teacher_rest must come with teacher_indices, got it alone")
    if divergence == "reverse_kl" and indices is not None and rest is None:
        raise checks.error(caller, "teacher_rest must be given for a reverse_kl of top-k logits, got None")
    return reduce.counts(caller, weights, student.shape[:-1], "the positions'")
