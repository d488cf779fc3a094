"""Sampling: the distribution of tokens, truncation, the ends of completions, and log-probabilities."""

import itertools

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from purestep import functional
from purestep.data import sampler
from purestep.losses import completion_mask, token_logps, truncation_mask
from purestep.rng import scope
from tests.distributions import probabilities

VOCABULARY = 7
KEY = mx.random.key(5)


def table_model(params, tokens):
    """Predict the next token from the last one and from the position."""
    place = mx.arange(tokens.shape[1])[:, None]
    return params["table"][tokens] + 0.3 * mx.sin(place * mx.arange(1, VOCABULARY + 1))


def table(scale=1.0):
    return {"table": scale * mx.random.normal((VOCABULARY, VOCABULARY), key=mx.random.key(3))}


def sample(params=None, prompts=((1,), (2, 3, 4), (5, 6)), key=KEY, model=table_model, **options):
    draw = sampler(model, **{"max_tokens": 6, "compile": False, **options})
    return draw(table() if params is None else params, [list(prompt) for prompt in prompts], key)


# The 0.9999 quantiles of chi-square with 1 to 6 degrees of freedom, from tables.
CHI_SQUARE = {1: 15.14, 2: 18.42, 3: 21.11, 4: 23.51, 5: 25.74, 6: 27.86}


@pytest.mark.parametrize(
    "options",
    [{}, {"temperature": 0.5}, {"temperature": 3.0}, {"top_k": 3}, {"top_p": 0.7},
     {"temperature": 2.0, "top_k": 5, "top_p": 0.8}],
    ids=str,
)  # fmt: skip
def test_samples_follow_the_softmax_at_the_temperature_over_what_truncation_keeps(options):
    draws = 4000
    # Counts the second token, after a first one that is certain: this covers the loop, not only one call.
    logits = mx.array([[-50.0] * 2 + [50.0] + [-50.0] * 4, [1.0, -0.5, 0.3, 2.0, 0.0, -2.0, 1.4]])
    model = lambda params, tokens: mx.where(tokens[..., None] == 2, logits[1], logits[0])  # noqa: E731
    drawn = sample({}, [(0,)] * draws, model=model, max_tokens=2, **options)
    assert (np.asarray(drawn.tokens[:, 1]) == 2).all()
    counts = np.bincount(np.asarray(drawn.tokens[:, 2]), minlength=VOCABULARY)
    expected = draws * probabilities(logits[1], **options)
    assert (counts[expected == 0] == 0).all()
    kept = expected > 0
    assert kept.sum() > 1
    statistic = ((counts - expected)[kept] ** 2 / expected[kept]).sum()
    assert statistic < CHI_SQUARE[kept.sum() - 1]


def test_rows_of_one_prompt_and_places_of_one_row_are_drawn_independently():
    flat = lambda params, tokens: mx.zeros((*tokens.shape, 2))  # noqa: E731
    bits = np.asarray(sample({}, [(0,)] * 2000, model=flat, max_tokens=3).tokens[:, 1:])
    patterns = np.bincount(bits @ [1, 2, 4], minlength=8)
    assert ((patterns - 250) ** 2 / 250).sum() < 29.88  # 7 degrees of freedom
    first = bits[:-1, 0] * 2 + bits[1:, 0]
    assert ((np.bincount(first) - len(first) / 4) ** 2 / (len(first) / 4)).sum() < 21.11


@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize("stop_tokens", [(), (3,), (0, 3)])
def test_completions_end_with_the_first_stop_token_or_at_the_limit(temperature, stop_tokens):
    prompts = [(1,), (2, 3, 4), (5, 6), (0,), (3, 3)] * 4
    drawn = sample(prompts=prompts, stop_tokens=stop_tokens, temperature=temperature, pad_token=4)
    assert drawn.tokens.shape == (20, 9)
    assert drawn.completion_mask.shape == (20, 8)
    for row, prompt, completion, cut in zip(
        drawn.tokens.tolist(), prompts, drawn.lists(), drawn.truncated.tolist(), strict=True
    ):
        assert row == [*prompt, *completion, *[4] * (9 - len(prompt) - len(completion))]
        assert not set(completion[:-1]) & set(stop_tokens)
        stopped = completion[-1] in stop_tokens
        assert stopped or len(completion) == 6
        assert cut == (bool(stop_tokens) and not stopped)
    lengths = mx.array([len(prompt) for prompt in prompts])
    if stop_tokens:
        given = {"stop_tokens": stop_tokens, "lengths": lengths + 6}
        assert mx.array_equal(drawn.completion_mask, completion_mask(drawn.tokens, lengths, **given))
        assert mx.array_equal(drawn.truncated, truncation_mask(drawn.tokens, lengths, **given))
        if temperature:
            assert 0 < drawn.truncated.sum().item() < 20


def test_a_stop_token_in_the_last_place_is_no_truncation():
    follow = lambda params, tokens: 50.0 * mx.eye(6)[(tokens + 1) % 6]  # noqa: E731
    drawn = sample({}, [(0,), (1,), (2,)], model=follow, max_tokens=3, stop_tokens=[4])
    assert drawn.lists() == [[1, 2, 3], [2, 3, 4], [3, 4]]
    assert drawn.truncated.tolist() == [1, 0, 0]


def test_a_batch_that_has_ended_is_left_early_and_its_bits_are_the_same():
    calls = []

    def counted(params, tokens):
        calls.append(1)
        return 50.0 * mx.eye(6)[(tokens + 1) % 6]

    early = sample({}, [(0,), (2,)], model=counted, max_tokens=40, stop_tokens=[5])
    assert len(calls) == 8
    assert early.lists() == [[1, 2, 3, 4, 5], [3, 4, 5]]
    assert early.tokens.shape == (2, 41)
    assert early.completion_mask.sum().item() == 8
    assert early.logps.shape == (2, 40)


@pytest.mark.parametrize("temperature", [1.0, 0.6, 2.5])
@pytest.mark.parametrize("truncation", [{}, {"top_k": 3}, {"top_p": 0.8}])
def test_logps_are_those_of_a_full_forward_pass_at_the_temperature(temperature, truncation):
    params = table(3.0)
    drawn = sample(params, temperature=temperature, stop_tokens=[0], **truncation)
    logits = table_model(params, drawn.tokens[:, :-1])
    full = token_logps(logits, drawn.tokens[:, 1:], temperature=temperature)
    np.testing.assert_allclose(drawn.logps, full * drawn.completion_mask, rtol=1e-5, atol=1e-5)
    if not truncation:
        return
    exact = sample(params, temperature=temperature, stop_tokens=[0], renormalize=True, **truncation)
    assert mx.array_equal(exact.tokens, drawn.tokens)
    for row, place in itertools.product(range(3), range(exact.logps.shape[1])):
        if exact.completion_mask[row, place]:
            chances = probabilities(logits[row, place], temperature, **truncation)
            token = exact.tokens[row, place + 1].item()
            assert exact.logps[row, place].item() == pytest.approx(np.log(chances[token]), abs=1e-5)
    assert (np.asarray(exact.logps) >= np.asarray(drawn.logps) - 1e-6).all()


@pytest.mark.parametrize("temperature", [0.7, 1.3])
def test_logps_are_those_of_the_loss_to_the_bit(temperature):
    params = table(30.0)
    drawn = sample(params, prompts=[(1,)] * 64, temperature=temperature)
    logits = table_model(params, drawn.tokens[:, :-1])
    full = token_logps(logits, drawn.tokens[:, 1:], temperature=temperature)
    assert mx.array_equal(drawn.logps, full * drawn.completion_mask)


def test_greedy_completions_are_the_most_probable_tokens_and_have_no_logps():
    drawn = sample(temperature=0.0)
    assert drawn.logps is None
    logits = table_model(table(), drawn.tokens[:, :-1])
    greedy = mx.argmax(logits, axis=-1).astype(mx.int32)
    assert mx.array_equal(drawn.tokens[:, 1:] * drawn.completion_mask, greedy * drawn.completion_mask)
    assert mx.array_equal(sample(temperature=0.0, key=mx.random.key(9)).tokens, drawn.tokens)


def test_a_key_decides_every_bit_compiled_too():
    first, again, other = sample(), sample(), sample(key=mx.random.key(6))
    assert mx.array_equal(first.tokens, again.tokens)
    assert mx.array_equal(first.logps, again.logps)
    assert not mx.array_equal(first.tokens, other.tokens)
    compiled = sample(compile=True)
    assert mx.array_equal(first.tokens, compiled.tokens)
    np.testing.assert_allclose(first.logps, compiled.logps, rtol=1e-5, atol=1e-6)


def test_bounds_for_the_lengths_fix_the_shapes_and_the_compiled_function():
    traces = []

    def traced(params, tokens):
        traces.append(tokens.shape)
        return table_model(params, tokens)

    draw = sampler(traced, max_tokens=4)
    for number, prompts in enumerate(([[1], [2, 3]], [[1, 2], [2, 3]], [[4, 4, 4], [1, 1]])):
        assert draw(table(), prompts, mx.random.key(number), shortest=1, longest=3).tokens.shape == (2, 7)
    assert len(traces) <= 2  # MLX traces the first compiled function of a process twice
    with pytest.raises(ValueError, match="sampler: prompts .* 1 to 3 tokens, got 1 to 4"):
        draw(table(), [[1], [1, 2, 3, 4]], KEY, shortest=1, longest=3)


class Recurrent(nn.Module):
    """A recurrent model: its cache is one vector for each row."""

    def __init__(self):
        super().__init__()
        self.embedding, self.cell, self.head = (
            nn.Embedding(VOCABULARY, 8),
            nn.GRU(8, 8),
            nn.Linear(8, VOCABULARY),
        )

    def __call__(self, tokens, hidden=None):
        states = self.cell(self.embedding(tokens), hidden)
        return 4 * self.head(states), states[:, -1]


@pytest.mark.parametrize("compile", [False, True])
def test_a_cached_decode_draws_what_the_whole_forward_pass_draws(compile):
    with scope(KEY):
        apply, params, _ = functional(Recurrent())
    starts = []

    def decode(params, tokens, start, cache):
        assert start.shape == ()
        starts.append(tokens.shape[1])
        logits, hidden = apply(params, tokens, cache["hidden"])
        return logits, {"hidden": hidden}

    prompts = [(1, 2), (3, 4, 5, 6), (2, 2, 2)]
    options = {"temperature": 0.8, "stop_tokens": [0], "max_tokens": 5}
    whole = sample(params, prompts, model=lambda p, t: apply(p, t)[0], **options)
    cached = sample(
        params, prompts, model=apply, compile=compile, decode=decode,
        init_cache=lambda params, n, length: {"hidden": mx.zeros((n, 8))}, **options,
    )  # fmt: skip
    assert starts[0] == 2
    assert set(starts[1:]) == {1} if not compile else set(starts) == {1, 2}
    assert mx.array_equal(whole.tokens, cached.tokens)
    np.testing.assert_allclose(whole.logps, cached.logps, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_tokens": 0}, "sampler: max_tokens .* 1, got 0"),
        ({"temperature": -1.0}, "sampler: temperature .* 0, got -1.0"),
        ({"temperature": float("nan")}, "sampler: temperature .*finite, got nan"),
        ({"top_k": 0}, "sampler: top_k .* 1, got 0"),
        ({"top_p": 0.0}, "sampler: top_p .* 0, got 0.0"),
        ({"top_p": 1.5}, "sampler: top_p .* 1, got 1.5"),
        ({"stop_tokens": (-1,)}, "sampler: stop_tokens .* 0, got -1"),
        ({"pad_token": -1}, "sampler: pad_token .* 0, got -1"),
        ({"decode": table_model}, "sampler: init_cache and decode .*together"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        sample(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": mx.array(1.0)}, "sampler: temperature .*Python number, got an array"),
        ({"top_k": 2.5}, "sampler: top_k .*integer, got 2.5"),
        ({"model": 3}, "sampler: apply_fn .*callable, got 3"),
        ({"prompts": [(1, 2.0)]}, r"sampler: prompts\[0\] .*integer, got 2.0"),
    ],
)
def test_options_of_another_type_are_refused(options, message):
    with pytest.raises(TypeError, match=message):
        sample(**options)


def test_prompts_and_models_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="sampler: prompts .* one prompt, got none"):
        sample(prompts=[])
    with pytest.raises(ValueError, match="sampler: prompts .* one token .*got none in 1"):
        sample(prompts=[(1,), ()])
    with pytest.raises(ValueError, match=r"sampler: apply_fn .* logits \[3, 9, vocab\], got \(3, 7\)"):
        sample(model=lambda params, tokens: table_model(params, tokens)[:, -1])
    with pytest.raises(ValueError, match="sampler: a key .* uint32 .*float32"):
        sample(key=mx.zeros(2))
