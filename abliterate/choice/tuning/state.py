"""Where a descent is, and what it has seen so far; as tensors and JSON, and back."""

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

STATE = "descent"  # the name under which it is kept


@dataclass(frozen=True)
class Seen:
    """An edit that was measured on val: the tuner's after which ``step``, at which ``weight`` of drift; of others these are zero, or a
    trial's number."""

    name: str
    step: int
    weight: float
    edit: Edit
    point: Point


@dataclass(frozen=True)
class Step:
    """Train losses of one step: suppression (nats a token), drift by role (nats), and the sum of the strengths after it."""

    step: int
    weight: float
    target: float
    stays: Mapping[Role, float]
    edits: float


@dataclass
class State:
    """So many ``step`` s of a ``phase`` are done; the ``best`` cost that was seen in it, and how many looks since saw nothing better."""

    phase: int = 0
    step: int = 0
    best: float = math.inf
    worse: int = 0
    seen: list[Seen] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)

    def judge(self, cost: float, steps: int, patience: int) -> None:
        """Note what was seen; the next phase begins after so many steps, or as many looks in vain as there is ``patience`` for."""
        self.best, self.worse = (cost, 0) if cost < self.best else (self.best, self.worse + 1)
        if self.worse >= patience or self.step == steps:
            self.phase, self.step, self.best, self.worse = self.phase + 1, 0, math.inf, 0


def packed(state: State, parameters: Parameters, optimiser: Optimiser) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Everything that a descent needs to go on from here."""
    tensors = {"strength": parameters.strength, "vectors": parameters.vectors}
    tensors |= {f"moment.{name}": tensor for name, tensor in optimiser.moments().items()}
    for number, each in enumerate(state.seen):
        tensors |= {f"seen.{number}.direction": each.edit.direction, f"seen.{number}.strength": each.edit.strength}
    facts = {name: getattr(state, name) for name in ("phase", "step", "best", "worse")}
    facts["seen"] = [{"name": s.name, "step": s.step, "weight": s.weight, "point": asdict(s.point)} for s in state.seen]
    return tensors, facts | {"steps": [asdict(step) for step in state.steps]}


def restored(kept: tuple[Mapping[str, Tensor], Mapping[str, Any]] | None, parameters: Parameters, optimiser: Optimiser) -> State:
    """The state that was packed, its parameters and moments put back into these; a new one where nothing was."""
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
    return State(facts["phase"], facts["step"], facts["best"], facts["worse"], seen, steps)
