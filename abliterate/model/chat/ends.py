"""The tokens that end a reply: from a model's generation config, its tokenizer, and the turns that its chat template writes."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from transformers import GenerationConfig, PreTrainedTokenizerBase

from abliterate.model.chat.template import written_turn
from abliterate.model.chat.thinking import mark_ids
from abliterate.model.failure import refused
from abliterate.model.folder import ModelFolder
from abliterate.terminal.progress import say_once

Advice = int | Sequence[int] | None
_SAID = "Zanzibar"  # used as an assistant's whole turn; no template contains it


def end_ids(advised: Advice, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The tokens that end a reply; empty if nothing defines one, so that a reply ends only at its token limit.

    If the template ends an assistant's turn with a special token that is neither ``advised`` nor the tokenizer's, it is added, and a
    message says so once: such a model never writes its end token, and would go on with the user's next turn.
    """
    known = {advised} if isinstance(advised, int) else set(advised or ())
    known |= {tokenizer.eos_token_id}
    known -= {None}
    turn = end_of_turn(tokenizer)
    if turn is None or turn in known:
        return frozenset(known)
    name, token = str(tokenizer.name_or_path).rpartition("/")[2], tokenizer.convert_ids_to_tokens(turn)
    say_once(f"{name}: a reply also ends at {token}, because the chat template ends an assistant's turn with it")
    return frozenset(known | {turn})


def advice_of(folder: ModelFolder) -> Advice:
    """The end tokens in a folder's generation config, else in its config. Raises InputError if the generation config can't be read."""
    if (folder.path / "generation_config.json").is_file():
        with refused(f"{folder.path}: its generation_config.json can't be used"):
            found: Advice = GenerationConfig.from_pretrained(folder.path, local_files_only=True).eos_token_id
            return found
    return getattr(folder.config, "eos_token_id", None)


def end_of_turn(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The special token that the chat template puts right after an assistant's last words; None if it puts another token or none.

    Tokens that also mark thoughts don't count: gpt-oss's ``<|end|>`` closes a channel, and the answer follows it.
    """
    written = written_turn(tokenizer, _SAID)
    if written is None or _SAID not in written:
        return None
    behind = written.rpartition(_SAID)[2].lstrip()
    ids = tokenizer(behind, add_special_tokens=False)["input_ids"] if behind else []
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special} | set(tokenizer.all_special_ids)
    special -= mark_ids(tokenizer)
    return int(ids[0]) if ids and ids[0] in special else None


def said_nothing(ends: Collection[int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The empty reply as token ids: its end token alone."""
    return [tokenizer.eos_token_id] if tokenizer.eos_token_id in ends else sorted(ends)[:1]
