"""report.html: self-contained, small, and not affected by what a model or a user wrote."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from reports import GONE, PLAIN_POINT, Made, audit_report, changed, reported, run_report, weights_report

from abliterate.files import write_text
from abliterate.measures.parts.rates import Corrected, Rate, Withheld
from abliterate.measures.summary import Judged
from abliterate.outcomes.verdict import Verdict
from abliterate.replies.transcripts import Transcript
from abliterate.report.first import headline
from abliterate.report.numbers import corrected, interval, percent
from abliterate.report.page.render import LIMIT, report_page

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
    """The elements of a page with their attributes, and the page's texts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.cdata_elem is None:  # neither a script, its data, nor style
            self.texts.append(data)


def words(page: str) -> str:
    """The text of the page that a reader sees, in one line."""
    return " ".join(" ".join(Elements(page).texts).split())


def judged(name: str, texts: list[str], **fields: Any) -> Judged:
    made = [Transcript(name, str(i), fields.get("prompt", text), text, topic=fields.get("topic")) for i, text in enumerate(texts)]
    verdicts = {t.response: t.verdict() for t in {t.response: t for t in made}.values()}
    return [(t, verdicts[t.response]) for t in made]


def page_of(base: dict[str, Judged], edited: dict[str, Judged] | None = None, model: str = "some/model", shows: Any = "excerpt") -> str:
    asked = {"prompts": list(base)} if edited is None else {"target": list(base)}
    run = {"settings": {"model": model, **asked, "max_new_tokens": 8}, "abliterate": "0"}
    roles = dict(zip(base, ("target", "keep", "baseline", "harmless"), strict=False))
    embedding = {"policy": "skip", "tied_to_unembedding": True}
    edit = {"tensors": 3, "worst_left": 1e-7, "worst_error": 1e-8, "embedding": embedding, "not_edited": []}
    chosen = {"name": "mean <b>", "bypass": 1.0, "stays": 0.5, "induce": 0.1, "kl": 0.01}
    selection = {"chosen": chosen, "candidates": [chosen], "relaxed": ["max_kl <i>"]}
    drift = {"set": next(iter(base)), "ids": ["0"], "kl_first_token": [0.25]}
    extra = (drift, selection, edit) if edited is not None else (None, None, None)
    report = reported(run, roles, base, edited, *extra, margin=0.05)
    report = changed(report, {"cost": {"seconds": {"edit": 100.0, "drift": 2.0}, "peak_rss_bytes": 10**9}})
    return report_page(report, base, edited, {"mean": [0.5, 0.9, 1.0]} if edited is not None else None, shows)


def shown(made: Made, **changes: Any) -> str:
    return report_page(changed(made.report, changes), made.base, made.edited, made.auc)


def hostile_page() -> str:
    name, topic = "<svg onload=alert(1)>", "<b onclick=alert(1)>"
    base = {name: judged(name, HOSTILE, topic=topic), "</table>": judged("</table>", HOSTILE)}
    return page_of(base, base, model='</title><script>alert("model")</script>')


@pytest.fixture(scope="module")
def hostile() -> Elements:
    return Elements(hostile_page())


@pytest.fixture(scope="module")
def whole() -> str:
    return shown(run_report())


def test_hostile_texts_add_no_element_and_no_handler(hostile: Elements) -> None:
    harmless = {f"set {i}": judged(f"set {i}", HOSTILE, topic="t" if i == 0 else None) for i in range(2)}
    tame = {name: [(t, v) for t, v in replies] for name, replies in harmless.items()}
    texts = {name: [(Transcript(name, t.id, "q", "text", topic=t.topic), v) for t, v in replies] for name, replies in tame.items()}
    expected = Elements(page_of(texts, texts))
    assert [tag for tag, _ in hostile.tags] == [tag for tag, _ in expected.tags]
    assert not [a for _, attributes in hostile.tags for a in attributes if a.startswith("on")]


@pytest.mark.parametrize("text", [t for t in HOSTILE if t.isprintable()])
def test_hostile_texts_are_shown_as_they_are(text: str, hostile: Elements) -> None:
    assert text in hostile.texts


@pytest.mark.parametrize("made", [run_report, audit_report, weights_report])
def test_nothing_is_loaded_from_anywhere(made: Any) -> None:
    tags = Elements(shown(made())).tags
    assert not {tag for tag, _ in tags} & {"link", "iframe", "object", "embed", "base", "video", "audio", "img", "image", "foreignobject"}
    references = [a[key] or "" for _, a in tags for key in ("src", "href", "srcset", "xlink:href", "action") if key in a]
    assert references and all(reference.startswith("#") for reference in references)


def test_the_page_names_no_external_address(whole: str) -> None:
    assert not re.search(r"https?:|url\((?!#)|@import|(?:src|href)=.//", whole)


def policy_of(page: str) -> dict[str, str]:
    metas = [attributes for tag, attributes in Elements(page).tags if tag == "meta"]
    policies = [a["content"] or "" for a in metas if a.get("http-equiv") == "Content-Security-Policy"]
    assert len(policies) == 1
    return dict(part.strip().split(" ", 1) for part in policies[0].split(";"))  # type: ignore[arg-type]


def test_the_content_policy_allows_the_pages_own_script_and_style_and_nothing_else(whole: str) -> None:
    policy = policy_of(whole)
    assert policy["default-src"] == policy["base-uri"] == policy["form-action"] == "'none'"
    for directive, tag in (("script-src", "script"), ("style-src", "style")):
        inner = re.findall(rf"<{tag}>(.*?)</{tag}>", whole, re.DOTALL)
        assert len(inner) == 1
        digest = base64.b64encode(hashlib.sha256(inner[0].encode()).digest()).decode()
        assert policy[directive] == f"'sha256-{digest}'"


def test_no_element_has_a_style_of_its_own(whole: str) -> None:
    assert not [tag for tag, attributes in Elements(whole).tags if "style" in attributes]


def test_no_two_elements_have_one_id_and_every_reference_has_its_target(whole: str) -> None:
    tags = Elements(whole).tags
    ids = [a["id"] for _, a in tags if "id" in a]
    assert len(ids) == len(set(ids))
    links = {(a["href"] or "").removeprefix("#") for _, a in tags if "href" in a}
    assert links | set(re.findall(r"url\(#([^)]+)\)", whole)) <= set(ids)


def test_every_picture_has_a_name_or_is_hidden_from_screen_readers(whole: str) -> None:
    pictures = [a for tag, a in Elements(whole).tags if tag == "svg"]
    assert pictures and all(a.get("role") == "img" or a.get("aria-hidden") == "true" for a in pictures)
    assert whole.count("<title") >= sum(a.get("role") == "img" for a in pictures)


def test_every_reply_stands_in_a_box_of_its_own_direction(hostile: Elements) -> None:
    assert "unicode-bidi: isolate" in hostile_page()
    replies = [a for tag, a in hostile.tags if tag == "p" and a.get("class") == "x"]
    assert len(replies) == 4 * len(HOSTILE) and all(a.get("dir") == "auto" for a in replies)


def test_control_characters_and_half_characters_are_shown_as_signs(tmp_path: Path) -> None:
    write_text(hostile_page(), tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "\ufffd lone \ufffd" in text and "␀␁␋␡" in text
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f]", text)


def test_long_responses_in_four_sets_of_500_stay_below_two_megabytes(tmp_path: Path) -> None:
    base = {f"s{i}": judged(f"s{i}", ["<&'\"" * 25_000] * 500, prompt="why?", topic="t") for i in range(4)}
    write_text(page_of(base, base), tmp_path / "report.html")
    assert (tmp_path / "report.html").stat().st_size < 2_000_000


def test_long_prompts_stay_below_two_megabytes(tmp_path: Path) -> None:
    base = {f"s{i}": judged(f"s{i}", ["Paris."] * 500, prompt="why? " * 20_000) for i in range(4)}
    write_text(page_of(base), tmp_path / "report.html")
    assert (tmp_path / "report.html").stat().st_size < 2_000_000


def test_ten_thousand_transcripts_fit_below_two_megabytes_and_what_is_left_out_is_said() -> None:
    replies = ["对不起，我无法回答这个问题。" * 30, "Heat the water. " * 30, *["Paris is a city. " * 20] * 2498]
    base = {f"s{i}": judged(f"s{i}", replies, prompt="why? " * 40) for i in range(4)}
    page = page_of(base, base)
    assert LIMIT * 0.9 < len(page.encode()) < 2_000_000
    found = re.search(r"for (\d+) of 10000 prompts: as many as this file has room for", words(page))
    rows = data_of(page)["rows"]
    assert found and int(found[1]) == len(rows) > 1000
    assert sum("对不起" in str(row[6]) for row in rows) == 4 and page.count('<p class="x" dir="auto" lang="en">') == 60


def test_whole_transcripts_are_shown_where_they_are_asked_for() -> None:
    long = "tea and water " * 100_000
    base = {"a": judged("a", [long])}
    assert long in page_of(base, shows="full") and long not in page_of(base)
    assert "Whole replies" in words(page_of(base, shows="full"))


def test_no_transcripts_are_shown_where_none_are_asked_for() -> None:
    page = page_of({"a": judged("a", ["a reply of its own", "Paris."], prompt="a prompt of its own")}, shows="none")
    assert "a reply of its own" not in page and "a prompt of its own" not in page and 'id="filters"' not in page
    assert "No replies are shown here" in words(page)


def data_of(page: str) -> Any:
    """What the page gives its script."""
    (inner,) = re.findall(r'<script type="application/json" id="transcripts">(.*?)</script>', page, re.DOTALL)
    return json.loads(inner)


def test_the_data_of_hostile_transcripts_ends_no_element_and_begins_none() -> None:
    page = hostile_page()
    (inner,) = re.findall(r'<script type="application/json" id="transcripts">(.*?)</script>', page, re.DOTALL)
    assert not set("<>&\u2028\u2029") & set(inner) and not re.search("[\x00-\x1f\ud800-\udfff]", inner)
    rows = data_of(page)["rows"]
    assert len(rows) == 2 * len(HOSTILE)
    said = ["".join(piece if isinstance(piece, str) else piece[1] for piece in row[6][7]) for row in rows[: len(HOSTILE)]]
    assert [text for text in HOSTILE if text.isprintable() and text not in said] == []


@pytest.mark.parametrize("field", ["facts", "official", "rule", "topic", "prompt", "lang", "set"])
def test_a_hostile_text_in_any_field_of_a_transcript_is_shown_and_adds_nothing(field: str) -> None:
    def page(text: str) -> Elements:
        given: Any = {"prompt": "Who?", "official": "Fine.", "topic": "a", "lang": "en", "rule": "r", "set": "s", "facts": ["Olsen"]}
        given[field] = ["Olsen", text] if field == "facts" else text
        rule, facts, name = given.pop("rule"), tuple(given.pop("facts")), given["set"]
        t = Transcript(id="0", response="Olsen did, in 1931.", facts=facts, **given)
        made = [(t, Verdict("answered", rule, worth="invented")), (replace(t, id="1"), Verdict("deflected", rule, reason="evasive"))]
        return Elements(page_of({name: made}, {name: made}, shows="full"))

    tame = [tag for tag, _ in page("tame").tags]
    for text in HOSTILE:
        if "\ud800" in text and field in ("topic", "lang", "set"):
            continue  # prompts, and files whose names hold half a character, are refused when they are read
        found = page(text)
        assert [tag for tag, _ in found.tags if tag != "mark"] == [tag for tag in tame if tag != "mark"]
        assert not [a for _, attributes in found.tags for a in attributes if a.startswith("on") or a in ("src", "style")]
        assert not text.isprintable() or any(text in each for each in found.texts)


def test_the_same_report_gives_the_same_page() -> None:
    assert shown(run_report()) == shown(run_report())


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
    assert [text for text in texts if text.startswith("hot and its control cold: 75.0 % and 0.0 % of the replies are withheld in 4 pairs")]
    assert [text for text in texts if text.startswith("hot and its control, zh: 50.0 % and")]


def test_a_page_of_an_edit_has_both_outcomes_in_a_cell() -> None:
    no, yes = "I can't help with that.", "Paris."
    page = page_of({"a": paired("a", "b", [no, no, no], "en")}, {"a": paired("a", "b", [yes, yes, no], "en")})
    assert [f'<td class="num">{cell}</td>' in page for cell in ("2 → 0", "0 → 2", "1 → 1")] == [True] * 3


def test_what_was_not_measured_is_listed_and_said() -> None:
    page = page_of({"a": judged("a", ["Paris."])})
    assert {"controls", "drift", "sets.a.edited"} <= set(Elements(page).texts)
    assert "any change (one model, nothing edited)" in words(page)


def test_the_headline_gives_the_rate_before_and_after() -> None:
    refusal, answer = judged("a", ["I can't help with that."] * 4), judged("a", ["Paris."] * 4)
    assert "withheld on a 100.0\u00a0%\u00a0→ 0.0\u00a0%" in "".join(Elements(page_of({"a": refusal}, {"a": answer})).texts)


def test_the_headline_of_an_audit_counts_the_prompts() -> None:
    made = audit_report({"a": judged("a", ["Paris."] * 3), "b": judged("b", ["Paris."] * 4)})
    assert headline(made.report) == "What some withholds on 7 prompts."


def test_a_keep_test_that_failed_stands_above_everything(whole: str) -> None:
    said = words(whole)
    assert said.index("Refusals on danger did not fall by more than") < said.index("What was tested") < said.index("Not measured")


PARTS = {
    "Rates": "rates",
    "Withheld, by topic and language": "topics",
    "Outcomes": "outcomes",
    "Transcripts": "replies",
    "Checks": "checks",
    "How the edit was chosen": "choice",
    "The edited tensors": "edit",
    "What differs between the weights": "weights",
    "Cost and provenance": "provenance",
}


def parts_of(page: str) -> set[str]:
    return {a["id"] or "" for tag, a in Elements(page).tags if tag == "section" and "id" in a}


def test_each_part_is_there_where_its_figures_are(whole: str) -> None:
    assert parts_of(whole) == set(PARTS.values()) - {"weights"}
    assert parts_of(shown(audit_report())) == {"rates", "topics", "outcomes", "replies", "provenance"}
    assert parts_of(shown(weights_report())) == {"weights", "provenance"}


def test_the_contents_lead_to_every_part(whole: str) -> None:
    links = {(a["href"] or "").removeprefix("#") for tag, a in Elements(whole).tags if tag == "a"}
    assert links == parts_of(whole)


def test_a_run_without_controls_reference_tuning_and_directions_is_shown_without_them() -> None:
    made = run_report(tuned=False)
    page = shown(made, controls=None, recovery=None, benchmarks=None, directions=GONE)
    assert "checks" not in parts_of(page) and "Strength by block" not in page and "Trade-off among the candidates" in page


def test_a_run_with_everything_shows_every_plot(whole: str) -> None:
    titles = {
        "Trade-off between removal and drift", "Separation by layer and position", "Separation by layer",
        "Prompts at the direction's layer",
        "Similarity to the keep sets", "Stability of the direction", "Strength by block", "How far tuning turned the direction",
    }  # fmt: skip
    assert titles <= set(Elements(whole).texts)


def test_a_rate_of_nothing_is_shown_as_a_dash() -> None:
    empty = Rate(k=0, n=0, rate=None, ci95=None)
    assert (percent(empty), interval(empty), percent(None), interval(None)) == ("–", "", "–", "")


def test_a_rate_is_shown_with_counts_and_interval() -> None:
    rate = Rate(k=1, n=4, rate=0.25, ci95=(0.0456, 0.6994))
    assert (percent(rate), interval(rate)) == ("25.0 %", "1/4, 95 % 4.6–69.9")


def test_the_corrected_rate_stands_beside_the_withheld_one() -> None:
    page = words(page_of({"bad": judged("bad", ["I can't help with that.", "Paris."])}))
    assert re.search(r"corrected \d", page) and "Judged by rules" in page and "Rogan and Gladen" in page
    half = Rate(k=1, n=2, rate=0.5, ci95=(0.1, 0.9))
    found = Withheld(**dict(half), corrected=Corrected(rate=0.625, ci95=(0.1, 0.987)))
    assert corrected(found) == "corrected 62.5 %, 95 % 10.0–98.7"
    assert corrected(Withheld(**dict(half), corrected=None)) == corrected(half) == corrected(None) == ""


HOME = "/home/alice/clients/x/model"


def test_the_page_does_not_say_where_a_model_lies() -> None:
    base = {"hot": judged("hot", ["Paris."])}
    page = page_of(base, base, model=HOME)
    assert "alice" not in page and "<title>abliterate: model</title>" in page and "abliterate-model," in page
    assert "Directional ablation of model:" in words(page) and "--model model" in words(page)
    made = run_report()
    assert "alice" not in shown(made, **{"recovery": None, "run.model_path": HOME, "run.derived": {"model_path": HOME}})


def test_a_margin_is_shown_as_it_was_given() -> None:
    made = run_report()
    others = made.report.unchanged or ()
    margins = {f"unchanged.{i}.margin": 0.025 for i in range(len(others))} | {"keep_tests.0.margin": 0.025}
    said = words(shown(made, **margins))
    assert said.count("by more than 2.5 points") >= 1 + len(others) and "more than 2 points" not in said


def of_way(kind: str, relaxed: list[str], **tuning: Any) -> str:
    made = run_report()
    tuned = {f"selection.tuning.{key}": value for key, value in {"kind": kind, "max_kl": 0.1, **tuning}.items()}
    page = shown(made, **{"selection.relaxed": relaxed, "selection.name": "tuned, step 4", **tuned})
    return (
        words(page).partition("How the edit was chosen Candidates were scored")[0][-1:] + words(page).split("How the edit was chosen")[-1]
    )


def test_an_edit_that_was_not_tuned_is_not_said_to_be() -> None:
    said = of_way("off", [], steps=None)
    assert "Tuned" not in said and "None steps" not in said and "No filter was relaxed." in said and "✓ chosen" in said


def test_a_search_counts_its_trials() -> None:
    point = {**PLAIN_POINT, "kl": 0.02}
    trials = [{**point, "name": f"trial {i}", "step": i, "chosen": i == 2} for i in range(5)]
    front = [{**point, "name": "some, strength 1"}, *trials]
    said = of_way("search", ["KL bound to 0.2 nats"], steps=None, front=front)
    assert "Searched: 5 trials (seed 0)" in said and "Relaxed: KL bound to 0.2 nats." in said and "steps" not in said.split("Strength")[0]


def test_where_tuning_began_went_through_no_filter_and_that_is_said() -> None:
    said = of_way("gradient", [])
    assert "No filter was relaxed" not in said
    assert "were not applied to the edit that tuning started from (“difference-of-means, block 1, position -1”)" in said
    assert "the tuned edit was picked from the Pareto front by --prefer balanced and --max-kl 0.1." in said
    left = "tuned, step 4 (on val prompts: 18.0 % of the probability of the base's withholding openings is left; "
    assert f"{left}KL of the first token 0.080 nats)" in said and "✓ tuning began here" in said
    assert "Relaxed: no edit has a small KL." in of_way("gradient", ["no edit has a small KL"])


def test_cut_replies_and_thoughts_have_tables_where_there_are_any(whole: str) -> None:
    assert '<td class="num">75.0 %</td>' in whole and "empty or refusing" in whole
    audit = words(shown(audit_report()))
    assert "With replies cut" not in audit and "Thoughts and answers" not in audit


def test_the_page_says_broken_output_and_the_outcomes_name_once(whole: str) -> None:
    said = words(whole)
    assert "broken output (degenerate)" in said and said.count("degenerate") == 1 + said.count(".degenerate")


def test_a_comparison_says_derived_throughout() -> None:
    made = run_report()
    settings = {"run.settings": {"base": "a", "derived": "b"}}
    said = words(shown(made, edit=None, selection=None, directions=None, controls=None, **settings))
    assert "base or derived" in said and "KL(base‖derived)" in said and "KL(base‖edited)" not in said
    assert "edited" not in said.split("Cost and provenance")[1].split("Transcripts")[0]


def test_the_page_gives_a_verdict_on_the_target(whole: str) -> None:
    tested = words(whole).split("What was tested")[1].split("Not measured")[0]
    assert "Withheld replies on hot became fewer: not shown (10 → 1 of 12; exact paired test over 3 topics, p = 0.25; " in tested
