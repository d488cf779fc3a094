"""Multi-token prediction: heads that predict the tokens after the next one, and their loss."""

from collections.abc import Callable, Sequence

import mlx.core as mx
import mlx.nn as nn

from purestep._core import checks
from purestep._core.mean import Mean
from purestep._losses.core import inputs, weighting
from purestep._losses.tokens.chunked import linear_cross_entropy
from purestep._losses.tokens.cross_entropy import cross_entropy


class MultiTokenPrediction(nn.Module):
    """A chain of causal heads over a language model's hidden states; each predicts one token further ahead.

    Let `h[0]` be the model's hidden states, and `e` the embedding of its input tokens. For `k` from 1 on:

        h[k]_i = block_k(project_k(concat(norm(h[k - 1]_i), norm(e_{i + k}))))

    Each `block_k` is one causal transformer block. `h[k]_i` depends on tokens up to `i + k`, and the model's
    output head turns it into a prediction of token `i + k + 1`: each depth predicts the token after the last
    one it has seen. The model's embedding and output head are shared by all depths. After training, this
    module can be discarded, or used to draft tokens.

    Args:
        width: width of hidden states and embeddings, a multiple of `heads`.
        heads: attention heads of each block; `width / heads` is even.
        n_predict: number of heads: how many tokens are predicted after the next one.
        feed_width: width of the feed-forward layers; `4 * width` if `None`.
        eps: added to the mean square by the norms.

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
        """Return the hidden states of every depth, beginning with those of the model.

        Args:
            hidden: [batch, length, width], input of the model's output head.
            embedded: [batch, length, width], embedding of the model's input tokens.

        Returns:
            `n_predict + 1` arrays; that of depth `k` is [batch, length - k, width].

        Raises:
            ValueError: if the shapes differ, or there are no more tokens than heads.
        """
        caller = "MultiTokenPrediction"
        if hidden.ndim != 3:
            raise checks.error(caller, f"hidden must be [batch, length, width], got {hidden.shape}")
        inputs.same_shape(caller, "embedded", embedded, "hidden", hidden)
        if hidden.shape[1] <= len(self.heads):
            raise checks.error(
                caller, f"length must be greater than n_predict={len(self.heads)}, got {hidden.shape[1]}"
            )
        states = [hidden]
        for depth, head in enumerate(self.heads, start=1):
            # Each head drops the last position of the head before: no later token exists for it.
            states.append(head(states[-1][:, :-1], embedded[:, depth:]))
        return states


class MultiTokenHead(nn.Module):
    """One depth: joins a hidden state with the embedding of the next token, then applies one causal block."""

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
        # The model's output head expects normalized states.
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
    """Return the loss of the next token plus the weighted losses of the tokens after it.

    Let `L_k` be the sum of cross entropies at depth `k`, `D` the number of heads, and `T` the number of
    targets (the sum of their weights):

        (L_0 + mtp_weight / D * (L_1 + ... + L_D)) / T

    Every depth is divided by the same `T`, as in the paper, although depth `k` has `k` targets fewer in each
    sequence. This makes parts of a batch merge exactly.

    Args:
        states: `D + 1` hidden states, [batch, length - k, width] for `k` from 0 on, as
            `MultiTokenPrediction` returns them; entry `i` of depth `k` predicts `targets[:, i + k]`.
        output: the model's output head, shared by all depths: its matrix [vocab, width], which is used with
            `linear_cross_entropy`; or a function from states to logits [..., vocab].
        targets: integer [batch, length], the tokens after the inputs.
        mtp_weight: at least 0; with 0 only the loss of the next token remains.
        weights: [batch, length] or a shape that broadcasts to it: weight of each target, at any depth.
        ignore_index: targets of this value are skipped; `None`: no target is.

    Returns:
        `(Mean, metrics)`. The metrics `next_token_loss`, `mtp_loss_1`, ... are the means of each depth over
        its own targets.

    Raises:
        ValueError: if the shapes do not fit, or `mtp_weight` is out of its range.
        TypeError: if the dtypes do not fit.

    Reference: DeepSeek-V3, arXiv:2412.19437, equations 21 to 25.

    >>> states = [mx.zeros((1, 4, 8)), mx.zeros((1, 3, 8)), mx.zeros((1, 2, 8))]
    >>> loss, metrics = multi_token_loss(states, mx.zeros((5, 8)), mx.array([[0, 1, 2, 3]]))
    >>> {name: mean.weight.item() for name, mean in metrics.items()}
    {'next_token_loss': 4.0, 'mtp_loss_1': 3.0, 'mtp_loss_2': 2.0}
    """
    caller = "multi_token_loss"
    mtp_weight = checks.number(caller, "mtp_weight", mtp_weight, least=0)
    _check(caller, states, targets)
    weights = weighting.broadcast(caller, weights, targets.shape, "targets'")
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
    inputs.integers(caller, "targets", targets)
    if targets.ndim != 2:
        raise checks.error(caller, f"targets must be [batch, length], got {targets.shape}")
    batch, length = targets.shape
    for depth, state in enumerate(states):
        inputs.floating(caller, f"states[{depth}]", state)
        if state.ndim != 3 or state.shape[:2] != (batch, length - depth):
            raise checks.error(
                caller,
                f"states[{depth}] must be [{batch}, {length - depth}, width], {depth} less than targets' "
                f"{targets.shape}, got {state.shape}",
            )
