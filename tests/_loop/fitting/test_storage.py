"""The last checkpoint of a run: its error is raised, wherever it arises."""

import mlx.core as mx
import pytest

import purestep as ps


def test_a_run_whose_last_checkpoint_fails_at_once_raises_the_error(tmp_path, monkeypatch):
    def fails(*args, **options):
        raise OSError(28, "No space left on device")

    transform = ps.optimizers.sgd(0.1)
    step = ps.train_step(lambda params, batch, rng: mx.square(params["w"] - batch["x"]).mean(), transform)
    state = ps.TrainState.create({"w": mx.array(0.0)}, transform)
    with ps.checkpoint.Checkpointer(tmp_path / "run") as checkpointer:
        monkeypatch.setattr(checkpointer, "save", fails)
        with (
            pytest.warns(UserWarning, match="a checkpoint failed at step [24]"),
            pytest.raises(OSError, match="No space"),
        ):
            ps.fit(step, state, [{"x": mx.ones(2)}], steps=4, checkpointer=checkpointer, save_every=2)
