"""The options of sampling, checked in one place."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import mlx.core as mx

from purestep._core import checks
from purestep._core.types import Params, Tree
from purestep._data.sampling.truncation import check_truncation

InitCache: TypeAlias = Callable[[Params, int, int], Tree]
Decode: TypeAlias = Callable[[Params, mx.array, mx.array, Tree], tuple[mx.array, Tree]]


class Drawing(NamedTuple):
    """How one token is drawn; `sampler` documents the fields."""

    max_tokens: int
    temperature: float
    top_k: int | None
    top_p: float | None
    renormalize: bool
    stop_tokens: Sequence[int]
    pad_token: int

    def checked(self, caller: str) -> "Drawing":
        """Return the options as Python numbers; raise an error if one is out of its range."""
        if isinstance(self.temperature, mx.array):
            raise TypeError(f"{caller}: temperature must be a Python number, got an array")
        check_truncation(caller, self.top_k, self.top_p)
        for token in self.stop_tokens:
            checks.integer(caller, "stop_tokens", token, least=0)
        return self._replace(
            max_tokens=checks.integer(caller, "max_tokens", self.max_tokens, least=1),
            temperature=checks.number(caller, "temperature", self.temperature, least=0),
            stop_tokens=tuple(self.stop_tokens),
            pad_token=checks.integer(caller, "pad_token", self.pad_token, least=0),
        )


class Model(NamedTuple):
    """The model that is sampled, with or without a cache; `sampler` documents the fields."""

    apply_fn: Callable[..., mx.array]
    init_cache: InitCache | None
    decode: Decode | None
    compile: bool

    def checked(self, caller: str) -> "Model":
        """Return the model; raise an error if it is not callable, or half of its cache is missing."""
        checks.function(caller, "apply_fn", self.apply_fn)
        if (self.init_cache is None) != (self.decode is None):
            raise checks.error(caller, "init_cache and decode must be given together, got one of them")
        return self
