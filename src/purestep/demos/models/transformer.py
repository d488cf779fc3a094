"""A small character transformer."""

import mlx.core as mx
import mlx.nn as nn


class Transformer(nn.Module):
    """A pre-norm decoder with rotary positions, squared ReLU and tied embeddings.

    Beside its character, each position looks up its last two and last three characters in a hashed table
    (n-gram embeddings, arXiv:2501.16975): a lookup costs no matrix product, and a run of two minutes on a
    CPU need not spend them on learning which letters follow which.

    Args:
        vocabulary: number of characters.
        width: of the residual stream, a multiple of `heads`.
        layers: number of blocks.
        heads: attention heads a block.
        buckets: rows of the hashed table for each n-gram length; a power of two.
    """

    def __init__(
        self, vocabulary: int, width: int = 48, layers: int = 2, heads: int = 3, buckets: int = 4096
    ):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.embedding.weight = 0.02 * mx.random.normal((vocabulary, width))
        self.ngrams = NgramEmbedding(width, buckets)
        self.blocks = [Block(width, heads) for _ in range(layers)]
        self.norm = nn.RMSNorm(width)

    def __call__(self, tokens: mx.array) -> mx.array:
        """Return logits [batch, seq, vocabulary] for tokens [batch, seq]."""
        x = self.embedding(tokens) + self.ngrams(tokens)
        for block in self.blocks:
            x = block(x)
        return self.embedding.as_linear(self.norm(x))


class NgramEmbedding(nn.Module):
    """The sum of one table row for each of the n-grams that end at a position."""

    lengths = (2, 3)

    def __init__(self, width: int, buckets: int):
        super().__init__()
        self.bits = buckets.bit_length() - 1
        self.table = nn.Embedding(len(self.lengths) << self.bits, width)
        self.table.weight = 0.02 * mx.random.normal(self.table.weight.shape)

    def __call__(self, tokens: mx.array) -> mx.array:
        """Return [batch, seq, width] for tokens [batch, seq]."""
        seq = tokens.shape[1]
        tokens = tokens.astype(mx.uint32) + 1
        code, rows = tokens, []
        for index, length in enumerate(self.lengths):
            earlier = mx.pad(tokens, [(0, 0), (length - 1, 0)])[:, :seq]
            code = code * 0x01000193 + earlier
            bucket = (code * 0x9E3779B1) >> (32 - self.bits)  # Fibonacci hashing, modulo 2**32
            rows.append(bucket + (index << self.bits))
        return self.table(mx.stack(rows, axis=-1)).sum(axis=-2)


class Block(nn.Module):
    """Causal self-attention, then a feed-forward layer, each on a normalized residual stream."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.attention_norm, self.feed_norm = nn.RMSNorm(width), nn.RMSNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.up = nn.Linear(width, 2 * width, bias=False)
        self.down = nn.Linear(2 * width, width, bias=False)
        # Each block starts as the identity.
        self.out.weight, self.down.weight = mx.zeros((width, width)), mx.zeros((width, 2 * width))

    def __call__(self, x: mx.array) -> mx.array:
        """Return [batch, seq, width] for x of the same shape."""
        x = x + self.attend(self.attention_norm(x))
        return x + self.down(mx.square(nn.relu(self.up(self.feed_norm(x)))))

    def attend(self, x: mx.array) -> mx.array:
        """Return causal self-attention over x [batch, seq, width]."""
        batch, seq, width = x.shape
        size = width // self.heads
        q, k, v = self.qkv(x).reshape(batch, seq, 3, self.heads, size).transpose(2, 0, 3, 1, 4)
        q, k = (mx.fast.rope(z, size, traditional=False, base=1000.0, scale=1.0, offset=0) for z in (q, k))
        mixed = mx.fast.scaled_dot_product_attention(q, k, v, scale=size**-0.5, mask="causal")
        return self.out(mixed.transpose(0, 2, 1, 3).reshape(batch, seq, width))
