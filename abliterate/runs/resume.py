"""Work under way, kept in a folder until all of it is done: a run that is killed goes on with it.

A file is used only where it is whole and was made from the same: the line that it begins with is a hash of its name, of everything that
it came from, and of its content. Any other file is as good as none.
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

_FACTS = "facts"  # beside tensors: a JSON value, as bytes


@dataclass(frozen=True)
class ResumeStore:
    """What is kept in ``folder``, nothing where there is none; ``source`` is a hash of what it all comes from."""

    folder: Path | None = None
    source: str = ""

    def of(self, facts: Any, tensors: Sequence[Tensor] = ()) -> ResumeStore:
        """For what comes of these as well: ``facts`` that JSON has words for, and tensors."""
        if self.folder is None:
            return self
        said = json.dumps(facts).encode()
        return replace(self, source=_hash([self.source.encode(), said, *(_own_hash(tensor) for tensor in tensors)]))

    def value(self, name: str) -> Any:
        """The JSON value that was kept under this name; None where there is none."""
        content = self._read(name)
        return None if content is None else json.loads(content)

    def save_value(self, name: str, value: Any) -> None:
        """Keep a JSON value, which may hold infinities."""
        self._write(name, json.dumps(value).encode())

    def state(self, name: str) -> tuple[dict[str, Tensor], Any] | None:
        """Tensors and a JSON value that were kept together under this name; None where there are none."""
        content = self._read(name)
        if content is None:
            return None
        tensors = load(content)
        return tensors, json.loads(bytes(tensors.pop(_FACTS).tolist()))

    def save_state(self, name: str, tensors: Mapping[str, Tensor], facts: Any) -> None:
        """Keep tensors and a JSON value, in place of what was kept under this name before."""
        said = torch.tensor(list(json.dumps(facts).encode()), dtype=torch.uint8)
        self._write(name, save({**{each: _plain(tensor) for each, tensor in tensors.items()}, _FACTS: said}))

    def forget(self) -> None:
        """Delete everything that is kept."""
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
        with suppress(OSError):  # what can't be kept is made again, should it come to that
            self.folder.mkdir(exist_ok=True)
            write_whole(self._seal(name, content) + b"\n" + content, self.folder / name)

    def _seal(self, name: str, content: bytes) -> bytes:
        return _hash([self.source.encode(), name.encode(), content]).encode()


NO_STORE = ResumeStore()


def _hash(parts: Sequence[bytes]) -> str:
    """Of each part's own hash, so that none runs into the next."""
    return blake3(b"".join(blake3(part).digest() for part in parts)).hexdigest()


def _own_hash(tensor: Tensor) -> bytes:
    return blake3(save({"": _plain(tensor)})).digest()


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
