"""Time and peak memory of the loss of an output projection and its gradients, chunked against plain.

The plain loss is `mx.fast.cross_entropy(hidden @ weight.T, targets).mean()`. Each contestant has a
process of its own and computes the loss and its gradients with respect to hidden and weight. Peaks
are over the inputs and the gradients. The target, at one of the chunk sizes: at most 0.35 of the
plain loss's peak and, on a GPU, at no more than 1.15 of its time.

Correctness comes first: on a small float32 problem loss and gradients must agree with the plain
ones. At the size that is measured, `error` is how far the gradients are from those in float32,
relative to their norm.
"""

import argparse
import gc
import json
import time
from typing import Any, cast

import mlx.core as mx

from benchmarks import harness
from benchmarks.harness import ContestantError, Spread
from purestep.losses import linear_cross_entropy

MEMORY, TIME, TOLERANCE = 0.35, 1.15, 1e-5
PLAIN, MOST = "plain", 3  # chunk sizes, beside the plain loss: each worker holds inputs and its own peak
SIZES = {  # tokens, features, classes, dtype, and chunks by what share of the tokens they are
    "gpu": (8192, 768, 50304, "bfloat16", (8, 4, 2)),
    "cpu": (2048, 64, 8192, "float32", (16, 8, 4)),
}


class Session:
    """One way to compute the loss, in the worker's process: plain, or by chunks of some size."""

    def __init__(self, size: tuple[int, int, int], dtype: str, chunk_size: int | None, compiled: bool):
        self._chunk_size = chunk_size
        self._inputs = _inputs(*size, getattr(mx, dtype))
        mx.eval(self._inputs)
        self._call = mx.compile(_gradients(chunk_size)) if compiled else _gradients(chunk_size)

    def agrees(self) -> float:
        """Return how far loss and gradients are from the plain ones in float32, relative to their size."""
        inputs = _inputs(48, 32, 160, mx.float32)
        loss, found = _gradients(self._chunk_size and 7)(*inputs)
        want, wanted = _gradients(None)(*inputs)
        pairs = [(loss, want), *zip(found, wanted, strict=True)]
        return max(_apart(*pair) for pair in pairs)

    def error(self) -> list[float]:
        """Return how far the gradients are from those in float32, relative to their norm."""
        hidden, weight, targets = self._inputs
        _, wanted = _gradients(None)(hidden.astype(mx.float32), weight.astype(mx.float32), targets)
        mx.eval(wanted)
        _, found = self._call(*self._inputs)
        return [_apart(*pair) for pair in zip(found, wanted, strict=True)]

    def peak(self) -> int:
        """Return the bytes at the peak over inputs and gradients."""
        self.seconds(2)
        gc.collect()
        baseline = mx.get_active_memory()
        mx.reset_peak_memory()
        self.seconds(3)
        return mx.get_peak_memory() - baseline - sum(x.nbytes for x in self._inputs[:2])

    def seconds(self, steps: int) -> float:
        """Compute loss and gradients so many times."""
        begin = time.perf_counter()
        for _ in range(steps):
            loss, gradients = self._call(*self._inputs)
            mx.eval(loss, gradients)
            del loss, gradients
        return time.perf_counter() - begin


def _inputs(tokens: int, features: int, classes: int, dtype: mx.Dtype) -> tuple[mx.array, mx.array, mx.array]:
    keys = mx.random.split(mx.random.key(0), 3)
    hidden = mx.random.normal((tokens, features), key=keys[0])
    weight = mx.random.normal((classes, features), key=keys[1]) * features**-0.5
    return hidden.astype(dtype), weight.astype(dtype), mx.random.randint(0, classes, (tokens,), key=keys[2])


def _gradients(chunk_size: int | None) -> Any:
    def loss(hidden: mx.array, weight: mx.array, targets: mx.array) -> mx.array:
        if chunk_size is None:
            return mx.fast.cross_entropy(hidden @ weight.T, targets).mean()
        return linear_cross_entropy(hidden, weight, targets, chunk_size=chunk_size).value

    return mx.value_and_grad(loss, argnums=(0, 1))


def _apart(found: mx.array, wanted: mx.array) -> float:
    wanted = wanted.astype(mx.float32)
    apart = mx.linalg.norm(found.astype(mx.float32) - wanted) / mx.linalg.norm(wanted)
    return cast(float, apart.item())


def measure(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Return what was measured of each contestant.

    Raises:
        ContestantError: if one fails, or disagrees with the plain loss.
    """
    size = (options.tokens, options.features, options.classes)
    contestants = {PLAIN: None} | {f"chunks of {chunk}": chunk for chunk in options.chunks}
    built = {
        name: (size, options.dtype, chunk, not options.uncompiled) for name, chunk in contestants.items()
    }
    results: dict[str, dict[str, Any]] = {}
    with harness.workers(Session, built, cold=False) as workers:
        for worker in workers:
            harness.note(f"checking {worker.name}", passing=True)
            apart = worker.call("agrees")
            if not apart <= TOLERANCE:
                raise ContestantError(f"{worker.name}: {apart:.2g} from the plain loss, not {TOLERANCE}")
            results[worker.name] = {
                "chunk_size": contestants[worker.name],
                "apart": apart,
                "gradient_error": worker.call("error"),
                "peak": worker.call("peak"),
            }
        for name, seconds in harness.race(workers, steps=options.steps, rounds=options.rounds).items():
            results[name]["seconds"] = seconds
    return results


def show(results: dict[str, dict[str, Any]], options: argparse.Namespace) -> str:
    """Write the results."""
    plain = results[PLAIN]
    rows = [
        [
            name,
            f"{found['peak'] / 1e6:.1f}",
            f"{found['peak'] / plain['peak']:.2f}",
            Spread.of(found["seconds"]).show(2, 1e3),
            Spread.of_ratios(found["seconds"], plain["seconds"]).show(2),
            f"{max(found['gradient_error']):.1e}",
        ]
        for name, found in results.items()
    ]
    met = reached(results, options)
    lines = [
        f"{options.tokens} tokens x {options.features} features x {options.classes} classes, "
        f"{options.dtype}, {'uncompiled' if options.uncompiled else 'compiled'}",
        harness.table(["contestant", "peak MB", "of plain", "ms", "of plain", "error"], rows),
        f"target: of plain, peak at most {MEMORY}"
        + (f" and time at most {TIME}" if options.device == "gpu" else "")
        + f": {'reached by ' + ', '.join(met) if met else 'missed'}",
    ]
    return "\n".join(lines)


def reached(results: dict[str, dict[str, Any]], options: argparse.Namespace) -> list[str]:
    """Return the contestants that meet the target."""
    plain = results[PLAIN]
    return [
        name
        for name, found in results.items()
        if found["peak"] <= MEMORY * plain["peak"]
        and (options.device == "cpu" or Spread.of_ratios(found["seconds"], plain["seconds"]).median <= TIME)
    ]


def _chunks(text: str) -> list[int]:
    chunks = [harness.positive(part) for part in text.split(",")]
    if len(set(chunks)) != len(chunks) or len(chunks) > MOST:
        raise argparse.ArgumentTypeError(f"must be at most {MOST} different sizes, got {text}")
    return chunks


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    for index, name in enumerate(("tokens", "features", "classes")):
        sizes = " or ".join(str(SIZES[device][index]) for device in SIZES)
        parser.add_argument(f"--{name}", type=harness.positive, help=f"({sizes}, on GPU or CPU)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="(bfloat16 or float32)")
    parser.add_argument(
        "--chunks",
        type=_chunks,
        metavar="N,N",
        help=f"at most {MOST} chunk sizes (1/8, 1/4 and 1/2 of the tokens, or 1/16, 1/8 and 1/4)",
    )
    parser.add_argument("--uncompiled", action="store_true", help="do not compile")
    parser.add_argument("--steps", type=harness.positive, help="evaluations a round (10 or 1)")
    parser.add_argument("--rounds", type=harness.positive, default=5, help="(5)")
    parser.add_argument("--json", action="store_true", help="print everything measured as JSON")


def run(options: argparse.Namespace) -> int:
    """Check, measure, and hold the chunk sizes to the target."""
    options.device = "gpu" if mx.default_device() == mx.Device(mx.gpu) else "cpu"
    *sizes, shares = SIZES[options.device]
    for name, value in zip(("tokens", "features", "classes", "dtype"), sizes, strict=True):
        setattr(options, name, getattr(options, name) or value)
    options.chunks = options.chunks or sorted({max(1, options.tokens // share) for share in shares})
    options.steps = options.steps or (10 if options.device == "gpu" else 1)
    facts = harness.facts()
    results = measure(options)
    if options.json:
        record = {"benchmark": "linear_cross_entropy", "options": vars(options), "facts": facts}
        print(json.dumps(record | {"targets": [MEMORY, TIME], "results": results}, indent=1))
    else:
        print(harness.facts_lines(facts) + "\n\n" + show(results, options))
    return 0 if reached(results, options) else 1
