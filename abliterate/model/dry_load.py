"""Load a checkpoint's names and shapes in transformers, without reading any weights.

Transformers' own model of the config is built on the meta device and given empty tensors through its own conversion of names and shapes.
Of identical blocks only one is tried, so a model with ninety thousand tensors takes a second.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, convert_and_load_state_dict_in_model, rename_source_key
from transformers.modeling_utils import LoadStateDictConfig

from abliterate.model.folder import ModelFolder, whole_config
from abliterate.model.index import ShardIndex
from abliterate.model.layouts import Layout
from abliterate.model.meta import as_loaded, quiet
from abliterate.model.stored import Stored, stored
from abliterate.model.tensor_names import in_memory, text_name

Shape = tuple[int, ...]


@dataclass(frozen=True)
class DryLoad:
    """``unused``: stored tensors that the model doesn't use; ``ignored``: those of them that its architecture declares as ignored.

    The others are names in memory: ``missing`` are used but not stored, ``misshapen`` come with the stored shape and the config's shape,
    ``unfit`` can't be made from the stored tensors, ``doubled`` are stored under two names.
    """

    unused: tuple[str, ...]
    ignored: frozenset[str]
    missing: tuple[str, ...]
    misshapen: tuple[tuple[str, Shape, Shape], ...]
    unfit: tuple[str, ...]
    doubled: tuple[str, ...]


def dry_load(folder: ModelFolder, index: ShardIndex) -> DryLoad:
    """Load a checkpoint's headers. Raises InputError if transformers can't build the model."""
    module = as_loaded(folder.path, whole_config(folder), folder.trust_remote_code)
    tried = _Tried(folder.layout, module, folder.layers, stored(index, folder, sorted(index.tensors)))
    mapping: Any = get_model_conversion_mapping(module)
    read: set[str] = set()
    headers = {one.plain_name: _Header(one, read) for one in tried.chosen}
    names = _renamed(module, mapping, tried.chosen)
    settings = LoadStateDictConfig(dtype=torch.bfloat16, weight_mapping=mapping, device_map={"": "meta"})
    with quiet():
        info, _ = convert_and_load_state_dict_in_model(module, headers, settings)
        module.tie_weights(missing_keys=info.missing_keys, recompute_mapping=False)
        module._adjust_missing_and_unexpected_keys(info)
    # A tensor that is renamed into a block that wasn't tried is a duplicate: such a block has all tensors of the tried one already.
    taken = Counter(new for name, (new, source) in names.items() if name in read and (source is None or tried.left_out(new)))
    unused = {name: new for name, (new, _) in names.items() if name not in read}
    return DryLoad(
        unused=tuple(name for one in unused for name in tried.alike(one)),
        ignored=frozenset(name for one, new in unused.items() if new not in info.unexpected_keys for name in tried.alike(one)),
        missing=tuple(sorted(name for name in info.missing_keys if not tried.left_out(name))),
        misshapen=tuple((name, tuple(have), tuple(wanted)) for name, have, wanted in sorted(info.mismatched_keys)),
        unfit=tuple(sorted(info.conversion_errors)),
        doubled=tuple(new for new, times in taken.items() if times > 1 or tried.left_out(new)),
    )


class _Header:
    """A stored tensor without its values; records that transformers asked for it (by indexing with ``...``)."""

    def __init__(self, one: Stored, read: set[str]) -> None:
        self._one, self._read = one, read

    def __getitem__(self, where: Any) -> Tensor:
        self._read.add(self._one.name)
        return torch.empty(self._one.shape, dtype=torch.bfloat16, device="meta")


class _Tried:
    """One block of each kind, and everything outside the blocks.

    Blocks are of one kind if they have the same names and shapes, both stored and in memory.
    """

    def __init__(self, layout: Layout, module: PreTrainedModel, layers: int, tensors: Iterable[Stored]) -> None:
        modules = dict(module.named_modules())
        heads = {layer: in_memory(layout.block_module.format(layer), modules) for layer in range(layers)}
        blocks: dict[int, list[tuple[tuple[str, str], Stored]]] = {layer: [] for layer, head in heads.items() if head in modules}
        self.chosen: list[Stored] = []
        for one in tensors:
            text = text_name(one.plain_name)
            where = layout.in_block(text) if text is not None else None
            if where is None or where[2] or where[0] not in blocks:
                self.chosen.append(one)
            else:
                blocks[where[0]].append((_around(one, where[0], where[1]), one))
        kinds: dict[Any, list[int]] = {}
        for layer, inside in blocks.items():
            if not inside:
                continue
            computed = frozenset((name, tensor.shape) for name, tensor in modules[heads[layer]].state_dict().items())
            kinds.setdefault((frozenset((name, one.shape) for name, one in inside), computed), []).append(layer)
        self._alike: dict[str, list[str]] = {}
        for layers_alike in kinds.values():
            for (before, behind), one in blocks[layers_alike[0]]:
                self.chosen.append(one)
                self._alike[one.name] = [f"{before}{layer}{behind}" for layer in layers_alike]
        self._skipped = tuple(f"{heads[layer]}." for alike in kinds.values() for layer in alike[1:])

    def alike(self, name: str) -> Sequence[str]:
        """This tensor, and its counterparts in the other blocks of the same kind."""
        return self._alike.get(name, [name])

    def left_out(self, name: str) -> bool:
        """Whether a tensor in memory belongs to a block that was not tried."""
        return name.startswith(self._skipped)


def _around(one: Stored, layer: int, inner: str) -> tuple[str, str]:
    """The parts of a tensor's name before and after its block's number."""
    before = one.plain_name.removesuffix(inner).removesuffix(f"{layer}.")
    return before, one.name[len(before) + len(str(layer)) :]


def _renamed(module: PreTrainedModel, mapping: Sequence[Any], tensors: Iterable[Stored]) -> dict[str, tuple[str, str | None]]:
    """The name in memory of each stored name, and the pattern of the conversion that merges it with other tensors, if there is one."""
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    state = module.state_dict()

    def renamed(name: str) -> tuple[str, str | None]:
        new, source = rename_source_key(name, renamings, converters, module.base_model_prefix, state)
        return (name, None) if new not in state and name in state else (new, source)

    return {one.name: renamed(one.plain_name) for one in tensors}
