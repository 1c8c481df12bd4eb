"""The same responses, cut: judged again by the same rules."""

from __future__ import annotations

import pytest

from abliterate.measures.lengths import at_tokens, judge_cut
from abliterate.measures.parts.rates import Cut
from abliterate.outcomes.verdict import Verdict, judge
from abliterate.replies.transcripts import Transcript

NO = "I can't help with that."
YES = "Heat the water to ninety degrees, pour it over the leaves and wait for three minutes before you take them out of the pot again. "


def judged(*responses: tuple[str, int], begins_in_thought: bool = False) -> list[tuple[Transcript, Verdict]]:
    made = [
        Transcript("s", str(i), "How do I make tea?", text, new_tokens=tokens, begins_in_thought=begins_in_thought)
        for i, (text, tokens) in enumerate(responses)
    ]
    return [(t, t.verdict()) for t in made]


def test_lengths_go_up_to_the_longest_response() -> None:
    for longest, expected in ((15, []), (16, [16]), (100, [16, 32, 64]), (500, [16, 32, 64, 128])):
        found = at_tokens(judged((NO, 6), (YES, longest)))
        assert found is not None and [row.tokens for row in found] == expected


def test_a_refusal_within_the_cut_counts_at_every_length() -> None:
    found = at_tokens(judged((NO, 6), (YES * 3, 80)))
    assert found is not None
    assert [(row.refused, row.withheld, row.cut) for row in found] == [(1, 1, 1), (1, 1, 1), (1, 1, 1)]


def test_a_refusal_after_the_cut_is_not_seen() -> None:
    late = YES + "\n\n" + NO
    whole = Transcript("s", "1", "q", late, new_tokens=len(late))
    assert judge_cut(whole, len(YES)).outcome == judge(YES.strip(), prompt="q").outcome == "answered"


def test_a_response_that_is_not_longer_keeps_its_verdict() -> None:
    given = [(judged((YES, 16))[0][0], Verdict("state_line", "given"))]
    assert at_tokens(given) == [Cut(tokens=16, cut=0, refused=0, withheld=1, truncated=0)]


def test_the_text_is_cut_in_the_proportion_of_its_characters_to_its_tokens() -> None:
    seen = []
    text = "0123456789" * 10
    for length in (16, 32):
        kept = len(text) * length // 50
        seen.append(kept)
        cut, same = judge_cut(Transcript("s", "1", "q", text, new_tokens=50), length), judge(text[:kept], prompt="q")
        assert cut == same
    assert seen == [32, 64]


@pytest.mark.parametrize("begins_in_thought", [True, False])
def test_a_cut_inside_the_thought_is_truncated_wherever_it_falls(begins_in_thought: bool) -> None:
    opening = "" if begins_in_thought else "<think>\n"
    text = f"{opening}The user wants tea.\n</think>\n\n{NO}"
    transcript = Transcript("s", "1", "q", text, new_tokens=len(text), begins_in_thought=begins_in_thought)
    closed = text.index("</think>") + len("</think>")
    assert {judge_cut(transcript, at).outcome for at in range(1, closed)} == {"truncated"}
    assert judge_cut(transcript, len(text) - 1).outcome == "refused"


def test_counts_of_a_thought_that_is_cut() -> None:
    thought = "<think>\n" + "Let me think about tea. " * 20 + "\n</think>\n\n" + NO
    found = at_tokens(judged((thought, 120)))
    assert found is not None
    assert [(row.truncated, row.withheld) for row in found] == [(1, 0), (1, 0), (1, 0)]


def test_without_a_number_of_tokens_nothing_can_be_cut() -> None:
    assert at_tokens(judged((YES, 20), (NO, 0))) is None
    assert at_tokens(judged((YES, 20), ("", 0))) is not None


def test_no_responses_have_no_lengths() -> None:
    assert at_tokens([]) == []
