"""``SHA256SUMS``: the SHA-256 of every file of a checkpoint, in the format that ``sha256sum -c`` reads.

It is written when a checkpoint is finished (at the end of a run, and by ``push``) and not during the edit: the edit copies unchanged bytes
from file to file without reading them, and hashing them would more than double its time.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from abliterate.errors import CheckError
from abliterate.files import write_whole

SUMS = "SHA256SUMS"
_WORKERS = 2
_PIECE = 1 << 22
_LINE = re.compile(r"(\\?)([0-9a-f]{64}) [ *](.+)")


def published_files(folder: Path) -> list[str]:
    """The names of a checkpoint's files relative to its folder, with slashes, sorted. Hidden files are not included."""
    names = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    return sorted(name.as_posix() for name in names if not any(part.startswith(".") for part in name.parts))


def to_hash(folder: Path) -> int:
    """How many bytes ``write_sums`` will read: those of files that are newer than ``SHA256SUMS`` or not listed in it."""
    return sum((folder / name).stat().st_size for name in _changed(folder, _known(folder)))


def write_sums(folder: Path, advance: Callable[[int], None] = lambda done: None) -> None:
    """Write ``SHA256SUMS`` with every file except itself. Digests of files that are older than the existing list are kept."""
    known, here = _known(folder), set(published_files(folder))
    changed = _changed(folder, known)
    kept = {name: digest for name, digest in known.items() if name in here}
    sums = {**kept, **_hashed(folder, changed, advance)}
    write_whole("".join(_line(sums[name], name) for name in sorted(sums)).encode(), folder / SUMS)


def check_sums(folder: Path, but: Iterable[str] = (), advance: Callable[[int], None] = lambda done: None) -> int:
    """Compare every file with ``SHA256SUMS``. Returns how many files were compared; 0 if there is no list.

    Raises CheckError with the first file that differs, is missing, or isn't listed. ``but``: files that may differ.
    """
    if not (folder / SUMS).is_file():
        return 0
    try:
        listed = _read(folder)
    except ValueError as error:
        raise CheckError(f"{folder / SUMS}: {error}") from None
    here = set(published_files(folder)) - {SUMS}
    for name in sorted(here ^ set(listed)):
        if name not in but:
            raise CheckError(f"{folder / name}: " + (f"is not in {SUMS}" if name in here else f"is missing; {SUMS} lists it"))
    compared = sorted((here & set(listed)) - set(but))
    for name, digest in _hashed(folder, compared, advance).items():
        if digest != listed[name]:
            raise CheckError(f"{folder / name}: its bytes don't match {SUMS}")
    return len(compared)


def sha256_of(path: Path, advance: Callable[[int], None] = lambda done: None) -> str:
    """A file's SHA-256, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while data := file.read(_PIECE):
            digest.update(data)  # releases the GIL, so threads hash files in parallel
            advance(len(data))
    return digest.hexdigest()


def _hashed(folder: Path, names: Iterable[str], advance: Callable[[int], None]) -> dict[str, str]:
    wanted = list(names)
    with ThreadPoolExecutor(_WORKERS) as pool:
        return dict(zip(wanted, pool.map(lambda name: sha256_of(folder / name, advance), wanted), strict=True))


def _known(folder: Path) -> dict[str, str]:
    """The existing list; empty if it can't be read."""
    try:
        return _read(folder)
    except (OSError, ValueError):
        return {}


def _changed(folder: Path, known: dict[str, str]) -> list[str]:
    written = (folder / SUMS).stat().st_mtime_ns if known else 0
    here = [name for name in published_files(folder) if name != SUMS]
    return [name for name in here if name not in known or (folder / name).stat().st_mtime_ns >= written]


def _read(folder: Path) -> dict[str, str]:
    """Digests by name. Raises ValueError for a malformed line."""
    found = {}
    for number, line in enumerate((folder / SUMS).read_text(encoding="utf-8").splitlines(), 1):
        match = _LINE.fullmatch(line)
        if match is None:
            raise ValueError(f"line {number} is not a SHA-256 and a file's name")
        escaped, digest, name = match.groups()
        found[name.replace("\\n", "\n").replace("\\\\", "\\") if escaped else name] = digest
    return found


def _line(digest: str, name: str) -> str:
    """A line as ``sha256sum`` writes it. A name with a backslash or newline is escaped, and its line starts with a backslash."""
    escaped = name.replace("\\", "\\\\").replace("\n", "\\n")
    return f"{'' if escaped == name else chr(92)}{digest}  {escaped}\n"
