"""mlx-examples' transformer_lm on purestep: a decoder with a warm-up, validation and perplexity."""

import mlx.core as mx
import mlx.nn as nn

import purestep as ps


class TransformerLM(nn.Module):
    """A decoder-only transformer with sinusoidal positions."""

    def __init__(self, vocabulary, layers, width, heads):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.positions = nn.SinusoidalPositionalEncoding(width)
        self.transformer = nn.TransformerEncoder(layers, width, heads, norm_first=True)
        self.head = nn.Linear(width, vocabulary)

    def __call__(self, tokens):
        length = tokens.shape[1]
        mask = nn.MultiHeadAttention.create_additive_causal_mask(length)
        x = self.embedding(tokens) + self.positions(mx.arange(length))
        return self.head(self.transformer(x, mask))


def train(
    model, tokens, validation, *, steps, batch_size=2, context=1024, rate=3e-4, decay=1e-5, warmup=200,
    every=1000, log_every=10, source=None, callbacks=(),
):  # fmt: skip
    """Train, report every 10 steps, validate every 1,000; return the result."""
    apply, params, _ = ps.functional(model)

    def loss_fn(params, batch, rng):
        logits = apply(params, batch["inputs"], rng=rng)
        return ps.losses.cross_entropy(logits, batch["targets"], ignore_index=-100)

    transform = ps.optimizers.adamw(ps.schedules.warmup_constant(0.0, rate, warmup), weight_decay=decay)
    return ps.fit(
        ps.compiled(ps.train_step(loss_fn, transform)),
        ps.TrainState.create(params, transform),
        ps.data.TokenWindows(tokens, batch_size, context) if source is None else source,
        steps=steps,
        evaluate=ps.Evaluation(
            ps.compiled(ps.eval_step(loss_fn)),
            ps.data.consecutive_windows(validation, batch_size, context, ignore_index=-100),
            every=every,
            perplexity=True,
        ),
        callbacks=[ps.callbacks.log(), *callbacks],
        log_every=log_every,
    )
