"""The arguments of MLX's operations in a file of `mx.export_function`, as far as their length is needed."""

from purestep._export.cursor import Cursor

# Each letter is a field: i a 32-bit number, b a byte, d a 64-bit number, v a list of 32-bit numbers, w one of
# 64-bit numbers, t a dtype, s a text, m a list of three bytes, o an optional 32-bit number, x a list of
# numbers that carry their type. MLX writes the fields of an operation one after another.
_FIELDS = {
    "AddMM": "ii",
    "Arange": "ddd",
    "ArgPartition": "ii",
    "ArgReduce": "ii",
    "ArgSort": "i",
    "AsType": "t",
    "AsStrided": "vwd",
    "BitwiseBinary": "i",
    "BlockMaskedMM": "i",
    "Broadcast": "v",
    "BroadcastAxes": "v",
    "Cholesky": "b",
    "Concatenate": "i",
    "Convolution": "vvvvvib",
    "CustomKernel": "ssiiiiiimboxbii",
    "DynamicSlice": "vv",
    "DynamicSliceUpdate": "v",
    "Eig": "b",
    "Eigh": "sb",
    "Equal": "b",
    "ExpandDims": "v",
    "FFT": "wbbb",
    "Flatten": "ii",
    "Gather": "vv",
    "GatherAxis": "i",
    "GatherMM": "bb",
    "GatherQMM": "iiibbb",
    "Hadamard": "i",
    "Inverse": "bb",
    "LayerNorm": "i",
    "LayerNormVJP": "i",
    "Log": "i",
    "NumberOfElements": "vbt",
    "Pad": "vvv",
    "Partition": "ii",
    "Quantize": "iiib",
    "QuantizedMatmul": "iiib",
    "RMSNorm": "i",
    "RMSNormVJP": "i",
    "RandomBits": "vi",
    "Reduce": "iv",
    "Reshape": "v",
    "RoPE": "ibiib",
    "SVD": "b",
    "ScaledDotProductAttention": "ibbbb",
    "Scan": "iibb",
    "Scatter": "iv",
    "ScatterAxis": "ii",
    "SearchSorted": "b",
    "Slice": "vvv",
    "SliceUpdate": "ivvv",
    "Softmax": "b",
    "Sort": "i",
    "Split": "vi",
    "Sqrt": "b",
    "Squeeze": "v",
    "Transpose": "v",
    "Unflatten": "iv",
    "View": "t",
}
_BARE = set(
    "Abs Add ArcCos ArcCosh ArcSin ArcSinh ArcTan ArcTan2 ArcTanh Ceil Conjugate Copy Cos Cosh "
    "Depends Divide DivMod Erf ErfInv Exp Expm1 Floor FloorDivide Full Greater GreaterEqual Imag Less "
    "LessEqual Log1p LogAddExp LogSumExp LogicalAnd LogicalNot LogicalOr MaskedScatter Matmul Maximum "
    "Minimum Multiply Negative NotEqual Power QRF Real Remainder Round Select Sigmoid Sign Sin Sinh "
    "Square StopGradient Subtract Tan Tanh".split()
)


def skip(name: str, cursor: Cursor) -> bool:
    """Move past the arguments of an operation; tell whether it is known."""
    if name in _BARE:
        return True
    for field in _FIELDS.get(name, ""):
        _skip(field, cursor)
    return name in _FIELDS


def _skip(field: str, cursor: Cursor) -> None:
    if field == "b":
        cursor.byte()
    elif field in "id":
        cursor.take(4 if field == "i" else 8)
    elif field in "vwms":
        cursor.take({"v": 4, "w": 8, "m": 3, "s": 1}[field] * cursor.long())
    elif field == "t":
        cursor.take(5)
    elif field == "o":
        cursor.take(4 * cursor.byte())
    else:
        for _ in range(cursor.long()):
            cursor.take(1 if cursor.short() == 2 else 4)
