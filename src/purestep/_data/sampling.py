"""Draw completions of prompts from a model, in arrays of one shape."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import mlx.core as mx

from purestep._core import checks
from purestep._core.rng import check_key, fold_in
from purestep._core.types import Params, Tree
from purestep._data.completions import Completions, check_prompts
from purestep._data.truncation import check_truncation, truncated_logits
from purestep._losses.tokens.sequence import token_logps

Decode = Callable[[Params, mx.array, mx.array, Tree], tuple[mx.array, Tree]]

_LOOK_EVERY = 8  # tokens: to ask whether every completion has ended is to wait for the device


class _Drawing(NamedTuple):
    """How one token is drawn: apart from the sampler, which holds the compiled function of this.

    Compiled, a method of the sampler's own would be a cycle, which keeps what the model has captured.
    """

    apply: Callable[..., mx.array]
    decode: Decode | None
    max_tokens: int
    temperature: float
    top_k: int | None
    top_p: float | None
    renormalize: bool
    stop: tuple[int, ...]

    def draw(
        self,
        params: Params,
        tokens: mx.array,
        lengths: mx.array,
        ended: mx.array,
        cache: Tree,
        key: mx.array,
        position: mx.array,
        chunk: int,
    ) -> tuple[mx.array, mx.array, Tree, mx.array, mx.array]:
        """Fill in the token after `position` in the rows whose completion it belongs to."""
        logits, cache = self.logits(params, tokens, position, cache, chunk)
        logits = logits.astype(mx.float32)
        if self.temperature:
            kept = truncated_logits(logits / self.temperature, top_k=self.top_k, top_p=self.top_p)
            token = mx.random.categorical(kept, axis=-1, key=fold_in(key, position)).astype(mx.int32)
            if self.renormalize:
                logp = token_logps(kept, token)
            else:  # the operations of the loss, in their order: the same logits give the same bits
                logp = token_logps(logits, token, temperature=self.temperature)
        else:
            token = mx.argmax(logits, axis=-1).astype(mx.int32)
            logp = mx.zeros(token.shape)
        after = position + 1
        mine = mx.logical_and(after >= lengths, mx.logical_not(ended))
        places = mx.arange(tokens.shape[1]) == after
        tokens = mx.where(mx.logical_and(mine[:, None], places), token[:, None], tokens)
        over = mx.logical_or(_among(token, self.stop), after - lengths + 1 >= self.max_tokens)
        ended = mx.logical_or(ended, mx.logical_and(mine, over))
        return tokens, ended, cache, mine.astype(mx.float32), mx.where(mine, logp, 0.0)

    def logits(
        self, params: Params, tokens: mx.array, position: mx.array, cache: Tree, chunk: int
    ) -> tuple[mx.array, Tree]:
        """Return the logits [n, vocab] of the token after `position`."""
        if self.decode is None:
            logits = self.apply(params, tokens)
            _check_logits("apply_fn", logits, tokens.shape)
            return logits[:, position], cache
        new = tokens[:, :chunk] if chunk > 1 else tokens[:, position][:, None]
        logits, cache = self.decode(params, new, position - (chunk - 1), cache)
        _check_logits("decode", logits, new.shape)
        return logits[:, -1], cache


class Sampler:
    """Draws completions; call it with parameters, prompts and a key. Made by `sampler`.

    Attributes:
        max_tokens: the longest completion.
        temperature: 0 for the most probable token each time.
    """

    def __init__(
        self,
        apply_fn: Callable[..., mx.array],
        *,
        max_tokens: int,
        temperature: float,
        top_k: int | None,
        top_p: float | None,
        renormalize: bool,
        stop_tokens: Sequence[int],
        pad_token: int,
        init_cache: Callable[[Params, int, int], Tree] | None,
        decode: Decode | None,
        compile: bool,
    ):
        self.max_tokens, self.temperature = max_tokens, temperature
        self._decode, self._init_cache = decode, init_cache
        self._stop, self._pad = tuple(stop_tokens), pad_token
        drawing = _Drawing(apply_fn, decode, max_tokens, temperature, top_k, top_p, renormalize, self._stop)
        self._advance = mx.compile(drawing.draw) if compile else drawing.draw

    def __call__(
        self,
        params: Params,
        prompts: Sequence[Sequence[int]],
        key: mx.array,
        *,
        shortest: int | None = None,
        longest: int | None = None,
    ) -> Completions:
        """Complete every prompt: a pure function of its arguments.

        Args:
            params: what `apply_fn` takes.
            prompts: tokens, at least one a prompt.
            key: uint32 [2], for all that is random.
            shortest: the fewest tokens that any prompt has, over every call that is to share the compiled
                functions; this call's own when `None`.
            longest: likewise the most tokens.

        Returns:
            `Completions` with length `longest + max_tokens`.

        Raises:
            ValueError, TypeError: for a prompt without tokens or of a length outside the bounds, one that
                holds something else than tokens, no prompts at all, and a model whose logits do not fit.
        """
        caller = "sampler"
        check_key(caller, key)
        lengths = check_prompts(caller, prompts)
        shortest = min(lengths) if shortest is None else shortest
        longest = max(lengths) if longest is None else longest
        if min(lengths) < shortest or max(lengths) > longest:
            raise checks.error(
                caller,
                f"prompts must have {shortest} to {longest} tokens, got {min(lengths)} to {max(lengths)}",
            )
        length = longest + self.max_tokens
        rows = [[*prompt, *[self._pad] * (length - len(prompt))] for prompt in prompts]
        tokens, first = mx.array(rows, mx.int32), mx.array(lengths, mx.int32)
        ended = mx.zeros(len(prompts), mx.bool_)
        cache: Tree = self._init_cache(params, len(prompts), length) if self._init_cache else {}
        drawn, logps = [], []
        # A cache has to see every token; without one, nothing is to be done before the first draw.
        start = (shortest if self._decode else min(lengths)) - 1
        for position in range(start, max(lengths) + self.max_tokens - 1):
            at = mx.array(position, mx.int32)
            chunk = shortest if self._decode and position == start else 1
            tokens, ended, cache, mask, logp = self._advance(
                params, tokens, first, ended, cache, key, at, chunk
            )
            drawn.append(mask)
            logps.append(logp)
            mx.async_eval(tokens, ended, cache, mask, logp)
            # An early end changes no bit: what it leaves out would draw nothing.
            if (position - start + 1) % _LOOK_EVERY == 0 and ended.all().item():
                break
        completion_mask = self._spread(drawn, start, length)
        counts = completion_mask.sum(axis=1)
        stopped = (_among(tokens[:, 1:], self._stop) * completion_mask).max(axis=1)
        return Completions(
            tokens,
            completion_mask,
            self._spread(logps, start, length) if self.temperature else None,
            mx.logical_and(counts >= self.max_tokens, stopped == 0).astype(mx.float32)
            if self._stop
            else mx.zeros(len(prompts)),
        )

    @staticmethod
    def _spread(columns: list[mx.array], start: int, length: int) -> mx.array:
        """Stack columns from one place on into float32 [n, length - 1], zeros around them."""
        block = mx.stack(columns, axis=1)
        return mx.pad(block, [(0, 0), (start, length - 1 - start - len(columns))])


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
    init_cache: Callable[[Params, int, int], Tree] | None = None,
    decode: Decode | None = None,
    compile: bool = True,
) -> Sampler:
    """Build `sample(params, prompts, key) -> Completions`, a pure function of its arguments.

    A token is drawn from `softmax(logits / temperature)`, of which `top_k` and `top_p` may leave out the
    tail, until a stop token has been drawn or `max_tokens` have been. Rows are padded on the right, so a
    causal model needs no mask for them.

    Log-probabilities are those of `softmax(logits / temperature)` over the whole vocabulary: what a loss
    computes again from the same tokens, by the same operations on the logits, so that its importance ratios
    begin at 1. Truncation enters neither side of the ratio. With `renormalize=True` they are those of the
    distribution that was drawn from, truncation and all; ratios against the whole softmax then begin at the
    mass that was kept, below 1, and with a small `top_k` below the range that a clipped loss learns from.

    Args:
        apply_fn: `apply_fn(params, tokens [n, length]) -> logits [n, length, vocab]`, causal, as
            `functional` makes it. Without a cache it is run over the whole length for each token, which
            suits small models.
        max_tokens: the longest completion, in tokens.
        temperature: at least 0; 0 draws the most probable token each time, and gives no log-probabilities.
        top_k: keep the most probable tokens, as `truncated_logits` does.
        top_p: keep the most probable tokens of this mass.
        renormalize: whether log-probabilities are of the truncated distribution.
        stop_tokens: tokens that end a completion and belong to it.
        pad_token: fills the rows after the completion; any token of the model's vocabulary.
        init_cache: `init_cache(params, n, length) -> cache`, a tree of arrays; goes with `decode`.
        decode: `decode(params, tokens [n, s], start, cache) -> (logits [n, s, vocab], cache)`, run in place
            of `apply_fn`: first over the tokens that every prompt has, at `start` 0, then token by token,
            `start` (0-d int32) being the position of the first of the `s` tokens.
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
    checks.function(caller, "apply_fn", apply_fn)
    max_tokens = checks.integer(caller, "max_tokens", max_tokens, least=1)
    if isinstance(temperature, mx.array):
        raise TypeError(f"{caller}: temperature must be a Python number, got an array")
    temperature = checks.number(caller, "temperature", temperature, least=0)
    check_truncation(caller, top_k, top_p)
    pad_token = checks.integer(caller, "pad_token", pad_token, least=0)
    for token in stop_tokens:
        checks.integer(caller, "stop_tokens", token, least=0)
    if (init_cache is None) != (decode is None):
        raise checks.error(caller, "init_cache and decode must be given together, got one of them")
    return Sampler(
        apply_fn,
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        renormalize=renormalize,
        stop_tokens=stop_tokens,
        pad_token=pad_token,
        init_cache=init_cache,
        decode=decode,
        compile=compile,
    )


def _among(tokens: mx.array, some: tuple[int, ...]) -> mx.array:
    if not some:
        return mx.zeros(tokens.shape, mx.bool_)
    return (tokens[..., None] == mx.array(some, mx.int32)).any(axis=-1)


def _check_logits(name: str, logits: mx.array, tokens: tuple[int, ...]) -> None:
    if logits.ndim != 3 or logits.shape[:2] != tokens:
        raise checks.error(
            "sampler", f"{name} must return logits [{tokens[0]}, {tokens[1]}, vocab], got {logits.shape}"
        )
