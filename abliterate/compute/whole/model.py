"""A model held whole in memory."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property, partial
from pathlib import Path
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedTokenizerBase
from transformers.utils import logging

from abliterate.compute.at_once import AtOnce, at_once, each_batch, trim
from abliterate.compute.context import Context
from abliterate.compute.draws import Draw
from abliterate.compute.finite import FiniteScores, check_logits, traced, watched
from abliterate.compute.forward import Batch, pad_id
from abliterate.compute.hooks import captured, changed
from abliterate.compute.load import DTypeName, InMemory, from_pretrained, pick_device, pick_dtype
from abliterate.compute.memory import free
from abliterate.compute.passes import Advance, Ids, Model, Pass, ReplyListeners, Seen, Settled, no_progress
from abliterate.compute.prefix import Prefix, after
from abliterate.compute.sampler import DrawnScores
from abliterate.compute.whole.batching import Batching
from abliterate.compute.whole.below import Below, distinct
from abliterate.compute.whole.decoding import Decoding, DecodingSettings
from abliterate.compute.whole.logits import pass_logits, streams_into
from abliterate.compute.whole.reuse import Reuse, reuse_of
from abliterate.compute.whole.strides import lie_by_columns
from abliterate.errors import InputError
from abliterate.model.chat.ends import advice_of, end_ids
from abliterate.model.chat.template import load_tokenizer
from abliterate.model.folder import open_folder

T = TypeVar("T")
SEGMENT = 4  # times as many prompts as rows, so that places are refilled
STREAMS = 0.25  # of the free memory, for stored streams
GENERATED = 64  # rows for transformers' generate, which is slower with more because no row leaves early


@dataclass(frozen=True)
class WholeModel(InMemory):
    """A model ready for use: frozen, in evaluation mode, on one device, with its tokenizer.

    ``batch_size`` prompts are computed at once; None: what suits the device, in ``memory`` bytes beside the model.
    """

    tokenizer: PreTrainedTokenizerBase
    batch_size: int | None = None
    memory: int | None = None

    @property
    def segment(self) -> int | None:
        return SEGMENT * self.at_once.rows

    @property
    def longest(self) -> int | None:
        """As many tokens as requested."""
        return None

    @cached_property
    def at_once(self) -> AtOnce:
        return at_once(self.batch_size, self.folder.config, self.device, self.module.dtype.itemsize, self.memory)

    @cached_property
    def _by_generate(self) -> AtOnce:
        rows = min(self.at_once.rows, GENERATED)
        return AtOnce(rows, rows, 1 << 30)

    @cached_property
    def reuse(self) -> Reuse:
        return reuse_of(self.folder)

    @cached_property
    def context(self) -> Context:
        return Context.of(self.folder)

    @property
    def ends(self) -> frozenset[int]:
        """The tokens that end a reply."""
        return end_ids(self.module.generation_config.eos_token_id, self.tokenizer)

    def watch(self, passes: Sequence[Pass], last: int, seen: Seen, advance: Advance = no_progress) -> None:
        with traced(self):
            self.streams(passes, last, watched(passes, seen), advance)

    @torch.inference_mode()
    def streams(self, passes: Sequence[Pass], last: int, seen: Seen, advance: Advance = no_progress) -> None:
        """As ``watch``, without the check for finite values."""
        for number, asked in enumerate(passes):
            self.context.check(asked.sequences, 0, self.tokenizer)
            with changed(self, asked.intervention), captured(self, last) as streams:
                prefix = self.batching.prefix(asked.sequences, last)
                shared = prefix.length if prefix is not None else 0

                def compute(batch: Batch, prefix: Prefix | None = prefix) -> None:
                    self.module.base_model(**batch.inputs(), **after(prefix))

                for batch, _ in self.batching.each(asked.sequences, compute, shared):
                    for index in range(self.folder.layers + 1):
                        seen(number, batch.indices, index, streams[index].cpu())
                    advance(len(batch.indices))
            trim()

    @torch.inference_mode()
    def logits(
        self, passes: Sequence[Pass], advance: Advance = no_progress
    ) -> Iterator[tuple[int, Sequence[int], Float[Tensor, "row kept vocab"]]]:
        for number, asked in enumerate(passes):
            self.context.check(asked.sequences, 0, self.tokenizer)
            with traced(self, asked.intervention), changed(self, asked.intervention):
                for indices, logits in pass_logits(self.batching, asked, self._below_of(asked)):
                    check_logits(asked, indices, logits)
                    yield number, indices, logits
                    advance(len(indices))
            trim()

    @torch.inference_mode()
    def replies(
        self, passes: Sequence[Pass], max_new_tokens: int, advance: Advance = no_progress, told: ReplyListeners | None = None
    ) -> Iterator[tuple[int, Sequence[int], list[list[int]]]]:
        """As ``Model.replies``; ``told`` gets the prompts' streams and the replies' logits, if the model ``tells``."""
        for number, asked in enumerate(passes):
            self.context.check(asked.sequences, max_new_tokens, self.tokenizer)
            with traced(self, asked.intervention), changed(self, asked.intervention):
                made = self._replies(asked, max_new_tokens) if told is None else self._telling(number, asked, max_new_tokens, told)
                for index, reply in made:
                    yield number, (index,), [reply]
                    advance(1)
            trim()

    def tells(self, sequences: Ids, max_new_tokens: int) -> bool:
        """Whether replies to the sequences are written by our own decoding loop, which can call listeners."""
        return self.reuse.leaves or self._manner(sequences, max_new_tokens).refills

    def _replies(self, asked: Pass, longest: int) -> Iterator[tuple[int, list[int]]]:
        """Yield each reply when it is finished: by our own decoding loop if it is exact, else by transformers' ``generate``."""
        manner = self._manner(asked.sequences, longest)
        if manner.refills or self.reuse.leaves:
            yield from Decoding(self.module, manner, asked.sequences, asked.settled, draws=asked.draws).replies()
            return

        def written(batch: Batch) -> list[list[int]]:
            return self._generated(batch, manner, None if asked.draws is None else [asked.draws[i] for i in batch.indices])

        made = each_batch(asked.sequences, self._pad, self._by_generate, self.device, written, 0, self.reuse.pads)
        for batch, replies in made:
            for index, reply in zip(batch.indices, replies, strict=True):
                yield index, up_to_settled(asked.sequences[index], reply, asked.settled, manner.pace)

    def _manner(self, sequences: Ids, longest: int) -> DecodingSettings:
        manner = DecodingSettings(self._pad, self.ends, longest, self.at_once)
        plain = self.batching.only_attends(sequences, longest + manner.slack)
        return replace(manner, refills=self.reuse.refills and plain, shares=self.reuse.shares and self.reuse.refills and plain)

    def _telling(self, number: int, asked: Pass, longest: int, told: ReplyListeners) -> Iterator[tuple[int, list[int]]]:
        """The same with our own loop, which passes streams and logits to the listeners in ``told``."""
        seen = watched([asked], lambda _, *found: told.seen(number, *found))
        with captured(self, told.last) as streams:

            def entered(indices: Sequence[int], rows: Sequence[int]) -> None:
                for index in range(self.folder.layers + 1):
                    seen(0, indices, index, streams[index][list(rows)].cpu())

            manner = replace(self._manner(asked.sequences, longest), reach=told.last)
            heard = partial(told.heard, number)
            yield from Decoding(self.module, manner, asked.sequences, asked.settled, heard, entered, asked.draws).replies()

    def _generated(self, batch: Batch, manner: DecodingSettings, draws: Sequence[Draw] | None) -> list[list[int]]:
        width = batch.input_ids.shape[1]
        drawn = [] if draws is None else [DrawnScores(draws, width)]
        out = self.module.generate(  # type: ignore[operator]
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            max_new_tokens=manner.longest,
            do_sample=False,
            eos_token_id=sorted(manner.ends) or None,
            pad_token_id=manner.pad,
            logits_processor=LogitsProcessorList([FiniteScores(batch.attention_mask), *drawn]),
        )
        return [up_to_end(row, manner.ends) for row in out[:, width:].tolist()]

    @property
    def batching(self) -> Batching:
        return Batching(self, self._pad, self.at_once, self.reuse)

    def _below_of(self, asked: Pass) -> Below | None:
        """The stored streams from which a pass may start, if there are any."""
        below: Below | None = self.__dict__.get("below")
        return below if below is not None and below.serves(asked.intervention, asked.sequences) else None

    @property
    def _pad(self) -> int:
        return pad_id(self.tokenizer, self.folder.config)


@contextmanager
def shared_below(model: Model, layer: int | float, sequences: Ids) -> Iterator[None]:
    """Inside the context, edits of block ``layer`` and above are tried repeatedly on these sequences; what lies below is computed once.

    Applies only to a model held whole in memory whose small copy shows that this is exact, and only if there is memory for the streams.
    """
    if not isinstance(model, WholeModel) or not 0 < layer < model.folder.layers or not model.reuse.skips:
        yield
        return
    asked = distinct(sequences)
    if not _holds_streams(model, asked):
        yield
        return
    model.__dict__["below"] = streams_into(model.batching, int(layer), asked)
    try:
        yield
    finally:
        del model.__dict__["below"]


def share_more_below(model: Model, sequences: Ids) -> None:
    """Inside ``shared_below``, edits are tried on these sequences too."""
    if not isinstance(model, WholeModel) or "below" not in model.__dict__:
        return
    below: Below = model.__dict__["below"]
    more = [ids for ids in distinct(sequences) if tuple(ids) not in below.streams]
    if more and _holds_streams(model, more):
        found = streams_into(model.batching, below.layer, more)
        model.__dict__["below"] = replace(below, streams={**below.streams, **found.streams})


def _holds_streams(model: WholeModel, sequences: Ids) -> bool:
    """Whether there is memory for a stream of each sequence."""
    size = sum(map(len, sequences)) * model.folder.d_model * model.module.dtype.itemsize
    return size <= STREAMS * (free(model.device) if model.memory is None else model.memory)


def up_to_end(reply: list[int], ends: Collection[int]) -> list[int]:
    """A reply without its end token and what follows it."""
    return reply[: next((i for i, token in enumerate(reply) if token in ends), len(reply))]


def up_to_settled(sequence: Sequence[int], reply: list[int], settled: Settled | None, pace: int) -> list[int]:
    """A reply up to where it is settled, checked every ``pace`` tokens."""
    if settled is None:
        return reply
    return next((reply[:n] for n in range(pace, len(reply), pace) if settled(sequence, reply[:n])), reply)


def load_model(
    path: Path,
    dtype: DTypeName = "auto",
    device: str = "auto",
    trust_remote_code: bool = False,
    layout: Path | None = None,
    batch_size: int | None = None,
    gpus: Sequence[int] = (),
    memory: int | None = None,
    thinks: bool = True,
    clock: datetime | None = None,
) -> WholeModel:
    """Load a folder's model with transformers. ``gpus`` spreads it over several GPUs, with so many bytes on each; unless it ``thinks``, its
    prompts end after an empty thought; ``clock`` is the time that they show (``load_tokenizer``).

    Raises InputError if the folder, tokenizer or weights can't be used.
    """
    folder = open_folder(path, trust_remote_code, layout)
    tokenizer = load_tokenizer(path, trust_remote_code, thinks, clock)
    where = pick_device(device)
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    module, loading = from_pretrained(folder, pick_dtype(dtype, where), gpus)
    if missing := sorted(loading["missing_keys"]):
        raise InputError(f"{path}: the checkpoint lacks {missing[0]!r} ({len(missing)} tensors missing); download it again")
    if not gpus:
        module.to(where)  # type: ignore[arg-type]
    module.train(False)
    module.requires_grad_(False)
    if where.type == "cpu":
        lie_by_columns(module)
    advice_of(folder)  # raises InputError if it can't be read; transformers would ignore that
    advice = module.generation_config
    module.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]  # its sampling and penalties don't apply here
        eos_token_id=advice.eos_token_id, pad_token_id=pad_id(tokenizer, folder.config)
    )
    return WholeModel(folder, module, tokenizer, batch_size, memory)
