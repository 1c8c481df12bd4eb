"""An Optuna study of edits: what it proposes, what was found of it, and what several machines share."""

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
LONGEST = timedelta(days=1)  # that a trial of another machine is believed to be under way

optuna.logging.set_verbosity(optuna.logging.ERROR)


@dataclass(frozen=True)
class Proposed:
    """A trial under way."""

    number: int
    parameters: Parameters


@dataclass(frozen=True)
class Finished(Proposed):
    """A trial and what was found."""

    point: Point


class Study:
    """A study in some storage (see ``storage_of``), begun or gone on with.

    Trials that a process on this machine left behind when it died are given up; those of other machines after a day. The points
    ``starts`` are proposed first, unless they have been already. Raises InputError where the storage can't be opened.
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
        except Exception as error:  # every database and file system fails in its own way
            raise InputError(f"--study: can't be opened ({first_line(error)})") from None
        self._asked = _distributions(space)
        self._under_way: dict[int, optuna.Trial] = {}
        self._give_up_abandoned()
        for start in starts:
            if dict(start) not in [_parameters(t) for t in self._trials() if t.state != TrialState.FAIL]:
                self._study.enqueue_trial(dict(start))

    def propose(self, count: int) -> list[Proposed]:
        """As many edits to try. Each knows of those before it, so that they differ."""
        made: list[Proposed] = []
        for _ in range(count):
            trial = self._study.ask(self._asked)
            trial.set_user_attr("worker", _worker())
            self._under_way[trial.number] = trial
            made.append(Proposed(trial.number, trial.params))
        return made

    def record(self, proposed: Proposed, point: Point) -> None:
        """What was found of an edit. Where another process has taken the trial for abandoned meanwhile, that stands."""
        trial = self._under_way.pop(proposed.number)
        try:
            trial.set_user_attr("point", list(astuple(point)))
        except optuna.exceptions.UpdateFinishedTrialError:
            return
        self._study.tell(trial, objectives(point), skip_if_finished=True)

    def give_up(self, proposed: Sequence[Proposed]) -> None:
        """Edits that were not tried after all."""
        for each in proposed:
            self._study.tell(each.number, state=TrialState.FAIL, skip_if_finished=True)

    def finished(self) -> list[Finished]:
        """All that was found, by whichever machine, in the order in which it was proposed."""
        done = [trial for trial in self._trials() if trial.state == TrialState.COMPLETE]
        return [Finished(t.number, t.params, Point(*map(float, t.user_attrs["point"]))) for t in done]

    def _trials(self) -> list[FrozenTrial]:
        return self._study.get_trials(deepcopy=False)

    def _give_up_abandoned(self) -> None:
        for trial in self._trials():
            if trial.state == TrialState.RUNNING and _abandoned(trial):
                self._study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)


def objectives(point: Point) -> tuple[float, float]:
    """What the study minimises: the share of the target that is left, and the drift d as d / (1 + d).

    The drifts of the first token and of what is kept are one sum, as in every preference, so the edit that a preference takes is
    on the study's front too. So squeezed they lie in [0, 1], and an edit that breaks the outputs is merely the worst.
    """
    drift = point.kl + point.keep_kl
    left = point.target_left if math.isfinite(point.target_left) else 1.0
    return left, drift / (1 + drift) if math.isfinite(drift) else 1.0


def storage_of(given: str | None) -> BaseStorage:
    """None: kept in memory; a database's URL, whose password is in the environment; else the path of a journal file."""
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
    """Raises ValueError for a file that holds something else: the journal would be appended to it."""
    if file.exists():
        with file.open("rb") as opened:
            first = opened.readline()
        if first and b'"op_code"' not in first:
            raise ValueError(f"{file} holds something else than a study")


class _Seeded(BaseSampler):
    """TPE (Bergstra et al. 2011) whose draws depend on the seed and the trial's number, on whichever machine it is drawn.

    Two machines with one seed then never draw the same. Trials under way count as bad ones, so that a batch spreads out.
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
    """Of a trial, also of one that only waits to be tried."""
    return trial.params or dict(trial.system_attrs.get("fixed_params", {}))


def _worker() -> list[Any]:
    """This machine, this process, and when it was started."""
    return [f"{platform.node()} {uuid.getnode():x}", os.getpid(), psutil.Process().create_time()]


def _abandoned(trial: FrozenTrial) -> bool:
    """Whether nobody works on it any more: its process was on this machine and is gone, or it has been under way for too long."""
    machine, number, started = trial.user_attrs.get("worker", [None, 0, 0.0])
    if machine == _worker()[0]:
        try:
            return bool(abs(psutil.Process(number).create_time() - started) > 1)
        except psutil.Error:
            return True
    return trial.datetime_start is not None and datetime.now() - trial.datetime_start > LONGEST
