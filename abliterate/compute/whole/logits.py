"""Logits of a pass, each token computed once: shared prefixes, prompts with several replies, and blocks below every edit are reused."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from jaxtyping import Float
from torch import Tensor

from abliterate.compute.at_once import LOGIT_NUMBERS
from abliterate.compute.forward import Batch
from abliterate.compute.passes import Ids, Pass
from abliterate.compute.prefix import Prefix, after
from abliterate.compute.whole.batching import Batching
from abliterate.compute.whole.below import Below, Span, watching
from abliterate.compute.whole.branches import Branches, Grown, branches, grown, grown_on

Logits = Iterator[tuple[Sequence[int], Float[Tensor, "row kept vocab"]]]


def pass_logits(by: Batching, asked: Pass, below: Below | None = None) -> Logits:
    """Yield indices of sequences and their logits (float32) at the last ``kept`` positions, from the model as it is now; ``below``: streams
    from which the pass starts, so that the first blocks are skipped."""
    sequences, kept = asked.sequences, asked.kept
    prefix = by.prefix(sequences, kept, below)
    shared = prefix.length if prefix is not None else 0
    rows = max(1, LOGIT_NUMBERS // (kept * int(by.model.folder.config.vocab_size)))
    if by.reuse.branches and by.only_attends(sequences) and (forked := branches(sequences, kept, shared)) is not None:
        yield from _along_branches(by, sequences, forked, prefix, rows, below)
        return

    def compute(batch: Batch) -> Float[Tensor, "row kept vocab"]:
        with _entering(by, below, [(sequences[i], shared, len(sequences[i])) for i in batch.indices], batch):
            logits: Tensor = by.model.module(**batch.inputs(), **after(prefix), logits_to_keep=kept).logits
        return logits.float()

    for batch, logits in by.each(sequences, compute, shared, rows):
        yield batch.indices, logits


def _along_branches(by: Batching, sequences: Ids, forked: Branches, prefix: Prefix | None, rows: int, below: Below | None) -> Logits:
    """The same, with the stems first and then their tails."""
    module, shared = by.model.module, prefix.length if prefix is not None else 0
    whole_of = {stem: sequences[i] for i, stem in enumerate(forked.of)}

    def stems(batch: Batch) -> Grown:
        with _entering(by, below, [(whole_of[stem], shared, len(forked.stems[stem])) for stem in batch.indices], batch):
            return grown(module, batch, prefix)

    for batch, made in by.each(forked.stems, stems, shared):
        place = {stem: row for row, stem in enumerate(batch.indices)}
        going_on = forked.from_stems(batch.indices)

        def tails(tail: Batch, made: Grown = made, place: dict[int, int] = place, going_on: list[int] = going_on) -> Tensor:
            chosen = [going_on[i] for i in tail.indices]
            spans = [(sequences[i], len(forked.stems[forked.of[i]]), len(sequences[i])) for i in chosen]
            with _entering(by, below, spans, tail):
                return grown_on(module, made, [place[forked.of[i]] for i in chosen], tail)

        for tail, logits in by.each([forked.tails[i] for i in going_on], tails, 0, rows):
            yield [going_on[i] for i in tail.indices], logits


def _entering(by: Batching, below: Below | None, spans: Sequence[Span], batch: Batch) -> AbstractContextManager[None]:
    return nullcontext() if below is None else below.entering(by.model, below.rows(spans, batch.input_ids.shape[1]))


@torch.inference_mode()
def streams_into(by: Batching, layer: int, sequences: Ids) -> Below:
    """The streams that enter block ``layer`` of the unedited model, for each whole sequence."""
    found: dict[tuple[int, ...], Tensor] = {}
    entered: list[tuple[Tensor, int | None]] = []

    def seen(stream: Tensor, arity: int | None) -> None:
        entered[:] = [(stream, arity)]

    with watching(by.model, layer, seen) as run:

        def compute(batch: Batch) -> Tensor:
            run(lambda: by.model.module.base_model(**batch.inputs(), use_cache=False))
            return entered[0][0]

        for batch, stream in by.each(sequences, compute):
            for row, index in zip(stream, batch.indices, strict=True):
                found[tuple(sequences[index])] = row[-len(sequences[index]) :].clone()
    return Below(layer, entered[0][1], found)
