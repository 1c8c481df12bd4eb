"""A model's own marks of thoughts: kept by decoding, found in its template, written where a thought is cut or left out."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import CHATML, byte_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AddedToken, PreTrainedTokenizerFast

from abliterate.errors import InputError
from abliterate.model.chat.parts import Parts, split_thought
from abliterate.model.chat.template import encode, load_tokenizer
from abliterate.model.chat.thinking import closing, decode, empty_thought, marks_are_dropped, marks_of, opens_thought, tokens_before
from abliterate.model.chat.thought_marks import table

WRITTEN = [marks for marks in table() if marks.is_written]
FAMILIES = pytest.mark.parametrize("name", [marks.name for marks in WRITTEN])
SAID = "Let me see: größer, 漢字."


def family(name: str) -> tuple[str, ...]:
    return next(marks.tokens for marks in WRITTEN if marks.name == name)


def special(*tokens: str, template: str = CHATML) -> PreTrainedTokenizerFast:
    tokenizer = byte_tokenizer(template)
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=True) for token in tokens], special_tokens=True)
    return tokenizer


def opening(text: str) -> str:
    return CHATML.replace("assistant\n{% endif %}", "assistant\n{{ '" + text.replace("\n", "\\n") + "' }}{% endif %}")


@FAMILIES
def test_marks_that_are_special_tokens_stay_where_others_are_dropped(name: str) -> None:
    tokenizer, marks = special(*family(name)), next(marks for marks in WRITTEN if marks.name == name)
    ids = tokenizer(f"{marks.open}{SAID}{marks.closing}Paris.<|im_end|><|endoftext|>")["input_ids"]
    assert marks_are_dropped(tokenizer)
    assert split_thought(decode(tokenizer, ids)) == Parts(SAID, "Paris.", True)
    assert decode(tokenizer, tokenizer("<|im_start|>Paris.<|im_end|>")["input_ids"]) == "Paris."


@FAMILIES
def test_the_end_of_a_turn_is_no_mark_of_channels_where_there_are_none(name: str) -> None:
    tokenizer = special("<|end|>")
    assert not marks_are_dropped(tokenizer)
    assert decode(tokenizer, tokenizer("Paris.<|end|>")["input_ids"]) == "Paris."


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=30))
def test_without_marks_decoding_is_that_of_the_tokenizer(text: str) -> None:
    tokenizer = byte_tokenizer()
    ids = tokenizer(text + "<|im_end|>")["input_ids"]
    assert decode(tokenizer, ids) == tokenizer.decode(ids, skip_special_tokens=True)


@FAMILIES
@pytest.mark.parametrize("as_special", [True, False])
def test_a_template_that_opens_a_thought_says_whose_marks_end_it(name: str, as_special: bool) -> None:
    marks = next(marks for marks in WRITTEN if marks.name == name)
    tokenizer = special(*marks.tokens if as_special else (), template=opening(marks.open))
    assert opens_thought(tokenizer) and marks_of(tokenizer) == marks
    assert tokenizer.decode(closing(tokenizer)) == marks.closing and tokenizer.decode(empty_thought(tokenizer)) == marks.at_once


@FAMILIES
def test_marks_are_known_by_the_template_and_by_the_vocabulary(name: str) -> None:
    marks = next(marks for marks in WRITTEN if marks.name == name)
    past = "{# a thought of before: " + marks.open.strip() + "..." + marks.close + " #}"
    for tokenizer in (byte_tokenizer(past + CHATML), special(*marks.tokens)):
        assert not opens_thought(tokenizer) and marks_of(tokenizer) == marks
    assert marks_of(byte_tokenizer()).name == "think"


@FAMILIES
def test_without_thinking_the_prompt_leads_to_the_answer(name: str, tmp_path: Path) -> None:
    marks = next(marks for marks in WRITTEN if marks.name == name)
    special(*marks.tokens, template=opening(marks.open)).save_pretrained(tmp_path)
    tokenizer = load_tokenizer(tmp_path, thinks=False)
    (ids,) = encode(tokenizer, ["Hi"])
    end = tokenizer.decode(ids).partition("assistant\n")[2]
    assert split_thought(end + "Paris.") == Parts("", "Paris.", True) and not opens_thought(tokenizer)


def test_channels_lead_straight_to_the_final_one(tmp_path: Path) -> None:
    marks = next(marks for marks in WRITTEN if marks.name == "harmony")
    past = "{% if false %}" + marks.open + marks.close + "{% endif %}"
    special(*marks.tokens, template=past + CHATML).save_pretrained(tmp_path)
    tokenizer = load_tokenizer(tmp_path, thinks=False)
    assert tokenizer.decode(encode(tokenizer, ["Hi"])[0]).endswith("assistant\n<|channel|>final<|message|>")


def test_marks_of_a_template_without_a_switch_can_not_be_left_out(tmp_path: Path) -> None:
    special("[THINK]", "[/THINK]", template="{# [THINK][/THINK] #}" + CHATML).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="has no thinking block to skip"):
        load_tokenizer(tmp_path, thinks=False)


def test_tokens_are_counted_up_to_a_character() -> None:
    tokenizer = special("<think>", "</think>")
    ids = tokenizer("<think>漢字</think>Paris")["input_ids"]
    for place in range(len(text := decode(tokenizer, ids)) + 1):
        count = tokens_before(tokenizer, ids, place)
        assert len(decode(tokenizer, ids[:count])) >= place and (count == 0 or len(decode(tokenizer, ids[: count - 1])) < place)
    assert decode(tokenizer, ids[tokens_before(tokenizer, ids, text.index("Paris")) :]) == "Paris"
