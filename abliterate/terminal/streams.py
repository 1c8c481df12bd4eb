"""The process's own stdout and stderr: a character that they can't hold is replaced, a reader who goes away ends no work, and libraries
say nothing on them."""

from __future__ import annotations

import codecs
import io
import json
import logging
import os
import sys
import warnings
from collections.abc import Iterable
from typing import Any

# Set before a library is imported, which is when it reads them. Bars that the Hub's client shows on a terminal while it downloads stay.
_SILENCE = {
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_VERBOSITY": "error",
    "DATASETS_VERBOSITY": "error",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "TQDM_DISABLE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
}


def prepare() -> None:
    """Make the streams so; once, as the process starts. What the user asked of a library by its own variable stays."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed by the caller: the first file that is opened would take its number
            setattr(sys, name, open(os.open(os.devnull, os.O_RDWR), mode, closefd=False))  # noqa: SIM115
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")
    sys.stdout = _lasting(sys.stdout, "stdout", BrokenPipeError)
    sys.stderr = _lasting(sys.stderr, "stderr", OSError)  # of what goes wrong there nobody can be told
    for variable, value in _SILENCE.items():
        os.environ.setdefault(variable, value)
    logging.getLogger().setLevel(logging.ERROR)
    if not sys.warnoptions:
        warnings.simplefilter("ignore")


def write_json(lines: Iterable[str]) -> None:
    """Lines of JSON to stdout: as they are where it is UTF-8, else with escapes, which every encoding holds and no reader mistakes."""
    whole = codecs.lookup(sys.stdout.encoding).name == "utf-8"
    text = "".join((line if whole else json.dumps(json.loads(line))) + "\n" for line in lines)
    sys.stdout.buffer.write(text.encode())
    sys.stdout.flush()


def _lasting(stream: object, name: str, lost: type[OSError]) -> io.TextIOWrapper:
    assert isinstance(stream, io.TextIOWrapper)
    return io.TextIOWrapper(
        io.BufferedWriter(_Raw(stream, name, lost)),
        stream.encoding,
        "replace",
        "\n",
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


class _Raw(io.RawIOBase):
    """What lies under a stream; writes go nowhere once one failed with ``lost``. Another failure is told once, with the stream's name."""

    def __init__(self, stream: io.TextIOWrapper, name: str, lost: type[OSError]) -> None:
        below: Any = stream.buffer
        self._stream, self._raw = stream, getattr(below, "raw", below)  # the one closes the other when it is forgotten
        self.name, self.mode, self._lost = name, "wb", lost

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return bool(self._raw.isatty())

    def fileno(self) -> int:
        return int(self._raw.fileno())

    def write(self, data: Any) -> int | None:
        """How many bytes were taken."""
        try:
            taken: int | None = self._raw.write(data)
            return taken
        except self._lost:
            return len(data)
        except OSError as error:
            self._lost = OSError
            raise OSError(error.errno, error.strerror, self.name) from None
