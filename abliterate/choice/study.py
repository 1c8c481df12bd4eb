"""An Optuna study of edits, which several machines can share."""

from __future__ import annotations

import math
import os
import platform
import uuid
import warnings
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import psutil
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.samplers import BaseSampler, TPESampler
from optuna.storages import BaseStorage, InMemoryStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.engine import make_url

from abliterate.choice.front import Point
from abliterate.choice.space import Parameters, Space
from abliterate.errors import InputError, first_line

PASSWORD = "ABLITERATE_STUDY_PASSWORD"
LONGEST = timedelta(days=1)  # after this long, a running trial of another machine counts as abandoned

optuna.logging.set_verbosity(optuna.logging.ERROR)


@dataclass(frozen=True)
class Proposed:
    """A running trial."""

    number: int
    parameters: Parameters


@dataclass(frozen=True)
class Finished(Proposed):
    """A finished trial and its result."""

    point: Point


class Study:
    """A new or resumed study in a storage (see ``storage_of``).

    Running trials whose process on this machine has died are marked as failed; running trials of other machines after a day. The parameters
    ``starts`` are proposed first, unless the study has them already. Raises InputError if the storage can't be opened.
    """

    def __init__(self, storage: str | None, name: str, space: Space, seed: int, starts: Sequence[Parameters]) -> None:
        try:
            self._study = optuna.create_study(
                storage=storage_of(storage),
                sampler=_Seeded(seed),
                study_name=f"{name} {space.fingerprint}",
                directions=["minimize", "minimize"],
                load_if_exists=True,
            )
        except Exception as error:  # each database and file system raises different errors
            raise InputError(f"--study: can't be opened ({first_line(error)})") from None
        self._asked = _distributions(space)
        self._under_way: dict[int, optuna.Trial] = {}
        self._give_up_abandoned()
        for start in starts:
            if dict(start) not in [_parameters(t) for t in self._trials() if t.state != TrialState.FAIL]:
                self._study.enqueue_trial(dict(start))

    def propose(self, count: int) -> list[Proposed]:
        """Propose ``count`` edits. Each proposal takes the earlier ones into account, so they differ."""
        made: list[Proposed] = []
        for _ in range(count):
            trial = self._study.ask(self._asked)
            trial.set_user_attr("worker", _worker())
            self._under_way[trial.number] = trial
            made.append(Proposed(trial.number, trial.params))
        return made

    def record(self, proposed: Proposed, point: Point) -> None:
        """Store the result of a trial. If another process has meanwhile marked the trial as abandoned, the result is dropped."""
        trial = self._under_way.pop(proposed.number)
        try:
            trial.set_user_attr("point", list(astuple(point)))
        except optuna.exceptions.UpdateFinishedTrialError:
            return
        self._study.tell(trial, objectives(point), skip_if_finished=True)

    def give_up(self, proposed: Sequence[Proposed]) -> None:
        """Mark trials as failed because they were not measured."""
        for each in proposed:
            self._study.tell(each.number, state=TrialState.FAIL, skip_if_finished=True)

    def finished(self) -> list[Finished]:
        """All finished trials of all machines, in the order of their proposal."""
        done = [trial for trial in self._trials() if trial.state == TrialState.COMPLETE]
        return [Finished(t.number, t.params, Point(*map(float, t.user_attrs["point"]))) for t in done]

    def _trials(self) -> list[FrozenTrial]:
        return self._study.get_trials(deepcopy=False)

    def _give_up_abandoned(self) -> None:
        for trial in self._trials():
            if trial.state == TrialState.RUNNING and _abandoned(trial):
                self._study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)


def objectives(point: Point) -> tuple[float, float]:
    """The two values that the study minimises: the share of the target that is left, and the drift d as d / (1 + d).

    d adds the first-token KL and the KL along what is kept, as every preference does, so the preferred edit is on the study's front too.
    d / (1 + d) lies in [0, 1]; an edit that breaks the outputs gets 1, the worst value.
    """
    drift = point.kl + point.keep_kl
    left = point.target_left if math.isfinite(point.target_left) else 1.0
    return left, drift / (1 + drift) if math.isfinite(drift) else 1.0


def storage_of(given: str | None) -> BaseStorage:
    """Open a storage. None: in memory. A URL: a database, whose password may be in the environment variable that ``PASSWORD``
    names. Anything else: the path of a journal file."""
    if given is None:
        return InMemoryStorage()
    if "://" not in given:
        _check_journal(Path(given))
        return JournalStorage(JournalFileBackend(given))
    url = make_url(given)
    if password := os.environ.get(PASSWORD):
        url = url.set(password=password)
    return RDBStorage(url.render_as_string(hide_password=False))


def _check_journal(file: Path) -> None:
    """Raises ValueError if the file is not a journal, because the journal would be appended to it."""
    if file.exists():
        with file.open("rb") as opened:
            first = opened.readline()
        if first and b'"op_code"' not in first:
            raise ValueError(f"{file} exists and is not an Optuna journal file")


class _Seeded(BaseSampler):
    """TPE (Bergstra et al. 2011) whose draws depend only on the seed and the trial number, not on the machine.

    Trial numbers are unique, so machines with the same seed never draw the same edit. Running trials count as bad ones, so a batch spreads
    out.
    """

    def __init__(self, seed: int) -> None:
        self._seed, self._number, self._tpe = seed, -1, TPESampler()

    def _of(self, trial: FrozenTrial) -> BaseSampler:
        if trial.number != self._number:
            drawn = int(np.random.SeedSequence([self._seed, trial.number]).generate_state(1)[0])
            with warnings.catch_warnings(action="ignore"):  # both options were experimental before Optuna 5
                self._number, self._tpe = trial.number, TPESampler(seed=drawn, multivariate=True, constant_liar=True)
        return self._tpe

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._of(trial).infer_relative_search_space(study, trial)

    def sample_relative(self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]) -> dict[str, Any]:
        return self._of(trial).sample_relative(study, trial, search_space)

    def sample_independent(self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution) -> Any:
        return self._of(trial).sample_independent(study, trial, param_name, param_distribution)


def _distributions(space: Space) -> dict[str, BaseDistribution]:
    words = {name: CategoricalDistribution(choices) for name, choices in space.choices.items()}
    return {**words, **{name: FloatDistribution(low, high) for name, (low, high) in space.ranges.items()}}


def _parameters(trial: FrozenTrial) -> dict[str, Any]:
    """The parameters of a trial, also of one that is still queued."""
    return trial.params or dict(trial.system_attrs.get("fixed_params", {}))


def _worker() -> list[Any]:
    """This machine, this process, and the process's start time."""
    return [f"{platform.node()} {uuid.getnode():x}", os.getpid(), psutil.Process().create_time()]


def _abandoned(trial: FrozenTrial) -> bool:
    """Whether a running trial is abandoned: its process was on this machine and is gone, or it has been running for too long."""
    machine, number, started = trial.user_attrs.get("worker", [None, 0, 0.0])
    if machine == _worker()[0]:
        try:
            return bool(abs(psutil.Process(number).create_time() - started) > 1)
        except psutil.Error:
            return True
    return trial.datetime_start is not None and datetime.now() - trial.datetime_start > LONGEST
