"""Checkpoints of packed states: the same files as those of the model's own tree."""

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest

import purestep as ps
from purestep import checkpoint, optimizers, transforms, tree
from tests.trees import array, same_bits

TRANSFORM = ps.chain(
    transforms.clip_by_global_norm(1.0),
    transforms.averaged(optimizers.adamw(1e-2, mask=transforms.matrices), 0.9),
    transforms.masked(transforms.ema(0.9), transforms.matrices),
)
PARAMS = {
    "w": array(0, (4, 3), mx.float32),
    "b": array(1, (3,), mx.float32),
    "half": array(2, (2, 8), mx.bfloat16),
    "dropout": {},
}
BATCH = {"x": array(3, (8, 4), mx.float32), "y": array(4, (8, 3), mx.float32)}


def loss_fn(params, batch, rng):
    out = batch["x"] @ params["w"] + params["b"] + params["half"].astype(mx.float32).mean()
    return ps.Mean.of(mx.square(out - batch["y"]))


STEP = ps.train_step(loss_fn, TRANSFORM)


def packed_state(steps=2):
    state = ps.TrainState.create(ps.packed(PARAMS), TRANSFORM)
    for _ in range(steps):
        state, _ = STEP(state, BATCH)
    return state


def plain_template():
    return ps.TrainState.create(PARAMS, TRANSFORM)


def packed_template():
    return packed_state(steps=0)


def through_file(path, state, like):
    checkpoint.save(path / "state.safetensors", state)
    return checkpoint.load(path / "state.safetensors", like=like)


def through_bytes(path, state, like):
    return checkpoint.from_bytes(checkpoint.to_bytes(state), like=like)


def through_checkpointer(path, state, like):
    with checkpoint.Checkpointer(path) as checkpointer:
        checkpointer.save(state)
        checkpointer.wait()
        return checkpointer.restore(like=like).state


@pytest.mark.parametrize("through", [through_file, through_bytes, through_checkpointer])
def test_packed_to_plain_and_back_is_bit_equal(tmp_path, through):
    for name in "abc":
        (tmp_path / name).mkdir()
    packed = packed_state()
    plain = through(tmp_path / "a", packed, plain_template())
    assert same_bits(plain, ps.unpacked(packed))
    again = through(tmp_path / "b", plain, packed_template())
    assert tree.spec(again) == tree.spec(packed)
    assert same_bits(again, packed)
    straight = through(tmp_path / "c", packed, packed_template())
    assert same_bits(straight, packed)


def test_files_name_the_models_own_arrays(tmp_path):
    packed = packed_state()
    checkpoint.save(tmp_path / "packed.safetensors", packed)
    checkpoint.save(tmp_path / "plain.safetensors", ps.unpacked(packed))
    files: list[Any] = [mx.load(str(tmp_path / f"{name}.safetensors")) for name in ("packed", "plain")]
    assert files[0].keys() == files[1].keys()
    assert "params.w" in files[0]
    assert "opt_state.1.average.half" in files[0]
    assert same_bits(checkpoint.load(tmp_path / "packed.safetensors")["params"]["w"], files[0]["params.w"])


def test_differences_are_named_by_the_models_own_paths(tmp_path):
    checkpoint.save(tmp_path / "state.safetensors", {"params": {"w": mx.zeros((4, 3)), "c": mx.zeros(3)}})
    like = {"params": ps.packed({"w": mx.ones((4, 3)), "b": mx.ones(3)})}
    with pytest.raises(ValueError, match="params.b is in like, not in the file"):
        checkpoint.load(tmp_path / "state.safetensors", like=like)
    with pytest.warns(UserWarning, match="params.b"):
        found = checkpoint.load(tmp_path / "state.safetensors", like=like, partial=["params.?"])
    assert same_bits(ps.unpacked(found), {"params": {"w": mx.zeros((4, 3)), "b": mx.ones(3)}})


def test_weights_of_packed_parameters(tmp_path):
    with ps.rng.scope(mx.random.key(0)):
        net = nn.Linear(4, 3)
    params = ps.packed(ps.functional(net)[1])
    doubled = tree.map(lambda x: 2 * x, params)
    checkpoint.save_weights(tmp_path / "a.safetensors", net, doubled)
    checkpoint.save_weights(tmp_path / "b.safetensors", doubled)
    for name in "ab":
        found = checkpoint.load_weights(tmp_path / f"{name}.safetensors", like=params)
        assert type(found) is type(params)
        assert same_bits(found, doubled)


@pytest.mark.parametrize("first", ["packed", "plain"])
def test_fit_resumes_from_the_other_form(tmp_path, first):
    data = [BATCH] * 4
    makers = {"packed": packed_template, "plain": plain_template}
    second = "plain" if first == "packed" else "packed"

    def fitted(state, steps, path, **options):
        with checkpoint.Checkpointer(path) as checkpointer:
            return ps.fit(STEP, state, data, steps=steps, checkpointer=checkpointer, **options).state

    fitted(makers[first](), 2, tmp_path / "a")
    resumed = fitted(makers[second](), 4, tmp_path / "a", resume=True)
    whole = fitted(plain_template(), 4, tmp_path / "b")
    assert isinstance(resumed.params, ps.Packed) == (second == "packed")

    def close(a, b):
        return a.dtype == b.dtype and mx.allclose(a, b, rtol=1e-5, atol=1e-7).item()

    assert tree.matches(close, ps.unpacked(resumed), whole)
    assert resumed.step.item() == 4
    with checkpoint.Checkpointer(tmp_path / "a") as checkpointer:
        assert checkpointer.verify() == {2: [], 4: []}
