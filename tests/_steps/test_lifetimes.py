"""The memory of a step is freed with its results, before Python collects cycles."""

import gc

import mlx.core as mx
import mlx.nn as nn
import pytest

import purestep as ps

WIDTH = 128  # 64 kB a matrix
BATCH = mx.ones((4, WIDTH))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = [nn.Linear(WIDTH, WIDTH), nn.Dropout(0.5), nn.Linear(WIDTH, WIDTH)]

    def __call__(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


APPLY, PARAMS, _ = ps.functional(Model())
PLAIN = ps.chain(ps.transforms.clip_by_global_norm(1.0), ps.optimizers.adamw(1e-3))


def loss_fn(params, batch, rng):
    return mx.square(APPLY(params, batch, rng=rng)).mean()


def averaged():
    return ps.transforms.averaged(ps.transforms.inject_hyperparams(ps.optimizers.adam)(learning_rate=1e-3))


CASES = {
    "plain": lambda: (ps.train_step(loss_fn, PLAIN), PLAIN),
    "compiled": lambda: (ps.compiled(ps.train_step(loss_fn, PLAIN)), PLAIN),
    "microbatches": lambda: (ps.train_step(loss_fn, PLAIN, microbatches=2), PLAIN),
    "sharpness-aware": lambda: (ps.sam_step(loss_fn, PLAIN), PLAIN),
    "by path": lambda: (lambda t: (ps.train_step(loss_fn, t), t))(
        ps.transforms.masked(PLAIN, lambda path, leaf: path.endswith("weight"))
    ),
    "averaged": lambda: (lambda t: (ps.train_step(loss_fn, t), t))(averaged()),
}


@pytest.mark.parametrize("case", CASES)
def test_memory_is_the_same_after_every_step(case):
    step, transform = CASES[case]()
    state = ps.TrainState.create(PARAMS, transform, seed=0)
    gc.collect()
    gc.disable()
    try:
        seen = []
        for _ in range(12):
            state, metrics = step(state, BATCH)
            mx.eval(state, metrics)
            if case == "averaged":
                mx.eval(ps.eval_params(state))
                state = ps.set_hyperparameters(state, learning_rate=1e-4)
                mx.eval(state)
            seen.append(mx.get_active_memory())
        # CUDA returns buffers some time after they are freed; on a CPU all of `seen` are equal.
        assert min(seen[-4:]) - max(seen[1:5]) < 60_000
    finally:
        gc.enable()


def test_what_a_compiled_step_captured_goes_with_it():
    def once():
        teacher = mx.random.normal((512, 512), key=mx.random.key(0))
        mx.eval(teacher)
        step = ps.compiled(
            ps.train_step(lambda p, b, rng: p["w"].sum() + teacher.sum(), ps.optimizers.sgd(0.1))
        )
        mx.eval(step(ps.TrainState.create({"w": mx.ones(8)}, ps.optimizers.sgd(0.1)), {"x": mx.ones(8)}))

    assert grown(once) < 1_000_000


def test_what_a_sampler_captured_goes_with_it():
    def once(compile):
        table = mx.random.normal((512, 512), key=mx.random.key(0))
        sample = ps.data.sampler(lambda params, tokens: table[tokens], max_tokens=2, compile=compile)
        mx.eval(sample({}, [[1]], mx.random.key(0)).tokens)

    assert grown(lambda: once(False)) < 1_000_000
    assert grown(lambda: once(True)) < 1_000_000


def grown(once):
    """Return the bytes that a second call leaves in memory."""
    once()
    gc.collect()
    gc.disable()
    try:
        before = mx.get_active_memory()
        once()
        mx.synchronize()
        return mx.get_active_memory() - before
    finally:
        gc.enable()
