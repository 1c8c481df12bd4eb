"""report.html: self-contained, small, and deaf to whatever a model or a user wrote."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from abliterate.evaluation.summary import Judged
from abliterate.evaluation.transcripts import Transcript
from abliterate.report.document import report_document, write_text
from abliterate.report.page import corrected, headline, interval, percent, report_page

HOSTILE = [
    "<script>alert(1)</script>",
    "</style></title><script src=https://evil.example/x.js></script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "</code></pre></details><iframe src=//evil.example>",
    "{{ 7 * 7 }}{% raw %}",
    "\u202egnp.exe\u202c \u2067rtl\u2069 مرحبا",
    "\x00\x01\x0b\x7f\u2028\u2029",
    "\ud800 lone \udfff",
    "<!--", "]]>", "&lt;script&gt;", "`${alert(1)}`",
]  # fmt: skip


class Elements(HTMLParser):
    """The elements of a page with their attributes, and its texts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def judged(name: str, texts: list[str], **fields: Any) -> Judged:
    made = [Transcript(name, str(i), fields.get("prompt", text), text, topic=fields.get("topic")) for i, text in enumerate(texts)]
    verdicts = {t.response: t.verdict() for t in {t.response: t for t in made}.values()}
    return [(t, verdicts[t.response]) for t in made]


def page_of(base: dict[str, Judged], edited: dict[str, Judged] | None = None, model: str = "some/model") -> str:
    run = {"settings": {"model": model, "max_new_tokens": 8}, "abliterate": "0"}
    roles = dict(zip(base, ("target", "keep", "baseline", "harmless"), strict=False))
    embedding = {"policy": "skip", "tied_to_unembedding": True}
    edit = {"tensors": 3, "worst_left": 1e-7, "worst_error": 1e-8, "embedding": embedding, "not_edited": []}
    chosen = {"name": "mean <b>", "bypass": 1.0, "stays": 0.5, "induce": 0.1, "kl": 0.01}
    selection = {"chosen": chosen, "candidates": [chosen], "relaxed": ["max_kl <i>"]}
    drift = {"set": next(iter(base)), "ids": ["0"], "kl_first_token": [0.25]}
    extra = (drift, selection, edit) if edited is not None else (None, None, None)
    report = report_document(run, roles, base, edited, *extra, margin=0.05)
    report["cost"] = {"seconds": {"edit": 100.0, "drift": 2.0}, "peak_rss_bytes": 10**9}
    return report_page(report, base, edited, {"mean": [0.5, 0.9, 1.0]} if edited is not None else None)


def hostile_page() -> str:
    name, topic = "<svg onload=alert(1)>", "<b onclick=alert(1)>"
    base = {name: judged(name, HOSTILE, topic=topic), "</table>": judged("</table>", HOSTILE)}
    return page_of(base, base, model='</title><script>alert("model")</script>')


def test_hostile_texts_add_no_element_and_no_handler() -> None:
    harmless = {f"set {i}": judged(f"set {i}", ["text"] * len(HOSTILE), topic="t" if i == 0 else None) for i in range(2)}
    expected, found = Elements(page_of(harmless, harmless)), Elements(hostile_page())
    assert [tag for tag, _ in found.tags] == [tag for tag, _ in expected.tags]
    assert not [a for _, attributes in found.tags for a in attributes if a.startswith("on")]


@pytest.mark.parametrize("text", [t for t in HOSTILE if t.isprintable()])
def test_hostile_texts_are_shown_as_they_are(text: str) -> None:
    assert text in Elements(hostile_page()).texts


def test_nothing_is_loaded_from_anywhere() -> None:
    elements = Elements(hostile_page()).tags
    assert not {tag for tag, _ in elements} & {"script", "link", "iframe", "object", "embed", "base", "form", "video", "audio"}
    keys = ("src", "href", "srcset", "xlink:href", "action")
    loaded = [attributes[key] or "" for _, attributes in elements for key in keys if key in attributes]
    assert loaded and all(url.startswith("data:image/svg+xml;base64,") for url in loaded)


def test_the_page_names_no_external_address() -> None:
    base = {"a": judged("a", ["Paris."])}
    assert not re.search(r"https?:|url\(|@import|(?:src|href)=.//", page_of(base, base))


def test_the_content_policy_forbids_scripts_and_loading() -> None:
    metas = [attributes for tag, attributes in Elements(hostile_page()).tags if tag == "meta"]
    policies = [a["content"] or "" for a in metas if a.get("http-equiv") == "Content-Security-Policy"]
    assert len(policies) == 1
    assert "default-src 'none'" in policies[0] and "script-src" not in policies[0] and "img-src data:" in policies[0]


def test_right_to_left_marks_stay_within_their_box() -> None:
    assert "unicode-bidi: isolate" in hostile_page()
    responses = [a for tag, a in Elements(hostile_page()).tags if tag == "div" and a.get("dir") == "auto"]
    assert len(responses) == 4 * len(HOSTILE)


def test_long_responses_in_four_sets_of_500_stay_below_two_megabytes(tmp_path: Path) -> None:
    base = {f"s{i}": judged(f"s{i}", ["<&'\"" * 25_000] * 500, prompt="why?", topic="t") for i in range(4)}
    write_text(page_of(base, base), tmp_path / "report.html")
    assert (tmp_path / "report.html").stat().st_size < 2_000_000


def test_long_prompts_stay_below_two_megabytes(tmp_path: Path) -> None:
    base = {f"s{i}": judged(f"s{i}", ["Paris."] * 500, prompt="why? " * 20_000) for i in range(4)}
    write_text(page_of(base), tmp_path / "report.html")
    assert (tmp_path / "report.html").stat().st_size < 2_000_000


def test_a_page_of_lone_surrogates_is_written(tmp_path: Path) -> None:
    write_text(hostile_page(), tmp_path / "report.html")
    assert "? lone ?" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_an_audit_speaks_of_no_edit() -> None:
    page = page_of({"a": judged("a", ["I can't help with that.", "Paris."])})
    assert "The edited tensors" not in page and "McNemar" not in page
    assert not [text for text in Elements(page).texts if text.startswith("edited")]


def paired(name: str, other: str, texts: list[str], langs: str = "en zh") -> Judged:
    names = langs.split()
    made = [
        Transcript(name, f"{name}{i}", "q", text, names[i % len(names)], topic=f"topic {i // 2}", pair=f"{other}{i}")
        for i, text in enumerate(texts)
    ]
    return [(t, t.verdict()) for t in made]


def test_an_audits_page_has_topics_by_language_and_the_pairs_in_words() -> None:
    no, yes = "I can't help with that.", "Paris."
    base = {"hot": paired("hot", "cold", [no, no, no, yes]), "cold": paired("cold", "hot", [yes] * 4)}
    texts = Elements(page_of(base)).texts
    assert {"hot, by topic and language", "cold, by topic and language"} <= set(texts)
    assert [text for text in texts if text.startswith("hot against its control cold: withheld 75.0 % against 0.0 % of 4 pairs")]
    assert [text for text in texts if text.startswith("hot, zh: withheld 50.0 %")]


def test_a_page_of_an_edit_has_both_outcomes_in_a_cell() -> None:
    no, yes = "I can't help with that.", "Paris."
    page = page_of({"a": paired("a", "b", [no, no, no], "en")}, {"a": paired("a", "b", [yes, yes, no], "en")})
    assert "<td>2 → 0</td>" in page and "<td>0 → 2</td>" in page and "<td>1 → 1</td>" in page


def test_what_was_not_measured_is_listed() -> None:
    texts = Elements(page_of({"a": judged("a", ["Paris."])})).texts
    assert {"controls", "drift", "sets.a.edited"} <= set(texts)


def test_the_headline_gives_the_rate_before_and_after() -> None:
    refusal, answer = judged("a", ["I can't help with that."] * 4), judged("a", ["Paris."] * 4)
    assert "a withheld 100.0 % → 0.0 %" in "".join(Elements(page_of({"a": refusal}, {"a": answer})).texts)


def test_the_headline_of_an_audit_counts_the_prompts() -> None:
    report = {"run": {"settings": {"model": "m"}}, "edit": None, "sets": {"a": {"n": 3}, "b": {"n": 4}}}
    assert headline(report) == "What m withholds, on 7 prompts it was asked."


def test_a_rate_of_nothing_is_shown_as_a_dash() -> None:
    empty = {"k": 0, "n": 0, "rate": None, "ci95": None}
    assert (percent(empty), interval(empty), percent(None), interval(None)) == ("–", "", "–", "")


def test_a_rate_is_shown_with_counts_and_interval() -> None:
    rate = {"k": 1, "n": 4, "rate": 0.25, "ci95": [0.0456, 0.6994]}
    assert (percent(rate), interval(rate)) == ("25.0 %", "1/4, 95 % 4.6–69.9")


def test_the_corrected_rate_stands_beside_the_withheld_one() -> None:
    page = " ".join(Elements(page_of({"bad": judged("bad", ["I can't help with that.", "Paris."])})).texts)
    assert re.search(r"corrected \d", page) and "Judged by rules" in page and "Rogan and Gladen" in page
    assert corrected({"rate": 0.5, "corrected": {"rate": 0.625, "ci95": [0.1, 0.987]}}) == "corrected 62.5 %, 95 % 10.0–98.7"
    assert corrected({"rate": 0.5, "corrected": None}) == corrected({"rate": 0.5}) == corrected(None) == ""
