"""The blocks of a checkpoint larger than memory: kept on the meta device, and loaded from the shards when their turn comes.

The model is transformers' own, and so is the conversion of names and shapes (fused experts, renamed modules). Of the token
embedding only the rows in use are read; the unembedding is loaded only while logits are computed.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from typing import Any

import numpy as np
import torch
from accelerate import init_empty_weights  # type: ignore[import-untyped]
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import convert_and_load_state_dict_in_model
from transformers.initialization import no_init_weights
from transformers.modeling_utils import LoadStateDictConfig
from transformers.utils import logging

from abliterate.compute.blockwise.buffers import Buffers
from abliterate.compute.load import implementations
from abliterate.errors import InputError, first_line
from abliterate.model.failure import refused
from abliterate.model.folder import ModelFolder
from abliterate.model.index import ShardIndex
from abliterate.model.stored import Stored, by_block
from abliterate.model.tensor_names import in_memory, text_name

HEAD_ROWS = 8192  # of the unembedding, if it is read piece by piece


class Blocks:
    """A model whose blocks are in memory one at a time, or two if ``ahead`` reads the next one while one computes.

    ``whole_head``: the unembedding is read whole when logits are computed, else ``HEAD_ROWS`` rows at a time.
    """

    def __init__(
        self, folder: ModelFolder, index: ShardIndex, dtype: torch.dtype, device: torch.device, ahead: bool = True, whole_head: bool = True
    ) -> None:
        self.folder, self.index, self.dtype, self.device = folder, index, dtype, device
        self._ahead, self._whole_head = ahead, whole_head
        self.module = on_meta(folder, dtype)
        for module in self.module.modules():
            for name, buffer in module.named_buffers(recurse=False):
                module.register_buffer(name, buffer.to(device), name not in module._non_persistent_buffers_set)
        self._modules = dict(self.module.named_modules())
        self._mapping: Any = get_model_conversion_mapping(self.module)
        self._stored = by_block(index, folder)
        self._embedding = self._named(folder.layout.embedding)
        self._unembedding = self._embedding if folder.tied else self._named(folder.layout.unembedding)
        self._rows: set[int] = set()
        self._buffers = Buffers(pinned=device.type == "cuda")
        self._lent: dict[int, list[Tensor]] = {}
        self._lock = threading.Lock()
        apart = {folder.layout.embedding, folder.layout.unembedding}
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._idle: torch.cuda.Event | None = None  # after this event, nothing uses the block that was freed last
        self._load([s for s in self._stored[None] if text_name(s.name) not in apart])

    def _named(self, text: str) -> Stored:
        found = next((s for s in self._stored[None] if text_name(s.name) == text), None)
        if found is None:
            raise InputError(
                f"{self.folder.path}: the checkpoint has no tensor {text!r}, which its layout {self.folder.layout.name!r} names"
            )
        return found

    def block(self, layer: int) -> nn.Module:
        """Decoder block ``layer``, whether its weights are loaded or not."""
        found: nn.Module = self._modules[in_memory(self.folder.layout.block_module.format(layer), self._modules)]
        return found

    def in_turn(self) -> Iterator[tuple[int, nn.Module]]:
        """Yield every block, loaded; it is freed when the next one is asked for. Raises InputError if one can't be loaded."""
        with ThreadPoolExecutor(1) as pool, closing(self._buffers):
            coming: Future[None] = pool.submit(self._fill, 0)
            for layer in range(self.folder.layers):
                coming.result()
                if self._ahead and layer + 1 < self.folder.layers:
                    coming = pool.submit(self._fill, layer + 1)
                try:
                    yield layer, self.block(layer)
                finally:
                    self._empty(layer)
                if not self._ahead and layer + 1 < self.folder.layers:
                    coming = pool.submit(self._fill, layer + 1)

    def _fill(self, layer: int) -> None:
        """Load a block. On a GPU the copies run in their own CUDA stream, which first waits until the memory that they reuse is idle."""
        if self._copies is None:
            self._load(self._stored[layer], layer)
        else:
            if self._idle is not None:
                self._copies.wait_event(self._idle)
            with torch.cuda.stream(self._copies):
                self._load(self._stored[layer], layer)
        self._check_filled(layer)

    def _check_filled(self, layer: int) -> None:
        bare = next((name for name, p in self.block(layer).named_parameters() if p.is_meta), None)
        if bare is not None:
            raise InputError(f"{self.folder.path}: the checkpoint has nothing for {bare!r} of block {layer}; download it again")

    def _empty(self, layer: int) -> None:
        """Free a block's parameters; buffers that the model computed itself stay."""
        if self._copies is not None:
            self._idle = torch.cuda.default_stream(self.device).record_event()
        for module in self.block(layer).modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    module._parameters[name] = nn.Parameter(parameter.to("meta"), requires_grad=False)
        self._buffers.take_back(self._lent.pop(layer, []))

    def _load(self, tensors: Sequence[Stored], layer: int | None = None) -> None:
        """Load parameters from the shards, through transformers' own conversion of names and shapes."""
        lent: list[Tensor] = []
        state: dict[str, Any] = {s.plain_name: _Lent(s, self.dtype, self._buffers, lent) for s in tensors}
        settings = LoadStateDictConfig(dtype=self.dtype, weight_mapping=self._mapping, device_map={"": self.device})
        with self._lock, refused(f"{self.folder.path}: transformers can't load it", self.folder.config):
            info, _ = convert_and_load_state_dict_in_model(self.module, state, settings)
        if info.mismatched_keys or info.conversion_errors or info.error_msgs:
            wrong = [*(str(key[0]) for key in info.mismatched_keys), *map(str, info.conversion_errors), *map(str, info.error_msgs)]
            raise InputError(f"{self.folder.path}: {wrong[0]!r} doesn't fit the model ({first_line(ValueError(*wrong))})")
        for parameter in self.module.parameters():
            parameter.requires_grad_(False)
        if layer is not None:  # parameters outside the blocks are never freed
            self._keep_in_use(layer, lent)

    def _keep_in_use(self, layer: int, lent: Sequence[Tensor]) -> None:
        """Return the lent buffers that the block's parameters don't use, because they were converted or copied to a GPU."""
        if self._copies is not None:
            self._copies.synchronize()
        used = {t.untyped_storage().data_ptr() for t in (*self.block(layer).parameters(), *self.block(layer).buffers()) if not t.is_meta}
        self._lent[layer] = [b for b in lent if b.untyped_storage().data_ptr() in used]
        self._buffers.take_back(b for b in lent if b.untyped_storage().data_ptr() not in used)

    def know(self, tokens: Collection[int]) -> None:
        """Load the embedding's rows of these tokens."""
        module = self._modules[in_memory(self.folder.layout.embedding_module, self._modules)]
        shape = self.index.tensors[self._embedding.name].shape
        if self.device.type != "cpu" or not isinstance(module, nn.Embedding) or module.weight.shape != shape:
            if not self._rows:
                self._load([self._embedding])
                self._rows = set(range(shape[0]))
            return
        if not self._rows:  # untouched zero pages take no memory
            made = torch.from_numpy(np.zeros(shape, dtype=np.uint16 if self.dtype.itemsize == 2 else np.float32))
            module.weight = nn.Parameter(made.view(self.dtype), requires_grad=False)
        missing = sorted(set(tokens) - self._rows)
        for token, row in zip(missing, self.index.read_rows(self._embedding.name, missing), strict=True):
            module.weight.data[token] = row.to(self.dtype)
        self._rows |= set(missing)

    @contextmanager
    def head(self) -> Iterator[None]:
        """Load the unembedding for the duration of the context."""
        head: Any = self.module.get_output_embeddings()  # type: ignore[no-untyped-call]
        shape = self.index.tensors[self._unembedding.name].shape
        before = head._parameters["weight"]
        if before.shape != shape:
            raise InputError(
                f"{self.folder.path}: {self._unembedding.name} is {list(shape)}, but the model's unembedding is {list(before.shape)}"
            )
        if self._whole_head or head.__class__ is not nn.Linear:
            head._parameters["weight"] = nn.Parameter(self._unembedding[...].to(self.device, self.dtype), requires_grad=False)
        else:
            head.__dict__["forward"] = self._piecewise
        # A non-contiguous slice of positions would be multiplied row by row, each with a copy of the weights.
        whole = head.register_forward_pre_hook(lambda module, args: (args[0].contiguous(), *args[1:]))
        try:
            yield
        finally:
            whole.remove()
            head._parameters["weight"] = before
            head.__dict__.pop("forward", None)

    def _piecewise(self, stream: Tensor) -> Tensor:
        """The unembedding's product, with some rows read at a time."""
        head: Any = self.module.get_output_embeddings()  # type: ignore[no-untyped-call]
        rows = self.index.tensors[self._unembedding.name].shape[0]
        parts = [
            stream @ self.index.read_rows(self._unembedding.name, range(start, min(start + HEAD_ROWS, rows))).to(stream).T
            for start in range(0, rows, HEAD_ROWS)
        ]
        logits = torch.cat(parts, -1)
        return logits if head.bias is None else logits + head.bias


class _Lent:
    """A stored tensor that is read into a lent buffer, in the computing dtype, when it is indexed with ``...``."""

    def __init__(self, tensor: Stored, dtype: torch.dtype, buffers: Buffers, lent: list[Tensor]) -> None:
        self._tensor, self._dtype, self._buffers, self._lent = tensor, dtype, buffers, lent

    def __getitem__(self, where: Any) -> Tensor:
        raw = self._buffers.lend(self._tensor.nbytes)
        values = self._tensor.values(raw)
        if values.dtype == self._dtype and values.data_ptr() == raw.data_ptr():
            self._lent.append(raw)
            return values
        if values.is_floating_point():
            wide = self._buffers.lend(values.numel() * self._dtype.itemsize)
            self._lent.append(wide)
            values = wide.view(self._dtype).view(values.shape).copy_(values)
        elif values.data_ptr() == raw.data_ptr():
            values = values.clone()
        self._buffers.take_back([raw])
        return values


def on_meta(folder: ModelFolder, dtype: torch.dtype) -> PreTrainedModel:
    """The model without weights. Raises InputError if transformers can't build it."""
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    trust = folder.trust_remote_code
    settings: dict[str, Any] = {"dtype": dtype, **implementations(folder)}
    with (
        refused(f"{folder.path}: transformers can't build it", folder.config),
        no_init_weights(),
        init_empty_weights(include_buffers=False),
    ):
        if type(folder.config) in AutoModelForCausalLM._model_mapping or trust:
            made = AutoModelForCausalLM.from_config(folder.config, trust_remote_code=trust, **settings)  # type: ignore[no-untyped-call]
        else:
            whole = AutoConfig.from_pretrained(folder.path, local_files_only=True, trust_remote_code=trust)
            made = AutoModelForImageTextToText.from_config(whole, trust_remote_code=trust, **settings)  # type: ignore[no-untyped-call]
    module: PreTrainedModel = made.train(False)
    return module
