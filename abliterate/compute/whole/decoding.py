"""Greedy or sampled replies to many prompts: finished rows leave the batch, and waiting prompts take their places.

The tokens are those of transformers' ``generate``, up to rounding in a different batch. What greedy decoding doesn't need is left out:
logits processors, stopping criteria, rows that continue after their end.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from abliterate.compute.at_once import AtOnce, is_out_of_memory, let_go_of_memory
from abliterate.compute.draws import Draw
from abliterate.compute.finite import NotFiniteError
from abliterate.compute.passes import Ids, Settled
from abliterate.compute.prefix import Prefix, computed, prefix_length
from abliterate.compute.sampler import sampled
from abliterate.compute.whole.slots import GrowingCache, Slots

REFILLED = 8  # waiting prompts enter when one in so many places is free
TOGETHER = 4  # times as many prompt tokens at once, if rows can only enter together

# Indices of the sequences, the number of tokens in each of their replies, and the logits of the next one.
Heard = Callable[[Sequence[int], Sequence[int], Float[Tensor, "row vocab"]], None]
Entered = Callable[[Sequence[int], Sequence[int]], None]  # sequences that have just gone through, and their rows; each sequence once


@dataclass(frozen=True)
class DecodingSettings:
    """How replies are written: so much ``at_once``, at most ``longest`` tokens per reply, up to one of ``ends``.

    ``refills``: waiting prompts take the places of finished rows. ``shares``: the prompts' common prefix is computed once. ``slack``: how
    many columns may become useless before the others are moved together. ``pace``: a reply is checked for being settled every so many
    tokens. ``reach``: each prompt computes its last so many tokens itself.
    """

    pad: int
    ends: frozenset[int]
    longest: int
    at_once: AtOnce
    refills: bool = True
    shares: bool = True
    slack: int = 32
    pace: int = 8
    reach: int = 1


@dataclass
class Row:
    """A reply that is being written. ``start``: its prompt's first column. ``position``: where its next token is in the sequence."""

    index: int
    start: int
    position: int
    reply: list[int] = field(default_factory=list)
    done: bool = False


class Decoding:
    """The replies to some sequences, under whatever hooks the model has while they are written."""

    def __init__(
        self,
        module: PreTrainedModel,
        manner: DecodingSettings,
        sequences: Ids,
        settled: Settled | None = None,
        heard: Heard | None = None,
        entered: Entered | None = None,
        draws: Sequence[Draw] | None = None,
    ) -> None:
        self._module, self._manner, self._sequences = module, manner, sequences
        self._settled, self._heard, self._entered, self._draws = settled, heard, entered, draws
        self._told: set[int] = set()  # sequences that were reported to ``entered``
        self._waiting = self._in_line(range(len(sequences)))
        self._live: list[Row] = []
        self._prefix: Prefix | None = None
        self._store: Slots | GrowingCache | None = None
        self._column = 0  # where the next token of every row goes

    def replies(self) -> Iterator[tuple[int, list[int]]]:
        """Yield each sequence's index and its reply without the end token, in the order in which they finish.

        Raises NotFiniteError if logits are NaN or infinite.
        """
        shared = prefix_length(self._sequences, self._manner.reach) if self._manner.shares else 0
        if shared:
            self._prefix = computed(self._module, self._sequences[0][:shared])
        while self._waiting or self._live:
            try:
                if self._has_room():
                    self._enter()
                else:
                    self._step()
            except RuntimeError as error:
                if not is_out_of_memory(error) or not self._begin_again():
                    raise
            yield from self._leave()

    def _in_line(self, indices: Iterable[int]) -> deque[int]:
        """The longest first: later ones need no more columns, and if memory is too small it shows at once."""
        return deque(sorted(indices, key=lambda i: (-len(self._sequences[i]), i)))

    @property
    def _rows(self) -> int:
        return self._manner.at_once.rows

    @property
    def _shared(self) -> int:
        return self._prefix.length if self._prefix is not None else 0

    def _has_room(self) -> bool:
        if not self._live:
            return True
        free = self._rows - len(self._live)
        return bool(self._waiting) and self._manner.refills and free >= max(1, self._rows // REFILLED)

    def _begin_again(self) -> bool:
        """Start again with half the rows, if there are several; unfinished replies go back to the waiting prompts."""
        self._waiting = self._in_line([*self._waiting, *(row.index for row in self._live)])
        self._live, self._store = [], None
        let_go_of_memory()
        together = min(self._rows, len(self._waiting))
        self._manner.at_once.rows = max(1, together // 2)
        return together > 1

    def _enter(self) -> None:
        """Send waiting prompts through the model, as many as there are free places."""
        own = len(self._sequences[self._waiting[0]]) - self._shared
        store = self._store or self._made(own)
        if not self._live:
            self._column = self._shared + own
        free = self._rows - len(self._live)
        while free and self._waiting:
            width = len(self._sequences[self._waiting[0]]) - self._shared
            at_once = min(free, len(self._waiting), self._at_most(width, store.refills))
            chosen = [self._waiting[i] for i in range(at_once)]
            logits = self._prompts(store, chosen, width)
            self._tell(chosen)
            for index in chosen:
                self._waiting.popleft()
                length = len(self._sequences[index])
                self._live.append(Row(index, self._column - (length - self._shared), length))
            free = free - at_once if store.refills else 0
            self._take(len(self._live) - at_once, logits)

    def _tell(self, chosen: Sequence[int]) -> None:
        """Report the sequences that have gone through, unless they were reported before memory ran out."""
        new = [row for row, index in enumerate(chosen) if index not in self._told]
        if self._entered is not None and new:
            self._told.update(chosen)
            self._entered([chosen[row] for row in new], new)

    def _at_most(self, width: int, in_parts: bool) -> int:
        """How many prompts go through the model together."""
        amount = self._manner.at_once
        return max(1, min(amount.prompts, amount.tokens * (1 if in_parts else TOGETHER) // width))

    def _made(self, own: int) -> Slots | GrowingCache:
        """An empty store for rows whose prompts have at most ``own`` tokens after the prefix."""
        config = self._module.config.get_text_config(decoder=True)
        columns = self._shared + own + self._manner.longest + self._manner.slack
        rows = min(self._rows, len(self._waiting))
        self._store = Slots(config, self._prefix, rows, columns) if self._manner.refills else GrowingCache(config)
        device = self._module.device
        self._mask = torch.zeros(rows, columns, dtype=torch.long, device=device)
        self._tokens = torch.zeros(rows, dtype=torch.long, device=device)
        self._positions = torch.zeros(rows, dtype=torch.long, device=device)
        return self._store

    def _prompts(self, store: Slots | GrowingCache, chosen: Sequence[int], width: int) -> Tensor:
        """Logits of the first reply token of some prompts, [row, vocab]; they take the places after the live rows."""
        first, shared = len(self._live), self._shared
        rows, columns = slice(first, first + len(chosen)), slice(self._column - width, self._column)
        ids = torch.full((len(chosen), width), self._manner.pad)
        own = torch.zeros(len(chosen), width, dtype=torch.long)
        for row, index in enumerate(chosen):
            rest = list(self._sequences[index][shared:])
            ids[row, width - len(rest) :] = torch.tensor(rest)
            own[row, width - len(rest) :] = 1
        self._mask[rows] = 0
        self._mask[rows, :shared] = 1
        self._mask[rows, columns] = own.to(self._mask.device)
        self._positions[rows] = torch.tensor([len(self._sequences[i]) for i in chosen]).to(self._mask.device)
        mask = torch.cat([self._mask[rows, :shared], self._mask[rows, columns]], dim=1)
        store.entering(rows, columns)
        return self._logits(store, ids.to(self._mask.device), mask, (mask.cumsum(-1) - 1).clamp(min=0)[:, shared:])

    def _step(self) -> None:
        """Compute the next token of every live row."""
        store, live = self._store, len(self._live)
        assert store is not None
        self._move_together(store)
        self._mask[:live, self._column] = 1
        store.going_on(live, self._column)
        logits = self._logits(store, self._tokens[:live, None], self._mask[:live, : self._column + 1], self._positions[:live, None])
        self._column += 1
        self._positions[:live] += 1
        self._take(0, logits)

    def _logits(self, store: Slots | GrowingCache, ids: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        out = self._module(
            input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=store.cache, use_cache=True, logits_to_keep=1
        )
        logits: Tensor = out.logits[:, -1]
        return logits

    def _take(self, first: int, logits: Float[Tensor, "row vocab"]) -> None:
        """Append the likeliest token, or a drawn one, to each row from ``first`` on."""
        rows = self._live[first:]
        if self._heard is not None:
            self._heard([row.index for row in rows], [len(row.reply) for row in rows], logits)
        likeliest, chosen = logits.max(-1)  # twice as fast as argmax on a CPU
        if self._draws is not None:
            chosen = sampled(logits, [self._draws[row.index].number(len(row.reply)) for row in rows])
        self._tokens[first : first + len(rows)] = chosen
        for row, token, fit in zip(rows, chosen.tolist(), torch.isfinite(likeliest).tolist(), strict=True):
            if not fit:
                raise NotFiniteError([*self._sequences[row.index], *row.reply])
            if token in self._manner.ends:
                row.done = True
                continue
            row.reply.append(token)
            row.done = len(row.reply) >= self._manner.longest or self._is_settled(row)

    def _is_settled(self, row: Row) -> bool:
        if self._settled is None or len(row.reply) % self._manner.pace:
            return False
        return self._settled(self._sequences[row.index], row.reply)

    def _leave(self) -> Iterator[tuple[int, list[int]]]:
        """Yield the finished replies; the last rows move to the places that become free."""
        gone = [place for place, row in enumerate(self._live) if row.done]
        if not gone:
            return
        done = [self._live[place] for place in gone]
        left = len(self._live) - len(gone)
        order = list(range(left))
        movers = [place for place in range(left, len(self._live)) if not self._live[place].done]
        for hole, mover in zip([place for place in gone if place < left], movers, strict=True):
            order[hole] = mover
        if left and self._store is not None:
            self._store.reorder(order, self._column)
            at = torch.tensor(order, device=self._mask.device)
            self._mask[:left], self._tokens[:left], self._positions[:left] = self._mask[at], self._tokens[at], self._positions[at]
        self._live = [self._live[place] for place in order]
        for row in done:
            yield row.index, row.reply

    def _move_together(self, store: Slots | GrowingCache) -> None:
        """Drop the columns that only finished rows needed."""
        by = min(row.start for row in self._live) - self._shared
        if not isinstance(store, Slots) or by < self._manner.slack:
            return
        live, shared = len(self._live), self._shared
        store.shift(live, by, self._column)
        self._mask[:live, shared : self._column - by] = self._mask[:live, shared + by : self._column].clone()
        self._column -= by
        self._mask[:live, self._column :] = 0
        for row in self._live:
            row.start -= by
