"""For each known fact of a prompt, facts of sibling topics of the same kind and length: alike as text, and false as an answer."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from abliterate.measures.parts.elicitation import Kind
from abliterate.prompts.languages.record import language
from abliterate.prompts.promptset import Prompt, PromptSet, normalised

FALSE = 4  # false facts for each known one
_INSTEAD: Mapping[Kind, tuple[Kind, ...]] = {  # kinds to take where no sibling has the own one, the most alike first
    "date": ("number", "phrase", "name"),
    "number": ("date", "phrase", "name"),
    "name": ("phrase", "number", "date"),
    "phrase": ("name", "number", "date"),
}
_SMALL = 3  # letters of words that names write in lower case, such as "of" and "the"


def kind_of(fact: str, lang: str) -> Kind:
    """The kind of a fact: by the language's patterns of dates and numbers, and capital letters. Names in scripts without capitals can't be
    told, and are phrases."""
    own, text = language(lang).eliciting, normalised(fact)
    if re.search(own.dates, text):
        return "date"
    if re.search(own.numbers, text):
        return "number"
    words = [word for word in re.findall(r"[^\W\d_]+", fact) if len(word) > _SMALL or word[0].isupper()]
    return "name" if fact[:1].isupper() and words and all(word[0].isupper() for word in words) else "phrase"


@dataclass(frozen=True)
class MatchedFact:
    """A known fact with its matched false ones; ``other_kind``: they are of another kind, for lack of any of its own."""

    fact: str
    kind: Kind
    false: tuple[str, ...]
    other_kind: bool


@dataclass(frozen=True)
class MatchedPrompt:
    """A prompt of a set with its matched facts; ``in_question`` and ``no_sibling`` count those that are left out."""

    set: str
    prompt: Prompt
    facts: tuple[MatchedFact, ...]
    in_question: int
    no_sibling: int


@dataclass(frozen=True)
class _Candidate:
    text: str
    key: str
    kind: Kind
    length: int
    subject: str
    of_set: str


_SiblingKey = tuple[str, str, frozenset[str], frozenset[str]]  # set, language, twin sets, own subjects


@dataclass(frozen=True)
class Siblings:
    """The facts of all prompts of whole sets, which may be false for prompts of other topics. ``length``: the tokens of a fact."""

    pool: Sequence[PromptSet]
    length: Callable[[str, str], int]
    _false: dict[_SiblingKey, Sequence[_Candidate]] = field(default_factory=dict, init=False, repr=False)

    def matched(self, groups: Sequence[PromptSet]) -> list[MatchedPrompt]:
        """Every prompt with facts in the groups, with its facts matched. The same prompts and sets always give the same result."""
        return [self._of(group.name, prompt) for group in groups for prompt in group if prompt.facts]

    def _of(self, name: str, prompt: Prompt) -> MatchedPrompt:
        question = normalised(prompt.text)
        key = name, prompt.lang, frozenset(self._twin_sets(prompt)), frozenset(self._own_subjects(prompt))
        if key not in self._false:
            self._false[key] = self._never_true(*key)
        candidates = [each for each in self._false[key] if each.key not in question]
        facts, said, lonely = [], 0, 0
        for fact in dict.fromkeys(prompt.facts):
            if normalised(fact) in question:
                said += 1
            elif (found := self._match(name, prompt, fact, candidates)) is None:
                lonely += 1
            else:
                facts.append(found)
        return MatchedPrompt(name, prompt, tuple(facts), said, lonely)

    def _never_true(self, name: str, lang: str, twins: frozenset[str], own: frozenset[str]) -> Sequence[_Candidate]:
        """Facts of a set and its twins that are of no subject in ``own`` and overlap with no fact of these, each text once."""
        taken = {key for subject in own for key in self._keys.get(subject, ())}
        siblings = [each for each in self._by_lang.get(lang, ()) if each.of_set in {name, *twins} and each.subject not in own]
        siblings.sort(key=lambda each: each.of_set == name)  # of equal texts, the last one stays: that of the set itself
        distinct = {each.key: each for each in siblings}
        return [each for key, each in distinct.items() if not _overlaps(key, taken)]

    def _match(self, name: str, prompt: Prompt, fact: str, candidates: Sequence[_Candidate]) -> MatchedFact | None:
        """The false facts of the fact's kind or, if no sibling has it, of the first other kind that one has; None if none has a fact."""
        kind, length = kind_of(fact, prompt.lang), self.length(fact, prompt.lang)
        of_kind = next((found for each in (kind, *_INSTEAD[kind]) if (found := [c for c in candidates if c.kind == each])), None)
        if of_kind is None:
            return None
        own_set = [each for each in of_kind if each.of_set == name]
        near = sorted(own_set if len(own_set) >= FALSE else of_kind, key=lambda each: abs(each.length - length))
        farthest = abs(near[min(FALSE, len(near)) - 1].length - length)
        equal = [each for each in near if abs(each.length - length) <= farthest]
        chosen = sorted(equal, key=lambda each: (abs(each.length - length), _draw(prompt.id, fact, each.key)))[:FALSE]
        return MatchedFact(fact, kind, tuple(each.text for each in chosen), of_kind[0].kind != kind)

    @cached_property
    def _by_lang(self) -> Mapping[str, Sequence[_Candidate]]:
        found: dict[str, list[_Candidate]] = {}
        for name, prompt in self._prompts():
            for fact in prompt.facts:
                kind, length = kind_of(fact, prompt.lang), self.length(fact, prompt.lang)
                found.setdefault(prompt.lang, []).append(_Candidate(fact, normalised(fact), kind, length, _subject(prompt), name))
        return found

    @cached_property
    def _keys(self) -> Mapping[str, set[str]]:
        """The facts of each subject, in every language."""
        found: dict[str, set[str]] = {}
        for _, prompt in self._prompts():
            found.setdefault(_subject(prompt), set()).update(map(normalised, prompt.facts))
        return found

    @cached_property
    def _twins(self) -> Mapping[str, list[tuple[str, Prompt]]]:
        """By the id of a prompt: the prompts that name it as their pair, and those that it names, with their sets."""
        by_id = {prompt.id: (name, prompt) for name, prompt in self._prompts()}
        found: dict[str, list[tuple[str, Prompt]]] = {}
        for name, prompt in self._prompts():
            if prompt.pair in by_id:
                found.setdefault(prompt.pair, []).append((name, prompt))
                found.setdefault(prompt.id, []).append(by_id[prompt.pair])
        return found

    def _own_subjects(self, prompt: Prompt) -> set[str]:
        """The prompt's topic, and the topics of all twins of the topic's prompts."""
        subject = _subject(prompt)
        same = [each for _, each in self._prompts() if _subject(each) == subject]
        return {subject, *(_subject(twin) for each in (prompt, *same) for _, twin in self._twins.get(each.id, ()))}

    def _twin_sets(self, prompt: Prompt) -> set[str]:
        return {name for name, _ in self._twins.get(prompt.id, ())}

    def _prompts(self) -> Iterator[tuple[str, Prompt]]:
        return ((group.name, prompt) for group in self.pool for prompt in group)


def _subject(prompt: Prompt) -> str:
    """What a prompt is about: its topic, or itself."""
    return f"topic {prompt.topic}" if prompt.topic else f"prompt {prompt.id}"


def _overlaps(key: str, others: set[str]) -> bool:
    """Whether a fact contains one of the others, or is contained in one."""
    return any(key in other or other in key for other in others)


def _draw(*parts: str) -> str:
    """A fixed order of equally near facts that differs from fact to fact, so that none stands beside most others."""
    return hashlib.sha256("\0".join(parts).encode("utf-8", "replace")).hexdigest()
