"""The chunked loss against torch in float64 for several chunk sizes; memory, masks and bad arguments."""

import io

import mlx.core as mx
import numpy as np
import pytest

import purestep as ps
from purestep import tree
from purestep._core import hardware
from purestep._core.tracing import graph
from purestep._losses.tokens import projection
from purestep.losses import cross_entropy, linear_cross_entropy
from tests.references import recorded
from tests.refusals import parts

RECORD = recorded("chunked")
RTOL, ATOL = 1e-5, 1e-6

OPTIONS = {
    "plain": {},
    "bias": {},
    "ignored": {"ignore_index": -100},
    "smoothed": {"label_smoothing": 0.1},
    "z_loss": {"z_loss": 0.01},
    "soft_cap": {"soft_cap": 1.5},
    "weighted": {},
    "everything": {"ignore_index": -100, "label_smoothing": 0.2, "z_loss": 0.02, "soft_cap": 2.0},
    "large": {},
    "large_smoothed": {"label_smoothing": 0.1},
}


def load(case):
    return {key.split("/", 1)[1]: part for key, part in RECORD.items() if key.startswith(f"{case}/")}


def differentiable(case, parts, **more):
    """Return the mean loss as a function of a dict of its floating inputs, and that dict."""
    targets = mx.array(parts["targets"])
    inputs = {name[5:]: mx.array(parts[name[5:]]) for name in parts if name.startswith("grad/")}
    # torch's record has no gradient through the sum of weights; the library's Mean has one.
    fixed = inputs.pop("weights", None)

    def loss(inputs):
        mean = linear_cross_entropy(targets=targets, weights=fixed, **inputs, **OPTIONS[case], **more)
        return mean.value

    return loss, inputs


def compare(found, parts, scale=1.0):
    value, gradients = found
    assert value.item() == pytest.approx(parts["value"].item(), rel=RTOL)
    for name, gradient in gradients.items():
        want = parts[f"grad/{name}"]
        np.testing.assert_allclose(gradient, want, RTOL, ATOL * max(1.0, np.abs(want).max()), err_msg=name)


@pytest.mark.parametrize("chunk_size", [1, 7, 22, 1024])
@pytest.mark.parametrize("case", OPTIONS)
def test_value_and_gradients_are_those_of_torch_in_float64(case, chunk_size):
    parts = load(case)
    loss, inputs = differentiable(case, parts, chunk_size=chunk_size)
    compare(mx.value_and_grad(loss)(inputs), parts)
    # Without a gradient the value takes another path.
    assert loss(inputs).item() == pytest.approx(parts["value"].item(), rel=RTOL)


def test_every_recorded_case_is_compared():
    assert {key.split("/")[0] for key in RECORD} == set(OPTIONS)


def test_compiled_is_the_same():
    parts = load("everything")
    loss, inputs = differentiable("everything", parts, chunk_size=8)
    compare(mx.compile(mx.value_and_grad(loss))(inputs), parts)


@pytest.mark.parametrize(
    "guess",
    [
        lambda array: set(),
        lambda array: {"Copy"},
        lambda array: {"Copy"} if array.shape == (22, 6) else set(),
    ],
    ids=["none wanted", "all wanted", "hidden wanted"],
)
@pytest.mark.parametrize("case", ["bias", "weighted"])
def test_a_wrong_guess_about_the_gradients_wanted_changes_no_number(case, guess, monkeypatch):
    monkeypatch.setattr(projection.graph, "primitives", guess)
    parts = load(case)
    loss, inputs = differentiable(case, parts, chunk_size=4)
    assert loss(inputs).item() == pytest.approx(parts["value"].item(), rel=RTOL)
    compare(mx.value_and_grad(loss)(inputs), parts)
    for name, x in inputs.items():
        rest = {other: y for other, y in inputs.items() if other != name}
        gradient = mx.grad(lambda x, name=name, rest=rest: loss({**rest, name: x}))(x)
        compare((loss(inputs), {name: gradient}), parts)


@pytest.mark.parametrize("compiled", [False, True])
def test_what_is_done_on_a_gpu_gives_the_same(compiled, monkeypatch):
    monkeypatch.setattr(hardware, "on_gpu", lambda: True)
    parts = load("bias")
    loss, inputs = differentiable("bias", parts, chunk_size=4)
    gradients = mx.value_and_grad(loss)
    compare((mx.compile(gradients) if compiled else gradients)(inputs), parts)


@pytest.mark.parametrize("wanted", ["hidden", "weight", "bias"])
def test_one_gradient_alone_is_the_same(wanted):
    parts = load("bias")
    loss, inputs = differentiable("bias", parts, chunk_size=5)
    rest = {name: x for name, x in inputs.items() if name != wanted}
    gradient = mx.grad(lambda x: loss({**rest, wanted: x}))(inputs[wanted])
    compare((loss(inputs), {wanted: gradient}), parts)


def test_weights_have_a_gradient():
    parts = load("weighted")
    hidden, weight, targets, weights = (
        mx.array(parts[n]) for n in ("hidden", "weight", "targets", "weights")
    )
    chunks = mx.grad(lambda w: linear_cross_entropy(hidden, weight, targets, weights=w, chunk_size=3).value)
    plain = mx.grad(lambda w: cross_entropy(hidden @ weight.T, targets, weights=w).value)
    np.testing.assert_allclose(chunks(weights + 0.5), plain(weights + 0.5), 1e-5, 1e-6)


@pytest.mark.parametrize("gpu", [False, True])
def test_the_gradient_of_the_gradient_is_that_of_the_plain_loss(gpu, monkeypatch):
    if gpu:
        monkeypatch.setattr(hardware, "on_gpu", lambda: True)
    parts = load("bias")
    targets = mx.array(parts["targets"])
    inputs = [mx.array(parts[name]) for name in ("hidden", "weight", "bias")]

    def sharpness(loss):
        def squared(*inputs):
            gradients = mx.grad(loss, argnums=(0, 1, 2))(*inputs)
            return sum(mx.square(gradient).sum() for gradient in gradients)

        return mx.grad(squared, argnums=(0, 1, 2))(*inputs)

    found = sharpness(lambda h, w, b: linear_cross_entropy(h, w, targets, bias=b, chunk_size=6).value)
    wanted = sharpness(lambda h, w, b: cross_entropy(h @ w.T + b, targets).value)
    for one, other in zip(found, wanted, strict=True):
        assert mx.abs(other).max().item() > 1e-3
        np.testing.assert_allclose(one, other, 1e-4, 1e-6)


def test_a_chunk_that_holds_everything_can_be_mapped():
    parts = load("bias")
    hidden, weight, targets = (mx.array(parts[name]) for name in ("hidden", "weight", "targets"))

    def loss(weight, chunk_size):
        return linear_cross_entropy(hidden, weight, targets, chunk_size=chunk_size).value

    many = mx.stack([weight, 2 * weight])
    mapped = mx.vmap(mx.grad(lambda w: loss(w, 22)))(many)
    np.testing.assert_allclose(mapped[1], mx.grad(lambda w: loss(w, 5))(2 * weight), 1e-5, 1e-6)


def test_a_loss_without_a_gradient_makes_no_gradient():
    hidden, weight, targets = mx.ones((8, 3)), mx.ones((50, 3)), mx.zeros(8, mx.int32)

    def products(*arrays):
        text = io.StringIO()
        mx.export_to_dot(text, *arrays)
        return text.getvalue().count("Matmul") + text.getvalue().count("AddMM")

    assert products(linear_cross_entropy(hidden, weight, targets, chunk_size=4).total) == 2
    loss = lambda h, w: linear_cross_entropy(h, w, targets, chunk_size=4).total  # noqa: E731
    value, gradients = mx.value_and_grad(loss, argnums=(0, 1))(hidden, weight)
    # Each of the two chunks has two more products: the gradients are computed in the same pass.
    assert products(value) == products(value, *gradients) == 6
    assert "Depends" in graph.primitives(value)
    # The gradient of a frozen projection is never computed.
    value, gradient = mx.value_and_grad(lambda h: loss(h, weight))(hidden)
    assert products(value) == products(value, gradient) == 4


def test_memory_does_not_grow_with_the_tokens():
    tokens, features, classes = 1024, 8, 2048
    hidden, weight = mx.random.normal((tokens, features), key=mx.random.key(0)), mx.zeros((classes, features))
    targets = mx.arange(tokens)

    def peak(loss):
        def once():
            mx.eval(mx.value_and_grad(loss, argnums=(0, 1))(hidden, weight))

        mx.eval(hidden, weight, targets)
        once()
        mx.synchronize()  # CUDA frees what a kernel has read after the result is there
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        once()
        return mx.get_peak_memory() - before - hidden.nbytes - weight.nbytes

    plain = peak(lambda h, w: mx.fast.cross_entropy(h @ w.T, targets).mean())
    chunks = peak(lambda h, w: linear_cross_entropy(h, w, targets, chunk_size=32).value)
    assert plain > 0.9 * tokens * classes * 4
    assert chunks <= 0.35 * plain


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
def test_half_precision_gradients_are_near_those_in_float32(dtype):
    parts = load("bias")
    targets = mx.array(parts["targets"])
    hidden, weight, bias = (mx.array(parts[name]).astype(dtype) for name in ("hidden", "weight", "bias"))
    loss = lambda h, w, b: linear_cross_entropy(h, w, targets, bias=b, chunk_size=3).value  # noqa: E731
    value, gradients = mx.value_and_grad(loss, argnums=(0, 1, 2))(hidden, weight, bias)
    assert value.dtype == mx.float32
    assert {gradient.dtype for gradient in gradients} == {dtype}
    wide = [x.astype(mx.float32) for x in (hidden, weight, bias)]
    want, exact = mx.value_and_grad(loss, argnums=(0, 1, 2))(*wide)
    unit = 2**-8 if dtype == mx.bfloat16 else 2**-11
    assert value.item() == pytest.approx(want.item(), rel=2 * unit)
    for gradient, wanted in zip(gradients, exact, strict=True):
        apart = mx.linalg.norm(gradient.astype(mx.float32) - wanted) / mx.linalg.norm(wanted)
        assert apart.item() < 4 * unit


def test_a_gradient_in_float16_is_not_limited_by_its_sum_over_all_tokens():
    # Each token adds 1000: the sum over 80 tokens exceeds 65504, the sum over the 8 of a chunk does not.
    hidden, weight = mx.full((80, 3), 2000.0, mx.float16), mx.zeros((2, 3), mx.float16)
    targets = mx.zeros(80, mx.int32)
    gradient = mx.grad(lambda w: linear_cross_entropy(hidden, w, targets, chunk_size=8).value)(weight)
    np.testing.assert_array_equal(gradient, np.array([[-1000.0] * 3, [1000.0] * 3], np.float16))


@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("target", [-1, 5, 1000, -100])
def test_a_target_out_of_range_makes_loss_and_gradients_nan(target, gradient):
    hidden, weight, targets = mx.ones((4, 3)), mx.ones((5, 3)), mx.array([0, 1, target, 2])
    loss = lambda h, w: linear_cross_entropy(h, w, targets, ignore_index=-7, chunk_size=2).value  # noqa: E731
    if not gradient:
        assert mx.isnan(loss(hidden, weight)).item()
        return
    value, (for_hidden, for_weight) = mx.value_and_grad(loss, argnums=(0, 1))(hidden, weight)
    assert mx.isnan(value).item()
    assert mx.isnan(for_weight).all().item()
    assert mx.isnan(for_hidden).all(axis=-1).tolist() == [False, False, True, False]


@pytest.mark.parametrize("masked", ["ignored", "weighted", "boolean"])
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_what_does_not_count_has_a_gradient_of_zero_and_may_be_anything(masked, poison):
    hidden = mx.random.normal((6, 3), key=mx.random.key(0))
    weight, targets = mx.random.normal((5, 3), key=mx.random.key(1)), mx.array([0, 1, 2, 3, 4, 0])
    real = mx.array([True, False, True, True, False, True])
    options = {
        "ignored": {"ignore_index": -100},
        "weighted": {"weights": real.astype(mx.float32)},
        "boolean": {"weights": real},
    }[masked]
    kept = mx.where(real, targets, -100 if masked == "ignored" else 77)
    poisoned = mx.where(real[:, None], hidden, poison)

    def loss(h, w):
        return linear_cross_entropy(h, w, kept, chunk_size=2, **options).value

    value, (for_hidden, for_weight) = mx.value_and_grad(loss, argnums=(0, 1))(poisoned, weight)
    rows = [0, 2, 3, 5]
    clean = mx.value_and_grad(
        lambda h, w: cross_entropy(h @ w.T, targets[mx.array(rows)]).value, argnums=(0, 1)
    )
    want, (want_hidden, want_weight) = clean(hidden[mx.array(rows)], weight)
    assert value.item() == pytest.approx(want.item(), rel=1e-5)
    assert loss(poisoned, weight).item() == pytest.approx(want.item(), rel=1e-5)
    np.testing.assert_allclose(for_weight, want_weight, 1e-5, 1e-6)
    np.testing.assert_allclose(for_hidden[mx.array(rows)], want_hidden, 1e-5, 1e-6)
    assert for_hidden[1].tolist() == for_hidden[4].tolist() == [0, 0, 0]


def test_nothing_that_counts_gives_zeros():
    hidden, weight, targets = mx.full((4, 3), mx.nan), mx.ones((5, 3)), mx.full((4,), -100)
    loss = lambda h, w: linear_cross_entropy(h, w, targets, ignore_index=-100, chunk_size=3)  # noqa: E731
    value, gradients = mx.value_and_grad(lambda h, w: loss(h, w).value, argnums=(0, 1))(hidden, weight)
    mean = loss(hidden, weight)
    assert (value.item(), mean.total.item(), mean.weight.item()) == (0, 0, 0)
    assert all((gradient == 0).all().item() for gradient in gradients)


def test_no_targets_at_all_weigh_nothing():
    mean = linear_cross_entropy(mx.zeros((0, 3)), mx.ones((5, 3)), mx.zeros((0,), mx.int32))
    assert (mean.total.item(), mean.weight.item(), mean.value.item()) == (0.0, 0.0, 0.0)


def test_a_step_in_microbatches_sees_the_gradient_of_the_whole():
    hidden, targets = mx.random.normal((8, 4, 3), key=mx.random.key(0)), mx.arange(32).reshape(8, 4) % 5
    targets = mx.where(mx.arange(8)[:, None] < mx.array([1, 4, 2, 3]), -100, targets)

    def loss_fn(params, batch, rng):
        options = {"ignore_index": -100, "chunk_size": 3}
        return linear_cross_entropy(batch["hidden"], params["weight"], batch["targets"], **options)

    transform = ps.optimizers.sgd(1.0)
    state = ps.TrainState.create({"weight": mx.ones((5, 3))}, transform)
    batch = {"hidden": hidden, "targets": targets}
    whole = ps.train_step(loss_fn, transform)(state, batch)[0]
    parts = ps.train_step(loss_fn, transform, microbatches=4)(state, batch)[0]
    assert tree.norm(tree.map(mx.subtract, whole.params, state.params)).item() > 0.01
    np.testing.assert_allclose(whole.params["weight"], parts.params["weight"], 1e-6, 1e-6)


H, W, T = mx.ones((4, 3)), mx.ones((5, 3)), mx.zeros(4, mx.int32)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((H, W, mx.zeros(3, mx.int32)), {}, ValueError, "targets ... hidden' shape ... (3,) and (4, 3)"),
        ((H, mx.ones((5, 4)), T), {}, ValueError, "weight ... [classes, 3] ... (5, 4)"),
        ((H, mx.ones((0, 3)), T), {}, ValueError, "weight ... [classes, 3] ... (0, 3)"),
        ((H, mx.ones(3), T), {}, ValueError, "weight ... [classes, 3] ... (3,)"),
        (
            (H, W.astype(mx.bfloat16), T),
            {},
            TypeError,
            "weight ... hidden's dtype mlx.core.float32, got mlx.core.bfloat16",
        ),
        ((H, W, T), {"bias": mx.ones(4)}, ValueError, "bias ... (5,), ... (4,)"),
        ((H, W, T.astype(mx.float32)), {}, TypeError, "targets ... integers, got mlx.core.float32"),
        ((H.astype(mx.int32), W, T), {}, TypeError, "hidden ... floating, got mlx.core.int32"),
        ((H, W, T), {"weights": mx.ones(3)}, ValueError, "weights ... broadcast ... targets' (4,), got (3,)"),
        ((H, W, T), {"chunk_size": 0}, ValueError, "chunk_size ... 1, got 0"),
        ((H, W, T), {"chunk_size": 1.5}, TypeError, "chunk_size ... integer, got 1.5"),
        ((H, W, T), {"label_smoothing": 1.0}, ValueError, "label_smoothing ... 1, got 1.0"),
        ((H, W, T), {"z_loss": -1.0}, ValueError, "z_loss ... 0, got -1.0"),
        ((H, W, T), {"soft_cap": 0.0}, ValueError, "soft_cap ... 0, got 0.0"),
    ],
)
def test_a_bad_argument_is_refused_by_name_with_its_rule_and_value(arguments, options, error, message):
    with pytest.raises(error, match=parts(f"linear_cross_entropy: {message}")):
        linear_cross_entropy(*arguments, **options)
