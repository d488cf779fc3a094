"""The order in which MLX evaluates the operations of a graph."""

from purestep._graph.nodes import Operation, Value

_WIDTH = 20  # MLX_BFS_MAX_WIDTH


def schedule(outputs: list[Value], operations: list[Operation]) -> list[Operation]:
    """Return the operations in the order in which `mx.eval` runs them.

    MLX walks from the outputs to their inputs, breadth first, and runs the reverse. If more than 20
    operations wait, it goes deeper first. An operation is placed when all its readers are.
    """
    degree: dict[Operation, int] = dict.fromkeys(operations, 0)
    for operation in operations:
        for value in operation.inputs:
            if value.maker is not None:
                degree[value.maker] += 1
    for output in outputs:
        if output.maker is not None:
            degree[output.maker] += 1
    placed: list[list[Value]] = [outputs]  # the inputs of what was placed, in order
    order: list[Operation] = []
    stack: list[tuple[list[Value], int]] = []
    index = 0
    while index < len(placed) or stack:
        if index < len(placed):
            inputs, start = placed[index], 0
            index += 1
        else:
            inputs, start = stack.pop()
        for position in range(start, len(inputs)):
            maker = inputs[position].maker
            if maker is None or degree[maker] == 0:
                continue
            if len(placed) - index >= _WIDTH:
                stack.append((inputs, position))
                break
            degree[maker] -= 1
            if degree[maker] == 0:
                order.append(maker)
                placed.append(maker.inputs)
    order.reverse()
    return order
