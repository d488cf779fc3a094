"""`functional` computes with the library's gradients: the same values, float32 sums, MLX left alone."""

import threading

import mlx.core as mx
import mlx.nn as nn
import pytest

import purestep as ps

TOKENS = mx.where(
    mx.random.uniform(shape=(2, 1024), key=mx.random.key(0)) < 0.3,
    3,
    mx.random.randint(0, 40, (2, 1024), key=mx.random.key(1)),
)
NAMES = [(mx, "addmm"), (mx.fast, "rms_norm"), (mx.fast, "layer_norm")]


class Own(nn.Module):
    """A norm as mlx_lm's Gemma has it."""

    def __init__(self, width):
        super().__init__()
        self.weight = mx.zeros(width)

    def __call__(self, x):
        return mx.fast.rms_norm(x, 1.0 + self.weight, 1e-5)


class Model(nn.Module):
    def __init__(self, width=16):
        super().__init__()
        self.embedding = nn.Embedding(40, width)
        self.conv = nn.Conv1d(width, width, 3, padding=1)
        self.group = nn.GroupNorm(4, width)
        self.norms = [nn.LayerNorm(width), nn.RMSNorm(width), Own(width)]
        self.up = nn.Linear(width, width)
        self.act = [nn.GELU(), nn.GELU("precise"), nn.SiLU(), nn.Mish(), nn.gelu]

    def __call__(self, tokens):
        x = self.embedding(tokens)
        x = x + self.group(self.conv(x))
        for norm in self.norms:
            x = x + norm(x)
        x = self.up(x)
        for act in self.act:
            x = x + act(x)
        return x


@pytest.fixture
def model():
    with ps.rng.scope(mx.random.key(2)):
        model = Model()
        mx.eval(model.parameters())
    return model


def gradients(apply, params, dtype):
    def loss(params):
        out = apply(ps.tree.cast(params, dtype), TOKENS)
        return mx.square(out.astype(mx.float32)).mean()

    return mx.grad(loss)(params)


def test_values_are_the_modules_bit_for_bit(model):
    for dtype in (mx.float32, mx.bfloat16):
        model.set_dtype(dtype)
        apply, params, _ = ps.functional(model)
        few = TOKENS[:, :256]
        assert mx.array_equal(apply(params, few), model(few))
        if dtype == mx.bfloat16:
            assert mx.array_equal(apply(params, TOKENS), model(TOKENS))


def test_values_of_large_float32_activations_are_the_modules_to_rounding(model):
    """A CPU has exponentials of its own for them."""
    apply, params, _ = ps.functional(model)
    got, want = apply(params, TOKENS), model(TOKENS)
    assert (mx.abs(got - want) <= 2e-6 * mx.maximum(mx.abs(want), 1)).all()


def test_bfloat16_gradients_are_close_to_those_of_float32(model):
    apply, params, _ = ps.functional(model)
    want = dict(ps.tree.items(gradients(apply, params, mx.float32)))
    for path, got in ps.tree.items(gradients(apply, params, mx.bfloat16)):
        distance = mx.linalg.norm(got - want[path]) / mx.linalg.norm(want[path])
        assert distance.item() < 0.02, path
    plain, params, _ = ps.functional(model, own_gradients=False)
    saturated = gradients(plain, params, mx.bfloat16)["embedding"]["weight"]
    assert (
        mx.linalg.norm(saturated - want["embedding.weight"]) > 0.05 * mx.linalg.norm(want["embedding.weight"])
    ).item()


def test_float32_gradients_are_those_of_mlx(model):
    apply, params, _ = ps.functional(model)
    plain, _, _ = ps.functional(model, own_gradients=False)
    want = dict(ps.tree.items(gradients(plain, params, mx.float32)))
    for path, got in ps.tree.items(gradients(apply, params, mx.float32)):
        assert mx.allclose(got, want[path], rtol=1e-4, atol=1e-7), path


def test_mlx_has_its_own_functions_outside_and_in_other_threads():
    before = [getattr(home, name) for home, name in NAMES]
    seen, shapeless = [], []

    def has_shapeless_form():
        """Functions with a gradient of their own have none."""
        addmm = mx.compile(lambda *arrays: mx.addmm(*arrays), shapeless=True)
        try:
            for rows in (2, 3):
                addmm(*(mx.ones(shape, mx.bfloat16) for shape in ((2,), (rows, 2), (2, 2))))
        except ValueError:
            shapeless.append(False)
        else:
            shapeless.append(True)

    class Watching(nn.Module):
        def __call__(self, x):
            seen.append([getattr(home, name) for home, name in NAMES])
            has_shapeless_form()
            thread = threading.Thread(target=has_shapeless_form)
            thread.start()
            thread.join()
            return x

    has_shapeless_form()
    apply, params, _ = ps.functional(Watching())
    apply(params, mx.ones((2, 2)))
    assert all(now is not then for now, then in zip(seen[0], before, strict=True))
    assert shapeless == [True, False, True]  # outside, inside, in another thread
    assert [getattr(home, name) for home, name in NAMES] == before
    with pytest.raises(ValueError, match="train"):
        ps.functional(nn.Dropout(0.5))[0]({}, mx.ones(2), train=True)
    assert [getattr(home, name) for home, name in NAMES] == before


def test_the_users_module_keeps_its_classes(model):
    ps.functional(model)
    assert type(model.embedding) is nn.Embedding
    assert type(model.act[0]) is nn.GELU
    assert model.act[-1] is nn.gelu


def test_errors_name_the_layer(model):
    apply, params, _ = ps.functional(model.embedding)
    with pytest.raises(ValueError, match="a method of Embedding"):
        apply(params, mx.array([0]), method="decode")
