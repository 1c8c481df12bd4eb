"""The reader of transcripts in a real Chromium: the start of each is in view, the focus stays, keys act where they are said to act."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import chromium
import pytest
from reports import audit_report, judged, run_report

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
