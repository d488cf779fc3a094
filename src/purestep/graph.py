"""What unevaluated arrays are made of: read from MLX's graph, with nothing evaluated."""

import io
import re

import mlx.core as mx

_LABEL = re.compile(r'\[label ="([^"]*)"')


def primitives(*arrays: mx.array) -> set[str]:
    """Return the names of the operations that the arrays still wait for; none for evaluated arrays.

    >>> sorted(primitives(mx.exp(mx.array(1.0)) + 1))
    ['Add', 'Exp']
    """
    dot = io.StringIO()
    mx.export_to_dot(dot, *arrays)
    return set(_LABEL.findall(dot.getvalue()))
