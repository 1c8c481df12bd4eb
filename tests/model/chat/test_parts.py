"""Thought and answer apart, whatever marks stand around the thought."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from abliterate.model.chat.parts import Parts, joined, split_thought
from abliterate.model.chat.thought_marks import Marks, table

THOUGHT, ANSWER = "The user asks for a capital. I can't refuse that.", "Paris, on the Seine."
ANALYSIS, FINAL = "<|channel|>analysis<|message|>", "<|start|>assistant<|channel|>final<|message|>"
WRITTEN = [marks for marks in table() if marks.is_written]


@pytest.mark.parametrize(
    ("response", "begins", "parts"),
    [
        ("Paris.", False, Parts(None, "Paris.", True)),
        ("  <think>\na\n</think>\n\nb\n", False, Parts("a", "b", True)),
        ("a\n</think>\nb", True, Parts("a", "b", True)),
        ("a\n</think>\nb", False, Parts("a", "b", True)),
        ("<think>a", False, Parts("a", "", False)),
        ("a", True, Parts("a", "", False)),
        ("", True, Parts("", "", False)),
        ("", False, Parts(None, "", True)),
        ("<think></think>", False, Parts("", "", True)),
        ("The tag <think> opens a thought.", False, Parts(None, "The tag <think> opens a thought.", True)),
    ],
)
def test_thought_and_answer_are_told_apart(response: str, begins: bool, parts: Parts) -> None:
    assert split_thought(response, begins) == parts


@pytest.mark.parametrize("marks", WRITTEN, ids=lambda marks: marks.name)
def test_every_family_of_the_table_is_read_as_it_is_written(marks: Marks) -> None:
    assert split_thought(f"{marks.open}{THOUGHT}{marks.closing}{ANSWER}") == Parts(THOUGHT, ANSWER, True)
    assert split_thought(f"{THOUGHT}{marks.closing}{ANSWER}", True) == Parts(THOUGHT, ANSWER, True)
    assert split_thought(f"{marks.open}{marks.at_once}{ANSWER}") == Parts("", ANSWER, True)
    assert split_thought(f"{marks.open}{THOUGHT}") == Parts(THOUGHT, "", False)


@pytest.mark.parametrize(
    ("response", "parts"),
    [
        (f"{ANALYSIS}{THOUGHT}<|end|>{FINAL}{ANSWER}<|return|>", Parts(THOUGHT, ANSWER, True)),
        (f"{ANALYSIS}{THOUGHT}<|end|>", Parts(THOUGHT, "", False)),
        (f"{ANALYSIS}{THOUGHT}<|end|><|start|>assistant<|channel|>fin", Parts(THOUGHT, "", False)),
        (f"{ANALYSIS}a<|end|><|start|>assistant<|channel|>commentary<|message|>b<|end|>{FINAL}{ANSWER}", Parts("a\n\nb", ANSWER, True)),
        (f"<|channel|>commentary to=functions.x <|constrain|>json<|message|>a<|end|>{FINAL}{ANSWER}", Parts("a", ANSWER, True)),
        (f"<|channel|>final<|message|>{ANSWER}", Parts(None, ANSWER, True)),
        (f"analysis{THOUGHT}assistantfinal{ANSWER}", Parts(THOUGHT, ANSWER, True)),
        (f"analysiswe thinkassistantfinal{ANSWER}", Parts("we think", ANSWER, True)),
        (f"analysisaassistantcommentarybassistantfinal{ANSWER}", Parts("a\n\nb", ANSWER, True)),
        (f"analysis{THOUGHT}", Parts(THOUGHT, "", False)),
        (f"final{ANSWER}", Parts(None, ANSWER, True)),
    ],
)
def test_channels_are_read_with_and_without_their_marks(response: str, parts: Parts) -> None:
    assert split_thought(response) == parts


@pytest.mark.parametrize(
    "prose",
    [
        "analysis of the text shows that the assistant final report was late.",
        "analysis: the assistant's final word is no.",
        "Analysis\nThe assistant final draft.",
        "final answer: 42",
        "finally, Paris.",
        "import com.example.messageassistantfinal;",
        "The tags <think> and </think> are those of R1.",
        'R1 writes `<think>` and `</think>`, Magistral "[THINK]" and "[/THINK]".',
        "Write it so:\n```\n<think>\nyour thought\n</think>\n```\nand nothing else.",
        "Here is my thought process: first I add, then I divide.",
    ],
)
def test_prose_that_speaks_of_marks_is_an_answer(prose: str) -> None:
    assert split_thought(prose) == Parts(None, prose, True)


@pytest.mark.parametrize(
    "thought",
    [
        'the user wrote "</think>", so what?',
        "the user wrote “</think>” here",
        "the user's prompt ends in `</think>` already",
        "```\n</think>\n```\nis what it says",
        "it says '<think></think>' and I",
    ],
)
@pytest.mark.parametrize("begins", [False, True])
def test_a_closing_mark_that_a_thought_quotes_does_not_end_it(thought: str, begins: bool) -> None:
    opening = "" if begins else "<think>"
    assert split_thought(f"{opening}{thought}</think>\n\n{ANSWER}", begins) == Parts(thought, ANSWER, True)


@pytest.mark.parametrize("thought", ["He is 6'2\" tall.", 'say "no.', "the users' words aren't clear", "5 o'clock"])
@pytest.mark.parametrize("answer", ['"Paris" it is.', "'Twas so.", "It's Paris, isn't it?"])
def test_quotes_that_are_not_closed_hide_no_mark(thought: str, answer: str) -> None:
    assert split_thought(f"<think>{thought}</think>{answer}") == Parts(thought, answer, True)


def test_a_thought_cut_behind_a_quoted_mark_is_not_over() -> None:
    assert split_thought('the user wrote "</think>" and', True) == Parts('the user wrote "</think>" and', "", False)


@pytest.mark.parametrize(
    ("response", "parts"),
    [
        ("<think>a</think>One.\n<think>b</think>\nTwo.", Parts("a\n\nb", "One.\n\nTwo.", True)),
        ("<think>a</think><think>b</think>Two.", Parts("a\n\nb", "Two.", True)),
        ("One.\n<think>b</think>", Parts("b", "One.", True)),
        ("One. <think>b", Parts("b", "One.", True)),
        ("<think>a</think>One.\n<think>b", Parts("a\n\nb", "One.", True)),
        ("<think>a</think>\n</think>\n\nOne.", Parts("a", "One.", True)),
        ("<think>a</think>\n<answer>\nOne.\n</answer>", Parts("a", "One.", True)),
        ("<|START_THINKING|>a<|END_THINKING|><|START_RESPONSE|>One.<|END_RESPONSE|>", Parts("a", "One.", True)),
        ("Here's my thought process: a\nHere's my response:\nOne.", Parts("a", "One.", True)),
    ],
)
def test_several_thoughts_and_marks_of_the_answer(response: str, parts: Parts) -> None:
    assert split_thought(response) == parts


def test_the_answer_starts_right_behind_its_mark() -> None:
    for response, answer in (
        (f"<think>{THOUGHT}</think>\n\n{ANSWER}", f"\n\n{ANSWER}"),
        (f" {ANALYSIS}{THOUGHT}<|end|>{FINAL}{ANSWER}", ANSWER),
        (f"{ANSWER}\n<think>b</think>", f"{ANSWER}\n<think>b</think>"),
        (f"<think>{THOUGHT}", ""),
    ):
        assert response[split_thought(response).start :] == answer


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=40), st.text(max_size=40))
def test_what_a_server_told_apart_comes_apart_again(thought: str, answer: str) -> None:
    parts = split_thought(joined(thought, answer))
    assert (parts.thought, parts.answer, parts.closed) == (thought.strip(), answer.strip(), True)
    assert split_thought(joined(thought, None)) == Parts(thought.strip(), "", False)


def test_a_closing_mark_in_a_thought_that_a_server_told_apart_ends_nothing() -> None:
    assert split_thought(joined("say </think> twice: </think>", ANSWER)).answer == ANSWER
