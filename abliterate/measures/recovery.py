"""How much comes back of a model whose behaviour without the censorship is known, the reference: along its own replies.

KL(reference‖model), nats a token, says how far a model is from it; of the reference's predictions the likeliest tokens are kept,
and all others as one, as for drift. Replies are stored as text, so all of them, the reference's own too, are encoded again with the
one tokenizer that the models share.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from transformers import PreTrainedTokenizerBase

from abliterate.compute.passes import Advance, Ids, Model, no_progress
from abliterate.errors import InputError
from abliterate.measures.predictions import Divergences, Predicted, Predictions, Texts, ask
from abliterate.measures.summary import rate
from abliterate.model.chat.template import encode

TOKENS = 64  # of the reference's own replies
AGREED = 32  # first tokens in which a reply is the reference's
LEAST = 0.01  # nats a token: a base that is no further from the reference has nothing that could go


def check_predicts_alike(
    name: str, reference: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase, sizes: tuple[int, int], texts: Sequence[str]
) -> None:
    """Raises InputError unless both models predict the same tokens and are given the same ids of ``texts``; ``sizes``: of their outputs."""
    old, new = other.get_vocab(), reference.get_vocab()
    moved = next((token for token in sorted({*old, *new}) if old.get(token) != new.get(token)), None)
    if moved is not None:
        raise InputError(f"--reference {name}: its tokenizer has another number for {moved!r}; give a model of the same vocabulary")
    if sizes[0] != sizes[1]:
        raise InputError(f"--reference {name}: it predicts {sizes[0]} tokens, the model {sizes[1]}; give a model of the same vocabulary")
    if encode(reference, texts) != encode(other, texts):
        raise InputError(f"--reference {name}: its chat template writes the prompts otherwise; give a model that is asked in the same way")


def ids_of(tokenizer: PreTrainedTokenizerBase, replies: Sequence[str]) -> Ids:
    """The first ``TOKENS`` token ids of each reply."""
    return [tokenizer(text, add_special_tokens=False)["input_ids"][:TOKENS] for text in replies]


def reference_side(model: Model, texts: Texts, advance: Advance = no_progress) -> Predicted:
    """What the reference predicts along its own replies."""
    ask(model, [heard := Predictions(model, texts)], advance)
    return heard.found


def divergences(model: Model, reference: Predicted, texts: Texts, advance: Advance = no_progress) -> dict[str, list[float | None]]:
    """KL(reference‖model), nats, of each reply of the reference: ``kl``, the mean over its tokens, and ``first``, of its first token, by
    which the rest is led; None where it says nothing."""
    ask(model, [heard := Divergences(reference, texts)], advance)
    found = {"kl": heard.kl, "first": heard.first}
    return {name: [None if value != value else value for value in values.tolist()] for name, values in found.items()}


@dataclass(frozen=True)
class RecoverySide:
    """One model on one set: its divergence along the reference's reply to each prompt, that of the first token, and the ids of its own
    reply."""

    kl: Sequence[float | None]
    first: Sequence[float | None]
    replies: Ids


def recovered(role: str, reference: Ids, base: RecoverySide, edited: RecoverySide, tokens: int = AGREED) -> dict[str, Any]:
    """One entry of the report's ``recovery.sets``; ``reference`` are the ids of its replies, of which ``tokens`` are to agree.

    ``gone`` is null where the base is within ``LEAST`` of the reference.
    """
    return {
        "role": role,
        "n": len(reference),
        **_compared("", base.kl, edited.kl),
        **_compared("_first", base.first, edited.first),
        "agree_base": _agreement(reference, base.replies, tokens),
        "agree_edited": _agreement(reference, edited.replies, tokens),
    }


def _compared(what: str, base: Sequence[float | None], edited: Sequence[float | None]) -> dict[str, float | None]:
    before, after = _mean(base), _mean(edited)
    gone = 1 - after / before if before is not None and after is not None and before >= LEAST else None
    return {f"kl{what}_base": before, f"kl{what}_edited": after, f"gone{what}": gone}


def _agreement(reference: Ids, replies: Ids, tokens: int) -> dict[str, Any]:
    pairs = zip(reference, replies, strict=True)
    return rate(sum(list(one[:tokens]) == list(other[:tokens]) for one, other in pairs), len(reference))


def _mean(values: Sequence[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return sum(there) / len(there) if there else None


def save_predicted(predicted: Predicted, path: Path) -> None:
    """Write what a model predicts as safetensors."""
    names = ("tokens", "logprobs", "starts", "nats")
    save_file({name: getattr(predicted, name) for name in names}, path)


def load_predicted(path: Path) -> Predicted:
    """Read it back."""
    with safe_open(path, framework="pt") as file:
        return Predicted(*(file.get_tensor(name) for name in ("tokens", "logprobs", "starts", "nats")))
