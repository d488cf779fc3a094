"""Exported steps: what the file computes, and which steps cannot be exported."""

import importlib.util

import mlx.core as mx
import pytest

import purestep as ps
from purestep._core.tracing.custom import custom_function
from purestep._core.tracing.graph import primitives
from purestep._export import plain
from tests._export.examples import STEPS, perceptron
from tests._graph.steps import STEPS as TRANSFORMERS
from tests.refusals import parts


def exported(step, state, batch, directory):
    path = directory / "step.mlxfn"
    ps.export(step, state, batch, path)
    return ps.import_step(path)


def assert_same(got, want):
    assert not ps.tree.differences(ps.tree.spec(got), ps.tree.spec(want))
    wrong = [
        path
        for (path, a), (_, b) in zip(sorted_items(got), sorted_items(want), strict=True)
        if not mx.array_equal(a, b, equal_nan=True).item()
    ]
    assert not wrong


def sorted_items(tree):
    return sorted(ps.tree.items(tree), key=lambda item: item[0])


@pytest.mark.parametrize("name", STEPS)
def test_an_imported_step_equals_the_compiled_one_bit_for_bit(name, tmp_path):
    if name == "language_model" and not importlib.util.find_spec("mlx_lm"):
        pytest.skip("mlx-lm is not installed")
    step, state, batch = STEPS[name]()
    imported, compiled = exported(step, state, batch, tmp_path), ps.compiled(step)
    got = want = state
    for _ in range(3):
        got_all, want_all = imported(got, batch), compiled(want, batch)
        assert_same(got_all, want_all)
        if name == "evaluation":
            assert_same(got_all["loss"].value, want_all["loss"].value)
            break
        (got, _), (want, _) = got_all, want_all
    assert (imported.traces, imported.steps) == (1, compiled.steps)


def test_recomputed_layers_equal_those_that_are_kept(tmp_path):
    step, state, tokens = TRANSFORMERS["recomputed"]()
    tokens = tokens[:2, :9] + mx.arange(9)
    state = state._replace(rng=mx.random.key(4))
    assert_same(exported(step, state, tokens, tmp_path)(state, tokens), ps.compiled(step)(state, tokens))


def test_a_gradient_is_the_one_that_its_function_defines(tmp_path):
    """Another than the true one: three times it, of a function that is called twice, once within itself."""

    @custom_function
    def square(x):
        return x * x

    @square.vjp
    def _(x, cotangent, _):
        return 6 * x * cotangent

    def step(state, batch):
        slope = mx.grad(lambda w: (square(square(w) * batch["x"])).sum())(state["w"])
        return {"w": state["w"] - slope}, {"slope": slope}

    state, batch = {"w": mx.array([1.0, 2.0])}, {"x": mx.array([3.0, -1.0])}
    _, metrics = exported(step, state, batch, tmp_path)(state, batch)
    expected = 9 * 4 * state["w"] ** 3 * batch["x"] ** 2
    assert metrics["slope"].tolist() == expected.tolist()


@pytest.mark.parametrize("used", [0, 1])
def test_results_of_a_function_with_its_own_gradient_may_be_left_unused(used, tmp_path):
    @custom_function
    def both(x):
        return x * x, x + 1

    @both.vjp
    def _(x, cotangents, _):
        return 5 * x * cotangents[0] + 3 * cotangents[1]

    def step(state, batch):
        slope = mx.grad(lambda w: (both(w)[used] * batch).sum())(state)
        return state - slope, {"slope": slope}

    state, batch = mx.array([1.0, 2.0]), mx.array([3.0, -1.0])
    _, metrics = exported(step, state, batch, tmp_path)(state, batch)
    assert metrics["slope"].tolist() == ((5 * state * batch) if used == 0 else 3 * batch).tolist()


def test_captured_arrays_are_constants_in_the_order_of_their_elements(tmp_path):
    """MLX's own export writes the memory of a view: that of a transpose in the wrong order."""
    views = [mx.arange(12.0).reshape(3, 4).T, mx.zeros((4, 3)) + 2]
    views += [views[0].astype(mx.bfloat16), mx.array(5), mx.zeros((0, 3))]
    mx.eval(views)

    def step(state, batch):
        transposed, same, narrow, number, empty = views
        return state + transposed * batch + same + narrow, {"sum": number + empty.sum()}

    state, batch = mx.zeros((4, 3)), mx.ones((4, 3))
    assert_same(exported(step, state, batch, tmp_path)(state, batch), step(state, batch))


def test_a_step_may_ask_for_an_order_in_memory(tmp_path):
    def step(state, batch):
        return mx.contiguous(state.T).T + batch, {}

    state, batch = mx.arange(6.0).reshape(2, 3), mx.ones((2, 3))
    assert_same(exported(step, state, batch, tmp_path)(state, batch), step(state, batch))


def test_the_sorted_rows_of_experts_have_a_gradient(tmp_path):
    def step(state, batch):
        def loss(w):
            rows = mx.gather_mm(batch["a"], w, rhs_indices=batch["i"], sorted_indices=True)
            return mx.square(rows).sum()

        return state - 0.1 * mx.grad(loss)(state), {}

    state = mx.random.normal((3, 4, 5), key=mx.random.key(0))
    batch = {"a": mx.random.normal((6, 1, 4), key=mx.random.key(1)), "i": mx.array([0, 0, 1, 1, 2, 2])}
    got, want = exported(step, state, batch, tmp_path)(state, batch)[0], step(state, batch)[0]
    assert mx.allclose(got, want, rtol=1e-6, atol=1e-6)


def test_fused_operations_of_a_gpu_are_exported_as_others(tmp_path, monkeypatch):
    monkeypatch.setattr(plain.hardware, "on_gpu", lambda: True)
    shape = (2, 4, 5, 8)

    def loss(params, batch):
        q, k, v = (params[name] for name in "qkv")
        out = mx.fast.scaled_dot_product_attention(q, k, v, scale=0.3, mask=batch["mask"], sinks=params["s"])
        return mx.fast.cross_entropy(out.reshape(-1, 8), batch["y"]).mean()

    def step(params, batch):
        value, slopes = mx.value_and_grad(loss)(params, batch)
        return slopes, {"loss": value}

    def drawn(number, shape):
        return mx.random.normal(shape, key=mx.random.key(number))

    params = {
        "q": drawn(0, shape),
        "k": drawn(1, (2, 2, 7, 8)),
        "v": drawn(2, (2, 2, 7, 8)),
        "s": drawn(3, (4,)),
    }
    for mask in (drawn(4, (5, 7)) > 0, drawn(4, (2, 1, 5, 7))):
        batch = {"mask": mask, "y": mx.arange(40) % 8}
        got = exported(step, params, batch, tmp_path)(params, batch)
        for a, b in zip(sorted_items(got), sorted_items(step(params, batch)), strict=True):
            assert mx.allclose(a[1], b[1], rtol=1e-5, atol=1e-6), a[0]


def test_nothing_is_evaluated(tmp_path):
    step, state, batch = perceptron()
    lazy = ps.tree.map(lambda x: mx.zeros(x.shape, x.dtype) + mx.zeros((), x.dtype), state)
    ps.export(step, lazy, batch, tmp_path / "step")
    assert all(primitives(leaf) for leaf in ps.tree.leaves(lazy.params))


early = mx.custom_function(lambda x: x * x)
early.vjp(lambda x, cotangent, _: cotangent * x)


@custom_function
def square(x):
    return x * x


@square.vjp
def _(x, cotangent, _):
    return 2 * x * cotangent


def total(x: mx.array) -> mx.array:
    return x.sum()


W = mx.array([1.0, 2.0])
WIDE, BACK = mx.broadcast_to(W[0], (2,)), W[::-1]
mx.eval(WIDE, BACK)
REFUSED = {
    "made_before": (
        lambda s, b: (s, {"m": total(early(s))}),
        "export: ... CustomTransforms ... mx.custom_function",
    ),
    "unwritten": (lambda s, b: (s, {"m": mx.logcumsumexp(s).sum()}), "export: step ... CumLogAddExp"),
    "second_derivative": (
        lambda s, b: (s, {"m": total(mx.grad(lambda w: total(mx.grad(lambda v: total(square(v)))(w)))(s))}),
        "export: step must use a gradient that a function defines once",
    ),
    "vmapped": (
        lambda s, b: (s, {"m": mx.vmap(mx.grad(lambda w: total(square(w))))(s[:, None])}),
        "export: step ... mx.vmap",
    ),
    "read": (lambda s, b: (s, {"m": s * s.sum().item()}), "export: test_exporting.py ... reads the value"),
    "drawn": (lambda s, b: (s, {"m": mx.random.uniform()}), "export: the step ... without a key"),
    "broadcast": (lambda s, b: (s, {"m": s + WIDE}), "export: step ... float32 (2,)"),
    "reversed": (lambda s, b: (s, {"m": s + BACK}), "export: step ... mx.contiguous"),
    "grows": (lambda s, b: ({"w": s}, {}), "export: step must keep the structure of the state"),
    "number": (lambda s, b: (s, {"m": 3}), "export: metrics must be arrays or Means, got int for m"),
    "three": (lambda s, b: (s, {}, {}), "export: step must return (state, metrics) or metrics, got 3 values"),
    "no_dict": (lambda s, b: [s], "export: step must return metrics in a dict, got list"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_step_that_cannot_be_exported_is_refused_and_leaves_no_file(name, tmp_path):
    step, message = REFUSED[name]
    with pytest.raises(ValueError, match=parts(message)):
        ps.export(step, W + 0, W, tmp_path / "step")
    assert not list(tmp_path.iterdir())


def test_arguments_are_checked(tmp_path):
    step, state, batch = perceptron()
    with pytest.raises(TypeError, match=parts("export: state.w is the Python number 1")):
        ps.export(step, {"w": 1}, batch, tmp_path / "step")
    with pytest.raises(TypeError, match=parts("export: batch.x is the Python number 1")):
        ps.export(step, state, {"x": 1}, tmp_path / "step")
    with pytest.raises(IsADirectoryError, match="export: "):
        ps.export(step, state, batch, tmp_path)
