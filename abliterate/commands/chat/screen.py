"""Show a conversation: side by side on a terminal, as labelled plain text elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol, runtime_checkable

from rich.columns import Columns
from rich.console import Console
from rich.live import Live
from rich.panel import Panel
from rich.text import Text

from abliterate.commands.chat.speaker import ChatReply
from abliterate.outcomes.records import record_of
from abliterate.terminal.console import HarmlessConsole
from abliterate.terminal.harmless import harmless

_EDGES = 6  # screen lines taken by a panel's edges, the prompt and the chip


Hearing = Callable[[str, str], None]  # called with a label and the whole reply so far


@runtime_checkable
class Screen(Protocol):
    """Shows replies under the labels of their models."""

    def lines(self) -> Iterator[str]:
        """The lines of the user, up to the end of the input."""
        ...

    def replying(self, labels: Sequence[str]) -> AbstractContextManager[Hearing]:
        """A context in which replies are generated."""
        ...

    def told(self, replies: Mapping[str, ChatReply]) -> None:
        """Show the finished replies."""
        ...

    def note(self, line: str) -> None:
        """Show a line that is not a reply."""
        ...


def screen() -> Screen:
    """Panels if input and output are a terminal that can be redrawn; else plain text."""
    console = HarmlessConsole(highlight=False)
    lively = sys.stdin.isatty() and console.is_terminal and not console.is_dumb_terminal
    return Terminal(console) if lively else Plain()


def chip(said: ChatReply) -> str:
    """The outcome of a reply, in a word or two."""
    if said.verdict is None:
        return f"stopped after {said.tokens} tokens"
    thought = f"; thought: {said.verdict.thought}" if said.verdict.thought else ""
    return f"{said.verdict.outcome}{thought}"


def written(said: ChatReply) -> str:
    """A reply as it is shown: harmless to the terminal, and marked if it was cut."""
    return harmless(said.text) + (f" … (cut at {said.tokens} tokens)" if said.cut else "")


class Plain:
    """Labelled text, for a pipe, a file or a test."""

    def lines(self) -> Iterator[str]:
        yield from sys.stdin

    @contextmanager
    def replying(self, labels: Sequence[str]) -> Iterator[Hearing]:
        yield lambda label, text: None

    def told(self, replies: Mapping[str, ChatReply]) -> None:
        for label, said in replies.items():
            print(f"{harmless(label)}> {written(said)}\n  [{chip(said)}]", flush=True)
        print(flush=True)

    def note(self, line: str) -> None:
        print(harmless(line), flush=True)


class Terminal:
    """Panels side by side; while replies grow, the last lines that fit on the screen."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def lines(self) -> Iterator[str]:
        while True:
            try:
                yield input("you> ")
            except EOFError:
                self._console.print()
                return
            except KeyboardInterrupt:  # no reply is running: the user drops the line
                self._console.print()

    @contextmanager
    def replying(self, labels: Sequence[str]) -> Iterator[Hearing]:
        texts = dict.fromkeys(labels, "")
        with Live(self._panels(texts, {}), console=self._console, transient=True, refresh_per_second=12) as live:

            def hear(label: str, text: str) -> None:
                texts[label] = text
                live.update(self._panels({of: self._tail(harmless(so_far), len(texts)) for of, so_far in texts.items()}, {}))

            yield hear

    def told(self, replies: Mapping[str, ChatReply]) -> None:
        self._console.print(self._panels({label: written(said) for label, said in replies.items()}, replies))

    def note(self, line: str) -> None:
        self._console.print(line, markup=False)

    def _panels(self, texts: Mapping[str, str], replies: Mapping[str, ChatReply]) -> Columns:
        width = self._width(len(texts))
        panels = []
        for label, text in texts.items():
            under = None
            if label in replies:
                said = replies[label]
                colour = record_of(said.verdict.outcome).terminal if said.verdict else "dim"
                under = Text(chip(said), style=colour, overflow="ellipsis", no_wrap=True)
            panels.append(Panel(Text(text), title=Text(label), subtitle=under, width=width))
        return Columns(panels, padding=(0, 0))

    def _width(self, count: int) -> int:
        """The width of a panel: side by side if each has room for a sentence, else below each other."""
        width = self._console.width
        return width // count if width // count >= 30 else width

    def _tail(self, text: str, count: int) -> str:
        """As much of the end of a harmless text as fits on the screen."""
        width = self._width(count)
        room = max(1, self._console.height - _EDGES) if width * count <= self._console.width else max(1, self._console.height // count - 3)
        wrapped = Text(text).wrap(self._console, max(1, width - 4))
        return "\n".join(line.plain for line in list(wrapped)[-room:])
