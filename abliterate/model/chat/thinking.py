"""How a model marks its thoughts, from its tokenizer: its marks, whether its template opens a thought, and how to end one."""

from __future__ import annotations

from collections.abc import Sequence
from weakref import WeakKeyDictionary

from transformers import PreTrainedTokenizerBase

from abliterate.model.chat.template import encode
from abliterate.model.chat.thought_marks import Marks, opened_by, table, written_in

_END = 64  # so many last tokens of a prompt contain its generation prompt
_kept: WeakKeyDictionary[PreTrainedTokenizerBase, tuple[frozenset[int], frozenset[int]]] = WeakKeyDictionary()


def decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """The text of one reply without special tokens, except marks of thoughts, which are special tokens in many vocabularies."""
    marks, dropped = _special(tokenizer)
    if marks.isdisjoint(ids):
        return str(tokenizer.decode(list(ids), skip_special_tokens=True))
    return str(tokenizer.decode([token for token in ids if token not in dropped]))


def tokens_before(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], place: int) -> int:
    """How many first tokens of a reply are needed for its text to reach character ``place``."""
    low, high = 0, len(ids)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if len(decode(tokenizer, ids[:middle])) >= place else (middle + 1, high)
    return low


def mark_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Ids of the special tokens that mark this model's thoughts."""
    return _special(tokenizer)[0]


def marks_are_dropped(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether decoding without special tokens loses the marks of this model's thoughts."""
    return bool(mark_ids(tokenizer))


def opens_thought(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the generation prompt itself opens the thinking block, as DeepSeek-R1's does."""
    return _opened(tokenizer) is not None


def closing(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids that end a thought that is cut short, in the model's own marks."""
    return list(tokenizer(marks_of(tokenizer).closing, add_special_tokens=False)["input_ids"])


def empty_thought(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids that close an opened thinking block at once, as DeepSeek-R1 does when it won't think."""
    return list(tokenizer(marks_of(tokenizer).at_once, add_special_tokens=False)["input_ids"])


def marks_of(tokenizer: PreTrainedTokenizerBase) -> Marks:
    """The model's marks: those that its template opens a thought with, else those in its template or vocabulary, else the usual ones."""
    named = written_in(str(tokenizer.chat_template))
    held = set(tokenizer.get_added_vocab())
    known = next((marks for marks in table() if marks.is_written and held.issuperset(marks.tokens)), None)
    return _opened(tokenizer) or named or known or table()[0]


def _opened(tokenizer: PreTrainedTokenizerBase) -> Marks | None:
    (ids,) = encode(tokenizer, ("Sing",))
    return opened_by(str(tokenizer.decode(ids[-_END:])))


def _special(tokenizer: PreTrainedTokenizerBase) -> tuple[frozenset[int], frozenset[int]]:
    """Ids of the special tokens that mark thoughts, and of all other special tokens."""
    if tokenizer not in _kept:
        special = {token.content: i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        special |= dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
        held = {*special, *tokenizer.get_added_vocab()} - {tokenizer.eos_token}
        own = {token for marks in table() if held.issuperset(marks.tokens) for token in marks.tokens}
        marks = frozenset(i for token, i in special.items() if token in own)
        _kept[tokenizer] = (marks, frozenset(special.values()) - marks)
    return _kept[tokenizer]
