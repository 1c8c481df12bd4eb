"""Search for an edit without gradients, for models too large for them: one pass over the weights measures many edits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from abliterate.choice.front import Point
from abliterate.choice.space import Parameters, Space
from abliterate.errors import InputError
from abliterate.model.edit import Edit


@dataclass(frozen=True)
class Tried:
    """An edit that was measured. ``number`` is its trial number in the study."""

    number: int
    parameters: Parameters
    edit: Edit
    point: Point


def search(
    space: Space,
    evaluate: Callable[[Sequence[Edit]], Sequence[Point]],
    trials: int,
    batch: int,
    seed: int = 0,
    storage: str | None = None,
    name: str = "edits",
) -> list[Tried]:
    """Try edits until the study has ``trials`` of them. Returns all edits of the study, including those that other machines tried.

    ``evaluate`` gets up to ``batch`` edits at a time and measures them together. The candidates themselves are tried first (at most half of
    the trials), then Optuna's proposals. With a ``storage`` (a path, or the URL of a database) the study outlives the process: finished
    trials are not repeated, and machines that name the same storage share the study. ``name`` identifies what the points are measured on;
    runs that measure differently need different names. Raises InputError if Optuna is not installed or the storage can't be opened.
    """
    check_installed()
    from abliterate.choice.study import Study

    study = Study(storage, name, space, seed, space.starts[: max(1, trials // 2)])
    while (missing := trials - len(study.finished())) > 0:
        proposed = study.propose(min(batch, missing))
        try:
            points = evaluate([space.plan_of(each.parameters) for each in proposed])
            for each, point in zip(proposed, points, strict=True):
                study.record(each, point)
        except BaseException:  # an interruption too: trials without a result must not stay marked as running
            study.give_up(proposed)
            raise
    return [Tried(f.number, f.parameters, space.plan_of(f.parameters), f.point) for f in study.finished()]


def check_installed() -> None:
    """Raises InputError if Optuna or one of its dependencies is not installed."""
    try:
        import abliterate.choice.study  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.startswith("abliterate"):
            raise
        raise InputError(f"the search needs {error.name}: pip install 'abliterate[search]'") from None
