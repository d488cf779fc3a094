"""Peak memory of a step in microbatches, and whether its gradients are those of the whole batch.

Each measurement has a process of its own. Peaks are over what is active between steps (state and
batch). The target: a step in k microbatches needs at most 1.25 times what a step on one microbatch
needs, plus one float32 gradient tree. The gradients are compared on a small transformer whose
microbatches hold different numbers of real tokens, one of them none at all.
"""

import argparse
import gc
import time
from typing import Any, cast

import mlx.core as mx

import purestep as ps
from benchmarks import harness
from benchmarks.harness import ContestantError, Limit, Panel, Record, Spread, Worker
from benchmarks.workloads.models import Transformer, tokens
from purestep._core.types import Batch, Params, Tree

TARGET, TOLERANCE, IGNORED = 1.25, 1e-5, -100
ONE = "one microbatch"
MODES = {"compiled": True, "uncompiled": False}


class Session:
    """A transformer's step on some rows of a batch, in the worker's process."""

    def __init__(self, options: argparse.Namespace, rows: int, microbatches: int, compiled: bool):
        mx.random.seed(0)
        model = Transformer(
            options.vocabulary, options.seq, options.width, options.layers, options.heads, dropout=0.0
        )
        transform = ps.chain(ps.transforms.clip_by_global_norm(1.0), ps.optimizers.adamw(1e-3))
        loss_fn, params = _loss(model)
        step = ps.train_step(loss_fn, transform, microbatches=microbatches)
        self._step = ps.compiled(step) if compiled else step
        self._state = ps.TrainState.create(params, transform)
        self._batch = tokens(mx.random.key(0), rows, options.seq, options.vocabulary)
        mx.eval(self._state, self._batch)

    def measure(self, steps: int) -> dict[str, Any]:
        """Return bytes active between steps, at the peak and in a float32 gradient; seconds a step."""
        self._advance()
        gc.collect()
        baseline = mx.get_active_memory()
        mx.reset_peak_memory()
        seconds = [self._advance() for _ in range(steps)]
        gradient = 4 * ps.tree.size(self._state.params)
        return {
            "baseline": baseline,
            "peak": mx.get_peak_memory() - baseline,
            "gradient": gradient,
            "seconds": seconds,
        }

    def _advance(self) -> float:
        begin = time.perf_counter()
        self._state, metrics = self._step(self._state, self._batch)
        mx.eval(self._state, metrics)
        return time.perf_counter() - begin


def _loss(model: Transformer, *, plain: bool = False) -> tuple[Any, Params]:
    apply, params, _ = ps.functional(model)

    def loss_fn(params: Params, batch: Batch, rng: mx.array) -> ps.Mean | mx.array:
        logits = apply(params, batch["inputs"], rng=rng)
        mean = ps.losses.cross_entropy(logits, batch["targets"], ignore_index=IGNORED)
        return mean.value if plain else mean

    return loss_fn, params


class Gradients:
    """The gradients of one ragged batch, taken whole and in microbatches, in the worker's process."""

    rows, seq, vocabulary = 16, 32, 64

    def compare(self, microbatches: int) -> dict[str, float]:
        """Return how far gradients are from those of the whole batch, relative to their norm.

        `averaged` is what they would be if the microbatches' means were averaged: how far is far.
        """
        mx.random.seed(0)
        model = Transformer(self.vocabulary, self.seq, 64, 2, 4, dropout=0.0)
        batch = tokens(mx.random.key(0), self.rows, self.seq, self.vocabulary)
        # Row r keeps the first r^2 / 8 of its tokens: the first microbatch has none, the last nearly all.
        real = mx.arange(self.seq)[None] < (mx.arange(self.rows)[:, None] ** 2) // 8
        batch["targets"] = mx.where(real, batch["targets"], IGNORED)

        def gradient(microbatches: int, compiled: bool, plain: bool = False) -> Params:
            loss_fn, params = _loss(model, plain=plain)
            # A transform that moves nothing and keeps the gradients for its state.
            keep = ps.GradientTransform(_float32_zeros, lambda g, state, params=None: (_float32_zeros(g), g))
            step = ps.train_step(loss_fn, keep, microbatches=microbatches)
            state = ps.TrainState.create(params, keep)
            return (ps.compiled(step) if compiled else step)(state, batch)[0].opt_state

        def apart(got: Params) -> float:
            difference = ps.tree.norm(ps.tree.map(mx.subtract, got, whole))
            return cast(float, (difference / ps.tree.norm(whole)).item())

        whole = gradient(1, compiled=False)
        found = {mode: apart(gradient(microbatches, compiled)) for mode, compiled in MODES.items()}
        return found | {"averaged": apart(gradient(microbatches, compiled=False, plain=True))}


def _float32_zeros(params: Params) -> Tree:
    return ps.tree.zeros_like(params, mx.float32)


def compare_gradients(microbatches: int) -> dict[str, float]:
    """Return how far the gradients in microbatches are from the whole batch's.

    Raises:
        ContestantError: beyond the tolerance.
    """
    with Worker("gradients", Gradients) as worker:
        found = worker.call("compare", microbatches)
    for mode in MODES:
        if not found[mode] <= TOLERANCE:
            raise ContestantError(
                f"{mode}: the gradient of {microbatches} microbatches is {found[mode]:.2g} of its norm away "
                f"from the whole batch's, tolerance {TOLERANCE}"
            )
    return found


def show(found: dict[str, Any]) -> str:
    """Write the results."""
    rows, options, gradients = [], found["options"], found["gradients"]
    for mode, measured in found["modes"].items():
        for name, each in measured.items():
            sizes = (f"{each[kind] / 1e6:.1f}" for kind in ("peak", "baseline", "gradient"))
            rows.append([f"{name}, {mode}", *sizes, Spread.of(each["seconds"]).show(2)])
    lines = [
        harness.facts_lines(found["facts"]),
        "",
        f"transformer: width {options['width']}, {options['layers']} layers, batch {options['batch']} x "
        f"{options['seq']} tokens, vocabulary {options['vocabulary']}",
        harness.table(["contestant", "peak over base MB", "base MB", "gradient MB", "s/step"], rows),
    ]
    for mode, ratio in ratios(found).items():
        lines.append(
            f"{mode}: peak in {options['microbatches']} microbatches / (peak of one + gradient) = "
            f"{ratio:.2f} (target: at most {TARGET})"
        )
    lines.append(
        f"gradients in {options['microbatches']} ragged microbatches are "
        f"{max(gradients[mode] for mode in MODES):.1g} of their norm from the whole batch's (tolerance "
        f"{TOLERANCE:g});\nthe average of the microbatches' means would be {gradients['averaged']:.2g} away"
    )
    return "\n".join(lines)


def ratios(found: dict[str, Any]) -> dict[str, float]:
    """Return, for each mode that was measured, the peak in microbatches over what the target counts."""
    result = {}
    for mode, measured in found["modes"].items():
        if len(measured) == 3:
            _, parts, one = measured.values()
            result[mode] = parts["peak"] / (one["peak"] + one["gradient"])
    return result


def panels(found: dict[str, Any]) -> list[Panel]:
    """Return the picture: a diagram for each mode, with what the target counts as the line."""
    made = []
    for mode, measured in found["modes"].items():
        panel = harness.sizes(
            f"Peak memory over state and batch, {mode}",
            {name: each["peak"] for name, each in measured.items()},
            "whole batch",
        )
        if ONE in measured:
            unit = 1e9 if panel.unit.startswith("GB") else 1e6
            least = (measured[ONE]["peak"] + measured[ONE]["gradient"]) / unit
            panel = panel._replace(limit=least, limit_label="one microbatch and a gradient")
        made.append(panel)
    return made


def missed(found: dict[str, Any]) -> list[str]:
    """Return the modes that miss the target."""
    return [mode for mode, ratio in ratios(found).items() if ratio > TARGET]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    for name, default in {
        "steps": 2, "batch": 32, "seq": 128, "width": 128, "layers": 4, "heads": 4, "vocabulary": 256,
    }.items():  # fmt: skip
        parser.add_argument(f"--{name}", type=harness.positive, default=default, help=f"({default})")
    parser.add_argument("--microbatches", type=int, choices=(2, 4, 8, 16), default=8, help="(8)")


def measure(options: argparse.Namespace, record: Record, limit: Limit) -> None:
    """Compare gradients, then measure each mode and number of microbatches."""
    if options.batch % options.microbatches:
        raise ContestantError(f"--batch must be divisible by {options.microbatches}, got {options.batch}")
    record.keep(facts=harness.facts(), gradients=compare_gradients(options.microbatches), modes={})
    contestants = {
        "whole batch": (options.batch, 1),
        f"{options.microbatches} microbatches": (options.batch, options.microbatches),
        ONE: (options.batch // options.microbatches, 1),
    }
    for mode, compiled in MODES.items():
        measured = record.found["modes"][mode] = {}
        for name, (rows, microbatches) in contestants.items():
            harness.note(f"{mode}, {name}: {rows} rows")
            with Worker(name, Session, options, rows, microbatches, compiled) as worker:
                measured[name] = worker.call("measure", options.steps)
            record.keep()
