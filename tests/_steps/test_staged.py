"""Steps whose microbatches are compiled one by one: the results of the whole step, in fewer traces."""

from concurrent.futures import ThreadPoolExecutor

import mlx.core as mx
import mlx.nn as nn
import pytest

import purestep as ps

TRANSFORM = ps.chain(ps.transforms.clip_by_global_norm(0.5), ps.optimizers.adamw(1e-2))


def functional(*layers):
    with ps.rng.scope(mx.random.key(0)):
        return ps.functional(nn.Sequential(*(layer() for layer in layers)))


def batches(count, rows=12):
    for key in mx.random.split(mx.random.key(3), count):
        targets = mx.random.randint(0, 5, (rows,), key=key)
        targets = mx.where(mx.arange(rows) % 5 < 2, -100, targets)  # microbatches of different weights
        yield {"x": mx.random.normal((rows, 6), key=key), "y": targets}


class Counted:
    """A loss function that counts how often Python runs it."""

    def __init__(self):
        self.calls = 0
        self.apply, self.params, _ = functional(
            lambda: nn.Linear(6, 8), nn.GELU, lambda: nn.Dropout(0.2), lambda: nn.Linear(8, 5)
        )

    def __call__(self, params, batch, rng):
        self.calls += 1
        logits = self.apply(params, batch["x"], rng=rng)
        loss = ps.losses.cross_entropy(logits, batch["y"], ignore_index=-100)
        return loss, {"largest": ps.Mean(logits.max(), mx.array(1.0))}


def trained(step, params, count=3, **options):
    state = ps.TrainState.create(params, TRANSFORM, **options)
    metrics = []
    for batch in batches(count):
        state, found = step(state, batch)
        metrics.append(found)
    return state, metrics


def assert_same(got, want):
    assert ps.tree.paths(got) == ps.tree.paths(want)
    for a, b in zip(ps.tree.leaves(got), ps.tree.leaves(want), strict=True):
        assert mx.allclose(a, b, rtol=1e-6, atol=1e-7, equal_nan=True).item()


@pytest.mark.parametrize("microbatches", [2, 3, 6])
@pytest.mark.parametrize("how", ["leaves", "packed", "bfloat16", "measured"])
def test_the_results_are_those_of_the_whole_step(how, microbatches):
    loss_fn = Counted()
    params = ps.packed(loss_fn.params) if how in ("packed", "bfloat16") else loss_fn.params
    step = ps.train_step(
        ps.compute_in(loss_fn, mx.bfloat16) if how == "bfloat16" else loss_fn,
        TRANSFORM,
        microbatches=microbatches,
        measure=[ps.metrics.grad_norms(), ps.metrics.noise_scale()] if how == "measured" else (),
    )
    assert_same(trained(ps.compiled(step, staged=True), params), trained(ps.compiled(step), params))


def test_a_model_state_passes_through_the_microbatches():
    apply, params, model_state = functional(lambda: nn.Linear(6, 8), lambda: nn.BatchNorm(8))

    def loss_fn(params, model_state, batch, rng):
        logits, model_state = apply(params, batch["x"], rng=rng, model_state=model_state)
        return ps.losses.cross_entropy(logits, batch["y"], ignore_index=-100), {}, model_state

    step = ps.train_step(loss_fn, TRANSFORM, microbatches=3, stateful=True)
    got, want = (
        trained(compiled, params, model_state=model_state)
        for compiled in (ps.compiled(step, staged=True), ps.compiled(step))
    )
    assert_same(got, want)


def test_two_microbatches_are_traced_however_many_there_are():
    loss_fn = Counted()
    step = ps.compiled(ps.train_step(loss_fn, TRANSFORM, microbatches=6), staged=True)
    trained(step, loss_fn.params)
    assert loss_fn.calls == 2  # the first, and one that adds to others
    assert step.traces == 1


def test_shapes_are_bounded_before_any_work():
    loss_fn = Counted()
    step = ps.compiled(ps.train_step(loss_fn, TRANSFORM, microbatches=2), staged=True, max_traces=1)
    state = ps.TrainState.create(loss_fn.params, TRANSFORM)
    small, large = (next(batches(1, rows)) for rows in (4, 8))
    step(state, small)
    calls = loss_fn.calls
    with pytest.raises(ValueError, match=r"batch\.x"):
        step(state, large)
    assert loss_fn.calls == calls
    step(state, small)
    assert step.traces == 1


def test_a_sum_of_means_is_compiled_as_a_whole():
    counted = Counted()

    def loss_fn(params, batch, rng):
        loss, _ = counted(params, batch, rng)
        return loss + 0.1 * ps.Mean(
            mx.square(batch["x"]).sum() * params["layers"][0]["bias"].sum(), mx.array(12.0)
        )

    step = ps.train_step(loss_fn, TRANSFORM, microbatches=3)
    assert_same(
        trained(ps.compiled(step, staged=True), counted.params), trained(ps.compiled(step), counted.params)
    )


@pytest.mark.parametrize("kind", ["no microbatches", "scan", "own"])
def test_a_step_that_does_not_divide_is_compiled_as_a_whole(kind):
    loss_fn = Counted()
    step = ps.train_step(loss_fn, TRANSFORM, microbatches=1 if kind == "no microbatches" else 2)
    if kind == "scan":
        step = ps.scan(step, 2)
        state = ps.TrainState.create(loss_fn.params, TRANSFORM)
        stacked = ps.tree.map(lambda *leaves: mx.stack(leaves), *batches(2))
        compiled = ps.compiled(step, staged=True)
        assert_same(compiled(state, stacked), ps.compiled(step)(state, stacked))
    else:
        own = step if kind == "no microbatches" else (lambda state, batch: step(state, batch))
        compiled = ps.compiled(own, staged=True)
        assert_same(trained(compiled, loss_fn.params), trained(ps.compiled(step), loss_fn.params))
    assert compiled.traces == 1


def test_within_a_transformation_the_whole_step_runs():
    loss_fn = Counted()
    step = ps.compiled(ps.train_step(loss_fn, TRANSFORM, microbatches=2), staged=True)
    plain = ps.train_step(loss_fn, TRANSFORM, microbatches=2)
    state, batch = ps.TrainState.create(loss_fn.params, TRANSFORM), next(batches(1))

    def after(step):
        def loss(x):
            return step(state, batch | {"x": x})[1]["loss"]

        return mx.grad(loss)(batch["x"])

    assert mx.allclose(after(step), after(plain), rtol=1e-5, atol=1e-8).item()


def test_arguments_are_not_changed_and_equal_calls_give_equal_results():
    loss_fn = Counted()
    step = ps.compiled(ps.train_step(loss_fn, TRANSFORM, microbatches=3), staged=True)
    state, batch = ps.TrainState.create(ps.packed(loss_fn.params), TRANSFORM), next(batches(1))
    before = ps.tree.map(lambda x: mx.array(x), state)
    first, second = step(state, batch), step(state, batch)
    assert all(
        mx.array_equal(a, b).item() for a, b in zip(*map(ps.tree.leaves, (first, second)), strict=True)
    )
    assert all(
        mx.array_equal(a, b).item() for a, b in zip(*map(ps.tree.leaves, (state, before)), strict=True)
    )


def test_a_read_of_a_value_is_refused_with_its_line():
    def loss_fn(params, batch, rng):
        return params["w"].sum() * (2 if batch["x"].sum() > 0 else 1)

    step = ps.compiled(ps.train_step(loss_fn, TRANSFORM, microbatches=2), staged=True)
    with pytest.raises(ValueError, match="test_staged"):
        step(ps.TrainState.create({"w": mx.ones(2)}, TRANSFORM), {"x": mx.ones(4)})


def test_keep_is_refused():
    with pytest.raises(ValueError, match="staged and keep exclude each other"):
        ps.compiled(lambda state, batch: state, keep=2, staged=True)


def test_a_step_within_the_loss_has_no_stages():
    inner = ps.train_step(
        lambda params, batch, rng: (params["w"] * batch["x"]).mean(), ps.optimizers.sgd(0.1), microbatches=2
    )

    def loss_fn(params, batch, rng):
        state = ps.TrainState.create(params, ps.optimizers.sgd(0.1))
        return mx.square(inner(state, batch)[0].params["w"]).sum()

    step = ps.train_step(loss_fn, ps.optimizers.sgd(0.1), microbatches=2)
    state = ps.TrainState.create({"w": mx.array(1.0)}, ps.optimizers.sgd(0.1))
    batch = {"x": mx.array([1.0, 2.0, 3.0, 4.0])}
    assert_same(ps.compiled(step, staged=True)(state, batch), step(state, batch))


def test_threads_share_the_compiled_step():
    loss_fn = Counted()
    step = ps.compiled(ps.train_step(loss_fn, TRANSFORM, microbatches=3), staged=True)
    batch = next(batches(1))
    mx.eval(batch, loss_fn.params)

    def steps(_):
        with mx.stream(mx.new_stream(mx.default_device())):
            state = ps.TrainState.create(loss_fn.params, TRANSFORM)
            for _ in range(10):
                state, metrics = step(state, batch)
                mx.eval(state, metrics)
            return metrics["loss"].item()

    with ThreadPoolExecutor(3) as pool:
        assert len(set(pool.map(steps, range(3)))) == 1


def test_measurements_of_layers_pass_through_the_stages():
    loss_fn = Counted()
    measure = [ps.metrics.activations("*")]
    step = ps.train_step(loss_fn, TRANSFORM, microbatches=3, measure=measure)
    got, want = (trained(c, loss_fn.params) for c in (ps.compiled(step, staged=True), ps.compiled(step)))
    assert_same(got[1], want[1])
    assert any("layers.0" in name for name in got[1][0])


def test_a_captured_array_may_become_the_model_state():
    captured = mx.array([1.0, 2.0, 3.0])

    def loss_fn(params, model_state, batch, rng):
        loss = mx.square(batch["x"] @ params["w"]).mean() * captured.sum()
        return loss, {}, {"v": captured}

    step = ps.train_step(loss_fn, TRANSFORM, microbatches=2, stateful=True)
    state = ps.TrainState.create({"w": mx.ones(3)}, TRANSFORM, model_state={"v": mx.zeros(3)})
    batch = {"x": mx.random.normal((8, 3), key=mx.random.key(0))}
    staged = ps.compiled(step, staged=True)
    for _ in range(2):
        assert_same(staged(state, batch), ps.compiled(step)(state, batch))


def test_only_the_first_call_checks_that_the_loss_depends_on_the_parameters():
    def loss_fn(params, batch, rng):
        return mx.square(batch["x"] @ params["w"]).mean() if "x" in batch else batch["z"].mean()

    step = ps.compiled(ps.train_step(loss_fn, TRANSFORM, microbatches=2), staged=True)
    state, x = ps.TrainState.create({"w": mx.ones(3)}, TRANSFORM), mx.ones((4, 3))
    step(state, {"x": x})
    assert step(state, {"z": x})[1]["loss"].item() == 1
    other = ps.compiled(ps.train_step(loss_fn, TRANSFORM, microbatches=2), staged=True)
    with pytest.raises(ValueError, match="does not depend on any of the parameters"):
        other(state, {"z": x})


def test_states_are_counted_and_bounded_as_batches_are():
    step = ps.train_step(
        lambda params, batch, rng: (batch["x"] * ps.tree.leaves(params)[0]).mean(), TRANSFORM, microbatches=2
    )
    step = ps.compiled(step, staged=True, max_traces=2)
    batch = {"x": mx.ones(4)}
    for name in "ab":
        step(ps.TrainState.create({name: mx.array(1.0)}, TRANSFORM), batch)
    assert step.traces == 2
    with pytest.raises(ValueError, match=r"params\.b"):
        step(ps.TrainState.create({"b": mx.ones(1)}, TRANSFORM), batch)
    step(ps.TrainState.create({"a": mx.array(1.0)}, TRANSFORM), batch)
    assert step.traces == 2


def test_without_compilation_a_warning_points_here_and_nothing_is_counted():
    loss_fn = Counted()
    step = ps.compiled(ps.train_step(loss_fn, TRANSFORM, microbatches=2), staged=True, max_traces=1)
    state = ps.TrainState.create(loss_fn.params, TRANSFORM)
    mx.disable_compile()
    try:
        with pytest.warns(ps.NotCompiledWarning) as warned:
            step(state, next(batches(1, 4)))
        step(state, next(batches(1, 8)))
    finally:
        mx.enable_compile()
    assert [each.filename for each in warned] == [__file__]
    assert step.traces == 0
