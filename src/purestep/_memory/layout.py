"""How MLX lays arrays out: which share a buffer, which are contiguous, and which get memory of their own."""

from purestep._graph.nodes import Value

Strides = tuple[int, ...]


class Buffer:
    """Memory that one or more arrays share.

    Attributes:
        nbytes: its size.
        holders: the number of arrays and of pending kernels that keep it.
    """

    __slots__ = ("holders", "nbytes")

    def __init__(self, nbytes: int):
        self.nbytes = nbytes
        self.holders = 0


class Layout:
    """Where the elements of an array are.

    Attributes:
        buffer: the memory.
        strides: in elements, by axis.
        used: the number of elements of the buffer that the array spans.
        gapless: every one of these elements is in the array.
        by_rows: the elements are in C order.
        by_columns: the elements are in Fortran order.
    """

    __slots__ = ("buffer", "by_columns", "by_rows", "gapless", "strides", "used")

    def __init__(
        self, buffer: Buffer, strides: Strides, used: int, gapless: bool, by_rows: bool, by_columns: bool
    ):
        self.buffer, self.strides, self.used = buffer, strides, used
        self.gapless, self.by_rows, self.by_columns = gapless, by_rows, by_columns

    def moved(self, buffer: Buffer) -> "Layout":
        """Return the same layout in another buffer."""
        return Layout(buffer, self.strides, self.used, self.gapless, self.by_rows, self.by_columns)


def in_rows(shape: tuple[int, ...]) -> Strides:
    """Return the strides of an array in C order."""
    strides, size = [], 1
    for length in reversed(shape):
        strides.append(size)
        size *= length
    return tuple(reversed(strides))


def plain(value: Value, buffer: Buffer) -> Layout:
    """Return the layout of an array in C order that fills its buffer."""
    vector = sum(length != 1 for length in value.shape) <= 1
    return Layout(buffer, in_rows(value.shape), value.size, True, True, vector)


def transposed(value: Value, of: Layout, axes: list[int]) -> Layout:
    """Return the layout of a transpose, which shares the buffer."""
    strides = tuple(of.strides[axis] for axis in axes)
    rows, columns = of.by_rows, of.by_columns
    if of.gapless and of.used == value.size:
        rows, columns = _is_in_rows(value.shape, strides), _is_in_columns(value.shape, strides)
    return Layout(of.buffer, strides, of.used, of.gapless, rows, columns)


def broadcast(value: Value, source: Value, of: Layout) -> Layout:
    """Return the layout of a broadcast, which shares the buffer."""
    missing = len(value.shape) - len(source.shape)
    kept = (0 if length == 1 else stride for length, stride in zip(source.shape, of.strides, strict=True))
    grown = value.size > source.size
    return Layout(
        of.buffer,
        (0,) * missing + tuple(kept),
        of.used,
        of.gapless,
        of.by_rows and not grown,
        of.by_columns and not grown,
    )


def sliced(value: Value, of: Layout, steps: Strides) -> Layout:
    """Return the layout of a slice, which shares the buffer."""
    strides = tuple(stride * step for stride, step in zip(of.strides, steps, strict=True))
    rows, columns = _is_in_rows(value.shape, strides), _is_in_columns(value.shape, strides)
    spread = [1 if stride == 0 else length for length, stride in zip(value.shape, strides, strict=True)]
    dense = 1
    for length in spread:
        dense *= length
    reach = 1 + sum(
        stride * (length - 1) for length, stride in zip(value.shape, strides, strict=True) if stride > 0
    )
    return Layout(of.buffer, strides, reach, dense == reach, rows, columns)


def strided(value: Value, of: Layout, strides: Strides) -> Layout:
    """Return the layout of an array with strides of its own, which shares the buffer."""
    return sliced(value, Layout(of.buffer, strides, of.used, True, True, True), (1,) * len(strides))


def reshaped(value: Value, source: Value, of: Layout) -> Layout | None:
    """Return the layout of a reshape that shares the buffer, or `None` if it needs a copy."""
    if of.by_rows or source.size == 0:
        found = plain(value, of.buffer)
        found.used, found.gapless = of.used, of.gapless
        return found
    if not source.shape:
        return Layout(of.buffer, (0,) * len(value.shape), of.used, of.gapless, of.by_rows, of.by_columns)
    lengths, strides = _collapsed(source.shape, of.strides)
    found_strides: list[int] = []
    position = 0
    for length in value.shape:
        if position < len(lengths) and length and lengths[position] % length == 0:
            lengths[position] //= length
            found_strides.append(lengths[position] * strides[position])
            position += lengths[position] == 1
        elif length == 1:
            found_strides.append(found_strides[-1])
        else:
            return None
    return Layout(of.buffer, tuple(found_strides), of.used, of.gapless, of.by_rows, of.by_columns)


def _collapsed(shape: tuple[int, ...], strides: Strides) -> tuple[list[int], list[int]]:
    lengths, steps = [shape[0]], [strides[0]]
    for length, stride in zip(shape[1:], strides[1:], strict=True):
        if length == 1:
            continue
        if stride * length == steps[-1]:
            lengths[-1] *= length
            steps[-1] = stride
        else:
            lengths.append(length)
            steps.append(stride)
    return lengths, steps


def _is_in_rows(shape: tuple[int, ...], strides: Strides) -> bool:
    size = 1
    for length, stride in zip(reversed(shape), reversed(strides), strict=True):
        if stride != size and length != 1:
            return False
        size *= length
    return True


def _is_in_columns(shape: tuple[int, ...], strides: Strides) -> bool:
    size = 1
    for length, stride in zip(shape, strides, strict=True):
        if stride != size and length != 1:
            return False
        size *= length
    return True
