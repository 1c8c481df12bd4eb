"""Intermediate results of a stage, stored in a folder until the stage is done, so that a killed run can resume.

A file is used only if it is complete and was made from the same inputs: its first line is a hash of its name, of all its inputs and of
its content. Any other file is ignored.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from blake3 import blake3
from safetensors.torch import load, save
from torch import Tensor

from abliterate.files import write_whole

_FACTS = "facts"  # the name of a JSON value stored beside tensors, as bytes


@dataclass(frozen=True)
class ResumeStore:
    """Intermediate results in ``folder`` (None: nothing is stored). ``source``: a hash of all their inputs."""

    folder: Path | None = None
    source: str = ""

    def of(self, facts: Any, tensors: Sequence[Tensor] = ()) -> ResumeStore:
        """The store for results that also depend on these inputs: ``facts`` (a JSON value) and tensors."""
        if self.folder is None:
            return self
        said = json.dumps(facts).encode()
        return replace(self, source=_hash([self.source.encode(), said, *(_own_hash(tensor) for tensor in tensors)]))

    def value(self, name: str) -> Any:
        """The JSON value stored under this name; None if there is none."""
        content = self._read(name)
        return None if content is None else json.loads(content)

    def save_value(self, name: str, value: Any) -> None:
        """Store a JSON value, which may contain infinities."""
        self._write(name, json.dumps(value).encode())

    def state(self, name: str) -> tuple[dict[str, Tensor], Any] | None:
        """Tensors and the JSON value stored with them under this name; None if there are none."""
        content = self._read(name)
        if content is None:
            return None
        tensors = load(content)
        return tensors, json.loads(bytes(tensors.pop(_FACTS).tolist()))

    def save_state(self, name: str, tensors: Mapping[str, Tensor], facts: Any) -> None:
        """Store tensors and a JSON value under this name; replaces earlier ones."""
        said = torch.tensor(list(json.dumps(facts).encode()), dtype=torch.uint8)
        self._write(name, save({**{each: _plain(tensor) for each, tensor in tensors.items()}, _FACTS: said}))

    def forget(self) -> None:
        """Delete everything stored."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _read(self, name: str) -> bytes | None:
        if self.folder is None:
            return None
        try:
            seal, _, content = (self.folder / name).read_bytes().partition(b"\n")
        except OSError:
            return None
        return content if seal == self._seal(name, content) else None

    def _write(self, name: str, content: bytes) -> None:
        if self.folder is None:
            return
        with suppress(OSError):  # what can't be stored is computed again after a kill
            self.folder.mkdir(exist_ok=True)
            write_whole(self._seal(name, content) + b"\n" + content, self.folder / name)

    def _seal(self, name: str, content: bytes) -> bytes:
        return _hash([self.source.encode(), name.encode(), content]).encode()


NO_STORE = ResumeStore()


def _hash(parts: Sequence[bytes]) -> str:
    """Hash of the parts' hashes, so that no part runs into the next."""
    return blake3(b"".join(blake3(part).digest() for part in parts)).hexdigest()


def _own_hash(tensor: Tensor) -> bytes:
    return blake3(save({"": _plain(tensor)})).digest()


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
