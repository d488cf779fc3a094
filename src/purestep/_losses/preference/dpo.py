"""Losses on pairs, or single completions, that somebody preferred: DPO and its relatives.

They take log-probabilities of whole completions, [batch], that `losses.sequence.sequence_logps` makes, of
the policy and, where there is one, of the reference. The latter are constants: compute them once.
"""

import mlx.core as mx

from purestep._core import checks
from purestep._core.mean import Mean
from purestep._losses.preference.pairs import kept_logps, pair_metrics, softplus

LOSS_TYPES = ("sigmoid", "hinge", "ipo")


def dpo_loss(
    chosen_logps: mx.array,
    rejected_logps: mx.array,
    ref_chosen_logps: mx.array | None = None,
    ref_rejected_logps: mx.array | None = None,
    *,
    beta: float | mx.array = 0.1,
    label_smoothing: float = 0.0,
    loss_type: str = "sigmoid",
    reference_free: bool = False,
    weights: mx.array | None = None,
) -> tuple[Mean, dict[str, Mean]]:
    """Return the loss of direct preference optimization, or of IPO, or a hinge.

    With `h = (chosen - ref_chosen) - (rejected - ref_rejected)` and smoothing `s`:

        sigmoid   -(1 - s) * log(sigmoid(beta * h)) - s * log(sigmoid(-beta * h))
        hinge     max(0, 1 - beta * h)
        ipo       (h - 1 / (2 * beta))**2

    Args:
        chosen_logps: floating [batch], `sequence_logps` of the preferred completions; for "ipo" of
            `average=True`, so that length does not decide.
        rejected_logps: [batch], of the others.
        ref_chosen_logps: [batch], of the reference, in the same measure; a constant.
        ref_rejected_logps: [batch], likewise.
        beta: above 0: the lower, the further the policy may go from the reference.
        label_smoothing: in [0, 0.5], the probability that a pair is the wrong way round; "sigmoid" only.
        loss_type: "sigmoid", "hinge" or "ipo".
        reference_free: take the reference to prefer neither; its log-probabilities are then not used.
        weights: [batch] or a shape that broadcasts to it: what each pair counts. A pair of zero weight may
            be infinite or NaN.

    Returns:
        `(Mean, metrics)` over pairs. Metrics: `rewards_chosen` and `rewards_rejected`, beta times the
        policy's log-probability less the reference's; `rewards_margins`, their difference;
        `rewards_accuracies`, how often it is positive.

    Raises:
        ValueError: if shapes do not fit, an option is out of range, or the reference is missing.
        TypeError: if the log-probabilities are not floating.

    References: DPO, Rafailov et al., arXiv:2305.18290; smoothing, Mitchell, 2023; IPO, Azar et al.,
    arXiv:2310.12036; hinge, Zhao et al., arXiv:2305.10425.

    >>> chosen, rejected, ref = mx.array([-3.0]), mx.array([-5.0]), mx.array([-4.0])
    >>> loss, metrics = dpo_loss(chosen, rejected, ref, ref, beta=0.5)
    >>> loss.value, metrics["rewards_margins"].value
    (array(0.313262, dtype=float32), array(1, dtype=float32))
    """
    caller = "dpo_loss"
    beta, label_smoothing = checks.python_number(beta), checks.python_number(label_smoothing)
    _check_options(caller, beta, label_smoothing, loss_type)
    given = {"chosen_logps": chosen_logps, "rejected_logps": rejected_logps}
    if not reference_free:
        if ref_chosen_logps is None or ref_rejected_logps is None:
            raise checks.error(
                caller,
                "ref_chosen_logps and ref_rejected_logps must be given unless reference_free, got None",
            )
        given |= {"ref_chosen_logps": ref_chosen_logps, "ref_rejected_logps": ref_rejected_logps}
    counts, (chosen, rejected, *refs) = kept_logps(caller, weights, given)
    if refs:
        chosen, rejected = chosen - mx.stop_gradient(refs[0]), rejected - mx.stop_gradient(refs[1])
    losses = _preference(chosen - rejected, beta, label_smoothing, loss_type)
    return Mean.of(losses, counts), pair_metrics(beta * chosen, beta * rejected, counts)


def cpo_loss(
    chosen_logps: mx.array,
    rejected_logps: mx.array,
    *,
    chosen_nll: mx.array | None = None,
    beta: float | mx.array = 0.1,
    cpo_alpha: float | mx.array = 1.0,
    label_smoothing: float = 0.0,
    loss_type: str = "sigmoid",
    weights: mx.array | None = None,
) -> tuple[Mean, dict[str, Mean]]:
    """Return the loss of contrastive preference optimization: no reference, but likelihood as an anchor.

        preference(chosen - rejected) + cpo_alpha * chosen_nll

    where `preference` is `dpo_loss`'s of the same `loss_type`.

    Args:
        chosen_logps: floating [batch], `sequence_logps` of the preferred completions.
        rejected_logps: [batch], of the others.
        chosen_nll: [batch], the negative log-likelihood to keep low; None: `-chosen_logps`, as in the paper.
            For one that does not grow with length, `-sequence_logps(..., average=True)`.
        beta: above 0, as for `dpo_loss`.
        cpo_alpha: at least 0, the share of the likelihood.
        label_smoothing: in [0, 0.5], as for `dpo_loss`.
        loss_type: "sigmoid", "hinge" or "ipo".
        weights: [batch], as for `dpo_loss`.

    Returns:
        `(Mean, metrics)` over pairs; the metrics of `dpo_loss`, the reference being zero, and `nll`.

    Raises:
        ValueError, TypeError: as `dpo_loss`.

    Reference: Xu et al., arXiv:2401.08417.

    >>> cpo_loss(mx.array([-1.0]), mx.array([-1.0]))[0].value
    array(1.69315, dtype=float32)
    """
    caller = "cpo_loss"
    beta, label_smoothing = checks.python_number(beta), checks.python_number(label_smoothing)
    _check_options(caller, beta, label_smoothing, loss_type)
    cpo_alpha = checks.number(caller, "cpo_alpha", cpo_alpha, least=0)
    given = {"chosen_logps": chosen_logps, "rejected_logps": rejected_logps}
    if chosen_nll is not None:
        given["chosen_nll"] = chosen_nll
    counts, (chosen, rejected, *rest) = kept_logps(caller, weights, given)
    nll = rest[0] if rest else -chosen
    losses = _preference(chosen - rejected, beta, label_smoothing, loss_type) + cpo_alpha * nll
    metrics = pair_metrics(beta * chosen, beta * rejected, counts)
    return Mean.of(losses, counts), metrics | {"nll": Mean.of(mx.stop_gradient(nll), counts)}


def simpo_loss(
    chosen_logps: mx.array,
    rejected_logps: mx.array,
    *,
    beta: float | mx.array = 2.0,
    gamma: float | mx.array = 0.5,
    label_smoothing: float = 0.0,
    weights: mx.array | None = None,
) -> tuple[Mean, dict[str, Mean]]:
    """Return the loss of simple preference optimization: log-probabilities per token, a margin, no reference.

    With `m = beta * (chosen - rejected) - gamma`:

        -(1 - s) * log(sigmoid(m)) - s * log(sigmoid(-m))

    Args:
        chosen_logps: floating [batch], `sequence_logps(..., average=True)` of the preferred completions.
        rejected_logps: [batch], of the others.
        beta: above 0.
        gamma: at least 0, the margin that the rewards should reach.
        label_smoothing: in [0, 0.5], as for `dpo_loss`.
        weights: [batch], as for `dpo_loss`.

    Returns:
        `(Mean, metrics)` over pairs; the metrics of `dpo_loss`, the reference being zero.

    Raises:
        ValueError, TypeError: as `dpo_loss`.

    Reference: Meng et al., arXiv:2405.14734.

    >>> simpo_loss(mx.array([-1.0]), mx.array([-1.25]))[0].value
    array(0.693147, dtype=float32)
    """
    caller = "simpo_loss"
    beta, label_smoothing = checks.python_number(beta), checks.python_number(label_smoothing)
    _check_options(caller, beta, label_smoothing, "sigmoid")
    gamma = checks.number(caller, "gamma", gamma, least=0)
    given = {"chosen_logps": chosen_logps, "rejected_logps": rejected_logps}
    counts, (chosen, rejected) = kept_logps(caller, weights, given)
    losses = _smoothed(beta * (chosen - rejected) - gamma, label_smoothing)
    return Mean.of(losses, counts), pair_metrics(beta * chosen, beta * rejected, counts)


def _preference(
    difference: mx.array, beta: float | mx.array, label_smoothing: float, loss_type: str
) -> mx.array:
    if loss_type == "hinge":
        return mx.maximum(1 - beta * difference, 0.0)
    if loss_type == "ipo":
        return mx.square(difference - 1 / (2 * beta))
    return _smoothed(beta * difference, label_smoothing)


def _smoothed(margin: mx.array, label_smoothing: float) -> mx.array:
    losses = softplus(-margin)
    return (1 - label_smoothing) * losses + label_smoothing * softplus(margin) if label_smoothing else losses


def _check_options(caller: str, beta: float | mx.array, label_smoothing: float, loss_type: str) -> None:
    beta = checks.number(caller, "beta", beta, above=0)
    label_smoothing = checks.number(caller, "label_smoothing", label_smoothing, least=0, most=0.5)
    checks.one_of(caller, "loss_type", loss_type, LOSS_TYPES)
    if loss_type != "sigmoid" and label_smoothing:
        raise checks.error(
            caller, f"label_smoothing must be 0 for loss_type {loss_type!r}, got {label_smoothing}"
        )
