"""The terminal of rich, on which others' words are only shown."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from abliterate.terminal.harmless import harmless


class HarmlessConsole(Console):
    """A console whose own colours and movements reach the terminal, and no control character of a text."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """What is written for a renderable, piece by piece."""
        for piece in super().render(renderable, options):
            yield piece if piece.control else piece._replace(text=harmless(piece.text))
