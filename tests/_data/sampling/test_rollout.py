"""Rollout: batches as a function of the state, their arrays, resumption, and bad arguments."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

import purestep as ps
from purestep.data import rollout
from purestep.losses import grpo_loss, shift, token_logps

VOCABULARY = 6
PROMPTS = [[1], [2, 3], [4, 5, 1], [2], [3, 3]]
TRANSFORM = ps.optimizers.sgd(0.5)


def apply(params, tokens):
    """Predict from the last two tokens."""
    return params["table"][tokens] + mx.cumsum(params["past"][tokens], axis=1)


def a_state(seed=0):
    table, past = 0.5 * mx.random.normal((2, VOCABULARY, VOCABULARY), key=mx.random.key(7))
    return ps.TrainState.create({"table": table, "past": past}, TRANSFORM, seed=seed)


def count_twos(prompts, completions):
    return [float(completion.count(2)) for completion in completions]


def a_source(prompts=PROMPTS, reward_fn=count_twos, model=apply, **options):
    options = {"group_size": 4, "max_tokens": 5, "stop_tokens": (0,), "compile": False, **options}
    return rollout(model, prompts, reward_fn, **options)


def loss_fn(params, batch, rng, temperature=1.0):
    inputs, targets = shift(batch["tokens"])
    logps = token_logps(apply(params, inputs), targets, temperature=temperature)
    mask = batch["completion_mask"]
    return grpo_loss(logps, batch["behavior_logps"], batch["advantages"], mask)


def same(first, second):
    return all(mx.array_equal(first[name], second[name]).item() for name in first)


def test_a_batch_has_the_documented_form():
    seen = []

    def reward_fn(prompts, completions):
        seen.append((prompts, completions))
        return [len(completion) for completion in completions]

    batch = a_source(reward_fn=reward_fn, batch_size=12).at(a_state())
    n, length = 12, 3 + 5
    assert {name: (array.shape, array.dtype) for name, array in batch.items()} == {
        "tokens": ((n, length), mx.int32),
        "completion_mask": ((n, length - 1), mx.float32),
        "behavior_logps": ((n, length - 1), mx.float32),
        "advantages": ((n,), mx.float32),
        "rewards": ((n,), mx.float32),
        "truncated": ((n,), mx.float32),
    }
    [(prompts, completions)] = seen
    assert len({tuple(prompt) for prompt in prompts}) == 3
    for group in range(3):
        assert len({tuple(prompt) for prompt in prompts[4 * group : 4 * group + 4]}) == 1
    for row, prompt, completion in zip(batch["tokens"].tolist(), prompts, completions, strict=True):
        assert row[: len(prompt) + len(completion)] == prompt + completion
    assert batch["rewards"].tolist() == [len(completion) for completion in completions]
    assert batch["completion_mask"].sum(axis=1).tolist() == batch["rewards"].tolist()
    cut = [float(0 not in completion) for completion in completions]
    assert batch["truncated"].tolist() == cut
    grouped = np.asarray(batch["rewards"]).reshape(3, 4)
    np.testing.assert_allclose(np.asarray(batch["advantages"]).reshape(3, 4).sum(axis=1), 0, atol=1e-5)
    assert (np.argmax(grouped, axis=1) == np.argmax(np.asarray(batch["advantages"]).reshape(3, 4), 1)).all()


def test_every_prompt_is_in_every_batch_unless_a_batch_size_is_given():
    batch = a_source(stop_tokens=()).at(a_state())
    assert batch["tokens"].shape == (20, 8)
    assert batch["tokens"][::4, 0].tolist() == [prompt[0] for prompt in PROMPTS]
    assert batch["truncated"].tolist() == [0] * 20  # without stop tokens nothing is truncated


@pytest.mark.parametrize("compile", [False, True])
def test_the_same_state_gives_the_same_batch_to_the_bit(compile):
    source, state = a_source(compile=compile, batch_size=8), a_state()
    first = source.at(state)
    later, _ = ps.train_step(loss_fn, TRANSFORM)(state, first)
    assert not same(source.at(later), first)
    assert same(source.at(state), first)
    assert same(a_source(compile=compile, batch_size=8).at(state), first)
    assert not same(source.at(a_state(seed=1)), first)
    assert not same(a_source(compile=compile, batch_size=8, seed=1).at(state), first)


def test_prompts_and_draws_change_with_the_key_alone():
    picks = {
        tuple(a_source(batch_size=4, stop_tokens=()).at(a_state(seed))["tokens"][0, :1].tolist())
        for seed in range(12)
    }
    assert len(picks) > 2


@pytest.mark.skipif(mx.cuda.is_available(), reason="adds up the gradient of a lookup in an order that varies")
def test_a_resumed_run_sees_what_an_uninterrupted_one_does(tmp_path):
    step = ps.train_step(loss_fn, TRANSFORM)

    def trained(state, steps):
        source = a_source(batch_size=8)
        for _ in range(steps):
            state, _ = step(state, source.at(state))
        return state

    whole = trained(a_state(), 4)
    ps.checkpoint.save(tmp_path / "state.safetensors", trained(a_state(), 2))
    resumed = trained(ps.checkpoint.load(tmp_path / "state.safetensors", like=a_state()), 2)
    for first, second in zip(ps.tree.leaves(whole), ps.tree.leaves(resumed), strict=True):
        assert mx.array_equal(first, second)


def test_the_keys_of_the_steps_are_left_alone_and_not_used_again():
    state, step = a_state(), ps.train_step(loss_fn, TRANSFORM)
    batch = a_source().at(state)
    assert mx.array_equal(step(state, batch)[0].rng, mx.random.split(state.rng)[0])
    keys, used = [], []
    for _ in range(50):
        rng, key = mx.random.split(state.rng)
        used += [tuple(rng.tolist()), tuple(key.tolist())]
        drawn = ps.rng.fold_in(ps.rng.fold_in(state.rng, 0x526F6C6C), 0)
        keys += [tuple(k.tolist()) for k in mx.random.split(drawn)]
        state = state.replace(rng=rng)
    assert len(set(keys)) == 100
    assert not set(keys) & set(used)


@pytest.mark.parametrize("temperature", [1.0, 0.7, 1.8])
@pytest.mark.parametrize("truncation", [{}, {"top_k": 3}, {"top_p": 0.8}])
def test_ratios_begin_at_one_at_the_sampling_temperature(temperature, truncation):
    state = a_state()
    batch = a_source(temperature=temperature, **truncation).at(state)
    _, metrics = loss_fn(state.params, batch, None, temperature)
    assert metrics["ratio"].value.item() == pytest.approx(1, abs=1e-5)
    inputs, targets = shift(batch["tokens"])
    logps = token_logps(apply(state.params, inputs), targets, temperature=temperature)
    np.testing.assert_allclose(
        batch["behavior_logps"], logps * batch["completion_mask"], rtol=1e-5, atol=1e-5
    )
    if temperature != 1:
        wrong = token_logps(apply(state.params, inputs), targets) * batch["completion_mask"]
        assert mx.abs(wrong - batch["behavior_logps"]).max().item() > 0.1


def test_renormalized_logps_put_the_ratio_at_the_mass_that_was_kept():
    state = a_state()
    batch = a_source(top_k=2, renormalize=True).at(state)
    assert loss_fn(state.params, batch, None)[1]["ratio"].value.item() < 0.95


def test_rewards_without_variance_teach_nothing():
    state = a_state()
    batch = a_source(reward_fn=lambda prompts, completions: [0.3] * len(completions)).at(state)
    assert batch["advantages"].tolist() == [0] * 20
    new, metrics = ps.train_step(loss_fn, TRANSFORM)(state, batch)
    assert metrics["grad_norm"].item() == 0
    assert mx.array_equal(new.params["table"], state.params["table"])


def test_the_standard_step_compiles_once_and_learns_what_is_rewarded():
    source = a_source(batch_size=12, group_size=4, stop_tokens=(), compile=True)
    state, step = a_state(), ps.compiled(ps.train_step(loss_fn, TRANSFORM, microbatches=2), max_traces=1)
    rewards = []
    for _ in range(60):
        batch = source.at(state)
        rewards.append(batch["rewards"].mean().item())
        state, metrics = step(state, batch)
        mx.eval(state, metrics)
    assert step.traces == 1
    assert np.mean(rewards[:3]) < 2
    assert np.mean(rewards[-5:]) > 4


def test_columns_reach_the_reward_function_a_value_a_completion():
    seen = {}

    def reward_fn(prompts, completions, answer, weight):
        seen.update(prompts=prompts, answer=answer, weight=weight)
        return np.ones(len(prompts), np.float32)

    columns = {"answer": [sum(prompt) for prompt in PROMPTS], "weight": list("abcde")}
    a_source(reward_fn=reward_fn, batch_size=12, columns=columns).at(a_state())
    assert seen["answer"] == [sum(prompt) for prompt in seen["prompts"]]
    assert len(seen["weight"]) == 12
    assert seen["weight"] == ["abcde"[PROMPTS.index(prompt)] for prompt in seen["prompts"]]
    with pytest.raises(ValueError, match=r"^rollout: columns\['answer'\] .* 5, got 2"):
        a_source(columns={"answer": [1, 2]})


def test_a_module_of_mlx_and_a_model_state_can_be_sampled():
    class Normalized(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.norm = nn.Embedding(VOCABULARY, 4), nn.BatchNorm(4)

        def __call__(self, tokens):
            return self.embedding.as_linear(self.norm(self.embedding(tokens)))

    with ps.rng.scope(mx.random.key(0)):
        module, params, model_state = ps.functional(Normalized())

    def forward(params, model_state, tokens):
        return module(params, tokens, model_state=model_state, train=False)[0]

    source = a_source(model=forward, stateful=True)
    state = ps.TrainState.create(params, TRANSFORM, model_state=model_state)
    first = source.at(state)["behavior_logps"]
    moved = state.replace(model_state=ps.tree.map(lambda x: x + 3, model_state))
    assert not mx.array_equal(source.at(moved)["behavior_logps"], first)
    plain = a_source(model=module).at(state)["behavior_logps"]
    np.testing.assert_allclose(plain, first, rtol=1e-6)


@pytest.mark.parametrize("number", [np.float32, np.int64, mx.array])
def test_rewards_may_be_the_scalars_of_an_array_library(number):
    batch = a_source(reward_fn=lambda p, c: [number(i) for i in range(20)]).at(a_state())
    assert batch["rewards"].tolist() == list(range(20))


@pytest.mark.parametrize(
    ("reward_fn", "error", "message"),
    [
        (lambda p, c: [1.0] * 19, ValueError, "20 rewards, .* got 19"),
        (
            lambda p, c: [0.0] * 3 + [float("nan")] * 17,
            ValueError,
            "finite rewards, got nan for completion 3",
        ),
        (lambda p, c: [float("-inf")] * 20, ValueError, "finite rewards, got -inf for completion 0"),
        (lambda p, c: [1e300] * 20, ValueError, r"finite rewards, got 1e\+300 for completion 0"),
        (lambda p, c: mx.full((20,), mx.nan), ValueError, "finite rewards, got nan for completion 0"),
        (lambda p, c: mx.zeros((20, 1)), TypeError, r"numbers, got \[0.0\] for completion 0"),
        (lambda p, c: ["good"] * 20, TypeError, "numbers, got 'good'"),
        (lambda p, c: [None] * 20, TypeError, "numbers, got None"),
        (lambda p, c: 1.0, TypeError, "sequence .*got a float"),
    ],
)
def test_rewards_that_cannot_be_used_are_refused(reward_fn, error, message):
    with pytest.raises(error, match=f"^rollout: reward_fn .*{message}"):
        a_source(reward_fn=reward_fn).at(a_state())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "temperature .* 0, got 0.0"),
        ({"batch_size": 10}, "batch_size .*group_size=4, .*got 10"),
        ({"batch_size": 24}, "batch_size .*20, .* got 24"),
        ({"batch_size": 0}, "batch_size .* 1, got 0"),
        ({"group_size": 0}, "group_size .* 1, got 0"),
        ({"prompts": []}, "prompts .*one prompt, got none"),
        ({"prompts": [[1], []]}, "prompts .*one token .*got none in 1"),
        ({"seed": -1}, "seed .* 0, got -1"),
        ({"max_tokens": 0}, "max_tokens .* 1, got 0"),
        ({"top_p": 2.0}, "top_p .* 1, got 2.0"),
    ],
)
def test_options_out_of_range_are_refused_before_anything_is_drawn(options, message):
    with pytest.raises(ValueError, match=f"rollout: {message}"):
        a_source(**options)


def test_what_is_not_a_function_is_refused():
    for name in ("reward_fn", "model", "advantage_fn"):
        with pytest.raises(
            TypeError, match=f"^rollout: {name.replace('model', 'apply_fn')} .* callable, got 3"
        ):
            a_source(**{name: 3})


def test_a_model_that_gives_nan_and_advantages_of_another_shape_are_refused():
    broken = a_state()
    broken = broken.replace(params=ps.tree.map(lambda x: x * mx.nan, broken.params))
    with pytest.raises(ValueError, match="rollout: the log-probabilities .*not finite"):
        a_source().at(broken)
    with pytest.raises(TypeError, match="rollout: advantage_fn .* array, got list"):
        a_source(advantage_fn=lambda rewards, size: rewards.tolist()).at(a_state())
    with pytest.raises(ValueError, match=r"^rollout: advantage_fn .* shape \(20,\), got \(5,\)"):
        a_source(advantage_fn=lambda rewards, size: rewards[::size]).at(a_state())
