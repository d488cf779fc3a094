"""mlx-examples' mnist on purestep: a perceptron, trained in epochs."""

from itertools import pairwise

import mlx.core as mx
import mlx.nn as nn

import purestep as ps


class MLP(nn.Module):
    """A perceptron with ReLU."""

    def __init__(self, sizes):
        super().__init__()
        self.layers = [nn.Linear(a, b) for a, b in pairwise(sizes)]

    def __call__(self, x):
        for layer in self.layers[:-1]:
            x = nn.relu(layer(x))
        return self.layers[-1](x)


def train(images, labels, test_images, test_labels, *, epochs=10, batch_size=256, rate=0.1, callbacks=()):
    """Train; print the accuracy after each epoch; return the result."""
    apply, params, _ = ps.functional(MLP([images.shape[-1], 32, 32, 10]))

    def loss_fn(params, batch, rng):
        logits = apply(params, batch["x"])
        right = (logits.argmax(-1) == batch["y"]).astype(mx.float32)
        return ps.losses.cross_entropy(logits, batch["y"]), {"accuracy": ps.Mean.of(right)}

    transform = ps.optimizers.sgd(rate)
    source = ps.data.Batches({"x": images, "y": labels}, batch_size, remainder="drop")
    test = [{"x": test_images, "y": test_labels}]
    return ps.fit(
        ps.compiled(ps.train_step(loss_fn, transform)),
        ps.TrainState.create(params, transform),
        source,
        epochs=epochs,
        evaluate=ps.Evaluation(ps.compiled(ps.eval_step(loss_fn)), test, every=len(source)),
        callbacks=[ps.callbacks.log(), *callbacks],
    )
