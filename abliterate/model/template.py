"""From a prompt to token ids by the model's own chat template, exactly once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import jinja2
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from abliterate.errors import InputError, first_line

# Two instructions with nothing in common: what their encodings share at the end is the template's own.
_PROBES = ("Sing", "What is 2 + 3?")
MAX_POSITIONS = 8
OPEN, CLOSE = "<think>", "</think>"


def load_tokenizer(path: Path, trust_remote_code: bool = False, thinks: bool = True) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder; unless it ``thinks``, its chat template leads behind an empty thought, to where the answer begins.

    Raises InputError where it has none, or no chat template, or one that knows of no thoughts to leave out.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code, local_files_only=True)
    except Exception as error:  # transformers raises many kinds for a missing or broken tokenizer
        raise InputError(f"{path}: the tokenizer can't be loaded ({first_line(error)})") from None
    if not tokenizer.chat_template:
        raise InputError(
            f"{path}: the tokenizer has no chat template; refusal is measured on chat prompts: "
            "use the instruction-tuned model, or put its chat_template.jinja into the folder"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)  # masked wherever it stands
    if not thinks:
        tokenizer.chat_template = _without_thought(tokenizer, path)
    return tokenizer


def _without_thought(tokenizer: PreTrainedTokenizerBase, path: Path) -> str:
    """The chat template with its own switch thrown (Qwen3's ``enable_thinking``); where it opens the thought all the same, it is closed."""
    template = tokenizer.chat_template
    if isinstance(template, str):
        tokenizer.chat_template = "{%- set enable_thinking = false -%}" + template
        end = _rendered(tokenizer, _PROBES[:1])[0].rstrip()
        if end.endswith(CLOSE):
            return str(tokenizer.chat_template)
        if end.endswith(OPEN):
            return str(tokenizer.chat_template) + "{%- if add_generation_prompt %}{{ '\\n" + CLOSE + "\\n\\n' }}{% endif -%}"
    raise InputError(f"{path}: its chat template knows no thinking block that could be left out; leave --thinking off out")


def encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text as a user's message, up to and including the generation prompt.

    The template writes the special tokens itself, so the tokenizer must add none: no second BOS. Raises InputError where the
    template fails.
    """
    if not texts:
        return []
    return [list(ids) for ids in tokenizer(_rendered(tokenizer, texts), add_special_tokens=False)["input_ids"]]


def _rendered(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[str]:
    messages = [[{"role": "user", "content": text}] for text in texts]
    try:
        return [str(tokenizer.apply_chat_template(m, tokenize=False, add_generation_prompt=True)) for m in messages]
    except jinja2.TemplateError as error:
        raise InputError(f"{tokenizer.name_or_path}: the chat template fails: {first_line(error)}") from None


def template_positions(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Positions of the generation prompt, last first: -1, -2, ... over the tokens that end every prompt alike.

    These are the post-instruction tokens of Arditi et al. (2024); at most 8, at least the last one.
    """
    first, second = encode(tokenizer, _PROBES)
    shared = 0
    while shared < min(len(first), len(second), MAX_POSITIONS) and first[-1 - shared] == second[-1 - shared]:
        shared += 1
    return tuple(range(-1, -max(shared, 1) - 1, -1))


def decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """The text of one reply, without special tokens."""
    return str(tokenizer.decode(list(ids), skip_special_tokens=True))


def opens_thought(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the generation prompt itself opens the thinking block, as DeepSeek-R1's does."""
    return str(tokenizer.decode(encode(tokenizer, _PROBES)[0][-MAX_POSITIONS:])).rstrip().endswith(OPEN)


def closing(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids of the end of a thought that is cut short."""
    return list(tokenizer(f"\n{CLOSE}\n\n", add_special_tokens=False)["input_ids"])


def empty_thought(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids with which an opened thinking block is closed at once, as DeepSeek-R1 does where it won't think."""
    return list(tokenizer(f"\n\n{CLOSE}", add_special_tokens=False)["input_ids"])
