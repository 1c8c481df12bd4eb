"""The tensors of a checkpoint without its weights: names from the shard index, shapes from the model that the config describes.

transformers builds the model on the meta device and converts its names and shapes to those on disk (separate experts, renamed modules).
Blocks of multi-token prediction, which transformers doesn't build, have the shapes of the last block.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights  # type: ignore[import-untyped]
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from abliterate.compute.blockwise.blocks import on_meta
from abliterate.compute.load import implementations
from abliterate.errors import InputError
from abliterate.model.failure import refused
from abliterate.model.folder import ModelFolder
from abliterate.model.index import DTYPES, INDEX, MAX_NAME, ShardIndex, TensorInfo, reading, shard_names
from abliterate.model.tensor_names import is_buffer, text_name

Shape = tuple[int, ...]
_WIDE = ("e_score_correction_bias",)  # float32 in every checkpoint
_NAMES = {dtype: name for name, (dtype, _) in DTYPES.items() if dtype is not None}


def lacks_weights(path: Path) -> bool:
    """Whether a folder has a shard index but no shards."""
    return (path / INDEX).is_file() and next(path.glob("*.safetensors"), None) is None


def imagined(folder: ModelFolder) -> tuple[ShardIndex, int]:
    """The index of a checkpoint without its shards, and the bytes of its weights: as the index states, else the sum of its tensors.

    Raises InputError if the index is damaged, or names a tensor whose shape does not follow from the config.
    """
    with reading(folder.path):
        _, promised = shard_names(folder.path)
        said = _said(folder.path / INDEX)
    if long := next((name for name in promised if not name.isprintable() or len(name) > MAX_NAME), None):
        raise InputError(f"{folder.path / INDEX}: {long[:80]!r} is not a valid tensor name; the file is damaged")
    shapes = _Shapes(folder, promised)
    infos = {name: _info(name, shard, shapes.of(name), _kind(name, promised, folder)) for name, shard in promised.items()}
    if folder.quantisation is None:
        infos = _as_wide_as(infos, said)
    shards = dict.fromkeys(promised.values(), 0)
    for info in infos.values():
        shards[info.shard] += info.nbytes
    return ShardIndex(folder.path, infos, shards, {}), said or sum(shards.values())


def _said(index: Path) -> int:
    """The bytes that a shard index states; 0 if it states none."""
    try:
        said = json.loads(index.read_bytes())["metadata"]["total_size"]
        return int(said) if 0 < said < 1 << 60 else 0
    except (KeyError, TypeError, ValueError):
        return 0


def _info(name: str, shard: str, shape: Shape, dtype: str) -> TensorInfo:
    return TensorInfo(name, shard, dtype, shape, 0, math.prod(shape) * DTYPES[dtype][1])


def _kind(name: str, names: Collection[str], folder: ModelFolder) -> str:
    """The type that a tensor is stored in, as safetensors calls it."""
    if (stored := folder.stored.part_type(name, names)) is not None:
        return stored
    if name.endswith(_WIDE):
        return "F32"
    given = getattr(folder.config, "dtype", None)
    return _NAMES.get(given, "BF16") if isinstance(given, torch.dtype) else "BF16"


def _as_wide_as(infos: dict[str, TensorInfo], said: int) -> dict[str, TensorInfo]:
    """The tensors with the width per element that the index's total implies, if it differs from the config's type."""
    numbers = sum(math.prod(info.shape) for info in infos.values())
    width = {2: "BF16", 4: "F32"}.get(round(said / max(numbers, 1)))
    if width is None or all(DTYPES[info.dtype][1] == DTYPES[width][1] for info in infos.values()):
        return infos
    return {name: _info(name, info.shard, info.shape, width) for name, info in infos.items()}


class _Shapes:
    """Shapes by name, as far as they follow from the config."""

    def __init__(self, folder: ModelFolder, names: Collection[str]) -> None:
        self._folder, self._names = folder, names
        self._known = _by_short_name(folder, names)
        layout, last = folder.layout, folder.layers - 1
        self._inside = {
            where[1]: shape for name, shape in self._known.items() if (where := layout.in_block(name)) and where[0] == last and not where[2]
        }

    def of(self, name: str) -> Shape:
        """The shape of a tensor. Raises InputError if it does not follow from the config."""
        shape = self._folder.stored.part_shape(name, self._plain)
        shape = self._plain(name) if shape is None else shape
        if shape is None:
            raise InputError(
                f"{self._folder.path}: the shard index names {name}, whose shape does not follow from the config; the weights are needed"
            )
        return shape

    def _plain(self, name: str) -> Shape | None:
        text, layout = text_name(name), self._folder.layout
        found = self._known.get(_short(name))
        if found is not None or text is None:
            return found
        if is_buffer(name):
            return (1,)
        if text == layout.unembedding:  # a stored copy of a tied unembedding
            return self._known.get(layout.embedding)
        where = layout.in_block(text)
        if text in (*layout.mtp_root, *layout.mtp_others) or (where is not None and (where[2] or where[0] >= self._folder.layers)):
            return self._inside.get(where[1] if where else "") or self._ahead(where[1] if where else text)
        return None

    def _ahead(self, inner: str) -> Shape | None:
        """The shape of a multi-token prediction tensor outside its block: an embedding, a norm, or the projection of stream and token."""
        layout, d_model = self._folder.layout, self._folder.d_model
        if inner.endswith(("embed_tokens.weight", "head.weight")):
            return self._known.get(layout.embedding)
        if inner.removesuffix(".weight") in layout.mtp or inner in layout.mtp_root:
            return (d_model, 2 * d_model)
        return (d_model,)


def _short(name: str) -> str:
    """A name without the parts that differ between checkpoints of the same model."""
    text = text_name(name)
    return name.removeprefix("model.") if text is None else text


def _seeing(folder: ModelFolder) -> PreTrainedModel:
    """A whole vision-language model without weights. Raises InputError if transformers can't build it."""
    trust = folder.trust_remote_code
    with refused(f"{folder.path}: transformers can't build it", folder.config), init_empty_weights():
        config = AutoConfig.from_pretrained(folder.path, trust_remote_code=trust, local_files_only=True)
        made: PreTrainedModel = AutoModelForImageTextToText.from_config(  # type: ignore[no-untyped-call]
            config, trust_remote_code=trust, **implementations(folder)
        )
    return made


def _by_short_name(folder: ModelFolder, names: Collection[str]) -> Mapping[str, Shape]:
    """The shapes of all tensors that transformers knows, by their names in memory and on disk."""
    sees = any(text_name(name) is None for name in names)
    module = _seeing(folder) if sees else on_meta(folder, torch.bfloat16)
    state: dict[str, Any] = module.state_dict()
    with refused(f"{folder.path}: the names of its tensors on disk are not known"):
        on_disk = revert_weight_conversion(module, state)
    return {_short(name): tuple(tensor.shape) for tensors in (state, on_disk) for name, tensor in tensors.items()}
