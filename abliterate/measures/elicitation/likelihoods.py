"""The scores of facts: how much more likely a question makes them, by forward passes alone.

The score of a fact in a context is log p(fact | context with the question) - log p(fact | context with a neutral question), in nats: the
pointwise mutual information of Holtzman et al. 2021 ("Surface form competition", arXiv 2104.08315), so that common words don't win.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from abliterate.compute.forward import Continued
from abliterate.compute.passes import Advance, Ids, Model, no_progress
from abliterate.measures.elicitation.contexts import Encoded, contexts_of, with_facts
from abliterate.measures.elicitation.matching import MatchedPrompt
from abliterate.measures.parts.elicitation import CONTEXTS, Context, ElicitedScores, ScoredFact, ScoredPrompt, Unmatched
from abliterate.measures.predictions import ask
from abliterate.prompts.languages.record import language

_PLACES = 4  # decimals of a score
Key = tuple[Context, str, str, str]  # context, language, question, fact


class _Likelihoods:
    """``found`` [sequence]: the log-likelihood in nats of each fact after what stands before it. All facts have the same number of tokens,
    so that what stands before several of them is computed once."""

    def __init__(self, encoded: Sequence[Encoded]) -> None:
        self._asked = Continued([each.before for each in encoded], [each.fact for each in encoded])
        self.passed = self._asked.passed()
        self.found = torch.zeros(len(encoded))

    def hear(self, indices: Sequence[int], logits: Float[Tensor, "row kept vocab"]) -> None:
        self.found[list(indices)] = self._asked.logprobs(indices, logits)


@dataclass(frozen=True)
class FactSequences:
    """All facts of matched prompts, true and false, after their questions and after a neutral question, as a tokenizer encodes them."""

    matched: Sequence[MatchedPrompt]
    encoded: Mapping[Key, Encoded] = field(repr=False)

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, matched: Sequence[MatchedPrompt]) -> FactSequences:
        """Raises InputError if the chat template fails."""
        facts: dict[tuple[str, str], dict[str, None]] = {}  # by language and question, in a fixed order
        for each in matched:
            texts = dict.fromkeys(text for one in each.facts for text in (one.fact, *one.false))
            for question in (each.prompt.text, _neutral(each.prompt.lang)):
                facts.setdefault((each.prompt.lang, question), {}).update(texts)
        found: dict[Key, Encoded] = {}
        for (lang, question), texts in facts.items():
            for context, before in contexts_of(tokenizer, question, lang).items():
                encoded = with_facts(tokenizer, before, list(texts))
                found.update(((context, lang, question, fact), ids) for fact, ids in zip(texts, encoded, strict=True))
        return cls(matched, found)

    @property
    def work(self) -> int:
        """How many sequences run through a model."""
        return len(self.encoded)

    @property
    def ids(self) -> Ids:
        """Every sequence."""
        return [[*each.before, *each.fact] for each in self.encoded.values()]

    def measured(self, model: Model, advance: Advance = no_progress) -> ElicitedScores:
        """The scores of all facts. Weights on disk are read once."""
        groups = [_Likelihoods([self.encoded[key] for key in keys]) for keys in self._grouped]
        ask(model, groups, advance)
        nats: dict[Key, float] = {}
        for keys, group in zip(self._grouped, groups, strict=True):
            nats.update(zip(keys, group.found.tolist(), strict=True))
        unmatched = Unmatched(
            in_question=sum(each.in_question for each in self.matched),
            no_sibling=sum(each.no_sibling for each in self.matched),
            other_kind=sum(fact.other_kind for each in self.matched for fact in each.facts),
        )
        return ElicitedScores(unmatched=unmatched, prompts=tuple(_scored(each, nats) for each in self.matched))

    @cached_property
    def _grouped(self) -> Sequence[Sequence[Key]]:
        """The sequences of each pass: one context, one language, one number of tokens after it."""
        found: dict[tuple[Context, str, int], list[Key]] = {}
        for key, ids in self.encoded.items():
            found.setdefault((*key[:2], len(ids.fact)), []).append(key)
        return list(found.values())


def _neutral(lang: str) -> str:
    return language(lang).eliciting.neutral


def _scored(matched: MatchedPrompt, nats: Mapping[Key, float]) -> ScoredPrompt:
    lang, question = matched.prompt.lang, matched.prompt.text

    def score(context: Context, fact: str) -> float:
        return round(nats[context, lang, question, fact] - nats[context, lang, _neutral(lang), fact], _PLACES)

    facts = tuple(
        ScoredFact(
            fact=one.fact,
            kind=one.kind,
            false=one.false,
            true_scores={context: score(context, one.fact) for context in CONTEXTS},
            false_scores={context: tuple(score(context, false) for false in one.false) for context in CONTEXTS},
        )
        for one in matched.facts
    )
    return ScoredPrompt(set=matched.set, id=matched.prompt.id, facts=facts)
