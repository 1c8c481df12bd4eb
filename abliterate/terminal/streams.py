"""Prepare the process's stdout and stderr: they replace characters that they can't encode, the work goes on if their reader closes them,
and libraries stay silent."""

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

# Libraries read these when they are imported. The Hub client's download bars on a terminal stay.
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
    """Prepare the streams; call it once when the process starts. Variables that the user has set for a library are kept."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # the caller closed it, and the next opened file would get its number
            setattr(sys, name, open(os.open(os.devnull, os.O_RDWR), mode, closefd=False))  # noqa: SIM115
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")
    sys.stdout = _lasting(sys.stdout, "stdout", BrokenPipeError)
    sys.stderr = _lasting(sys.stderr, "stderr", OSError)  # no stream is left to report its errors on
    for variable, value in _SILENCE.items():
        os.environ.setdefault(variable, value)
    logging.getLogger().setLevel(logging.ERROR)
    if not sys.warnoptions:
        warnings.simplefilter("ignore")


def write_json(lines: Iterable[str]) -> None:
    """Write lines of JSON to stdout: unchanged if it is UTF-8, otherwise with escapes, which every encoding can hold."""
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
    """The raw stream below a text stream. After a write fails with ``lost``, all further writes are dropped. Another error is raised once,
    with the stream's name."""

    def __init__(self, stream: io.TextIOWrapper, name: str, lost: type[OSError]) -> None:
        below: Any = stream.buffer
        self._stream, self._raw = stream, getattr(below, "raw", below)  # keep ``stream``: when it is deleted it closes the raw stream
        self.name, self.mode, self._lost = name, "wb", lost

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return bool(self._raw.isatty())

    def fileno(self) -> int:
        return int(self._raw.fileno())

    def write(self, data: Any) -> int | None:
        """The number of bytes written."""
        try:
            taken: int | None = self._raw.write(data)
            return taken
        except self._lost:
            return len(data)
        except OSError as error:
            self._lost = OSError
            raise OSError(error.errno, error.strerror, self.name) from None
