"""A few full replies under an edit that is only hooked in: what scores of first tokens can't see, such as loops further on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from abliterate.evaluation.generate import reply_ids
from abliterate.evaluation.outcomes import WITHHELD, judge
from abliterate.model.forward import batches
from abliterate.model.load import LocalModel
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
    model: LocalModel,
    target: Sequence[list[int]],
    baseline: Sequence[list[int]],
    max_new_tokens: int,
    batch_size: int,
    advance: Callable[[int], None] = lambda done: None,
    prompts: Sequence[str] = (),
) -> Rehearsal:
    """Greedy replies of the model as it is now (hooks included) to encoded prompts (``prompts``: target's, then baseline's), judged."""
    encoded = [*target, *baseline]
    opened = opens_thought(model.tokenizer)
    outcomes = [""] * len(encoded)
    asked: Sequence[str | None] = prompts or [None] * len(encoded)
    for batch in batches(encoded, model.tokenizer.pad_token_id, batch_size, model.device):
        for index, reply in zip(batch.indices, reply_ids(model, batch, max_new_tokens), strict=True):
            outcomes[index] = judge(decode(model.tokenizer, reply), begins_in_thought=opened, prompt=asked[index]).outcome
        advance(len(batch.indices))
    return Rehearsal(
        withheld=sum(outcome in WITHHELD for outcome in outcomes[: len(target)]) / max(len(target), 1),
        degenerate=outcomes.count("degenerate") / max(len(encoded), 1),
    )


def rehearsal_document(base: Rehearsal, tried: Sequence[tuple[str, float, Rehearsal]]) -> dict[str, Any]:
    """What selection.json says: the unedited model, and each edit by candidate and strength, the cheapest first."""
    rows = [{"name": name, "strength": strength, **asdict(found), "cost": found.cost(base)} for name, strength, found in tried]
    return {"base": asdict(base), "tried": sorted(rows, key=lambda row: float(str(row["cost"])))}
