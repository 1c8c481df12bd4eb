"""The tokens that end a reply: what a model advises, its tokenizer's own, and the one with which its template ends a turn."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from blockwise import open_alike
from conftest import CHATML, byte_tokenizer, save_tiny
from held import replies

from abliterate.cli.main import main
from abliterate.compute.passes import Pass
from abliterate.compute.whole.model import load_model
from abliterate.errors import InputError
from abliterate.model.chat.ends import advice_of, end_ids, end_of_turn, said_nothing
from abliterate.model.chat.template import encode
from abliterate.model.folder import open_folder

Tiny = Callable[..., Path]
TEXT, START, END = 0, 1, 2  # <|endoftext|>, <|im_start|>, <|im_end|>
ROLE = "<|im_start|>{{ m['role'] }}\n"
LOOP, OVER = "{% for m in messages %}", "{% endfor %}"


@pytest.mark.parametrize(
    ("template", "token"),
    [
        (CHATML, END),
        (LOOP + ROLE + "{{ m['content'] | trim }}<|im_end|>\n<|endoftext|>" + OVER, END),
        (LOOP + ROLE + "{{ m['content'] }}\n<|endoftext|>" + OVER, TEXT),
        (LOOP + ROLE + "{{ m['content'] }}" + OVER, None),
        (LOOP + ROLE + "{{ m['content'] }}\n" + OVER, None),
        (LOOP + ROLE + "{{ m['content'] }} END<|im_end|>" + OVER, None),
        (LOOP + ROLE + "{{ m['content'] | upper }}<|im_end|>" + OVER, None),
        (LOOP + "{% if m['role'] == 'user' %}" + ROLE + "{{ m['content'] }}<|im_end|>{% endif %}" + OVER, None),
        (LOOP + "{% if m['role'] != 'user' %}{{ raise_exception('one turn only') }}{% endif %}{{ m['content'] }}" + OVER, None),
    ],
    ids=["chatml", "then the end of all", "behind a line", "nothing", "a line", "words", "another text", "users alone", "refused"],
)
def test_a_turn_ends_with_the_special_token_right_behind_its_words(template: str, token: int | None) -> None:
    assert end_of_turn(byte_tokenizer(template)) == token


@pytest.mark.parametrize(
    ("eos", "advised", "ends"),
    [
        ("<|im_end|>", None, {END}),
        ("<|endoftext|>", None, {TEXT, END}),
        (None, None, {END}),
        (None, [7, 8], {7, 8, END}),
        ("<|im_end|>", 9, {9, END}),
    ],
)
def test_all_that_end_a_reply_are_known(eos: str | None, advised: Any, ends: set[int]) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.eos_token = eos
    assert end_ids(advised, tokenizer) == ends


def test_where_nothing_says_of_an_end_there_is_none() -> None:
    tokenizer = byte_tokenizer(LOOP + "{{ m['content'] }}" + OVER)
    tokenizer.eos_token = None
    assert end_ids(None, tokenizer) == frozenset() and said_nothing(frozenset(), tokenizer) == []


def test_a_reply_that_says_nothing_is_the_tokenizers_end_where_that_ends_it() -> None:
    tokenizer = byte_tokenizer()
    assert said_nothing({TEXT, END}, tokenizer) == [END] and said_nothing({9, 7}, tokenizer) == [7]


def test_an_end_that_nobody_advised_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.eos_token, tokenizer.name_or_path = "<|endoftext|>", "/models/once"
    for _ in range(3):
        end_ids(None, tokenizer)
    assert capsys.readouterr().err.count("once: a reply also ends at <|im_end|>") == 1


@pytest.mark.parametrize("eos", [None, "<|endoftext|>"])
def test_whole_and_block_by_block_end_alike(tmp_path: Path, eos: str | None) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.eos_token = eos
    folder = save_tiny(tmp_path / "model", tokenizer=tokenizer, layers=2)
    whole, apart = load_model(folder, "float32", "cpu"), open_alike(folder)
    assert whole.ends == apart.ends == ({END} if eos is None else {TEXT, END})
    asked = Pass(encode(whole.tokenizer, ["Sing", "Why do leaves fall?"]))
    assert replies(whole, asked, 8) == replies(apart, asked, 8)  # type: ignore[arg-type]


def test_advice_that_cannot_be_read_is_one_line(tiny: Tiny) -> None:
    folder = tiny(layers=2)
    (folder / "generation_config.json").write_text("{")
    for act in (lambda: advice_of(open_folder(folder)), lambda: load_model(folder, "float32", "cpu")):
        with pytest.raises(InputError, match=r"generation_config|can't load it") as caught:
            act()
        assert "\n" not in str(caught.value)


def test_a_conversation_with_a_model_without_an_end_token(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = byte_tokenizer(LOOP + "{{ m['content'] }}" + OVER)
    tokenizer.eos_token = None
    folder = save_tiny(tmp_path / "model", tokenizer=tokenizer, layers=2)
    (folder / "generation_config.json").write_text(json.dumps({}))
    monkeypatch.setattr("sys.stdin", io.StringIO("Hello\n"))
    assert main(["chat", "--model", str(folder), "--max-new-tokens", "4"]) == 0
    assert "(cut at 4 tokens)" in capsys.readouterr().out


@pytest.mark.parametrize("held", ["whole", "block by block"])
def test_a_pad_token_beyond_the_embedding_pads_nothing(tmp_path: Path, held: str) -> None:
    tokenizer = byte_tokenizer()
    folder = save_tiny(tmp_path / "model", layers=2)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(folder)
    model: Any = load_model(folder, "float32", "cpu") if held == "whole" else open_alike(folder)
    assert model.tokenizer.pad_token_id == model.folder.config.vocab_size
    prompts = encode(model.tokenizer, ["Sing", "Why do leaves fall in autumn?", "Hi"])
    assert replies(model, Pass(prompts), 5) == [replies(model, Pass([prompt]), 5)[0] for prompt in prompts]


def test_a_mark_that_closes_a_thought_ends_no_reply() -> None:
    """gpt-oss writes past turns as its final channel, closed as every channel is: the end of an analysis must not end the reply."""
    template = LOOP + "<|start|>{{ m['role'] }}<|channel|>final<|message|>{{ m['content'] }}<|end|>" + OVER
    tokenizer = byte_tokenizer(template)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|channel|>", "<|message|>", "<|start|>", "<|end|>"]})
    assert end_of_turn(tokenizer) is None and end_ids(None, tokenizer) == {tokenizer.eos_token_id}
