"""Ctrl-C at any instruction of taking or giving back a lock leaves the directory free, and of a save, a file.

`pytest tests/_checkpoint/faults/test_interrupts.py --full` interrupts at more than 2,000 instructions.
"""

import gc
import shutil

import mlx.core as mx
import pytest

from purestep._checkpoint.disk import atomic, lock, tensors
from purestep._checkpoint.run import committing, manager, newest, store
from purestep.checkpoint import Checkpointer, LockedError, keep_last, load, save
from tests._checkpoint.faults.interrupting import interrupted

FILES = {module.__file__ for module in (lock, committing, manager, newest, store)}


@pytest.fixture
def stride(full):
    return 1 if full else 21


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # of a file that is dropped open
def test_a_lock_that_was_interrupted_is_free_once_it_is_gone(tmp_path):
    def use():
        held = lock.Lock("test", tmp_path)
        held.check("test")
        held.release()

    def abandon():
        lock.Lock("test", tmp_path)

    for way in (use, abandon):
        position = 1
        while interrupted(way, position, FILES):
            try:
                lock.Lock("test", tmp_path).release()
            except LockedError:
                pytest.fail(f"locked after an interrupt at instruction {position}")
            position += 1
        assert position > 50
        print(position, "interrupts")
    with pytest.raises(LockedError, match=r"^test: .*written by pid \d+"):
        (lock.Lock("test", tmp_path), lock.Lock("test", tmp_path))


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_checkpointer_that_was_interrupted_leaves_the_directory_free(tmp_path, stride):
    value = {"w": mx.ones(1)}

    def use():
        checkpointer = Checkpointer(tmp_path, keep=lambda records: set())
        checkpointer.save(value, step=1)
        checkpointer.close()

    position = 1
    while interrupted(use, position, FILES):
        gc.collect()
        for _ in range(200):  # a job that was begun is finished first, by its thread
            try:
                with Checkpointer(tmp_path) as other:
                    other.delete(other.latest().step) if other.latest() else other.save(value, step=2)
                break
            except LockedError:
                gc.collect()
        else:
            pytest.fail(f"locked after an interrupt at instruction {position}")
        position += stride
    assert position > 500
    print(position // stride, "interrupts")


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_what_was_saved_before_an_interrupt_is_restored_after_it(tmp_path, full):
    said, stride = [], 1 if full else 101

    def use(root):
        with Checkpointer(root, keep=keep_last(2), asynchronous=False) as checkpointer:
            for step in (1, 2, 3):
                checkpointer.save({"w": mx.full(2, float(step))}, step=step)
                said.append(step)
            checkpointer.restore(3)
            checkpointer.delete(2)

    position = 1
    while interrupted(lambda number=position: use(tmp_path / f"{number}"), position, FILES):
        root, least = tmp_path / f"{position}", max(said, default=0)
        gc.collect()
        reader = Checkpointer(root)
        if least or reader.list():
            state, record = reader.restore()
            assert least <= record.step <= least + 1
            assert state["w"].tolist() == [float(record.step)] * 2
        for _ in range(200):
            try:
                with Checkpointer(root) as other:
                    other.save({"w": mx.zeros(2)}, step=9)
                break
            except LockedError:
                gc.collect()
        assert reader.restore().record.step == 9, f"after an interrupt at instruction {position}"
        assert not list(root.glob(".*tmp"))
        said.clear()
        shutil.rmtree(root)
        position += stride
    assert position > 1000
    print(position // stride, "interrupts")


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_save_that_was_interrupted_leaves_a_whole_file_and_the_next_tidies_up(tmp_path, stride):
    file, files = tmp_path / "s.safetensors", {module.__file__ for module in (atomic, tensors)}
    save(file, {"w": mx.array(0)})
    position, old = 1, 0
    while interrupted(lambda number=position: save(file, {"w": mx.array(number)}), position, files):
        assert load(file)["w"].item() in (old, position)
        save(file, {"w": mx.array(-position)})
        assert load(file)["w"].item() == -position
        assert [entry.name for entry in tmp_path.iterdir()] == [file.name], f"at instruction {position}"
        position, old = position + stride, -position
    assert position > 300
    print(position // stride, "interrupts")
