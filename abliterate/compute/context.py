"""What a model can read: how many tokens, and which token ids; checked before the model would fail on them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from transformers import PretrainedConfig, PreTrainedTokenizerBase

from abliterate.compute.passes import Ids
from abliterate.errors import InputError
from abliterate.model.chat.template import encode
from abliterate.model.chat.thinking import decode
from abliterate.model.folder import ModelFolder
from abliterate.prompts import Prompt

# Config keys for the largest number of tokens that a model reads; the first one present counts.
_KEYS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_sequence_length", "seq_length", "model_max_length")
_WORDS = 40  # characters of a prompt in a message


@dataclass(frozen=True)
class Context:
    """``limit``: the most tokens in a sequence, from the config's ``key``; None: not given. ``learned``: positions have embeddings, so
    more tokens can't be computed; otherwise they can, but the model was not trained on them. ``rows``: rows of the embedding; token ids
    are below that."""

    limit: int | None
    key: str | None
    learned: bool
    rows: int

    @classmethod
    def of(cls, folder: ModelFolder) -> Context:
        """The context that a model's config describes."""
        text, learned = folder.config, folder.layout.positions is not None
        key = next((key for key in _KEYS if _is_length(getattr(text, key, None))), None)
        limit = None if key is None else int(getattr(text, key))
        if limit is not None and not learned:
            limit = _stretched(text, limit)
        named = key and (text.attribute_map or {}).get(key, key)
        return cls(limit, named, learned, int(text.vocab_size))

    def room(self, used: int, wanted: int) -> int:
        """How many of the ``wanted`` tokens fit after ``used`` tokens."""
        return wanted if self.limit is None else min(wanted, max(0, self.limit - used))

    def check(self, sequences: Ids, further: int, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raise InputError for a sequence that the model would fail on: too long with ``further`` more tokens, or with an unknown token."""
        for ids in sequences:
            if self.learned and self.limit is not None and len(ids) + further > self.limit:
                raise InputError(f"{tokenizer.name_or_path}: {_shown(decode(tokenizer, ids))}: {self._too_long(len(ids), further)}")
            if (token := max(ids, default=0)) >= self.rows:
                raise InputError(f"{tokenizer.name_or_path}: {_shown(decode(tokenizer, ids))}: {self._unknown(token, tokenizer)}")

    def check_prompts(self, tokenizer: PreTrainedTokenizerBase, groups: Mapping[str, Iterable[Prompt]], further: int) -> None:
        """Raise InputError if a prompt with a reply of ``further`` tokens is longer than the model reads (it names the longest), or if a
        prompt holds a token without an embedding."""
        asked = [(name, prompt) for name, group in groups.items() for prompt in group]
        encoded = encode(tokenizer, [prompt.text for _, prompt in asked])
        longest = max(range(len(asked)), key=lambda i: len(encoded[i]), default=None)
        if longest is None:
            return
        wrong = None
        if self.limit is not None and len(encoded[longest]) + further > self.limit:
            wrong = longest, self._too_long(len(encoded[longest]), further)
        elif (odd := next((i for i, ids in enumerate(encoded) if max(ids, default=0) >= self.rows), None)) is not None:
            wrong = odd, self._unknown(max(encoded[odd]), tokenizer)
        if wrong is not None:
            name, prompt = asked[wrong[0]]
            raise InputError(
                f"{name}: the prompt {prompt.id!r} ({_shown(prompt.text)}) can't be given to {tokenizer.name_or_path}: {wrong[1]}"
            )

    def readable(self, tokenizer: PreTrainedTokenizerBase, prompts: Iterable[Prompt]) -> list[Prompt]:
        """The prompts that leave room for at least one more token."""
        asked = list(prompts)
        lengths = [len(ids) for ids in encode(tokenizer, [prompt.text for prompt in asked])]
        return [prompt for prompt, length in zip(asked, lengths, strict=True) if self.room(length, 1)]

    def _too_long(self, length: int, further: int) -> str:
        reads = f"the model {'has' if self.learned else 'was trained on'} {self.limit} positions ({self.key})"
        left = (self.limit or 0) - length
        if left < 1 or not further:
            return f"it has {length} tokens, and {reads}; leave it out, or shorten it"
        whole = f"it has {length} tokens, {length + further} with a reply of {further}"
        return f"{whole}, and {reads}; allow at most {left} reply tokens (--max-new-tokens), or leave the prompt out"

    def _unknown(self, token: int, tokenizer: PreTrainedTokenizerBase) -> str:
        name = tokenizer.convert_ids_to_tokens(token)
        return f"its token {name!r} has id {token}, but the embedding has {self.rows} rows; the tokenizer doesn't belong to this model"


def _is_length(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _stretched(config: PretrainedConfig, limit: int) -> int:
    """The limit times the factor that stretches rotary positions (linear, dynamic, YaRN), if the limit doesn't include it."""
    settings = getattr(config, "rope_parameters", None) or {}
    each = [settings, *(value for value in settings.values() if isinstance(value, Mapping))]  # one for each kind of block
    stretched = [
        int(rope["factor"] * (rope.get("original_max_position_embeddings") or limit))
        for rope in each
        if isinstance(rope.get("factor"), int | float)
    ]
    return max(limit, *stretched) if stretched else limit


def _shown(text: str) -> str:
    words = " ".join(text.split())
    return repr(words if len(words) <= _WORDS else words[:_WORDS] + " …")
