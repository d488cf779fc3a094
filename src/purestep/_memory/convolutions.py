"""The memory of convolutions on a CPU, which MLX turns into matrix products in float32."""

from math import prod

import mlx.core as mx

from purestep._graph.nodes import Operation
from purestep._memory.layout import plain
from purestep._memory.views import Machine


def convolve(operation: Operation, machine: Machine) -> int:
    """Give the output its layout and keep the temporaries; return the number of kernels.

    On a CPU the patches of the padded input are copied into one matrix. Dilated convolutions, and grouped
    ones except those of one dimension that are not flipped, are computed without copies.
    """
    source, weight = operation.inputs[:2]
    output = operation.outputs[0]
    machine.layouts[output] = plain(output, machine.allocate(output.nbytes))
    _, before, after, kernel_dilation, input_dilation, groups, flip = operation.arguments
    dilated = any(step != 1 for step in (*kernel_dilation, *input_dilation))
    if not machine.on_cpu or dilated or (groups != 1 and (flip or len(input_dilation) > 1)):
        return 1
    batch, *lengths, channels = source.shape
    padded = [length + low + high for length, low, high in zip(lengths, before, after, strict=True)]
    temporaries = [
        batch * channels * prod(padded),
        batch * channels * prod(output.shape[1:-1]) * prod(weight.shape[1:-1]),
    ]
    kernels = 4
    if groups != 1 or weight.dtype != mx.float32 or not machine.layouts[weight].by_rows:
        temporaries.append(weight.size)
        kernels += 1
    if flip:
        temporaries.append(weight.size)
        kernels += 2
    if output.dtype != mx.float32:
        temporaries.append(output.size)
        kernels += 1
    for size in temporaries:
        machine.keep_until_done(machine.allocate(size * mx.float32.size))
    return kernels
