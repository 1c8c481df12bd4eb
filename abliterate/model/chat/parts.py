"""A reply in its two parts, thought and answer, by the marks around its thoughts.

As the reasoning parsers of vLLM, SGLang and llama.cpp have it, the first closing mark ends a thought; but one that the thought only
quotes, in quotes, backticks or a block of code, does not. A thought begins where the reply does, on a line of its own, behind the end of a
sentence or right behind another thought: marks that a sentence speaks of are words like others.
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
    """``thought`` is None where there was no thinking block; ``closed`` says whether it ended, or an answer is there all the same.
    ``start``: the character at which the answer begins, right behind the closing mark; the whole length where it doesn't."""

    thought: str | None
    answer: str
    closed: bool
    start: int = field(default=0, compare=False)


@dataclass(frozen=True)
class _Span:
    """A stretch of a reply, its marks left out; ``end`` is behind the mark that ends it."""

    is_thought: bool
    text: str
    end: int


def split_thought(response: str, begins_in_thought: bool = False) -> Parts:
    """Separate the thinking block from the answer; a response may begin inside the block (the template opened it).

    Several thoughts are one, with an empty line between; so are the stretches of an answer that a thought stands between.
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
    """One text of a thought and its answer, which somebody else told apart; no ``answer``: the thought was cut."""
    marks = table()[0]
    inside = thought.replace(marks.close, f"`{marks.close}`") if _closing(thought, 0, marks) else thought
    return f"{marks.open}\n{inside}" + ("" if answer is None else f"\n{marks.close}\n\n{answer}")


def _marks_of(text: str, begins_in_thought: bool) -> Marks | None:
    """The family that a reply's own marks are of: that which opens it, else which first closes or opens a thought in it."""
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
    """Whether what stands before a closing mark is a thought: the template opened it, and what was stored may not say so."""
    return begins_in_thought or (marks.stray and not marks.opens.search(text, 0, end.start()))


def _spans(text: str, marks: Marks, begins_in_thought: bool) -> Iterator[_Span]:
    """Thoughts and stretches of the answer, in their order."""
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
    """The first closing mark that isn't quoted; where all stand in blocks of code, the first of these."""
    found = [end for end in marks.closes.finditer(text, place) if not _within(_QUOTED, text, place, end)]
    return next((end for end in found if not _within(_FENCED, text, place, end)), found[0] if found else None)


def _opening(text: str, place: int, marks: Marks) -> re.Match[str] | None:
    """The first opening mark where a thought may begin."""
    for begin in marks.opens.finditer(text, place):
        quoted = any(_within(kind, text, place, begin) for kind in (_QUOTED, _FENCED))
        if not quoted and _BEGINS.search(text[place : begin.start()]):
            return begin
    return None


def _may_begin(behind: str, marks: Marks) -> bool:
    """Whether an answer follows a thought; it may be empty. Where channels name theirs, there is none before its name."""
    return marks.without is None or marks.begins.match(behind.lstrip()) is not None


def _within(kind: re.Pattern[str], text: str, place: int, mark: re.Match[str]) -> bool:
    """Whether a mark stands in a span of this kind, behind ``place``: what a thought quotes is no end of it."""
    spans = kind.finditer(text[place:])
    return any(place + span.start() < mark.start() and mark.end() < place + span.end() for span in spans)


def _start(spans: Sequence[_Span], marks: Marks) -> int:
    """Where the answer begins: behind the thoughts that come before it, and behind the mark of its own."""
    place = 0
    for span in spans:
        if not span.is_thought and _bare(span.text, marks):
            break
        place = span.end if span.is_thought else place
    behind = next((span for span in spans if span.end > place), None)
    begins = marks.begins.match(behind.text) if behind else None
    return place + (begins.end() if begins else 0)


def _bare(answer: str, marks: Marks) -> str:
    """A stretch of an answer without the marks of its own, and without closing marks that are said once more before it."""
    text = rest = answer.strip()
    while (again := marks.closes.match(rest)) and again.end():
        rest = rest[again.end() :].lstrip()
    text = rest or text  # nothing but closing marks is a loop of them
    begins = marks.begins.match(text)
    return marks.ends.sub("", text[begins.end() if begins else 0 :]).strip()
