"""Turn a prompt into token ids with the model's own chat template, applied exactly once."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from abliterate.config import CollectConfig, ModelConfig
from abliterate.errors import InputError, first_line
from abliterate.model.chat.clock import now, stopped
from abliterate.model.chat.content import reaching
from abliterate.model.chat.conversation import Message, encoded, rendered
from abliterate.model.chat.template_choice import chosen
from abliterate.model.chat.thought_marks import without_thought

# Two instructions with nothing in common: what their encodings share at the end comes from the template.
_PROBES = ("Sing", "What is 2 + 3?")
MAX_POSITIONS = 8


def load_tokenizer(
    path: Path, trust_remote_code: bool = False, thinks: bool = True, clock: datetime | None = None
) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder; unless it ``thinks``, its prompts end after an empty thought, where the answer begins.

    In memory, its template is one text that takes content as text, and the time in it is always ``clock`` (None: now). Raises InputError
    if there is no tokenizer or no chat template, or if the template fails, loses the user's words, or has no thought to skip.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code, local_files_only=True)
    except Exception as error:  # transformers raises many kinds of exception for a missing or broken tokenizer
        raise InputError(f"{path}: the tokenizer can't be loaded ({first_line(error)})") from None
    template = chosen(tokenizer.chat_template, path)
    if not template:
        raise InputError(
            f"{path}: the tokenizer has no chat template; refusal is measured on chat prompts: "
            "use the instruction-tuned model, or put its chat_template.jinja into the folder"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)  # always masked
    tokenizer.chat_template = stopped(template, clock or now())
    tokenizer.chat_template = reaching(tokenizer)
    if not thinks:
        tokenizer.chat_template = _without_thought(tokenizer, path)
    return tokenizer


def _without_thought(tokenizer: PreTrainedTokenizerBase, path: Path) -> str:
    """The chat template whose prompts end where an answer without a thought begins. Raises InputError if it has no thought to skip."""
    template = tokenizer.chat_template

    def rendered(written: str) -> str:
        tokenizer.chat_template = written
        return _rendered(tokenizer, _PROBES[:1])[0]

    found = without_thought(template, rendered) if isinstance(template, str) else None
    if found is None:
        raise InputError(f"{path}: its chat template has no thinking block to skip; leave out --thinking off")
    return found


def encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text as a user's message, up to and including the generation prompt.

    Raises InputError if the template fails, or if the tokenizer doesn't know most of a text.
    """
    return encode_conversations(tokenizer, [_asking(text) for text in texts])


def encode_conversations(tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Sequence[Message]]) -> list[list[int]]:
    """Token ids of each conversation, up to and including the generation prompt. Raises InputError as ``encode`` does."""
    if not conversations:
        return []
    found = encoded(tokenizer, [rendered(tokenizer, messages) for messages in conversations])
    unknown = tokenizer.unk_token_id
    for messages, ids in zip(conversations, found, strict=True):
        if unknown is not None and unknown in ids:
            _check_known(tokenizer, messages[-1]["content"])
    return found


def _asking(text: str) -> list[Message]:
    return [Message(role="user", content=text)]


def _check_known(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    """Raise InputError if the tokenizer knows less than half of a text."""
    ids = encoded(tokenizer, [text])[0]
    lost = ids.count(int(tokenizer.unk_token_id))
    if 2 * lost > len(ids):
        shown = text if len(text) <= 40 else text[:37] + "..."
        raise InputError(
            f"{tokenizer.name_or_path}: its tokenizer doesn't know {lost} of the {len(ids)} tokens of the prompt {shown!r}, so the model "
            "can't read it; ask in a language that the model was made for"
        )


def written_turn(tokenizer: PreTrainedTokenizerBase, said: str) -> str | None:
    """A conversation that ends with ``said`` as the assistant's turn, as the chat template writes it; None if it refuses that."""
    try:
        return rendered(tokenizer, [*_asking(_PROBES[0]), Message(role="assistant", content=said)], asks=False)
    except InputError:
        return None


def _rendered(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[str]:
    return [rendered(tokenizer, _asking(text)) for text in texts]


def template_positions(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Positions of the generation prompt, last first: -1, -2, ... over the tokens that end every prompt alike.

    These are the post-instruction tokens of Arditi et al. (2024); at most 8, at least the last one.
    """
    first, second = encode(tokenizer, _PROBES)
    shared = 0
    while shared < min(len(first), len(second), MAX_POSITIONS) and first[-1 - shared] == second[-1 - shared]:
        shared += 1
    return tuple(range(-1, -max(shared, 1) - 1, -1))


def last_tokens(tokenizer: PreTrainedTokenizerBase, config: ModelConfig) -> int:
    """How many last tokens of a prompt to look at if the settings don't say: all that the template appends and, with keep sets, the
    instruction's last one."""
    one_more = isinstance(config, CollectConfig) and bool(config.keep)
    return len(template_positions(tokenizer)) + one_more
