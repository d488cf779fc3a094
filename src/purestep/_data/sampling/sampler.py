"""Sampling: completions of prompts drawn from a model, as arrays of one shape."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import mlx.core as mx

from purestep._core import checks
from purestep._core.rng import check_key, fold_in
from purestep._core.types import Params, Tree
from purestep._data.sampling.completions import Completions, check_prompts
from purestep._data.sampling.options import Decode, Drawing, InitCache, Model
from purestep._data.sampling.truncation import truncated_logits
from purestep._losses.tokens.sequence import token_logps

_LOOK_EVERY = 8  # tokens between two checks for an early end, each of which waits for the device


class _Rows(NamedTuple):
    """The state of the loop over positions, [n, ...]."""

    tokens: mx.array  # int32 [n, length]
    ended: mx.array  # bool [n]
    cache: Tree


class _Step(NamedTuple):
    """Draws one token in each row.

    It is not a method of the sampler: compiled, such a method would form a reference cycle that keeps the
    model's arrays alive.
    """

    model: Model
    drawing: Drawing

    def draw(
        self,
        params: Params,
        rows: _Rows,
        lengths: mx.array,
        key: mx.array,
        position: mx.array,
        chunk: int,
    ) -> tuple[_Rows, mx.array, mx.array]:
        """Draw the token after `position` in the rows whose completion includes it."""
        tokens, ended, cache = rows
        logits, cache = self.logits(params, tokens, position, cache, chunk)
        token, logp = self.token(logits.astype(mx.float32), fold_in(key, position))
        after = position + 1
        drawn = mx.logical_and(after >= lengths, mx.logical_not(ended))
        places = mx.arange(tokens.shape[1]) == after
        tokens = mx.where(mx.logical_and(drawn[:, None], places), token[:, None], tokens)
        full = after - lengths + 1 >= self.drawing.max_tokens
        over = mx.logical_or(_among(token, self.drawing.stop_tokens), full)
        rows = _Rows(tokens, mx.logical_or(ended, mx.logical_and(drawn, over)), cache)
        return rows, drawn.astype(mx.float32), mx.where(drawn, logp, 0.0)

    def token(self, logits: mx.array, key: mx.array) -> tuple[mx.array, mx.array]:
        """Return one token for each row of logits, int32 [n], and its log-probability."""
        temperature, top_k, top_p = self.drawing.temperature, self.drawing.top_k, self.drawing.top_p
        if not temperature:
            token = mx.argmax(logits, axis=-1).astype(mx.int32)
            return token, mx.zeros(token.shape)
        kept = truncated_logits(logits / temperature, top_k=top_k, top_p=top_p)
        token = mx.random.categorical(kept, axis=-1, key=key).astype(mx.int32)
        if self.drawing.renormalize:
            return token, token_logps(kept, token)
        # These are the operations of the loss, in the same order: equal logits give equal bits.
        return token, token_logps(logits, token, temperature=temperature)

    def logits(
        self, params: Params, tokens: mx.array, position: mx.array, cache: Tree, chunk: int
    ) -> tuple[mx.array, Tree]:
        """Return the logits [n, vocab] of the token after `position`."""
        if self.model.decode is None:
            logits = self.model.apply_fn(params, tokens)
            _check_logits("apply_fn", logits, tokens.shape)
            return logits[:, position], cache
        new = tokens[:, :chunk] if chunk > 1 else tokens[:, position][:, None]
        logits, cache = self.model.decode(params, new, position - (chunk - 1), cache)
        _check_logits("decode", logits, new.shape)
        return logits[:, -1], cache


class Sampler:
    """Draws completions when called with parameters, prompts and a key. Build it with `sampler`.

    Attributes:
        max_tokens: maximum length of a completion.
        temperature: 0 takes the most probable token each time.
    """

    def __init__(self, model: Model, drawing: Drawing):
        self.max_tokens, self.temperature = drawing.max_tokens, drawing.temperature
        self._model, self._drawing = model, drawing
        step = _Step(model, drawing)
        self._draw = mx.compile(step.draw) if model.compile else step.draw

    def __call__(
        self,
        params: Params,
        prompts: Sequence[Sequence[int]],
        key: mx.array,
        *,
        shortest: int | None = None,
        longest: int | None = None,
    ) -> Completions:
        """Complete every prompt: a pure function of the arguments.

        Args:
            params: first argument of `apply_fn`.
            prompts: tokens, at least one in each prompt.
            key: uint32 [2], for all random draws.
            shortest: lower bound of the prompts' lengths. Calls with equal bounds share compiled functions;
                `None` uses the bounds of this call.
            longest: upper bound of the prompts' lengths.

        Returns:
            `Completions` with length `longest + max_tokens`.

        Raises:
            ValueError, TypeError: if there are no prompts, a prompt is empty, its length is outside the
                bounds, it holds anything but tokens, or the model returns logits of another shape.
        """
        caller, drawing = "sampler", self._drawing
        check_key(caller, key)
        lengths = check_prompts(caller, prompts)
        shortest = min(lengths) if shortest is None else shortest
        longest = max(lengths) if longest is None else longest
        if min(lengths) < shortest or max(lengths) > longest:
            raise checks.error(
                caller,
                f"prompts must have {shortest} to {longest} tokens, got {min(lengths)} to {max(lengths)}",
            )
        length = longest + drawing.max_tokens
        # A cache must see every token. Without one, nothing happens before the first draw.
        cached = self._model.decode is not None
        start = (shortest if cached else min(lengths)) - 1
        rows = self._first(params, prompts, length)
        first_places = mx.array(lengths, mx.int32)
        masks, logps = [], []
        for position in range(start, max(lengths) + drawing.max_tokens - 1):
            chunk = shortest if cached and position == start else 1
            at = mx.array(position, mx.int32)
            rows, mask, logp = self._draw(params, rows, first_places, key, at, chunk)
            masks.append(mask)
            logps.append(logp)
            mx.async_eval(rows, mask, logp)
            # An early end changes no bit: the remaining positions would draw nothing.
            if (position - start + 1) % _LOOK_EVERY == 0 and rows.ended.all().item():
                break
        mask = _spread(masks, start, length)
        return Completions(
            rows.tokens,
            mask,
            _spread(logps, start, length) if drawing.temperature else None,
            self._truncated(rows.tokens, mask),
        )

    def _first(self, params: Params, prompts: Sequence[Sequence[int]], length: int) -> _Rows:
        padded = [[*prompt, *[self._drawing.pad_token] * (length - len(prompt))] for prompt in prompts]
        init_cache = self._model.init_cache
        cache: Tree = init_cache(params, len(prompts), length) if init_cache else {}
        return _Rows(mx.array(padded, mx.int32), mx.zeros(len(prompts), mx.bool_), cache)

    def _truncated(self, tokens: mx.array, mask: mx.array) -> mx.array:
        """Return 1 for each row that reached `max_tokens` without a stop token, float32 [n]."""
        if not self._drawing.stop_tokens:
            return mx.zeros(len(tokens))
        stopped = (_among(tokens[:, 1:], self._drawing.stop_tokens) * mask).max(axis=1)
        full = mask.sum(axis=1) >= self._drawing.max_tokens
        return mx.logical_and(full, stopped == 0).astype(mx.float32)


def sampler(
    apply_fn: Callable[..., mx.array],
    *,
    max_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    renormalize: bool = False,
    stop_tokens: Sequence[int] = (),
    pad_token: int = 0,
    init_cache: InitCache | None = None,
    decode: Decode | None = None,
    compile: bool = True,
) -> Sampler:
    """Build `sample(params, prompts, key) -> Completions`, a pure function of its arguments.

    Each token is drawn from `softmax(logits / temperature)`, which `top_k` and `top_p` may truncate, until a
    stop token or `max_tokens` is reached. Rows are padded on the right, so a causal model needs no mask.

    Log-probabilities are those of `softmax(logits / temperature)` over the whole vocabulary. A loss computes
    the same numbers from the same tokens, by the same operations, so its importance ratios start at 1.
    Truncation affects neither side of the ratio. With `renormalize=True` they are those of the truncated
    distribution. Ratios against the whole softmax then start at the probability mass that was kept, below
    1, and a small `top_k` can put them below the range in which a clipped loss has a gradient.

    Args:
        apply_fn: `apply_fn(params, tokens [n, length]) -> logits [n, length, vocab]`, causal, as
            `functional` returns it. Without a cache it runs over the whole length for each token, which
            suits small models.
        max_tokens: maximum length of a completion, in tokens.
        temperature: at least 0; 0 takes the most probable token each time, and returns no log-probabilities.
        top_k: keep the most probable tokens, as `truncated_logits`.
        top_p: keep the most probable tokens with this probability mass, as `truncated_logits`.
        renormalize: return log-probabilities of the truncated distribution.
        stop_tokens: tokens that end a completion and belong to it.
        pad_token: fills the rows after the completion; any token of the model's vocabulary.
        init_cache: `init_cache(params, n, length) -> cache`, a tree of arrays; requires `decode`.
        decode: `decode(params, tokens [n, s], start, cache) -> (logits [n, s, vocab], cache)`, used instead
            of `apply_fn`. The first call has the leading tokens that every prompt has, at `start` 0; each
            later call has one token. `start` (0-d int32) is the position of the first of the `s` tokens.
        compile: compile the function that draws one token.

    Raises:
        ValueError: if an option is out of its range, or one of `init_cache` and `decode` is missing.

    >>> follow = lambda params, tokens: 50.0 * mx.eye(4)[(tokens + 1) % 4]  # 0 1 2 3 0 1 ...
    >>> sample = sampler(follow, max_tokens=3, stop_tokens=[3], compile=False)
    >>> drawn = sample({}, [[0, 1], [3]], mx.random.key(0))
    >>> drawn.lists(), drawn.truncated
    ([[2, 3], [0, 1, 2]], array([0, 1], dtype=float32))
    """
    caller = "sampler"
    model = Model(apply_fn, init_cache, decode, compile).checked(caller)
    drawing = Drawing(max_tokens, temperature, top_k, top_p, renormalize, stop_tokens, pad_token)
    return Sampler(model, drawing.checked(caller))


def _spread(columns: list[mx.array], start: int, length: int) -> mx.array:
    """Stack columns from position `start` on into float32 [n, length - 1], with zeros around them."""
    block = mx.stack(columns, axis=1)
    return mx.pad(block, [(0, 0), (start, length - 1 - start - len(columns))])


def _among(tokens: mx.array, some: Sequence[int]) -> mx.array:
    if not some:
        return mx.zeros(tokens.shape, mx.bool_)
    return (tokens[..., None] == mx.array(list(some), mx.int32)).any(axis=-1)


def _check_logits(name: str, logits: mx.array, tokens: tuple[int, ...]) -> None:
    if logits.ndim != 3 or logits.shape[:2] != tokens:
        raise checks.error(
            "sampler", f"{name} must return logits [{tokens[0]}, {tokens[1]}, vocab], got {logits.shape}"
        )
