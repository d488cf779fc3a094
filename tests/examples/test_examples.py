"""Programs of mlx-examples and mlx_lm in at most half their lines, with the losses of MLX's own loop.

The reference is a loop with `nn.value_and_grad` and MLX's mutable optimizers, with bias correction on, as
purestep's always are.
"""

from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pytest
from mlx_lm.models import llama
from mlx_lm.tuner import trainer
from mlx_lm.tuner.callbacks import TrainingCallback
from mlx_lm.tuner.utils import linear_to_lora_layers

import purestep as ps
from tests.examples import cifar, lora, mnist, transformer_lm

# Lines of mlx-examples' main.py files, and of mlx_lm/tuner/trainer.py.
THEIRS = {"mnist": 104, "cifar": 156, "transformer_lm": 211, "lora": 380}
CLOSE = {"rtol": 2e-5, "atol": 1e-6}


def seeded(number, make):
    """Return a model whose weights the seed decides; the global stream is left alone."""
    with ps.rng.scope(mx.random.key(number)):
        model = make()
        mx.eval(model.parameters())
    return model


class Losses(ps.callbacks.Callback):
    """Keeps the loss of each step."""

    def __init__(self):
        self.losses = []

    def on_step_end(self, progress):
        self.losses.append(progress.metrics["loss"].item())


def theirs(model, optimizer, loss_fn, batches):
    """Return the losses of MLX's own loop."""
    step, losses = nn.value_and_grad(model, loss_fn), []
    for batch in batches:
        loss, gradients = step(model, *batch)
        optimizer.update(model, gradients)
        mx.eval(model.state, optimizer.state)
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("name", THEIRS)
def test_a_program_has_at_most_half_the_lines(name):
    assert 2 * len(Path(__file__).with_name(f"{name}.py").read_text().splitlines()) <= THEIRS[name]


def test_mnist():
    generator = np.random.default_rng(0)
    images = mx.array(generator.random((640, 20), np.float32))
    labels = mx.array(generator.integers(0, 10, 640).astype(np.int32))
    seen = Losses()
    options = {"epochs": 1, "batch_size": 64, "rate": 0.1, "callbacks": [seen]}
    with ps.rng.scope(mx.random.key(0)):  # the program makes its model
        result = mnist.train(images, labels, images, labels, **options)
    assert result.history.column("eval_accuracy")[0] == [10]
    source = ps.data.Batches({"x": images, "y": labels}, 64)
    batches = [(batch["x"], batch["y"]) for batch in map(source.at, range(10))]
    model = seeded(0, lambda: mnist.MLP([20, 32, 32, 10]))
    want = theirs(
        model, optim.SGD(0.1), lambda m, x, y: nn.losses.cross_entropy(m(x), y, reduction="mean"), batches
    )
    np.testing.assert_allclose(seen.losses, want, **CLOSE)


class Network(nn.Module):
    """A convolution with BatchNorm, as a ResNet has."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm(4)
        self.head = nn.Linear(4, 10)

    def __call__(self, x):
        return self.head(nn.relu(self.norm(self.first(x))).mean((1, 2)))


def test_cifar(tmp_path):
    generator = np.random.default_rng(0)
    data = {
        "x": generator.random((80, 32, 32, 3), np.float32),
        "y": generator.integers(0, 10, 80).astype(np.int32),
    }
    seen = Losses()
    options = {"out": tmp_path / "run", "epochs": 1, "batch_size": 8, "rate": 1e-2, "augment": None}
    result = cifar.train(seeded(0, Network), data, data, callbacks=[seen], **options)
    assert result.history.column("test_accuracy")[0] == [10]
    model, source = seeded(0, Network), ps.data.Batches(data, 8)
    batches = [(batch["x"], batch["y"]) for batch in map(source.at, range(10))]
    want = theirs(
        model,
        optim.Adam(1e-2, bias_correction=True),
        lambda m, x, y: nn.losses.cross_entropy(m(x), y).mean(),
        batches,
    )
    np.testing.assert_allclose(seen.losses, want, **CLOSE)
    running = result.state.model_state["norm"]["running_mean"]
    np.testing.assert_allclose(np.array(running), np.array(model.norm.running_mean), rtol=1e-3)

    images = cifar.augmented({"x": mx.array(data["x"][:6])}, mx.random.key(3))["x"]
    assert images.shape == (6, 32, 32, 3)


def test_transformer_lm():
    tokens = mx.random.randint(0, 32, (2000,), key=mx.random.key(0))
    seen, make = Losses(), lambda: transformer_lm.TransformerLM(32, 1, 16, 2)
    options = {"steps": 10, "context": 8, "warmup": 5, "rate": 1e-2, "every": 5, "callbacks": [seen]}
    result = transformer_lm.train(seeded(1, make), tokens, tokens[:200], **options)
    assert result.history.last("eval_perplexity") == pytest.approx(np.exp(result.history.last("eval_loss")))
    source = ps.data.TokenWindows(tokens, 2, 8)
    model, losses = seeded(1, make), []
    optimizer = optim.AdamW(learning_rate=1e-2, weight_decay=1e-5, bias_correction=True)

    def loss_fn(model, inputs, targets):
        return nn.losses.cross_entropy(model(inputs), targets, reduction="mean")

    for number in range(10):
        optimizer.learning_rate = min(1, number / 5) * 1e-2
        batch = source.at(number)
        losses += theirs(model, optimizer, loss_fn, [(batch["inputs"], batch["targets"])])
    np.testing.assert_allclose(seen.losses, losses, **CLOSE)


class Reports(TrainingCallback):
    """Keeps the losses that mlx_lm reports."""

    def __init__(self):
        self.losses = []

    def on_train_loss_report(self, train_info):
        self.losses.append(train_info["train_loss"])


def lora_model():
    return seeded(0, _lora_model)


def _lora_model():
    model = llama.Model(llama.ModelArgs("llama", 32, 2, 64, 4, 1e-5, 64))
    model.freeze()
    linear_to_lora_layers(model, 2, {"rank": 4, "scale": 20.0, "dropout": 0.0})
    return model


def test_lora(tmp_path):
    generator = np.random.default_rng(0)
    records = [(generator.integers(1, 64, generator.integers(6, 30)).tolist(), 0) for _ in range(16)]

    def as_dict(tokens, lengths):
        places = mx.arange(1, tokens.shape[1])
        learnt = (places >= lengths[:, 0:1]) & (places <= lengths[:, 1:])
        return {"inputs": tokens[:, :-1], "targets": tokens[:, 1:], "weights": learnt.astype(mx.float32)}

    np.random.seed(0)
    batches = trainer.iterate_batches(records, 4, 64, loop=True)
    seen = Losses()
    sequences = [tokens for tokens, _ in records]
    result = lora.train(
        lora_model(), sequences, sequences, out=tmp_path / "ours", iters=10, rate=1e-2, steps_per_eval=5,
        source=(as_dict(*batch) for batch in batches), callbacks=[seen], tokens_per_batch=256,
    )  # fmt: skip
    assert result.history.column("val_loss")[0] == [5, 10]
    assert set(mx.load(str(tmp_path / "ours" / "adapters.safetensors"))) == {
        path for path, _ in ps.tree.items(result.state.params)
    }
    np.random.seed(0)
    reports = Reports()
    trainer.train(
        lora_model(),
        optim.AdamW(1e-2, bias_correction=True),
        records,
        args=trainer.TrainingArgs(
            batch_size=4, iters=10, steps_per_report=1, max_seq_length=64, steps_per_save=100,
            adapter_file=str(tmp_path / "theirs.safetensors"),
        ),
        training_callback=reports,
    )  # fmt: skip
    np.testing.assert_allclose(seen.losses, reports.losses, rtol=1e-4)
