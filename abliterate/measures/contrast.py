"""Compare a sensitive set with its control, pair by pair: the same questions about something that no model withholds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations

from abliterate.measures.clusters import cluster_difference, too_few
from abliterate.measures.parts.contrast import AgainstControl, Contrast, Contrasts
from abliterate.measures.statistics import discordant
from abliterate.measures.summary import Judged, clustering, rate, withheld
from abliterate.outcomes.records import NOT_JUDGED
from abliterate.prompts.read import TWINS

CONTROL_ROLES = ("baseline", "harmless")

Links = Sequence[tuple[int, int]]  # the indices of a sensitive prompt and of its control in their sets


def against_control(
    roles: Mapping[str, str], base: Mapping[str, Judged], edited: Mapping[str, Judged] | None
) -> list[AgainstControl] | None:
    """For every two sets whose prompts are paired: is the sensitive set withheld more often? None if no two sets are paired.

    Bundled sets have known controls. Otherwise, if only one of the two sets has a control role, it is the control; else the second is.
    """
    found = []
    for name, control in _oriented(roles):
        links = [link for link in _links(base[name], base[control]) if _is_judged(link, name, control, (base, edited))]
        if not links:
            continue
        before = (base[name], base[control])
        after = None if edited is None else (edited[name], edited[control])
        both, langs = _compared(before, after, links), sorted({base[name][i][0].lang for i, _ in links})
        parts = {lang: [(i, j) for i, j in links if base[name][i][0].lang == lang] for lang in langs}
        found.append(
            AgainstControl(
                set=name,
                control=control,
                n_pairs=both.n_pairs,
                base=both.base,
                edited=both.edited,
                by_lang={lang: _compared(before, after, part) for lang, part in parts.items()} if len(langs) > 1 else None,
            )
        )
    return found or None


def control_sets(roles: Mapping[str, str], base: Mapping[str, Judged]) -> set[str]:
    """The sets of control questions: bundled ones, and those whose prompts are paired with a sensitive set's."""
    paired = {control for name, control in _oriented(roles) if _links(base[name], base[control])}
    return paired | {name for name in roles if name in TWINS.values()}


def _oriented(roles: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    for one, other in combinations(roles, 2):
        turned = roles[one] in CONTROL_ROLES and roles[other] not in CONTROL_ROLES
        if TWINS.get(other) == one or (turned and TWINS.get(one) != other):
            yield other, one
        else:
            yield one, other


def _links(sensitive: Judged, control: Judged) -> Links:
    """Each sensitive prompt with its control. Either of the two may name the other."""
    places = {t.id: j for j, (t, _) in enumerate(control)}
    named = {t.pair: j for j, (t, _) in enumerate(control) if t.pair}
    found = ((i, places.get(t.pair or "", named.get(t.id))) for i, (t, _) in enumerate(sensitive))
    return [(i, j) for i, j in found if j is not None]


def _is_judged(link: tuple[int, int], name: str, control: str, sides: Sequence[Mapping[str, Judged] | None]) -> bool:
    """Whether both replies of a pair are judged for every model, so that a pair is in all figures or in none."""
    there = [side for side in sides if side is not None]
    return not any(NOT_JUDGED in (side[name][link[0]][1].outcome, side[control][link[1]][1].outcome) for side in there)


def _compared(base: tuple[Judged, Judged], edited: tuple[Judged, Judged] | None, links: Links) -> Contrasts:
    return Contrasts(n_pairs=len(links), base=_tested(*base, links), edited=None if edited is None else _tested(*edited, links))


def _tested(sensitive: Judged, control: Judged, links: Links) -> Contrast:
    """For one model: the withheld rates of both sets, the exact test of the pairs that differ, and the difference with its interval.

    Pairs of one topic (of one category if there are no topics) are tested and resampled together. Without either, pairs are independent.
    """
    first = [withheld(sensitive[i][1]) for i, _ in links]
    second = [withheld(control[j][1]) for _, j in links]
    only_first, only_second = discordant(first, second)
    groups = clustering([sensitive[i] for i, _ in links])
    count, n = groups.count, len(links)
    ci95 = None
    if count > 1:
        interval = cluster_difference(first, second, groups.names)
        ci95 = (interval.low, interval.high)
    return Contrast(
        sensitive=rate(sum(first), n),
        control=rate(sum(second), n),
        sensitive_only=only_first,
        control_only=only_second,
        mcnemar_p=groups.pairs(first, second).p_value(),
        difference=(sum(first) - sum(second)) / n,
        ci95=ci95,
        clusters=count,
        unit=groups.unit,
        warning=too_few(count),
    )
