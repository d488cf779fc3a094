"""Arrays on their way to a file: as they were, and only such as a file can hold."""

import mlx.core as mx
import pytest

from purestep._checkpoint.disk import tensors
from purestep._checkpoint.format import checksum
from purestep.checkpoint import save


def test_an_array_written_in_place_after_the_save_began_is_saved_as_it_was(tmp_path):
    value = {"w": mx.ones(3)}
    arrays_ = tensors.snapshot(value)
    value["w"][0] = 5.0
    assert arrays_["w"].tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"__metadata__": mx.ones(1)}, r"state\.__metadata__ .*rename"),
        ({"params": {"__metadata__": mx.ones(1)}}, r"state\.params\.__metadata__ .*rename"),
        ({"a": [mx.ones(1, mx.float64, stream=mx.cpu)]}, r"state\.a\.0 .*float64, .*float32"),
        (mx.ones(1, mx.float64, stream=mx.cpu), "state .*float64, .*float32"),
        ({"a": {"\ud800": mx.ones(1)}}, r"'state\.a\.\\ud800' .*lone surrogate .*key"),
    ],
)
def test_arrays_that_no_file_could_give_back_are_refused_before_anything_is_written(tmp_path, value, message):
    with pytest.raises(ValueError, match="^checkpoint.save: " + message):
        save(tmp_path / "s", value)
    with pytest.raises(ValueError, match="^Checkpointer.save: " + message):
        tensors.snapshot(value, "Checkpointer.save")
    assert not list(tmp_path.iterdir())


def test_on_cuda_no_two_threads_read_an_array_for_the_first_time(tmp_path, monkeypatch):
    monkeypatch.setattr(mx.cuda, "is_available", lambda: True)
    put, summed = [], checksum.of
    save = mx.save_safetensors
    monkeypatch.setattr(mx, "save_safetensors", lambda path, *rest: (save(path, *rest), put.append(path)))

    def late(data):
        assert put, "summed before its file was handed to the system"
        return summed(data)

    monkeypatch.setattr(checksum, "of", late)
    found = tensors.write_summed(tmp_path, {"a.safetensors": {"w": mx.ones(3)}})
    assert found == {"a.safetensors": {"w": summed(checksum.raw(mx.ones(3)))}}
