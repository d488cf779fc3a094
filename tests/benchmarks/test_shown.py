"""What each benchmark makes of a record: whole, without a turn yet, and of contestants alone."""

import argparse
import importlib

import pytest

from benchmarks import __main__ as command
from benchmarks import finetune, optimizer, scaling, transformer
from benchmarks.harness import Record
from benchmarks.workloads import gpt
from benchmarks.workloads.projection import Projection, apart, sampled

FACTS = {"device": "cpu", "cores": 2, "load": 0.1}
RATES = {"copy": 1e10, "matmul": 1e11, "published": None}
DISK = {"benchmark": "checkpoint", "size": 10**9, "missing": ["orbax"], "bytes": [[1.0, 0.5]]}
FIT = {"about": "a model", "steps": 60, "apart": 0.0}
LOOPS = {"loop, async_eval": [1.0, 1.0, 1.0], "loop, eval": [1.2, 1.2, 1.2], "ps.run": [1.01, 1.0, 1.01]}
STEP = {"first": 1.0, "metrics": [[9.0, 1.0]], "note": "", "apart": [1e-6, 1e-5], "peak": 2e9}
UPDATE = {"peak": 1e9, "apart": 1e-4, "first": 1.0, "note": ""}
NODES = {
    "first": 1.0,
    "memory": {"peak": 10, "baseline": 5},
    "nodes": 3,
    "disagreement": {"metrics": 0, "params": 0},
}
STEPS = "purestep;purestep, again;purestep, uncompiled;by hand, pure;by hand, mutable".split(";")
BYTES = {"baseline": 1, "peak": 10, "gradient": 4, "seconds": [1.0]}
MODES = ("whole", "parts", "one microbatch")
RANKS = {"seconds": 1.0, "times": [1.0, 1.0], "peak": 1e9, "state": 1e6, "metrics": [[9.0, 1.0]]}
TURNS = [1.0, 2.0]


def timed(made, each, turns):
    """Return contestants with or without turns."""
    return {name: each | ({"seconds": turns} if turns is not None else {}) for name in made}


def record(name, turns):
    """Return what a benchmark has found after these turns of each contestant; `None` is before the first."""
    some = TURNS if turns else []
    made = {
        "transformer": lambda: {
            "shape": gpt.SIZES["tiny"]._asdict(), "limits": RATES, "tokens": 256, "flops": 1e9,
            "microbatches": 1, "wanted": True, "failures": {"JAX + optax": "not installed: jax"},
            "contestants": timed(("purestep", "gradients alone", "torch eager"), STEP, turns),
        },
        "optimizer": lambda: {
            "parameters": 10**6, "arrays": 3, "copies": {"MLX": 1e9},
            "works": {"AdamW": {"contestants": timed(("purestep", "optax"), UPDATE, turns), "failures": {}}},
        },
        "finetune": lambda: {
            "shape": finetune.SIZES["small"]._asdict(), "limits": RATES, "failures": {},
            "contestants": timed(("purestep", "mlx-lm"), UPDATE, turns),
        },
        "step": lambda: {
            "workloads": {"mlp": {"about": "x", "steps": 1, "contestants": timed(STEPS, NODES, turns)}}
        },
        "fit": lambda: FIT | {"seconds": LOOPS if turns else {}},
        "loss": lambda: {
            "problem": Projection(8, 4, 16, "float32")._asdict(), "steps": 1, "on": "cpu", "limits": RATES,
            "failures": {},
            "contestants": timed(("MLX plain", "torch eager"), {"peak": 100, "error": 0.0}, turns)
            | timed(("purestep, chunks of 2",), {"peak": 35, "error": 0.0}, turns),
        },
        "memory": lambda: {
            "modes": {"compiled": dict.fromkeys(MODES, BYTES) if turns else {}},
            "gradients": {"compiled": 0.0, "uncompiled": 0.0, "averaged": 1.0},
        },
        "checkpoint": lambda: DISK | {
            kind: {"purestep Checkpointer": some, "mx.save_safetensors": some} for kind in ("save", "restore")
        } | {"background": [[0.001, 1.0, 0.0]] if turns else []},
        "measures": lambda: FIT | {
            "left_out": ["curvature"],
            "contestants": timed(("none", "all, every 10"), {"peak": 10, "apart": 0.0, "traces": 1}, turns),
        },
        "population": lambda: {"target": 3.0, "members": 64}
        | ({"seconds": {"population": [0.1], "one by one": [0.5], "one graph": [0.4]}} if turns else {}),
        "distributed": lambda: {
            "count": 2, "cuda": False, "shape": gpt.SIZES["tiny"]._asdict(), "failures": {},
            "contestants": dict.fromkeys([f"purestep packed, {n}" for n in (1, 2)], RANKS) if turns else {},
        },
        "state": lambda: {"state": {"adamw": 8.0}},
        "ranks": lambda: {
            "count": 2, "cuda": False, "failures": {}, "checkpoints": [["save", 2, 10, True]], "large": None,
            "stops": [{"rank": 1, "seconds": second, "named": True} for second in some],
        },
        "scaling": lambda: scaling.computed([50.0], 141.0, 8192),
    }  # fmt: skip
    found = made["transformer" if name == "cpu" else name]()
    return {"benchmark": name, "label": name, "facts": FACTS, "options": defaults(name)} | found


def defaults(name):
    """Return the options of a benchmark without arguments."""
    options = command.parser(name, importlib.import_module(f"benchmarks.{name}")).parse_args([])
    return Record(name, options).plain()["options"] | {"steps": 2}


@pytest.mark.parametrize("turns", [TURNS, None], ids=["whole", "before the first round"])
@pytest.mark.parametrize("name", command.NAMES)
def test_a_benchmark_shows_whole_and_partial_records(name, turns):
    benchmark, found = importlib.import_module(f"benchmarks.{name}"), record(name, turns)
    text = benchmark.show(found)
    assert name in ("state", "scaling") or "cores 2" in text
    drawn = [panel for panel in benchmark.panels(found) if panel.bars]
    assert bool(drawn) or turns is None
    assert benchmark.missed(found) == []


def test_a_ratio_is_over_the_contestant_and_the_limit_over_the_measured_rate():
    found = record("transformer", [0.2, 0.2])
    found["contestants"]["torch eager"]["seconds"] = [0.1, 0.1]
    row = next(line for line in transformer.show(found).splitlines() if line.startswith("torch eager"))
    assert row.split()[4:9] == ["2.6", "2.00", "2.00", "(2.00-2.00)", "1.00"]
    step, peaks = transformer.panels(found)
    assert [bar.label for bar in step.bars] == ["1.00", "1.00", "0.50"]
    assert step.limit == pytest.approx(10.0)  # ms: 1e9 FLOP at 1e11 FLOP/s
    assert peaks.unit.startswith("GB")


def test_the_limit_of_an_update_is_the_time_to_move_its_bytes():
    assert optimizer.panels(record("optimizer", TURNS))[0].limit == pytest.approx(28.0)  # 28 MB at 1 GB/s


@pytest.mark.parametrize("name", ["transformer", "optimizer", "loss", "finetune"])
def test_a_contestant_that_fails_is_missed_but_not_one_that_is_not_installed(name):
    found = record(name, TURNS)
    holder = found["works"]["AdamW"] if name == "optimizer" else found
    holder["failures"] = {"torch": "not installed: torch", "optax": "ValueError: no"}
    missed = importlib.import_module(f"benchmarks.{name}").missed(found)
    assert [each.rpartition(" ")[2] for each in missed] == ["optax"]


@pytest.mark.parametrize(
    ("name", "change", "missed"),
    [
        ("fit", lambda found: found["seconds"].update({"ps.fit": [1.1, 1.1, 1.1]}), ["ps.fit"]),
        ("loss", lambda found: found["contestants"]["MLX plain"].update(peak=200), []),
        ("loss", lambda found: found["contestants"]["purestep, chunks of 2"].update(peak=36), ["target"]),
        ("memory", lambda found: found["modes"]["compiled"]["parts"].update(peak=18), ["compiled"]),
    ],
)
def test_targets(name, change, missed):
    found = record(name, TURNS)
    if name == "memory":
        found["modes"]["compiled"] = {key: dict(BYTES) for key in MODES}
    change(found)
    assert importlib.import_module(f"benchmarks.{name}").missed(found) == missed


def test_samples_are_spread_over_the_array_and_distances_are_relative():
    numpy = pytest.importorskip("numpy")
    taken = sampled(numpy.arange(10_000.0))
    assert (taken[0], taken[1] - taken[0], taken[-1]) == (0.0, 2.0, 9998.0)
    assert apart([[3.0, 4.0]], [[3.0, 3.0]]) == pytest.approx([1 / 18**0.5])
    assert Projection(2, 3, 5, "float32").flops() == 3 * 2 * (2 * 3 * 5)


def test_every_benchmark_takes_the_shared_options():
    for name in command.NAMES:
        made = command.parser(name, importlib.import_module(f"benchmarks.{name}"))
        options = made.parse_args(["--limit", "9", "--json", "--save"])
        assert isinstance(options, argparse.Namespace)
        assert (options.limit, options.json, options.save) == (9.0, True, True)
