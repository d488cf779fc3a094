"""The laws of gradient transforms, as plain functions: call them in your own tests.

    from purestep.testing import laws

    laws.check(lambda: my_transform(0.1))

Each law takes a function that makes the transform, and parameters to try it on. It returns nothing, or raises
`LawBroken`, an AssertionError with the name of the law, what happened, and the path.
"""

from functools import partial

from purestep._core.types import Params
from purestep._transforms.core.base import GradientTransform
from purestep.testing._laws.compositions import associativity, complement, neutrality, packing, separation
from purestep.testing._laws.core import Law, LawBroken, Make
from purestep.testing._laws.functions import (
    constant_state,
    determinism,
    order,
    purity,
    saturation,
    storage,
    structure,
)
from purestep.testing._laws.transformations import compilation, differentiation, population
from purestep.testing.samples import parameters

__all__ = [
    # All laws at once
    "check",
    "ALWAYS",
    "LawBroken",
    "Law",
    "Make",
    # A transform is a pure function
    "purity",
    "determinism",
    "structure",
    "constant_state",
    "order",
    "storage",
    "saturation",
    # Transforms compose
    "neutrality",
    "associativity",
    "complement",
    "separation",
    "packing",
    # MLX transforms an update
    "compilation",
    "population",
    "differentiation",
]

ALWAYS: tuple[Law, ...] = (
    constant_state,
    purity,
    determinism,
    structure,
    order,
    storage,
    neutrality,
    associativity,
    compilation,
    population,
)


def check(
    make: Make | GradientTransform,
    *,
    params: Params = None,
    leafwise: bool = False,
    elementwise: bool = False,
    without: tuple[Law, ...] = (),
) -> None:
    """Check a transform against the laws; raise `LawBroken` for the first law that it breaks.

    Args:
        make: a function that makes the transform, such as `lambda: my_transform(0.1)`; or a transform, which
            all laws then share.
        params: the parameters to try it on; `None`: two small trees of mixed dtypes.
        leafwise: whether the transform treats each leaf on its own. Adds `complement` and `separation`.
        elementwise: whether it treats each element on its own. Adds `complement`, `separation` and `packing`.
        without: laws to omit, such as `population` for a transform that MLX cannot vmap.

    >>> import mlx.core as mx
    >>> from purestep.transforms import trace
    >>> check(lambda: trace(0.9), params={"w": mx.ones(3)}, elementwise=True, without=(compilation,))
    """
    builder: Make = (lambda: make) if isinstance(make, GradientTransform) else make
    laws = ALWAYS + (complement, separation) * (leafwise or elementwise) + (packing,) * elementwise
    for sample in [params] if params is not None else parameters():
        for law in laws:
            if law not in without:
                law(builder, sample)


__dir__ = partial(sorted, __all__)
