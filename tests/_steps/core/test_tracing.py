"""Compiled steps while MLX traces them, and without compilation."""

import gc
import subprocess
import sys
import threading
import tracemalloc
import warnings
from collections import OrderedDict
from dataclasses import dataclass

import mlx.core as mx
import pytest

import purestep as ps
from purestep.testing import laws
from tests.training import start


def summing(state, batch):
    """Return one operation for each output, for which MLX builds no kernel."""
    return state, {"sum": batch["x"].sum()}


def rows(count):
    return {"x": mx.ones(count)}


@pytest.fixture
def not_compiling():
    mx.disable_compile()
    yield
    mx.enable_compile()


def test_where_mlx_does_not_compile_a_step_runs_on_and_warns_once(not_compiling):
    step, state = ps.compiled(summing), start()
    with pytest.warns(
        ps.NotCompiledWarning, match=r"^compiled: MLX does not compile here: mx\.disable_c"
    ) as said:
        sums = [step(state, rows(count))[1]["sum"].item() for count in range(1, 21)]
    assert sums == list(range(1, 21))
    assert len(said) == 1
    assert said[0].filename == __file__
    assert step.traces == 0


def test_of_what_it_keeps_nothing_grows_where_mlx_does_not_compile(not_compiling):
    step, state = ps.compiled(summing, keep=2), {"w": mx.ones(1)}
    with pytest.warns(ps.NotCompiledWarning):
        step(state, rows(1))
    tracemalloc.start()
    try:
        for count in range(2, 402):
            step(state, rows(count))
        gc.collect()
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 400 * 100  # bytes; what one shape needs is ten times as large


def test_traces_are_counted_again_once_mlx_compiles_again():
    step = ps.compiled(summing, max_traces=1)
    mx.disable_compile()
    try:
        with pytest.warns(ps.NotCompiledWarning):
            step(start(), rows(1))
    finally:
        mx.enable_compile()
    step(start(), rows(2))
    with pytest.raises(ValueError, match="compiled: .* traced 2 times, max_traces is 1: batch.x"):
        step(start(), rows(3))


def test_no_law_is_broken_where_mlx_does_not_compile(not_compiling):
    with pytest.warns(ps.NotCompiledWarning):
        laws.check(lambda: ps.optimizers.sgd(0.1), params={"w": mx.ones(3)})


@pytest.mark.parametrize(
    ("environment", "reason"),
    [({"MLX_DISABLE_COMPILE": "1"}, "MLX_DISABLE_COMPILE is set"), ({"PATH": "/none"}, "there is no g++")],
    ids=["variable", "no g++"],
)
def test_the_reason_is_the_true_one(environment, reason, tmp_path):
    if "PATH" in environment and mx.default_device().type != mx.DeviceType.cpu:
        pytest.skip("g++ builds kernels for CPUs alone")
    code = (
        "import mlx.core as mx, purestep as ps\n"
        "step = ps.compiled(lambda state, batch: (state, batch['x'].sum()))\n"
        "for count in range(1, 12): mx.eval(step({}, {'x': mx.ones(count)}))\n"
    )
    import os

    run = subprocess.run(
        [sys.executable, "-W", "always", "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "TMPDIR": str(tmp_path), **environment},
    )
    assert run.returncode == 0, run.stderr
    assert run.stderr.count("NotCompiledWarning") == 1
    assert reason in run.stderr


def test_inside_another_transformation_no_warning_is_given():
    step = ps.compiled(lambda state, batch: (state, batch["x"].sum()))
    state = {"w": mx.ones(2)}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sums = mx.vmap(lambda x: step(state, {"x": x})[1])(mx.ones((3, 2)))
        outer = mx.compile(lambda x: step(state, {"x": x})[1])(mx.ones(3))
        gradient = mx.grad(lambda x: step(state, {"x": x})[1])(mx.ones(3))
    assert sums.tolist() == [2.0, 2.0, 2.0]
    assert outer.item() == 3.0
    assert gradient.tolist() == [1.0, 1.0, 1.0]


def test_a_signature_that_mlx_traces_again_is_not_counted_again():
    runs = []

    def step(state, batch):
        runs.append(1)
        return summing(state, batch)

    step = ps.compiled(step, max_traces=1)
    step(start(), rows(2))
    with mx.stream(mx.new_stream(mx.default_device())):
        step(start(), rows(2))
    assert (len(runs), step.traces) == (2, 1)


def test_each_thread_has_its_own_bound_and_dead_threads_are_forgotten():
    step, state = ps.compiled(summing, max_traces=2), start()
    mx.eval(state)
    failures = []

    def work():
        try:
            for count in (1, 2):
                step(state, rows(count))
        except Exception as error:
            failures.append(error)

    step(state, rows(3))
    for _ in range(4):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    gc.collect()
    assert not failures
    assert step.traces == 1


MEGABYTE = 1 << 20


def heavy(runs):
    """Return a step that lists the rows it is traced for; each of its traces holds a megabyte."""

    def step(state, batch):
        runs.append(batch["x"].shape[0])
        constant = mx.zeros(MEGABYTE // 4)
        mx.eval(constant)  # so that the trace keeps it in memory
        return state, {"sum": batch["x"].sum() + constant[0]}

    return step


def test_kept_are_the_most_recent_shapes_and_the_others_are_freed():
    runs = []
    step, state = ps.compiled(heavy(runs), keep=3), {"w": mx.ones(1)}
    before = mx.get_active_memory()
    for count in range(1, 13):
        step(state, rows(count))
    assert mx.get_active_memory() - before < 3.5 * MEGABYTE
    for count in (12, 10, 11):  # 10 is now the second oldest
        step(state, rows(count))
    assert runs == list(range(1, 13))
    step(state, rows(1))
    for count in (10, 11, 12):
        step(state, rows(count))
    assert runs == [*range(1, 13), 1, 12]
    assert step.traces == 14
    del step
    assert mx.get_active_memory() - before < 0.5 * MEGABYTE


def test_states_of_other_shapes_count_among_the_traces_kept():
    runs = []
    step = ps.compiled(heavy(runs), keep=3)
    before = mx.get_active_memory()
    for count in range(1, 9):
        step({"w": mx.ones(count)}, rows(2))
    assert mx.get_active_memory() - before < 3.5 * MEGABYTE
    del runs[:]
    for _ in range(3):  # what was dropped is not counted: these two are kept
        step({"w": mx.ones(9)}, rows(3))
        step({"w": mx.ones(9)}, rows(4))
    assert runs == [3, 4]


def test_the_values_are_those_of_the_step_whatever_is_kept():
    step = ps.compiled(lambda state, batch: (state, batch["x"].sum() * state["w"]), keep=1)
    for count in (1, 2, 1, 3, 2):
        assert step({"w": mx.array(2.0)}, rows(count))[1].item() == 2 * count


def test_a_step_may_receive_what_it_captures():
    begun = {"w": mx.array([1.0, 2.0]), "none": None}
    batch = {"x": mx.array([3.0, 4.0])}

    def step(state, batch_given):
        return {**state, "w": state["w"] + begun["w"]}, {
            "same": batch_given["x"] * batch["x"],
            "as": begun["w"],
        }

    compiled = ps.compiled(step)
    state, metrics = compiled(begun, batch)
    assert state["w"].tolist() == [2.0, 4.0]
    assert metrics["same"].tolist() == [9.0, 16.0]
    state, metrics = compiled(state, {"x": mx.array([1.0, 1.0])})  # the captured array keeps its value
    assert state["w"].tolist() == [3.0, 6.0]
    assert (metrics["same"].tolist(), metrics["as"].tolist()) == ([3.0, 4.0], [1.0, 2.0])
    assert compiled.traces == 1
    again, _ = compiled(begun, batch)
    assert again["w"].tolist() == [2.0, 4.0]


def test_a_step_may_receive_what_its_captured_array_is_computed_from():
    weight = mx.array([1.0, 2.0])
    doubled = weight * 2
    step = ps.compiled(lambda state, batch: (state, (state["w"] + doubled).sum()), keep=2)
    assert step({"w": weight}, rows(1))[1].item() == 9.0


@pytest.mark.parametrize(
    "read",
    [
        lambda x: 1.0 if x.sum() > 0 else 0.0,
        lambda x: float(x.sum()),
        lambda x: x.sum().item(),
        lambda x: mx.array(x.tolist()),
        lambda x: mx.array(memoryview(x)),
        lambda x: mx.eval(x) or 1.0,
        lambda x: len(str(x)),
    ],
    ids=["if", "float", "item", "tolist", "memoryview", "eval", "str"],
)
def test_a_step_that_reads_an_array_is_refused_with_the_line_and_the_remedy(read):
    step = ps.compiled(lambda state, batch: (state, batch["x"] * read(batch["x"])))
    with pytest.raises(ValueError, match=r"^compiled: test_tracing\.py, line \d+ \(lambda x: ") as error:
        step({"w": mx.ones(1)}, rows(2))
    assert "mx.where(condition, a, b)" in str(error.value)
    assert "Attempting to eval" in str(error.value.__cause__)


def test_a_schedule_with_a_python_if_is_told_what_to_write():
    transform = ps.optimizers.sgd(lambda count: 0.1 if count < 10 else 0.01)
    step = ps.compiled(ps.train_step(lambda p, b, rng: (p["w"] * b["x"]).sum(), transform))
    with pytest.raises(ValueError, match=r"learning_rate.*mx\.where"):
        step(start(transform, {"w": mx.ones(2)}), rows(2))


def test_other_errors_of_a_step_are_its_own():
    def step(state, batch):
        raise ValueError("mine")

    with pytest.raises(ValueError, match="^mine$"):
        ps.compiled(step)(start(), rows(1))


def test_a_container_that_varies_is_named():
    step = ps.compiled(lambda state, batch: (state, {}), max_traces=1)
    step({"w": mx.ones(1)}, {"x": mx.ones(1), "more": None})
    with pytest.raises(ValueError, match=r"compiled: .* batch\.more .*dict in this call, None"):
        step({"w": mx.ones(1)}, {"x": mx.ones(1), "more": {}})


def test_results_that_would_hold_dead_arrays_are_refused():
    @dataclass
    class Result:
        x: mx.array

    step = ps.compiled(lambda state, batch: (state, {"made": Result(batch["x"] + 1)}))
    with pytest.raises(TypeError, match=r"^compiled: the step returned 1\.made .*Result; .*NamedTuples"):
        step({"w": mx.ones(1)}, rows(1))
    step = ps.compiled(lambda state, batch: (state, OrderedDict(x=batch["x"], note="text", none=None, n=1)))
    assert step({"w": mx.ones(1)}, rows(1))[1]["n"] == 1


def test_arguments_are_checked():
    with pytest.raises(ValueError, match=r"^compiled: max_traces and keep .*, got max_traces=2 and keep=2"):
        ps.compiled(summing, max_traces=2, keep=2)
    with pytest.raises(ValueError, match="^compiled: keep .* 1, got 0"):
        ps.compiled(summing, keep=0)
    with pytest.raises(TypeError, match=r"^compiled: batch\.x .*Python number 1;.* mx\.array\(1\)"):
        ps.compiled(summing, keep=2)(start(), {"x": 1})
