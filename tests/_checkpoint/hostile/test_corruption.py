"""Files that were damaged, by chance or on purpose: refused in one sentence, in little memory.

`pytest tests/_checkpoint/hostile/test_corruption.py --full` runs 3,000 corruptions and 3,000 forgeries, which
takes some minutes.
"""

import gc
import random
import shutil
import tracemalloc
import warnings

import mlx.core as mx
import pytest

from purestep import replay
from purestep._replay import bundle
from purestep.checkpoint import Checkpointer, CorruptError, from_bytes, load, save, to_bytes
from tests._checkpoint.hostile import forgeries
from tests._checkpoint.hostile.forgeries import described
from tests._checkpoint.states import STATE

STEP = "step_00000007"


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    """Return a directory with one of each stored form."""
    root = tmp_path_factory.mktemp("samples")
    with Checkpointer(root / "run", shard_bytes=1000) as checkpointer:
        checkpointer.save({"w": mx.zeros(3)}, step=1)
        checkpointer.save(STATE, step=7, metrics={"loss": 0.5}, metadata={"epoch": 1})
    (root / "one").mkdir()
    save(root / "one" / "s.safetensors", STATE)
    save(root / "many" / "s.safetensors", STATE, shard_bytes=1000)
    (root / "one" / "s.msgpack").write_bytes(to_bytes(STATE))
    (root / "bundles").mkdir()
    bundle.write(root / "bundles", 7, STATE, {"x": mx.ones(3)}, {"loss": mx.array(mx.nan)}, STATE, ("loss",))
    return root


def readers(root):
    """Return how each form is read: the files of one, and a function that returns the state."""
    run, recorded = root / "run" / STEP, root / "bundles" / STEP
    many = root / "many" / "s.safetensors"
    one, packed = root / "one" / "s.safetensors", root / "one" / "s.msgpack"

    def run_of(like):
        return lambda: Checkpointer(root / "run").restore(7, like=like).state

    return [
        ([run / "manifest.json"], run_of(STATE)),
        (sorted(run.glob("*.safetensors")), run_of(STATE)),
        (sorted(run.glob("*.safetensors")), run_of(None)),
        ([one], lambda: load(one, like=STATE)),
        ([one], lambda: load(one)),
        (sorted(many.parent.iterdir()), lambda: load(many)),
        ([many.parent / "s.safetensors.index.json"], lambda: load(many, like=STATE)),
        ([packed], lambda: from_bytes(packed.read_bytes(), like=STATE)),
        ([packed], lambda: from_bytes(packed.read_bytes())),
        (sorted(recorded.iterdir()), lambda: replay.load(recorded).state),
    ]


def flip_bits(draw, data):
    for _ in range(draw.choice([1, 1, 1, 2, 50])):
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)


def flip_in_header(draw, data):
    data[draw.randrange(min(400, len(data)))] ^= 1 << draw.randrange(8)


def truncate(draw, data):
    del data[draw.randrange(len(data)) :]


def extend(draw, data):
    data += draw.randbytes(draw.choice([1, 8, 4096]))


def insert(draw, data):
    start = draw.randrange(len(data))
    data[start:start] = draw.randbytes(draw.choice([1, 3, 100]))


def remove(draw, data):
    start = draw.randrange(len(data))
    del data[start : start + draw.choice([1, 8, 100])]


def zero_a_block(draw, data):
    start = draw.randrange(len(data))
    stop = min(len(data), start + draw.choice([1, 8, 512, 4096]))
    data[start:stop] = bytes(stop - start)


def swap_two_blocks(draw, data):
    size = min(draw.choice([1, 16, 200]), len(data) // 2)
    first = draw.randrange(len(data) - 2 * size + 1)
    second = draw.randrange(first + size, len(data) - size + 1)
    one, two = data[first : first + size], data[second : second + size]
    data[first : first + size], data[second : second + size] = two, one


def huge_length(draw, data):
    data[:8] = draw.choice([2**63, 2**64 - 1, 2**40, 10**8, len(data) - 8]).to_bytes(8, "little")


def deep_nesting(draw, data):
    header = b'{"a":' * draw.choice([100, 10_000]) + b"1"
    data[:] = len(header).to_bytes(8, "little") + header + bytes(data[8:])


def nested_lists(draw, data):
    data[:] = (b"\xdd" + (len(data) // 9).to_bytes(4, "big")) * draw.choice([10, 500]) + bytes(data)


def repeat_a_part(draw, data):
    start = draw.randrange(len(data))
    data[start:start] = data[start : start + 64]


def replace_by_noise(draw, data):
    data[:] = draw.randbytes(len(data))


DAMAGES = [
    flip_bits, flip_in_header, truncate, extend, insert, remove, zero_a_block, swap_two_blocks, huge_length,
    deep_nesting, nested_lists, repeat_a_part, replace_by_noise,
]  # fmt: skip


PEAKS = []  # of memory, beyond twice the size


def outcome(read, size):
    """Return what a read gave, or its error, which must be one sentence; and refuse too much memory."""
    gc.collect()
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    tracemalloc.start()
    try:
        with warnings.catch_warnings(action="error"):
            found = read()
    except ValueError as error:
        found = error
    peak = tracemalloc.get_traced_memory()[1] + mx.get_peak_memory() - before
    tracemalloc.stop()
    assert peak < 2 * size + 300_000, f"{peak} bytes for {size}: {found!r:.300}"
    PEAKS.append(peak - 2 * size)
    if isinstance(found, ValueError):
        where = str(found).partition(": ")[0]
        assert type(found) in (ValueError, CorruptError), repr(found)
        assert where.startswith(("checkpoint.", "Checkpointer.", "replay.")), repr(found)
    return found


def size_of(root):
    return sum(file.stat().st_size for file in root.iterdir())


def test_every_corruption_is_detected_with_an_error_and_little_memory(samples, tmp_path, full):
    draw = random.Random(1)
    shutil.copytree(samples, tmp_path / "copy")
    cases = readers(tmp_path / "copy")
    whole = described(STATE)
    for _, read in cases:
        assert described(read()) == whole
    for number in range(3000 if full else 150):
        files, read = draw.choice(cases)
        file = draw.choice(files)
        intact = file.read_bytes()
        damage = draw.choice(DAMAGES)
        data = bytearray(intact)
        damage(draw, data)
        if data == intact:
            continue
        file.write_bytes(data)
        shown = f"{number}: {damage.__name__} of {file.name}"
        found = outcome(read, size_of(file.parent))
        if not isinstance(found, ValueError):
            # What a reader of the ecosystem adds to a part or an index has no seal, and no meaning here.
            assert file.parent.name == "many", shown
            assert described(found) == whole, shown
        else:
            known = "format", "verified", "not in its directory", "is a checkpoint"
            assert isinstance(found, CorruptError) or any(text in str(found) for text in known), shown
        file.write_bytes(intact)


@pytest.mark.parametrize("form", forgeries.FORMS, ids=lambda form: form.__name__)
def test_a_forgery_with_the_right_seal_is_refused_or_is_what_it_says(form, tmp_path, full):
    draw = random.Random(form.__name__)
    accepted = 0
    for number in range(600 if full else 30):
        place = tmp_path / str(number)
        place.mkdir()
        read, expected = form(draw, place)
        found = outcome(read, sum(file.stat().st_size for file in place.rglob("*") if file.is_file()))
        if not isinstance(found, ValueError):
            assert expected is not None, f"{number}: {found!r:.500}"
            assert described(found) == expected, number
            accepted += 1
        shutil.rmtree(place)
    print(
        f"{form.__name__}: {number + 1} forgeries, {accepted} sound, {max(PEAKS)} bytes beyond twice the size"
    )
    assert accepted  # the forger can write what is sound
