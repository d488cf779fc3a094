"""Multi-token prediction: heads that predict what comes after the next token, and their loss."""

from collections.abc import Callable, Sequence

import mlx.core as mx
import mlx.nn as nn

from purestep._core import checks
from purestep._core.mean import Mean
from purestep._losses.core import reduce
from purestep._losses.tokens.chunked import linear_cross_entropy
from purestep._losses.tokens.cross_entropy import cross_entropy


class MultiTokenPrediction(nn.Module):
    """A chain of causal heads over the hidden states of a language model, each looking one token further.

    With `h[0]` the hidden states of the model, `e` the embedding of its input tokens, and `k` from 1 on:

        h[k]_i = block_k(project_k(concat(norm(h[k - 1]_i), norm(e_{i + k}))))

    where `block_k` is one causal transformer block. `h[k]_i` is made of tokens up to `i + k`, and the head
    that the model itself uses turns it into a prediction of token `i + k + 1`: at every depth of the token
    after the last one seen. Embedding and output head stay the model's own, one set of parameters; what is
    left of this module after training can be thrown away, or used to draft tokens.

    Args:
        width: of the hidden states and the embeddings, a multiple of `heads`.
        heads: attention heads of each block; `width / heads` is even.
        n_predict: how many heads, so how many tokens are predicted after the next one.
        feed_width: of the feed-forward layers, `4 * width` if not given.
        eps: what the norms add to the mean square.

    Raises:
        ValueError: if the widths do not fit, or `n_predict` is less than 1.

    Reference: DeepSeek-V3, arXiv:2412.19437, section 2.2; Gloeckle et al., arXiv:2404.19737.

    >>> mtp, embedding = MultiTokenPrediction(8, heads=2), nn.Embedding(5, 8)
    >>> tokens = mx.array([[1, 2, 3, 4, 0, 1]])
    >>> [states.shape for states in mtp(embedding(tokens), embedding(tokens))]
    [(1, 6, 8), (1, 5, 8), (1, 4, 8)]
    """

    def __init__(
        self, width: int, heads: int, n_predict: int = 2, *, feed_width: int | None = None, eps: float = 1e-6
    ):
        super().__init__()
        caller = "MultiTokenPrediction"
        width = checks.integer(caller, "width", width, least=1)
        heads = checks.integer(caller, "heads", heads, least=1)
        n_predict = checks.integer(caller, "n_predict", n_predict, least=1)
        if width % (2 * heads):
            raise checks.error(caller, f"width must be an even multiple of heads={heads}, got {width}")
        feed_width = 4 * width if feed_width is None else feed_width
        feed_width = checks.integer(caller, "feed_width", feed_width, least=1)
        self.heads = [MultiTokenHead(width, heads, feed_width, eps) for _ in range(n_predict)]

    def __call__(self, hidden: mx.array, embedded: mx.array) -> list[mx.array]:
        """Return the hidden states of every depth, the model's own first.

        Args:
            hidden: [batch, length, width], what the model's output head is applied to.
            embedded: [batch, length, width], the embedding of the tokens that `hidden` was made of.

        Returns:
            `n_predict + 1` arrays, the one of depth `k` [batch, length - k, width].

        Raises:
            ValueError: if the shapes differ, or there are no more tokens than heads.
        """
        caller = "MultiTokenPrediction"
        if hidden.ndim != 3:
            raise checks.error(caller, f"hidden must be [batch, length, width], got {hidden.shape}")
        reduce.same_shape(caller, "embedded", embedded, "hidden", hidden)
        if hidden.shape[1] <= len(self.heads):
            raise checks.error(
                caller, f"length must be greater than n_predict={len(self.heads)}, got {hidden.shape[1]}"
            )
        states = [hidden]
        for depth, head in enumerate(self.heads, start=1):
            # Each head drops one position, the last of the head before: it has no token to go with it.
            states.append(head(states[-1][:, :-1], embedded[:, depth:]))
        return states


class MultiTokenHead(nn.Module):
    """One depth: join a hidden state with the embedding of the token after it, and one causal block."""

    def __init__(self, width: int, heads: int, feed_width: int, eps: float):
        super().__init__()
        self.count = heads
        self.hidden_norm, self.embedding_norm = nn.RMSNorm(width, eps), nn.RMSNorm(width, eps)
        self.project = nn.Linear(2 * width, width, bias=False)
        self.attention_norm, self.feed_norm = nn.RMSNorm(width, eps), nn.RMSNorm(width, eps)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.gate = nn.Linear(width, feed_width, bias=False)
        self.up = nn.Linear(width, feed_width, bias=False)
        self.down = nn.Linear(feed_width, width, bias=False)
        self.norm = nn.RMSNorm(width, eps)

    def __call__(self, hidden: mx.array, embedded: mx.array) -> mx.array:
        """Return [batch, length, width] for two arrays of that shape."""
        joined = [self.hidden_norm(hidden), self.embedding_norm(embedded)]
        x = self.project(mx.concatenate(joined, axis=-1))
        x = x + self._attend(self.attention_norm(x))
        fed = self.feed_norm(x)
        x = x + self.down(nn.silu(self.gate(fed)) * self.up(fed))
        # The output head is the model's, and so is used to normalized states.
        return self.norm(x)

    def _attend(self, x: mx.array) -> mx.array:
        batch, length, width = x.shape
        size = width // self.count
        q, k, v = self.qkv(x).reshape(batch, length, 3, self.count, size).transpose(2, 0, 3, 1, 4)
        q, k = (mx.fast.rope(z, size, traditional=False, base=1e4, scale=1.0, offset=0) for z in (q, k))
        mixed = mx.fast.scaled_dot_product_attention(q, k, v, scale=size**-0.5, mask="causal")
        return self.out(mixed.transpose(0, 2, 1, 3).reshape(batch, length, width))


def multi_token_loss(
    states: Sequence[mx.array],
    output: mx.array | Callable[[mx.array], mx.array],
    targets: mx.array,
    *,
    mtp_weight: float = 0.3,
    weights: mx.array | None = None,
    ignore_index: int | None = None,
) -> tuple[Mean, dict[str, Mean]]:
    """Return the loss of the next token plus a share of the losses of the tokens after it.

    With `L_k` the sum of cross entropies at depth `k` and `D` heads, over the `T` targets that count:

        (L_0 + mtp_weight / D * (L_1 + ... + L_D)) / T

    Every depth is divided by the same `T`, as in the paper, though depth `k` has `k` targets fewer a
    sequence: so parts of a batch merge exactly.

    Args:
        states: `D + 1` hidden states, [batch, length - k, width] for `k` from 0 on, as
            `MultiTokenPrediction` returns them; entry `i` of depth `k` predicts `targets[:, i + k]`.
        output: the model's output head, shared by all depths: its matrix [vocab, width], and the logits
            are never whole (`linear_cross_entropy`); or a function from states to logits [..., vocab].
        targets: integer [batch, length], the tokens after the inputs.
        mtp_weight: at least 0; 0 leaves the loss of the next token.
        weights: [batch, length] or a shape that broadcasts to it: what each target counts, at any depth.
        ignore_index: targets of this value are left out.

    Returns:
        The `Mean`, and for each depth the mean over its own targets: `next_token_loss`, `mtp_loss_1`, ...

    Raises:
        ValueError: if the shapes do not fit, or `mtp_weight` is out of its range.
        TypeError: if the dtypes do not.

    Reference: DeepSeek-V3, arXiv:2412.19437, equations 21 to 25.

    >>> states = [mx.zeros((1, 4, 8)), mx.zeros((1, 3, 8)), mx.zeros((1, 2, 8))]
    >>> loss, metrics = multi_token_loss(states, mx.zeros((5, 8)), mx.array([[0, 1, 2, 3]]))
    >>> {name: mean.weight.item() for name, mean in metrics.items()}
    {'next_token_loss': 4.0, 'mtp_loss_1': 3.0, 'mtp_loss_2': 2.0}
    """
    caller = "multi_token_loss"
    mtp_weight = checks.number(caller, "mtp_weight", mtp_weight, least=0)
    _check(caller, states, targets)
    weights = reduce.counts(caller, weights, targets.shape, "targets'")
    means = []
    for depth, state in enumerate(states):
        options = {
            "weights": None if weights is None else weights[:, depth:],
            "ignore_index": ignore_index,
        }
        if isinstance(output, mx.array):
            means.append(linear_cross_entropy(state, output, targets[:, depth:], **options))
        else:
            means.append(cross_entropy(output(state), targets[:, depth:], **options))
    first, *later = means
    total = first.total
    if later and not (checks.is_number(mtp_weight) and mtp_weight == 0):
        total = total + mtp_weight / len(later) * sum(mean.total for mean in later)
    names = ["next_token_loss", *(f"mtp_loss_{depth}" for depth in range(1, len(means)))]
    return Mean(total, first.weight), dict(zip(names, means, strict=True))


def _check(caller: str, states: Sequence[mx.array], targets: mx.array) -> None:
    if isinstance(states, mx.array) or not states:
        raise checks.error(caller, "states must be a list of arrays, one for each depth")
    reduce.integers(caller, "targets", targets)
    if targets.ndim != 2:
        raise checks.error(caller, f"targets must be [batch, length], got {targets.shape}")
    batch, length = targets.shape
    for depth, state in enumerate(states):
        reduce.floating(caller, f"states[{depth}]", state)
        if state.ndim != 3 or state.shape[:2] != (batch, length - depth):
            raise checks.error(
                caller,
                f"states[{depth}] must be [{batch}, {length - depth}, width], {depth} less than targets' "
                f"{targets.shape}, got {state.shape}",
            )
