"""Trackers against the real libraries, offline: what is read back is what the run gave, once."""

import resource
import warnings

import mlx.core as mx
import pytest

import purestep as ps
from purestep._loop.trackers import images
from tests._loop.trackers.readers import ARTIFACTS, READERS
from tests._loop.trackers.runs import CONFIG, fitted, killed, roll_back, rows_of
from tests._loop.workload import STEP, At, start

# Their own warnings are theirs.
pytestmark = [
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.filterwarnings("error::purestep.callbacks.MetricsWarning"),
]

NAMES = ["tensorboard", "wandb", "mlflow", "swanlab"]


def load(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(name)


def made(name, root, **options):
    """Return a tracker of one library that needs no network."""
    place = root / name
    if name == "tensorboard":
        return ps.callbacks.tensorboard(place, **options)
    if name == "mlflow":
        return ps.callbacks.mlflow(place, experiment="small", name="first", **options)
    return getattr(ps.callbacks, name)(place, project="small", mode="offline", **options)


def assert_recorded(name, found, history):
    """Assert that each row and each evaluation is there once, at its step and with its value."""
    for figure in ("loss", "learning_rate", "eval_loss"):
        wanted = [(step, pytest.approx(value, rel=1e-6)) for step, value in rows_of(history, figure)]
        assert sorted(found.points[figure]) == wanted, (name, figure)


@pytest.mark.parametrize("name", NAMES)
def test_a_run_is_read_back_as_it_was(name, tmp_path):
    load(name)
    picture = tmp_path / "curves.png"

    def draw(progress):
        picture.write_bytes(images.picture_of("draw", mx.full((4, 6, 3), 0.5)).png)

    tracker = made(name, tmp_path, config=CONFIG, pictures=[picture])
    result = fitted(tracker, tmp_path, 8, draw)
    found = READERS[name](tmp_path / name)
    assert_recorded(name, found, result.history)
    assert [step for step, _ in found.points["samples"]] == [2, 4, 6, 8]
    assert str(found.config["model.width"]) in ("4", "4.0")
    assert found.config["model.name"] == "line"
    assert [text.strip()[-16:] for text in found.texts[-2:]] == ["sample of step 4", "sample of step 8"]
    assert found.pictures
    assert all(png[:8] == b"\x89PNG\r\n\x1a\n" for png in found.pictures)


@pytest.mark.parametrize("name", NAMES)
def test_a_run_resumed_from_an_older_step_has_each_row_once_in_the_same_run(name, tmp_path):
    load(name)
    killed(made(name, tmp_path, config=CONFIG), tmp_path, 11)
    roll_back(tmp_path, 4)
    result = fitted(made(name, tmp_path, config=CONFIG), tmp_path, 12)
    assert_recorded(name, READERS[name](tmp_path / name), result.history)


@pytest.mark.parametrize("name", NAMES)
def test_a_tracker_that_joins_late_gets_the_rows_before(name, tmp_path):
    load(name)
    fitted(ps.callbacks.log(lambda line: None), tmp_path, 8)
    result = fitted(made(name, tmp_path), tmp_path, 12)
    assert_recorded(name, READERS[name](tmp_path / name), result.history)


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_the_last_checkpoint_is_an_artifact(name, tmp_path):
    load(name)
    with ps.checkpoint.Checkpointer(tmp_path / "run") as checkpointer:
        tracker = made(name, tmp_path, checkpoints=checkpointer)
        ps.fit(STEP, start(), At(), steps=4, checkpointer=checkpointer, callbacks=[tracker])
        (record,) = checkpointer.list()
    wanted = {file.name: file.read_bytes() for file in record.path.iterdir()}
    found = ARTIFACTS[name](tmp_path / name)
    assert {file: found.get(file) for file in wanted} == wanted


@pytest.mark.parametrize("name", NAMES)
def test_figures_that_are_not_finite_are_recorded(name, tmp_path):
    load(name)

    def step(state, batch):
        state, metrics = STEP(state, batch)
        return state, {**metrics, "bad": mx.array(mx.nan)}

    ps.fit(step, start(), At(), steps=4, callbacks=[made(name, tmp_path)], log_every=2)
    found = READERS[name](tmp_path / name).points
    assert [point[0] for point in found["loss"]] == [2, 4]
    assert all(value != value for _, value in found.get("bad", []))


def test_tensorboard_moves_only_its_own_files_of_another_run(tmp_path):
    """The directory may hold the checkpoints of the run, which another thread writes."""
    load("tensorboard")
    for number in range(2):
        fitted(ps.callbacks.tensorboard(tmp_path, config={"big": 10**400, "a|b": "c`\n|"}), tmp_path, 4)
        (tmp_path / "run").rename(tmp_path / f"run{number}")
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["run0", "run1"]
    for place in (tmp_path, tmp_path.with_name(f"{tmp_path.name}.before")):
        found = READERS["tensorboard"](place)
        assert [step for step, _ in found.points["loss"]] == [2, 4]
        assert found.config["big"] == str(10**400)
        assert any("| a&#124;b | `c'\\n&#124;` |" in text for text in found.texts)


def test_tensorboard_gets_the_rows_that_a_kill_lost_after_the_checkpoint_knew_them(tmp_path):
    load("tensorboard")
    place = tmp_path / "tensorboard"
    fitted(made("tensorboard", tmp_path), tmp_path, 4)
    (first,) = place.glob("events*")
    kept = first.read_bytes()
    (mark,) = place.glob("*.json")
    marked = mark.read_bytes()
    fitted(made("tensorboard", tmp_path), tmp_path, 8)
    for path in {*place.glob("events*")} - {first}:  # nothing since step 4 has reached the disk
        path.unlink()
    first.write_bytes(kept)
    mark.write_bytes(marked)
    result = fitted(made("tensorboard", tmp_path), tmp_path, 12)
    found = READERS["tensorboard"](place)
    assert_recorded("tensorboard", found, result.history)
    steps = [step for step, _ in found.points["loss"]]
    assert steps == sorted(steps)


def test_a_full_disk_does_not_stop_a_run_that_tensorboard_records(tmp_path):
    load("tensorboard")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(progress):
        if progress.step == 5:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1, hard))

    try:
        with pytest.warns(ps.callbacks.MetricsWarning, match="tensorboard: .* goes on: OSError: .* File too"):
            result = ps.fit(
                STEP, start(), At(), steps=400, callbacks=[fill, made("tensorboard", tmp_path)], log_every=1
            )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert result.reason == "steps"
