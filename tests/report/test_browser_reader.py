"""The reader of transcripts in a real Chromium: the start of each is in view, the focus stays, keys act where they are said to act."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import chromium
import pytest
from reports import YES, audit_report, judged, run_report

from abliterate.config import Transcripts
from abliterate.files import write_text
from abliterate.report.page.render import report_page

pytestmark = pytest.mark.skipif(chromium.missing() is not None, reason=str(chromium.missing()))
PLACE = "return document.getElementById('place').textContent"
ENTER, DOWN = "\ue007", "\ue015"


@pytest.fixture(scope="module")
def window() -> Iterator[chromium.Browser]:
    with chromium.browsing() as browser:
        yield browser


def written(folder: Path, texts: list[str], shows: Transcripts = "full") -> Path:
    """The page of one set with these replies."""
    made = audit_report({"hot": judged("hot", texts)})
    write_text(report_page(made.report, made.base, made.edited, made.auc, shows), folder / "report.html")
    return folder / "report.html"


def focus(window: chromium.Browser, name: str) -> None:
    window.run("document.getElementById(arguments[0]).focus()", name)


def focused(window: chromium.Browser) -> str:
    return str(window.run("return document.activeElement.id"))


def test_after_going_back_the_list_and_the_filters_agree(window: chromium.Browser, tmp_path: Path) -> None:
    made = run_report()
    write_text(report_page(made.report, made.base, made.edited, made.auc), tmp_path / "report.html")
    write_text("<!doctype html><title>elsewhere</title>", tmp_path / "elsewhere.html")
    window.look()
    window.open(tmp_path / "report.html")
    window.run("document.querySelector('select[name=set]').focus()")
    window.press(DOWN)
    said = "return [document.querySelector('select[name=set]').value, document.getElementById('count').textContent]"
    before = window.run(said)
    assert before[1] == "12 of 48 prompts"
    window.open(tmp_path / "elsewhere.html")
    window.ask("/back", {})
    assert window.run(said) == before


def test_the_start_of_the_next_transcript_is_in_view(window: chromium.Browser, tmp_path: Path) -> None:
    file = written(tmp_path, ["A long line of a long reply.\n" * 400] * 4)
    for width, way in ((1280, "j"), (900, "j"), (390, "j"), (1280, "next"), (900, "next"), (390, "next")):
        window.look(width, 800)
        window.open(file)
        focus(window, "next")
        window.run("scrollTo(0, document.querySelector('.read').getBoundingClientRect().top + 5000)")
        if way == "j":
            window.press("j")
        else:
            window.run("document.getElementById('next').click()")
        assert window.run(PLACE) == "2 of 4"
        top, hidden = window.run(
            "const top = document.querySelector('#one .q').getBoundingClientRect().top;"
            "return [top, document.querySelector('.steps').getBoundingClientRect().bottom]"
        )
        assert max(0, hidden) <= top < 400, (width, way)


def test_the_place_is_said_and_the_focus_stays_at_both_ends(window: chromium.Browser, tmp_path: Path) -> None:
    window.look()
    window.open(written(tmp_path, [YES] * 3))
    assert window.run("const p = document.getElementById('place'); return [p.role, p.textContent]") == ["status", "1 of 3"]
    for button, end in (("next", "3 of 3"), ("previous", "1 of 3")):
        focus(window, button)
        window.press(*[ENTER] * 4)
        assert window.run(PLACE) == end and focused(window) == button
        assert window.run("return document.getElementById(arguments[0]).ariaDisabled", button) == "true"
        window.press("k" if button == "next" else "j")
        assert window.run(PLACE) == "2 of 3"
        assert window.run("return document.getElementById(arguments[0]).ariaDisabled", button) == "false"


def test_letters_act_only_in_the_reader_and_the_page_says_so(window: chromium.Browser, tmp_path: Path) -> None:
    window.look()
    window.open(written(tmp_path, [YES] * 5))
    assert "The keys work while the focus is in this reader." in window.run("return document.getElementById('reader').innerText")
    window.press("j")
    assert window.run(PLACE) == "1 of 5"  # nothing has the focus
    window.run("document.querySelector('nav a').focus()")
    window.press("j", "k", "j")
    assert window.run(PLACE) == "1 of 5"
    for place, name in enumerate(("list", "next", "previous", "one"), 2):
        focus(window, name)
        window.press("j")
        assert window.run(PLACE) == f"{place} of 5"
    window.press("k")
    assert window.run(PLACE) == "4 of 5"
    window.run("document.activeElement.blur()")
    window.click("#one .x")  # a click into the transcript is enough
    window.press("k")
    assert window.run(PLACE) == "3 of 5"
