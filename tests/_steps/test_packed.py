"""Steps on packed parameters: those of the model's own tree."""

import mlx.core as mx
import mlx.nn as nn
import pytest

import purestep as ps
from purestep import optimizers, transforms, tree
from purestep._steps.precision import _cast_params
from tests.trees import array, same_bits

ADAMW = ps.chain(
    transforms.clip_by_global_norm(0.5), optimizers.adamw(1e-2, weight_decay=0.1, mask=transforms.matrices)
)
BATCH = {"x": array(0, (8, 6), mx.float32), "y": array(1, (8, 3), mx.float32)}


class Net(nn.Module):
    def __init__(self, dropout=0.0):
        super().__init__()
        self.first, self.norm, self.drop = nn.Linear(6, 16), nn.LayerNorm(16), nn.Dropout(dropout)
        self.last = nn.Linear(16, 3)

    def __call__(self, x):
        return self.last(self.drop(nn.gelu(self.norm(self.first(x)))))


def model(**options):
    with ps.rng.scope(mx.random.key(3)):
        return ps.functional(Net(**options))


def loss_of(apply):
    def loss_fn(params, batch, rng):
        out = apply(params, batch["x"], rng=rng)
        assert out.dtype == params["last"]["weight"].dtype
        return ps.Mean.of(mx.square(out.astype(mx.float32) - batch["y"]).mean(-1)), {"biggest": out.max()}

    return loss_fn


def trained(step, params, transform, steps=3, **options):
    state = ps.TrainState.create(params, transform, **options)
    metrics = {}
    for _ in range(steps):
        state, metrics = step(state, BATCH)
    return state, metrics


def close(got, want):
    def one(path, a, b):
        assert a.dtype == b.dtype, path
        assert mx.allclose(a, b, rtol=1e-5, atol=1e-6).item(), (path, a, b)

    tree.map_with_path(one, ps.unpacked(got), want)


def agree(make, transform=ADAMW, **options):
    """Compare steps on packed and on plain parameters, and return the packed state and metrics."""
    apply, params, _ = model(**options)
    step = make(loss_of(apply), transform)
    packed = trained(step, ps.packed(params), transform)
    close(packed, trained(step, params, transform))
    return packed


@pytest.mark.parametrize("microbatches", [1, 4])
def test_a_train_step_is_that_of_the_models_own_tree(microbatches):
    state, metrics = agree(lambda loss, transform: ps.train_step(loss, transform, microbatches=microbatches))
    assert isinstance(state.params, ps.Packed)
    assert isinstance(state.opt_state[1][0].mu, ps.Packed)
    assert {"loss", "grad_norm", "learning_rate", "biggest"} <= metrics.keys()


def test_a_compiled_step_and_dropout():
    agree(lambda loss, transform: ps.compiled(ps.train_step(loss, transform)), dropout=0.3)


def test_gradients_and_updates_are_vectors():
    apply, params, _ = model()
    packed = ps.packed(params)
    made = ps.train_step(loss_of(apply), ADAMW).parts(ps.TrainState.create(packed, ADAMW), BATCH)
    assert type(made.gradients) is type(made.updates) is type(packed)


@pytest.mark.parametrize("keep", [(), "norm.*", ("norm.*", "*bias")])
def test_compute_in_casts_each_vector_once(keep):
    apply, params, _ = model()
    seen = []

    def loss_fn(params, batch, rng):
        seen.append({path: leaf.dtype for path, leaf in tree.items(params)})
        return ps.Mean.of(mx.square(apply(params, batch["x"]).astype(mx.float32) - batch["y"]))

    loss = ps.compute_in(loss_fn, mx.bfloat16, keep=keep, inputs="x")
    step = ps.train_step(loss, ADAMW)
    packed, plain = ps.packed(params), params
    made = [step.parts(ps.TrainState.create(each, ADAMW), BATCH) for each in (packed, plain)]
    assert seen[0] == seen[1]
    assert made[0].gradients[0].dtype == mx.float32
    close(made[0].gradients, made[1].gradients)
    close(made[0].metrics, made[1].metrics)


def test_vectors_are_cast_whole_where_keep_splits_none():
    params = model()[1]
    patterns = ("norm.*", "*bias")
    apart = ps.packed(params)  # its vectors are the matrices and the rest
    cast = _cast_params(apart, mx.bfloat16, patterns)
    assert type(cast) is type(apart)
    assert [vector.dtype for vector in cast] == [mx.bfloat16, mx.float32]
    assert type(_cast_params(ps.packed(params, True), mx.bfloat16, patterns)) is dict
    assert same_bits(ps.unpacked(cast), _cast_params(params, mx.bfloat16, patterns))


def test_sam_and_scaled_steps():
    state, _ = agree(
        lambda loss, transform: ps.sam_step(loss, transform, microbatches=2), optimizers.sgd(0.1)
    )
    assert isinstance(state.params, ps.Packed)
    scaled = transforms.dynamic_loss_scale(optimizers.adam(1e-2), init_scale=1024.0)
    agree(lambda loss, transform: ps.loss_scaled_step(loss, transform, microbatches=2), scaled)


def test_a_stateful_step_and_evaluation():
    class Normed(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.norm = nn.Linear(6, 3), nn.BatchNorm(3)

        def __call__(self, x):
            return self.norm(self.layer(x))

    with ps.rng.scope(mx.random.key(3)):
        apply, params, held = ps.functional(Normed())

    def loss_fn(params, model_state, batch, rng):
        out, model_state = apply(params, batch["x"], rng=rng, model_state=model_state)
        return ps.Mean.of(mx.square(out - batch["y"])), {}, model_state

    step = ps.train_step(loss_fn, ADAMW, stateful=True)
    found = [trained(step, each, ADAMW, model_state=held)[0] for each in (ps.packed(params), params)]
    close(*found)
    evaluation = ps.eval_step(loss_fn, stateful=True)
    close(*(evaluation(state, BATCH) for state in found))


def test_contrastive_steps():
    encode = lambda params, batch, rng: {"queries": batch["x"] @ params["w"], "keys": batch["x"][:, :4]}  # noqa: E731
    loss_fn = lambda params, found, batch: ps.losses.info_nce(**found, temperature=params["t"])  # noqa: E731
    params = {"w": array(5, (6, 4), mx.float32), "t": mx.array(1.5)}
    step = ps.cached_contrastive_step(encode, loss_fn, ADAMW, microbatches=2)
    close(trained(step, ps.packed(params), ADAMW), trained(step, params, ADAMW))


def test_measurements_see_layers():
    apply, params, _ = model()
    measure = [ps.metrics.grad_norms(), ps.metrics.weight_norms()]
    step = ps.train_step(loss_of(apply), ADAMW, measure=measure)
    found = [trained(step, each, ADAMW)[1] for each in (ps.packed(params), params)]
    assert any("norm" in name and "first" in name for name in found[0])
    close(*found)


def test_a_population_of_packed_states():
    apply, params, _ = model()
    step = ps.train_step(loss_of(apply), ADAMW)
    states = [ps.TrainState.create(ps.packed(params), ADAMW, seed=seed) for seed in range(2)]
    together = mx.vmap(step, in_axes=(0, None))(tree.map(lambda *x: mx.stack(x), *states), BATCH)[0]
    alone = [step(state, BATCH)[0] for state in states]
    close(together, ps.unpacked(tree.map(lambda *x: mx.stack(x), *alone)))


def test_a_step_is_differentiable_through_vectors():
    apply, params, _ = model()
    step = ps.train_step(loss_of(apply), optimizers.sgd(0.1))

    def after(rate, params):
        state = ps.TrainState.create(params, optimizers.sgd(0.1))
        state = ps.set_hyperparameters(state, learning_rate=rate)
        for _ in range(2):
            state, metrics = step(state, BATCH)
        return metrics["loss"]

    rate = mx.array(0.1)
    found = [mx.grad(after)(rate, each) for each in (ps.packed(params), params)]
    assert mx.allclose(*found, rtol=1e-4).item()
    assert abs(found[0].item()) > 1e-4


def test_mistakes_inside_a_loss_are_still_found():
    apply, params, _ = model(dropout=0.1)
    unkeyed = lambda params, batch, rng: mx.square(apply(params, batch["x"])).mean()  # noqa: E731
    for each in (params, ps.packed(params)):
        state = ps.TrainState.create(each, ADAMW)
        with pytest.raises(ValueError, match="layers that depend on the mode"):
            ps.train_step(unkeyed, ADAMW)(state, BATCH)
        with pytest.raises(ValueError, match="layers that depend on the mode"):
            ps.train_step(ps.compute_in(unkeyed, mx.bfloat16), ADAMW)(state, BATCH)
    constant = lambda params, batch, rng: batch["x"].mean()  # noqa: E731
    with pytest.raises(ValueError, match="does not depend on any of the parameters"):
        ps.train_step(constant, ADAMW)(ps.TrainState.create(ps.packed(params), ADAMW), BATCH)


def test_states_and_transforms_of_another_layout_are_refused():
    apply, params, _ = model()
    packed = ps.packed(params)
    step = ps.train_step(loss_of(apply), ADAMW)
    state = ps.TrainState.create(packed, ADAMW)
    plain = ps.TrainState.create(params, ADAMW)
    for mixed in (state._replace(params=params), plain._replace(params=packed)):
        with pytest.raises(ValueError, match=r"train_step: state.opt_state.1.0.mu is a .* in the state"):
            step(mixed, BATCH)
    other = ps.packed(params, lambda path, leaf: path.split(".")[0])
    with pytest.raises(ValueError, match="train_step: state.opt_state"):
        step(state._replace(params=other), BATCH)


def test_averages_are_evaluated():
    apply, params, _ = model()
    transform = transforms.averaged(optimizers.adam(1e-2), 0.5)
    step = ps.train_step(loss_of(apply), transform)
    found = [ps.eval_params(trained(step, each, transform)[0]) for each in (ps.packed(params), params)]
    assert isinstance(found[0], ps.Packed)
    close(*found)


def test_adapters_are_trained_packed():
    with ps.rng.scope(mx.random.key(3)):
        net = ps.adapters.lora(Net(), ["first", "last"], rank=2, alpha=4, key=mx.random.key(0))
    apply, params, _ = ps.functional(net)
    loss_fn = lambda p, batch, rng: mx.square(apply(p, batch["x"], rng=rng) - batch["y"]).mean()  # noqa: E731
    step = ps.train_step(loss_fn, ADAMW)
    found = [trained(step, each, ADAMW)[0] for each in (ps.packed(params), params)]
    close(*found)
    ps.write_back(net, found[0].params)
    assert same_bits(ps.functional(net)[1], ps.unpacked(found[0].params))


def test_memory_is_predicted():
    apply, params, _ = model()
    step = ps.train_step(loss_of(apply), ADAMW)
    found = [
        ps.memory.predict(step, ps.TrainState.create(each, ADAMW), BATCH)
        for each in (ps.packed(params), params)
    ]
    assert found[0].parameters == found[1].parameters
    assert found[0].optimizer == found[1].optimizer
    assert found[0].peak == pytest.approx(found[1].peak, rel=0.3)


def test_a_step_that_went_wrong_is_explained_by_layers(tmp_path):
    apply, params, _ = model()
    step = ps.train_step(loss_of(apply), ADAMW)
    recorded = ps.replay.record(step, tmp_path)
    state = ps.TrainState.create(ps.packed(params), ADAMW)
    mx.eval(recorded(state, {**BATCH, "x": mx.nan * BATCH["x"]}))
    with pytest.warns(ps.replay.ReplayWarning, match=r"params\.first\.weight"):
        recorded.close()
    bundle = ps.replay.load(tmp_path / "step_00000000")
    assert same_bits(bundle.state, state)
    report = ps.replay.explain(step, bundle)
    gradients = next(stage for stage in report.stages if stage.name == "gradients")
    assert "gradients.first.weight" in {found.path for found in gradients.nonfinite}
    assert report.reproduced


@pytest.mark.parametrize("microbatches", [1, 2])
def test_a_compiled_step_whose_transform_and_loss_both_unpack_the_vectors(microbatches):
    transform = ps.chain(transforms.scale_by_trust_ratio(), ADAMW)
    agree(
        lambda loss, transform: ps.compiled(ps.train_step(loss, transform, microbatches=microbatches)),
        transform,
    )
