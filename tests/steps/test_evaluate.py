"""The evaluation step."""

import mlx.core as mx
import pytest

import purestep as ps
from tests.steps.test_train import BATCH, classifier, ragged, start
from tests.trees import snapshot


def test_parts_of_a_data_set_merge_to_the_mean_of_the_whole():
    state, step = start(), ps.eval_step(classifier)
    whole = step(state, BATCH)
    parts = [step(state, {name: leaf[i : i + 2] for name, leaf in BATCH.items()}) for i in range(0, 8, 2)]
    for name in ("loss", "mean_logit"):
        merged = ps.Mean.merge(*(part[name] for part in parts))
        assert merged.weight.item() == whole[name].weight.item()
        assert merged.value.item() == pytest.approx(whole[name].value.item(), rel=1e-5)


def test_an_evaluation_draws_nothing_and_changes_nothing():
    keys = []

    def loss_fn(params, batch, rng):
        keys.append(rng)
        return classifier(params, batch, rng)

    state = start()
    before = snapshot(state)
    ps.eval_step(loss_fn)(state, ragged(1))
    assert keys == [None]
    assert snapshot(state) == before


def test_mistakes_are_refused():
    state = start()
    with pytest.raises(ValueError, match="^eval_step: batch must hold at least one array"):
        ps.eval_step(classifier)(state, {})
    with pytest.raises(ValueError, match="^eval_step: loss_fn's loss must be a scalar"):
        ps.eval_step(lambda p, b, r: p["w"])(state, BATCH)
    with pytest.raises(ValueError, match="may not be named loss"):
        ps.eval_step(lambda p, b, r: (p["w"].sum(), {"loss": mx.array(1.0)}))(state, BATCH)
    with pytest.raises(TypeError, match="a stateful loss_fn must return"):
        ps.eval_step(lambda p, s, b, r: p["w"].sum(), stateful=True)(state, BATCH)
