"""`fit` of a population: one member that is not finite neither ends the run nor stops its checkpoints."""

import mlx.core as mx
import pytest

import purestep as ps


def loss_fn(params, batch, rng):
    return mx.square(params["w"] - batch["x"]).mean()


@pytest.mark.parametrize("wrapped", [dict, ps.packed], ids=["tree", "packed"])
@pytest.mark.parametrize("reduce", [ps.populations.summary, ps.populations.by_member])
def test_a_population_is_saved_while_one_member_is_finite(tmp_path, wrapped, reduce):
    transform = ps.optimizers.sgd(0.1)
    step = ps.populations.reduced(ps.population(ps.train_step(loss_fn, transform)), reduce)

    def fitted(name, rates):
        def make(seed):
            return ps.TrainState.create(wrapped({"w": mx.array([float(seed)])}), transform)

        states = ps.populations.create(make, [1, 3], learning_rate=rates)
        with ps.checkpoint.Checkpointer(tmp_path / name) as checkpointer:
            result = ps.fit(
                step, states, [{"x": mx.array([0.0])}], steps=8, checkpointer=checkpointer, save_every=2,
                log_every=2,
            )  # fmt: skip
            return result.reason, [record.step for record in checkpointer.list()]

    assert fitted("one", [0.1, 1e30]) == ("steps", [2, 4, 6, 8])
    reason, saved = fitted("none", [1e30, 1e30])
    assert "is not finite at step 2" in reason
    assert saved == []
