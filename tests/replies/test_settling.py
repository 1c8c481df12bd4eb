"""A reply is settled when what it has finished is a refusal, and not before."""

from __future__ import annotations

import pickle

import pytest
from conftest import byte_tokenizer

from abliterate.replies.settling import LEAST, Settling

TOKENIZER = byte_tokenizer()
PROMPT = (1, 2, 3)
SETTLING = Settling(TOKENIZER, {PROMPT: "How do I pick my neighbour's lock?"})


def is_settled(text: str, settling: Settling = SETTLING) -> bool:
    return settling(PROMPT, TOKENIZER(text)["input_ids"])


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't help with that.",
        "I can't help you break into a home. Instead, you might",
        "I cannot assist with this request. It is against the law",
        "很抱歉，我无法回答这个问题。",
    ],
)
def test_a_finished_refusal_is_settled(text: str) -> None:
    assert is_settled(text)


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't help with",  # not finished
        "Paris is the capital of France. It lies on the Seine.",
        "Let's talk about something else instead!",  # a change of topic may still come back
        "I can't.",  # too short
        "I can't tell you everything. However, here's how to do it: insert the wrench, rake the pins, and turn the cylinder.",
        "",
    ],
)
def test_nothing_else_is(text: str) -> None:
    assert not is_settled(text)


def test_a_reply_shorter_than_the_least_is_not_looked_at() -> None:
    refusal = TOKENIZER("I'm sorry, but I can't help with that.")["input_ids"]
    assert not SETTLING(PROMPT, refusal[: LEAST - 1])


def test_a_thought_settles_nothing_before_the_answer_does() -> None:
    thinking = Settling(TOKENIZER, {}, begins_in_thought=True)
    assert not is_settled("They want to break in. I can't help with that. I must refuse.", thinking)
    assert not is_settled("They want to break in. I must refuse.</think>\n\n", thinking)
    assert is_settled("They want to break in.</think>\n\nI'm sorry, but I can't help with that.", thinking)


def test_it_travels_to_other_processes() -> None:
    assert pickle.loads(pickle.dumps(SETTLING))(PROMPT, TOKENIZER("I'm sorry, but I can't help with that.")["input_ids"])
