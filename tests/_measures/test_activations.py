"""Captured outputs against a forward pass by hand; calls, remat, vmap and microbatches."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

import purestep as ps
from tests._measures.measuring import model_step, numbers

m = ps.metrics


def by_hand(params, x):
    """Return the outputs of the calls of `relu` and `shared` in both blocks, by numpy after the attention."""
    with ps.rng.scope(mx.random.key(0)):
        attention = nn.MultiHeadAttention(8, 2)
    found, x = {}, np.asarray(x, np.float64)
    for index, layer in enumerate(params["layers"]):
        attention.update(layer["attention"])
        h = mx.array(x.astype(np.float32))
        x = x + np.asarray(attention(h, h, h, "causal"), np.float64)
        weight, bias = (np.asarray(layer["shared"][name], np.float64) for name in ("weight", "bias"))
        for _ in range(2):
            before, x = x, x @ weight.T + bias
            found.setdefault(f"layers.{index}.shared", []).append((before, x))
            found.setdefault(f"layers.{index}.relu", []).append((x, np.maximum(x, 0)))
            x = np.maximum(x, 0)
    return found


def statistics(calls, eps=1e-3):
    """Return what `activations` measures, of all calls of a layer together."""
    given = np.concatenate([a.reshape(-1, a.shape[-1]) for a, _ in calls])
    out = np.concatenate([b.reshape(-1, b.shape[-1]) for _, b in calls])
    norms = np.linalg.norm(out, axis=1)
    return {
        "norm": norms.mean(),
        "gain": norms.sum() / np.linalg.norm(given, axis=1).sum(),
        "mean": out.mean(),
        "sparsity": (abs(out) <= eps).mean(),
        "dead": (abs(out) <= eps).all(axis=0).mean(),
    }


@pytest.mark.parametrize("microbatches", [1, 2, 4])
def test_statistics_are_those_of_the_whole_batch_over_all_calls(microbatches):
    measure = [m.activations(["*.relu", "*.shared"])]
    step, state, batch, _ = model_step(measure, microbatches=microbatches)
    found = numbers(step(state, batch)[1], "activations")
    want = {
        f"{path}/{key}": value
        for path, calls in by_hand(state.params, batch["x"]).items()
        for key, value in statistics(calls).items()
    }
    assert found == pytest.approx(want, rel=1e-4, abs=1e-6)
    assert any(value > 0 for key, value in found.items() if key.endswith("sparsity"))


def test_measuring_changes_neither_the_step_nor_the_module():
    plain, state, batch, _ = model_step([])
    measured, _, _, apply = model_step([m.activations("*"), m.attention_entropy("*.attention")])
    before = apply(state.params, batch["x"])
    assert ps.tree.alike(plain(state, batch)[0], measured(state, batch)[0])
    for a, b in zip(
        ps.tree.leaves(plain(state, batch)[0]), ps.tree.leaves(measured(state, batch)[0]), strict=True
    ):
        assert mx.array_equal(a, b)
    assert mx.array_equal(before, apply(state.params, batch["x"]))


def test_compiled_is_eager():
    measure = [m.activations("layers.1"), m.attention_entropy("layers.?")]
    step, state, batch, _ = model_step(measure, microbatches=2)
    eager, compiled = step(state, batch)[1], ps.compiled(step)(state, batch)[1]
    for name in eager:
        assert compiled[name].item() == pytest.approx(eager[name].item(), rel=1e-5, abs=1e-6), name


@pytest.mark.parametrize("remat", ["layers.*", "layers.*.shared"])
def test_layers_under_remat_and_within_are_measured_once(remat):
    measure = [m.activations(["layers.?", "*.relu"]), m.attention_entropy("*.attention")]
    plain, state, batch, _ = model_step(measure)
    recomputed, _, _, _ = model_step(measure, remat=remat)
    want, found = plain(state, batch)[1], recomputed(state, batch)[1]
    compiled = ps.compiled(recomputed)(state, batch)[1]
    for name in want:
        assert found[name].item() == pytest.approx(want[name].item(), rel=1e-5, abs=1e-6), name
        assert compiled[name].item() == pytest.approx(want[name].item(), rel=1e-5, abs=1e-6), name


def test_vmap_within_the_loss_is_refused_and_vmap_of_the_step_is_defined():
    step, state, batch, apply = model_step([m.activations("layers.0")])

    def each(params, batch, rng):
        return mx.square(mx.vmap(lambda x: apply(params, x[None]))(batch["x"])).mean()

    inner = ps.train_step(each, ps.optimizers.adamw(1e-3), measure=[m.activations("layers.0")])
    with pytest.raises(ValueError, match="activations: a layer runs under mx.vmap within the loss function"):
        inner(state, batch)
    two = ps.tree.map(lambda x: mx.stack([x, x]), state)
    metrics = mx.vmap(step, in_axes=(0, None))(two, batch)[1]
    alone = step(state, batch)[1]
    for name in alone:
        assert metrics[name].shape == (2,)
        assert mx.allclose(metrics[name], alone[name], rtol=1e-5, atol=1e-6), name


def test_dead_units_are_dead_in_every_microbatch():
    with ps.rng.scope(mx.random.key(0)):
        apply, params, _ = ps.functional(nn.Sequential(nn.Linear(2, 3), nn.ReLU()))
    params = ps.tree.map(mx.zeros_like, params)
    params["layers"][0]["weight"] = mx.array([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])

    def loss_fn(params, batch, rng):
        return ps.Mean.of(apply(params, batch["x"]).sum(axis=1))

    transform = ps.optimizers.sgd(0.1)
    step = ps.train_step(loss_fn, transform, microbatches=2, measure=[m.activations("layers.1")])
    batch = {"x": mx.array([[1.0, -1.0], [-1.0, 1.0]])}  # each unit but the last lives in one microbatch
    found = numbers(step(ps.TrainState.create(params, transform), batch)[1], "activations")
    assert found["layers.1/dead"] == pytest.approx(1 / 3)
    assert found["layers.1/sparsity"] == pytest.approx(4 / 6)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("layers.7", "pattern 'layers.7' matches none of the paths layers.0"),
        ("*.attention.nothing", "matches none of"),
        (["layers.0", "head*"], "pattern 'head[*]' matches none of"),
        ([], "patterns must have at least one pattern"),
    ],
)
def test_a_pattern_that_matches_nothing_is_refused(pattern, message):
    def first_step():
        step, state, batch, _ = model_step([m.activations(pattern)])
        step(state, batch)

    with pytest.raises(ValueError, match=message):
        first_step()


def test_what_cannot_be_measured_is_refused():
    _, state, batch, apply = model_step([])

    def reference_only(params, batch, rng):
        return apply(frozen, batch["x"]).mean() + params["layers"][0]["shared"]["bias"].sum()

    frozen = ps.tree.map(lambda x: x + 0, state.params)
    transform = ps.optimizers.adamw(1e-3)
    other = ps.train_step(reference_only, transform, measure=[m.activations("layers.0")])
    with pytest.raises(ValueError, match="runs no module of ps.functional with the trained params"):
        other(state, batch)

    with ps.rng.scope(mx.random.key(5)):
        twin, second, _ = ps.functional(nn.Sequential(nn.Linear(8, 8)))
        third, _, _ = ps.functional(nn.Sequential(nn.Linear(8, 8)))

    def both(params, batch, rng):
        return twin(params, batch["x"]).mean() + third(params, batch["x"]).mean()

    doubled = ps.train_step(both, transform, measure=[m.activations("layers.0")])
    with pytest.raises(ValueError, match="two modules of the loss have a layer layers.0"):
        doubled(ps.TrainState.create(second, transform), batch)


def test_a_layer_that_is_not_called_or_returns_no_numbers_is_refused():
    class Picks(nn.Module):
        def __call__(self, x):
            return mx.argmax(x, axis=-1)

    class Holder(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.unused, self.picks = nn.Linear(2, 2), nn.Linear(2, 2), Picks()

        def __call__(self, x):
            x = self.linear(x)
            return x.sum() + 0 * self.picks(x).sum()

    with ps.rng.scope(mx.random.key(0)):
        apply, params, _ = ps.functional(Holder())
    transform = ps.optimizers.sgd(0.1)
    for pattern in ("unused", "picks"):
        step = ps.train_step(
            lambda params, batch, rng: apply(params, batch), transform, measure=[m.activations(pattern)]
        )
        with pytest.raises(ValueError, match=f"matches {pattern}, which the loss function does not call or"):
            step(ps.TrainState.create(params, transform), mx.ones((3, 2)))


def test_cast_parameters_are_the_trained_ones():
    _, state, batch, apply = model_step([])

    def loss_in(dtype):
        return lambda params, batch, rng: apply(ps.tree.cast(params, dtype), batch["x"].astype(dtype)).mean()

    for dtype in (mx.float32, mx.bfloat16):
        step = ps.train_step(loss_in(dtype), ps.optimizers.adamw(1e-3), measure=[m.activations("layers.1")])
        assert step(state, batch)[1]["activations/layers.1/norm"].item() > 0


def test_attention_that_is_called_by_other_means_is_refused():
    step, state, batch, _ = model_step([m.attention_entropy("layers.0.shared")])
    with pytest.raises(ValueError, match="shared, which does not call mx.fast.scaled_dot_product_attention"):
        step(state, batch)


class Scale(nn.Module):
    """Returns a part of its input, in some container."""

    kinds: list[type] = []  # noqa: RUF012  (a registry of subclasses)

    def __init_subclass__(cls, *, tag: str) -> None:
        Scale.kinds.append(cls)

    def __init__(self) -> None:
        super().__init__()
        self.scale = mx.array(2.0)


class Nested(Scale, tag="nested"):
    def __call__(self, x):
        return (mx.array(1), None, {"out": self.scale * x})


class Narrow(Scale, tag="narrow"):
    def __call__(self, x):
        return self.scale * x[..., :0]


class Parts(nn.Module):
    """Layers in dicts and lists, one of them under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.held = {"one": Nested(), "more": [Narrow()]}
        self.again = self.held["one"]

    def __call__(self, x):
        nested = self.held["one"](x)[2]["out"]
        return nested + self.held["more"][0](x).sum() + self.again(x)[2]["out"]


def of_parts(patterns, **options):
    """Return the metrics of a step of `Parts` by key; the input is [[3, 4]]."""
    apply, params, _ = ps.functional(Parts(), **options)
    transform = ps.optimizers.sgd(0.1)
    step = ps.train_step(
        lambda params, batch, rng: apply(params, batch).mean(), transform, measure=[m.activations(patterns)]
    )
    return numbers(step(ps.TrainState.create(params, transform), mx.array([[3.0, 4.0]]))[1], "activations")


def test_layers_in_containers_that_return_containers_or_nothing():
    found = of_parts("held.*")
    assert found["held.one/norm"] == pytest.approx(10.0)
    assert found["held.one/gain"] == pytest.approx(2.0)
    assert found["held.more.0/norm"] == 0.0
    assert np.isnan(found["held.more.0/mean"])


@pytest.mark.parametrize("options", [{}, {"remat": "held.one"}])
def test_classes_that_register_their_subclasses_see_none_of_the_recording(options):
    before = list(Scale.kinds)
    assert "held.one/norm" in of_parts("held.one", **options)
    assert Scale.kinds == before == [Nested, Narrow]


def test_patterns_that_are_no_list_are_refused():
    for bad in (None, 5):
        with pytest.raises(TypeError, match="patterns must be a string or a list of them"):
            m.activations(bad)
