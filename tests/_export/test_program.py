"""The file of `mx.export_function`: every operation that MLX writes can be read and written back."""

import mlx.core as mx
import pytest

from purestep._export import program
from purestep._export.cursor import EndError

X = mx.random.normal((4, 4), key=mx.random.key(0))
OTHER = mx.array([[3.0]])


def many(x):
    """Return results of operations whose arguments have every layout."""
    square, q = x @ x.T + 4 * mx.eye(4), x.reshape(1, 1, 4, 4)
    packed = mx.quantize(mx.tile(x, (1, 16)), group_size=32, bits=4)
    index = mx.array([2, 0, 1])
    found = [
        *(f(x) for f in (mx.sort, mx.argsort, mx.argmax, mx.cumsum, mx.logsumexp, mx.softmax, mx.erf)),
        *(
            mx.partition(x, 1),
            mx.argpartition(x, 1),
            mx.topk(x, 2),
            mx.split(x, [1, 3])[1],
            *mx.divmod(x, 2.0),
        ),
        *(
            mx.arange(0.0, 4.0, 0.5) + x[0, 0],
            mx.addmm(x, x, x, 2.0, 0.5),
            mx.as_strided(x, (3, 2), (1, 4), 1),
        ),
        *(x.view(mx.int32) & 3, mx.log2(mx.abs(x)), mx.rsqrt(mx.abs(x)), mx.round(x, 1), mx.allclose(x, x)),
        *(x.flatten(), mx.unflatten(x, 0, (2, 2)), x[None].squeeze(0), x.T, mx.pad(x, 1), x[1:3, ::2]),
        *(
            x[index],
            mx.take_along_axis(x, index[None], 1),
            x.at[index].add(1.0),
            mx.put_along_axis(x, index[None], OTHER[0, 0], 1),
        ),
        *(
            mx.slice_update(x, x[:1], index[:1], (0,)),
            mx.slice(x, index[:1], (0,), (1, 4)),
            mx.concatenate([x, x], 1),
        ),
        *(
            mx.conv2d(x.reshape(1, 4, 4, 1), mx.ones((2, 2, 2, 1)), padding=1),
            mx.conv_transpose1d(x[None], x[None].swapaxes(0, 1)),
        ),
        *(
            mx.abs(mx.fft.rfft(x)),
            mx.hadamard_transform(x),
            mx.random.uniform(shape=(2,), key=x[0, :2].view(mx.uint32)),
        ),
        *(mx.fast.rms_norm(x, None, 1e-5), mx.fast.layer_norm(x, None, None, 1e-5)),
        mx.fast.rope(q, 4, traditional=False, base=1e4, scale=1.0, offset=1),
        mx.fast.scaled_dot_product_attention(q, q, q, scale=0.5, mask="causal"),
        *(
            mx.dequantize(*packed, group_size=32, bits=4),
            mx.quantized_matmul(mx.tile(x, (1, 16)), *packed, group_size=32, bits=4),
        ),
        *(
            mx.gather_mm(x[None], x[None], index[1:2], None),
            mx.where(x > 0, x, -x),
            mx.logical_and(x > 0, x < 1),
        ),
    ]
    with mx.stream(mx.cpu):
        found += [mx.linalg.cholesky(square), mx.linalg.inv(square), mx.linalg.eigvalsh(square)]
        found += [*mx.linalg.qr(x), mx.linalg.svd(x)[1]]
    return found


def test_what_is_read_and_written_computes_the_same(tmp_path):
    file = tmp_path / "many"
    mx.export_function(str(file), many, X)
    data = file.read_bytes()
    found = program.read(data)
    assert len({operation.name for operation in found.operations}) > 50
    again = tmp_path / "again"
    again.write_bytes(b"".join(program.write(found)))
    assert program.read(again.read_bytes()) == found
    for got, want in zip(mx.import_function(str(again))(X), many(X), strict=True):
        assert mx.array_equal(got, want, equal_nan=True), (got, want)


def test_a_file_that_ends_early_or_goes_on_is_refused(tmp_path):
    file = tmp_path / "few"
    mx.export_function(str(file), lambda x: mx.split(mx.pad(x, 1) * OTHER, 2), X)
    data = file.read_bytes()
    program.read(data)
    for length in range(len(data)):
        with pytest.raises((EndError, UnicodeDecodeError)):
            program.read(data[:length])
    with pytest.raises(EndError):
        program.read(data + b"\0")


def test_an_unknown_operation_is_named(tmp_path):
    file = tmp_path / "exp"
    mx.export_function(str(file), mx.exp, X)
    with pytest.raises(program.UnknownError, match="^Exq$"):
        program.read(file.read_bytes().replace(b"Exp", b"Exq"))
