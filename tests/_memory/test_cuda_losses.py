"""The predicted memory of `linear_cross_entropy` with its CUDA kernels, of which a capture runs none."""

import mlx.core as mx
import pytest

import purestep as ps
from purestep._core import hardware
from purestep._losses.core import kernel
from purestep._losses.tokens import projection

TOKENS, FEATURES, CLASSES = 2048, 256, 16384
LOGITS = 2 * TOKENS * CLASSES  # bytes, bfloat16


@pytest.fixture(autouse=True)
def cuda(monkeypatch):
    monkeypatch.setattr(hardware, "on_cuda", lambda: True)
    monkeypatch.setattr(hardware, "on_gpu", lambda: True)


def peak(chunk_size):
    def loss_fn(params, batch, rng):
        hidden = batch["x"] @ params["inner"]
        return ps.losses.linear_cross_entropy(hidden, params["head"], batch["y"], chunk_size=chunk_size)

    transform = ps.optimizers.sgd(0.1)
    step = ps.train_step(ps.compute_in(loss_fn, mx.bfloat16, inputs="x"), transform)
    params = {"inner": mx.zeros((FEATURES, FEATURES)), "head": mx.zeros((CLASSES, FEATURES))}
    batch = {"x": mx.zeros((TOKENS, FEATURES)), "y": mx.zeros((TOKENS,), mx.int32)}
    return ps.memory.predict(step, ps.TrainState.create(params, transform), batch).peak


def test_the_gradient_takes_the_place_of_the_logits(monkeypatch):
    over = peak(TOKENS)
    monkeypatch.setattr(kernel, "overwrites", lambda form, dtype: False)
    assert 0.9 * LOGITS < peak(TOKENS) - over < 1.1 * LOGITS


def test_chunks_whose_groups_end_need_less(monkeypatch):
    ended = peak(TOKENS // 8)
    monkeypatch.setattr(projection, "_ENDS", 0)
    assert ended < peak(TOKENS // 8) - LOGITS / 4
