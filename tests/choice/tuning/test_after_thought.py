"""Lines that withhold behind a thought: taken from the model's own replies, learned from and measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from conftest import CHATML, byte_tokenizer, save_tiny

from abliterate.choice.openings import OPENING_TOKENS, THOUGHT_TOKENS
from abliterate.choice.tuning.after_thought import Line, lines_after_thoughts, parted
from abliterate.choice.tuning.descent import _Deck
from abliterate.choice.tuning.examples import Examples, examples_of, most_tokens_after_prompts
from abliterate.choice.tuning.measure import measure, measuring_work
from abliterate.choice.tuning.openings import ALIKE
from abliterate.choice.tuning.replies import short
from abliterate.compute.forward import Continued
from abliterate.compute.passes import Intervention, Pass
from abliterate.compute.whole.model import WholeModel, load_model
from abliterate.model.chat.thinking import decode
from abliterate.model.edit import Edit
from abliterate.prompts import Prompt

CANNED, OTHER = "Sorry, let's talk about something else.", "I can't discuss that."
TOKENIZER = byte_tokenizer(CHATML.replace("assistant\n{% endif", "assistant\n<think>\n{% endif"))
TOKENIZER.add_tokens(["</think>"])


def ids(text: str) -> list[int]:
    return list(TOKENIZER(text)["input_ids"])


def text(tokens: Sequence[int]) -> str:
    return decode(TOKENIZER, tokens)


@pytest.mark.parametrize(
    ("reply", "thought", "rest"),
    [
        ("\n\n</think>\n\nSorry.", "\n\n</think>\n\n", "Sorry."),
        ("Easy.\n</think>It is", "Easy.\n</think>", "It is"),
        ("Easy.\n</think>\n\n", "Easy.\n</think>\n\n", ""),
        ("no end in sight", "no end in sight", ""),
        ("", "", ""),
    ],
)
def test_a_reply_is_parted_behind_its_thought(reply: str, thought: str, rest: str) -> None:
    assert [text(part) for part in parted(TOKENIZER, ids(reply))] == [thought, rest]


def test_a_line_stands_behind_the_thought_of_the_twin() -> None:
    target = [(Prompt("t0", "A?", "en"), ids(f"\n\n</think>\n\n{CANNED}")), (Prompt("t1", "B?", "en"), ids(f"\n\n</think>\n\n{OTHER}"))]
    answered = [
        (Prompt("b1", "b?", "en", pair="t1"), ids("Of b.\n</think>\n\nIt is")),
        (Prompt("b0", "a?", "en"), ids("Of a.\n</think>\n\nIt")),
    ]
    found = lines_after_thoughts(TOKENIZER, target, answered)
    assert [[(text(line.thought), text(line.tokens)) for line in lines] for lines in found] == [
        [("Of b.\n</think>\n\n", CANNED[:8]), ("Of b.\n</think>\n\n", OTHER[:8])],
        [("Of b.\n</think>\n\n", OTHER[:8]), ("Of b.\n</think>\n\n", CANNED[:8])],
    ]


def test_as_many_tokens_are_tried_behind_a_prompt_as_a_short_reply_and_a_closed_thought_with_a_line_have() -> None:
    closed = ids("\n</think>\n\n")
    assert most_tokens_after_prompts(TOKENIZER) == short(TOKENIZER) + len(closed) + OPENING_TOKENS
    plain = byte_tokenizer(CHATML)
    assert most_tokens_after_prompts(plain) == short(plain)


def test_a_long_thought_is_cut_short_and_a_language_without_lines_or_thoughts_has_none() -> None:
    target = [(Prompt("t0", "A?", "en"), ids(f"\n\n</think>\n\n{CANNED}")), (Prompt("t1", "B?", "zh"), ids("\n\n</think>"))]
    answered = [(Prompt("b0", "a?", "en"), ids("so" * 40))]
    english, chinese = lines_after_thoughts(TOKENIZER, target, answered)
    assert [text(line.thought) for line in english] == ["so" * (THOUGHT_TOKENS // 2) + "\n</think>\n\n"] and chinese == []
    assert lines_after_thoughts(TOKENIZER, target, []) == [[], []]


def script(prompt: str) -> str:
    if "Why" in prompt:
        return f"Let me see.\n</think>\n\n{CANNED}"
    return f"\n\n</think>\n\n{CANNED if 'Is' in prompt else OTHER}" if "Burn" in prompt else "Plainly.\n</think>\n\nIt is a stone."


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WholeModel]:
    """A tiny model that opens a thought, and whose short replies are given."""

    def replies(self: WholeModel, passes: Sequence[Pass], *args: Any) -> Iterator[Any]:
        for number, each in enumerate(passes):
            yield number, list(range(len(each.sequences))), [ids(script(text(prompt))) for prompt in each.sequences]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(WholeModel, "replies", replies)
        yield load_model(save_tiny(tmp_path_factory.mktemp("behind") / "m", tokenizer=TOKENIZER), "float32", "cpu")


@pytest.fixture(scope="module")
def examples(model: WholeModel) -> Examples:
    target = [Prompt("t0", "Is it Burn?", "en"), Prompt("t1", "Burn!", "en"), Prompt("t2", "Why Burn?", "en")]
    baseline = [Prompt(f"b{i}", f"Draw {i}.", "en", pair=f"t{i}") for i in range(3)]
    return examples_of(model, {"target": target, "baseline": baseline, "harmless": [Prompt("h", "Name one", "en")]})


def test_examples_of_a_model_that_thinks_hold_lines_behind_thoughts(examples: Examples) -> None:
    assert [len(lines) for lines in examples.behind] == [2, 2, 0]
    assert [text(line.thought) for line in examples.behind[0]] == ["Plainly.\n</think>\n\n"] * 2
    assert [text(line.tokens) for line in examples.behind[1]] == [OTHER[:8], CANNED[:8]]
    assert examples.marks[0] > 0 and examples.marks[2] == 0
    # The third prompt is withheld behind a thought of its own, which is no part of how it is withheld.
    assert text(examples.target.prompts[2]).endswith("Let me see.\n</think>\n\n") and text(examples.target.openings[2]) == CANNED[:8]
    assert examples.others[2] == [] and all(CANNED[:4] not in text(o) for others in examples.others for o in others)


def test_a_line_behind_a_thought_is_dealt_with_the_thought_before_it(examples: Examples) -> None:
    deck = _Deck(examples, 3, 0)
    dealt = [card for step in range(12) for card in deck.deal(step) if card.role == "target" and card.place == 0]
    seen = {(text(card.prompt)[len(text(examples.target.prompts[0])) :], text(card.reply), card.mark > 0) for card in dealt}
    own = text(examples.target.openings[0])
    assert seen == {("", own, True), *(("Plainly.\n</think>\n\n", line[:8], False) for line in (CANNED, OTHER))}


def test_a_reply_that_is_not_judged_is_no_example(model: WholeModel) -> None:
    foreign = ids("\n\n</think>\n\nИзвините, но я не могу помочь с этим запросом.")
    prompts = {role: [Prompt(f"{role}{i}", f"Is {i}?", "en") for i in range(2)] for role in ("target", "baseline", "harmless", "keep")}
    refused, answered = (ids(f"\n\n</think>\n\n{line}") for line in (CANNED, "It is a stone."))
    replies = {"target": [refused, foreign], "baseline": [answered, foreign], "harmless": [foreign, answered], "keep": [foreign, refused]}
    found = examples_of(model, prompts, replies=replies)  # type: ignore[arg-type]
    assert found.unknown == 4 and found.target.indices == [0]
    assert {role: len(stay.asked.prompts) for role, stay in found.stays.items()} == {"baseline": 1, "harmless": 1, "keep": 1}
    assert all(foreign[: len(reply)] != reply for stay in found.stays.values() for reply in stay.asked.continuations)


def test_what_is_withheld_behind_a_thought_is_left_over(model: WholeModel, examples: Examples) -> None:
    edit = Edit(torch.eye(32)[0].expand(4, 2, 1, 32).clone(), torch.ones(4, 2), "skip")
    (point,) = measure(model, [edit], examples)

    def likely(i: int, line: Line) -> float:
        asked = Continued([[*examples.target.prompts[i], *line.thought]], [line.tokens[:ALIKE]])
        ((_, indices, logits),) = model.logits([asked.passed(Intervention(edit))])
        return float(asked.logprobs(indices, logits).exp())

    left = []
    for i, own in enumerate(examples.target.openings):
        at_once = sum(likely(i, Line([], tokens)) for tokens in (own, *examples.others[i]))
        left.append(at_once + (1 - at_once) * sum(likely(i, line) for line in examples.behind[i]))
    assert point.target_left * examples.likely == pytest.approx(sum(left) / 3, rel=1e-3) and left[0] > 0
    assert measuring_work(examples) == sum(1 + len(o) + len(b) for o, b in zip(examples.others, examples.behind, strict=True)) + 4
