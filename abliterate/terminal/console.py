"""rich's console, without control characters of the printed text."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from abliterate.terminal.harmless import harmless


class HarmlessConsole(Console):
    """A console that sends its own colours and cursor movements to the terminal, but no control characters of a text."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """The segments of a renderable; control characters in their text are replaced."""
        for piece in super().render(renderable, options):
            yield piece if piece.control else piece._replace(text=harmless(piece.text))
