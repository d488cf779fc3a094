"""Populations in `run`, `fit` and checkpoints."""

import mlx.core as mx
import pytest

import purestep as ps
from purestep import populations, tree
from tests.training import BATCH, DENSE, TRANSFORM, classifier, ragged

STEP = ps.population(ps.train_step(classifier, TRANSFORM))


def states_of(count, transform=TRANSFORM):
    make = lambda seed: ps.TrainState.create(DENSE, transform, seed=seed)  # noqa: E731
    return populations.create(make, range(count), learning_rate=[0.01 * (i + 1) for i in range(count)])


def same(a, b):
    assert not tree.differences(tree.spec(a), tree.spec(b))
    return all(mx.array_equal(x, y) for x, y in zip(tree.leaves(a), tree.leaves(b), strict=True))


class Rows:
    def at(self, step):
        return ragged(step)


def test_run_hands_out_populations_and_resumes_at_their_step():
    whole = list(ps.run(STEP, states_of(3), Rows(), steps=4))
    assert whole[0][1]["loss"].shape == (3,)
    resumed = list(ps.run(STEP, whole[1][0], Rows(), steps=4))
    assert len(resumed) == 2
    assert same(resumed[-1][0], whole[-1][0])


def test_members_at_different_steps_need_a_start():
    states = states_of(2)
    states = states.replace(step=mx.array([1, 2], mx.int32))
    with pytest.raises(ValueError, match="run: start must be given"):
        next(iter(ps.run(STEP, states, Rows(), steps=4)))
    assert len(list(ps.run(STEP, states, Rows(), steps=4, start=2))) == 2


def test_checkpoints_hold_a_population_and_one_member(tmp_path):
    states, _ = STEP(states_of(3), BATCH)
    ps.checkpoint.save(tmp_path / "all.safetensors", states)
    assert same(ps.checkpoint.load(tmp_path / "all.safetensors", like=states_of(3)), states)
    best = populations.member(states, 2)
    ps.checkpoint.save(tmp_path / "best.safetensors", best)
    like = ps.set_hyperparameters(ps.TrainState.create(DENSE, TRANSFORM), learning_rate=0.03)
    loaded = ps.checkpoint.load(tmp_path / "best.safetensors", like=like)
    assert same(loaded, best)
    with pytest.raises(ValueError, match="shape"):
        ps.checkpoint.load(tmp_path / "all.safetensors", like=states_of(2))


def test_fit_trains_a_population_with_reduced_metrics(tmp_path):
    step = populations.reduced(STEP)
    checkpointer = ps.checkpoint.Checkpointer(tmp_path)
    result = ps.fit(step, states_of(3), Rows(), steps=4, checkpointer=checkpointer, log_every=1)
    alone = list(ps.run(STEP, states_of(3), Rows(), steps=4))[-1]
    assert same(result.state, alone[0])
    assert result.history.last("loss") == pytest.approx(alone[1]["loss"].mean().item(), rel=1e-6)
    assert result.history.last("loss_max") == pytest.approx(alone[1]["loss"].max().item())
    again = ps.fit(step, states_of(3), Rows(), steps=6, checkpointer=checkpointer)
    assert again.state.step.tolist() == [6, 6, 6]


def test_fit_goes_on_when_one_member_is_not_finite():
    states = states_of(3)
    states = states.replace(params={**states.params, "w": states.params["w"].at[1].multiply(mx.nan)})
    result = ps.fit(populations.reduced(STEP), states, Rows(), steps=3)
    assert result.reason == "steps"
    result = ps.fit(populations.reduced(STEP, populations.by_member), states_of(2), Rows(), steps=3)
    assert result.history.last("loss.1") is not None


def test_fit_flushes_the_last_window_of_each_member():
    transform = ps.transforms.accumulate(ps.optimizers.sgd(0.1), every=2)
    make = lambda seed: ps.TrainState.create(DENSE, transform, seed=seed)  # noqa: E731
    one = ps.train_step(classifier, transform)
    states = populations.create(make, range(2), learning_rate=[0.1, 0.2])
    result = ps.fit(populations.reduced(ps.population(one)), states, Rows(), steps=3)
    for index, member in enumerate(populations.members(states)):
        alone = ps.fit(one, member, Rows(), steps=3).state
        assert mx.allclose(result.state.params["w"][index], alone.params["w"], rtol=1e-5, atol=1e-6)
