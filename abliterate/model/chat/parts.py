"""Split a reply into thought and answer by the marks around its thoughts.

As in the reasoning parsers of vLLM, SGLang and llama.cpp, the first closing mark ends a thought, unless the thought only quotes it (in
quotes, backticks or a code block). A thought begins at the start of the reply, on a new line, after the end of a sentence, or right after
another thought; marks within a sentence are ordinary words.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from abliterate.model.chat.thought_marks import Marks, table, that_may_be_in

_QUOTED = re.compile(
    r"""(?<![\w"'`])(?:"[^"\n]{0,200}"|'[^'\n]{0,200}'|“[^”\n]{0,200}”|‘[^’\n]{0,200}’|「[^」\n]{0,200}」|`+[^`\n]{0,200}`+)(?![\w"'`])"""
)
_FENCED = re.compile(r"(?ms)^[ \t]*```.*?^[ \t]*```[ \t]*$")
_BEGINS = re.compile(r"(?:\A|\n|[.!?。！？…][\"'”’)\]]*)\s*\Z")


@dataclass(frozen=True)
class Parts:
    """``thought`` is None if there was no thinking block. ``closed``: whether the block ended, or an answer is there all the same.
    ``start``: the character at which the answer begins, right after the closing mark; the length of the reply if no answer begins."""

    thought: str | None
    answer: str
    closed: bool
    start: int = field(default=0, compare=False)


@dataclass(frozen=True)
class _Span:
    """A stretch of a reply without its marks; ``end`` is the position after the mark that ends it."""

    is_thought: bool
    text: str
    end: int


def split_thought(response: str, begins_in_thought: bool = False) -> Parts:
    """Separate the thinking block from the answer; a reply may begin inside the block (the template opened it).

    Several thoughts are joined with an empty line between them, and so are the stretches of an answer that thoughts separate.
    """
    text = response.lstrip()
    marks = _marks_of(text, begins_in_thought)
    if marks is None:
        return Parts(None, text.rstrip(), True)
    spans = list(_spans(text, marks, begins_in_thought))
    thoughts = [marks.seam.sub("\n\n", span.text).strip() for span in spans if span.is_thought]
    answers = [found for span in spans if not span.is_thought and (found := _bare(span.text, marks))]
    if not thoughts:
        return Parts(None, "\n\n".join(answers), True)
    begun = bool(answers) or (not spans[-1].is_thought and _may_begin(spans[-1].text, marks))
    start = len(response) - len(text) + _start(spans, marks) if begun else len(response)
    return Parts("\n\n".join(filter(None, thoughts)), "\n\n".join(answers), begun, start)


def joined(thought: str, answer: str | None) -> str:
    """One text from a thought and its answer, given separately; ``answer`` None: the thought was cut short."""
    marks = table()[0]
    inside = thought.replace(marks.close, f"`{marks.close}`") if _closing(thought, 0, marks) else thought
    return f"{marks.open}\n{inside}" + ("" if answer is None else f"\n{marks.close}\n\n{answer}")


def _marks_of(text: str, begins_in_thought: bool) -> Marks | None:
    """The family of a reply's marks: the one that opens the reply, else the one that first closes or opens a thought in it."""
    if marks := next((marks for marks in table() if marks.opens.match(text) or marks.begins.match(text)), None):
        return marks
    there = that_may_be_in(text)
    ends = [(end, marks) for marks in there if (end := _closing(text, 0, marks))]
    closed = [(end.start(), marks) for end, marks in ends if _may_close(text, end, marks, begins_in_thought)]
    if closed:
        return min(closed, key=lambda found: found[0])[1]
    if begins_in_thought:
        return table()[0]
    opened = [(begin.start(), marks) for marks in there if (begin := _opening(text, 0, marks))]
    return min(opened, key=lambda found: found[0])[1] if opened else None


def _may_close(text: str, end: re.Match[str], marks: Marks, begins_in_thought: bool) -> bool:
    """Whether the text before a closing mark is a thought: the template may have opened it without a record of that."""
    return begins_in_thought or (marks.stray and not marks.opens.search(text, 0, end.start()))


def _spans(text: str, marks: Marks, begins_in_thought: bool) -> Iterator[_Span]:
    """Thoughts and stretches of the answer, in order."""
    place = 0
    if begin := marks.opens.match(text):
        place, inside = begin.end(), True
    else:
        end = _closing(text, 0, marks)
        inside = begins_in_thought or (end is not None and _may_close(text, end, marks, False))
    while found := _closing(text, place, marks) if inside else _opening(text, place, marks):
        yield _Span(inside, text[place : found.start()], found.end())
        place, inside = found.end(), not inside
    yield _Span(inside, text[place:], len(text))


def _closing(text: str, place: int, marks: Marks) -> re.Match[str] | None:
    """The first closing mark that isn't quoted, preferably outside code blocks."""
    found = [end for end in marks.closes.finditer(text, place) if not _within(_QUOTED, text, place, end)]
    return next((end for end in found if not _within(_FENCED, text, place, end)), found[0] if found else None)


def _opening(text: str, place: int, marks: Marks) -> re.Match[str] | None:
    """The first opening mark at a place where a thought may begin."""
    for begin in marks.opens.finditer(text, place):
        quoted = any(_within(kind, text, place, begin) for kind in (_QUOTED, _FENCED))
        if not quoted and _BEGINS.search(text[place : begin.start()]):
            return begin
    return None


def _may_begin(behind: str, marks: Marks) -> bool:
    """Whether an answer, possibly empty, follows a thought; with named channels, only if the answer's channel is named."""
    return marks.without is None or marks.begins.match(behind.lstrip()) is not None


def _within(kind: re.Pattern[str], text: str, place: int, mark: re.Match[str]) -> bool:
    """Whether a mark is inside a span of this kind after ``place``; a mark that a thought quotes doesn't end it."""
    spans = kind.finditer(text[place:])
    return any(place + span.start() < mark.start() and mark.end() < place + span.end() for span in spans)


def _start(spans: Sequence[_Span], marks: Marks) -> int:
    """Where the answer begins: after the thoughts before it, and after its own opening mark."""
    place = 0
    for span in spans:
        if not span.is_thought and _bare(span.text, marks):
            break
        place = span.end if span.is_thought else place
    behind = next((span for span in spans if span.end > place), None)
    begins = marks.begins.match(behind.text) if behind else None
    return place + (begins.end() if begins else 0)


def _bare(answer: str, marks: Marks) -> str:
    """A stretch of an answer without its own marks, and without closing marks repeated before it."""
    text = rest = answer.strip()
    while (again := marks.closes.match(rest)) and again.end():
        rest = rest[again.end() :].lstrip()
    text = rest or text  # a text of closing marks alone is a loop, and is kept
    begins = marks.begins.match(text)
    return marks.ends.sub("", text[begins.end() if begins else 0 :]).strip()
