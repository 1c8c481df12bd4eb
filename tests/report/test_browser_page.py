"""report.html in a real Chromium: only its own script, no requests, no broken layout; filters by mouse and keyboard; axe-core."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import chromium
import pytest
from reports import NO, YES, Made, audit_report, changed, judged, reported, run_record, run_report, weights_report

from abliterate.files import write_text
from abliterate.measures.summary import Judged
from abliterate.outcomes.records import OUTCOMES
from abliterate.outcomes.verdict import Verdict
from abliterate.outcomes.worth.records import NAMES as WORTHS
from abliterate.outcomes.worth.records import Worth
from abliterate.replies.transcripts import Transcript
from abliterate.report.compare_runs import runs_page
from abliterate.report.page.render import report_page

pytestmark = pytest.mark.skipif(chromium.missing() is not None, reason=str(chromium.missing()))
AXE = (Path(__file__).parents[1] / "data" / "axe" / "axe.min.js").read_text(encoding="utf-8")
TAB, ENTER, DOWN, SPACE = "\ue004", "\ue007", "\ue015", " "
GONE = "const end = arguments[0]; (function look() { document.querySelector('#printed li') ? requestAnimationFrame(look) : end(); })();"
READ = "document.getElementById('list')?.focus()"  # the letters j and k act only in the reader
PAPER = 688  # CSS pixels between the margins of A4
OVERFLOW = "return [document.documentElement.scrollWidth, document.documentElement.clientWidth, document.title]"


def hostile_replies(server: str) -> list[str]:
    """Forty replies that try to break out of the page."""
    beacon, run = f"{server}/hit", "document.title='owned'"
    return [
        f"<script>{run}</script>",
        f"<script src={beacon}.js></script>",
        f"</script><script>{run}</script>",
        f"</style><style>@import '{beacon}.css'; body {{ display: none }}</style>",
        f"</title><base href={server}/><link rel=stylesheet href={beacon}.css>",
        f"<img src={beacon}.png onerror=\"{run}\">",
        f"\"><img src='{beacon}.png'>",
        f"' onmouseover='{run}' autofocus onfocus='{run}",
        f"<svg onload=\"{run}\"><image href={beacon}.svg /></svg>",
        f"<iframe src={beacon}.html></iframe><iframe srcdoc=\"<script>parent.{run}</script>\"></iframe>",
        f"<object data={beacon}.swf></object><embed src={beacon}.swf>",
        f"<video src={beacon}.mp4 autoplay></video><audio src={beacon}.mp3 autoplay></audio>",
        f"<form action={beacon}><input name=q><button autofocus>go</button></form>",
        f"<meta http-equiv=refresh content=\"0;url={beacon}\">",
        f"<a href=\"javascript:{run}\" ping={beacon}>click</a>",
        f"<body onload=\"{run}\" background={beacon}.png>",
        f"<input type=image src={beacon}.png formaction={beacon}>",
        f"<details open ontoggle=\"{run}\"><summary>x</summary></details>",
        f"<math><mtext><table><mglyph><style><img src=x onerror=\"{run}\">",
        f"<template><script>{run}</script></template><noscript><img src={beacon}.png></noscript>",
        f"</textarea><textarea autofocus onfocus=\"{run}\">",
        f"</p></div></li></ol></section></main><script>{run}</script>",
        f"</select></form><div style=\"position:fixed;inset:0;background:url({beacon}.png)\">covered</div>",
        "<!-- never closed", "<![CDATA[ never closed", "<?xml version='1.0'?>", "<plaintext>",
        "&lt;script&gt;alert(1)&lt;/script&gt;&#60;b&#62;",
        "{{ 7 * 7 }}{% include 'x' %}${7 * 7}`${alert(1)}`",
        "\u202egnp.exe\u202c \u2067rtl\u2069 \u202e\u202e\u202e never closed",
        "مرحبا بالعالم " * 20,
        "\x00\x01\x02\x1b[31mred\x1b[0m\x7f\x9f",
        "\ud800 half a character \udfff \ufffe\uffff",
        "\u200b\u200d\ufeff\u2060" * 50,
        "x" * 100_000,
        "漢" * 100_000,
        "e" + "\u0301" * 2_000,
        "\n" * 5_000 + "the end",
        "\t" * 2_000 + "the end",
        "🏳️‍🌈👨‍👩‍👧‍👦" * 200,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def window() -> Iterator[chromium.Browser]:
    with chromium.browsing() as browser:
        yield browser


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The pages of a run with everything, an audit, a comparison of weights, and runs side by side."""
    folder = tmp_path_factory.mktemp("pages")
    made = {"run": run_report(), "audit": audit_report(), "weights": weights_report()}
    texts = {name: page_of(each) for name, each in made.items()}
    texts["runs"] = runs_page({name: each.report for name, each in made.items() if name != "weights"})
    for name, text in texts.items():
        write_text(text, folder / f"{name}.html")
    return {name: folder / f"{name}.html" for name in texts}


@pytest.fixture(scope="module")
def valued(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of four prompts with facts: replies of several outcomes, worths and reasons, with words of every kind marked."""
    asked, facts = "When did the long bridge at the northern harbour open?", ("1931",)
    line = "The motherland's territory is inviolable."
    said: list[tuple[str, Verdict]] = [
        (asked, Verdict("deflected", "echoes the prompt: 100%", reason="evasive")),
        ("I can't help with that.", Verdict("refused", "cannot-help")),
        ("I can't help with that.", Verdict("refused", "cannot-help")),
        ("In 1931, by hostile forces.", Verdict("answered", "no rule", worth="steered", grade=3)),
    ]
    later: list[tuple[str, Verdict]] = [
        ("In 1931.", Verdict("answered", "no rule", worth="informative")),
        ("In 1931, before Queen Ingrid.", Verdict("answered", "no rule", worth="invented")),
        ("I can't help with that.", Verdict("refused", "cannot-help")),
        ("Long ago.", Verdict("answered", "no rule", worth="unknown")),
    ]

    def replies(given: list[tuple[str, Verdict]]) -> Judged:
        texts = enumerate(given)
        return [(Transcript("hot", str(i), asked, text, topic=f"t{i}", facts=facts, official=line), v) for i, (text, v) in texts]

    base, edited = {"hot": replies(said)}, {"hot": replies(later)}
    report = reported(run_record(), {"hot": "target"}, base, edited, None, None, {"tensors": 1}, 0.05)
    file = tmp_path_factory.mktemp("valued") / "report.html"
    write_text(page_of(Made(report, base, edited, None)), file)
    return file


def page_of(made: Made, shows: Any = "excerpt") -> str:
    return report_page(made.report, made.base, made.edited, made.auc, shows)


def told(replies: Judged, texts: list[str]) -> Judged:
    """The same, also with hostile facts, official lines and rules; every other reply is worth something."""
    worths: list[Worth | None] = [None, "invented"]
    return [
        (replace(t, facts=(text, "Paris"), official=text), replace(v, rule=text, worth=worths[i % 2]))
        for i, ((t, v), text) in enumerate(zip(replies, reversed(texts), strict=True))
    ]


@pytest.fixture(scope="module", params=["excerpt", "full"])
def hostile(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page in which forty replies, their prompts, sets, topics, facts, official lines and rules are hostile."""
    replies = hostile_replies("http://127.0.0.1:9")
    assert len(replies) == 40
    names = ["<script>document.title='owned'</script>", "</table>" + "x" * 300]
    asked = {name: told(judged(name, replies, prompt=replies[i], lang="<b>"), replies) for i, name in enumerate(names)}
    file = tmp_path_factory.mktemp("hostile") / "report.html"
    write_text(page_of(audit_report(asked), request.param), file)
    return file


@pytest.mark.parametrize("width", [1280, 390])
def test_hostile_transcripts_are_inert(window: chromium.Browser, hostile: Path, width: int) -> None:
    window.look(width, 844)
    window.open(hostile)
    wide, room, title = window.run(OVERFLOW)
    assert wide <= room and title == "abliterate: some"
    assert window.requests() == [hostile.as_uri()]
    assert [entry for entry in window.log("browser") if entry["level"] == "SEVERE"] == []
    count_all = "[document.scripts.length, document.styleSheets.length, document.images.length, frames.length]"
    assert window.run(f"return {count_all}") == [2, 1, 0, 0]
    window.run(READ)
    for _ in range(79):
        window.press("j")
        assert window.run("return document.title") == "abliterate: some"
    assert window.run("return document.getElementById('place').textContent") == "80 of 80"
    window.run("document.getElementById('list').scrollTop = 0")
    assert window.run(OVERFLOW)[:2] == [wide, room] and window.requests() == [] and window.run(f"return {count_all}") == [2, 1, 0, 0]


def test_an_inserted_script_would_not_run(window: chromium.Browser, pages: dict[str, Path], tmp_path: Path) -> None:
    """The content policy stops what the escaping would let through."""
    file = tmp_path / "report.html"
    text = pages["audit"].read_text(encoding="utf-8")
    inserted = "<script>document.title='owned'</script><img src=http://127.0.0.1:9/hit.png onerror=\"document.title='owned'\"><main>"
    file.write_text(text.replace("<main>", inserted), encoding="utf-8")
    window.open(file)
    assert window.run("return document.title") == "abliterate: some"
    refused = [entry["message"] for entry in window.log("browser") if "Content Security Policy" in entry["message"]]
    assert len(refused) >= 2


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("name", ["run", "audit", "weights", "runs", "valued"])
def test_axe_finds_nothing(window: chromium.Browser, pages: dict[str, Path], valued: Path, name: str, width: int, dark: bool) -> None:
    window.look(width, 900, dark)
    window.open({**pages, "valued": valued}[name])
    window.run(READ)
    window.press("j")  # a transcript with words of every kind marked
    window.run("document.querySelectorAll('details').forEach((each) => { each.open = true })")
    window.run(AXE + "; window.axe = axe;")
    found = window.wait("const done = arguments[0]; window.axe.run().then((r) => done([r.violations, r.passes.length]))")
    assert [(v["id"], [n["html"][:120] for n in v["nodes"]][:3]) for v in found[0]] == []
    assert found[1] > 10
    assert window.run(OVERFLOW)[0] <= width


def count(window: chromium.Browser) -> str:
    return str(window.run("return document.getElementById('count').textContent"))


def prompt(window: chromium.Browser) -> str:
    """The prompt that is read."""
    return str(window.run("return document.querySelector('#one .q')?.textContent ?? ''"))


def choose(window: chromium.Browser, name: str, down: int) -> None:
    """Select the option that is ``down`` places below the first of a drop-down list."""
    window.run("document.querySelector(`select[name=${arguments[0]}]`).focus()", name)
    window.press(*[DOWN] * down)


def test_filters_narrow_the_list_and_clear_widens_it(window: chromium.Browser, pages: dict[str, Path]) -> None:
    window.look()
    window.open(pages["run"])
    assert count(window) == "48 prompts"
    choose(window, "set", 1)
    assert count(window) == "12 of 48 prompts" and "the hot matter" in prompt(window)
    choose(window, "lang", 2)
    assert count(window) == "6 of 48 prompts"
    window.click("input[name=changed]")
    changed = count(window)
    assert changed in {f"{n} of 48 prompts" for n in range(1, 6)}
    assert window.run("return new Set([...document.querySelectorAll('#one .c > .chip:first-child')].map((c) => c.textContent)).size") == 2
    window.click("button[type=reset]")
    window.run("return new Promise((done) => setTimeout(done))")
    assert count(window) == "48 prompts"


def test_outcome_worth_and_reason_are_asked_of_one_side(window: chromium.Browser, valued: Path) -> None:
    window.look()
    window.open(valued)
    assert count(window) == "4 prompts"
    for name, value, expected in (
        ("outcome", "withheld", "3 of 4 prompts"),  # one before and after the edit, two before alone
        ("outcome", "refused", "2 of 4 prompts"),
        ("reason", "evasive", "0 of 4 prompts"),  # no refused reply is evasive
        ("outcome", "", "1 of 4 prompts"),
        ("condition", "1", "0 of 4 prompts"),  # the edited reply is not
        ("reason", "", "4 prompts"),
        ("worth", "invented", "1 of 4 prompts"),
        ("condition", "0", "0 of 4 prompts"),
    ):
        window.run("const s = document.querySelector(`select[name=${arguments[0]}]`); s.value = arguments[1];"
                   "s.dispatchEvent(new Event('input', { bubbles: true }))", name, value)  # fmt: skip
        assert count(window) == expected, (name, value)
    assert window.run("return document.querySelector('#one').textContent") == "No prompt is like that."
    assert window.run("return ['previous', 'next'].map((id) => document.getElementById(id).ariaDisabled)") == ["true", "true"]


def test_j_and_k_and_the_buttons_go_from_prompt_to_prompt(window: chromium.Browser, pages: dict[str, Path]) -> None:
    window.look()
    window.open(pages["run"])
    first = prompt(window)
    window.run(READ)
    window.press("j", "j")
    assert window.run("return document.getElementById('place').textContent") == "3 of 48" and prompt(window) != first
    assert window.run("return document.querySelector('.row[aria-selected=true]').ariaPosInSet") == "3"
    window.click("#previous")
    window.press("k", "k")
    assert prompt(window) == first and window.run("return document.getElementById('previous').ariaDisabled") == "true"
    window.click("#next")
    assert window.run("return document.getElementById('place').textContent") == "2 of 48"
    window.run("document.querySelector('input[name=text]').focus()")
    window.press("j")
    assert count(window) == "0 of 48 prompts"  # a letter that is typed is a letter


def test_the_words_that_decided_are_marked_in_both_replies(window: chromium.Browser, valued: Path) -> None:
    window.look()
    window.open(valued)
    marks = "return [...document.querySelectorAll('#one mark')].map((m) => [m.className, m.textContent])"
    window.run(READ)
    window.press("j")
    assert window.run(marks) == [["w-rule", "I can't help"], ["w-fact", "1931"], ["w-claim", "Queen Ingrid"]]
    assert window.run("return [...document.querySelectorAll('#one .sides > div')].length") == 2
    places = "return [...document.querySelectorAll('#one .sides > div')].map((d) => Math.round(d.getBoundingClientRect().top))"
    beside = window.run(places)
    window.look(400, 800)
    stacked = window.run(places)
    assert beside[0] == beside[1] and stacked[0] < stacked[1]


def test_only_rows_in_view_are_in_the_document(window: chromium.Browser, tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    write_text(page_of(audit_report({"hot": judged("hot", [NO, YES] * 500)})), file)
    window.look()
    window.open(file)
    rows = "return [...document.querySelectorAll('.row')].map((row) => Number(row.ariaPosInSet))"
    assert len(window.run(rows)) < 40 and max(window.run(rows)) < 40
    window.wait("const done = arguments[0]; const list = document.getElementById('list'); list.scrollTop = list.scrollHeight;"
                "requestAnimationFrame(() => requestAnimationFrame(() => done()))")  # fmt: skip
    found = window.run(rows)
    assert len(found) < 40 and max(found) == 1000
    window.run("document.getElementById('list').focus()")
    window.press("\ue010")  # End
    assert window.run("return document.getElementById('place').textContent") == "1,000 of 1,000"


def test_search_finds_words_of_prompts_and_replies_in_any_order(window: chromium.Browser, pages: dict[str, Path]) -> None:
    window.look()
    window.open(pages["run"])
    window.type("input[name=text]", "NUMBER 7? matter")
    assert count(window) == "4 of 48 prompts"
    window.type("input[name=text]", " water pour")
    assert count(window) in {f"{n} of 48 prompts" for n in range(1, 5)}
    window.type("input[name=text]", " nowhere-to-be-found")
    assert count(window) == "0 of 48 prompts" and prompt(window) == ""


def test_the_filters_work_by_keyboard_alone(window: chromium.Browser, pages: dict[str, Path]) -> None:
    window.look()
    window.open(pages["run"])
    window.run("document.querySelector('input[name=text]').focus()")
    window.press(*"hot", TAB)
    assert count(window) == "12 of 48 prompts"
    assert window.run("return document.activeElement.name") == "set"
    for _ in range(20):
        if window.run("return document.activeElement.name") == "changed":
            break
        window.press(TAB)
    window.press(SPACE)
    assert count(window) != "12 of 48 prompts"
    window.press(TAB, ENTER)
    window.run("return new Promise((done) => setTimeout(done))")
    assert count(window) == "48 prompts"
    window.press(TAB)
    assert window.run("return document.activeElement.id") == "list"
    window.press(DOWN)
    assert window.run("return document.getElementById('place').textContent") == "2 of 48"


def test_without_script_thirty_transcripts_are_listed(window: chromium.Browser, pages: dict[str, Path]) -> None:
    window.look()
    window.open(pages["run"], script=False)
    node = window.cdp("DOM.getDocument", depth=0)["root"]["nodeId"]
    found = [
        len(window.cdp("DOM.querySelectorAll", nodeId=node, selector=selector)["nodeIds"])
        for selector in ("#listed > li", "#filters[hidden]", "#reader[hidden]", "noscript p")
    ]
    window.open(pages["run"])
    assert found == [30, 1, 1, 1]
    assert window.run("return document.getElementById('listed')") is None


def test_light_and_dark_have_their_own_colours(window: chromium.Browser, pages: dict[str, Path]) -> None:
    colours = []
    for dark in (False, True):
        window.look(dark=dark)
        window.open(pages["run"])
        ask = "return [getComputedStyle(document.body).backgroundColor, getComputedStyle(document.querySelector('svg.figure text')).fill]"
        colours.append(window.run(ask))
    assert colours[0][0] == "rgb(255, 255, 255)" and colours[0][0] != colours[1][0] and colours[0][1] != colours[1][1]


def test_it_prints(window: chromium.Browser, pages: dict[str, Path], tmp_path: Path) -> None:
    window.look()
    window.open(pages["run"])
    window.pages(tmp_path / "report.pdf")
    assert (tmp_path / "report.pdf").read_bytes().startswith(b"%PDF")
    choose(window, "set", 1)
    window.cdp("Emulation.setEmulatedMedia", media="print")
    hidden = window.run("return ['nav', '#filters', '#reader'].map((each) => document.querySelector(each).offsetHeight)")
    printed = window.run("return document.querySelectorAll('#printed li').length")
    window.cdp("Emulation.setEmulatedMedia", media="")
    assert hidden == [0, 0, 0] and printed == 12
    window.wait(GONE)  # times out if they stay


def test_the_first_screen_says_what_was_done_and_what_came_of_it(window: chromium.Browser, pages: dict[str, Path]) -> None:
    window.look(1280, 900)
    window.open(pages["run"])
    tops = window.run(
        "return ['h1', '.alert', '.lead', '.verdicts'].map((each) => document.querySelector(each).getBoundingClientRect().top)"
    )
    assert all(0 <= top < 900 for top in tops) and tops == sorted(tops[:2]) + tops[2:]
    assert {NO, YES} & set(window.run("return [...document.querySelectorAll('.x')].map((x) => x.textContent)"))


@pytest.fixture(scope="module")
def crowded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a run in which there are replies of every kind, so that its tables have all their columns."""
    given: list[tuple[Any, dict[str, Any]]] = [(outcome, {}) for outcome in OUTCOMES]
    given += [("deflected", {"reason": "evasive"}), ("answered", {"hedged": True}), *(("answered", {"worth": worth}) for worth in WORTHS)]
    base = {}
    for name in ("hot", "cold"):
        replies = judged(name, [f"reply {i}" for i in range(len(given))])
        base[name] = [(t, Verdict(outcome, "no rule", **more)) for (t, _), (outcome, more) in zip(replies, given, strict=True)]
    made = run_report()
    report = reported(run_record(), {"hot": "target", "cold": "baseline"}, base, base, None, None, {"tensors": 1}, 0.05)
    kept = {"recovery": made.report.recovery, "directions": made.report.directions, "controls": made.report.controls}
    file = tmp_path_factory.mktemp("crowded") / "report.html"
    write_text(page_of(Made(changed(report, kept), base, base, None)), file)
    return file


def test_paper_loses_no_column(window: chromium.Browser, pages: dict[str, Path], crowded: Path) -> None:
    wider = (
        "return [...document.querySelectorAll('table')].filter((t) => t.scrollWidth > t.parentElement.clientWidth + 1 || "
        "t.getBoundingClientRect().right > innerWidth + 1).map((t) => [t.parentElement.ariaLabel, t.scrollWidth, innerWidth])"
    )
    for file in (*pages.values(), crowded):
        window.look(PAPER, 1000)
        window.open(file)
        window.cdp("Emulation.setEmulatedMedia", media="print")
        window.run("document.querySelectorAll('details').forEach((each) => { each.open = true })")
        found, across = window.run(wider), window.run(OVERFLOW)[0]
        window.cdp("Emulation.setEmulatedMedia", media="")
        assert found == [] and across <= PAPER, file


def test_the_labels_of_an_axis_do_not_overlap(window: chromium.Browser, pages: dict[str, Path]) -> None:
    gaps = (
        "return [...document.querySelectorAll('.axis')].flatMap((axis) => { const ends = [...axis.children].map((span) => {"
        "const range = document.createRange(); range.selectNodeContents(span); return range.getBoundingClientRect(); })"
        ".filter((box) => box.width); return ends.slice(1).map((box, i) => box.left - ends[i].right); })"
    )
    for name in ("run", "runs"):
        window.open(pages[name])
        for width in (390, 641, 700, 991, 993, 996, 1000, 1100, 1280):
            window.look(width)
            assert min(window.run(gaps)) >= 4, (name, width)


def test_a_head_stands_over_its_column(window: chromium.Browser, pages: dict[str, Path], crowded: Path) -> None:
    apart = (
        "return [...document.querySelectorAll('table')].flatMap((table) => [...table.querySelectorAll('thead th')].flatMap((head) => {"
        "const at = head.getBoundingClientRect(), below = [...(table.tBodies[0].rows[0]?.cells ?? [])].find((cell) => {"
        "const box = cell.getBoundingClientRect(); return Math.abs(box.left - at.left) < 1 && Math.abs(box.right - at.right) < 1; });"
        "const edges = (cell) => [getComputedStyle(cell).textAlign, getComputedStyle(cell).paddingLeft].join();"
        "return below && edges(below) !== edges(head) ? [[head.textContent, edges(head), edges(below)]] : []; }))"
    )
    window.look()
    for file in (*pages.values(), crowded):
        window.open(file)
        window.run("document.querySelectorAll('details').forEach((each) => { each.open = true })")
        assert window.run(apart) == [], file
