"""Record what optax and torch make of fixed inputs to losses, in float64: run with a Python that has both.

Everything that a test needs goes into `losses_*.safetensors` beside this file, under names
`LOSS/CASE/WHAT`: the inputs by their argument's name, `value` (the weighted mean), `weight` (what it is
over) and `grad.ARGUMENT`, the gradient of the value. A case named `weighted` has random weights, zeros
among them.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
import torch.nn.functional as tnf
from safetensors.numpy import save_file

TENSORS = {}
RNG = np.random.Generator(np.random.PCG64(20250311))


def uniform(shape, low=-4.0, high=4.0):
    """Draw float32 numbers."""
    return RNG.uniform(low, high, shape).astype(np.float32)


def distribution(shape, zeros=0.0):
    """Draw rows that sum to 1, with this share of zeros."""
    rows = RNG.uniform(0.1, 1, shape) * (RNG.uniform(size=shape) >= zeros)
    rows[..., 0] += 1e-2
    return (rows / rows.sum(-1, keepdims=True)).astype(np.float32)


def some_weights(shape):
    """Draw weights of which about a third are zero, the first among them and the second not."""
    weights = (0.7 * RNG.integers(1, 4, shape) * (RNG.uniform(size=shape) > 0.35)).astype(np.float32)
    flat = weights.reshape(-1)
    flat[0], flat[1] = 0.0, 1.4
    return weights


def record(name, fn, inputs, wrt, weights=None, weight_of=None):
    """Record a case of `fn(**inputs) -> losses`, a function of torch if its name says so, else of jax.

    `weight_of(**inputs)` is what each loss weighs by itself, where that is not 1.
    """
    if isinstance(weights, str):  # "draw"
        shape = np.shape(evaluate(fn, inputs, wrt)[0])
        weights = some_weights(shape)
    own = np.ones(()) if weight_of is None else weight_of(**inputs)
    losses, pull = evaluate(fn, inputs, wrt)
    w = np.ones(losses.shape) if weights is None else weights.astype(np.float64)
    total = (w * own * np.ones(losses.shape)).sum()
    entries = dict(inputs)
    if weights is not None:
        entries["weights"] = weights
    entries["weight"] = np.float64(total)
    entries["value"] = np.float64((w * losses).sum() / total)
    entries |= {f"grad.{key}": g.astype(np.float64) for key, g in pull(w / total).items()}
    for what, part in entries.items():
        assert np.isfinite(part).all() or what in ("logits", "log_targets"), (name, what)
        TENSORS[f"{name}/{what}"] = np.asarray(part)


def evaluate(fn, inputs, wrt):
    """Return the losses in float64 and a function from their cotangents to gradients by name."""
    wide = {key: x.astype(np.float64) if x.dtype == np.float32 else x for key, x in inputs.items()}
    if fn.__name__.startswith("torch_") or getattr(fn, "torch", False):
        tensors = {key: torch.tensor(x, requires_grad=key in wrt) for key, x in wide.items()}
        out = fn(**tensors)

        def pull(cotangent):
            grads = torch.autograd.grad(
                out, [tensors[key] for key in wrt], torch.tensor(cotangent), retain_graph=True
            )
            return {key: g.numpy() for key, g in zip(wrt, grads, strict=True)}

        return out.detach().numpy(), pull
    rest = {key: jnp.asarray(x) for key, x in wide.items() if key not in wrt}
    out, back = jax.vjp(
        lambda *args: fn(**dict(zip(wrt, args, strict=True)), **rest), *(jnp.asarray(wide[k]) for k in wrt)
    )
    return np.asarray(out), lambda c: {
        k: np.asarray(g) for k, g in zip(wrt, back(jnp.asarray(c)), strict=True)
    }


def of_torch(fn):
    """Mark a lambda as one of torch."""
    fn.torch = True
    return fn


def variants(name, fn, make, wrt, large=None):
    """Record a plain case, a weighted one and, with `large()` for its inputs, an extreme one."""
    record(f"{name}/plain", fn, make(), wrt)
    record(f"{name}/weighted", fn, make(), wrt, "draw")
    if large is not None:
        record(f"{name}/large", fn, large(), wrt)


def cross_entropies():
    shape, rows = (3, 4, 7), (3, 4)

    def torch_ce(logits, targets, class_weights=None, soft=False, z=0.0, **options):
        flat = logits.reshape(-1, logits.shape[-1])
        to = targets.reshape(-1, logits.shape[-1]) if soft else targets.reshape(-1).long()
        loss = tnf.cross_entropy(flat, to, weight=class_weights, reduction="none", **options)
        if z:
            squares = torch.logsumexp(flat, -1) ** 2
            share = 1.0
            if class_weights is not None:
                share = (to * class_weights).sum(-1) if soft else class_weights[to]
            loss = loss + z * share * squares
        return loss.reshape(logits.shape[:-1])

    def make(low=-4.0, high=4.0, soft=False, classes=False):
        inputs = {"logits": uniform(shape, low, high)}
        inputs["targets"] = distribution(shape, 0.3) if soft else RNG.integers(0, 7, rows)
        if classes:
            inputs["class_weights"] = uniform((7,), 0.2, 2.0)
        return inputs

    def by_class(targets, class_weights, **_):
        if targets.ndim == 3:
            return (targets.astype(np.float64) * class_weights.astype(np.float64)).sum(-1)
        return class_weights.astype(np.float64)[targets]

    for soft in (False, True):
        kind = "soft" if soft else "integer"
        for label, options in (
            ("", {}),
            ("_smoothed", {"label_smoothing": 0.1}),
            ("_z", {"z": 0.01}),
            ("_all", {"label_smoothing": 0.2, "z": 0.05}),
        ):
            fn = of_torch(
                lambda soft=soft, options=options, **inputs: torch_ce(**inputs, soft=soft, **options)
            )
            name = f"cross_entropy/{kind}{label}"
            record(name, fn, make(soft=soft), ["logits"], "draw")
            record(f"{name}_classes", fn, make(soft=soft, classes=True), ["logits"], "draw", by_class)
            record(f"{name}_close", fn, make(9996, 10004, soft=soft), ["logits"])
            record(f"{name}_large", fn, make(-1e4, 1e4, soft=soft), ["logits"])
    inputs = make(soft=True)
    inputs["logits"] = np.where(inputs["targets"] == 0, -np.inf, inputs["logits"]).astype(np.float32)
    safe = lambda logits, targets: optax.losses.safe_softmax_cross_entropy(logits, targets)  # noqa: E731
    record("cross_entropy/soft_safe", safe, inputs, ["logits"])


def binaries():
    shape = (4, 6)
    hard = lambda: RNG.integers(0, 2, shape).astype(np.float32)  # noqa: E731
    soft = lambda: uniform(shape, 0, 1)  # noqa: E731
    for kind, labels in (("", hard), ("_soft", soft)):
        make = lambda labels=labels: {"logits": uniform(shape), "labels": labels()}  # noqa: E731
        large = lambda labels=labels: {"logits": uniform(shape, -1e4, 1e4), "labels": labels()}  # noqa: E731
        variants(
            f"sigmoid_binary_cross_entropy{kind}",
            lambda logits, labels: optax.losses.sigmoid_binary_cross_entropy(logits, labels),
            make,
            ["logits"],
            large,
        )
        variants(
            f"sigmoid_focal_loss{kind}",
            lambda logits, labels: optax.losses.sigmoid_focal_loss(logits, labels, alpha=0.25, gamma=1.5),
            make,
            ["logits"],
            large,
        )
        record(
            f"sigmoid_focal_loss{kind}/default",
            lambda logits, labels: optax.losses.sigmoid_focal_loss(logits, labels),
            make(),
            ["logits"],
        )

    def torch_all(logits, labels):
        smooth = 0.9 * labels + 0.05
        each = tnf.binary_cross_entropy_with_logits(
            logits, smooth, pos_weight=torch.tensor(3.0, dtype=torch.float64), reduction="none"
        )
        return each + 0.1 * tnf.softplus(logits, threshold=1e9) ** 2

    make = lambda: {"logits": uniform(shape), "labels": hard()}  # noqa: E731
    record("sigmoid_binary_cross_entropy/all", torch_all, make(), ["logits"], "draw")
    torch_bce = of_torch(
        lambda probabilities, labels: tnf.binary_cross_entropy(probabilities, labels, reduction="none")
    )
    variants(
        "binary_cross_entropy",
        torch_bce,
        lambda: {"probabilities": uniform(shape, 1e-3, 1 - 1e-3), "labels": soft()},
        ["probabilities"],
    )


def divergences():
    shape = (5, 6)
    logp = lambda high=4.0: np.log(  # noqa: E731
        np.asarray(jax.nn.softmax(jnp.asarray(uniform(shape, -high, high), "float64")))
    ).astype(np.float32)
    both = ["log_predictions"]
    far = lambda: np.asarray(jax.nn.log_softmax(jnp.asarray(uniform(shape, -1e4, 1e4), "float64")), "float32")  # noqa: E731
    kl = optax.losses.kl_divergence
    variants(
        "kl_divergence",
        lambda log_predictions, targets: kl(log_predictions, targets),
        lambda: {"log_predictions": logp(), "targets": distribution(shape, 0.3)},
        both,
        lambda: {"log_predictions": far(), "targets": distribution(shape, 0.3)},
    )
    variants(
        "generalized_kl_divergence",
        lambda log_predictions, targets: optax.losses.generalized_kl_divergence(log_predictions, targets),
        lambda: {"log_predictions": uniform(shape), "targets": uniform(shape, 0, 3)},
        both,
    )
    logs = optax.losses.kl_divergence_with_log_targets
    for suffix, loss in (
        ("", lambda log_predictions, log_targets: logs(log_predictions, log_targets)),
        ("_reverse", lambda log_predictions, log_targets: logs(log_targets, log_predictions)),
    ):
        variants(
            f"kl_divergence_with_log_targets{suffix}",
            loss,
            lambda: {"log_predictions": logp(), "log_targets": logp()},
            [*both, "log_targets"],
            lambda: {"log_predictions": far(), "log_targets": far()},
        )
    torch_reverse = of_torch(
        lambda log_predictions, targets: tnf.kl_div(
            torch.log(targets), log_predictions, log_target=True, reduction="none"
        ).sum(-1)
    )
    variants(
        "kl_divergence_reverse",
        torch_reverse,
        lambda: {"log_predictions": logp(), "targets": distribution(shape)},
        both,
        lambda: {"log_predictions": far(), "targets": distribution(shape)},
    )


def margins():
    shape = (4, 6)
    sign = lambda: (2 * RNG.integers(0, 2, shape) - 1).astype(np.float32)  # noqa: E731
    for name in ("hinge_loss", "perceptron_loss"):
        fn = getattr(optax.losses, name)
        variants(
            name,
            lambda predictor_outputs, targets, fn=fn: fn(predictor_outputs, targets),
            lambda: {"predictor_outputs": uniform(shape), "targets": sign()},
            ["predictor_outputs"],
            lambda: {"predictor_outputs": uniform(shape, -1e4, 1e4), "targets": sign()},
        )
    for name in ("multiclass_hinge_loss", "multiclass_perceptron_loss", "multiclass_sparsemax_loss"):
        fn = getattr(optax.losses, name)
        variants(
            name,
            lambda scores, labels, fn=fn: fn(scores, labels),
            lambda: {"scores": uniform((9, 5), -1, 1), "labels": RNG.integers(0, 5, 9)},
            ["scores"],
            lambda: {"scores": uniform((9, 5), -1e4, 1e4), "labels": RNG.integers(0, 5, 9)},
        )
    record(
        "multiclass_sparsemax_loss/close",
        lambda scores, labels: optax.losses.multiclass_sparsemax_loss(scores, labels),
        {"scores": uniform((9, 5), 9999, 10001), "labels": RNG.integers(0, 5, 9)},
        ["scores"],
    )
    variants(
        "sparsemax_loss",
        lambda logits, labels: optax.losses.sparsemax_loss(logits, labels),
        lambda: {"logits": uniform(shape, -2, 2), "labels": RNG.integers(0, 2, shape)},
        ["logits"],
        lambda: {"logits": uniform(shape, -1e4, 1e4), "labels": RNG.integers(0, 2, shape)},
    )
    torch_ranking = of_torch(
        lambda inputs1, inputs2, targets: tnf.margin_ranking_loss(
            inputs1, inputs2, targets, margin=0.5, reduction="none"
        )
    )
    variants(
        "margin_ranking_loss",
        torch_ranking,
        lambda: {"inputs1": uniform(shape), "inputs2": uniform(shape), "targets": sign()},
        ["inputs1", "inputs2"],
    )
    fenchel = optax.losses.make_fenchel_young_loss(jax.nn.logsumexp)
    variants(
        "fenchel_young_loss",
        lambda scores, targets: fenchel(scores, targets),
        lambda: {"scores": uniform(shape), "targets": distribution(shape)},
        ["scores"],
        lambda: {"scores": uniform(shape, -1e4, 1e4), "targets": distribution(shape)},
    )


def regressions():
    shape = (4, 6)
    make = lambda: {"predictions": uniform(shape), "targets": uniform(shape)}  # noqa: E731
    large = lambda: {"predictions": uniform(shape, -1e4, 1e4), "targets": uniform(shape, -1e4, 1e4)}  # noqa: E731
    table = {
        "squared_error": optax.losses.squared_error,
        "l2_loss": optax.losses.l2_loss,
        "log_cosh": optax.losses.log_cosh,
        "huber_loss": lambda a, b: optax.losses.huber_loss(a, b, delta=1.5),
        "cosine_similarity": optax.losses.cosine_similarity,
        "cosine_distance": lambda a, b: optax.losses.cosine_distance(a, b, epsilon=40.0),
    }
    both = ["predictions", "targets"]
    for name, fn in table.items():
        variants(name, lambda predictions, targets, fn=fn: fn(predictions, targets), make, both, large)
    small = {"predictions": uniform(shape, -1e-3, 1e-3), "targets": uniform(shape, -1e-3, 1e-3)}
    # log(cosh(e)) by its series: in float64 too the usual form keeps few digits of errors so small.
    series = of_torch(
        lambda predictions, targets: (predictions - targets) ** 2 / 2 - (predictions - targets) ** 4 / 12
    )
    record("log_cosh/small", series, small, both)
    variants(
        "l1_loss",
        of_torch(lambda predictions, targets: tnf.l1_loss(predictions, targets, reduction="none")),
        make,
        both,
        large,
    )
    variants(
        "smooth_l1_loss",
        of_torch(
            lambda predictions, targets: tnf.smooth_l1_loss(predictions, targets, beta=0.5, reduction="none")
        ),
        make,
        both,
        large,
    )
    for name, full in (("gaussian_nll_loss", False), ("gaussian_nll_loss_full", True)):
        variants(
            name,
            of_torch(
                lambda predictions, targets, variances, full=full: tnf.gaussian_nll_loss(
                    predictions, targets, variances, full=full, reduction="none"
                )
            ),
            lambda: {**make(), "variances": uniform(shape, 0.1, 3)},
            ["predictions", "targets", "variances"],
            lambda: {**large(), "variances": uniform(shape, 0.1, 1e4)},
        )
    variants(
        "nll_loss",
        of_torch(lambda inputs, targets: tnf.nll_loss(inputs, targets.long(), reduction="none")),
        lambda: {"inputs": uniform((9, 5), -9, 0), "targets": RNG.integers(0, 5, 9)},
        ["inputs"],
    )


def embeddings():
    rows = lambda low=-1.0, high=1.0: uniform((8, 5), low, high)  # noqa: E731
    labels = np.array([0, 1, 2, 0, 1, 2, 2, 3])

    def ntxent(embeddings, labels, temperature):
        return optax.losses.ntxent(embeddings, labels, temperature=temperature)[None]

    pairs = lambda labels, **_: np.float64((labels[:, None] == labels).sum() - len(labels))  # noqa: E731
    for case, temperature, low in (("default", 0.07, 1), ("warm", 0.5, 1), ("large", 0.5, 1e4)):
        fn = lambda embeddings, labels, t=temperature: pairs(labels) * ntxent(embeddings, labels, t)  # noqa: E731
        record(
            f"ntxent/{case}",
            fn,
            {"embeddings": rows(-low, low), "labels": labels},
            ["embeddings"],
            None,
            pairs,
        )

    def torch_nce(queries, keys, symmetric):
        logits = tnf.normalize(queries, dim=-1) @ tnf.normalize(keys, dim=-1).T / 0.2
        own = torch.arange(len(logits))
        loss = tnf.cross_entropy(logits, own, reduction="none")
        return (loss + tnf.cross_entropy(logits.T, own, reduction="none")) / 2 if symmetric else loss

    for case, symmetric in (("plain", False), ("symmetric", True)):
        fn = of_torch(lambda queries, keys, symmetric=symmetric: torch_nce(queries, keys, symmetric))
        record(f"info_nce/{case}", fn, {"queries": rows(), "keys": rows()}, ["queries", "keys"])
        record(
            f"info_nce/{case}_large", fn, {"queries": rows(-1e4, 1e4), "keys": rows()}, ["queries", "keys"]
        )
    three = ["anchors", "positives", "negatives"]
    triple = lambda low=-1.0, high=1.0: {key: rows(low, high) for key in three}  # noqa: E731
    variants(
        "triplet_margin_loss",
        lambda anchors, positives, negatives: optax.losses.triplet_margin_loss(anchors, positives, negatives),
        triple,
        three,
        lambda: triple(-1e4, 1e4),
    )

    def torch_cubic(anchors, positives, negatives):
        far = lambda a, b: ((a - b).abs().pow(3).sum(-1) + 1e-6) ** (1 / 3)  # noqa: E731
        return torch.clamp(far(anchors, positives) - far(anchors, negatives) + 0.5, min=0)

    variants("triplet_margin_loss_cubic", torch_cubic, triple, three)


def rankings():
    shape = (5, 6)
    there = RNG.uniform(size=shape) > 0.4
    there[:, 0] = True
    for case, low in (("plain", 4), ("large", 1e4)):
        fn = lambda logits, labels: optax.losses.ranking_softmax_loss(logits, labels, reduce_fn=None)  # noqa: E731
        inputs = {"logits": uniform(shape, -low, low), "labels": uniform(shape, 0, 3)}
        record(f"ranking_softmax_loss/{case}", fn, inputs, ["logits"])
        fn = lambda logits, labels, where, item_weights: optax.losses.ranking_softmax_loss(  # noqa: E731
            logits, labels, where=where, weights=item_weights, reduce_fn=None
        )
        inputs = {**inputs, "where": there, "item_weights": uniform(shape, 0, 2)}
        record(f"ranking_softmax_loss/{case}_masked", fn, inputs, ["logits"])


def segmentations():
    shape = (3, 4, 5, 4)
    one_hot = lambda shape: np.eye(shape[-1], dtype=np.float32)[RNG.integers(0, shape[-1], shape[:-1])]  # noqa: E731
    make = lambda: {"predictions": uniform(shape), "targets": one_hot(shape)}  # noqa: E731
    large = lambda: {"predictions": uniform(shape, -1e4, 1e4), "targets": one_hot(shape)}  # noqa: E731
    dice = optax.losses.dice_loss
    variants(
        "dice_loss", lambda predictions, targets: dice(predictions, targets), make, ["predictions"], large
    )
    options = {"alpha": 0.3, "beta": 0.7, "smooth": 0.1, "ignore_background": True}
    record(
        "dice_loss/tversky",
        lambda predictions, targets, class_weights: dice(
            predictions, targets, class_weights=class_weights, **options
        ),
        {**make(), "class_weights": uniform((4,), 0.5, 2)},
        ["predictions"],
    )
    inputs = make()
    inputs["predictions"] = distribution(shape)

    def torch_probabilities(predictions, targets):
        both, p, t = ((x).sum((1, 2)) for x in (predictions * targets, predictions, targets))
        return (1 - (both + 1) / (0.5 * p + 0.5 * t + 1)).mean(-1)

    record("dice_loss/probabilities", torch_probabilities, inputs, ["predictions"])

    def flat():
        return {
            "predictions": uniform((3, 4, 5)),
            "targets": RNG.integers(0, 2, (3, 4, 5)).astype(np.float32),
        }

    variants(
        "binary_dice_loss",
        lambda predictions, targets: optax.losses.binary_dice_loss(predictions, targets),
        flat,
        ["predictions"],
    )
    generalized = optax.losses.multiclass_generalized_dice_loss
    for case, ignore in (("plain", False), ("foreground", True)):

        def fn(predictions, targets, ignore=ignore):
            return 3 * generalized(predictions, targets, ignore_background=ignore)[None]

        record(
            f"multiclass_generalized_dice_loss/{case}",
            fn,
            make(),
            ["predictions"],
            None,
            lambda **_: np.float64(3),
        )


def alignments():
    frames = np.array([9, 9, 7, 4])
    lengths = np.array([4, 2, 3, 0])
    labels = RNG.integers(1, 5, (4, 4))
    labels[0] = [2, 2, 1, 1]
    for case, low in (("plain", 3), ("large", 1e4)):
        inputs = {
            "logits": uniform((4, 9, 5), -low, low),
            "logit_paddings": (np.arange(9) >= frames[:, None]).astype(np.float32),
            "labels": labels,
            "label_paddings": (np.arange(4) >= lengths[:, None]).astype(np.float32),
        }
        ctc = lambda logits, logit_paddings, labels, label_paddings: optax.losses.ctc_loss(  # noqa: E731
            logits, logit_paddings, labels, label_paddings, log_epsilon=-1e9
        )
        record(f"ctc_loss/{case}", ctc, inputs, ["logits"])
        record(
            f"ctc_loss/{case}_weighted", ctc, inputs, ["logits"], np.array([0.0, 1.5, 0.5, 1.0], np.float32)
        )

    def torch_ctc(logits, logit_paddings, labels, label_paddings):
        log_probs = torch.log_softmax(logits, -1).transpose(0, 1)
        return tnf.ctc_loss(
            log_probs, labels, torch.tensor(frames), torch.tensor(lengths), blank=4, reduction="none"
        )

    inputs = {**inputs, "logits": uniform((4, 9, 5)), "labels": labels - 1}
    record("ctc_loss/last_blank", torch_ctc, inputs, ["logits"])


def polys():
    shape = (6, 5)
    variants(
        "poly_loss_cross_entropy",
        lambda logits, labels: optax.losses.poly_loss_cross_entropy(logits, labels, epsilon=1.5),
        lambda: {"logits": uniform(shape), "labels": distribution(shape, 0.3)},
        ["logits"],
        lambda: {"logits": uniform(shape, -1e4, 1e4), "labels": distribution(shape, 0.3)},
    )
    labels = distribution(shape)
    TENSORS["smooth_labels/plain/labels"] = labels
    TENSORS["smooth_labels/plain/value"] = np.asarray(
        optax.losses.smooth_labels(jnp.asarray(labels, "float64"), 0.3)
    )


FILES = {
    "losses_entropy": (cross_entropies, divergences),
    "losses_pointwise": (binaries, margins, regressions),
    "losses_structured": (embeddings, rankings, segmentations, alignments, polys),
}


def main():
    """Write the files."""
    jax.config.update("jax_enable_x64", True)
    for name, families in FILES.items():
        TENSORS.clear()
        for family in families:
            family()
        arrays = {key: np.ascontiguousarray(x).reshape(np.shape(x)) for key, x in TENSORS.items()}
        path = Path(__file__).with_name(f"{name}.safetensors")
        save_file(arrays, path)
        path.chmod(0o644)


if __name__ == "__main__":
    main()
