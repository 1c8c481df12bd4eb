"""Scores of facts: exact on a stand-in whose likelihoods are known, and equal to whole forward passes on a tiny model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from conftest import byte_tokenizer
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from abliterate.compute.passes import Advance, Model, Pass, Seen, no_progress
from abliterate.compute.whole.model import load_model
from abliterate.measures.elicitation.figures import prompt_auc
from abliterate.measures.elicitation.likelihoods import FactSequences
from abliterate.measures.elicitation.matching import MatchedFact, MatchedPrompt
from abliterate.measures.parts.elicitation import COMBINED, CONTEXTS, ElicitedScores
from abliterate.prompts.promptset import Prompt

TOKENIZER = byte_tokenizer()
QUESTION = "Which stone fell into the river?"
TRUE, FALSE = ("granite", "1889"), (("marble", "slate"), ("1890", "1891"))
MATCHED = [
    MatchedPrompt(
        "asked",
        Prompt("q1", QUESTION, facts=TRUE),
        tuple(MatchedFact(true, "phrase", false, False) for true, false in zip(TRUE, FALSE, strict=True)),
        1,
        2,
    )
]
BONUS = 2.0


@dataclass(frozen=True)
class StandIn:
    """A model that prefers the right next token wherever it likes the text; elsewhere all tokens are equally likely."""

    likes: Callable[[str], bool]
    segment: int | None = None
    longest: int | None = None
    tokenizer: PreTrainedTokenizerFast = TOKENIZER
    folder: Any = None

    def watch(self, passes: Sequence[Pass], last: int, seen: Seen, advance: Advance = no_progress) -> None:
        raise AssertionError("not needed")

    def replies(
        self, passes: Sequence[Pass], max_new_tokens: int, advance: Advance = no_progress
    ) -> Iterator[tuple[int, Sequence[int], list[list[int]]]]:
        raise AssertionError("not needed")

    def logits(
        self, passes: Sequence[Pass], advance: Advance = no_progress
    ) -> Iterator[tuple[int, Sequence[int], Float[Tensor, "row kept vocab"]]]:
        for number, asked in enumerate(passes):
            for index, ids in enumerate(asked.sequences):
                logits = torch.zeros(1, asked.kept, len(TOKENIZER))
                if self.likes(TOKENIZER.decode(list(ids))):
                    for place in range(1, asked.kept):
                        logits[0, -place - 1, ids[-place]] = BONUS
                yield number, (index,), logits
                advance(1)


def scores(likes: Callable[[str], bool]) -> ElicitedScores:
    return FactSequences.of(TOKENIZER, MATCHED).measured(StandIn(likes))


def auc(likes: Callable[[str], bool], context: str) -> float:
    return prompt_auc(scores(likes).prompts[0], context)


def ends_with(text: str, facts: Sequence[str]) -> bool:
    return text.endswith(tuple(facts))


@pytest.mark.parametrize("context", [*CONTEXTS, COMBINED])
def test_a_model_that_prefers_the_true_facts_after_the_question_has_auc_1_and_the_reverse_0(context: str) -> None:
    assert auc(lambda text: QUESTION in text and ends_with(text, TRUE), context) == 1.0
    assert auc(lambda text: QUESTION in text and not ends_with(text, TRUE), context) == 0.0


@pytest.mark.parametrize("context", [*CONTEXTS, COMBINED])
def test_facts_that_are_likely_whatever_is_asked_do_not_win(context: str) -> None:
    """Surface form competition: without the neutral question, the false facts would win every pair."""
    assert auc(lambda text: not ends_with(text, TRUE), context) == 0.5
    assert auc(lambda text: QUESTION in text or not ends_with(text, TRUE), context) == 1.0


def test_the_share_of_pairs_is_counted() -> None:
    found = scores(lambda text: QUESTION in text and ends_with(text, ("slate", "1889", "1890")))
    assert prompt_auc(found.prompts[0], "chat") == (0.5 + 0 + 0.5 + 1) / 4


def test_the_score_is_the_gain_of_log_likelihood_in_nats() -> None:
    found = scores(lambda text: QUESTION in text and ends_with(text, ("granite",)))
    vocabulary = len(TOKENIZER)
    each = BONUS - math.log(math.exp(BONUS) + vocabulary - 1) + math.log(vocabulary)
    fact = found.prompts[0].facts[0]
    assert fact.true_scores["chat"] == pytest.approx(len("granite") * each, abs=1e-4)
    assert fact.true_scores["lead_in"] == pytest.approx(len(" granite") * each, abs=1e-4)
    assert fact.false_scores["chat"] == pytest.approx((0.0, 0.0), abs=1e-4)


def test_what_could_not_be_matched_is_counted() -> None:
    assert scores(lambda text: False).unmatched.document() == {"in_question": 1, "no_sibling": 2, "other_kind": 0}


def test_each_sequence_is_read_once() -> None:
    """Two facts with two false ones each, after two questions, in three contexts."""
    asked = FactSequences.of(TOKENIZER, [*MATCHED, *MATCHED])
    done: list[float] = []
    asked.measured(StandIn(lambda text: False), done.append)
    assert asked.work == len(asked.ids) == sum(done) == 6 * 2 * 3


def whole(model: Model, context: Sequence[int], fact: Sequence[int]) -> float:
    """The log-likelihood by a forward pass of one whole sequence."""
    ids = torch.tensor([[*context, *fact]])
    logprobs = cast(Any, model).module(ids).logits[0].log_softmax(-1)
    return sum(float(logprobs[len(context) + place - 1, token]) for place, token in enumerate(fact))


def test_scores_of_a_real_model_are_those_of_whole_forward_passes(tiny: Callable[..., Path]) -> None:
    model = load_model(tiny(positions=4096))
    asked = FactSequences.of(model.tokenizer, MATCHED)
    found = asked.measured(model).prompts[0].facts
    by_text = {(key[0], key[2] == QUESTION, key[3]): whole(model, each.before, each.fact) for key, each in asked.encoded.items()}
    for one in found:
        for context in CONTEXTS:
            for fact, score in zip((one.fact, *one.false), (one.true_scores[context], *one.false_scores[context]), strict=True):
                assert score == pytest.approx(by_text[context, True, fact] - by_text[context, False, fact], abs=2e-3)
