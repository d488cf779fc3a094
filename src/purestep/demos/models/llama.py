"""A small Llama of bytes, with the names of mlx-lm's `llama` model."""

import mlx.core as mx
import mlx.nn as nn

BYTES = 256
EPSILON, BASE = 1e-5, 10000.0


class Attention(nn.Module):
    """Causal self-attention with rotary positions."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (
            nn.Linear(width, width, bias=False) for _ in range(4)
        )

    def __call__(self, x: mx.array) -> mx.array:
        """Return [batch, seq, width] for x of the same shape."""
        batch, seq, width = x.shape
        size = width // self.heads
        q, k, v = (
            project(x).reshape(batch, seq, self.heads, size).transpose(0, 2, 1, 3)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = (mx.fast.rope(z, size, traditional=False, base=BASE, scale=1.0, offset=0) for z in (q, k))
        mixed = mx.fast.scaled_dot_product_attention(q, k, v, scale=size**-0.5, mask="causal")
        return self.o_proj(mixed.transpose(0, 2, 1, 3).reshape(batch, seq, width))


class FeedForward(nn.Module):
    """A feed-forward layer with a SiLU gate."""

    def __init__(self, width: int, inner: int):
        super().__init__()
        self.gate_proj, self.up_proj = (nn.Linear(width, inner, bias=False) for _ in range(2))
        self.down_proj = nn.Linear(inner, width, bias=False)

    def __call__(self, x: mx.array) -> mx.array:
        """Return [batch, seq, width] for x of the same shape."""
        return self.down_proj(nn.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """Attention, then a feed-forward layer, each on the normalized residual stream."""

    def __init__(self, width: int, heads: int, inner: int):
        super().__init__()
        self.self_attn, self.mlp = Attention(width, heads), FeedForward(width, inner)
        self.input_layernorm, self.post_attention_layernorm = (
            nn.RMSNorm(width, eps=EPSILON) for _ in range(2)
        )

    def __call__(self, x: mx.array) -> mx.array:
        """Return [batch, seq, width] for x of the same shape."""
        x = x + self.self_attn(self.input_layernorm(x))
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    """The embeddings, the blocks and the last norm."""

    def __init__(self, width: int, layers: int, heads: int, inner: int):
        super().__init__()
        self.embed_tokens = nn.Embedding(BYTES, width)
        self.layers = [Block(width, heads, inner) for _ in range(layers)]
        self.norm = nn.RMSNorm(width, eps=EPSILON)

    def __call__(self, tokens: mx.array) -> mx.array:
        """Return hidden states [batch, seq, width] for tokens [batch, seq]."""
        x = self.embed_tokens(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)


class Llama(nn.Module):
    """A pre-norm decoder with tied embeddings.

    Args:
        width: size of the residual stream, a multiple of `heads`.
        layers: number of blocks.
        heads: attention heads per block.
        inner: width of the feed-forward layers.
    """

    def __init__(self, width: int = 96, layers: int = 3, heads: int = 4, inner: int = 256):
        super().__init__()
        self.model = Decoder(width, layers, heads, inner)
        self.model.embed_tokens.weight = 0.02 * mx.random.normal((BYTES, width))

    def __call__(self, tokens: mx.array) -> mx.array:
        """Return logits [batch, seq, 256] for tokens [batch, seq]."""
        return self.model.embed_tokens.as_linear(self.model(tokens))
