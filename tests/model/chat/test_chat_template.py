"""Encoding by the model's own chat template, exactly once."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import CHATML, byte_tokenizer
from tokenizers import processors
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from abliterate.errors import InputError
from abliterate.model.chat.template import MAX_POSITIONS, encode, load_tokenizer, template_positions

BOS = "<s>"
DEEPSEEK = (
    "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}{% if add_generation_prompt %}A:{% endif %}"
)


def _saved(folder: Path, tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerBase:
    tokenizer.save_pretrained(folder)
    return load_tokenizer(folder)


def _adding_bos(template: str) -> PreTrainedTokenizerFast:
    """A tokenizer that also adds BOS itself, as DeepSeek's and Llama's do."""
    tokenizer = byte_tokenizer(template, BOS)
    special = (BOS, tokenizer.bos_token_id)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[special])
    return tokenizer


def test_a_template_that_writes_bos_gives_exactly_one(tmp_path: Path) -> None:
    tokenizer = _saved(tmp_path, _adding_bos(DEEPSEEK))
    bos = tokenizer.bos_token_id
    assert tokenizer(tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False))["input_ids"].count(bos) == 2
    for ids in encode(tokenizer, ["Hello", "A longer prompt."]):
        assert ids[0] == bos
        assert ids.count(bos) == 1


def test_encoding_is_the_rendered_template_to_the_byte(tmp_path: Path) -> None:
    tokenizer = _saved(tmp_path, byte_tokenizer())
    text = "Wie geht's, 你好?\n"
    (ids,) = encode(tokenizer, [text])
    assert tokenizer.decode(ids) == f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"


def test_encoding_agrees_with_transformers(tmp_path: Path) -> None:
    tokenizer = _saved(tmp_path, _adding_bos(DEEPSEEK))
    expected = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], add_generation_prompt=True, return_dict=False)
    assert encode(tokenizer, ["Hi"]) == [expected]


@pytest.mark.parametrize(
    ("end", "expected"),
    [
        ("<|im_end|>", (-1,)),
        ("<|im_end|>A:", (-1, -2, -3)),
        ("", (-1,)),
        ("<|im_end|>assistant: ", tuple(range(-1, -MAX_POSITIONS - 1, -1))),
    ],
)
def test_positions_are_the_common_suffix_of_prompts(tmp_path: Path, end: str, expected: tuple[int, ...]) -> None:
    tokenizer = _saved(tmp_path, byte_tokenizer("{% for m in messages %}" + "{{ m['content'] }}{% endfor %}" + end))
    assert template_positions(tokenizer) == expected
    suffixes = {tuple(ids[position] for position in expected) for ids in encode(tokenizer, ["abc", "another", "x"])}
    assert len(suffixes) == 1 or not end


def test_no_prompts_encode_to_nothing(tmp_path: Path) -> None:
    assert encode(_saved(tmp_path, byte_tokenizer()), []) == []


@pytest.mark.parametrize("template", [None, ""])
def test_a_tokenizer_without_a_chat_template_is_refused(tmp_path: Path, template: str | None) -> None:
    with pytest.raises(InputError, match="no chat template"):
        _saved(tmp_path, byte_tokenizer(template))


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="tokenizer can't be loaded") as refused:
        load_tokenizer(tmp_path)
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize("template", ["{% for %}", "{{ raise_exception('roles must alternate') }}", "{{ messages[5].content.x }}"])
def test_a_template_that_fails_is_refused(tmp_path: Path, template: str) -> None:
    with pytest.raises(InputError, match="chat template"):
        encode(_saved(tmp_path, byte_tokenizer(template)), ["x"])


def test_without_a_pad_token_the_end_token_pads(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer(CHATML)
    tokenizer.pad_token = None
    assert _saved(tmp_path, tokenizer).pad_token_id == tokenizer.eos_token_id


def test_without_pad_and_end_tokens_there_is_a_pad_or_a_refusal(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer(CHATML)
    tokenizer.pad_token = tokenizer.eos_token = None
    try:
        assert _saved(tmp_path, tokenizer).pad_token_id is not None
    except InputError as error:
        assert "pad" in str(error)
