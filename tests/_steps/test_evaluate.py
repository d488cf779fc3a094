"""The evaluation step, and the evaluation of a whole source."""

import math

import mlx.core as mx
import pytest

import purestep as ps
from purestep import evaluate
from tests.refusals import parts
from tests.training import BATCH, classifier, ragged, start
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
    with pytest.raises(ValueError, match="^eval_step: batch .* one array, got none"):
        ps.eval_step(classifier)(state, {})
    with pytest.raises(ValueError, match=r"^eval_step: loss_fn's loss .* scalar, got shape \(4, 3\)"):
        ps.eval_step(lambda p, b, r: p["w"])(state, BATCH)
    with pytest.raises(ValueError, match="^eval_step: loss_fn's metrics .* named loss$"):
        ps.eval_step(lambda p, b, r: (p["w"].sum(), {"loss": mx.array(1.0)}))(state, BATCH)
    with pytest.raises(TypeError, match=r"^eval_step: a stateful loss_fn .*\(loss, metrics, model_state\)"):
        ps.eval_step(lambda p, s, b, r: p["w"].sum(), stateful=True)(state, BATCH)


def parts_of(batch, rows=2):
    return [
        {name: leaf[i : i + rows] for name, leaf in batch.items()} for i in range(0, len(batch["y"]), rows)
    ]


class Numbered:
    """A source of batches by number that counts its calls."""

    def __init__(self, batches):
        self.batches, self.asked = batches, []

    def at(self, step):
        self.asked.append(step)
        return self.batches[step % len(self.batches)]


def known(losses, weights=None):
    """Return a step whose loss is one of these, selected by the batch."""

    def step(state, batch):
        weight = 1.0 if weights is None else weights[batch]
        return {"loss": ps.Mean(mx.array(losses[batch] * weight), mx.array(weight))}

    return step


@pytest.mark.parametrize("compiled", [False, True])
def test_the_result_is_that_of_one_batch_of_everything(compiled):
    state, step = start(), ps.eval_step(classifier)
    whole = step(state, BATCH)
    for source, steps in (
        (parts_of(BATCH), None),
        (iter(parts_of(BATCH)), None),
        (Numbered(parts_of(BATCH)), 4),
        (parts_of(BATCH) * 2, 4),
    ):
        found = evaluate(ps.compiled(step) if compiled else step, state, source, steps=steps, perplexity=True)
        assert list(found) == ["loss", "biggest", "mean_logit", "weight", "perplexity"]
        assert all(type(value) is float for value in found.values())
        assert found["weight"] == whole["loss"].weight.item()
        for name in ("loss", "mean_logit"):
            assert found[name] == pytest.approx(whole[name].value.item(), rel=1e-5)
        assert found["perplexity"] == math.exp(found["loss"])


def test_unequal_batches_count_by_their_weight_not_alike():
    found = evaluate(known([1.0, 5.0], [3.0, 1.0]), None, [0, 1])
    assert (found["loss"], found["weight"]) == (2.0, 4.0)


def test_sums_are_exact_where_float32_is_not():
    found = evaluate(known([1.0, 1.0], [2.0**24, 1.0]), None, [0, 1, 1, 1])
    assert found["weight"] == 2**24 + 3


@pytest.mark.parametrize(
    ("loss", "perplexity"),
    [(0.0, 1.0), (700.0, math.exp(700.0)), (710.0, math.inf), (1e30, math.inf), (math.inf, math.inf)],
)
def test_perplexity_is_infinite_where_exp_overflows(loss, perplexity):
    assert evaluate(known([loss]), None, [0], perplexity=True)["perplexity"] == perplexity


def test_a_loss_that_is_nan_stays_nan():
    found = evaluate(known([1.0, math.nan]), None, [0, 1], perplexity=True)
    assert math.isnan(found["loss"])
    assert math.isnan(found["perplexity"])


def test_a_metric_without_weight_is_zero_and_does_not_hurt_the_loss():
    def step(state, batch):
        return {"loss": ps.Mean(mx.array(2.0), mx.array(1.0)), "rare": ps.Mean(mx.array(0.0), mx.array(0.0))}

    assert evaluate(step, None, [0]) | {"perplexity": 0} == {
        "loss": 2.0, "rare": 0.0, "weight": 1.0, "perplexity": 0,
    }  # fmt: skip


def test_a_source_by_number_is_asked_for_the_first_steps_in_order():
    source = Numbered(parts_of(BATCH))
    evaluate(ps.eval_step(classifier), start(), source, steps=3)
    assert source.asked == [0, 1, 2]


def test_memory_does_not_grow_with_the_number_of_batches():
    def step(state, batch):
        return {"loss": ps.Mean.of(mx.full((1 << 20,), batch) * 2.0)}

    def peak(count):
        mx.reset_peak_memory()
        before = mx.get_active_memory()
        evaluate(step, None, range(count))
        return mx.get_peak_memory() - before

    few = peak(3)
    assert few >= 4 << 20
    # At most two batches are in memory at a time; thirty would take ten times as much.
    assert peak(30) <= 3 * few


@pytest.mark.parametrize("source", [[], iter([]), (x for x in ())])
def test_an_empty_source_is_refused(source):
    with pytest.raises(ValueError, match="^evaluate: source .* one batch, got none"):
        evaluate(ps.eval_step(classifier), start(), source)


def test_an_iterator_that_was_used_up_is_refused_not_reported_as_zero():
    batches = iter(parts_of(BATCH))
    evaluate(ps.eval_step(classifier), start(), batches)
    with pytest.raises(ValueError, match="^evaluate: source .* one batch, got none"):
        evaluate(ps.eval_step(classifier), start(), batches)


def test_a_source_in_which_nothing_counts_is_refused():
    with pytest.raises(ValueError, match="^evaluate: source .* weight above 0, got weight 0"):
        evaluate(known([1.0], [0.0]), None, [0, 0])


@pytest.mark.parametrize(
    ("step", "source", "steps", "error", "message"),
    [
        (None, [0], None, TypeError, "eval_step ... callable, got None"),
        (known([1.0]), 7, None, TypeError, "source ... iterable ... at(step), got int"),
        (known([1.0]), {"x": mx.zeros(2)}, None, TypeError, "source ... one batch; ... [batch]"),
        (known([1.0]), Numbered([0]), None, ValueError, "steps ... at(step), got None"),
        (known([1.0]), [0], 0, ValueError, "steps ... 1, got 0"),
        (known([1.0]), [0], 1.5, TypeError, "steps ... integer, got 1.5"),
        (lambda s, b: mx.array(1.0), [0], None, TypeError, "eval_step ... dict of Means, got array("),
        (lambda s, b: {"loss": mx.array(1.0)}, [0], None, TypeError, "eval_step ... dict of Means, got {"),
        (lambda s, b: {}, [0], None, ValueError, "eval_step ... loss, got nothing"),
        (lambda s, b: known([1.0])(s, b) | {"weight": ps.Mean(mx.array(1.0), mx.array(1.0))}, [0], None,
         ValueError, "metrics ... named weight"),
        (lambda s, b: known([1.0] * 2)(s, b) | ({"odd": ps.Mean(mx.array(1.0), mx.array(1.0))} if b else {}),
         [0, 1], None, ValueError, "every batch ... same metrics"),
    ],
)  # fmt: skip
def test_evaluating_wrongly_is_refused(step, source, steps, error, message):
    with pytest.raises(error, match=parts(f"evaluate: {message}")):
        evaluate(step, None, source, steps=steps)
