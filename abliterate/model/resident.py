"""A model that is in memory whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import GenerationConfig, PreTrainedTokenizerBase
from transformers.utils import logging

from abliterate.errors import InputError
from abliterate.model.folder import open_folder
from abliterate.model.forward import Batch, batches
from abliterate.model.hooks import captured, changed
from abliterate.model.load import DTypeName, InMemory, from_pretrained, pick_device, pick_dtype
from abliterate.model.passes import Advance, Pass, Seen, unheard
from abliterate.model.template import load_tokenizer


@dataclass(frozen=True)
class Resident(InMemory):
    """A model ready to be asked: frozen, in evaluation mode, on one device, with its tokenizer.

    ``batch_size`` prompts are computed at once.
    """

    tokenizer: PreTrainedTokenizerBase
    batch_size: int = 32

    @property
    def segment(self) -> int | None:
        return self.batch_size

    @torch.inference_mode()
    def watch(self, passes: Sequence[Pass], last: int, seen: Seen, advance: Advance = unheard) -> None:
        for number, asked in enumerate(passes):
            with changed(self, asked.change), captured(self, last) as streams:
                for batch in self._batches(asked):
                    self.module.base_model(**batch.inputs(), use_cache=False)
                    for index in range(self.folder.layers + 1):
                        seen(number, batch.indices, index, streams[index].cpu())
                    advance(len(batch.indices))

    @torch.inference_mode()
    def logits(
        self, passes: Sequence[Pass], advance: Advance = unheard
    ) -> Iterator[tuple[int, Sequence[int], Float[Tensor, "row kept vocab"]]]:
        for number, asked in enumerate(passes):
            with changed(self, asked.change):
                for batch in self._batches(asked):
                    out = self.module(**batch.inputs(), use_cache=False, logits_to_keep=asked.kept)
                    yield number, batch.indices, out.logits.float()
                    advance(len(batch.indices))

    @torch.inference_mode()
    def replies(
        self, passes: Sequence[Pass], max_new_tokens: int, advance: Advance = unheard
    ) -> Iterator[tuple[int, Sequence[int], list[list[int]]]]:
        for number, asked in enumerate(passes):
            with changed(self, asked.change):
                for batch in self._batches(asked):
                    yield number, batch.indices, self._continued(batch, max_new_tokens)
                    advance(len(batch.indices))

    def _batches(self, asked: Pass) -> Iterator[Batch]:
        return batches(asked.sequences, self.tokenizer.pad_token_id, self.batch_size, self.device)

    def _continued(self, batch: Batch, max_new_tokens: int) -> list[list[int]]:
        """Greedy continuation of every row, up to and without its end token; deterministic for a given batch."""
        ends = end_ids(self)
        out = self.module.generate(  # type: ignore[operator]
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            eos_token_id=sorted(ends),
            pad_token_id=self.tokenizer.pad_token_id,
        )
        replies = []
        for row in out[:, batch.input_ids.shape[1] :].tolist():
            cut = next((i for i, token in enumerate(row) if token in ends), len(row))
            replies.append(row[:cut])
        return replies


def end_ids(model: Resident) -> set[int]:
    """The tokens that end a reply, by the model's own advice and its tokenizer."""
    configured = model.module.generation_config.eos_token_id
    ends = {configured} if isinstance(configured, int) else set(configured or ())
    return ends | {model.tokenizer.eos_token_id}


def load_model(
    path: Path,
    dtype: DTypeName = "auto",
    device: str = "auto",
    trust_remote_code: bool = False,
    layout: Path | None = None,
    batch_size: int = 32,
) -> Resident:
    """Load a folder's model by transformers. Raises InputError where the folder, tokenizer or weights are unfit."""
    folder = open_folder(path, trust_remote_code, layout)
    tokenizer = load_tokenizer(path, trust_remote_code)
    where = pick_device(device)
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    module, loading = from_pretrained(folder, pick_dtype(dtype, where))
    if missing := sorted(loading["missing_keys"]):
        raise InputError(f"{path}: the checkpoint lacks {missing[0]!r} ({len(missing)} tensors missing); download it again")
    module.to(where)  # type: ignore[arg-type]
    module.train(False)
    module.requires_grad_(False)
    advice = module.generation_config
    module.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]  # its sampling and penalties don't apply here
        eos_token_id=advice.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    return Resident(folder, module, tokenizer, batch_size)
