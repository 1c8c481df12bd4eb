"""How consistent each answer is: the support of its claims, and the similarity and entropy of the samples themselves."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations

from abliterate.measures.clustering import Clustering
from abliterate.measures.consistency.claims import Claim, Claims, same, shared, support
from abliterate.measures.summary import Judged
from abliterate.outcomes.verdict import Verdict
from abliterate.replies.transcripts import Transcript

Samples = Mapping[tuple[str, str], Sequence[Transcript]]  # by set and prompt


@dataclass(frozen=True)
class SampledAnswer:
    """A greedy answer whose worth is judged, with the sampled replies to its prompt. ``cluster``: its topic."""

    transcript: Transcript
    verdict: Verdict
    samples: list[Claims]
    cluster: str

    @cached_property
    def supports(self) -> list[tuple[Claim, float]]:
        """Each claim of the greedy answer with its support."""
        return [(claim, support(claim, self.samples)) for claim in Claims(self.transcript).all]

    @cached_property
    def support(self) -> float | None:
        """The mean support of the claims; None if the answer makes none."""
        return _mean([found for _, found in self.supports])

    @cached_property
    def support_of_others(self) -> float | None:
        """The mean support of the claims that are no known facts; None if there are none."""
        return _mean([found for claim, found in self.supports if not claim.known])

    @cached_property
    def similarity(self) -> float | None:
        """The mean over pairs of samples of the claims that they share; None if no pair makes a claim."""
        return _mean([found for one, other in combinations(self.samples, 2) if (found := shared(one, other)) is not None])

    @cached_property
    def entropy(self) -> float | None:
        """Discrete semantic entropy in nats (Farquhar et al. 2024) over clusters of samples that say the same; 0 if all do, ln N if none
        do. None if no sample makes a claim, or if there is one sample."""
        if len(self.samples) < 2 or not any(sample.all for sample in self.samples):
            return None
        clusters: list[list[Claims]] = []
        for sample in self.samples:
            there = next((cluster for cluster in clusters if same(cluster[0], sample)), None)
            if there is None:
                clusters.append([sample])
            else:
                there.append(sample)
        shares = [len(cluster) / len(self.samples) for cluster in clusters]
        return max(0.0, -sum(share * math.log(share) for share in shares))


def sampled_answers(judged: Judged, samples: Samples) -> Iterator[SampledAnswer]:
    """The answers of one set that have a worth, with the samples that answer too: one that declines or breaks off neither supports a claim
    nor speaks against it. Left out if fewer than two of several samples answer."""
    names = Clustering.of([t for t, _ in judged]).names
    for (transcript, verdict), name in zip(judged, names, strict=True):
        if verdict.worth is None:
            continue
        drawn = samples.get((transcript.set, transcript.id), ())
        others = [Claims(other) for other in drawn if other.verdict().outcome == "answered"]
        if len(others) >= min(2, len(drawn)) > 0:
            yield SampledAnswer(transcript, verdict, others, name)


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
