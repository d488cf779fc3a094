"""Small modules for tests of adapters."""

import mlx.core as mx
import mlx.nn as nn

import purestep as ps

KEY = mx.random.key(7)


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.q_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width)
        self.norm = nn.RMSNorm(width)
        self.dropout = nn.Dropout(0.0)

    def __call__(self, x):
        return x + self.v_proj(mx.tanh(self.q_proj(self.norm(x))))


class Tied(nn.Module):
    """Token logits through two blocks; the embedding is the output layer too."""

    def __init__(self, vocabulary=48, width=32):
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.layers = [Block(width), Block(width)]

    def __call__(self, tokens):
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.embed.as_linear(x)


ALL = ["embed", "layers.*_proj"]
TOKENS = mx.array([[1, 2, 3, 4], [5, 6, 7, 40]])


def tied(dtype=mx.float32, mode=None):
    """Return the module with first weights that do not depend on the global stream."""
    with ps.rng.scope(mx.random.key(0)):
        module = Tied()
        module.set_dtype(dtype)
        if mode:
            nn.quantize(module, mode=mode, group_size=32 if mode == "affine" else None)
        mx.eval(module.parameters())
    return module


def trained(module, seed=1, size=0.05):
    """Return an adapted module whose arrays have moved from their first values."""
    params = ps.functional(module)[1]
    key = mx.random.key(seed)
    moved = ps.tree.map(lambda p: p + size * mx.random.normal(p.shape, key=key).astype(p.dtype), params)
    ps.write_back(module, moved)
    return module


def same(first, second):
    """Return whether two trees of arrays are equal bit for bit."""
    a, b = dict(ps.tree.items(first)), dict(ps.tree.items(second))
    return a.keys() == b.keys() and all(
        a[path].dtype == b[path].dtype and bool(mx.array_equal(a[path], b[path])) for path in a
    )
