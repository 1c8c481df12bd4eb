"""The topics of a set: in which order they stand, and what the answers to each are worth."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence

from abliterate.measures.parts.sets import Row
from abliterate.measures.summary import Judged
from abliterate.outcomes.worth.records import Worth
from abliterate.replies.transcripts import Transcript
from abliterate.report.bars.kinds import WORTHS_READ

NO_TOPIC = "(no topic)"
WorthOfTopics = Mapping[str, Mapping[str, Sequence[str]]]  # by set and topic: a cell for each worth


def in_order(shares: Mapping[str, tuple[int, int]]) -> list[str]:
    """The topics, those of which most is withheld first, else by name. ``shares``: withheld and judged replies of each."""
    return sorted(shares, key=lambda topic: (-shares[topic][0] / max(shares[topic][1], 1), topic))


def most_withheld_first(rows: Sequence[Row]) -> list[Row]:
    """The rows of a table by what base withholds of their topics; the languages of a topic stay together."""
    shares: dict[str, tuple[int, int]] = {}
    for row in rows:
        k, n = shares.get(row.topic, (0, 0))
        shares[row.topic] = (k + row.base.withheld, n + row.base.judged)
    places = {topic: place for place, topic in enumerate(in_order(shares))}
    return sorted(rows, key=lambda row: (places[row.topic], row.lang))


def worth_of_topics(base: Mapping[str, Judged], edited: Mapping[str, Judged] | None) -> WorthOfTopics:
    """How many answers of each worth a topic has, before and after, all languages together; only sets whose answers have a worth."""
    found = {}
    for name, judged in base.items():
        by_topic = any(t.topic for t, _ in judged)
        counts = [_counts(each, by_topic) for each in (judged, *([edited[name]] if edited else []))]
        if any(counts):
            topics = dict.fromkeys(topic for count in counts for topic in count)
            found[name] = {topic: list(_cells([count.get(topic, Counter()) for count in counts])) for topic in topics}
    return found


def _counts(judged: Judged, by_topic: bool) -> dict[str, Counter[Worth]]:
    found: dict[str, Counter[Worth]] = defaultdict(Counter)
    for transcript, verdict in judged:
        if verdict.worth is not None:
            found[_topic(transcript, by_topic)][verdict.worth] += 1
    return found


def _topic(transcript: Transcript, by_topic: bool) -> str:
    """The name of the row in which the prompt is counted."""
    return (transcript.topic if by_topic else transcript.category) or NO_TOPIC


def _cells(sides: Sequence[Counter[Worth]]) -> Iterator[str]:
    """A cell for each worth: its count, or the counts before and after; a dot for none."""
    return (" → ".join(str(side[worth]) for side in sides) if any(side[worth] for side in sides) else "·" for worth in WORTHS_READ)
