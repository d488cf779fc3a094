"""Log-probabilities against torch in float64, masks against loops, and bad arguments."""

import mlx.core as mx
import numpy as np
import pytest

from purestep._core import hardware
from purestep.losses import completion_mask, prompt_mask, sequence_logps, shift, token_logps, truncation_mask
from tests.references import recorded
from tests.refusals import parts

RECORD = recorded("sequence")
CASES = {"1.0": 1.0, "0.7": 0.7, "extreme": 1.0}
RTOL, ATOL = 1e-5, 1e-6


def case_of(name):
    return {key.split("/")[1]: part for key, part in RECORD.items() if key.startswith(f"{name}/")}


def test_every_recorded_case_is_compared():
    assert {key.split("/")[0] for key in RECORD} == set(CASES)


@pytest.mark.parametrize("as_array", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_log_probabilities_and_their_gradient_are_those_of_torch_in_float64(name, as_array):
    case = case_of(name)
    temperature = mx.array(CASES[name]) if as_array else CASES[name]
    targets, cotangent = mx.array(case["targets"]), mx.array(case["cotangent"])

    def total(logits):
        logps = token_logps(logits, targets, temperature=temperature)
        return (logps * cotangent).sum(), logps

    (_, logps), gradient = mx.value_and_grad(total)(mx.array(case["logits"]))
    np.testing.assert_allclose(logps, case["logps"], RTOL, ATOL)
    # CUDA computes the gradient from the loss, which is thousands of nats for extreme logits.
    rtol = 1e-3 if name == "extreme" and hardware.on_gpu() else RTOL
    np.testing.assert_allclose(gradient, case["gradient"], rtol, ATOL)


@pytest.mark.parametrize("average", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_sequences_are_summed_over_the_mask_whatever_lies_outside_it(name, average):
    case = case_of(name)
    mask = case["mask"]
    logps = mx.array(np.where(mask > 0, case["logps"], [np.nan, -np.inf] * 3).astype(np.float32))
    for kind in (mx.float32, mx.bool_):
        value, gradient = mx.value_and_grad(
            lambda x, kind=kind: sequence_logps(x, mx.array(mask).astype(kind), average=average).sum()
        )(logps)
        want = case["averages" if average else "sums"]
        sums = sequence_logps(logps, mx.array(mask).astype(kind), average=average)
        np.testing.assert_allclose(sums, want, RTOL, ATOL)
        assert value.item() == pytest.approx(want.sum(), rel=RTOL)
        share = np.maximum(mask.sum(-1, keepdims=True), 1) if average else 1
        np.testing.assert_allclose(gradient, mask / share, RTOL)


def test_bfloat16_logits_are_scored_in_float32():
    logits = mx.random.normal((2, 4, 16), key=mx.random.key(0)).astype(mx.bfloat16)
    targets = mx.zeros((2, 4), mx.int32)
    narrow, wide = token_logps(logits, targets), token_logps(logits.astype(mx.float32), targets)
    assert narrow.dtype == mx.float32
    np.testing.assert_array_equal(narrow, wide)


def test_compiled_and_mapped_log_probabilities_are_the_same():
    logits = mx.random.normal((2, 4, 5), key=mx.random.key(0))
    targets = mx.array([[0, 1, 2, 3], [4, 3, 2, 1]])
    want = token_logps(logits, targets, temperature=0.5)
    mapped = mx.vmap(lambda x, t: token_logps(x, t, temperature=0.5))(logits, targets)
    compiled = mx.compile(lambda x, t: token_logps(x, t, temperature=0.5))(logits, targets)
    np.testing.assert_allclose(mapped, want, RTOL)
    np.testing.assert_allclose(compiled, want, RTOL)


@pytest.mark.parametrize("bad", [-100, -1, 5, 1000])
def test_a_target_outside_the_vocabulary_is_nan_unless_it_is_masked(bad):
    logits, targets = mx.random.normal((1, 2, 5), key=mx.random.key(0)), mx.array([[1, bad]])
    assert np.isnan(np.array(token_logps(logits, targets))).tolist() == [[False, True]]

    def loss(logits, mask):
        return sequence_logps(token_logps(logits, targets), mask).sum()

    assert mx.isnan(loss(logits, mx.array([[1.0, 1.0]]))).item()
    value, gradient = mx.value_and_grad(loss)(logits, mx.array([[1.0, 0.0]]))
    assert value.item() == token_logps(logits, mx.array([[1, 0]]))[0, 0].item()
    assert mx.isfinite(gradient).all().item()
    assert mx.all(gradient[0, 1] == 0).item()


def test_a_mask_keeps_logits_that_are_not_finite_from_the_gradient():
    logits = mx.array([[[0.0, 0.0], [float("nan"), float("inf")]]])
    mask, targets = mx.array([[1.0, 0.0]]), mx.array([[0, 7]])
    logps = token_logps(logits, targets, mask=mask)
    assert logps[0, 1].item() == 0
    gradient = mx.grad(lambda x: token_logps(x, targets, mask=mask).sum())(logits)
    np.testing.assert_allclose(gradient, [[[0.5, -0.5], [0, 0]]], RTOL)


def test_a_vocabulary_ruled_out_by_minus_infinity_has_a_finite_gradient():
    logits = mx.array([[0.0, 0.0, -float("inf")]])
    gradient = mx.grad(lambda x: token_logps(x, mx.array([0])).sum())(logits)
    np.testing.assert_allclose(gradient, [[0.5, -0.5, 0.0]], RTOL)


def random_rows():
    rng = np.random.default_rng(1)
    tokens = rng.integers(0, 6, (40, 9))
    prompts = rng.integers(0, 8, 40)
    return tokens, prompts, np.minimum(prompts + rng.integers(0, 9, 40), 9)


@pytest.mark.parametrize("stops", [None, 3, (3, 5)])
@pytest.mark.parametrize("bounded", [False, True])
def test_masks_are_those_of_a_walk_through_the_tokens(stops, bounded):
    tokens, prompts, lengths = random_rows()
    stop_set = {None: set(), 3: {3}, (3, 5): {3, 5}}[stops]
    completion, prompt, truncated = np.zeros((40, 8)), np.zeros((40, 8)), np.ones(40)
    for row in range(40):
        for place in range(1, prompts[row]):
            prompt[row, place - 1] = 1
        for place in range(max(prompts[row], 1), lengths[row] if bounded else 9):
            completion[row, place - 1] = 1
            if tokens[row, place] in stop_set:
                truncated[row] = 0
                break
    options = {"lengths": mx.array(lengths) if bounded else None}
    arguments = mx.array(tokens), mx.array(prompts)
    got = completion_mask(*arguments, stop_tokens=stops, **options)
    assert got.dtype == mx.float32
    np.testing.assert_array_equal(got, completion)
    np.testing.assert_array_equal(prompt_mask(*arguments), prompt)
    if stops is not None:
        np.testing.assert_array_equal(truncation_mask(*arguments, stops, **options), truncated)


def test_one_prompt_length_serves_all_rows_and_rows_may_be_mapped():
    tokens = mx.array([[1, 2, 3, 4], [5, 6, 7, 8]])
    want = completion_mask(tokens, mx.array([2, 2]), stop_tokens=7)
    np.testing.assert_array_equal(completion_mask(tokens, 2, stop_tokens=7), want)
    np.testing.assert_array_equal(completion_mask(tokens, mx.array(2), stop_tokens=7), want)
    assert prompt_mask(tokens, 2).tolist() == [[1, 0, 0], [1, 0, 0]]
    mapped = mx.vmap(lambda row, n: completion_mask(row, n, stop_tokens=7))(tokens, mx.array([2, 2]))
    np.testing.assert_array_equal(mapped, want)
    np.testing.assert_array_equal(
        completion_mask(tokens.astype(mx.uint8), 2, stop_tokens=300), [[0, 1, 1], [0, 1, 1]]
    )


def test_shift_pairs_each_token_with_the_next():
    inputs, targets = shift(mx.array([[1, 2, 3], [4, 5, 6]]))
    assert (inputs.tolist(), targets.tolist()) == ([[1, 2], [4, 5]], [[2, 3], [5, 6]])


TOKENS = mx.zeros((2, 4), mx.int32)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: shift(mx.zeros((2, 1))), ValueError, "shift: tokens ... [..., length] ... 2, got (2, 1)"),
        (lambda: token_logps(mx.zeros((2, 3)), mx.array([0, 0]), temperature=0), ValueError,
         "token_logps: temperature ... 0, got 0"),
        (lambda: token_logps(mx.zeros((2, 3)), mx.array([0, 0]), temperature=-1.0), ValueError,
         "token_logps: temperature ... 0, got -1.0"),
        (lambda: token_logps(mx.zeros((2, 3)), mx.array([0])), ValueError,
         "token_logps: targets ... logits' shape ... (1,) and (2, 3)"),
        (lambda: token_logps(mx.zeros((2, 3)), mx.zeros(2)), TypeError,
         "token_logps: targets ... integers, got mlx.core.float32"),
        (lambda: token_logps(mx.zeros((2, 3), mx.int32), mx.array([0, 0])), TypeError,
         "token_logps: logits ... floating, got mlx.core.int32"),
        (lambda: token_logps(mx.zeros((2, 3)), mx.array([0, 0]), mask=mx.ones(3)), ValueError,
         "token_logps: mask ... broadcast ... targets' (2,), got (3,)"),
        (lambda: sequence_logps(mx.zeros((2, 3)), mx.zeros((2, 2))), ValueError,
         "sequence_logps: mask ... token_logps' shape (2, 3), got (2, 2)"),
        (lambda: sequence_logps(TOKENS, TOKENS), TypeError,
         "sequence_logps: token_logps ... floating, got mlx.core.int32"),
        (lambda: sequence_logps(mx.array(1.0), mx.array(1.0)), ValueError,
         "sequence_logps: token_logps ... [..., length - 1], got a scalar"),
        (lambda: completion_mask(TOKENS, mx.array([1, 2, 3])), ValueError,
         "completion_mask: prompt_lengths ... shape (2,), got (3,)"),
        (lambda: completion_mask(TOKENS, -1), ValueError, "completion_mask: prompt_lengths ... 0, got -1"),
        (lambda: completion_mask(TOKENS, 1, lengths=mx.zeros(2)), TypeError,
         "completion_mask: lengths ... integers, got mlx.core.float32"),
        (lambda: completion_mask(TOKENS, 1, stop_tokens=()), ValueError,
         "completion_mask: stop_tokens ... one token, got none"),
        (lambda: completion_mask(TOKENS, 1, stop_tokens=(1, -1)), ValueError,
         "completion_mask: stop_tokens ... 0, got -1"),
        (lambda: completion_mask(TOKENS[:, :1], 1), ValueError,
         "completion_mask: tokens ... [batch, length] ... 2, got (2, 1)"),
        (lambda: prompt_mask(mx.zeros((2, 4)), 1), TypeError,
         "prompt_mask: tokens ... integers, got mlx.core.float32"),
    ],
)  # fmt: skip
def test_a_bad_argument_is_refused_by_name_with_its_rule_and_value(call, error, message):
    with pytest.raises(error, match=parts(message)):
        call()
