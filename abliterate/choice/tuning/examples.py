"""The examples for training and measuring the tuner: the unedited model's short replies, and its predictions along them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from transformers import PreTrainedTokenizerBase

from abliterate.choice.openings import OPENING_TOKENS, Openings
from abliterate.choice.tuning.after_thought import Line, is_empty, lines_after_thoughts, parted
from abliterate.choice.tuning.openings import ALIKE, TargetOpenings, own_likelihood
from abliterate.choice.tuning.replies import JudgedReplies, distinct, judged, short, short_replies
from abliterate.compute.forward import Continued
from abliterate.compute.passes import Advance, Ids, Model, no_progress
from abliterate.measures.predictions import Predicted, Predictions, Texts, ask
from abliterate.model.chat.parts import split_thought
from abliterate.model.chat.thinking import closing, decode, opens_thought
from abliterate.prompts import Prompt, Role

STAYS: tuple[Role, ...] = ("keep", "baseline", "harmless")
CONTINUED = 16  # how many first tokens of a reply should stay
LEADING = 0.95  # if this share of replies begins with the same tokens, these tokens carry no information
OTHERS = 4  # openings of other prompts that are tried on each prompt, besides its own


@dataclass(frozen=True)
class Stay:
    """Prompts with the model's own continuations, and its predictions along these. ``lead``: how many first tokens nearly all continuations
    share; the first informative token comes after them."""

    asked: Continued
    predicted: Predicted
    lead: int = 0

    def first(self, index: int) -> int:
        """The index of the first informative token of a continuation."""
        return min(self.lead, len(self.asked.continuations[index]) - 1)


@dataclass(frozen=True)
class Examples:
    """Examples of one split, from the unedited model.

    ``target``: prompts that the model withholds, with its openings. ``others``: for each of these, openings of other prompts in the same
    language. ``behind``: for each, lines that may withhold it after a thought; empty if the chat template opens no thought. ``later``: for
    each, lines with which edited models withheld it or prompts like it (``OnPolicy``). ``thoughts``: for each, the thought that ``target``
    appends to the prompt. ``judged``: all prompts with the unedited model's replies, by role. ``stays``: by role, what should not change:
    withheld keep prompts, and answered baseline and harmless prompts. ``marks``: for each target prompt, how many first tokens of its
    opening close a thought at once, or 0. ``openings``: all continuations that are measured on target prompts. ``likely``: the unedited
    model's mean probability of withholding a target prompt with one of the ``openings``; NaN if not needed. ``unknown``: how many replies
    of all roles are in a language without rules, and therefore not used."""

    target: Openings
    others: Sequence[Sequence[Sequence[int]]]
    behind: Sequence[Sequence[Line]]
    later: Sequence[Sequence[Line]]
    judged: Mapping[Role, JudgedReplies]
    thoughts: Sequence[Sequence[int]]
    stays: Mapping[Role, Stay]
    marks: Sequence[int]
    openings: TargetOpenings
    likely: float
    unknown: int = 0

    @property
    def counts(self) -> dict[Role, int]:
        """The number of prompts of each role."""
        return {"target": len(self.target.prompts), **{role: len(stay.asked.prompts) for role, stay in self.stays.items()}}

    @property
    def asked(self) -> list[Prompt]:
        """The target prompts that are withheld."""
        return [self.judged["target"].texts[i] for i in self.target.indices]

    def kinds(self, place: int) -> tuple[Sequence[Line], ...]:
        """The lines that may withhold a target prompt, by kind: its own opening, openings of other prompts, lines after a thought, lines of
        edited models."""
        own = [Line([], self.target.openings[place])]
        return own, [Line([], other) for other in self.others[place]], self.behind[place], self.later[place]


def examples_of(
    model: Model,
    prompts: Mapping[Role, Sequence[Prompt]],
    advance: Advance = no_progress,
    replies: Mapping[Role, Ids] | None = None,
    predicted: Mapping[Role, Predicted] = MappingProxyType({}),
    measured: bool = True,
) -> Examples:
    """Generate the unedited model's short replies to the prompts of each role, and record its predictions along them.

    ``replies``: short replies that exist already. ``predicted``: by role, predictions along them that exist already. ``measured``: whether
    edits will be measured on these examples. ``advance`` counts the rows that went through the model, at most ``examples_work``.
    """
    found = judged(model, distinct(prompts), short_replies(model, prompts, advance) if replies is None else replies)
    target = found["target"]
    chosen = [i for i, held in enumerate(target.withheld) if held]
    stays = _stays(model, found, predicted, advance)
    opened = opens_thought(model.tokenizer)
    ways = [way_of(model, target.replies[i]) if opened else Line([], target.replies[i]) for i in chosen]
    led = [[*target.prompts[i], *way.thought] for i, way in zip(chosen, ways, strict=True)]
    openings = [list(way.tokens[:OPENING_TOKENS]) for way in ways]
    at_once = [not way.thought for way in ways]
    own = Openings(led, openings, chosen, len(target.prompts))
    others = _others([prompts["target"][i].lang for i in chosen], openings, at_once)
    behind = _behind(model, prompts, found, chosen, at_once) if opened else [[] for _ in chosen]
    tried = TargetOpenings.of(own, others, behind)
    return Examples(
        own,
        others,
        behind,
        [[] for _ in chosen],
        found,
        [way.thought for way in ways],
        stays,
        [_mark(model, opening) for opening in openings],
        tried,
        own_likelihood(model, tried) if measured else math.nan,
        sum(replied.withheld.count(None) for replied in found.values()),
    )


def way_of(model: Model, reply: Sequence[int]) -> Line:
    """The withholding line of a reply of a model that thinks: the whole reply if its thought is empty or nothing follows it, else the line
    after the thought."""
    thought, line = parted(model.tokenizer, reply)
    return Line(thought, line) if line and not is_empty(model.tokenizer, thought) else Line([], reply)


def _behind(
    model: Model,
    prompts: Mapping[Role, Sequence[Prompt]],
    found: Mapping[Role, JudgedReplies],
    chosen: Sequence[int],
    at_once: Sequence[bool],
) -> list[list[Line]]:
    """Lines after a thought, for prompts that are withheld ``at_once``. The other prompts' own lines come after a thought already."""
    role: Role = "baseline" if "baseline" in found else "harmless"
    withheld = [(prompts["target"][i], found["target"].replies[i]) for i in chosen]
    answered = [
        (p, reply) for p, reply, held in zip(prompts[role], found[role].replies, found[role].withheld, strict=True) if held is False
    ]
    lines = lines_after_thoughts(model.tokenizer, withheld, answered)
    return [each if once else [] for each, once in zip(lines, at_once, strict=True)]


def _mark(model: Model, opening: Sequence[int]) -> int:
    """How many first tokens close an opened thought and contain nothing else; 0 if none do."""
    for n in range(1, len(opening) + 1):
        parts = split_thought(decode(model.tokenizer, opening[:n]), True)
        if parts.closed:
            return n if not parts.thought and not parts.answer else 0
    return 0


def _stays(model: Model, found: Mapping[Role, JudgedReplies], predicted: Mapping[Role, Predicted], advance: Advance) -> dict[Role, Stay]:
    """The replies that should stay, with the model's predictions along them: from ``predicted``, or computed now."""
    chosen = {role: _staying(found[role], role) for role in STAYS if role in found}
    asked = {role: found[role].chosen(indices, CONTINUED) for role, indices in chosen.items()}
    unknown = {role: each for role, each in asked.items() if role not in predicted}
    hearers = {role: Predictions(model, Texts(each.prompts, each.continuations, [])) for role, each in unknown.items()}
    ask(model, list(hearers.values()), advance)
    lead = led_by([reply for each in asked.values() for reply in each.continuations])
    along = {role: hearers[role].found if role in hearers else predicted[role].of(chosen[role]) for role in asked}
    return {role: Stay(each, along[role], lead) for role, each in asked.items()}


def led_by(replies: Ids) -> int:
    """How many first tokens nearly all replies share, such as a mark that opens a thought, or a role's name. At least one token of the
    longest reply always remains."""
    most = max(map(len, replies), default=1) - 1
    for length in range(most, 0, -1):
        ((_, count),) = Counter(tuple(reply[:length]) for reply in replies if len(reply) > length).most_common(1) or [((), 0)]
        if count >= LEADING * len(replies):
            return length
    return 0


def _staying(found: JudgedReplies, role: Role) -> Sequence[int]:
    """Indices of the replies that should stay: withheld keep prompts, or answered prompts of other roles; all prompts if there are none."""
    return [i for i, held in enumerate(found.withheld) if held is (role == "keep")] or range(len(found.prompts))


def examples_work(prompts: Mapping[Role, Sequence[Prompt]], replied: Collection[Role] = (), predicted: Collection[Role] = ()) -> int:
    """The most rows that ``examples_of`` reports to ``advance``. Replies of roles in ``replied`` and predictions of roles in ``predicted``
    are not computed again."""
    asked = distinct(prompts)
    again = sum(len(each) for role, each in asked.items() if role in STAYS and role not in predicted)
    return again + sum(len(each) for role, each in asked.items() if role not in replied)


def most_tokens_after_prompts(tokenizer: PreTrainedTokenizerBase) -> int:
    """The most tokens that can follow a prompt: a short reply; or a thought, its closing mark and a line that withholds."""
    closed = len(closing(tokenizer)) + OPENING_TOKENS if opens_thought(tokenizer) else 0
    return short(tokenizer) + closed


def _others(langs: Sequence[str], openings: Sequence[Sequence[int]], at_once: Sequence[bool]) -> list[list[list[int]]]:
    """For each prompt that is withheld ``at_once``, the most frequent openings of this kind in its language that begin differently from its
    own; empty for the other prompts."""
    counts: dict[str, Counter[tuple[int, ...]]] = {lang: Counter() for lang in langs}
    whole: dict[tuple[int, ...], list[int]] = {}
    for lang, opening, once in zip(langs, openings, at_once, strict=True):
        key = tuple(opening[:ALIKE])
        if once:
            counts[lang][key] += 1
            whole.setdefault(key, list(opening))
    frequent = {lang: [key for key, _ in sorted(found.items(), key=lambda item: (-item[1], item[0]))] for lang, found in counts.items()}
    return [
        [whole[key] for key in frequent[lang] if key != tuple(opening[:ALIKE])][:OTHERS] if once else []
        for lang, opening, once in zip(langs, openings, at_once, strict=True)
    ]
