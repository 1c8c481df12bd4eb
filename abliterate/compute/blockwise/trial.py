"""Whether an architecture can be run block by block: a tiny copy is compared with transformers' own forward."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import torch
from tokenizers import Tokenizer, models
from torch import Tensor
from transformers import PreTrainedTokenizerFast
from transformers.utils import logging

from abliterate.compute.blockwise.blocks import Blocks
from abliterate.compute.blockwise.forward import Abilities, arity
from abliterate.compute.blockwise.model import BlockwiseModel
from abliterate.compute.hooks import captured
from abliterate.compute.load import InMemory, from_pretrained
from abliterate.compute.passes import Pass
from abliterate.errors import InputError
from abliterate.model.folder import ModelFolder, open_folder
from abliterate.model.index import open_index
from abliterate.model.tiny import tiny_config, tiny_model, tried

TOLERANCE = 1e-4
BLOCKS = 8
# Of several lengths, with a common beginning.
_PROMPTS = [[3, 4, 5, 6, 7, 8, 9, 10], [3, 4, 5, 6, 7, 8, 11, 12, 13, 14, 15], [3, 4, 5, 6, 7, 8, 9, 12, 10]]
_REACH, _NEW = 2, 3


def abilities_of(folder: ModelFolder) -> Abilities:
    """What the architecture's blocks support when they are called one after the other.

    Raises InputError if they don't compute what the whole model computes.
    """
    return _tried(json.dumps(folder.config.to_dict(), sort_keys=True, default=str), folder.layout.name, _Held(folder))


class _Held:
    """Wraps a folder so that a cached result doesn't depend on it."""

    def __init__(self, folder: ModelFolder) -> None:
        self.folder = folder

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Held)

    def __hash__(self) -> int:
        return 0


@cache
def _tried(config: str, layout: str, held: _Held) -> Abilities:
    folder = held.folder
    failed = "can't be run block by block: its small copy fails"
    with tried(folder.config, failed), tempfile.TemporaryDirectory(prefix="abliterate-trial-") as path, torch.no_grad():
        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        tiny_model(tiny_config(folder.config, min(BLOCKS, folder.layers)), folder.trust_remote_code).save_pretrained(path)
        copy = replace(open_folder(Path(path), folder.trust_remote_code), layout=folder.layout)
        module, _ = from_pretrained(copy, torch.float32)
        expected = _plain(InMemory(copy, module.train(False)))
        words = Tokenizer(models.WordLevel({"-": 0}, unk_token="-"))
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="-")  # type: ignore[no-untyped-call]
        cpu = torch.device("cpu")
        blocks = Blocks(copy, open_index(copy.path), torch.float32, cpu)
        swept = BlockwiseModel(copy, blocks.module, tokenizer, blocks, Abilities(arity(folder)), frozenset())
        if not _holds(swept, expected):  # some architectures select what they attend to, and select padding too
            swept = replace(swept, abilities=replace(swept.abilities, padded=False))
        if not (worst := _off(swept, expected)) <= TOLERANCE:
            raise InputError(
                f"{folder.path}: {folder.model_type!r} can't be run block by block (its small copy is off by {worst:.1g}); "
                "it must fit in memory: raise --max-memory, or use a larger machine"
            )
        best = swept.abilities
        for further in (replace(best, cached=True), replace(best, cached=True, shared=True)):
            if _holds(replace(swept, abilities=further), expected):
                best = further
        return best


def _plain(model: InMemory) -> tuple[list[Tensor], list[Tensor], list[list[int]]]:
    """Streams [index, position, d_model] and logits of each prompt computed alone, and its greedy continuation."""
    streams, logits, replies = [], [], []
    for prompt in _PROMPTS:
        ids = list(prompt)
        for step in range(_NEW):
            with captured(model, _REACH) as seen:
                out = model.module(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].float()
            if step == 0:
                streams.append(torch.stack([seen[i][0] for i in range(model.folder.layers + 1)]))
                logits.append(out)
            ids.append(int(out.argmax()))
        replies.append(ids[len(prompt) :])
    return streams, logits, replies


def _off(model: BlockwiseModel, expected: tuple[list[Tensor], list[Tensor], list[list[int]]]) -> float:
    """The largest difference from the plain model, relative to the largest value there; infinite if a reply differs."""
    streams, logits, replies = expected
    found = [torch.zeros_like(s) for s in streams]

    def seen(number: int, indices: Sequence[int], index: int, stream: Tensor) -> None:
        for row, which in enumerate(indices):
            found[which][index] = stream[row]

    model.watch([Pass(_PROMPTS)], _REACH, seen)
    worst = max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, streams, strict=True))
    for _, indices, rows in model.logits([Pass(_PROMPTS)]):
        worst = max(worst, *(float((rows[r, -1] - logits[i]).abs().max() / logits[i].abs().max()) for r, i in enumerate(indices)))
    made = {i: reply for _, indices, some in model.replies([Pass(_PROMPTS)], _NEW) for i, reply in zip(indices, some, strict=True)}
    return worst if [made[i] for i in range(len(_PROMPTS))] == replies else float("inf")


def _holds(model: BlockwiseModel, expected: tuple[list[Tensor], list[Tensor], list[list[int]]]) -> bool:
    try:
        return _off(model, expected) <= TOLERANCE
    except Exception:  # each architecture fails in its own way, and then goes without this ability
        return False
