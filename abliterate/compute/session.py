"""A run's model: facts about its folder are known at once, its weights are loaded on first use."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from functools import cached_property
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from abliterate.compute.at_once import at_once
from abliterate.compute.blockwise.blocks import Blocks
from abliterate.compute.blockwise.model import MAX_NEW_TOKENS, BlockwiseModel
from abliterate.compute.blockwise.trial import abilities_of
from abliterate.compute.context import Context
from abliterate.compute.distributed import DistributedModel, joined, serve
from abliterate.compute.load import pick_device
from abliterate.compute.memory import Holding, Sizes, available, holding_of, holding_on_gpus, parse_budget, sizes_of
from abliterate.compute.passes import Model
from abliterate.compute.whole.model import load_model
from abliterate.config import ModelConfig
from abliterate.model.agreement import open_checkpoint
from abliterate.model.chat.clock import now
from abliterate.model.chat.ends import advice_of, end_ids
from abliterate.model.chat.template import load_tokenizer
from abliterate.model.folder import open_folder
from abliterate.model.index import open_index
from abliterate.prompts import Prompt
from abliterate.terminal.progress import say


class Session:
    """Loads the model when it is first needed, whole or block by block, and frees it on ``release``.

    Raises InputError if what the folder stores is not what its config describes. ``sizes``: the model's sizes, if its headers were read
    already. ``clock``: the time in prompts whose chat template shows it; None: now.
    """

    def __init__(self, config: ModelConfig, path: Path, sizes: Sizes | None = None, clock: datetime | None = None) -> None:
        self._config, self.clock = config, clock or now()
        asked = (path, config.trust_remote_code, config.layout_file)
        if sizes is None:
            self.folder, index = open_checkpoint(*asked)
            sizes = sizes_of(index, self.folder)
        else:
            self.folder = open_folder(*asked)
        self._sizes = sizes
        self._tokenizer: PreTrainedTokenizerBase | None = None

    @cached_property
    def device(self) -> torch.device:
        return pick_device(self._config.device)

    @cached_property
    def holding(self) -> Holding:
        """How the model is held: whole, over several GPUs, or block by block. Raises InputError if not even one block fits."""
        sizes, config = self._sizes, self._config
        over_several = holding_on_gpus(sizes, config.dtype, self._gpus()) if config.device == "auto" and joined() is None else None
        return over_several or holding_of(sizes, config.dtype, self.device, parse_budget(config.max_memory, self.device))

    @property
    def whole(self) -> bool:
        """Whether the model is held whole on one device, by this process alone."""
        return self.holding.whole and not self.holding.gpus and joined() is None

    def _gpus(self) -> list[int]:
        """Bytes that the model may use on each GPU of this machine."""
        gpus = [torch.device("cuda", i) for i in range(torch.cuda.device_count())]
        return [parse_budget(self._config.max_memory, gpu) or available(gpu) for gpu in gpus]

    @cached_property
    def model(self) -> Model:
        """The model; in the first of several processes, it spreads its work over all of them."""
        ranks = joined()
        return DistributedModel(self._own(), ranks) if ranks is not None and ranks.rank == 0 else self._own()

    def _own(self) -> Model:
        if not self.holding.whole:
            return self._swept()
        config = self._config
        asked = (config.dtype, config.device, config.trust_remote_code, config.layout_file, config.batch_size)
        return load_model(self.folder.path, *asked, self.holding.gpus, self._room, self.thinks, self.clock)

    @property
    def batch_size(self) -> int | None:
        """How many replies are written at once; None if the model is read block by block."""
        if not self.holding.whole:
            return None
        return at_once(self._config.batch_size, self.folder.config, self.device, self.holding.dtype.itemsize, self._room).rows

    @property
    def _room(self) -> int | None:
        """The bytes of --max-memory that are left beside the model; None if it isn't given."""
        return self.holding.budget - self.holding.peak if self._config.max_memory is not None else None

    @property
    def thinks(self) -> bool:
        return self._config.thinking != "off"

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer, without the weights. Raises InputError if it or its chat template can't be used."""
        if self._tokenizer is None:
            self._tokenizer = load_tokenizer(self.folder.path, self.folder.trust_remote_code, self.thinks, self.clock)
        return self._tokenizer

    @property
    def longest(self) -> int | None:
        """The most tokens of a reply that this process writes; None: as many as requested."""
        return None if self.holding.whole else MAX_NEW_TOKENS

    @property
    def context(self) -> Context:
        """What the model can read."""
        return Context.of(self.folder)

    def check_prompts(self, groups: Mapping[str, Iterable[Prompt]], further: int = 0) -> None:
        """Raise InputError if the model can't read a prompt and ``further`` tokens after it; needs no weights."""
        self.context.check_prompts(self.tokenizer(), groups, further)

    def release(self) -> None:
        """Free the weights; they are loaded again on the next use."""
        self.__dict__.pop("model", None)

    def _swept(self) -> BlockwiseModel:
        held = self.holding
        say(f"{self.folder.path.name}: larger than the {held.budget / 2**30:.1f} GiB that it may use, so it is read block by block")
        abilities = abilities_of(self.folder)
        tokenizer = self.tokenizer()
        blocks = Blocks(self.folder, open_index(self.folder.path), held.dtype, self.device, held.ahead, held.whole_head)
        return BlockwiseModel(
            self.folder,
            blocks.module,
            tokenizer,
            blocks,
            abilities,
            end_ids(advice_of(self.folder), tokenizer),
            held.tokens,
            held.spill_bytes,
        )


def serve_models(config: ModelConfig) -> None:
    """Run in all processes but the first: hold the requested model, one at a time, and compute a share of the work."""
    held: dict[Path, Session] = {}

    def model_of(path: Path) -> Model:
        if path not in held:
            for session in held.values():
                session.release()
            held.clear()
            held[path] = Session(config, path)
        return held[path].model

    serve(model_of)
