"""Replace control characters before a terminal gets text that others wrote.

Replies, prompts, names in a checkpoint and messages of a server come from others. A control character in them could change the window's
title, overwrite earlier output, or write to the clipboard (ECMA-48, xterm's control sequences).
"""

from __future__ import annotations

import unicodedata

import typer

_JOINERS = "\u200c\u200d"  # format characters that scripts and emoji need
_OBEYED = ("Cc", "Cf", "Cs")


def harmless(text: str) -> str:
    """The text with \ufffd in place of control characters and of marks that change the direction of writing."""
    if text.isprintable():
        return text
    return "".join(c if c in "\n\t" or unicodedata.category(c) not in _OBEYED or c in _JOINERS else "\ufffd" for c in text)


def echo(line: str, err: bool = False) -> None:
    """Write a line to stdout or stderr, without control characters."""
    typer.echo(harmless(line), err=err)
