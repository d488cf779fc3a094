"""DoG, layer-wise DoG and DoWG: step sizes computed by hand, their state, and refused arguments."""

import mlx.core as mx
import pytest

import purestep as ps
from purestep.optimizers import dog, dowg
from purestep.transforms import scale_by_distance_over_gradients, scale_by_dog, scale_by_dowg
from tests.refusals import parts

START = {"a": mx.array(3.0), "b": mx.array([4.0]), "none": None}  # of norm 5
MAKE = {
    "layer-wise": scale_by_distance_over_gradients,
    "dog": lambda: scale_by_dog(("heuristic", 1e-6)),
    "dowg": scale_by_dowg,
}


def moved(by):
    """Return the parameters at a distance of 5 * by from the start."""
    return {"a": mx.array(3.0 + 3 * by), "b": mx.array([4.0 + 4 * by]), "none": None}


def rates(updates):
    """Return the updates as numbers: the step sizes, because the gradients are 1."""
    return [update.item() for update in ps.tree.leaves(updates)]


def ones():
    """Return gradients of 1, whose joint squared norm is 2."""
    return ps.tree.map(mx.ones_like, START)


@pytest.mark.parametrize(
    ("init_step", "first"),
    [(("distance", 0.1), 0.1 / 2**0.5), (("heuristic", 0.1), 0.6 / 2**0.5), (("learning_rate", 0.1), 0.1)],
)
def test_the_first_step_of_dog_is_as_told(init_step, first):
    transform = scale_by_dog(init_step)
    updates, state = transform.update(ones(), transform.init(START), START)
    assert rates(updates) == pytest.approx([first] * 2, rel=1e-6)
    assert (state.is_init_step.item(), state.sum_sq_norm_grads.item()) == (False, pytest.approx(2.0))


def test_dog_goes_by_the_farthest_distance_and_all_the_gradients():
    transform = scale_by_dog(("learning_rate", 0.1), eps=1e-12)
    state = transform.init(START)
    steps = []
    for params in (START, moved(2), moved(1)):
        updates, state = transform.update(ones(), state, params)
        steps.append(rates(updates)[0])
    assert steps == pytest.approx([0.1, 10 / 4**0.5, 10 / 6**0.5], rel=1e-6)


def test_each_parameter_has_its_own_distance_in_the_layer_wise_form():
    transform = scale_by_distance_over_gradients(reps_rel=0.1, eps=1e-12, global_scale=-2.0)
    state = transform.init(START)
    updates, state = transform.update(ones(), state, START)
    assert rates(updates) == pytest.approx([-2 * 0.4, -2 * 0.5], rel=1e-6)
    updates, state = transform.update(ones(), state, moved(1))
    assert rates(updates) == pytest.approx([-2 * 3 / 2**0.5, -2 * 4 / 2**0.5], rel=1e-6)
    assert ps.tree.spec(state.max_dist) == ps.tree.spec(ps.tree.map(lambda _: mx.array(0.0), START))


def test_dowg_weighs_gradients_by_the_distance_of_their_time():
    transform = scale_by_dowg(0.25, eps=1e-12)
    state = transform.init(START)
    updates, state = transform.update(ones(), state, START)
    assert rates(updates)[0] == pytest.approx(0.25 / (0.25 * 2) ** 0.5, rel=1e-6)
    updates, state = transform.update(ones(), state, moved(2))
    assert rates(updates)[0] == pytest.approx(100 / (0.25 * 2 + 100 * 2) ** 0.5, rel=1e-6)
    assert scale_by_dowg(eps=0.5).init(START).estim_sq_dist.item() == 0.5


@pytest.mark.parametrize("name", MAKE)
def test_scalars_are_float32_and_updates_keep_the_dtype_of_bfloat16_gradients(name):
    transform, params = MAKE[name](), {"w": mx.full(4096, 0.5, mx.bfloat16)}
    state = transform.init(params)
    for _ in range(2):
        updates, state = transform.update(params, state, params)
    assert updates["w"].dtype == mx.bfloat16
    found = [leaf for leaf in ps.tree.leaves(state) if leaf.ndim == 0 and leaf.dtype != mx.bool_]
    assert {leaf.dtype for leaf in found} == {mx.float32}
    assert max(leaf.item() for leaf in found) > (
        1000 if name != "dowg" else 0
    )  # 2 * 4096 / 4, exactly summed


def test_the_start_is_kept_exactly_and_the_distance_from_it_taken_in_float32():
    start = {"w": mx.array([1.0], mx.bfloat16)}
    for transform in (MAKE["dog"](), MAKE["dowg"]()):
        assert transform.init(start).init_params["w"].dtype == mx.bfloat16
    state = scale_by_distance_over_gradients(param_dtype=mx.float16).init(start)
    assert state.init_params["w"].dtype == mx.float16


@pytest.mark.parametrize("name", MAKE)
def test_zero_gradients_and_empty_parameters_give_finite_steps(name):
    transform, params = MAKE[name](), {"w": mx.zeros(2), "empty": mx.zeros((0, 3))}
    state = transform.init(params)
    for _ in range(2):
        updates, state = transform.update(params, state, params)
    assert updates["w"].tolist() == [0.0, 0.0]
    assert all(mx.isfinite(leaf).all().item() for leaf in ps.tree.leaves(state))


@pytest.mark.parametrize("name", MAKE)
def test_parameters_are_needed(name):
    transform = MAKE[name]()
    with pytest.raises(ValueError, match=": params .*update"):
        transform.update(START, transform.init(START))


@pytest.mark.parametrize(
    "make", [lambda d: dog(0.5, ("distance", 0.1), weight_decay=d), lambda d: dowg(0.5, weight_decay=d)]
)
def test_decay_is_added_to_the_gradient(make):
    transform, params = make(0.5), {"w": mx.array([2.0, 0.0])}
    decayed, _ = transform.update({"w": mx.array([0.0, 1.0])}, transform.init(params), params)
    plain = make(None)
    want, _ = plain.update({"w": mx.array([1.0, 1.0])}, plain.init(params), params)
    assert decayed["w"].tolist() == pytest.approx(want["w"].tolist())
    assert all(step < 0 for step in decayed["w"].tolist())


@pytest.mark.parametrize("optimizer", [dog, dowg])
def test_without_tuning_a_quadratic_is_minimized(optimizer):
    transform, params = optimizer(), {"w": mx.array([3.0, -4.0])}
    state = transform.init(params)
    for _ in range(300):
        updates, state = transform.update(ps.tree.map(lambda w: 2 * w, params), state, params)
        params = ps.apply_updates(params, updates)
        mx.eval(params, state)
    assert mx.square(params["w"]).sum().item() < 1e-2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: scale_by_dog(("guess", 0.1)), "scale_by_dog: init_step ... pair ... ('guess', 0.1)"),
        (lambda: scale_by_dog(0.1), "scale_by_dog: init_step ... pair ... 0.1"),
        (lambda: scale_by_dog(("distance", 0.0)), "scale_by_dog: init_step's number ... 0, got 0.0"),
        (lambda: scale_by_dog(("distance", 0.1), eps=0.0), "scale_by_dog: eps ... 0, got 0.0"),
        (lambda: scale_by_dowg(0.0), "scale_by_dowg: init_estim_sq_dist ... 0, got 0.0"),
        (lambda: scale_by_dowg(eps=-1.0), "scale_by_dowg: eps ... 0, got -1.0"),
        (
            lambda: scale_by_distance_over_gradients(-1.0),
            "scale_by_distance_over_gradients: reps_rel ... 0, got -1.0",
        ),
        (
            lambda: scale_by_distance_over_gradients(eps=0.0),
            "scale_by_distance_over_gradients: eps ... 0, got 0.0",
        ),
        (
            lambda: scale_by_distance_over_gradients(global_scale=float("inf")),
            "scale_by_distance_over_gradients: global_scale ... finite, got inf",
        ),
    ],
)
def test_a_bad_argument_is_refused(make, message):
    with pytest.raises(ValueError, match=parts(message)):
        make()
