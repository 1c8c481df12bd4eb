"""Drift: how far the edited model moves where it should not, measured on first tokens, the base's own replies, and ordinary prose.

The two models are never in memory together. Of the base's predictions along a text, only the likeliest tokens are kept, and all others are
lumped into one. The KL divergence after lumping is at most the full one (data processing inequality), and with 1,024 tokens only slightly
smaller.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxtyping import Float
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from abliterate.compute.context import Context
from abliterate.compute.passes import Advance, Ids, Model, no_progress
from abliterate.measures.parts.moved import DriftValues
from abliterate.measures.predictions import Divergences, Firsts, Nats, Predicted, Predictions, Texts, ThoughtClosing, ask, kl_divergence
from abliterate.prompts.languages.record import languages

REPLY = 64  # tokens of the base's own replies


def texts_of(tokenizer: PreTrainedTokenizerBase, prompts: Ids, replies: Sequence[str], context: Context) -> Texts:
    """The prompts with the first tokens of the base's replies (text), and the bundled prose, all cut to the model's context."""
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in replies]
    ids = [reply[: context.room(len(prompt), REPLY)] for prompt, reply in zip(prompts, ids, strict=True)]
    prose = [list(tokenizer(text)["input_ids"]) for text in bundled_prose()]
    return Texts(prompts, ids, [text[: context.room(0, len(text))] for text in prose])


def bundled_prose() -> list[str]:
    """Ordinary paragraphs in each language, written for this measurement."""
    return [text for language in languages() for text in language.prose.texts]


@dataclass(frozen=True)
class BasePredictions:
    """What is kept of the base model for the comparison with the edited model."""

    first: Float[Tensor, "prompt vocab"]
    replies: Predicted
    prose: Float[Tensor, " text"]  # cross-entropy, nats per token
    suppression: Float[Tensor, " prompt"] | None


def base_predictions(model: Model, texts: Texts, advance: Advance = no_progress) -> BasePredictions:
    """Measure the base model in one pass over its weights."""
    first, replies, prose = Firsts(texts.prompts), Predictions(model, texts), Nats(texts.prose)
    closing = ThoughtClosing.of(model, texts.prompts)
    ask(model, [first, replies, prose, *([closing] if closing else [])], advance)
    return BasePredictions(first.logprobs, replies.found, prose.nats, closing.log_odds if closing else None)


@dataclass(frozen=True)
class Drift:
    """Figures per prompt or text, in nats (per token along replies and prose). ``ce_*``: cross-entropy of the prose. ``own_*``:
    cross-entropy of the base's own replies."""

    kl_first_token: list[float]
    kl_sequence: list[float | None]
    own_base: list[float | None]
    own_edited: list[float | None]
    ce_base: list[float | None]
    ce_edited: list[float | None]
    suppression_base: list[float] | None
    suppression_edited: list[float] | None

    def of(self, name: str, ids: Sequence[str]) -> DriftValues:
        """The content of drift.json, on the prompts ``ids`` of the set ``name``."""
        values = {key: None if given is None else tuple(given) for key, given in vars(self).items()}
        return DriftValues(set=name, ids=tuple(ids), **values)


def drift(edited: Model, base: BasePredictions, texts: Texts, advance: Advance = no_progress) -> Drift:
    """Measure the edited model on the same texts, and compare it with the base."""
    first, replies, prose = Firsts(texts.prompts), Divergences(base.replies, texts), Nats(texts.prose)
    closing = ThoughtClosing.of(edited, texts.prompts)
    ask(edited, [first, replies, prose, *([closing] if closing else [])], advance)
    return Drift(
        kl_first_token=kl_divergence(base.first, first.logprobs).tolist(),
        kl_sequence=_numbers(replies.kl),
        own_base=_numbers(base.replies.nats),
        own_edited=_numbers(replies.nats),
        ce_base=_numbers(base.prose),
        ce_edited=_numbers(prose.nats),
        suppression_base=None if base.suppression is None else base.suppression.tolist(),
        suppression_edited=closing.log_odds.tolist() if closing else None,
    )


def _numbers(values: Float[Tensor, " row"]) -> list[float | None]:
    return [None if value != value else value for value in values.tolist()]


def save_base_predictions(side: BasePredictions, path: Path) -> None:
    """Write the base's predictions as safetensors."""
    tensors = {
        "first": side.first, "tokens": side.replies.tokens, "logprobs": side.replies.logprobs, "starts": side.replies.starts,
        "nats": side.replies.nats, "prose": side.prose,
    }  # fmt: skip
    save_file({**tensors, **({} if side.suppression is None else {"suppression": side.suppression})}, path)


def load_base_predictions(path: Path) -> BasePredictions:
    """Read it back."""
    with safe_open(path, framework="pt") as file:
        found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    replies = Predicted(found["tokens"], found["logprobs"], found["starts"], found["nats"])
    return BasePredictions(found["first"], replies, found["prose"], found.get("suppression"))
