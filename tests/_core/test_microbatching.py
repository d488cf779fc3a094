"""Losses that need the whole batch refuse microbatches."""

import mlx.core as mx
import pytest

import purestep as ps
from purestep._core.tracing import microbatching

ROWS = mx.random.normal((8, 4), key=mx.random.key(0))
LABELS = mx.array([0, 0, 1, 1, 2, 2, 3, 3])


@pytest.mark.parametrize(
    ("name", "loss"),
    [
        ("info_nce", lambda x, rows: ps.losses.info_nce(x, rows["x"])),
        ("ntxent", lambda x, rows: ps.losses.ntxent(x, rows["y"])),
        (
            "multiclass_generalized_dice_loss",
            lambda x, rows: ps.losses.multiclass_generalized_dice_loss(x, mx.eye(4)[rows["y"]]),
        ),
    ],
)
@pytest.mark.parametrize("build", [ps.train_step, ps.sam_step, ps.loss_scaled_step])
def test_a_part_of_a_batch_is_refused(build, name, loss):
    def loss_fn(params, batch, rng):
        return loss(batch["x"] @ params["w"], batch)

    transform = ps.optimizers.sgd(0.1)
    if build is ps.loss_scaled_step:
        transform = ps.transforms.dynamic_loss_scale(transform)
    state, batch = ps.TrainState.create({"w": mx.eye(4)}, transform), {"x": ROWS, "y": LABELS}
    assert mx.isfinite(build(loss_fn, transform)(state, batch)[1]["loss"]).item()
    with pytest.raises(ValueError, match=rf"^{name}: .*got one of microbatches=2; use .*microbatches=1$"):
        build(loss_fn, transform, microbatches=2)(state, batch)
    assert mx.isfinite(loss(ROWS, batch).value).item()  # the refusal ends with the step


def test_a_step_within_a_step_has_a_batch_of_its_own():
    with microbatching.cut_into(4):
        with microbatching.cut_into(1):
            microbatching.whole_batch("loss", "rule")
        with pytest.raises(ValueError, match=r"^loss: rule, got one of microbatches=4; use microbatches=1$"):
            microbatching.whole_batch("loss", "rule")
    microbatching.whole_batch("loss", "rule")
