"""Another constant learning rate in the template of a restored state does not pass in silence."""

import warnings

import mlx.core as mx
import pytest

import purestep as ps
from purestep.checkpoint import Checkpointer, HyperparameterWarning, from_bytes, load, save, to_bytes

PARAMS = {"w": mx.zeros(3)}
FALLING = ps.schedules.linear(0.1, 0.0, 10)
ADAMW = ps.transforms.inject_hyperparams(ps.optimizers.adamw)


def made(transform):
    return ps.TrainState.create(PARAMS, transform)


def by_bytes(state, like, tmp_path):
    return from_bytes(to_bytes(state), like=like)


def by_file(state, like, tmp_path):
    save(tmp_path / "state.safetensors", state)
    return load(tmp_path / "state.safetensors", like=like)


def by_checkpointer(state, like, tmp_path):
    with Checkpointer(tmp_path / "run") as checkpointer:
        checkpointer.save(state)
        return checkpointer.restore(like=like).state


@pytest.mark.parametrize("way", [by_bytes, by_file, by_checkpointer])
def test_both_values_and_the_way_to_take_either_are_said(way, tmp_path):
    before, after = ps.optimizers.adam(0.1), ps.optimizers.adam(3e-4)
    with pytest.warns(HyperparameterWarning) as said:
        restored = way(made(before), made(after), tmp_path)
    assert len(said) == 1
    assert said[0].filename == __file__
    text = str(said[0].message)
    assert "opt_state.1.learning_rate is 0.1; like has 0.0003, which is not used" in text
    assert "state = ps.set_hyperparameters(state, learning_rate=0.0003)" in text
    assert ps.hyperparameters(restored)["learning_rate"].item() == pytest.approx(0.1)
    changed = ps.set_hyperparameters(restored, learning_rate=0.0003)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        from_bytes(to_bytes(changed), like=made(after))


@pytest.mark.parametrize(
    ("before", "after", "change"),
    [
        (
            ps.chain(ps.optimizers.sgd(0.1), ps.optimizers.sgd(0.2)),
            ps.chain(ps.optimizers.sgd(0.5), ps.optimizers.sgd(0.25)),
            "{'opt_state.0.1.learning_rate': 0.5, 'opt_state.1.1.learning_rate': 0.25}",
        ),
        (ADAMW(0.1, weight_decay=0.1), ADAMW(0.1, weight_decay=0.2), "weight_decay=0.2"),
        (ps.optimizers.prodigy(1.0), ps.optimizers.prodigy(0.5), "learning_rate=0.5"),
    ],
    ids=["two rates", "injected", "prodigy"],
)
def test_the_change_named_is_one_that_works(before, after, change):
    with pytest.warns(HyperparameterWarning) as said:
        restored = from_bytes(to_bytes(made(before)), like=made(after))
    assert f"ps.set_hyperparameters(state, {change})" in str(said[0].message)
    restored = eval(f"ps.set_hyperparameters(state, {change})", {"ps": ps, "state": restored})
    want = ps.hyperparameters(made(after))
    assert {k: v.item() for k, v in ps.hyperparameters(restored).items()} == {
        k: v.item() for k, v in want.items()
    }


def test_the_rates_of_a_population_are_shown_as_an_array():
    states = [made(ps.optimizers.sgd(rate)) for rate in (0.5, 0.25)]
    stacked = ps.tree.map(lambda *leaves: mx.stack(leaves), *states)
    like = ps.set_hyperparameters(stacked, learning_rate=1.0)
    with pytest.warns(HyperparameterWarning, match=r"learning_rate=mx\.array\(\[1\.0, 1\.0\]\)"):
        from_bytes(to_bytes(stacked), like=like)


@pytest.mark.parametrize(
    "make",
    [
        lambda schedule: ps.optimizers.adam(schedule),
        lambda schedule: ADAMW(schedule, weight_decay=0.1),
        lambda schedule: ps.optimizers.prodigy(schedule),
        lambda schedule: ps.optimizers.dadapt_adamw(schedule),
        lambda schedule: ps.optimizers.madgrad(schedule),
    ],
    ids=["adam", "injected", "prodigy", "dadapt_adamw", "madgrad"],
)
def test_a_rate_that_follows_a_schedule_passes_and_cannot_be_set(make):
    transform = make(FALLING)
    state = made(transform)
    _, opt_state = transform.update({"w": mx.ones(3)}, state.opt_state, PARAMS)
    _, opt_state = transform.update({"w": mx.ones(3)}, opt_state, PARAMS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        restored = from_bytes(
            to_bytes(state.replace(opt_state=opt_state)), like=made(make(lambda count: 0.5))
        )
    with pytest.raises(ValueError, match="^set_hyperparameters: learning_rate follows a schedule"):
        ps.set_hyperparameters(restored, learning_rate=0.1)


def test_what_was_kept_from_like_and_what_is_equal_pass():
    state = made(ps.optimizers.sgd(0.1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        from_bytes(to_bytes(state), like=made(ps.optimizers.sgd(0.1)))
        from_bytes(to_bytes({"learning_rate": mx.array(1.0)}), like={"learning_rate": mx.array(2.0)})
    bare = state.replace(opt_state=())
    with pytest.warns(ps.checkpoint.RestoreWarning) as said:
        from_bytes(to_bytes(bare), like=made(ps.optimizers.sgd(0.2)), partial=["opt_state*"])
    assert len(said) == 1
