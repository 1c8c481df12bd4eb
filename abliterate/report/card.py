"""The derived checkpoint's README.md (model card): what was removed, kept, measured and not measured; licence; how to reproduce it."""

from __future__ import annotations

import re
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from jinja2 import Environment, PackageLoader, StrictUndefined

from abliterate import __version__
from abliterate.checkpoint.records import NO_LICENCE, Licence, Proof
from abliterate.measures.parts.moved import Drift
from abliterate.measures.parts.paired import Clusters
from abliterate.outcomes.worth.records import WORTHS
from abliterate.report import claims, provenance, sentences
from abliterate.report.first import first_screen
from abliterate.report.licences import UNKNOWN, displayed, names_of, notices, terms_of
from abliterate.report.model_index import eval_results
from abliterate.report.numbers import corrected, interval, percent, withheld
from abliterate.report.tree.report import Report
from abliterate.report.without_paths import HUB_ID, judge_without_paths, without_paths
from abliterate.runs.document import RunRecord

_TAGS = ("abliterated", "directional-ablation", "abliterate")
_WEIGHTS = (".safetensors",)


def model_card(proof: Proof, report: Report | None) -> str:
    """Markdown from the proof and, if there is one, the report. The front matter follows the Hub's format, with the ``model-index``."""
    base, licence = proof.base_model, proof.licence
    terms = terms_of(licence, base)
    name = _called(base, report)
    first = first_screen(report) if report else None
    body = (
        _environment()
        .get_template("card.md.jinja2")
        .render(
            proof=proof,
            name=name,
            made_from=_made_from(base, licence),
            share=_share(proof),
            alpha=_alpha(proof),
            picked=first.picked if first else None,
            rates=[row for row in first.rows if row.lang is None] if first else [],
            target=[*sentences.not_judged(report), *(found.sentence() for found in first.targets)] if report and first else [],
            worth=first.worth if first else [],
            report=report,
            kept=list(zip(report.keep_tests, first.keeps, strict=True)) if report and first else [],
            version=proof.abliterate or __version__,
            hub_id=_hub_id(base) or _hub_id(name),
            revision=proof.base_revision,
            licences=names_of(licence) or [UNKNOWN],
            licence=licence or NO_LICENCE,
            terms=terms,
            displayed=displayed(terms),
            notices=notices(terms),
            controls=list(sentences.controls(report)) if report else [],
            recovery=list(sentences.recovery(report)) if report else [],
            missing=first.missing if first else [],
            command=provenance.command(without_paths(report.run)) if report else None,
            pinned=f" --revision {code(proof.base_revision)}" if _hub_id(base) and proof.base_revision else "",
            judge=judge_without_paths(report.judge.name) if report and report.judge else None,
            hashes=_weights_of(report.run) if report else {},
        )
    )
    return str(ModelCard(f"---\n{_data(base, report, licence).to_yaml()}\n---\n\n{body.strip()}\n"))


def _data(base: str, report: Report | None, licence: Licence | None) -> ModelCardData:
    """The front matter."""
    ids = list(licence.ids) if licence else []
    results = eval_results(report) if report else []
    named: dict[str, Any] = {"eval_results": results, "model_name": f"{_flat(base).split('/')[-1]}-abliterated"} if results else {}
    hub_id = _hub_id(base)
    related: dict[str, Any] = {"base_model": hub_id, "base_model_relation": "finetune"} if hub_id else {}
    return ModelCardData(
        license=(ids[0] if len(ids) == 1 else ids) or UNKNOWN,  # type: ignore[arg-type]  # the Hub takes several
        license_name=licence.name if licence else None,
        license_link=licence.link if licence else None,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=list(_TAGS),
        **related,
        **named,
    )


def _called(base: str, report: Report | None) -> str:
    """The base's name. A folder is named as on the page and in the terminal if the report's run records its path."""
    return provenance.model_name(report.run) if report and not _hub_id(base) and report.run.model_path else base


def _made_from(base: str, licence: Licence | None) -> list[str]:
    """The base models that the card in a local base's folder names, if they are Hub ids."""
    return [] if _hub_id(base) else [each for each in (licence or NO_LICENCE).bases if _hub_id(each)]


def _strengths(proof: Proof) -> list[float]:
    return [float(tensor.strength) for tensor in proof.tensors]


def _share(proof: Proof) -> str | None:
    """The share of the component that is removed, in words; None if it is all removed or nothing is known about it."""
    strengths = _strengths(proof)
    if not strengths or min(strengths) == max(strengths) == 1:
        return None
    low, high = (_percent(value) for value in (min(strengths), max(strengths)))
    return low if low == high else f"{low} to {high}"


def _percent(share: float) -> str:
    """A share in per cent, with three digits near 0 and 1, so that nearly nothing does not read as 0 % or nearly all as 100 %."""
    return f"{100 * share:.0f} %" if 0.01 <= share < 0.99 or share == 1 else f"{100 * share:.3g} %"


def _alpha(proof: Proof) -> str | None:
    """The strength α of the formula, or its range over the tensors."""
    strengths = _strengths(proof)
    if not strengths:
        return None
    low, high = min(strengths), max(strengths)
    return f"{low:.3g} for every tensor" if low == high else f"{low:.3g} to {high:.3g}, depending on the tensor"


def _hub_id(base: str) -> str | None:
    return base if HUB_ID.fullmatch(base) else None


def _weights_of(run: RunRecord) -> dict[str, str]:
    """BLAKE3 hashes of the base's shards."""
    return {name: digest for name, digest in (run.model_hashes or {}).items() if name.endswith(_WEIGHTS)}


def _environment() -> Environment:
    made = Environment(
        loader=PackageLoader("abliterate.report"),
        autoescape=False,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["percent"] = percent
    made.filters["interval"] = interval
    made.filters["corrected"] = corrected
    made.filters["line"] = one_line
    made.filters["code"] = code
    made.filters["nats"] = nats
    made.filters["counted"] = _counted
    made.globals["withheld"] = withheld()
    made.globals["worths"] = WORTHS
    return made


def _counted(groups: Clusters) -> str:
    return claims.counted(groups.count, groups.unit)


def nats(drift: Drift, key: str) -> str:
    """A drift figure with its interval."""
    found = drift.mean(key)
    if found is None:
        return "not measured"
    value, (low, high) = found
    return f"{value:.3f} (95 % {low:.3f}–{high:.3f})"


def _flat(text: str) -> str:
    return " ".join(text.split())


def one_line(text: object) -> str:
    """A user's text as one line of Markdown with all markup escaped."""
    flat = _flat(str(text)).replace("`", "'").replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([\\\[\]*_!|~#])", r"\\\1", flat)


def code(text: object) -> str:
    """A user's text for a one-line code span, harmless even in a renderer without code spans."""
    return _flat(str(text)).replace("`", "'").replace("<", "‹").replace("](", "] (")
