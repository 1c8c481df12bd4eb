"""What a model in memory may reuse, tried on a tiny copy of its architecture: never assumed, and off if the copy is inexact.

The keys and values of a prefix may serve every row, and those of a prompt every reply to it; rows may leave while others are being
written, and new rows may take their places.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product

import torch
from torch import Tensor
from transformers import PreTrainedModel

from abliterate.compute.at_once import AtOnce
from abliterate.compute.forward import packed
from abliterate.compute.hooks import captured
from abliterate.compute.load import InMemory
from abliterate.compute.prefix import after, computed, kinds_of
from abliterate.compute.whole.below import Below, watching
from abliterate.compute.whole.branches import grown, grown_on
from abliterate.compute.whole.decoding import Decoding, DecodingSettings
from abliterate.errors import InputError
from abliterate.model.folder import ModelFolder
from abliterate.model.tiny import tiny_config, tiny_model, tried, widen

# Relative to the largest value. A recurrent state is computed differently for many tokens than for one, so it rounds differently.
TOLERANCE, RECURRENT = 1e-5, 1e-4
BLOCKS = 8
# Of several lengths, with a common beginning, and more than the copy has places for.
_PROMPTS = [[3, 4, 5, 6, *(7 + (11 * n + i) % 80 for i in range(own))] for n, own in enumerate((2, 10, 3, 14, 7))]
_SHARED, _REACH, _PLACES, _NEW = 4, 2, 2, 4


@dataclass(frozen=True)
class Reuse:
    """``pads``: rows of different lengths may share a batch. ``shares``: a prefix may be computed once for all rows. ``branches``: a cached
    prompt may serve several replies. ``skips``: blocks below the first edited one need not be computed again. ``leaves``: a
    finished row may leave the batch. ``refills``: another row may take its place. Sharing, branching and refilling hold for as many
    tokens as ``only_attends`` says."""

    pads: bool = True
    shares: bool = False
    branches: bool = False
    skips: bool = False
    leaves: bool = False
    refills: bool = False


_known: dict[str, Reuse] = {}


def reuse_of(folder: ModelFolder) -> Reuse:
    """What a model's architecture may reuse; tried once per process."""
    key = json.dumps(folder.config.to_dict(), sort_keys=True, default=str)
    if key not in _known:
        _known[key] = _tried(folder)
    return _known[key]


@torch.inference_mode()
def _tried(folder: ModelFolder) -> Reuse:
    blocks = min(BLOCKS, folder.layers)
    try:
        with tried(folder.config):
            config = tiny_config(folder.config, blocks)
            if not set(kinds_of(folder.config)) <= set(kinds_of(config.get_text_config(decoder=True))):
                return Reuse()
            narrow = tiny_model(config, folder.trust_remote_code)
            wide = tiny_model(config, folder.trust_remote_code) if widen(config) else narrow
    except InputError:  # no copy can be made, or transformers has no layers for its kind of cache
        return Reuse()
    model = InMemory(replace(folder, layers=blocks), wide)
    if not (pads := _holds(lambda: _off_forward(model, 0), RECURRENT)):  # it selects what it attends to, and selects padding too
        return Reuse(pads=False)
    leaves = _holds(lambda: _off_decoding(narrow, refills=False, shares=False), RECURRENT)
    shares = _holds(lambda: _off_forward(model, _SHARED))
    return Reuse(
        pads=pads,
        shares=shares,
        branches=shares and _holds(lambda: _off_branches(model)),
        skips=blocks > 1 and _holds(lambda: _off_below(model)),
        leaves=leaves,
        refills=_holds(lambda: _off_decoding(wide, refills=True, shares=shares)),
    )


def _holds(off: Callable[[], float], tolerance: float = TOLERANCE) -> bool:
    try:
        return off() <= tolerance
    except Exception:  # each architecture fails in its own way, and then reuses nothing
        return False


def _distance(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).abs().max() / wanted.abs().max())


def _off_forward(model: InMemory, shared: int) -> float:
    """The largest error in streams and logits of padded rows after a shared prefix, compared with each prompt alone."""
    worst = 0.0
    before = after(computed(model.module, _PROMPTS[0][:shared]) if shared else None)
    for batch in packed(_PROMPTS, 0, 1000, 3, model.device, shared):
        with captured(model, _REACH) as seen:
            out = model.module(**batch.inputs(), **before, logits_to_keep=_REACH).logits
        for row, which in enumerate(batch.indices):
            with captured(model, _REACH) as alone:
                wanted = model.module(input_ids=torch.tensor([_PROMPTS[which]]), use_cache=False).logits[0, -_REACH:]
            worst = max(worst, _distance(out[row], wanted), *(_distance(seen[i][row], alone[i][0]) for i in seen))
    return worst


def _off_branches(model: InMemory) -> float:
    """The largest error in logits along replies whose prompts (and prefix) were computed once, compared with each sequence alone."""
    worst = 0.0
    prefix = computed(model.module, _PROMPTS[0][:_SHARED])
    tails = [ids[-_REACH:] for ids in _PROMPTS]
    of = [(which + 1) % len(_PROMPTS) for which in range(len(_PROMPTS))]
    for batch in packed(_PROMPTS, 0, 1000, 3, model.device, _SHARED):
        stems = grown(model.module, batch, prefix)
        chosen = [(i, row) for row, which in enumerate(batch.indices) for i, stem in enumerate(of) if stem == which for _ in range(2)]
        behind = next(packed([tails[i] for i, _ in chosen], 0, 1000, 1000, model.device))
        rows = [chosen[i] for i in behind.indices]
        for (i, row), logits in zip(rows, grown_on(model.module, stems, [row for _, row in rows], behind), strict=True):
            ids = torch.tensor([[*_PROMPTS[batch.indices[row]], *tails[i]]])
            wanted = model.module(input_ids=ids, use_cache=False).logits[0, -_REACH - 1 :]
            worst = max(worst, _distance(logits, wanted))
    return worst


def _off_below(model: InMemory) -> float:
    """The largest error in logits of passes that start from the streams entering some block, compared with each prompt alone."""
    worst = 0.0
    alone = [model.module(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -_REACH:] for ids in _PROMPTS]
    kept: list[tuple[Tensor, int | None]] = []

    def forward(inputs: dict[str, Tensor]) -> Tensor:
        out: Tensor = model.module(**inputs, use_cache=False, logits_to_keep=_REACH).logits
        return out

    def seen(stream: Tensor, arity: int | None) -> None:
        kept[:] = [(stream, arity)]

    for batch, layer in product(packed(_PROMPTS, 0, 1000, 3, model.device), range(1, model.folder.layers)):
        with watching(model, layer, seen) as run:
            run(lambda: forward(batch.inputs()))  # noqa: B023
        with Below(layer, kept[0][1], {}).entering(model, kept[0][0]):
            out = forward(batch.inputs())
        worst = max(worst, *(_distance(out[row], alone[which]) for row, which in enumerate(batch.indices)))
    return worst


def _off_decoding(module: PreTrainedModel, refills: bool, shares: bool) -> float:
    """The largest error in the logits of every reply token, compared with the prompt and its reply so far, alone and without a cache."""
    heard: list[list[Tensor]] = [[] for _ in _PROMPTS]

    def hear(indices: Sequence[int], steps: Sequence[int], logits: Tensor) -> None:
        for index, row in zip(indices, logits, strict=True):
            heard[index].append(row)

    manner = DecodingSettings(
        0, frozenset(), _NEW, AtOnce(_PLACES if refills else len(_PROMPTS), 1000, 1000), refills, shares, slack=1, pace=1
    )
    # Of different lengths, so that rows leave and enter one by one.
    decoding = Decoding(module, manner, _PROMPTS, lambda ids, reply: len(reply) > len(ids) % _NEW, hear)
    worst = 0.0
    for index, reply in decoding.replies():
        for step, logits in enumerate(heard[index]):
            ids = torch.tensor([_PROMPTS[index] + reply[:step]])
            worst = max(worst, _distance(logits, module(input_ids=ids, use_cache=False).logits[0, -1]))
    return worst
