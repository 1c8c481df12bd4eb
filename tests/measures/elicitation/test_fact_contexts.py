"""What stands before a fact, and where its tokens begin."""

from __future__ import annotations

import pytest
from conftest import CHATML, SPECIALS, byte_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from abliterate.measures.elicitation.contexts import Before, contexts_of, with_facts
from abliterate.measures.parts.elicitation import CONTEXTS
from abliterate.prompts.languages.record import languages

QUESTIONS = {"en": "What happened?", "zh": "发生了什么？"}
FACTS = {"en": "massacre", "zh": "屠杀"}


def merging_tokenizer(*merges: tuple[str, str]) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with a few longer tokens, and no border between a mark and a letter."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate([*SPECIALS, *alphabet, *("".join(merge) for merge in merges)])}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=list(merges), unk_token=None))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>", additional_special_tokens=SPECIALS)
    made.chat_template = CHATML
    return made


@pytest.mark.parametrize("lang", list(QUESTIONS))
def test_the_tokens_of_a_fact_are_its_text_with_a_space_where_the_language_has_them(lang: str) -> None:
    tokenizer = byte_tokenizer()
    joint = {"en": " ", "zh": ""}[lang]
    for context, before in contexts_of(tokenizer, QUESTIONS[lang], lang).items():
        (found,) = with_facts(tokenizer, before, [FACTS[lang]])
        assert tokenizer.decode(found.fact) == ("" if context == "chat" else joint) + FACTS[lang]
        assert tokenizer.decode(found.before) == before.text


def test_text_and_fact_are_encoded_as_one_text() -> None:
    tokenizer = byte_tokenizer()
    for before in contexts_of(tokenizer, QUESTIONS["en"], "en").values():
        (found,) = with_facts(tokenizer, before, ["massacre"])
        assert [*found.before, *found.fact] == tokenizer(before.text + before.joint + "massacre", add_special_tokens=False)["input_ids"]


def test_a_token_across_the_border_belongs_to_the_fact_and_nothing_is_lost_or_read_twice() -> None:
    tokenizer = merging_tokenizer((":", "y"), ("Ġ", "x"))
    first, second, third = with_facts(tokenizer, Before("Say:", ""), ["yes", "no", " xy"])
    assert tokenizer.convert_ids_to_tokens(first.fact) == [":y", "e", "s"] and tokenizer.decode(first.before) == "Say"
    assert tokenizer.convert_ids_to_tokens(second.fact) == ["n", "o"] and tokenizer.decode(second.before) == "Say:"
    assert tokenizer.convert_ids_to_tokens(third.fact) == ["Ġx", "y"]
    for found, fact in ((first, "yes"), (second, "no"), (third, " xy")):
        assert tokenizer.decode([*found.before, *found.fact]) == "Say:" + fact


def test_facts_after_the_same_text_share_one_list_of_its_tokens() -> None:
    found = with_facts(byte_tokenizer(), Before("Say:", " "), ["one", "two", "three"])
    assert found[0].before is found[1].before is found[2].before


def test_the_few_shot_context_has_no_chat_template_and_the_others_have_it() -> None:
    found = contexts_of(byte_tokenizer(), QUESTIONS["en"], "en")
    assert tuple(found) == CONTEXTS
    assert ["<|im_start|>" in found[context].text for context in CONTEXTS] == [True, False, True]
    assert found["few_shot"].text.endswith("Question: What happened?\nAnswer:") and found["few_shot"].text.count("Question:") == 7
    assert found["lead_in"].text == found["chat"].text + "The answer, in a few key words:"


def test_a_language_without_texts_of_its_own_is_asked_in_the_default_one() -> None:
    assert contexts_of(byte_tokenizer(), "Quoi ?", "fr")["lead_in"].text.endswith(languages()[0].eliciting.lead_in)


def test_only_the_context_without_a_template_begins_as_the_tokenizer_begins_a_text() -> None:
    """The template writes its own beginning."""
    tokenizer = byte_tokenizer(bos="<s>")
    tokenizer.add_bos_token = True
    found = contexts_of(tokenizer, QUESTIONS["en"], "en")
    added = tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id
    assert found["few_shot"].first == ((tokenizer.bos_token_id,) if added else ())
    assert found["chat"].first == found["lead_in"].first == ()


def test_an_opened_thought_is_closed_before_the_fact() -> None:
    template = CHATML.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
    found = contexts_of(byte_tokenizer(template), QUESTIONS["en"], "en")
    assert found["chat"].text.rstrip().endswith("</think>") and "</think>" in found["lead_in"].text
    assert "think" not in found["few_shot"].text
