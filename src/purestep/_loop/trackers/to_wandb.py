"""`wandb`: the rows of a run in Weights & Biases."""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from purestep._checkpoint.disk.naming import check_path
from purestep._checkpoint.run.manager import Checkpointer
from purestep._loop.trackers.hosted import Hosted
from purestep._loop.trackers.settings import options_of
from purestep._loop.trackers.tracker import EVALUATIONS, ROWS, Opening, Tracker


class Wandb(Hosted):
    """Logs to Weights & Biases; `wandb` makes it."""

    name = "wandb"

    def begin(self, opening: Opening) -> Any:
        """Begin a run, or continue the one with this id."""
        return self._library.init(
            dir=str(self.directory),
            id=opening.run_id,
            config=opening.config,
            resume="allow" if opening.resumed else None,
            allow_val_change=opening.resumed or None,
            reinit="create_new",  # a run of the program itself stays as it is
            **self._given,
        )

    def open(self, opening: Opening) -> Mapping[str, int]:
        """Begin a run; the server knows the last step, offline only the mark does."""
        steps = super().open(opening)
        known = int(self._run.starting_step) - 1
        return {kind: max(known, steps.get(kind, -1)) for kind in (ROWS, EVALUATIONS)}

    def write_texts(self, step: int, name: str, texts: Sequence[str]) -> None:
        """Log the texts as a table."""
        rows = [[step, text] for text in texts]
        self._run.log({name: self._library.Table(columns=["step", "text"], data=rows)}, step=step)

    def write_checkpoint(self, step: int, path: Path) -> None:
        """Log the directory as an artifact of the type `model`."""
        artifact = self._library.Artifact(f"checkpoint-{self._run.id}", type="model", metadata={"step": step})
        artifact.add_dir(str(path))
        self._run.log_artifact(artifact, aliases=["latest", f"step-{step}"])

    def close(self, status: str) -> None:
        """Finish the run."""
        self._run.finish(exit_code=int(status == "failed"))


def wandb(
    directory: str | os.PathLike[str],
    *,
    project: str | None = None,
    name: str | None = None,
    mode: str | None = None,
    options: Mapping[str, Any] | None = None,
    config: Any = None,
    pictures: Iterable[Any] = (),
    checkpoints: Checkpointer | None = None,
    wait: float = 60.0,
) -> Tracker:
    """Record a run in Weights & Biases.

    Texts become tables, checkpoints artifacts. A run that is resumed continues under the same id; steps that
    it repeats are not logged again, offline neither. Log in before the run: `wandb login`. Nothing is asked
    of the network on the loop's thread.

    Args:
        directory: for wandb's files.
        project: the name of the project.
        name: the name of the run.
        mode: `online`, `offline` or `disabled`; `None` leaves it to wandb's settings.
        options: further arguments of `wandb.init`, such as `entity`, `group`, `tags` and `settings`.
        config: as for `Tracker`.
        pictures: as for `Tracker`.
        checkpoints: as for `Tracker`.
        wait: as for `Tracker`, in seconds.

    Raises:
        ImportError: without wandb or pillow: `pip install 'purestep[wandb]'`.
        ValueError: if an option is one that the tracker sets.

    >>> make = lambda: wandb("run", project="small", mode="offline", config={"seed": 0})
    """
    own = ("dir", "id", "config", "resume", "allow_val_change", "reinit", "project", "name", "mode")
    given = {**options_of("wandb", options, own), "project": project, "name": name, "mode": mode}
    shared = {"config": config, "pictures": pictures, "checkpoints": checkpoints, "wait": wait}
    return Wandb(check_path("wandb", directory), given, **shared)
