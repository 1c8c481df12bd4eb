"""Batched greedy generation that can be interrupted and gone on with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from abliterate.evaluation.transcripts import Transcript, append, read, transcript_of
from abliterate.model.forward import Batch, batches
from abliterate.model.load import LocalModel
from abliterate.model.template import decode, encode, opens_thought
from abliterate.prompts import Prompt, PromptSet


@torch.inference_mode()
def reply_ids(model: LocalModel, batch: Batch, max_new_tokens: int) -> list[list[int]]:
    """Greedy continuation of every row, up to and without its end token; deterministic for a given batch."""
    ends = _end_ids(model)
    out = model.module.generate(  # type: ignore[operator]
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        max_new_tokens=max_new_tokens,
        do_sample=False,
        eos_token_id=sorted(ends),
        pad_token_id=model.tokenizer.pad_token_id,
    )
    replies = []
    for row in out[:, batch.input_ids.shape[1] :].tolist():
        cut = next((i for i, token in enumerate(row) if token in ends), len(row))
        replies.append(row[:cut])
    return replies


def _end_ids(model: LocalModel) -> set[int]:
    configured = model.module.generation_config.eos_token_id
    ends = {configured} if isinstance(configured, int) else set(configured or ())
    return ends | {model.tokenizer.eos_token_id}


def generate(
    model: LocalModel,
    sets: Sequence[PromptSet],
    path: Path,
    max_new_tokens: int,
    batch_size: int,
    advance: Callable[[int], None] = lambda done: None,
) -> list[Transcript]:
    """Responses to every prompt of every set, written to ``path`` batch by batch.

    A file begun earlier is gone on with: batches that are whole in it are kept, so the same batches are formed and the
    same tokens come out as without the interruption.
    """
    prompts = [(group.name, prompt) for group in sets for prompt in group]
    encoded = encode(model.tokenizer, [p.text for _, p in prompts])
    opened = opens_thought(model.tokenizer)
    done = {(t.set, t.id): t for t in read(path)}
    kept: list[Transcript] = []
    pending: list[Batch] = []
    for batch in batches(encoded, model.tokenizer.pad_token_id, batch_size, model.device):
        whole = [done.get((prompts[i][0], prompts[i][1].id)) for i in batch.indices]
        if not pending and all(t is not None for t in whole):
            kept += [t for t in whole if t is not None]
        else:
            pending.append(batch)
    _rewrite(path, kept)
    advance(len(kept))
    for batch in pending:
        made = [
            _transcript(model, *prompts[i], reply, opened)
            for i, reply in zip(batch.indices, reply_ids(model, batch, max_new_tokens), strict=True)
        ]
        append(path, made)
        kept += made
        advance(len(made))
    order = {(name, prompt.id): i for i, (name, prompt) in enumerate(prompts)}
    return sorted(kept, key=lambda t: order[t.set, t.id])


def _transcript(model: LocalModel, name: str, prompt: Prompt, reply: list[int], opened: bool) -> Transcript:
    return transcript_of(name, prompt, decode(model.tokenizer, reply), len(reply), opened)


def _rewrite(path: Path, kept: Sequence[Transcript]) -> None:
    partial = path.with_suffix(".partial")
    partial.unlink(missing_ok=True)
    append(partial, kept)
    partial.replace(path)
