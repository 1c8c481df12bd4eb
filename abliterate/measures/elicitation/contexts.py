"""What stands before a fact: a question in one of three contexts, as text, and the tokens of both together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from abliterate.compute.prefix import shared_prefix
from abliterate.measures.parts.elicitation import Context
from abliterate.model.chat.conversation import Message, encoded, rendered
from abliterate.model.chat.thinking import marks_of, opens_thought
from abliterate.prompts.languages.record import language


@dataclass(frozen=True)
class Before:
    """The text before a fact and what stands between the two (``joint``: a space where the language has spaces). ``first``: token ids that
    the tokenizer puts before any text; none before a chat template, which writes them itself."""

    text: str
    joint: str
    first: tuple[int, ...] = ()


@dataclass(frozen=True)
class Encoded:
    """The token ids before a fact, and those of the fact."""

    before: Sequence[int]
    fact: Sequence[int]


def joint_of(lang: str) -> str:
    """What stands between words."""
    return " " if language(lang).writing.is_spaced else ""


def contexts_of(tokenizer: PreTrainedTokenizerBase, question: str, lang: str) -> Mapping[Context, Before]:
    """A question in each context. If the chat template opens a thought, the thought is closed at once: facts belong to the answer.

    Raises InputError if the template fails.
    """
    texts, joint = language(lang).eliciting, joint_of(lang)
    chat = rendered(tokenizer, [Message(role="user", content=question)])
    if opens_thought(tokenizer):
        chat += marks_of(tokenizer).at_once
    worked = "".join(f"{_asked(each.question, lang)}{joint}{each.answer}\n\n" for each in texts.examples)
    return {
        "lead_in": Before(chat + texts.lead_in, joint),
        "few_shot": Before(worked + _asked(question, lang), joint, _first(tokenizer)),
        "chat": Before(chat, ""),
    }


def _asked(question: str, lang: str) -> str:
    texts = language(lang).eliciting
    return f"{texts.question}{joint_of(lang)}{question}\n{texts.answer}"


def _first(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The ids that the tokenizer puts before a text, such as a beginning-of-sequence token."""
    whole, bare = (list(tokenizer("a", add_special_tokens=added)["input_ids"]) for added in (True, False))
    start = next((i for i in range(len(whole)) if whole[i : i + len(bare)] == bare), 0)
    return tuple(whole[:start])


def with_facts(tokenizer: PreTrainedTokenizerBase, before: Before, facts: Sequence[str]) -> list[Encoded]:
    """Each fact after the same text, encoded together with it: a fact's tokens begin where the ids differ from those of the text alone. So
    a token that holds the end of the text and the beginning of a fact counts as the fact's, with and without the question."""
    alone, *whole = encoded(tokenizer, [before.text, *(before.text + before.joint + fact for fact in facts)])
    found, kept = [], dict[int, list[int]]()
    for ids in whole:
        start = shared_prefix([alone, ids])
        head = kept.setdefault(start, [*before.first, *alone[:start]])  # one list for all facts, which are many
        found.append(Encoded(head, ids[start:]))
    return found
