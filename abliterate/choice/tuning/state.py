"""The state of a descent, so that it can be saved as tensors and JSON, and resumed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from abliterate.choice.front import Point
from abliterate.choice.tuning.optimiser import Optimiser
from abliterate.choice.tuning.parameters import Parameters
from abliterate.model.edit import Edit
from abliterate.prompts import Role

STATE = "descent"  # its name in the store


@dataclass(frozen=True)
class Seen:
    """An edit that was measured on val. From the tuner: its ``step`` and its ``weight`` of drift. From the search: ``step`` is the trial
    number. Otherwise both are zero."""

    name: str
    step: int
    weight: float
    edit: Edit
    point: Point


@dataclass(frozen=True)
class Step:
    """Train losses of one step: suppression (nats), drift by role (nats), and the sum of the strengths after the step."""

    step: int
    weight: float
    target: float
    stays: Mapping[Role, float]
    edits: float


@dataclass
class State:
    """Position in the descent: the ``phase``, its finished steps (``step``), its ``best`` cost on val, and how many val measurements since
    then were no better (``worse``). ``last``: for each ended phase, the index in ``seen`` of its last edit."""

    phase: int = 0
    step: int = 0
    best: float = math.inf
    worse: int = 0
    seen: list[Seen] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    last: list[int] = field(default_factory=list)

    def judge(self, cost: float, steps: int, patience: int) -> bool:
        """Record a val measurement. The next phase begins after ``steps`` steps, or after ``patience`` measurements without improvement.
        Returns whether it begins now."""
        self.best, self.worse = (cost, 0) if cost < self.best else (self.best, self.worse + 1)
        if self.worse >= patience or self.step == steps:
            self.phase, self.step, self.best, self.worse = self.phase + 1, 0, math.inf, 0
            self.last.append(len(self.seen) - 1)
        return self.step == 0


def packed(state: State, parameters: Parameters, optimiser: Optimiser) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Everything that is needed to resume the descent."""
    tensors = {"strength": parameters.strength, "vectors": parameters.vectors}
    tensors |= {f"moment.{name}": tensor for name, tensor in optimiser.moments().items()}
    for number, each in enumerate(state.seen):
        tensors |= {f"seen.{number}.direction": each.edit.direction, f"seen.{number}.strength": each.edit.strength}
    facts = {name: getattr(state, name) for name in ("phase", "step", "best", "worse", "last")}
    facts["seen"] = [{"name": s.name, "step": s.step, "weight": s.weight, "point": asdict(s.point)} for s in state.seen]
    return tensors, facts | {"steps": [asdict(step) for step in state.steps]}


def restored(kept: tuple[Mapping[str, Tensor], Mapping[str, Any]] | None, parameters: Parameters, optimiser: Optimiser) -> State:
    """Restore the packed state, and write its parameters and moments into ``parameters`` and ``optimiser``. A new state if ``kept`` is
    None."""
    if kept is None:
        return State()
    tensors, facts = kept
    with torch.no_grad():
        parameters.strength.copy_(tensors["strength"])
        parameters.vectors.copy_(tensors["vectors"])
    optimiser.restore({name.removeprefix("moment."): tensor for name, tensor in tensors.items() if name.startswith("moment.")})
    edits = [Edit(tensors[f"seen.{n}.direction"], tensors[f"seen.{n}.strength"], "skip") for n in range(len(facts["seen"]))]
    seen = [Seen(s["name"], s["step"], s["weight"], edit, Point(**s["point"])) for s, edit in zip(facts["seen"], edits, strict=True)]
    steps = [Step(**step) for step in facts["steps"]]
    return State(facts["phase"], facts["step"], facts["best"], facts["worse"], seen, steps, facts["last"])
