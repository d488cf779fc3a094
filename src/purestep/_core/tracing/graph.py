"""Read MLX's graph of unevaluated arrays, without evaluating anything."""

import io
import re

import mlx.core as mx

_READ = re.compile(r'"(named_\d+)" ->')
_MOST = 1000  # MLX's functions take at most 1,024 keyword arguments
_LABEL = re.compile(r'\[label ="([^"]*)"')


def primitives(*arrays: mx.array) -> set[str]:
    """Return the names of the pending operations of the arrays; an empty set for evaluated arrays.

    >>> sorted(primitives(mx.exp(mx.array(1.0)) + 1))
    ['Add', 'Exp']
    """
    dot = io.StringIO()
    mx.export_to_dot(dot, *arrays)
    return set(_LABEL.findall(dot.getvalue()))


def used(outputs: list[mx.array], named: dict[str, mx.array]) -> list[str]:
    """Return the names of those arrays on which the unevaluated outputs depend.

    >>> a, b = mx.array(1.0), mx.array(2.0)
    >>> used([mx.exp(a) + 1], {"a": a, "b": b})
    ['a']
    """
    found: list[str] = []
    names = list(named)
    for start in range(0, len(names), _MOST):
        labels = {f"named_{index}": name for index, name in enumerate(names[start : start + _MOST])}
        dot = io.StringIO()
        mx.export_to_dot(dot, *outputs, **{label: named[name] for label, name in labels.items()})
        read = set(_READ.findall(dot.getvalue()))
        found += [name for label, name in labels.items() if label in read]
    return found
