"""Render a conversation with a chat template; this is the only place where a template's own code runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

import jinja2
from transformers import PreTrainedTokenizerBase

from abliterate.errors import InputError, first_line


class Message(TypedDict):
    """One turn; ``role`` is system, user or assistant."""

    role: str
    content: str


def rendered(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], asks: bool = True) -> str:
    """The text up to and including the generation prompt; unless it ``asks`` for a reply, up to the end of the last turn.

    Raises InputError if the template fails in any way.
    """
    try:
        turns = [{"role": m["role"], "content": m["content"]} for m in messages]
        return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=asks))
    except Exception as error:  # a template is a program: it raises what it likes, and jinja2 and Python raise the rest
        kind = "" if isinstance(error, jinja2.TemplateError) else f"{type(error).__name__}: "
        raise InputError(f"{tokenizer.name_or_path}: the chat template fails: {kind}{first_line(error)}") from None


def encoded(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of rendered texts. The template writes the special tokens itself, so the tokenizer adds none (no second BOS)."""
    return [list(ids) for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"]]
