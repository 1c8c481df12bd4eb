"""Thoughts of bounded length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import CHATML, byte_tokenizer, save_tiny

from abliterate.cli.main import main
from abliterate.compute.passes import Advance, Pass, no_progress
from abliterate.compute.whole.model import load_model
from abliterate.config import AuditConfig
from abliterate.errors import InputError
from abliterate.measures.predictions import ThoughtClosing, ask
from abliterate.model.chat.template import encode, load_tokenizer
from abliterate.model.chat.thinking import opens_thought
from abliterate.prompts import Prompt, PromptSet
from abliterate.replies.engine import foresee
from abliterate.replies.generate import generate
from abliterate.replies.thoughts import replies_within

R1 = CHATML.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
QWEN3 = CHATML.replace(
    "assistant\n{% endif %}",
    "assistant\n{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}",
)


@dataclass
class Scripted:
    """Says its line for each prompt, and another one where its thought was closed for it."""

    tokenizer: Any
    lines: dict[str, str]
    interrupted: str = "Fine: forty-two."
    folder: Any = None
    segment: int | None = None
    longest: int | None = None

    def watch(self, *asked: Any) -> None:
        raise AssertionError("nobody looks at its streams")

    def logits(self, *asked: Any) -> Any:
        raise AssertionError("nobody looks at its logits")

    def replies(
        self, passes: Sequence[Pass], longest: int, advance: Advance = no_progress
    ) -> Iterator[tuple[int, Sequence[int], list[list[int]]]]:
        for number, asked in enumerate(passes):
            for index, ids in enumerate(asked.sequences):
                text = self.tokenizer.decode(list(ids))
                prompt = next(p for p in self.lines if p in text)
                said = text.split("<think>\n", 1)[1] if "<think>\n" in text else text.split("assistant\n", 1)[1]
                line = self.lines[prompt]
                rest = line[len(said) :] if line.startswith(said) else self.interrupted
                yield number, (index,), [self.tokenizer(rest, add_special_tokens=False)["input_ids"][:longest]]
                advance(1)


def said(lines: dict[str, str], budget: int, longest: int, template: str = R1) -> dict[str, str]:
    model = Scripted(byte_tokenizer(template), lines)
    prompts = encode(model.tokenizer, list(lines))
    done: list[int | float] = []
    found = dict(replies_within(model, prompts, budget, longest, done.append))  # type: ignore[arg-type]
    assert sum(done) == len(prompts) == len(found)
    return {prompt: model.tokenizer.decode(found[i]) for i, prompt in enumerate(lines)}


def test_a_thought_that_goes_on_for_too_long_is_closed_and_answered_behind() -> None:
    found = said({"Why": "x" * 100 + "\n</think>\n\nnever said"}, budget=20, longest=30)
    assert found["Why"] == "x" * 20 + "\n</think>\n\nFine: forty-two."


def test_a_thought_within_its_budget_keeps_its_own_answer() -> None:
    line = "Easy.\n</think>\n\nBecause it is so, and for no other reason."
    assert said({"Why": line}, budget=25, longest=200)["Why"] == line
    assert said({"Why": line}, budget=200, longest=200)["Why"] == line


def test_the_answer_alone_counts_as_new_tokens() -> None:
    thought = "Easy.\n</think>\n\n"
    for budget in (10, 18, 30, 200):  # cut in the thought, behind it, in the answer, nowhere
        answer = said({"Why": thought + "0123456789ABCDEF"}, budget, longest=8)["Why"].partition("</think>")[2]
        assert len(answer.strip()) <= 8 and answer.strip() == ("Fine: forty-two."[:8] if budget < 14 else "0123456789ABCDEF"[:6])


def test_who_does_not_think_has_as_many_tokens_as_asked_for() -> None:
    line = "A plain answer without any thought at all."
    for budget in (5, 20, 100):
        assert said({"Why": line}, budget, longest=12, template=CHATML)["Why"] == line[:12]


@pytest.mark.parametrize(("template", "end"), [(R1, "<think>\n\n</think>\n\n"), (QWEN3, "<think>\n\n</think>\n\n")])
def test_without_thinking_the_prompt_leads_behind_an_empty_thought(tmp_path: Path, template: str, end: str) -> None:
    byte_tokenizer(template).save_pretrained(tmp_path)
    tokenizer = load_tokenizer(tmp_path, thinks=False)
    (ids,) = encode(tokenizer, ["Hi"])
    assert tokenizer.decode(ids) == f"<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n{end}"
    assert not opens_thought(tokenizer)
    assert load_tokenizer(tmp_path).chat_template == template


def test_a_template_without_thoughts_has_none_to_leave_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    byte_tokenizer().save_pretrained(tmp_path / "t")
    with pytest.raises(InputError, match="has no thinking block to skip"):
        load_tokenizer(tmp_path / "t", thinks=False)
    (tmp_path / "p.txt").write_text("".join(f"Why {word}?\n" for word in ("rain", "snow", "wind", "hail", "fog", "frost")))
    call = ["audit", "--model", str(save_tiny(tmp_path / "m")), "--prompts", str(tmp_path / "p.txt"), "--out", str(tmp_path / "out")]
    assert main([*call, "--thinking", "off"]) == 2
    assert "has no thinking block to skip" in capsys.readouterr().err
    assert main([*call, "--thinking", "budget:0"]) == 2
    assert "--thinking budget:0: it must be on, off, or budget:N" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("engine", "thinking"), [("http://127.0.0.1:9/v1", "off"), ("http://127.0.0.1:9/v1", "budget:5"), ("vllm", "budget:5")]
)
def test_an_engine_that_can_not_be_told_how_to_think_is_refused(engine: str, thinking: str) -> None:
    with pytest.raises(InputError, match=f"--thinking {thinking}"):
        foresee(AuditConfig(model="m", prompts=("p",), engine=engine, thinking=thinking))


def test_generated_thoughts_keep_to_their_budget(tmp_path: Path) -> None:
    model = load_model(save_tiny(tmp_path / "m", layers=2, tokenizer=byte_tokenizer(R1)), device="cpu")
    sets = [PromptSet("one", tuple(Prompt(f"a{i}", text) for i, text in enumerate(["Hi", "Why is the sky blue?"])))]
    for transcript in generate(model, sets, tmp_path / "t.jsonl", 6, budget=5):
        thought, mark, _ = transcript.response.partition("\n</think>\n\n")
        assert transcript.begins_in_thought and mark
        assert len(model.tokenizer(thought)["input_ids"]) <= 5 + 12  # bytes that are no text are shown as several
        assert transcript.new_tokens <= 5 + len("\n</think>\n\n") + 6


def test_suppression_is_the_log_odds_of_closing_the_thought_at_once(tmp_path: Path) -> None:
    model = load_model(save_tiny(tmp_path / "m", layers=2, tokenizer=byte_tokenizer(R1)), device="cpu")
    prompts = encode(model.tokenizer, ["Hi", "A longer question?"])
    ask(model, [heard := ThoughtClosing.of(model, prompts)])  # type: ignore[list-item]
    found = heard.log_odds  # type: ignore[union-attr]
    closing = model.tokenizer("\n\n</think>", add_special_tokens=False)["input_ids"]
    for value, prompt in zip(found, prompts, strict=True):
        with torch.inference_mode():
            logprobs = model.module(torch.tensor([prompt + closing])).logits[0].double().log_softmax(-1)
        p = sum(logprobs[len(prompt) - 1 + i, token] for i, token in enumerate(closing)).exp()
        torch.testing.assert_close(value.double(), (p / (1 - p)).log(), rtol=1e-4, atol=1e-3)
    plain = load_model(save_tiny(tmp_path / "plain", layers=2), device="cpu")
    assert ThoughtClosing.of(plain, encode(plain.tokenizer, ["Hi"])) is None
