"""Check that a checkpoint stores what transformers computes with, so that the weights measured are the weights edited.

Every command that opens a model's weights opens them here; only the config and the shards' headers are read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from abliterate.errors import InputError
from abliterate.model.dry_load import DryLoad, Shape, dry_load
from abliterate.model.folder import ModelFolder, open_folder
from abliterate.model.index import ShardIndex, open_index
from abliterate.model.source import check_no_adapter
from abliterate.model.tensor_names import is_buffer, template, text_name, wrapped_by
from abliterate.model.tiny import side_keys
from abliterate.terminal.progress import say


@dataclass(frozen=True)
class Unused:
    """Stored tensors that transformers doesn't use, and why that is expected."""

    names: tuple[str, ...]
    reason: str

    def __str__(self) -> str:
        if len(self.names) == 1:
            return f"1 tensor ({self.names[0]}, {self.reason})"
        alike = takewhile(lambda parts: len(set(parts)) == 1, zip(*(name.split(".") for name in self.names), strict=False))
        shared = ".".join([*(parts[0] for parts in alike), "*"])
        if len(templates := {template(name) for name in self.names}) == 1:
            shared = templates.pop()
        return f"{len(self.names)} tensors ({shared if len(shared) > 1 else f'{self.names[0]} and others'}, {self.reason})"


def open_checkpoint(path: Path, trust_remote_code: bool = False, layout: Path | None = None) -> tuple[ModelFolder, ShardIndex]:
    """Open a model's folder and shard index, check that they agree, and report unused tensors and embeddings that are untied.

    Raises InputError as ``open_folder``, ``open_index`` and ``check_agreement`` do.
    """
    check_no_adapter(path)
    folder, index = open_folder(path, trust_remote_code, layout), open_index(path)
    tell(folder, check_agreement(folder, index))
    return folder, index


def tell(folder: ModelFolder, unused: Sequence[Unused]) -> None:
    """Print one line about unused tensors, and one if the stored embeddings are untied although the config ties them."""
    if unused:
        say(f"{folder.path.name}: not used by transformers: {', '.join(map(str, unused))}")
    if folder.says_tied and not folder.tied:
        say(
            f"{folder.path.name}: config.json ties the embeddings, but the two stored matrices differ, so they are treated as untied, "
            "as transformers does; other engines may follow the config"
        )


def check_agreement(folder: ModelFolder, index: ShardIndex) -> list[Unused]:
    """The stored tensors that are unused for a good reason.

    Raises InputError, in one line, if another stored tensor is unused, a used tensor is not stored, or a shape differs from the config.
    """
    found = dry_load(folder, index)
    reasons: dict[str | None, list[str]] = {}
    for name in found.unused:
        reasons.setdefault(_reason(name, folder, found), []).append(name)
    strangers = reasons.pop(None, [])
    if (wrapped := wrapped_by(strangers)) is not None:
        raise InputError(f"{folder.path}: {wrapped}")
    if faults := [*_misshapen(found, folder), *_unfit(found), *_lists(strangers, found.missing), *_half_tied(folder, index)]:
        raise InputError(
            f"{folder.path}: the stored tensors don't match config.json: {'; '.join(faults)}; correct config.json, or give the "
            "checkpoint that it belongs to"
        )
    return [Unused(tuple(names), str(reason)) for reason, names in reasons.items()]


def _reason(name: str, folder: ModelFolder, found: DryLoad) -> str | None:
    """Why a stored tensor is unused for a good reason; None if there is no such reason."""
    text, layout = text_name(name), folder.layout
    if text is None:
        return "vision or audio"
    where = layout.in_block(text)
    ahead = where is not None and (where[2] or (where[0] >= folder.layers and bool(layout.mtp)))
    if ahead or text in (*layout.mtp_root, *layout.mtp_others):
        return "multi-token prediction"
    if is_buffer(name):
        return "recomputed by transformers"
    return "its architecture ignores them" if name in found.ignored else None


def _misshapen(found: DryLoad, folder: ModelFolder) -> list[str]:
    if not found.misshapen:
        return []
    name, have, wanted = found.misshapen[0]
    more = " (and others likewise)" if len(found.misshapen) > 1 else ""
    return [f"{name} is stored as {list(have)}, but the config{_key(have, wanted, folder)} gives {list(wanted)}{more}"]


def _key(have: Shape, wanted: Shape, folder: ModelFolder) -> str:
    """The config field that sets the size that differs, as in "'s hidden_size"; empty unless exactly one field fits."""
    sizes = {size for size, other in zip(wanted, have, strict=True) if size != other} if len(have) == len(wanted) else set()
    config = folder.config.to_dict()
    keys = [key for key in side_keys() if config.get(key) in sizes]
    return f"'s {keys[0]}" if len(sizes) == len(keys) == 1 else ""


def _unfit(found: DryLoad) -> list[str]:
    unfit = [f"{_some(found.unfit)} impossible to make from the stored tensors"] if found.unfit else []
    return unfit + ([f"{_some(found.doubled)} stored under two names"] if found.doubled else [])


def _lists(strangers: Sequence[str], missing: Sequence[str]) -> list[str]:
    unused = [f"{_some(strangers)} stored, but not used"] if strangers else []
    return unused + ([f"{_some(missing)} used, but not stored"] if missing else [])


def _half_tied(folder: ModelFolder, index: ShardIndex) -> list[str]:
    """Of tied embeddings, the token embedding is read and edited, so it must be stored."""
    texts = {text_name(name) for name in index.tensors}
    lacking = folder.tied and folder.layout.unembedding in texts and folder.layout.embedding not in texts
    return [f"{folder.layout.unembedding} is stored without {folder.layout.embedding}, to which it is tied"] if lacking else []


def _some(names: Sequence[str]) -> str:
    return f"{names[0]} is" if len(names) == 1 else f"{names[0]} and others are"
