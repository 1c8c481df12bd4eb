"""A model larger than memory: its blocks are read one after the other, and all prompts of all passes go through each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import Cache, PretrainedConfig, PreTrainedTokenizerBase

from abliterate.compute.blockwise.blocks import Blocks
from abliterate.compute.blockwise.caches import after, can_share, empty_cache, let_go
from abliterate.compute.blockwise.forward import Abilities, BlockwiseForward, RunningBatch
from abliterate.compute.blockwise.spill import Spill
from abliterate.compute.context import Context
from abliterate.compute.finite import NotFiniteError, check_logits, traced, watched
from abliterate.compute.forward import Batch, packed, pad_id
from abliterate.compute.hooks import as_one, changed_block, changed_embedding, changed_head
from abliterate.compute.load import InMemory
from abliterate.compute.passes import Advance, Ids, Intervention, Pass, Seen, no_progress
from abliterate.compute.prefix import prefix_length
from abliterate.compute.sampler import sampled

MAX_NEW_TOKENS = 16  # each token costs one reading of the weights
LOGIT_NUMBERS = 16_000_000  # logits in one micro-batch


@dataclass
class RunningPass:
    """The micro-batches under one intervention, and their common prefix."""

    intervention: Intervention
    prefix: RunningBatch | None = None
    passages: list[RunningBatch] = field(default_factory=list)


@dataclass(frozen=True)
class BlockwiseModel(InMemory):
    """A model whose weights stay on disk; ``module`` is on the meta device.

    At most ``tokens`` are computed at once; ``spill_bytes`` of streams stay in memory, the rest is in files in ``spill_folder``.
    """

    tokenizer: PreTrainedTokenizerBase
    blocks: Blocks
    abilities: Abilities
    ends: frozenset[int]
    tokens: int = 2048
    spill_bytes: int = 1 << 30
    spill_folder: Path | None = None

    @property
    def device(self) -> torch.device:
        return self.blocks.device

    @property
    def segment(self) -> int | None:
        """All prompts at once."""
        return None

    @property
    def longest(self) -> int | None:
        return MAX_NEW_TOKENS

    @cached_property
    def context(self) -> Context:
        return Context.of(self.folder)

    def watch(self, passes: Sequence[Pass], last: int, seen: Seen, advance: Advance = no_progress) -> None:
        with traced(self):
            self.streams(passes, last, watched(passes, seen), advance)

    def streams(self, passes: Sequence[Pass], last: int, seen: Seen, advance: Advance = no_progress) -> None:
        """As ``watch``, without the check for finite values."""
        self._check(passes, 0)

        def tell(passage: RunningBatch, index: int) -> None:
            seen(passage.number, passage.batch.indices, index, as_one(passage.stream)[:, -last:].float().cpu())

        sweep = self._sweep()
        flights = self._flights(passes, last)
        for passage in self._entered(sweep, flights):
            tell(passage, 0)
        for layer, passage in self._through(sweep, flights):
            tell(passage, layer + 1)
            advance(len(passage.batch.indices) / self.folder.layers)

    def logits(
        self, passes: Sequence[Pass], advance: Advance = no_progress
    ) -> Iterator[tuple[int, Sequence[int], Float[Tensor, "row kept vocab"]]]:
        self._check(passes, 0)
        sweep = self._sweep()
        flights = self._flights(passes, max((asked.kept for asked in passes), default=1))
        self._run(sweep, flights, advance)
        with traced(self), self.blocks.head():
            for flight in flights:
                with changed_head(self, flight.intervention):
                    for passage in flight.passages:
                        asked = passes[passage.number]
                        logits = sweep.leave(passage, asked.kept)
                        check_logits(asked, passage.batch.indices, logits)
                        yield passage.number, passage.batch.indices, logits

    def replies(
        self, passes: Sequence[Pass], max_new_tokens: int, advance: Advance = no_progress
    ) -> Iterator[tuple[int, Sequence[int], list[list[int]]]]:
        """At most ``MAX_NEW_TOKENS`` per reply: each token costs one reading of the weights, shared by all replies."""
        tokens = min(max_new_tokens, MAX_NEW_TOKENS)
        self._check(passes, tokens)
        replies: list[list[list[int]]] = [[[] for _ in asked.sequences] for asked in passes]
        writing = {(number, i) for number, asked in enumerate(passes) for i in range(len(asked.sequences))}
        flights = self._flights(passes, 1, keep=self.abilities.cached)
        for _ in range(tokens):
            sweep = self._sweep()
            self._run(sweep, flights, lambda done: advance(done / tokens))
            with traced(self), self.blocks.head():
                for flight in flights:
                    with changed_head(self, flight.intervention):
                        for passage in flight.passages:
                            self._write(passes, passage, sweep.leave(passage, 1)[:, -1], replies, writing)
            for flight in flights:
                flight.passages = [p for p in flight.passages if any((p.number, i) in writing for i in p.batch.indices)]
            flights = [flight for flight in flights if flight.passages]
            if not flights:
                break
            if not self.abilities.cached:
                longer = [[[*ids, *replies[n][i]] for i, ids in enumerate(asked.sequences)] for n, asked in enumerate(passes)]
                flights = self._flights([replace(asked, sequences=ids) for asked, ids in zip(passes, longer, strict=True)], 1)
        for number, asked in enumerate(passes):
            yield number, range(len(asked.sequences)), replies[number]

    def _write(
        self, passes: Sequence[Pass], passage: RunningBatch, logits: Float[Tensor, "row vocab"], replies: list[list[list[int]]],
        writing: set[tuple[int, int]],
    ) -> None:  # fmt: skip
        """Record each row's token, and prepare the micro-batch for the next step."""
        likeliest, tokens = logits.max(-1)
        draws = passes[passage.number].draws
        if draws is not None:
            places = [(draws[index], len(replies[passage.number][index])) for index in passage.batch.indices]
            tokens = sampled(logits, [draw.number(written) for draw, written in places])
        for index, token, fit in zip(passage.batch.indices, tokens.tolist(), torch.isfinite(likeliest).tolist(), strict=True):
            if not fit and (passage.number, index) in writing:
                said = replies[passage.number][index]
                raise NotFiniteError([*passes[passage.number].sequences[index], *said], passage.intervention)
            if token in self.ends:
                writing.discard((passage.number, index))
            elif (passage.number, index) in writing:
                replies[passage.number][index].append(token)
        mask = passage.batch.attention_mask
        ids = tokens[:, None].to(mask.device)
        passage.batch = Batch(passage.batch.indices, ids, torch.cat([mask, torch.ones_like(ids)], dim=1))

    def _sweep(self) -> BlockwiseForward:
        return BlockwiseForward(self.blocks, Spill(self.spill_bytes, self.spill_folder), self.abilities.arity)

    def _flights(self, passes: Sequence[Pass], reach: int, keep: bool = False) -> list[RunningPass]:
        """All micro-batches, grouped by intervention. The last ``reach`` tokens of every sequence are computed in its own row."""
        shared = self._shared([ids for asked in passes for ids in asked.sequences], reach)
        flights: dict[int, RunningPass] = {}
        for number, asked in enumerate(passes):
            flight = flights.setdefault(id(asked.intervention), RunningPass(asked.intervention))
            if shared and flight.prefix is None and asked.sequences:
                (alone,) = packed([asked.sequences[0][:shared]], self._pad, shared, 1, self.device)
                flight.prefix = RunningBatch(-1, asked.intervention, alone, empty_cache(self._config))
            rows = max(1, LOGIT_NUMBERS // (asked.kept * self._vocabulary))
            for batch in packed(asked.sequences, self._pad, self.tokens, rows, self.device, shared, self.abilities.padded):
                cache: Cache | None = empty_cache(self._config) if keep else None
                if flight.prefix is not None and flight.prefix.cache is not None:
                    cache = after(flight.prefix.cache, shared)
                flight.passages.append(RunningBatch(number, asked.intervention, batch, cache, keep))
        return [flight for flight in flights.values() if flight.passages]

    def _shared(self, sequences: Ids, reach: int) -> int:
        """How many first tokens all sequences have in common; 0 if they can't be computed once."""
        if not self.abilities.shared or len(sequences) < 2:
            return 0
        if not can_share(self._config, max(map(len, sequences)) + MAX_NEW_TOKENS):
            return 0
        return prefix_length(sequences, reach)

    def _entered(self, sweep: BlockwiseForward, flights: Sequence[RunningPass]) -> Iterator[RunningBatch]:
        """Yield every micro-batch once it has entered the first block."""
        for flight in flights:
            with changed_embedding(self, flight.intervention):
                for passage in ([flight.prefix] if flight.prefix else []) + flight.passages:
                    self.blocks.know(set(passage.batch.input_ids.flatten().tolist()))
                    sweep.enter(passage)
                    if passage is not flight.prefix:
                        yield passage

    def _through(self, sweep: BlockwiseForward, flights: Sequence[RunningPass]) -> Iterator[tuple[int, RunningBatch]]:
        """Yield every micro-batch after every block, block by block."""
        for layer, _ in self.blocks.in_turn():
            for flight in flights:
                with changed_block(self, flight.intervention, layer):
                    if flight.prefix is not None:
                        sweep.through(layer, flight.prefix)
                    for passage in flight.passages:
                        sweep.through(layer, passage)
                        yield layer, passage
                        if not passage.keep:
                            let_go(passage.cache, layer)
                if flight.prefix is not None:
                    let_go(flight.prefix.cache, layer)
        for flight in flights:
            flight.prefix = None  # the micro-batches that continue have its keys and values

    def _run(self, sweep: BlockwiseForward, flights: Sequence[RunningPass], advance: Advance) -> None:
        for _ in self._entered(sweep, flights):
            pass
        for _, passage in self._through(sweep, flights):
            advance(len(passage.batch.indices) / self.folder.layers)

    def _check(self, passes: Sequence[Pass], further: int) -> None:
        for asked in passes:
            self.context.check(asked.sequences, further, self.tokenizer)

    @property
    def _config(self) -> PretrainedConfig:
        config: PretrainedConfig = self.module.config
        return config

    @property
    def _pad(self) -> int:
        return pad_id(self.tokenizer, self.folder.config)

    @property
    def _vocabulary(self) -> int:
        return int(self._config.get_text_config().vocab_size)
