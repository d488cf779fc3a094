"""What must be the same on all ranks when a run begins: options, and the state of a step of several ranks."""

from collections.abc import Mapping
from typing import Any

from purestep._core import checks
from purestep._loop.core.ranks import Ranks, group_of_step
from purestep._loop.fitting.evaluation import Evaluation
from purestep._parallel.agreement import agree


def check_alike(
    caller: str,
    ranks: Ranks,
    evaluations: tuple[Evaluation, ...],
    options: Mapping[str, int | bool | None],
) -> None:
    """Refuse options that differ between ranks: they would act at different steps.

    Raises:
        ValueError: on every rank.
    """
    if ranks.size == 1:
        return
    named = [f"{each.name} every {each.every}" for each in evaluations]
    own = {**options, "evaluate": ", ".join(named) or None}
    checks.equal_on_ranks(caller, ranks.gathered("the options", lambda: own))


def check_state(caller: str, ranks: Ranks, step: Any, state: Any) -> None:
    """Refuse a state that differs between ranks. The step itself compares only the first state of all runs.

    Args:
        caller: names the public function in errors.
        ranks: the processes.
        step: one of `data_parallel` or `sharded`, whose ranks have equal states. A function of the user may
            keep other arrays on each rank.
        state: the state before the first step.

    Raises:
        ValueError: on every rank, with the path.
    """
    group = group_of_step(step)
    if ranks.size == 1 or group is None:
        return
    ranks.gathered("the state", lambda: None)  # all ranks come here, or an error is raised
    agree(caller, state, group)
