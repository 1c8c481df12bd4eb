"""Make sure that the words of a message reach the model: a chat template takes the content of a message as text or as a list of parts."""

from __future__ import annotations

import json
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from abliterate.errors import InputError
from abliterate.model.chat.conversation import Message, encoded, rendered

# The first two have equal numbers of words and letters, so a tokenizer that knows neither gives equal ids; a template may cut the third.
_PROBES = ("Sing a song.", "Read a book.", "What is 2 + 3? " * 300)
_FORMS: tuple[tuple[str, ...], ...] = ((), ("system", "user", "assistant"), ("user",))  # roles whose content is sent as parts
# Jinja on one line that ends with a block: transformers drops the line break after it, so it adds nothing to the text.
_AS_PARTS = (
    "{% set as_parts = namespace(messages=[]) %}{% for m in messages %}{% set as_parts.messages = as_parts.messages + "
    "[dict(m, content=[{'type': 'text', 'text': m['content']}]) if m['role'] in ROLES else m] %}{% endfor %}"
    "{% set messages = as_parts.messages %}\n"
)


def reaching(tokenizer: PreTrainedTokenizerBase) -> str:
    """The tokenizer's chat template, changed to pass content as parts if it is lost as text.

    Callers always give messages as text, whatever the template takes. Raises InputError if the user's words reach the model in neither
    form.
    """
    forms = [_taking(str(tokenizer.chat_template), roles) for roles in _FORMS]
    wrong, one_turn = list[str](), list[str]()
    for template in forms:
        tokenizer.chat_template = template
        if fault := _fault(tokenizer):
            wrong.append(fault)
        elif remembers(tokenizer):
            return template
        else:
            one_turn.append(template)
    if one_turn:
        return one_turn[0]
    other = "" if wrong[0] == wrong[1] else f"; given as a list of parts: {wrong[1]}"
    raise InputError(f"{tokenizer.name_or_path}: {wrong[0]}{other}")


def remembers(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the template shows the model the earlier turns of both sides."""
    turns = [Message(role=role, content=text) for role, text in zip(("user", "assistant", "user"), _PROBES, strict=True)]
    try:
        text = rendered(tokenizer, turns)
    except InputError:  # the template takes only one message
        return False
    return all(_holds(text, turn["content"]) for turn in turns)


def _taking(template: str, roles: Sequence[str]) -> str:
    return (_AS_PARTS.replace("ROLES", json.dumps(roles)) if roles else "") + template


def _fault(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Why prompts don't reach the model; None if they do."""
    try:
        texts = [rendered(tokenizer, [Message(role="user", content=probe)]) for probe in _PROBES]
    except InputError as error:
        return str(error).removeprefix(f"{tokenizer.name_or_path}: ")
    if not all(_holds(text, probe) for text, probe in zip(texts, _PROBES, strict=True)):
        return "the chat template leaves out all or part of what the user says; put another chat_template.jinja into the folder"
    if len({tuple(ids) for ids in encoded(tokenizer, texts)}) < len(_PROBES):
        return "the tokenizer gives the same tokens for different prompts; its files don't belong to this model"
    return None


def _holds(text: str, said: str) -> bool:
    """Whether a rendered text contains what was said, apart from white space and case, and not as the printed code of a list of parts."""
    plain, words = _plain(text), _plain(said)
    return words in plain and not any(f"{quote}text{quote}: {quote}{words}" in plain for quote in "'\"")


def _plain(text: str) -> str:
    return " ".join(text.split()).casefold()
