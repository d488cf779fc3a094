"""A contrastive step that encodes the batch in parts equals the step that encodes it at once."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

import purestep as ps
from tests.refusals import parts
from tests.trees import same_bits, snapshot

ROWS, WIDTH = 8, 6
BATCH = {
    "a": mx.random.normal((ROWS, WIDTH), key=mx.random.key(1)),
    "b": mx.random.normal((ROWS, WIDTH), key=mx.random.key(2)),
    "n": mx.array([1.0, 1, 0, 1, 1, 1, 0, 1]),
    "ids": mx.arange(ROWS),
}
PARAMS = {
    "w": mx.random.normal((WIDTH, 4), key=mx.random.key(3)),
    "log_temperature": mx.array(-1.0),
    "unused": None,
}
TRANSFORM = ps.chain(ps.transforms.clip_by_global_norm(1.0), ps.optimizers.adamw(1e-2))


def encode(params, batch, rng):
    return {"q": mx.tanh(batch["a"] @ params["w"]), "k": batch["b"] @ params["w"]}


def noisy(params, batch, rng):
    kept = mx.random.bernoulli(0.7, batch["a"].shape, key=rng) / 0.7
    return encode(params, {**batch, "a": batch["a"] * kept}, None)


def loss_fn(params, found, batch):
    temperature = mx.exp(params["log_temperature"])
    loss = ps.losses.info_nce(found["q"], found["k"], temperature=temperature, weights=batch["n"])
    norm = ps.Mean.of(mx.square(found["q"]))
    return loss + 0.1 * norm, {"norm": norm, "ids": batch["ids"].sum()}


def start(transform=TRANSFORM, params=PARAMS, **options):
    return ps.TrainState.create(params, transform, **options)


def at_once(count, of=encode):
    """Return a plain step with the same loss, which encodes `count` parts and keeps all in memory."""

    def whole(params, batch, rng):
        keys = mx.random.split(rng, count)
        cuts = [ps.tree.map(lambda x, i=i: mx.split(x, count)[i], batch) for i in range(count)]
        parts = [of(params, cut, key) for cut, key in zip(cuts, keys, strict=True)]
        found = {name: mx.concatenate([part[name] for part in parts]) for name in "qk"}
        return loss_fn(params, found, batch)

    return ps.train_step(whole, TRANSFORM)


def close(first, second):
    for (path, a), (_, b) in zip(ps.tree.items(first), ps.tree.items(second), strict=True):
        np.testing.assert_allclose(np.array(a), np.array(b), 2e-5, 1e-6, err_msg=path)


@pytest.mark.parametrize("count", [1, 2, 8])
def test_it_equals_the_step_of_the_whole_batch(count):
    cached = ps.cached_contrastive_step(encode, loss_fn, TRANSFORM, microbatches=count)
    made, want = cached.parts(start(), BATCH), at_once(1).parts(start(), BATCH)
    close(made.gradients, want.gradients)
    close(made.metrics, want.metrics)
    close(made.state, want.state)
    assert made.gradients["log_temperature"].item() != 0


@pytest.mark.parametrize("wrap", [lambda step: step, ps.compiled])
def test_what_the_encoder_draws_is_the_same_in_both_passes(wrap):
    cached = wrap(ps.cached_contrastive_step(noisy, loss_fn, TRANSFORM, microbatches=2))
    state, want = start(), start()
    for _ in range(2):
        state, metrics = cached(state, BATCH)
        want, expected = at_once(2, noisy)(want, BATCH)
        close(metrics, expected)
        close(state, want)
    assert not same_bits(cached(start(seed=1), BATCH)[1]["loss"], cached(start(), BATCH)[1]["loss"])


def test_dropout_of_a_module_is_exact():
    with ps.rng.scope(mx.random.key(0)):
        apply, params, _ = ps.functional(nn.Sequential(nn.Linear(WIDTH, 5), nn.Dropout(0.5), nn.Linear(5, 4)))

    def module(params, batch, rng):
        one, two = mx.random.split(rng)
        return {"q": apply(params, batch["a"], rng=one), "k": apply(params, batch["b"], rng=two)}

    def plain_loss(params, found, batch):
        return ps.losses.info_nce(found["q"], found["k"])

    def whole(params, batch, rng):
        keys = mx.random.split(rng, 2)
        parts = [
            module(params, ps.tree.map(lambda x, i=i: mx.split(x, 2)[i], batch), keys[i]) for i in (0, 1)
        ]
        return plain_loss(params, {n: mx.concatenate([part[n] for part in parts]) for n in "qk"}, batch)

    state = start(params=params)
    cached = ps.cached_contrastive_step(module, plain_loss, TRANSFORM, microbatches=2)
    close(cached.parts(state, BATCH).gradients, ps.train_step(whole, TRANSFORM).parts(state, BATCH).gradients)


def test_a_model_state_goes_from_part_to_part_once():
    def counting(params, model_state, batch, rng):
        scale = 1 + model_state["seen"] / 10
        found = {name: scale * x for name, x in encode(params, batch, rng).items()}
        return found, {"seen": model_state["seen"] + batch["a"].shape[0]}

    def whole(params, model_state, batch, rng):
        cuts = [ps.tree.map(lambda x, i=i: mx.split(x, 4)[i], batch) for i in range(4)]
        parts = []
        for cut in cuts:
            part, model_state = counting(params, model_state, cut, None)
            parts.append(part)
        found = {name: mx.concatenate([part[name] for part in parts]) for name in "qk"}
        return *loss_fn(params, found, batch), model_state

    state = start(model_state={"seen": mx.array(0.0)})
    cached = ps.cached_contrastive_step(counting, loss_fn, TRANSFORM, microbatches=4, stateful=True)
    made, want = (
        cached.parts(state, BATCH),
        ps.train_step(whole, TRANSFORM, stateful=True).parts(state, BATCH),
    )
    close(made.state, want.state)
    close(made.gradients, want.gradients)
    assert made.state.model_state["seen"].item() == ROWS


def test_nothing_that_goes_in_is_changed_and_half_precision_stays():
    params = ps.tree.cast(PARAMS, mx.bfloat16)
    state = start(params=params)
    before = snapshot((state, BATCH))
    cached = ps.cached_contrastive_step(encode, loss_fn, TRANSFORM, microbatches=2)
    made = cached.parts(state, BATCH)
    assert snapshot((state, BATCH)) == before
    assert made.state.params["w"].dtype == made.gradients["w"].dtype == mx.bfloat16


def test_memory_is_that_of_a_part():
    width, layers, rows = 64, 6, 2048
    params = [mx.random.normal((width, width), key=mx.random.key(i)) / 8 for i in range(layers)]
    batch = {"x": mx.random.normal((rows, width), key=mx.random.key(9))}

    def deep(params, batch, rng):
        x = batch["x"]
        for weight in params:
            x = mx.tanh(x @ weight)
        return x[:, :4]

    def spread(params, found, batch):
        return ps.losses.info_nce(found[:64], found[64:128])

    transform = ps.optimizers.sgd(0.1)
    state = start(transform, params)
    mx.eval(state, batch)
    peaks = []
    for count in (1, 16):
        step = ps.cached_contrastive_step(deep, spread, transform, microbatches=count)
        held = mx.get_active_memory()
        mx.reset_peak_memory()
        mx.eval(step(state, batch))
        peaks.append(mx.get_peak_memory() - held)
    assert peaks[1] < 0.4 * peaks[0]


def test_mistakes_are_refused():
    build = lambda **k: ps.cached_contrastive_step(  # noqa: E731
        k.pop("encode", encode), loss_fn, TRANSFORM, **{"microbatches": 2, **k}
    )
    name = "^cached_contrastive_step: "
    with pytest.raises(ValueError, match=name + "microbatches .* 1, got 0"):
        build(microbatches=0)
    with pytest.raises(TypeError, match=name + "encode .* callable, got 1"):
        build(encode=1)
    with pytest.raises(ValueError, match=name + "the .*batch.a .* microbatches=3, got 8"):
        build(microbatches=3)(start(), BATCH)
    with pytest.raises(TypeError, match=name + r"representations\.q .* floating array, got .*int32"):
        build(encode=lambda p, b, r: {"q": b["ids"]})(start(), BATCH)
    with pytest.raises(ValueError, match=name + r"representations .* 4 examples, got shape \(6, 4\)"):
        build(encode=lambda p, b, r: p["w"])(start(), BATCH)
    with pytest.raises(ValueError, match=name + "encode .* one array, got none"):
        build(encode=lambda p, b, r: {})(start(), BATCH)
    with pytest.raises(
        TypeError, match=name + r"a stateful encode .*\(representations, model_state\), got a dict"
    ):
        build(stateful=True, encode=lambda p, s, b, r: encode(p, b, r))(start(), BATCH)


def keyless(params, batch, rng):
    kept = mx.random.bernoulli(0.7, batch["a"].shape) / 0.7
    return encode(params, {**batch, "a": batch["a"] * kept}, None)


@pytest.mark.parametrize("count", [1, 2])
def test_what_the_encoder_draws_without_a_key_is_the_same_in_both_passes(count):
    step = ps.cached_contrastive_step(keyless, loss_fn, TRANSFORM, microbatches=count)
    made = step.parts(start(), BATCH)
    direction = {"w": mx.random.normal((WIDTH, 4), key=mx.random.key(9))}
    values = []
    for size in (1e-2, -1e-2):
        params = {**PARAMS, "w": PARAMS["w"] + size * direction["w"]}
        values.append(step(start()._replace(params=params), BATCH)[1]["loss"].item())
    slope = (made.gradients["w"] * direction["w"]).sum().item()
    assert slope == pytest.approx((values[0] - values[1]) / 2e-2, rel=1e-2)
    assert same_bits(step(start(), BATCH), made[:2])


def test_functions_that_write_into_what_they_are_given_change_nothing_outside():
    def writes(params, model_state, batch, rng):
        model_state["calls"] = model_state["calls"] + 1
        a = batch.pop("a") + 0.1 * model_state["calls"]
        rng[:] = 0
        return encode(params, {"a": a, "b": batch["b"]}, None), model_state

    def reads(params, model_state, batch, rng):
        calls = model_state["calls"] + 1
        a = batch["a"] + 0.1 * calls
        return encode(params, {"a": a, "b": batch["b"]}, None), {"calls": calls}

    def loss_writes(params, found, batch):
        loss = loss_fn(params, found, batch)
        found.clear()
        batch.clear()
        return loss

    state = start(model_state={"calls": mx.array(0.0)})
    before = snapshot((state, BATCH))
    got, want = (
        ps.cached_contrastive_step(each, loss, TRANSFORM, microbatches=2, stateful=True).parts(state, BATCH)
        for each, loss in ((writes, loss_writes), (reads, loss_fn))
    )
    assert snapshot((state, BATCH)) == before
    assert same_bits(got, want)


STATEFUL = {"calls": mx.array(1.0)}


def counts(params, model_state, batch, rng):
    found = noisy(params, {**batch, "a": batch["a"] * model_state["calls"]}, rng)
    return found, {"calls": model_state["calls"] + 1}


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("axis", [None, 0])
def test_it_can_be_vmapped(count, axis):
    params = {"w": PARAMS["w"], "log_temperature": PARAMS["log_temperature"]}
    step = ps.cached_contrastive_step(counts, loss_fn, TRANSFORM, microbatches=count, stateful=True)
    members = [start(params=params, seed=seed, model_state=STATEFUL) for seed in range(2)]
    batches = [BATCH if axis is None else ps.tree.map(lambda x, i=i: x + i, BATCH) for i in range(2)]
    stacked = ps.tree.map(lambda *leaves: mx.stack(leaves), *members)
    given = BATCH if axis is None else ps.tree.map(lambda *leaves: mx.stack(leaves), *batches)
    together = mx.vmap(step, in_axes=(0, axis))(stacked, given)
    for index, (member, batch) in enumerate(zip(members, batches, strict=True)):
        close(ps.tree.map(lambda x, i=index: x[i], together), step(member, batch))


@pytest.mark.parametrize("count", [1, 2])
def test_a_gradient_through_it_is_that_through_the_step_of_the_whole_batch(count):
    transform = ps.optimizers.sgd(0.5)

    def through(step):
        def after(w, log_temperature):
            params = {**PARAMS, "w": w, "log_temperature": log_temperature}
            state, metrics = step(start(transform)._replace(params=params), BATCH)
            return mx.square(state.params["w"]).sum() + state.params["log_temperature"] + metrics["loss"]

        return mx.grad(after, argnums=(0, 1))(PARAMS["w"], PARAMS["log_temperature"])

    def whole(params, batch, rng):
        return loss_fn(params, encode(params, batch, rng), batch)

    cached = ps.cached_contrastive_step(encode, loss_fn, transform, microbatches=count)
    close(through(cached), through(ps.train_step(whole, transform)))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: (lambda p, b: 0, loss_fn, False), "encode ... (params, batch, rng), got <lambda>(p, b)"),
        (lambda: (counts, loss_fn, False), "encode ... stateful=True"),
        (lambda: (encode, loss_fn, True), "encode ... stateful=False"),
        (
            lambda: (encode, lambda p, f: 0, False),
            "loss_fn ... (params, representations, batch), got <lambda>(p, f)",
        ),
    ],
)
def test_functions_that_take_other_arguments_are_refused(build, message):
    encoder, loss, stateful = build()
    with pytest.raises(TypeError, match=parts(f"cached_contrastive_step: {message}")):
        ps.cached_contrastive_step(encoder, loss, TRANSFORM, microbatches=2, stateful=stateful)
