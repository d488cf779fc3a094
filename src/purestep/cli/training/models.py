"""The models of `train`: the demos' transformer, or a function of the user."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import mlx.core as mx

import purestep as ps
from purestep._core import checks
from purestep._loop.config import kinds
from purestep._loop.config.config import TrainConfig
from purestep.cli.training import loading
from purestep.cli.training.records import IGNORED
from purestep.cli.training.settings import CALLER
from purestep.demos.models.transformer import Transformer
from purestep.demos.shared.building import seeded

NAMED = ("transformer",)
_SIZES = {"width": 48, "layers": 2, "heads": 3, "buckets": 4096}


class Data(NamedTuple):
    """What the user's `build(config, data)` receives about the data.

    Attributes:
        vocabulary: the number of tokens.
        context: the tokens of a window. A batch is `{"inputs": int32 [batch, context], "targets": ...}`,
            with targets one token later, and -100 for targets that do not count. Batches of prompts and
            conversations have a few shapes, with fewer tokens in a row.
        sizes: the table `[sizes]` of the configuration.
        remat: patterns of layers to recompute, or `None`.
    """

    vocabulary: int
    context: int
    sizes: dict[str, Any]
    remat: str | None = None


class Model(NamedTuple):
    """A model.

    Attributes:
        loss_fn: `loss_fn(params, batch, rng)`, as for `train_step`.
        params: the first parameters.
        apply: `apply(params, tokens [batch, seq]) -> logits [batch, seq, vocabulary]`, or `None`.
        hidden: `hidden(path, leaf)` tells whether Muon trains a matrix.
    """

    loss_fn: Any
    params: Any
    apply: Callable[..., mx.array] | None
    hidden: Callable[[str, mx.array], bool] = ps.transforms.hidden_matrices


def check_model(name: str, sizes: dict[str, Any]) -> None:
    """Refuse an unknown model, or sizes that a named model does not have, before any work."""
    if ":" in name:
        loading.function("model", name)
        return
    if name not in NAMED:
        close = kinds.nearest(name, NAMED)
        hint = f"; did you mean {close}?" if close else ""
        raise checks.error(
            CALLER, f"model must be one of {', '.join(NAMED)}, or module:function, got {name!r}{hint}"
        )
    kinds.refuse_unknown(CALLER, "size", sizes, _SIZES)
    for size, value in sizes.items():
        checks.integer(CALLER, f"sizes.{size}", value, least=1)
    found = {**_SIZES, **sizes}
    if found["width"] % (2 * found["heads"]):
        rule = f"sizes.width must be a multiple of 2 * heads, {2 * found['heads']}"
        raise checks.error(CALLER, f"{rule}, got {found['width']}")
    if found["buckets"] & (found["buckets"] - 1):
        raise checks.error(CALLER, f"sizes.buckets must be a power of two, got {found['buckets']}")


def build(name: str, config: TrainConfig, data: Data, *, evaluate: bool = True) -> Model:
    """Return the model that a setting names.

    Args:
        name: of the model.
        config: the hyperparameters.
        data: about the data.
        evaluate: compute the first weights of a named model now.

    Raises:
        ValueError: if the user's function fails or returns something else.
    """
    if ":" not in name:
        return _transformer(config, data, evaluate)
    with ps.rng.scope(mx.random.key(config.seed)):  # the seed decides the weights
        found = loading.made("model", name, config, data)
    if not isinstance(found, tuple) or len(found) not in (2, 3) or not callable(found[0]):
        rule = f"model: {name} must return (loss_fn, params) or (loss_fn, params, apply)"
        raise checks.error(CALLER, f"{rule}, got {type(found).__name__}")
    leaves = ps.tree.leaves(found[1])
    if not leaves or not all(isinstance(leaf, mx.array) for leaf in leaves):
        raise checks.error(CALLER, f"model: the params of {name} must be a tree of arrays")
    apply = found[2] if len(found) == 3 else None
    if apply is not None:
        checks.function(CALLER, f"model: the third value of {name}", apply)
    return Model(found[0], found[1], apply)


def _transformer(config: TrainConfig, data: Data, evaluate: bool) -> Model:
    remat = [] if data.remat is None else [data.remat]
    make = lambda: Transformer(data.vocabulary, **{**_SIZES, **data.sizes})  # noqa: E731
    try:
        apply, params = seeded(make, config.seed, remat=remat, evaluate=evaluate)
    except ValueError as error:
        if not remat:
            raise
        raise checks.error(CALLER, str(error).removeprefix("functional: ")) from None

    def loss_fn(params: ps.types.Params, batch: ps.types.Batch, rng: mx.array | None) -> ps.Mean:
        logits = apply(params, batch["inputs"], rng=rng).astype(mx.float32)
        return ps.losses.cross_entropy(logits, batch["targets"], ignore_index=IGNORED)

    return Model(loss_fn, params, apply, _hidden)


def _hidden(path: str, leaf: mx.array) -> bool:
    """Tell whether a leaf of the transformer is a hidden matrix: the table of n-grams is an embedding."""
    return ps.transforms.hidden_matrices(path, leaf) and not path.startswith("ngrams.")


def continued(
    apply: Callable[..., mx.array],
    params: Any,
    prompt: Sequence[int],
    *,
    count: int,
    context: int,
    temperature: float,
    seed: int,
    end: int | None = None,
) -> list[int]:
    """Return `count` tokens drawn after a prompt of at least one token, fewer if `end` is drawn.

    Waits for the device.
    """
    tokens, key = list(prompt), mx.random.key(seed)
    for number in range(count):
        window = tokens[-context:]
        padded = mx.array([window + [0] * (context - len(window))], mx.int32)
        logits = apply(params, padded)[0, len(window) - 1].astype(mx.float32)
        if temperature:
            drawn = mx.random.categorical(logits / temperature, key=ps.rng.fold_in(key, number))
        else:
            drawn = mx.argmax(logits)
        token: Any = drawn.item()
        tokens.append(token)
        if token == end:
            break
    return tokens[len(prompt) :]
