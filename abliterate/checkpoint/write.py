"""The new checkpoint's folder: it is either complete or absent."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from abliterate.errors import CheckError, InputError, first_line
from abliterate.files import remove_stale, whole_folder
from abliterate.model.files import everything, files_of

_NAMED = 8  # how many files and folders that are not copied are named in the message
# A failing disk, a missing source, or a file too large for the file system.
_FAILED = (errno.EIO, errno.ENOENT, errno.ESTALE, errno.EFBIG)


@contextmanager
def new_folder(out: Path, needed_bytes: int) -> Iterator[Path]:
    """A hidden folder beside ``out`` that is renamed to ``out`` if the block succeeds, and deleted if it fails.

    Raises InputError if the disk has too little space, before or while writing.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    remove_stale(out)
    free = shutil.disk_usage(out.parent).free
    if free < needed_bytes:
        raise InputError(
            f"{out.parent}: {free / 1e9:.2f} GB free, the checkpoint needs {needed_bytes / 1e9:.2f} GB; make room or choose another --out"
        )
    try:
        with whole_folder(out) as partial:
            yield partial
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise InputError(f"{out.parent}: no space left on the disk; nothing was kept, make room and run again") from None
        if error.errno in _FAILED:
            where = error.filename or out.parent
            raise InputError(f"{where}: {error.strerror} while the checkpoint was written; nothing was kept") from None
        raise
    except SafetensorError as error:  # safetensors raises this if the disk is full or fails
        raise InputError(f"{out.parent}: a file can't be written ({first_line(error)}); nothing was kept") from None


def copy_side_files(source: Path, out: Path) -> list[str]:
    """Copy tokenizer, config, licence and similar files byte for byte. Returns their names."""
    copied = files_of(source)
    for name in copied:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, out / name)
    return [str(name) for name in copied]


def left_behind(source: Path, shards: Collection[str]) -> str:
    """How many files in the folder do not belong to the model, and the first names; empty if there are none."""
    belong = set(files_of(source))
    left = [name for name in everything(source) if str(name) not in shards and name not in belong]
    told = list(dict.fromkeys(name.parts[0] + ("/" if len(name.parts) > 1 else "") for name in left))
    more = f", and {len(told) - _NAMED} more" if len(told) > _NAMED else ""
    return f"{len(left)} file{'s' if len(left) > 1 else ''} ({', '.join(told[:_NAMED])}{more})" if left else ""


def same_side_files(source: Path, out: Path, but: Collection[str]) -> None:
    """Raises CheckError if a side file of ``source`` is missing from ``out`` or differs there."""
    for name in files_of(source):
        if str(name) in but:
            continue
        if not (out / name).is_file() or (out / name).read_bytes() != (source / name).read_bytes():
            raise CheckError(f"{out / name}: {'differs from the base' if (out / name).is_file() else 'is missing; the base has it'}")
