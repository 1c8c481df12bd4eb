"""Others' words as a terminal may be given them: it shows them and obeys none of them.

Replies, prompts, names in a checkpoint and messages of a server are somebody else's; a control character in them could retitle the
window, write over what was said before, or put text into the clipboard (ECMA-48, xterm's control sequences).
"""

from __future__ import annotations

import unicodedata

import typer

_JOINERS = "\u200c\u200d"  # marks of format that scripts and emoji need
_OBEYED = ("Cc", "Cf", "Cs")


def harmless(text: str) -> str:
    """A text with \ufffd for what a terminal would obey: control characters, and marks that turn the direction of writing."""
    if text.isprintable():
        return text
    return "".join(c if c in "\n\t" or unicodedata.category(c) not in _OBEYED or c in _JOINERS else "\ufffd" for c in text)


def echo(line: str, err: bool = False) -> None:
    """A line to stdout or stderr, harmless."""
    typer.echo(harmless(line), err=err)
