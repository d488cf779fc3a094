"""Norms, drift, ratios and shares, against numpy, in natural order, computed once."""

import io
import itertools
import re
from collections import Counter

import mlx.core as mx
import numpy as np
import pytest

import purestep as ps
from purestep._core import cuda
from purestep._measures import groups
from tests._measures.measuring import linear, numbers, plain_sums, rows

m = ps.metrics


def each(tree):
    """Return the concatenated elements of each layer, float64."""
    found = {}
    for path, leaf in ps.tree.items(tree):
        name = m.layer_of(path)
        flat = np.asarray(leaf.astype(mx.float32), np.float64).reshape(-1)
        found[name] = np.concatenate([found.get(name, np.zeros(0)), flat])
    return found


def test_layer_ten_comes_after_layer_nine():
    step, state = linear([m.grad_norms()])
    names = list(numbers(step(state, rows())[1], "grad_norms"))
    assert names == [f"layers.{i}" for i in range(12)] + ["w"]
    keyed = {f"layer_{i}": {"w": mx.ones(1)} for i in (10, 9, 1)}
    assert list(m.norms(keyed)) == ["layer_1", "layer_9", "layer_10"]


@pytest.mark.parametrize("microbatches", [1, 2])
def test_norms_drift_ratios_and_shares_are_numpys(microbatches):
    reference = {"w": mx.array([0.5, 0.5]), "layers": [{"b": mx.array([0.0])} for _ in range(12)]}
    measure = [m.grad_norms(), m.weight_norms(), m.drift(reference), m.update_ratios(), m.zero_share()]
    step, state = linear(measure, microbatches=microbatches)
    parts = step.parts(state, rows())
    gradients, params, changed = each(parts.gradients), each(state.params), each(parts.state.params)
    start = each(reference)
    for name in gradients:
        metrics = {key: value.item() for key, value in parts.metrics.items() if key.endswith(f"/{name}")}
        norm = np.linalg.norm(params[name])
        expected = {
            f"grad_norms/{name}": np.linalg.norm(gradients[name]),
            f"weight_norms/{name}": norm,
            f"drift/{name}": np.linalg.norm(params[name] - start[name]),
            f"update_ratios/{name}": np.linalg.norm(changed[name] - params[name]) / norm if norm else 0.0,
            f"zero_share/{name}": np.mean(gradients[name] == 0),
        }
        assert metrics == pytest.approx(expected, rel=1e-5, abs=1e-7)


def test_norms_of_large_and_small_leaves_in_reduced_precision_are_numpys():
    keys = iter(mx.random.split(mx.random.key(0), 8))
    tree = {
        "embed": mx.random.normal((70_000, 3), key=next(keys)),
        "layers": [
            {"w": mx.random.normal((300, 70), key=next(keys)).astype(mx.bfloat16), "b": mx.ones(7)},
            {"w": mx.random.normal((5000,), key=next(keys)), "b": mx.zeros(0), "s": mx.array(2.0)},
        ],
    }
    want = {name: np.linalg.norm(flat) for name, flat in each(tree).items()}
    found = {name: norm.item() for name, norm in m.norms(tree).items()}
    assert found == pytest.approx(want, rel=2e-6)
    whole = mx.sqrt(sum(mx.square(norm) for norm in m.norms(tree).values()))
    assert whole.item() == pytest.approx(ps.tree.norm(tree).item(), rel=1e-6)
    assert list(m.norms(tree, str)) == [
        "embed",
        "layers.0.b",
        "layers.0.w",
        *[f"layers.1.{x}" for x in "bsw"],
    ]
    assert m.norms({}) == {}


def test_shares_count_broken_and_zero_elements_of_any_tree():
    measure = [m.nonfinite_share("params"), m.zero_share("params", by=str), m.nonfinite_share(name="bad")]
    step, state = linear(measure)
    params = {**state.params, "w": mx.array([mx.nan, 0.0])}
    metrics = step(state.replace(params=params), rows())[1]
    assert metrics["nonfinite_share/w"].item() == metrics["zero_share/w"].item() == 0.5
    assert metrics["nonfinite_share/layers.11"].item() == 0.0
    assert metrics["zero_share/layers.0.b"].item() == 1.0
    assert metrics["bad/w"].item() == 1.0


def test_an_update_of_zero_weights_has_an_infinite_ratio_and_no_update_one_of_zero():
    step, state = linear([m.update_ratios()])
    metrics = numbers(step(state, rows())[1], "update_ratios")
    assert metrics["layers.0"] == 0.0  # its gradient is zero, and so are its weights
    zero = {**state.params, "w": mx.zeros(2)}
    assert numbers(step(state.replace(params=zero), rows())[1], "update_ratios")["w"] == float("inf")


def test_an_update_that_rounding_loses_is_none():
    """The ratio is that of the change: bfloat16 weights near 1 do not move by less than 0.002."""
    transform = ps.optimizers.sgd(1e-4)
    state = ps.TrainState.create({"w": mx.ones(4, mx.bfloat16), "v": mx.ones(4)}, transform)
    step = ps.train_step(
        lambda params, batch, rng: batch * (params["w"].sum() + params["v"].sum()),
        transform,
        measure=[m.update_ratios()],
    )
    found = numbers(step(state, mx.array(1.0))[1], "update_ratios")
    assert found == pytest.approx({"v": 1e-4, "w": 0.0}, rel=1e-3)


def test_norms_of_gradients_do_not_read_the_gradients_again_in_a_compiled_step():
    """The partial sums are those of the metric `grad_norm`: no other operation is as large as a gradient."""

    def counted(names, measure):
        def step(params):
            gradients = ps.tree.map(mx.exp, params)
            return ps.tree.norm(gradients), m.norms(gradients) if measure else {}

        out = mx.compile(step)({name: mx.ones((128, 64)) for name in names})
        dot = io.StringIO()
        mx.export_to_dot(dot, *ps.tree.leaves(out))
        return Counter(re.findall(r'\[label ="([^"]*)"', dot.getvalue()))

    more = {}
    for names in ("ab", "abcdefgh"):
        plain, measured = counted(names, False), counted(names, True)
        assert plain["CompiledExpSquare"] == measured["CompiledExpSquare"] == len(names)
        more[names] = measured["Sum"] - plain["Sum"]
    assert more["ab"] == more["abcdefgh"] <= 6  # the number of sums does not depend on that of layers


def test_the_kernels_of_cuda_measure_the_same(monkeypatch):
    """One kernel for all arrays of a tree; the kernels are played by plain operations here."""
    reference = {"w": mx.array([0.5, mx.nan]), "layers": [{"b": mx.array([0.0])} for _ in range(12)]}
    measure = [m.grad_norms(), m.weight_norms(), m.drift(reference), m.update_ratios(by=str)]
    measure += [m.zero_share(), m.nonfinite_share("new_params"), m.zero_share("params", name="none")]
    step, state = linear(measure)
    state = state.replace(params={**state.params, "w": mx.array([mx.nan, 0.0])})
    plain, read = step(state, rows())[1], []
    monkeypatch.setattr(cuda, "serves", lambda arrays: len(arrays) > 0)
    monkeypatch.setattr(cuda, "sums", lambda kind, arrays: read.append(kind) or plain_sums(kind, arrays))
    found = step(state, rows())[1]
    assert read == ["squares", "squares", "distances", "distances", "zeros", "nonfinite", "zeros"]
    assert found.keys() == plain.keys()
    for name, value in plain.items():
        assert found[name].item() == pytest.approx(value.item(), rel=1e-6, nan_ok=True), name
    assert found["none/w"].item() == 0.5


@pytest.mark.parametrize("few", [0, 1 << 16])
def test_sums_by_group_are_the_same_in_one_table_and_in_blocks(monkeypatch, few):
    monkeypatch.setattr(groups, "_FEW", few)
    sizes = [5, 700, 64, 1, 0, 129, 63]
    values = {f"layer{i % 3}_{i}": mx.arange(size) % 7 + 0.5 for i, size in enumerate(sizes)}
    ends = np.cumsum([0, *sizes]).tolist()
    partial = groups.PartialSums(mx.concatenate([*values.values()]), [*itertools.pairwise(ends)])
    found = groups.group_sums(values, partial, lambda path: path[:-2]).each()
    want = {f"layer{i}": sum(values[f"layer{i}_{j}"].sum().item() for j in range(i, 7, 3)) for i in range(3)}
    assert {name: value.item() for name, value in found.items()} == want


@pytest.mark.parametrize("pack", [lambda tree: tree, ps.packed])
def test_the_reference_of_drift_may_be_packed(pack):
    transform, params = ps.optimizers.sgd(0.5), {"a": mx.array([1.0, 2.0]), "b": mx.array(3.0)}
    loss_fn = lambda params, batch, rng: (params["a"] * batch).sum() + params["b"]  # noqa: E731
    step = ps.train_step(loss_fn, transform, measure=[m.drift(ps.packed(params))])
    state, _ = step(ps.TrainState.create(pack(params), transform), mx.array([6.0, 8.0]))
    found = ps.compiled(step)(state, mx.array([6.0, 8.0]))[1]
    assert (found["drift/a"].item(), found["drift/b"].item()) == (5.0, 0.5)


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="of must be one of"):
        m.nonfinite_share("grads")
    with pytest.raises(TypeError, match="by must be"):
        m.grad_norms(by="layer")
    with pytest.raises(ValueError, match="every must be at least 1"):
        m.grad_norms(every=0)
    step, state = linear([m.drift({"w": mx.zeros(3)})])
    with pytest.raises(ValueError, match="drift: reference must be like the parameters"):
        step(state, rows())


def test_a_reference_of_another_floating_dtype_is_compared_in_float32():
    transform = ps.optimizers.sgd(0.1)
    state = ps.TrainState.create({"w": mx.array([1.0, 2.0], mx.bfloat16)}, transform)
    reference = {"w": mx.array([1.001, 2.003])}
    step = ps.train_step(
        lambda params, batch, rng: batch * params["w"].sum(), transform, measure=[m.drift(reference)]
    )
    found = step(state, mx.array(1.0))[1]["drift/w"].item()
    assert found == pytest.approx(np.hypot(0.001, 0.003), rel=1e-3)
    whole = ps.train_step(
        lambda params, batch, rng: batch * params["w"].sum(),
        transform,
        measure=[m.drift({"w": mx.array([1, 2])})],
    )
    with pytest.raises(ValueError, match="w has dtype int32 in reference"):
        whole(state, mx.array(1.0))


def test_trees_without_elements_and_odd_names_have_norms():
    assert {k: v.item() for k, v in m.norms({"a": mx.zeros((0, 3)), "b": [mx.zeros(0)]}).items()} == {
        "a": 0.0,
        "b": 0.0,
    }
    assert list(m.norms({"x²": mx.ones(1), "²": mx.ones(1)})) == ["x²", "²"]


@pytest.mark.parametrize("bad", [{"a": 2.0}, {"a": mx.array([3 + 4j])}, 1])
def test_norms_of_what_is_no_real_array_are_refused(bad):
    with pytest.raises(TypeError, match="norms: .* must be a real array, got"):
        m.norms(bad)


def test_a_group_without_a_name_is_refused():
    with pytest.raises(TypeError, match="norms: by must return a string, got None for w"):
        m.norms({"w": mx.ones(1)}, lambda path: None)
    for measurement in (m.grad_norms(by=len), m.zero_share(by=len), m.update_ratios(by=len)):
        step, state = linear([measurement])
        with pytest.raises(TypeError, match=f"{measurement.name}: by must return a string"):
            step(state, rows())
