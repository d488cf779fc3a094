"""Files of torch: its safetensors are read in its own layout of axes, its pickles are refused unread."""

import io
import json
import pickle
import struct
import zipfile

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from safetensors.numpy import save_file

import purestep as ps
from purestep.checkpoint import CorruptError, load_weights
from tests._checkpoint.exporting.reading import described


class Trap:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was read",))


def archive():
    """Return what `torch.save` writes: a zip archive with a pickle."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps(Trap(), protocol=2))
    return data.getvalue()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "weights.ckpt", "named"])
@pytest.mark.parametrize("data", [archive(), pickle.dumps(Trap(), protocol=2)], ids=["zip", "pickle"])
def test_pickles_are_refused_unread_with_a_way(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    words = (
        rf"^checkpoint\.load_weights: path must .* safetensors file, got .*/{name}, .*any code.*weights_only"
    )
    places = [tmp_path / name] if name == "named" else [tmp_path / name, tmp_path]
    for place in places:
        with pytest.raises(ValueError, match=words) as error:
            load_weights(place, like={"w": mx.ones(1)})
        assert not isinstance(error.value, CorruptError)


def test_an_index_of_pickles_is_refused_and_other_bytes_are_damage(tmp_path):
    (tmp_path / "pytorch_model-00001-of-00001.bin").write_bytes(archive())
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": {"w": "pytorch_model-00001-of-00001.bin"}}))
    with pytest.raises(ValueError, match=r"pytorch_model-00001-of-00001\.bin, a pickle"):
        load_weights(index, like={"w": mx.ones(1)})
    (tmp_path / "model.safetensors").write_bytes(archive())
    for name, data in (("other.bin", b"neither"), ("short.bin", b""), ("model.safetensors", archive())):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(CorruptError, match=rf"{name} is cut or not a safetensors file"):
            load_weights(tmp_path / name, like={"w": mx.ones(1)})


def test_safetensors_under_the_name_of_a_pickle_are_read(tmp_path):
    save_file({"w": np.ones(2, np.float32)}, tmp_path / "model.bin")
    assert load_weights(tmp_path / "model.bin", like={"w": mx.zeros(2)})["w"].tolist() == [1.0, 1.0]


def correlation(x, weight, bias):
    """Return a convolution as torch defines it, of (N, C, H, W) with (O, C, K, K), without padding."""
    size = weight.shape[-1]
    places = range(x.shape[-1] - size + 1)
    rows = [
        [np.einsum("nchw,ochw->no", x[..., i : i + size, j : j + size], weight) for j in places]
        for i in places
    ]
    return np.moveaxis(np.array(rows), (2, 3), (0, 1)) + bias[:, None, None]


def test_convolutions_of_torch_compute_the_same_after_their_axes_are_moved(tmp_path):
    random = np.random.default_rng(0)
    arrays = {"weight": random.normal(size=(6, 3, 2, 2)), "bias": random.normal(size=6)}
    arrays = {name: array.astype(np.float32) for name, array in arrays.items()}
    save_file(arrays, tmp_path / "m.safetensors", metadata={"format": "pt"})
    with ps.rng.scope(mx.random.key(0)):
        like = nn.Conv2d(3, 6, 2)
    with pytest.raises(ValueError, match=r"weight .* \(6, 3, 2, 2\) in .*\(6, 2, 2, 3\).* with convert"):
        load_weights(tmp_path / "m.safetensors", like=like)

    def channels_last(found):
        return {name: mx.moveaxis(a, 1, -1) if a.ndim == 4 else a for name, a in found.items()}

    module = load_weights(tmp_path / "m.safetensors", like=like, convert=channels_last)
    x = random.normal(size=(2, 3, 5, 5)).astype(np.float32)
    found = np.moveaxis(np.array(module(mx.array(np.moveaxis(x, 1, -1)))), -1, 1)
    np.testing.assert_allclose(found, correlation(x, **arrays), rtol=1e-4, atol=1e-5)


def hand_written(path, arrays):
    """Write arrays, each a dtype of the format, a shape and bytes, by name."""
    header, place = {"__metadata__": {"format": "pt"}}, 0
    for name, (dtype, shape, data) in arrays.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [place, place + len(data)]}
        place += len(data)
    text = json.dumps(header).encode()
    data = b"".join(data for _, _, data in arrays.values())
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def test_bfloat16_and_integers_of_torch_are_read_bit_for_bit(tmp_path):
    values = {
        "b": mx.array([1.5, -2.25, float("inf")], mx.bfloat16),
        "h": mx.array([1.5], mx.float16),
        "i": mx.array([-7], mx.int64),
        "f": mx.array([True]),
    }
    hand_written(tmp_path / "m.safetensors", described(values))
    found = load_weights(tmp_path / "m.safetensors", like=ps.tree.zeros_like(values))
    assert described(found) == described(values)
    with pytest.raises(ValueError, match="i has dtype int64 in the file, int32 in like$"):
        load_weights(tmp_path / "m.safetensors", like={**values, "i": mx.zeros(1, mx.int32)}, cast=True)


def test_float8_is_refused_or_converted_by_the_user(tmp_path):
    file = tmp_path / "m.safetensors"
    hand_written(file, {"w": ("F8_E4M3", [2], bytes([0x38, 0xC0]))})  # 1 and -2
    with pytest.raises(ValueError, match=r"w has dtype uint8 in the file, float32 .*float8.*mx\.from_fp8"):
        load_weights(file, like={"w": mx.zeros(2)}, cast=True)
    found = load_weights(
        file, like={"w": mx.zeros(2)}, convert=lambda a: {"w": mx.from_fp8(a["w"], mx.float32)}
    )
    assert found["w"].tolist() == [1.0, -2.0]
    for dtype, data in (("F8_E5M2", bytes(2)), ("F64", bytes(16))):
        hand_written(file, {"w": (dtype, [2], data)})
        with pytest.raises(ValueError, match=rf"holds w in {dtype}, which MLX cannot read"):
            load_weights(file, like={"w": mx.zeros(2)})
