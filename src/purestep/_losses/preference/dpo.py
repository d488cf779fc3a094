"""DPO and its variants: losses of pairs of a preferred and a rejected completion.

They take log-probabilities of whole completions, [batch], as `sequence_logps` returns them: those of the
policy and, for DPO, those of a reference. No gradient flows to the reference, so its log-probabilities can be
computed once.
"""

from typing import Literal, TypeAlias, get_args

import mlx.core as mx

from purestep._core import checks
from purestep._core.mean import Mean
from purestep._losses.core.numerics import softplus
from purestep._losses.preference.pairs import logps_and_nll, masked_logps, pair_metrics

LossType: TypeAlias = Literal["sigmoid", "hinge", "ipo"]
LOSS_TYPES: tuple[LossType, ...] = get_args(LossType)


def dpo_loss(
    chosen_logps: mx.array,
    rejected_logps: mx.array,
    ref_chosen_logps: mx.array | None = None,
    ref_rejected_logps: mx.array | None = None,
    *,
    beta: float | mx.array = 0.1,
    label_smoothing: float = 0.0,
    loss_type: LossType = "sigmoid",
    reference_free: bool = False,
    weights: mx.array | None = None,
) -> tuple[Mean, dict[str, Mean]]:
    """Return the loss of direct preference optimization (DPO), of IPO, or a hinge loss.

    With `h = (chosen - ref_chosen) - (rejected - ref_rejected)` and smoothing `s`:

        sigmoid   -(1 - s) * log(sigmoid(beta * h)) - s * log(sigmoid(-beta * h))
        hinge     max(0, 1 - beta * h)
        ipo       (h - 1 / (2 * beta))**2

    Args:
        chosen_logps: floating [batch], `sequence_logps` of the preferred completions. For "ipo" use
            `average=True`, which removes the influence of length.
        rejected_logps: [batch], of the rejected completions.
        ref_chosen_logps: [batch], of the reference, computed in the same way; no gradient flows to it. It may
            be `None` only with `reference_free`.
        ref_rejected_logps: [batch], of the reference for the rejected completions.
        beta: above 0; a lower value lets the policy move further from the reference.
        label_smoothing: in [0, 0.5], probability that the labels of a pair are swapped; "sigmoid" only.
        loss_type: "sigmoid", "hinge" or "ipo".
        reference_free: assume a reference that prefers neither completion; `ref_chosen_logps` and
            `ref_rejected_logps` are ignored.
        weights: [batch] or a shape that broadcasts to it. A pair of weight 0 is skipped, and may be infinite
            or NaN.

    Returns:
        `(Mean, metrics)` over pairs. The metrics are `rewards_chosen` and `rewards_rejected`, beta times the
        difference of the log-probabilities of policy and reference; `rewards_margins`, the difference of
        these two; `rewards_accuracies`, the fraction of pairs with a positive margin.

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
    beta, label_smoothing = _checked(caller, beta, label_smoothing, loss_type)
    given = {"chosen_logps": chosen_logps, "rejected_logps": rejected_logps}
    if not reference_free:
        if ref_chosen_logps is None or ref_rejected_logps is None:
            raise checks.error(
                caller,
                "ref_chosen_logps and ref_rejected_logps must be given unless reference_free, got None",
            )
        given |= {"ref_chosen_logps": ref_chosen_logps, "ref_rejected_logps": ref_rejected_logps}
    weights, (chosen, rejected, *refs) = masked_logps(caller, weights, given)
    if refs:
        chosen, rejected = chosen - mx.stop_gradient(refs[0]), rejected - mx.stop_gradient(refs[1])
    losses = _preference(chosen - rejected, beta, label_smoothing, loss_type)
    return Mean.of(losses, weights), pair_metrics(beta * chosen, beta * rejected, weights)


def cpo_loss(
    chosen_logps: mx.array,
    rejected_logps: mx.array,
    *,
    chosen_nll: mx.array | None = None,
    beta: float | mx.array = 0.1,
    cpo_alpha: float | mx.array = 1.0,
    label_smoothing: float = 0.0,
    loss_type: LossType = "sigmoid",
    weights: mx.array | None = None,
) -> tuple[Mean, dict[str, Mean]]:
    """Return the loss of contrastive preference optimization (CPO): likelihood in place of a reference.

        preference(chosen - rejected) + cpo_alpha * chosen_nll

    Here `preference` is the loss of `dpo_loss` with the same `loss_type`.

    Args:
        chosen_logps: floating [batch], `sequence_logps` of the preferred completions.
        rejected_logps: [batch], of the rejected completions.
        chosen_nll: [batch], negative log-likelihood of the preferred completions; `None`: `-chosen_logps`,
            as in the paper, which grows with the length. `-sequence_logps(..., average=True)` does not.
        beta: as in `dpo_loss`.
        cpo_alpha: at least 0, factor of the negative log-likelihood.
        label_smoothing: as in `dpo_loss`.
        loss_type: as in `dpo_loss`.
        weights: as in `dpo_loss`.

    Returns:
        `(Mean, metrics)` over pairs, with the metrics of `dpo_loss` for a reference of zero, and `nll`.

    Raises: as `dpo_loss`.

    Reference: Xu et al., arXiv:2401.08417.

    >>> cpo_loss(mx.array([-1.0]), mx.array([-1.0]))[0].value
    array(1.69315, dtype=float32)
    """
    caller = "cpo_loss"
    beta, label_smoothing = _checked(caller, beta, label_smoothing, loss_type)
    cpo_alpha = checks.number(caller, "cpo_alpha", cpo_alpha, least=0)
    weights, chosen, rejected, nll = logps_and_nll(caller, weights, chosen_logps, rejected_logps, chosen_nll)
    losses = _preference(chosen - rejected, beta, label_smoothing, loss_type) + cpo_alpha * nll
    metrics = pair_metrics(beta * chosen, beta * rejected, weights)
    return Mean.of(losses, weights), metrics | {"nll": Mean.of(mx.stop_gradient(nll), weights)}


def simpo_loss(
    chosen_logps: mx.array,
    rejected_logps: mx.array,
    *,
    beta: float | mx.array = 2.0,
    gamma: float | mx.array = 0.5,
    label_smoothing: float = 0.0,
    weights: mx.array | None = None,
) -> tuple[Mean, dict[str, Mean]]:
    """Return the loss of simple preference optimization (SimPO): a margin, and no reference.

    With `m = beta * (chosen - rejected) - gamma`:

        -(1 - s) * log(sigmoid(m)) - s * log(sigmoid(-m))

    Args:
        chosen_logps: floating [batch], `sequence_logps(..., average=True)` of the preferred completions.
        rejected_logps: [batch], of the rejected completions.
        beta: above 0.
        gamma: at least 0, margin that the difference of the rewards should reach.
        label_smoothing: as in `dpo_loss`.
        weights: as in `dpo_loss`.

    Returns:
        `(Mean, metrics)` over pairs, with the metrics of `dpo_loss` for a reference of zero.

    Raises: as `dpo_loss`.

    Reference: Meng et al., arXiv:2405.14734.

    >>> simpo_loss(mx.array([-1.0]), mx.array([-1.25]))[0].value
    array(0.693147, dtype=float32)
    """
    caller = "simpo_loss"
    beta, label_smoothing = _checked(caller, beta, label_smoothing, "sigmoid")
    gamma = checks.number(caller, "gamma", gamma, least=0)
    given = {"chosen_logps": chosen_logps, "rejected_logps": rejected_logps}
    weights, (chosen, rejected) = masked_logps(caller, weights, given)
    losses = _smoothed(beta * (chosen - rejected) - gamma, label_smoothing)
    return Mean.of(losses, weights), pair_metrics(beta * chosen, beta * rejected, weights)


def _preference(
    difference: mx.array, beta: float | mx.array, label_smoothing: float, loss_type: LossType
) -> mx.array:
    if loss_type == "hinge":
        return mx.maximum(1 - beta * difference, 0.0)
    if loss_type == "ipo":
        return mx.square(difference - 1 / (2 * beta))
    return _smoothed(beta * difference, label_smoothing)


def _smoothed(margin: mx.array, label_smoothing: float) -> mx.array:
    losses = softplus(-margin)
    return (1 - label_smoothing) * losses + label_smoothing * softplus(margin) if label_smoothing else losses


def _checked(
    caller: str, beta: float | mx.array, label_smoothing: float, loss_type: LossType
) -> tuple[float | mx.array, float]:
    """Return beta and the smoothing; raise an error if an option is out of its range."""
    beta = checks.number(caller, "beta", beta, above=0)
    label_smoothing = checks.number(caller, "label_smoothing", label_smoothing, least=0, most=0.5)
    checks.one_of(caller, "loss_type", loss_type, LOSS_TYPES)
    if loss_type != "sigmoid" and label_smoothing:
        raise checks.error(
            caller, f"label_smoothing must be 0 for loss_type {loss_type!r}, got {label_smoothing}"
        )
    return beta, label_smoothing
