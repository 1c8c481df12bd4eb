"""A transformers sequence classifier as a judge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import logging

from abliterate.compute.load import pick_device
from abliterate.errors import InputError, first_line
from abliterate.model.source import resolve_model
from abliterate.outcomes.judges.judge import Advance, Case, case_of, verdict_of
from abliterate.outcomes.judges.labels import Labels
from abliterate.outcomes.records import Outcome
from abliterate.outcomes.verdict import Verdict
from abliterate.replies.transcripts import Transcript

BATCH = 32
_LONGEST = 8192  # tokens of prompt and answer, unless the tokenizer or the config sets a lower limit


@dataclass(frozen=True)
class Classifier:
    """``given``: a folder or a Hub id. Code that comes with a model is never run."""

    given: str
    labels: Labels
    device: str = "auto"

    @property
    def name(self) -> str:
        return f"classifier:{self.given}"

    def __call__(self, transcripts: Sequence[Transcript], advance: Advance = lambda done: None) -> list[Verdict | None]:
        """One verdict per transcript: the outcome of the likeliest label. Input longer than the model's limit is truncated.

        Raises InputError if there is no such classifier, or if one of its labels maps to no outcome.
        """
        loaded = _load(self.given, self.labels, self.device)
        found: list[Verdict | None] = [t.verdict() if case_of(t) is None else None for t in transcripts]
        left = [(i, case) for i, t in enumerate(transcripts) if (case := case_of(t)) is not None]
        left.sort(key=lambda each: len(each[1].prompt) + len(each[1].answer))  # similar lengths in a batch need little padding
        advance(len(transcripts) - len(left))
        for start in range(0, len(left), BATCH):
            batch = left[start : start + BATCH]
            for (i, _), (outcome, rule) in zip(batch, loaded.judge([case for _, case in batch]), strict=True):
                found[i] = verdict_of(transcripts[i], outcome, rule)
            advance(len(batch))
        return found


@dataclass(frozen=True)
class _Loaded:
    model: Any
    tokenizer: Any
    names: tuple[str, ...]
    outcomes: tuple[Outcome, ...]
    pairs: bool
    longest: int

    @torch.inference_mode()
    def judge(self, cases: Sequence[Case]) -> list[tuple[Outcome, str]]:
        """Outcome and rule of each case, from one forward pass."""
        prompts, answers = [_whole(case.prompt) for case in cases], [_whole(case.answer) for case in cases]
        texts = (prompts, answers) if self.pairs else (answers,)
        encoded = self.tokenizer(*texts, padding=True, truncation=True, max_length=self.longest, return_tensors="pt")
        logits = self.model(**encoded.to(self.model.device)).logits.float()  # [case, label]
        likely, label = logits.softmax(dim=-1).max(dim=-1)
        return [(self.outcomes[i], f"classifier: {self.names[i]} {p:.2f}") for i, p in zip(label.tolist(), likely.tolist(), strict=True)]


def _whole(text: str) -> str:
    """A text without lone surrogates, which tokenizers reject."""
    return text.encode("utf-8", "replace").decode()


def _load(given: str, labels: Labels, device: str) -> _Loaded:
    """Load a classifier. Raises InputError if there is none; transformers would initialise missing weights at random."""
    path = resolve_model(given).path
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        model, info = AutoModelForSequenceClassification.from_pretrained(
            path, local_files_only=True, output_loading_info=True, use_safetensors=True, trust_remote_code=False
        )
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        raise InputError(f"{given}: transformers can't load a sequence classifier from it ({first_line(error)})") from None
    config = model.config
    if missing := sorted(info["missing_keys"]):
        raise InputError(f"{given}: not a sequence classifier: {missing[0]} is not among its weights")
    names = tuple(str(config.id2label[i]) for i in range(config.num_labels))
    if len(names) < 2 or config.problem_type in ("regression", "multi_label_classification"):
        raise InputError(f"{given}: not a single-label classifier; give one that predicts one of several labels")
    outcomes = labels.outcomes(names)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
        config.pad_token_id = tokenizer.pad_token_id
    pairs = labels.reads == "pair" if labels.reads else getattr(config, "type_vocab_size", 0) >= 2
    return _Loaded(model.eval().to(pick_device(device)), tokenizer, names, outcomes, pairs, _longest(config, tokenizer))


def _longest(config: Any, tokenizer: Any) -> int:
    """Maximum input tokens. Large limits are rounded down to a multiple of 256: RoBERTa's 514 positions include the padding offset."""
    positions = getattr(config, "max_position_embeddings", None) or _LONGEST
    return int(min(tokenizer.model_max_length, positions if positions < 512 else positions - positions % 256, _LONGEST))
