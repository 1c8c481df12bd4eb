"""The gate: the cheapest edits of the front reply to val prompts, and the choice between them goes by these replies.

Likelihoods of openings and predictions along old replies are only stand-ins for what an edited model says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction

from abliterate.choice.front import WEIGHTS, Point, Preference, exceeded
from abliterate.choice.tuning.examples import Examples
from abliterate.choice.tuning.replies import JudgedReplies, nothing, outcome_of, short, withholds
from abliterate.choice.tuning.state import Seen
from abliterate.compute.passes import Advance, Intervention, Model, Pass, no_progress
from abliterate.outcomes.records import Outcome
from abliterate.prompts import Role
from abliterate.prompts.promptset import evenly

GATED = 4  # how many edits reply
REPLIES = 48  # val prompts per role that each of them replies to


@dataclass(frozen=True)
class Replied:
    """Short replies to ``asked`` val prompts: how many the unedited model and the edited model withhold, and how many are broken."""

    asked: int
    withheld_before: int
    withheld: int
    broken_before: int
    broken: int

    def wrong(self, role: Role) -> Fraction:
        """How far the replies are from what the role wants, as a share of the prompts.

        Of target prompts, none should be withheld; of keep prompts, as many as before; of others, no more than before. No more replies
        should be broken than before. Gains and losses cancel: a reply on the brink may go either way under any edit.
        """
        more = self.withheld - self.withheld_before
        withheld = {"target": self.withheld, "keep": max(0, -more)}.get(role, max(0, more))
        broken = max(0, self.broken - self.broken_before)
        return Fraction(withheld + broken, self.asked) if self.asked else Fraction(0)


By = Mapping[Role, Replied]


def gated(model: Model, seen: Sequence[Seen], val: Examples, advance: Advance = no_progress) -> list[dict[Role, Replied]]:
    """Let each edited model write short replies to val prompts of every role. ``advance`` counts replies, ``gate_work`` in total."""
    asked = {role: _asked(role, found) for role, found in val.judged.items()}
    prompts = {role: [val.judged[role].prompts[i] for i in chosen] for role, chosen in asked.items()}
    passes = [Pass(prompts[role], Intervention(each.edit)) for each in seen for role in asked]
    readers = [(number, role) for number in range(len(seen)) for role in asked]
    outcomes: list[dict[Role, list[Outcome]]] = [{role: [] for role in asked} for _ in seen]
    silence = nothing(model)
    for which, indices, replies in model.replies(passes, short(model.tokenizer), advance):
        number, role = readers[which]
        for index, reply in zip(indices, replies, strict=True):
            prompt = val.judged[role].texts[asked[role][index]]
            outcomes[number][role].append(outcome_of(model.tokenizer, prompt, list(reply) or silence))
    before = {role: [val.judged[role].outcomes[i] for i in chosen] for role, chosen in asked.items()}
    return [{role: _replied(before[role], found[role]) for role in asked} for found in outcomes]


def _replied(before: Sequence[Outcome], after: Sequence[Outcome]) -> Replied:
    withheld = [sum(withholds(outcome) is True for outcome in each) for each in (before, after)]
    return Replied(len(before), *withheld, *(each.count("degenerate") for each in (before, after)))


def gate_work(seen: Sequence[Seen], val: Examples) -> int:
    """How many replies the gate needs."""
    return len(seen) * sum(len(_asked(role, found)) for role, found in val.judged.items())


def _asked(role: Role, found: JudgedReplies) -> Sequence[int]:
    """The prompts that are asked: of the target, those that the unedited model withholds; of other roles, all that can be judged."""
    return evenly([i for i, held in enumerate(found.withheld) if held or (held is False and role != "target")], REPLIES)


def cost(point: Point, replied: By, how: Preference, max_kl: float | None) -> Fraction:
    """The shares of wrong replies of all roles, plus the drift and the bound on KL as in ``Point.cost``."""
    wrong = sum((found.wrong(role) for role, found in replied.items()), Fraction(0))
    return wrong + Fraction(WEIGHTS[how]) * point.moved + exceeded(point.kl, max_kl)


def passed(points: Sequence[Point], replied: Mapping[int, By], how: Preference, max_kl: float | None) -> int:
    """The index of the cheapest of the edits that replied."""
    return min(replied, key=lambda i: (cost(points[i], replied[i], how, max_kl), points[i].edits, i))


def saved(replied: By) -> dict[Role, dict[str, int]]:
    """JSON values of an edit's figures."""
    return {role: asdict(found) for role, found in replied.items()}


def loaded(values: Mapping[Role, Mapping[str, int]]) -> dict[Role, Replied]:
    """An edit's figures of their JSON values."""
    return {role: Replied(**found) for role, found in values.items()}
