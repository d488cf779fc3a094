"""Layouts of trees as vectors: cut, joined, mapped and differentiated."""

import io
import pickle
import re
import subprocess
import sys
from collections import Counter

import mlx.core as mx
import pytest

import purestep as ps
from purestep import tree
from purestep._core import cuda, hardware, packing
from tests.trees import array, same_bits

PARAMS = {
    "w": array(0, (4, 16), mx.float32),
    "b": array(1, (3,), mx.float32),
    "layers": [{"w": array(2, (2, 5), mx.float32), "s": array(3, (), mx.float32)}, {}, None],
    "pair": (array(4, (1, 8), mx.float32),),
}


def everything(params):
    """A function of every element, of third order."""
    return tree.added([(leaf**3).sum() * (1 + i) for i, leaf in enumerate(tree.leaves(params))])


def of_vectors(vectors):
    return everything(ps.unpacked(vectors))


@pytest.fixture
def packed():
    return ps.packed(PARAMS)


def test_unpacked_gives_the_tree_back_and_equal_layouts_share_a_class(packed):
    assert same_bits(ps.unpacked(packed), PARAMS)
    again = {"layers": PARAMS["layers"], "b": PARAMS["b"], "pair": PARAMS["pair"], "w": PARAMS["w"]}
    assert type(ps.packed(again)) is type(packed)
    assert type(ps.packed({**PARAMS, "b": mx.zeros(4)})) is not type(packed)
    assert type(ps.packed({**PARAMS, "pair": list(PARAMS["pair"])})) is not type(packed)
    assert type(packed).__name__ != type(ps.packed({**PARAMS, "pair": list(PARAMS["pair"])})).__name__


def test_a_packed_anywhere_in_a_tree_is_replaced(packed):
    state = ps.TrainState.create(packed, ps.optimizers.adam(0.1))
    plain = ps.TrainState.create(PARAMS, ps.optimizers.adam(0.1))
    assert same_bits(ps.unpacked({"s": [state, packed]}), {"s": [plain, PARAMS]})
    assert ps.unpacked(plain) is plain
    assert same_bits(packing.packed_like("test", plain, state), state)


def test_large_powers_of_two_come_first_so_that_views_are_aligned(packed):
    layout = packed.layout
    for vector in layout.vectors:
        begins = (0, *vector.ends[:-1])
        for begin, end in zip(begins, vector.ends, strict=True):
            size = end - begin
            assert begin % min(size & -size, 256) == 0
    assert [layout.paths[index] for index in layout.vectors[0].members] == ["w", "pair.0", "layers.0.w"]


def test_mlx_treats_vectors_as_a_namedtuple(packed):
    doubled = mx.compile(lambda p: tree.map(lambda x: 2 * x, p))(packed)
    gradient = mx.grad(of_vectors)(packed)
    assert type(doubled) is type(gradient) is type(packed)
    want = mx.grad(everything)(tree.leaves(PARAMS))
    assert same_bits(tree.leaves(ps.unpacked(gradient)), want)


def test_the_gradient_of_a_vector_is_one_concatenation(packed):
    """That of slices would be an array of the vector's size for each slice, all added up."""
    mx.eval(packed)
    for vector in mx.grad(of_vectors)(packed):
        made = operations(vector)
        assert made["Concatenate"] == 1
        assert not made.keys() & {"Add", "Pad", "SliceUpdate", "Scatter"}


def operations(*values):
    """Count the pending operations of some arrays."""
    dot = io.StringIO()
    mx.export_to_dot(dot, *values)
    return Counter(re.findall(r'\[label ="([^"]*)"', dot.getvalue()))


def test_on_cuda_each_array_is_one_operation_of_a_compiled_step(packed, monkeypatch):
    monkeypatch.setattr(hardware, "on_cuda", lambda: True)
    mx.eval(packed)
    apart = tree.map(lambda x: mx.stack([x, x], 1)[:, 0], packed)  # elements that are not neighbours
    with cuda.kernels():
        found = ps.unpacked(packed)
        made = operations(*tree.leaves(found))
        assert made["AsStrided"] == len(tree.leaves(PARAMS))
        assert not made.keys() & {"Slice", "Reshape"}
        assert same_bits(found, PARAMS)
        assert same_bits(ps.unpacked(apart), PARAMS)


def test_on_cuda_a_compiled_step_maps_over_vectors(packed, monkeypatch):
    monkeypatch.setattr(hardware, "on_cuda", lambda: True)
    step = ps.compiled(lambda state, batch: (state, mx.vmap(of_vectors)(batch)))
    want = mx.vmap(of_vectors)(stacked(packed))
    assert mx.allclose(step({}, stacked(packed))[1], want, rtol=1e-6).item()


def second(fn):
    return mx.grad(lambda p: tree.added([mx.square(g).sum() for g in tree.leaves(mx.grad(fn)(p))]))


@pytest.mark.parametrize("compiled", [False, True])
def test_gradients_of_gradients_are_those_of_the_tree(packed, compiled):
    leaves = tree.leaves(PARAMS)
    want = second(everything)(leaves)
    found = (mx.compile if compiled else lambda fn: fn)(second(of_vectors))(packed)
    for got, wanted in zip(tree.leaves(ps.unpacked(found)), want, strict=True):
        assert mx.allclose(got, wanted, rtol=1e-6).item()


def stacked(params, count=3):
    return tree.map(lambda x: mx.stack([x * (1 + i) for i in range(count)]), params)


def test_vectors_can_be_mapped_before_and_after_a_gradient(packed):
    many = stacked(packed)
    assert same_bits(ps.unpacked(many), stacked(PARAMS))  # a stack of trees is unpacked too
    assert same_bits(tuple(packing.packed_like("test", stacked(PARAMS), many)), tuple(many))
    each = [mx.grad(of_vectors)(tree.map(lambda x, i=i: x[i], many)) for i in range(3)]
    want = tree.map(lambda *x: mx.stack(x), *each)
    inside = mx.vmap(mx.grad(of_vectors))(many)
    outside = mx.grad(lambda p: mx.vmap(of_vectors)(p).sum())(many)
    last = mx.vmap(mx.grad(of_vectors), in_axes=1)(tree.map(mx.transpose, many))
    for found in (inside, outside, last):
        for a, b in zip(found, want, strict=True):
            assert mx.allclose(a, b, rtol=1e-6).item()
    scaled = mx.vmap(mx.grad(lambda p, s: s * of_vectors(p)), in_axes=(None, 0))(packed, mx.array([1.0, 2.0]))
    assert mx.allclose(scaled[0][1], 2 * each[0][0], rtol=1e-6).item()


def test_forward_derivatives(packed):
    tangents = [mx.ones_like(x) for x in packed]
    kind = type(packed)
    out = mx.jvp(lambda *p: of_vectors(kind(*p)), list(packed), tangents)[1][0]
    leaves = tree.leaves(PARAMS)
    want = mx.jvp(lambda *p: everything(list(p)), leaves, [mx.ones_like(x) for x in leaves])
    assert mx.allclose(out, want[1][0], rtol=1e-5).item()


def test_recomputation_under_checkpoint(packed):
    kind = type(packed)
    again = mx.checkpoint(lambda *p: of_vectors(kind(*p)))
    found = mx.grad(lambda p: again(*p))(packed)
    for got, want in zip(found, mx.grad(of_vectors)(packed), strict=True):
        assert mx.allclose(got, want, rtol=1e-6).item()


def test_a_tree_of_another_form_is_not_packed(packed):
    with pytest.raises(ValueError, match="test: b must have shape .*3,.*, got .*4"):
        packing.packed_like("test", {**PARAMS, "b": mx.zeros(4)}, packed)
    with pytest.raises(ValueError, match="test: the tree is not built as in the layout, got a dict of"):
        packing.packed_like("test", {"w": PARAMS["w"]}, packed)
    with pytest.raises(ValueError, match="unpacked: matrices_float32 must have shape .*82.*, got .*5"):
        ps.unpacked(type(packed)(mx.zeros(5), packed[1]))


def test_vectors_are_immutable_and_copied_without_the_originals(packed):
    with pytest.raises(AttributeError):
        packed.matrices_float32 = mx.zeros(3)
    original = mx.ones(4)
    vectors = ps.packed({"w": original})
    original += 1
    assert same_bits(ps.unpacked(vectors)["w"], mx.ones(4))


def test_vectors_can_be_pickled(packed):
    for protocol in (2, pickle.HIGHEST_PROTOCOL):
        again = pickle.loads(pickle.dumps(packed, protocol))
        assert type(again) is type(packed)
        assert same_bits(ps.unpacked(again), ps.unpacked(packed))
    program = (
        "import pickle, sys, purestep as ps\n"
        "tree = ps.unpacked(pickle.loads(sys.stdin.buffer.read()))\n"
        "print(ps.tree.paths(tree))"
    )
    run = subprocess.run([sys.executable, "-c", program], input=pickle.dumps(packed), capture_output=True)
    assert run.stdout.decode().strip() == str(tree.paths(ps.unpacked(packed))), run.stderr
