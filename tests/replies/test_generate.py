"""Greedy generation: deterministic, stops at end tokens, and goes on after any interruption with the same result."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import CHATML, byte_tokenizer, save_tiny

from abliterate.compute.forward import batches
from abliterate.compute.passes import Pass, no_progress
from abliterate.compute.whole.model import WholeModel, load_model
from abliterate.model.chat.template import encode
from abliterate.prompts import Prompt, PromptSet
from abliterate.replies.generate import generate as generate_by
from abliterate.replies.settling import Settling
from abliterate.replies.transcripts import Transcript, append, read

TEXTS = ["Hi", "What is the capital of France?", "Sing", "Tell me a very long story about a cat", "2+2", "你好", "Why?"]
SETS = [
    PromptSet("one", tuple(Prompt(f"a{i}", text) for i, text in enumerate(TEXTS[:4]))),
    PromptSet("two", tuple(Prompt(f"a{i}", text) for i, text in enumerate(TEXTS[4:]))),
]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> WholeModel:
    return load_model(save_tiny(tmp_path_factory.mktemp("tiny") / "model", layers=2), device="cpu")


@pytest.fixture
def model(shared: WholeModel) -> WholeModel:
    shared.module.generation_config.eos_token_id = shared.tokenizer.eos_token_id
    return shared


@pytest.fixture(autouse=True)
def _short_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few prompts make several segments."""
    monkeypatch.setattr("abliterate.compute.whole.model.SEGMENT", 1)


def generate(model: WholeModel, sets: list[PromptSet], path: Path, tokens: int, size: int, advance: Any = no_progress) -> list[Transcript]:
    """So many prompts at once."""
    return generate_by(replace(model, batch_size=size), sets, path, tokens, advance)


def greedy(model: WholeModel, prompt: list[int], length: int) -> list[int]:
    """The argmax token again and again, without a cache."""
    ids = list(prompt)
    with torch.inference_mode():
        for _ in range(length):
            ids.append(int(model.module(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]


def replies(model: WholeModel, prompts: list[list[int]], length: int, size: int = 8) -> list[list[int]]:
    found: list[list[int]] = [[] for _ in prompts]
    for _, indices, made in replace(model, batch_size=size).replies([Pass(prompts)], length):
        for i, reply in zip(indices, made, strict=True):
            found[i] = reply
    return found


def test_replies_are_the_argmax_tokens(model: WholeModel) -> None:
    prompts = encode(model.tokenizer, TEXTS[:3])
    assert replies(model, prompts, 6) == [greedy(model, p, 6) for p in prompts]


def test_replies_do_not_depend_on_the_batch(model: WholeModel) -> None:
    prompts = encode(model.tokenizer, TEXTS)
    assert replies(model, prompts, 5, size=1) == replies(model, prompts, 5, size=7)


@pytest.mark.parametrize("setting", [{"repetition_penalty": 5.0}, {"no_repeat_ngram_size": 1}, {"do_sample": True, "temperature": 3.0}])
def test_replies_are_greedy_whatever_the_generation_config_says(tiny: Callable[..., Path], setting: dict[str, float]) -> None:
    folder = tiny(layers=2)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 2, "pad_token_id": 0, **setting}))
    model = load_model(folder, device="cpu")
    prompts = encode(model.tokenizer, ["Sing"])
    assert replies(model, prompts, 8) == [greedy(model, prompts[0], 8)]


@pytest.mark.parametrize("several", [False, True], ids=["one id", "a list of ids"])
def test_a_reply_stops_before_its_end_token(model: WholeModel, several: bool) -> None:
    prompts = encode(model.tokenizer, TEXTS)
    free = replies(model, prompts, 8)
    end = free[1][3]
    model.module.generation_config.eos_token_id = [model.tokenizer.eos_token_id, end] if several else end
    assert replies(model, prompts, 8) == [r[: r.index(end)] if end in r else r for r in free]


def test_a_reply_has_at_most_max_new_tokens(model: WholeModel) -> None:
    assert all(len(r) <= 3 for r in replies(model, encode(model.tokenizer, TEXTS), 3))


def test_batches_depend_on_the_lengths_alone() -> None:
    device = torch.device("cpu")
    ones, twos = ([[token] * n for n in (5, 2, 9, 2, 7)] for token in (1, 2))
    grouping = [b.indices for b in batches(ones, 0, 2, device)]
    assert grouping == [b.indices for b in batches(twos, 0, 2, device)] == [(1, 3), (0, 4), (2,)]


def test_every_prompt_is_answered_once_in_the_sets_order(model: WholeModel, tmp_path: Path) -> None:
    made = generate(model, SETS, tmp_path / "t.jsonl", 4, 3)
    assert [(t.set, t.id, t.prompt) for t in made] == [(s.name, p.id, p.text) for s in SETS for p in s]
    assert sorted(read(tmp_path / "t.jsonl"), key=repr) == sorted(made, key=repr)


def test_generating_twice_gives_the_same_bytes(model: WholeModel, tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        generate(model, SETS, tmp_path / name, 4, 3)
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()


def test_a_run_cut_anywhere_ends_as_without_the_cut(model: WholeModel, tmp_path: Path) -> None:
    whole = generate(model, SETS, tmp_path / "whole.jsonl", 4, 3)
    data, cut = (tmp_path / "whole.jsonl").read_bytes(), tmp_path / "cut.jsonl"
    for length in (0, 1, *(len(data) * i // 7 for i in range(1, 7)), len(data) - 1, len(data)):
        cut.write_bytes(data[:length])
        assert generate(model, SETS, cut, 4, 3) == whole
        assert cut.read_bytes() == data


def test_whole_batches_are_kept_and_begun_ones_made_again(model: WholeModel, tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    whole = generate(model, SETS, path, 4, 3)
    written = read(path)
    path.unlink()
    append(path, [replace(t, response="kept") for t in written[:4]])
    found = {(t.set, t.id): t.response for t in generate(model, SETS, path, 4, 3)}
    expected = {(t.set, t.id): t.response for t in whole}
    assert found == {**expected, **{(t.set, t.id): "kept" for t in written[:3]}}


def test_progress_tells_of_every_prompt_once(model: WholeModel, tmp_path: Path) -> None:
    told: list[float] = []
    generate(model, SETS, tmp_path / "t.jsonl", 2, 3, told.append)
    (tmp_path / "t.jsonl").write_bytes(b"".join((tmp_path / "t.jsonl").read_bytes().splitlines(keepends=True)[:5]))
    assert sum(told) == len(TEXTS)
    told.clear()
    generate(model, SETS, tmp_path / "t.jsonl", 2, 3, told.append)
    assert told[0] == 3 and sum(told) == len(TEXTS)


def test_nothing_but_the_transcripts_is_left(model: WholeModel, tmp_path: Path) -> None:
    generate(model, SETS, tmp_path / "t.jsonl", 2, 3)
    assert [p.name for p in tmp_path.iterdir()] == ["t.jsonl"]


def test_a_template_that_opens_the_thought_is_recorded(tiny: Callable[..., Path], tmp_path: Path) -> None:
    opening = CHATML.replace("assistant\n{% endif", "assistant\n<think>\n{% endif")
    model = load_model(tiny(layers=1, tokenizer=byte_tokenizer(opening)), device="cpu")
    assert all(t.begins_in_thought for t in generate(model, SETS[:1], tmp_path / "t.jsonl", 2, 4))


def test_a_plain_template_opens_no_thought_even_where_the_prompt_does(model: WholeModel, tmp_path: Path) -> None:
    asked = PromptSet("s", (Prompt("1", "What does <think>"),))
    assert not generate(model, [asked], tmp_path / "t.jsonl", 2, 4)[0].begins_in_thought


def test_replies_are_cut_where_they_are_settled_and_only_when_asked_for(
    model: WholeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str | None, bool]] = []

    def settled(self: Settling, prompt: list[int], reply: list[int]) -> bool:
        asked.append((self.texts.get(tuple(prompt)), self.begins_in_thought))
        return len(reply) == 16

    monkeypatch.setattr(Settling, "__call__", settled)
    whole = generate_by(model, SETS, tmp_path / "whole.jsonl", 24)
    assert asked == [] and {t.new_tokens for t in whole} == {24}
    cut = generate_by(model, SETS, tmp_path / "cut.jsonl", 24, settle=True)
    assert {t.new_tokens for t in cut} == {16} and set(asked) == {(text, False) for text in TEXTS}
    assert all(a.response.startswith(b.response.rstrip("\ufffd")) for a, b in zip(whole, cut, strict=True))


@pytest.mark.parametrize("budget", [None, 2])
def test_a_model_that_says_only_special_tokens_is_broken(tiny: Callable[..., Path], tmp_path: Path, budget: int | None) -> None:
    model = load_model(tiny(layers=2), device="cpu")
    model.module.get_parameter("lm_head.weight").data.zero_()  # so that the first token, <|endoftext|>, is as likely as any
    for transcript in generate_by(model, SETS, tmp_path / "t.jsonl", 4, budget=budget):
        assert (transcript.response, transcript.new_tokens, transcript.cut) == ("", 4, True)
        assert transcript.verdict().outcome == "degenerate"


def test_a_reply_that_comes_to_its_end_is_not_cut(model: WholeModel, tmp_path: Path) -> None:
    prompts = encode(model.tokenizer, TEXTS)
    model.module.generation_config.eos_token_id = replies(model, prompts, 8)[1][3]
    made = generate(model, SETS, tmp_path / "t.jsonl", 8, 3)
    assert {transcript.cut for transcript in made} == {True, False}
    assert all(transcript.cut == (transcript.new_tokens == 8) for transcript in made)
