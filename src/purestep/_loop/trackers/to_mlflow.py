"""`mlflow`: the rows of a run in MLflow."""

import os
import re
import tempfile
import time
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from purestep._checkpoint.disk.naming import check_path
from purestep._checkpoint.run.manager import Checkpointer
from purestep._core import checks
from purestep._loop.core.extras import load
from purestep._loop.trackers.images import Picture
from purestep._loop.trackers.tracker import EVALUATIONS, ROWS, Opening, Tracker

_ID = "purestep.run"  # the tag by which a run is found again
_STATES = {"finished": "FINISHED", "interrupted": "KILLED", "failed": "FAILED"}
_REFUSED = re.compile(r"[^\w\-. /]")  # characters that MLflow refuses in names
_PARAMS, _METRICS, _LENGTH, _NAME = 100, 900, 6000, 250  # most in a request, of a parameter's text, of a name


class Mlflow(Tracker):
    """Logs to MLflow; `mlflow` makes it."""

    name = "mlflow"

    def __init__(self, place: str, experiment: str, run: str | None, **options: Any):
        super().__init__(**options)
        self._place, self._experiment, self._name = place, experiment, run
        # The client with explicit ids: the functions of the module `mlflow` keep one run for each thread.
        self._library = load(self.name, "mlflow", "mlflow")
        self._entities = load(self.name, "mlflow.entities", "mlflow")
        self._client: Any = None
        self._run, self._names = "", dict[str, str]()

    def open(self, opening: Opening) -> Mapping[str, int]:
        """Begin a run, or continue the one with this id."""
        uri, artifacts = self._place, None
        if not _remote(uri):
            directory = Path(uri).absolute()
            directory.mkdir(parents=True, exist_ok=True)
            uri, artifacts = f"sqlite:///{directory / 'mlflow.db'}", (directory / "artifacts").as_uri()
        client = self._client = self._library.MlflowClient(tracking_uri=uri)
        experiment = client.get_experiment_by_name(self._experiment)
        if experiment is None:
            place = client.create_experiment(self._experiment, artifacts)
        else:
            place = experiment.experiment_id
        found = client.search_runs([place], f"tags.`{_ID}` = '{opening.run_id}'") if opening.resumed else []
        if found:
            self._run = found[0].info.run_id
            client.update_run(self._run, status="RUNNING")
            tags = found[0].data.tags
            return {kind: int(tags.get(f"purestep.{kind}", -1)) for kind in (ROWS, EVALUATIONS)}
        names: dict[str, str] = {}
        self._run = client.create_run(place, tags={_ID: opening.run_id}, run_name=self._name).info.run_id
        params = [
            self._entities.Param(accepted(name, names), str(value)[:_LENGTH])
            for name, value in opening.config.items()
        ]
        for first in range(0, len(params), _PARAMS):
            client.log_batch(self._run, params=params[first : first + _PARAMS])
        return {}

    def write(self, kind: str, step: int, figures: Mapping[str, float]) -> None:
        """Log the figures; the last request also says that the row is recorded."""
        now = int(time.time() * 1000)
        metrics = [
            self._entities.Metric(accepted(name, self._names), float(figure), now, step)
            for name, figure in figures.items()
        ]
        for first in range(0, len(metrics), _METRICS):
            last = first + _METRICS >= len(metrics)
            tags = [self._entities.RunTag(f"purestep.{kind}", str(step))] if last else []
            self._client.log_batch(self._run, metrics=metrics[first : first + _METRICS], tags=tags)

    def write_texts(self, step: int, name: str, texts: Sequence[str]) -> None:
        """Log the texts as one artifact."""
        self._client.log_text(self._run, "\n\n".join(texts), f"texts/{_file(name)}-{step:08d}.txt")

    def write_picture(self, step: int, name: str, picture: Picture) -> None:
        """Log the picture as an artifact."""
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory, f"{_file(name)}-{step:08d}.png")
            path.write_bytes(picture.png)
            self._client.log_artifact(self._run, str(path), "pictures")

    def write_checkpoint(self, step: int, path: Path) -> None:
        """Log the directory as an artifact."""
        self._client.log_artifacts(self._run, str(path), f"checkpoints/{path.name}")

    def close(self, status: str) -> None:
        """End the run."""
        self._client.set_terminated(self._run, _STATES[status])


def accepted(name: str, taken: dict[str, str]) -> str:
    """Return a name that MLflow accepts: it reads like a path below a directory, and is not too long.

    Args:
        name: any name.
        taken: the names so far by what was returned for them; the new one is added. If two names would become
            equal, the later one gets a suffix.

    >>> taken = {}
    >>> accepted("norm[a]//b", taken), accepted("norm(a)/b", taken)
    ('norm_a_/b', 'norm_a_/b-40e990dc')
    """
    parts = [part for part in _REFUSED.sub("_", name).split("/") if part not in ("", ".")]
    found = "/".join("__" if part == ".." else part for part in parts) or "_"
    if len(found) > _NAME or taken.get(found, name) != name:
        found = f"{found[: _NAME - 9]}-{zlib.crc32(name.encode()):08x}"
    taken[found] = name
    return found


def _remote(place: str) -> bool:
    return "://" in place or place == "databricks"


def _file(name: str) -> str:
    return re.sub(r"[^\w\-.]", "_", name)


def mlflow(
    place: str | os.PathLike[str],
    *,
    experiment: str,
    name: str | None = None,
    config: Any = None,
    pictures: Iterable[Any] = (),
    checkpoints: Checkpointer | None = None,
    wait: float = 60.0,
) -> Tracker:
    """Record a run in MLflow.

    Hyperparameters become parameters, figures metrics; texts, pictures and checkpoints are artifacts. In the
    names, characters that MLflow refuses become underscores; names that would become equal, and those of more
    than 250 characters, end with a checksum. A run that is resumed continues in the same run
    of MLflow, which is found by a tag; steps that it repeats are not logged again.

    Args:
        place: a directory, for an SQLite database `mlflow.db` and artifacts; or the URI of a server or
            database, such as `http://localhost:5000`.
        experiment: the name of the experiment; it is created if it does not exist.
        name: the name of the run.
        config: as for `Tracker`.
        pictures: as for `Tracker`.
        checkpoints: as for `Tracker`.
        wait: as for `Tracker`, in seconds.

    Raises:
        ImportError: without mlflow: `pip install 'purestep[mlflow]'`.
        ValueError: if the directory has a character that SQLite's URI reserves, `?` or `%`.

    >>> make = lambda: mlflow("run/mlflow", experiment="small", config={"seed": 0})
    """
    if not isinstance(experiment, str) or not experiment:
        raise checks.error("mlflow", f"experiment must be a name, got {checks.shown(experiment):.80}")
    uri = str(check_path("mlflow", place)) if not isinstance(place, str) else place
    if not _remote(uri) and {"?", "%"} & {*str(Path(uri).absolute())}:
        raise checks.error(
            "mlflow", f"place must be a directory without ? and % in its path, got {uri!r:.200}"
        )
    shared = {"config": config, "pictures": pictures, "checkpoints": checkpoints, "wait": wait}
    return Mlflow(uri, experiment, name, **shared)
