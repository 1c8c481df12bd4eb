"""Openings with which edited models withhold.

The unedited model's openings show how its own refusals begin. An edit can suppress these openings while the model withholds with another
one. So the edited model's short replies are read after each phase of the descent, and the openings of those that withhold join the
examples: the model learns from its own mistakes (Ross, Gordon and Bagnell 2011, arXiv 1011.0686). Before the descent, the edits that it may
start from reply to val prompts, so that none looks good only because it trades one refusal for another.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from abliterate.choice.openings import OPENING_TOKENS
from abliterate.choice.tuning.after_thought import Line
from abliterate.choice.tuning.examples import OTHERS, Examples, way_of
from abliterate.choice.tuning.openings import ALIKE, TargetOpenings, own_likelihood
from abliterate.choice.tuning.replies import nothing, outcome_of, short, withholds
from abliterate.compute.passes import Intervention, Model, Pass
from abliterate.compute.whole.model import share_more_below
from abliterate.model.chat.thinking import opens_thought
from abliterate.model.edit import Edit
from abliterate.prompts.promptset import evenly
from abliterate.runs.resume import NO_STORE, ResumeStore

HEARD = 48  # replies read per split and phase; an opening of one reply in twenty is then missed in 9 % of cases

Key = tuple[int, ...]


@dataclass(frozen=True)
class Heard:
    """An edited model's reply to the target prompt at index ``place``, as a ``line`` after that prompt, and whether it ``withholds``."""

    place: int
    line: Line
    withholds: bool

    @property
    def key(self) -> Key:
        """The first tokens, which openings are compared by."""
        return tuple(self.line.tokens[:ALIKE])


def hear(model: Model, edit: Edit, examples: Examples) -> list[Heard]:
    """Short replies of the edited model to some of the target prompts that the unedited model withholds. Those that can't be judged are
    left out."""
    prompts = examples.asked
    places = evenly(range(len(prompts)), HEARD)
    opened, silence = opens_thought(model.tokenizer), nothing(model)
    found: dict[int, Heard] = {}
    asked = Pass([examples.target.prompts[i] for i in places], Intervention(edit))
    for _, indices, replies in model.replies([asked], short(model.tokenizer)):
        for index, reply in zip(indices, replies, strict=True):
            place, said = places[index], list(reply) or silence
            thought = examples.thoughts[place]
            held = withholds(outcome_of(model.tokenizer, prompts[place], said, thought))
            if held is not None:
                way = way_of(model, said) if opened and not thought else Line([], said)
                found[place] = Heard(place, Line(way.thought, way.tokens[:OPENING_TOKENS]), held)
    return [found[place] for place in sorted(found)]


def later_lines(examples: Examples, heard: Sequence[Heard]) -> list[list[Line]]:
    """For each target prompt, lines of edited models that may withhold it and that begin differently from all lines known before: those of
    its own replies, then the most frequent ones of other prompts in its language.

    An opening counts only if more than half of the replies that begin with it withhold, because answers can begin with it too.
    """
    groups = [(prompt.lang, bool(thought)) for prompt, thought in zip(examples.asked, examples.thoughts, strict=True)]
    replies, withheld = (Counter((groups[h.place], h.key) for h in heard if each or h.withholds) for each in (True, False))
    told = {which for which, count in withheld.items() if 2 * count > replies[which]}
    telling = [h for h in heard if h.withholds and (groups[h.place], h.key) in told]
    first = {(groups[h.place], h.key): h.line for h in reversed(telling) if not h.line.thought}
    frequent = sorted(first, key=lambda which: (-withheld[which], which))
    made: list[list[Line]] = []
    for place, group in enumerate(groups):
        *kinds, _ = examples.kinds(place)
        known = {tuple(line.tokens[:ALIKE]) for kind in kinds for line in kind}
        own = {h.key: h.line for h in telling if h.place == place and h.key not in known}
        others = {key: first[its, key] for its, key in frequent if its == group and key not in known and key not in own}
        made.append([*own.values(), *list(others.values())[:OTHERS]])
    return made


@dataclass
class OnPolicy:
    """The examples of a descent, which grow with what edited models say. ``store`` holds their replies, so that a resumed descent needs not
    hear them again."""

    model: Model
    train: Examples
    val: Examples
    store: ResumeStore = NO_STORE
    heard: dict[str, list[Heard]] = field(default_factory=lambda: {"train": [], "val": []})

    def after(self, edit: Edit) -> Examples:
        """Let the edited model reply to train and val prompts. Returns the train examples with all lines found so far."""
        self.heard["train"] += self._hear("train", edit, self.train)
        self.train = replace(self.train, later=later_lines(self.train, self.heard["train"]))
        self.on_val(edit)
        return self.train

    def on_val(self, edit: Edit) -> Examples:
        """Let the edited model reply to val prompts. Returns the val examples with all lines found so far."""
        self.heard["val"] += self._hear("val", edit, self.val)
        later = later_lines(self.val, self.heard["val"])
        if later != self.val.later:
            val = self.val
            openings = TargetOpenings.of(val.target, val.others, [[*b, *more] for b, more in zip(val.behind, later, strict=True)])
            share_more_below(self.model, openings.asked.passed().sequences)
            self.val = replace(val, later=later, openings=openings, likely=own_likelihood(self.model, openings))
        return self.val

    def _hear(self, split: str, edit: Edit, examples: Examples) -> list[Heard]:
        store = self.store.of([split], [edit.direction, edit.strength])
        name = f"heard-{split}-{len(self.heard[split])}"
        stored = store.value(name)
        if stored is None:
            found = hear(self.model, edit, examples)
            stored = [[h.place, list(h.line.thought), list(h.line.tokens), h.withholds] for h in found]
            store.save_value(name, stored)
        return [Heard(place, Line(thought, tokens), held) for place, thought, tokens, held in stored]
