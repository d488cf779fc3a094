"""The cost of a transformer, by formula."""

from purestep._core import checks


def transformer_flops(parameters: int, *, layers: int, width: int, context: int) -> int:
    """Return the floating-point operations of training a transformer on one token: 6 N + 12 L d T.

    6 N is two for each parameter forward and four backward. 12 L d T is attention, without the saving of a
    causal mask and without recomputed activations, which are no useful work.

    Source: PaLM, arXiv:2204.02311, appendix B.

    Args:
        parameters: N, those that multiply each token: without embeddings that are only looked up; an output
            layer counts, also if it shares the embedding's weights.
        layers: L.
        width: d, heads times the size of a head.
        context: T, tokens of a sequence.

    Returns:
        FLOP for each token.

    >>> transformer_flops(124_000_000, layers=12, width=768, context=1024)
    857246208
    """
    caller = "transformer_flops"
    parameters = checks.integer(caller, "parameters", parameters, least=1)
    layers = checks.integer(caller, "layers", layers, least=1)
    width = checks.integer(caller, "width", width, least=1)
    context = checks.integer(caller, "context", context, least=1)
    return 6 * parameters + 12 * layers * width * context
