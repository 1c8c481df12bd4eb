"""Recovery: how close the edited model comes to a reference, a model whose behaviour without the censorship is known.

KL(reference‖model), in nats per token along the reference's own replies, says how far a model is from the reference. Of the reference's
predictions the likeliest tokens are kept and all others lumped into one, as for drift. Replies are stored as text, so all of them,
including the reference's own, are encoded again with the tokenizer that the models share.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from transformers import PreTrainedTokenizerBase

from abliterate.compute.passes import Advance, Ids, Model, no_progress
from abliterate.errors import InputError
from abliterate.files import Number, Record, Several
from abliterate.measures.parts.moved import Distance
from abliterate.measures.parts.rates import Rate
from abliterate.measures.predictions import Divergences, Predicted, Predictions, Texts, ask
from abliterate.measures.summary import rate
from abliterate.model.chat.template import encode

TOKENS = 64  # tokens of the reference's own replies
AGREED = 32  # a reply agrees with the reference if this many first tokens are equal
LEAST = 0.01  # nats per token; if the base is closer to the reference than this, no recovered share is computed


def check_predicts_alike(
    name: str, reference: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase, sizes: tuple[int, int], texts: Sequence[str]
) -> None:
    """Raises InputError unless both models have the same vocabulary and encode ``texts`` to the same ids. ``sizes``: their output sizes."""
    old, new = other.get_vocab(), reference.get_vocab()
    moved = next((token for token in sorted({*old, *new}) if old.get(token) != new.get(token)), None)
    if moved is not None:
        raise InputError(f"--reference {name}: its tokenizer maps {moved!r} to a different id; give a model with the same vocabulary")
    if sizes[0] != sizes[1]:
        raise InputError(f"--reference {name}: it predicts {sizes[0]} tokens, the model {sizes[1]}; give a model with the same vocabulary")
    if encode(reference, texts) != encode(other, texts):
        raise InputError(f"--reference {name}: its chat template encodes the prompts differently; give a model with the same template")


def ids_of(tokenizer: PreTrainedTokenizerBase, replies: Sequence[str]) -> Ids:
    """The first ``TOKENS`` token ids of each reply."""
    return [tokenizer(text, add_special_tokens=False)["input_ids"][:TOKENS] for text in replies]


def reference_side(model: Model, texts: Texts, advance: Advance = no_progress) -> Predicted:
    """The reference's predictions along its own replies."""
    ask(model, [heard := Predictions(model, texts)], advance)
    return heard.found


def divergences(model: Model, reference: Predicted, texts: Texts, advance: Advance = no_progress) -> Divergence:
    """KL(reference‖model) in nats for each reply of the reference."""
    ask(model, [heard := Divergences(reference, texts)], advance)
    kl, first = (tuple(None if value != value else value for value in values.tolist()) for values in (heard.kl, heard.first))
    return Divergence(kl=kl, first=first)


class Divergence(Record):
    """KL(reference‖model) in nats for each reply of the reference: ``kl``, the mean over its tokens, and ``first``, for its first token,
    which steers the rest; None if the reply is empty. recovery-base.json."""

    kl: Several[Number | None]
    first: Several[Number | None]


@dataclass(frozen=True)
class RecoverySide:
    """One model on one set: for each prompt, its KL along the reference's reply and at its first token, and the ids of its own reply."""

    kl: Sequence[float | None]
    first: Sequence[float | None]
    replies: Ids


def recovered(role: str, reference: Ids, base: RecoverySide, edited: RecoverySide, tokens: int = AGREED) -> Distance:
    """One entry of the report's ``recovery.sets``. ``reference``: the ids of the reference's replies; replies agree if their first
    ``tokens`` ids are equal.

    ``gone`` is null if the base is within ``LEAST`` of the reference.
    """
    before, after = _mean(base.kl), _mean(edited.kl)
    first_before, first_after = _mean(base.first), _mean(edited.first)
    return Distance(
        role=role,
        n=len(reference),
        kl_base=before,
        kl_edited=after,
        gone=_gone(before, after),
        kl_first_base=first_before,
        kl_first_edited=first_after,
        gone_first=_gone(first_before, first_after),
        agree_base=_agreement(reference, base.replies, tokens),
        agree_edited=_agreement(reference, edited.replies, tokens),
    )


def _gone(before: float | None, after: float | None) -> float | None:
    return 1 - after / before if before is not None and after is not None and before >= LEAST else None


def _agreement(reference: Ids, replies: Ids, tokens: int) -> Rate:
    pairs = zip(reference, replies, strict=True)
    return rate(sum(list(one[:tokens]) == list(other[:tokens]) for one, other in pairs), len(reference))


def _mean(values: Sequence[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return sum(there) / len(there) if there else None


def save_predicted(predicted: Predicted, path: Path) -> None:
    """Write a model's predictions as safetensors."""
    names = ("tokens", "logprobs", "starts", "nats")
    save_file({name: getattr(predicted, name) for name in names}, path)


def load_predicted(path: Path) -> Predicted:
    """Read it back."""
    with safe_open(path, framework="pt") as file:
        return Predicted(*(file.get_tensor(name) for name in ("tokens", "logprobs", "starts", "nats")))
