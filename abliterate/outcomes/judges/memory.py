"""A cache of judges' replies, keyed by the judged content: no case is asked twice, even if the program is interrupted."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path

from abliterate.errors import InputError
from abliterate.files import OWN_FILE, OWN_FOLDER
from abliterate.outcomes.judges.judge import Case

_COLUMNS = "key TEXT PRIMARY KEY, model TEXT NOT NULL, rubric TEXT NOT NULL, reply TEXT NOT NULL"
_WAIT = 60.0  # seconds to wait for another process to finish its write


def key_of(model: str, rubric: str, case: Case) -> str:
    """Hash of everything that a judge's reply depends on."""
    whole = json.dumps([model, rubric, *astuple(case)])  # JSON keeps the texts apart
    return hashlib.sha256(whole.encode()).hexdigest()


@dataclass(frozen=True)
class Memory:
    """A SQLite file of judges' replies; the judged texts are stored only as hashes."""

    path: Path

    def known(self, keys: Sequence[str]) -> dict[str, str]:
        """The stored replies, by key."""
        with self._open() as base:
            return {key: row[0] for key in keys if (row := base.execute("SELECT reply FROM replies WHERE key = ?", (key,)).fetchone())}

    def keep(self, key: str, model: str, rubric: str, reply: str) -> None:
        """Store a reply; it is on disk when this returns."""
        kept = reply.encode("utf-8", "replace").decode()
        with self._open() as base, base:
            base.execute("INSERT OR REPLACE INTO replies VALUES (?, ?, ?, ?)", (key, model, rubric, kept))

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        try:
            self.path.parent.mkdir(OWN_FOLDER, parents=True, exist_ok=True)
            if not self.path.exists():  # SQLite would create it readable for others
                os.close(os.open(self.path, os.O_CREAT | os.O_WRONLY | os.O_NOFOLLOW, OWN_FILE))
            with closing(sqlite3.connect(self.path, timeout=_WAIT)) as base:
                base.execute(f"CREATE TABLE IF NOT EXISTS replies ({_COLUMNS})")
                yield base
        except (sqlite3.Error, OSError) as error:
            raise InputError(f"{self.path}: can't store judges' replies ({error}); move the file away, or set ABLITERATE_CACHE") from None
