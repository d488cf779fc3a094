"""Objects of other libraries, passed instead of a transform."""

from types import SimpleNamespace

import mlx.core as mx
import mlx.optimizers
import pytest

import purestep as ps
from purestep import optimizers, transforms
from purestep._transforms.core.foreign import _MLX
from tests.refusals import parts

WRAPPERS = [
    ps.chain,
    transforms.flatten,
    lambda t: transforms.masked(t, True),
    lambda t: ps.TrainState.create({"w": mx.ones(2)}, t),
    lambda t: ps.train_step(lambda params, batch, rng: params["w"].sum(), t),
    lambda t: transforms.partition({"a": t}, "a"),
]


def of_mlx():
    made = vars(mlx.optimizers).values()
    return [kind for kind in made if isinstance(kind, type) and issubclass(kind, mlx.optimizers.Optimizer)]


@pytest.mark.parametrize("kind", of_mlx(), ids=lambda kind: kind.__name__)
def test_each_optimizer_of_mlx_is_refused_with_ours(kind):
    special = {"Optimizer": kind, "MultiOptimizer": lambda: kind([mlx.optimizers.SGD(0.1)])}
    made = special.get(kind.__name__, lambda: kind(learning_rate=0.1))()
    ours = _MLX.get(kind.__name__, "purestep.optimizers")
    message = f"got {kind.__name__} of mlx.optimizers, ... {ours}"
    for value in (made, kind):
        with pytest.raises(TypeError, match=parts(message)):
            ps.chain(value)
    place, _, name = ours.partition("(")[0].rpartition(".")
    assert kind.__name__ == "Optimizer" or hasattr(getattr(ps, place), name)


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_every_function_of_a_transform_refuses_them(wrap):
    with pytest.raises(TypeError, match=r"got SGD of mlx.optimizers.*optimizers.sgd"):
        wrap(mlx.optimizers.SGD(0.1))
    with pytest.raises(TypeError, match=r"got <function adam at .*adam\(\.\.\.\)"):
        wrap(optimizers.adam)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        ("torch.optim.adam", "got Adam of torch.* purestep.optimizers"),
        ("optax._src.base", "transformation of optax.* JAX"),
    ],
)
def test_objects_of_other_libraries_are_recognized_by_their_module(module, message):
    kind = type("Adam", (SimpleNamespace,), {"__module__": module})
    with pytest.raises(TypeError, match=message):
        ps.chain(kind(init=None, update=None))
