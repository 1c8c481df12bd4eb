"""A model that is read block by block, asked in tests; and what both it and a whole model say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from abliterate.compute.blockwise.blocks import Blocks
from abliterate.compute.blockwise.forward import Abilities
from abliterate.compute.blockwise.model import BlockwiseModel
from abliterate.compute.blockwise.trial import abilities_of
from abliterate.compute.passes import NO_INTERVENTION, Intervention, Pass
from abliterate.compute.whole.model import WholeModel
from abliterate.model.chat.ends import advice_of, end_ids
from abliterate.model.chat.template import load_tokenizer
from abliterate.model.edit import edit_from_direction
from abliterate.model.folder import open_folder
from abliterate.model.index import open_index

PROMPTS = [[5, 6, 7, 8, 9, 10], [5, 6, 7, 8, 11, 12, 13, 14, 15], [5, 6, 7, 8, 3], [5, 6, 7, 8, 20, 21, 22, 23, 24]]
REACH = 3
CPU = torch.device("cpu")


def open_blockwise(path: Path, abilities: Abilities | None = None, **options: object) -> BlockwiseModel:
    """Read block by block, however much memory there is."""
    folder = open_folder(path)
    blocks = Blocks(folder, open_index(path), torch.float32, CPU, whole_head=bool(options.pop("whole_head", True)))
    tokenizer = load_tokenizer(path)
    model = BlockwiseModel(
        folder, blocks.module, tokenizer, blocks, abilities or abilities_of(folder), end_ids(advice_of(folder), tokenizer)
    )
    return replace(model, **options)  # type: ignore[arg-type]


def open_alike(path: Path) -> BlockwiseModel:
    """Read block by block, with what was found once of a model of the same kind."""
    kind = open_folder(path).model_type
    if kind not in _KNOWN:
        _KNOWN[kind] = abilities_of(open_folder(path))
    return open_blockwise(path, _KNOWN[kind])


_KNOWN: dict[str, Abilities] = {}


def streams(model: BlockwiseModel | WholeModel, passes: Sequence[Pass]) -> list[Tensor]:
    """A pass's streams, [prompt, index, position, d_model]."""
    shape = (model.folder.layers + 1, REACH, model.folder.d_model)
    found = [torch.full((len(asked.sequences), *shape), torch.nan) for asked in passes]

    def seen(number: int, indices: Sequence[int], index: int, stream: Tensor) -> None:
        found[number][list(indices), index] = stream

    model.watch(passes, REACH, seen)
    return found


def last_logits(model: BlockwiseModel | WholeModel, passes: Sequence[Pass]) -> list[Tensor]:
    """A pass's logits at the positions kept, [prompt, kept, vocabulary]."""
    found: list[dict[int, Tensor]] = [{} for _ in passes]
    for number, indices, rows in model.logits(passes):
        found[number] |= dict(zip(indices, rows, strict=True))
    return [torch.stack([rows[i] for i in sorted(rows)]) for rows in found]


def replies(model: BlockwiseModel | WholeModel, passes: Sequence[Pass], tokens: int) -> list[list[list[int]]]:
    found: list[dict[int, list[int]]] = [{} for _ in passes]
    for number, indices, made in model.replies(passes, tokens):
        found[number] |= dict(zip(indices, made, strict=True))
    return [[rows[i] for i in sorted(rows)] for rows in found]


def interventions(d_model: int = 32) -> list[Intervention]:
    r = torch.randn(d_model, generator=torch.Generator().manual_seed(3))
    s = torch.randn(d_model, generator=torch.Generator().manual_seed(4))
    edit, skip = edit_from_direction(r, 4, policy="edit"), edit_from_direction(s, 4, 0.7, policy="skip")
    return [NO_INTERVENTION, Intervention(edit), Intervention(skip), Intervention(shift=5 * s, shift_layer=1)]
