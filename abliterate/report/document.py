"""The content of report.json (schema abliterate/report/1)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from abliterate.checkpoint.records import EditSummary
from abliterate.choice.records import Selection
from abliterate.files import Interval
from abliterate.measures.contrast import against_control
from abliterate.measures.deliberation import thought_by_answer
from abliterate.measures.detector import CANNED, NATURAL, Kind
from abliterate.measures.elicitation.figures import elicitation
from abliterate.measures.parts.consistency import Consistency
from abliterate.measures.parts.elicitation import ElicitedScores
from abliterate.measures.parts.moved import Controls, Drift, DriftValues, Recovery
from abliterate.measures.parts.sets import KEEP, Side
from abliterate.measures.statistics import bootstrap_mean
from abliterate.measures.summary import Judged, answered_ids, by_topic, keep_test, set_entry, table, unchanged
from abliterate.model.chat.parts import split_thought
from abliterate.model.fixtures.refuser import REFUSERS
from abliterate.outcomes.deciding import Span, Why, deciding_words
from abliterate.outcomes.records import Outcome
from abliterate.outcomes.verdict import Verdict
from abliterate.replies.transcripts import Transcript
from abliterate.report.tree.report import SCHEMA, Report
from abliterate.runs.document import Cost, RunRecord

_ROWS = ("tables.", "against_control[")  # paths of lists in which every row would repeat that nothing was edited


def report_document(
    run: RunRecord,
    roles: Mapping[str, str],
    base: Mapping[str, Judged],
    edited: Mapping[str, Judged] | None,
    drift: DriftValues | None,
    selection: Selection | None,
    edit: EditSummary | None,
    margin: float,
    controls: Controls | None = None,
    recovery: Recovery | None = None,
    elicited: Mapping[Side, ElicitedScores] | None = None,
    consistency: Consistency | None = None,
) -> Report:
    """Everything measured, still without its cost. ``roles`` maps each set's name to its role, in the order of the report. ``elicited``:
    the scores of known and false facts by model, if there are any."""
    keeps = [name for name, role in roles.items() if role == KEEP] if edited is not None else []
    tests = [keep_test(name, base[name], edited[name], margin) for name in keeps] if edited is not None else []
    controlled, unmoved = against_control(roles, base, edited), None if edited is None else unchanged(roles, base, edited, margin)
    report = Report(
        format=SCHEMA,
        run=run,
        sets={name: set_entry(role, base[name], None if edited is None else edited[name], kind_of(run)) for name, role in roles.items()},
        by_topic={name: by_topic(base[name], None if edited is None else edited[name]) for name in roles},
        tables={name: tuple(table(base[name], None if edited is None else edited[name])) for name in roles},
        against_control=None if controlled is None else tuple(controlled),
        consistency=consistency,
        thought_by_answer=thought_by_answer(base, edited),
        unchanged=None if unmoved is None else tuple(unmoved),
        keep_test=tests[0] if tests else None,
        keep_tests=tuple(tests),
        controls=controls,
        recovery=recovery,
        elicitation=elicitation(roles, base, elicited) if elicited else None,
        drift=_drift(drift, base) if drift else None,
        benchmarks=None,
        selection=selection,
        edit=edit,
        not_measured=(),
        cost=Cost(seconds={}, peak_rss_bytes=0),
    )
    return with_missing(report)


def kind_of(run: RunRecord) -> Kind:
    """How the run's model refuses: in few lines if it is one of this project's fixtures, which only their short names tell."""
    return CANNED if run.settings.get("model", run.settings.get("base")) in REFUSERS else NATURAL


def _drift(drift: DriftValues, base: Mapping[str, Judged]) -> Drift:
    """Means over prompts or texts, in nats; those along texts are per token. ``answered``: only prompts that base does not withhold."""
    answered = answered_ids(base.get(drift.set, []))
    found: dict[str, float | Interval | None] = {}
    for name in ("kl_first_token", "kl_sequence"):
        values = drift.values(name) or [None] * len(drift.ids)
        kept = [value for i, value in zip(drift.ids, values, strict=True) if i in answered]
        found |= {**_mean(name, values), **_mean(f"{name}_answered", kept)}
    for name in ("ce_base", "ce_edited", "own_base", "own_edited"):
        found[name] = _mean(name, drift.values(name))[name]
    for name in ("suppression_base", "suppression_edited"):
        if drift.values(name):  # only for models that think
            found[name] = _mean(name, drift.values(name))[name]
    counts = {"n": len(drift.ids), "n_answered": sum(i in answered for i in drift.ids)}
    return Drift.model_validate({"set": drift.set, **counts, **found})


def _mean(name: str, values: Sequence[float | None]) -> dict[str, float | Interval | None]:
    """A mean with its bootstrap interval; null without values."""
    there = [value for value in values if value is not None]
    if not there:
        return {name: None, f"{name}_ci95": None}
    return {name: sum(there) / len(there), f"{name}_ci95": bootstrap_mean(there)}


def with_missing(report: Report) -> Report:
    """The report with the list of what this run did not measure."""
    return report.model_copy(update={"not_measured": tuple(not_measured(report))})


def not_measured(report: Report) -> list[str]:
    """Paths of everything that the schema has a place for but this run did not measure: every null, except those that repeat another and
    warnings that aren't needed.

    Of ``run``, only the hashes of the weights are listed, if they are unknown because only a server has the weights.
    """
    measured = {key: value for key, value in report.document().items() if key not in ("run", "not_measured")}
    unknown = ["run.model_hashes"] if report.run.model_hashes is None else []
    nulls = [path for path in _nulls(measured, "") if not (path.startswith(_ROWS) and path.endswith(".edited"))]
    return [*nulls, *unknown]


def _nulls(value: object, path: str) -> Iterator[str]:
    if value is None:
        yield path
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            if key != "warning":
                yield from _nulls(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from _nulls(inner, f"{path}[{number}]")


CUT = " …"


def excerpt(text: str, length: int = 280) -> str:
    """The opening of a reply: enough to see its outcome."""
    return text if len(text) <= length else text[:length].rstrip() + CUT


@dataclass(frozen=True)
class ReplySide:
    """One model's reply as the page shows it. The answer, which decides the verdict, and the thought are texts of their own, so that a long
    thought does not hide the answer; ``thought`` is None if the reply has none. ``words``: those of ``text`` that decided the verdict."""

    thought: str | None
    text: str
    verdict: Verdict
    words: Sequence[Span]

    @property
    def outcome(self) -> Outcome:
        return self.verdict.outcome

    def pieces(self) -> Iterator[tuple[str, Why | None]]:
        """The text in pieces, each with why it decided, or None."""
        at = 0
        for span in self.words:
            yield self.text[at : span.start], None
            yield self.text[span.start : span.end], span.why
            at = span.end
        yield self.text[at:], None

    def cut(self, length: int) -> ReplySide:
        """The first ``length`` characters of the answer, and half as many of the thought."""
        text = excerpt(self.text, length)
        room = len(text) if text == self.text else len(text.removesuffix(CUT))
        words = [replace(span, end=min(span.end, room)) for span in self.words if span.start < room]
        verdict = replace(self.verdict, rule=excerpt(self.verdict.rule, length))
        return ReplySide(self.thought and excerpt(self.thought, length // 2), text, verdict, words)


@dataclass(frozen=True)
class ReplyPair:
    """The replies of both models to one prompt of a set; ``edited`` is None if one model was asked. ``facts``, ``official``: what is known
    of the answer."""

    set: str
    prompt: str
    lang: str
    topic: str
    base: ReplySide
    edited: ReplySide | None
    facts: Sequence[str] = ()
    official: str | None = None

    @property
    def sides(self) -> list[ReplySide]:
        return [self.base, *([self.edited] if self.edited else [])]

    def cut(self, length: int) -> ReplyPair:
        """The first ``length`` characters of prompt and replies, and as many of all facts together."""
        facts, left = [], length
        for fact in self.facts:
            if (left := left - len(fact)) >= 0:
                facts.append(fact)
        official = self.official and excerpt(self.official, length)
        edited = self.edited and self.edited.cut(length)
        return replace(self, prompt=excerpt(self.prompt, length), base=self.base.cut(length), edited=edited, facts=facts, official=official)


def pairs_of(base: Mapping[str, Judged], edited: Mapping[str, Judged] | None) -> list[ReplyPair]:
    """Whole replies side by side, set by set, for the page."""
    pairs = []
    for name, judged in base.items():
        others: Sequence[tuple[Transcript, Verdict] | None] = [None] * len(judged) if edited is None else edited[name]
        for (t, v), other in zip(judged, others, strict=True):
            after = _side(*other) if other else None
            pairs.append(ReplyPair(name, t.prompt, t.lang, t.topic or t.category, _side(t, v), after, t.facts, t.official))
    return pairs


def _side(transcript: Transcript, verdict: Verdict) -> ReplySide:
    parts = split_thought(transcript.response, transcript.begins_in_thought)
    thought, text = parts.thought, (transcript.response if parts.thought is None else parts.answer).replace("\r\n", "\n")
    return ReplySide(thought, text, verdict, deciding_words(text, transcript.prompt, verdict, transcript.facts, transcript.official))
