"""A few full replies under edits that are only hooked in: what scores of first tokens can't see, such as loops further on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from abliterate.evaluation.outcomes import WITHHELD, judge
from abliterate.model.passes import Advance, Change, Model, Pass, unheard
from abliterate.model.template import decode, opens_thought


@dataclass(frozen=True)
class Rehearsal:
    """Shares of val prompts: target prompts still ``withheld``, target and baseline prompts whose reply is ``degenerate``."""

    withheld: float
    degenerate: float

    def cost(self, base: Rehearsal) -> float:
        """What an edit failed at: what is withheld still, and what is degenerate beyond the unedited model."""
        return self.withheld + max(0.0, self.degenerate - base.degenerate)


def rehearse(
    model: Model,
    changes: Sequence[Change],
    target: Sequence[list[int]],
    baseline: Sequence[list[int]],
    max_new_tokens: int,
    advance: Advance = unheard,
    prompts: Sequence[str] = (),
) -> list[Rehearsal]:
    """Greedy replies to encoded prompts (``prompts``: target's, then baseline's), judged, under each of the changes."""
    encoded = [*target, *baseline]
    opened = opens_thought(model.tokenizer)
    outcomes = [[""] * len(encoded) for _ in changes]
    asked: Sequence[str | None] = prompts or [None] * len(encoded)
    for number, indices, found in model.replies([Pass(encoded, change) for change in changes], max_new_tokens, advance):
        for index, reply in zip(indices, found, strict=True):
            outcomes[number][index] = judge(decode(model.tokenizer, reply), begins_in_thought=opened, prompt=asked[index]).outcome
    return [
        Rehearsal(
            withheld=sum(outcome in WITHHELD for outcome in each[: len(target)]) / max(len(target), 1),
            degenerate=each.count("degenerate") / max(len(encoded), 1),
        )
        for each in outcomes
    ]


def rehearsal_document(base: Rehearsal, tried: Sequence[tuple[str, float, Rehearsal]]) -> dict[str, Any]:
    """What selection.json says: the unedited model, and each edit by candidate and strength, the cheapest first."""
    rows = [{"name": name, "strength": strength, **asdict(found), "cost": found.cost(base)} for name, strength, found in tried]
    return {"base": asdict(base), "tried": sorted(rows, key=lambda row: float(str(row["cost"])))}
