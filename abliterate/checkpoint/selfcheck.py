"""The self-check: run the real editor on a tiny random copy of the model's architecture before any real weight is touched.

The copy has the model's config with small dimensions and enough blocks to have one of each kind. It is saved by transformers, edited at
full strength along a random direction, and loaded again. Then no block may write along the direction, and the logits must equal those of
the unedited copy with the hooks that a run uses to choose and tune its edit.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
from blake3 import blake3
from safetensors import SafetensorError
from torch import Tensor
from transformers import PreTrainedModel

from abliterate import __version__
from abliterate.checkpoint.output import plan_output
from abliterate.checkpoint.records import SelfCheck
from abliterate.checkpoint.stream import write_shards
from abliterate.checkpoint.tasks import edit_tasks, missing_expert, placed_writers, unplaced, writer_kinds
from abliterate.compute.hooks import ablated, captured, cleared
from abliterate.compute.load import InMemory
from abliterate.errors import InputError, first_line
from abliterate.files import OWN_FILE, OWN_FOLDER, cache_folder
from abliterate.model.edit import Edit, edit_from_direction
from abliterate.model.folder import ModelFolder
from abliterate.model.formats.plain import PLAIN
from abliterate.model.index import ShardIndex, open_index
from abliterate.model.layouts import guess_table
from abliterate.model.tensor_names import in_memory, template, text_name
from abliterate.model.tiny import probe, tiny_config, tiny_model, tried

LEFT, LOGITS = 1e-5, 1e-4


def self_check(folder: ModelFolder, index: ShardIndex) -> SelfCheck:
    """Test the layout on a small copy. Results are cached in the user's cache folder, by config, layout and versions.

    Raises InputError if the copy can't be made, if the checkpoint has tensors or blocks that the copy lacks, or if the edit is not exact;
    the message then names tensors that were not edited.
    """
    if lost := missing_expert(index.tensors):
        raise InputError(f"{folder.path}: the checkpoint lacks {lost}, which the other experts have; download it again")
    kinds = writer_kinds(index.tensors, folder)
    blocks = _enough(kinds, folder)
    kept = _place(f"{_key(folder, index, blocks)}.json")
    if kept is not None and (known := _read(kept)) is not None:
        return known
    with tempfile.TemporaryDirectory(prefix="abliterate-selfcheck-") as place:
        try:
            with tried(folder.config), _written(place):
                made = _checked(folder, index, kinds, blocks, Path(place))
        except InputError as error:  # an error about the copy holds for the model
            raise InputError(re.sub(re.escape(place) + r"/[\w-]+", f"{folder.path} (a small copy)", str(error))) from None
    if kept is not None:
        with suppress(OSError):  # without a writable cache the check is only slower
            kept.parent.mkdir(OWN_FOLDER, exist_ok=True)
            unfinished = kept.with_suffix(f".{blake3(str(place).encode()).hexdigest(8)}")
            unfinished.touch(OWN_FILE)
            unfinished.write_text(json.dumps(made.document()), encoding="utf-8")
            unfinished.replace(kept)
    return made


@contextmanager
def _written(place: str) -> Iterator[None]:
    """Context in which a failure to write the copy is reported as such, and not as a fault of the architecture. Raises InputError."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise InputError(f"{place}: the small copy of the self-check can't be written there ({first_line(error)})") from None


def _place(name: str) -> Path | None:
    """The cache file with this name. None if the cache folder can't be used, for example because other users may write to it."""
    try:
        return cache_folder() / "selfchecks" / name
    except (OSError, InputError):
        return None


def _read(kept: Path) -> SelfCheck | None:
    try:
        return SelfCheck.read(kept)
    except (OSError, InputError):  # missing or damaged
        return None


def _key(folder: ModelFolder, index: ShardIndex, blocks: int) -> str:
    """A hash of everything that the results depend on: config, layout, tensor names, versions."""
    config = {key: value for key, value in folder.config.to_dict().items() if key != "_name_or_path"}
    facts = [config, repr(folder.layout), folder.tied, folder.quantisation, sorted(index.tensors), blocks]
    versions = [__version__, transformers.__version__, torch.__version__]
    return str(blake3(json.dumps([facts, versions], sort_keys=True, default=str).encode()).hexdigest(16))


def _enough(kinds: Mapping[int, frozenset[str]], folder: ModelFolder) -> int:
    """How many first blocks contain every kind of block, judged by their writers and by the per-layer lists of the config; at least two."""
    lists = [v for v in folder.config.to_dict().values() if isinstance(v, list) and len(v) == folder.layers]
    signs = [(kinds[layer], *(str(v[layer]) for v in lists if not isinstance(v[layer], float))) for layer in range(folder.layers)]
    seen: set[Any] = set()
    last = 1
    for layer, sign in enumerate(signs):
        if sign not in seen:
            seen.add(sign)
            last = layer + 1
    return min(max(last, 2), folder.layers)


def _checked(folder: ModelFolder, index: ShardIndex, kinds: Mapping[int, frozenset[str]], blocks: int, place: Path) -> SelfCheck:
    made = tiny_model(tiny_config(folder.config, blocks), folder.trust_remote_code)
    base = _saved(made, folder, index, place)
    model = _loaded(made, base)  # some architectures change weights when they load them
    copy, copied = _described(folder, model, base, blocks), open_index(base)
    _same_tensors(folder, index, kinds, copy, copied)
    rows = torch.randn(copy.d_model, generator=torch.Generator().manual_seed(1))
    edit = edit_from_direction(rows, blocks, policy="skip" if copy.tied or copy.layout.embedding_norm else "edit", tied=copy.tied)
    (place / "edited").mkdir()
    tasks = edit_tasks(copied, copy, edit)
    write_shards(copied, plan_output(copied, tasks), tasks, place / "edited")
    (place / "edited" / "config.json").write_bytes((base / "config.json").read_bytes())
    before, after = InMemory(copy, model), InMemory(copy, _loaded(made, place / "edited"))
    _watchable(before, copied)
    written, left = _along(before, edit), _along(after, edit)
    worst = max(range(blocks), key=lambda layer: left[layer])
    if not left[worst] <= LEFT:
        first = next(layer for layer in range(blocks) if not left[layer] <= LEFT)
        raise InputError(_left_over(folder, copy, copied, set(tasks), first, left[worst]))
    if edit.embedding == "edit" and not (entered := max(_along(after, edit, clear=False))) <= LEFT:
        raise InputError(
            f"{folder.path}: {folder.model_type!r} can't be edited exactly with the layout {folder.layout.name!r}: in a small copy "
            f"{entered:.1e} of the stream lies along the direction although blocks and token embedding were edited; positions or a norm "
            "may write it"
        )
    logits, kl = _against_hooks(before, after, edit)
    if not logits <= LOGITS:
        raise InputError(
            f"{folder.path}: {folder.model_type!r} can't be edited exactly with the layout {folder.layout.name!r}: logits of an edited "
            f"small copy differ from ablation by hooks by {logits:.1e} (at most {LOGITS:.0e} is rounding), so something else reads or "
            "writes the stream, or what is edited doesn't write it"
        )
    return SelfCheck(
        architecture=folder.model_type, layout=folder.layout.name, blocks=blocks, before=max(written), left=left[worst], logits=logits,
        kl=kl, transformers=transformers.__version__, torch=torch.__version__,
    )  # fmt: skip


def _saved(made: PreTrainedModel, folder: ModelFolder, index: ShardIndex, place: Path) -> Path:
    """Save the copy with the tensor names of the architecture's original checkpoints, or, if the checkpoint uses them, with the names of
    the modules in memory (experts in one tensor)."""
    first, second = place / "base", place / "as-in-memory"
    _save(made, first, original=True)
    if not _unknown(folder, index, open_index(first)):
        return first
    _save(made, second, original=False)
    return first if _unknown(folder, index, open_index(second)) else second


def _save(model: PreTrainedModel, place: Path, original: bool) -> None:
    with tried(model.config, "has a small copy that can't be saved"):  # saving reverses the renaming done on loading
        model.save_pretrained(place, save_original_format=original)


def _unknown(folder: ModelFolder, index: ShardIndex, copied: ShardIndex) -> list[str]:
    return unplaced(index.tensors, folder, [text_name(name) or name for name in copied.tensors])


def _loaded(made: PreTrainedModel, place: Path) -> PreTrainedModel:
    with tried(made.config, "has a small copy that can't be loaded again"):
        loaded: PreTrainedModel = type(made).from_pretrained(
            place, dtype=torch.float32, local_files_only=True, use_safetensors=True, trust_remote_code=False
        )
    return loaded


def _described(folder: ModelFolder, model: PreTrainedModel, path: Path, blocks: int) -> ModelFolder:
    """The copy as a model folder of the same layout."""
    config = model.config.get_text_config()
    tied = bool(getattr(model.config, "tie_word_embeddings", False))
    return replace(folder, path=path, layers=blocks, d_model=int(config.hidden_size), tied=tied, config=config, stored=PLAIN)


def _same_tensors(
    folder: ModelFolder, index: ShardIndex, kinds: Mapping[int, frozenset[str]], copy: ModelFolder, copied: ShardIndex
) -> None:
    """Raises InputError if the checkpoint has tensors or blocks without a counterpart in the copy."""
    if unknown := _unknown(folder, index, copied):
        raise InputError(
            f"{folder.path}: {len(unknown)} tensors are not in a model of its architecture {folder.model_type!r} (first: {unknown[0]}); "
            "a writer may be among them, so the edit would not be exact"
        )
    known = set(writer_kinds(copied.tensors, copy).values())
    for layer, kind in kinds.items():
        if kind not in known:
            near = max(known, key=lambda k: len(k & kind))
            lost = sorted(near - kind) or sorted(kind - near)
            raise InputError(
                f"{folder.path}: block {layer} differs from every block of its architecture (see {lost[0]}); download it again"
            )


def _watchable(model: InMemory, copied: ShardIndex) -> None:
    """Raises InputError if the model lacks a module that the layout names for a writer."""
    layout = model.folder.layout
    for placed in placed_writers(copied, model.folder):
        block = in_memory(layout.block_module.format(placed.layer), model.parts)
        if f"{block}.{placed.writer.module}" not in layout.written_by(placed.layer, model.parts):
            raise InputError(
                f"{model.folder.path}: block {placed.layer} has no module {placed.writer.module!r}, which the layout {layout.name!r} names "
                f"for {placed.writer.weight}"
            )


@torch.no_grad()
def _along(model: InMemory, edit: Edit, clear: bool = True) -> list[float]:
    """After each block, the largest part of the stream along the direction. ``clear``: remove it from the first block's input."""
    r = edit.direction[0, 0, 0]
    with cleared(model, r[None]) if clear else nullcontext(), captured(model, probe().shape[1]) as seen:
        model.module(input_ids=probe(), use_cache=False)
    for layer in range(edit.layers):
        if layer + 1 not in seen or (layer and torch.equal(seen[layer], seen[layer + 1])):
            raise InputError(f"{model.folder.path}: block {layer} does nothing when the model reads text, so no edit of it can be proven")
    streams = [seen[layer + 1] for layer in range(edit.layers)]
    return [float((s @ r).abs().max() / s.norm(dim=-1).max()) for s in streams]


@torch.no_grad()
def _against_hooks(base: InMemory, edited: InMemory, edit: Edit) -> tuple[float, float]:
    """The relative distance between the logits of the edited copy and those with hooks, and KL(hooks || edited) in nats per token."""
    with ablated(base, edit):
        wanted = _logits(base)
    got = _logits(edited)
    p, q = wanted.log_softmax(-1), got.log_softmax(-1)
    return float((got - wanted).norm() / wanted.norm()), float((p.exp() * (p - q)).sum(-1).mean())


def _logits(model: InMemory) -> Tensor:
    logits: Tensor = model.module(input_ids=probe(), use_cache=False).logits
    return logits.double()


def _left_over(folder: ModelFolder, copy: ModelFolder, copied: ShardIndex, edited: set[str], layer: int, left: float) -> str:
    """The error message if the layout doesn't cover the architecture, with the tensors that may write there, the likeliest first."""
    table = guess_table()
    usual = {*table["attention"], *table["mlp"]}
    suspects = [
        name
        for name, info in copied.tensors.items()
        if name not in edited and copy.d_model in info.shape and (len(info.shape) > 1 or name.endswith("bias"))
        and (found := copy.layout.in_block(text_name(name) or "")) and found[0] == layer
    ]  # fmt: skip
    suspects = list({template(name): name for name in reversed(suspects)}.values())[::-1]  # only the first expert
    suspects.sort(key=lambda name: not any(part.removesuffix("_bias") in usual for part in name.split(".")))
    return (
        f"{folder.path}: {folder.model_type!r} can't be edited exactly with the layout {folder.layout.name!r}: in a small copy "
        f"{left:.1e} of the stream still lies along the direction after block {layer}; "
        f"not edited there: {', '.join(suspects[:6]) or 'nothing'}"
    )
