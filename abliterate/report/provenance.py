"""Where the figures of a report come from: the command, what it cost, how to cite it, and what was not measured."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path, PurePath

from abliterate.config import AuditConfig, CompareConfig, Config, RunConfig, is_url
from abliterate.model.source import CHECKPOINT
from abliterate.report.tree.report import Report
from abliterate.report.without_paths import as_path, is_path
from abliterate.runs.document import Cost, Kind, ModelPlace, RunRecord

_CONFIGS: dict[Kind, type[Config]] = {"run": RunConfig, "audit": AuditConfig, "compare": CompareConfig}
_IN_WORDS = {
    "drift": "how far the model moved on harmless prompts (drift)",
    "controls": "edits along random directions, as controls",
    "consistency": "whether sampled replies support the answers (--samples)",
    "elicitation": "whether the model knows the facts that it withholds (--elicit)",
    "recovery": "how close the model comes to a reference model",
    "benchmarks": "public benchmarks",
    "keep_test": "whether other refusals stay (no keep set was given)",
    "run.model_hashes": "the model's weights (a server doesn't show them)",
}


def after(report: Report) -> str:
    """The name of a report's second model: edited, or derived if two models were only compared."""
    return "derived" if report.run.kind == "compare" else "edited"


def command(run: RunRecord) -> str:
    """The command line that repeats the run: every setting that differs from its default."""
    fields = _CONFIGS[run.kind].model_fields
    words = ["abliterate", run.kind]
    for key, value in run.settings.items():
        default = fields[key].get_default() if key in fields else None
        given = list(value) if isinstance(value, list | tuple) else [value]
        if value is None or given == (list(default) if isinstance(default, list | tuple) else [default]):
            continue
        flag = f"--{key.replace('_', '-')}"
        if isinstance(value, bool):
            words.append(flag if value else f"--no-{flag[2:]}")
        elif given:
            words += [flag, *(shlex.quote(_public(str(one))) for one in given)]
    return " ".join([*words, "--out", "RUN"])


def _public(given: str) -> str:
    """A value that is safe to show: a URL without its user and its query, since both may hold passwords."""
    scheme, found, rest = given.partition("://")
    if not found:
        return given
    return f"{scheme}://{re.split(r'[?#]', rest, maxsplit=1)[0].rpartition('@')[2]}"


@dataclass(frozen=True)
class StageCost:
    """A stage with its seconds and its share of the longest stage, in per cent."""

    name: str
    seconds: float
    share: float


def stages(cost: Cost) -> list[StageCost]:
    """The stages of a run; empty if nothing is known."""
    longest = max(cost.seconds.values(), default=0.0) or 1.0
    return [StageCost(name, s, 100 * s / longest) for name, s in cost.seconds.items()]


def missing(report: Report) -> list[str]:
    """What was not measured, in words, as far as a reader would look for it. The report lists every missing figure by its path."""
    paths = set(report.not_measured)
    asked, edited = bool(report.sets), report.two_models
    only_after = ("drift", "controls", "recovery", "keep_test")
    without = set() if edited else set(only_after)
    if all(entry.base.substance is None for entry in report.sets.values()):
        without |= {"consistency", "elicitation"}  # both are about the prompts' facts
    if not _can_elicit(report.run):
        without.add("elicitation")
    said = [words for path, words in _IN_WORDS.items() if path in paths - without]
    facts = [name for name in report.sets if f"sets.{name}.base.substance" in paths]
    if facts:
        said.append(f"whether answers contain the expected facts ({', '.join(facts)}: no prompt names any)")
    if not asked:
        said.insert(0, "what the models reply (nothing was asked)")
    elif not edited:
        said.insert(0, "any change (one model, nothing edited)")
    return said


def _can_elicit(run: RunRecord) -> bool:
    """Whether --elicit could be given: to a command that has it, and for weights at hand."""
    given = [str(run.settings.get(which, "")) for which in ("model", "base", "derived")]
    return "elicit" in _CONFIGS[run.kind].model_fields and not any(map(is_url, given))


@dataclass(frozen=True)
class Citation:
    """How to cite the figures of a report, and the method, as BibTeX."""

    figures: str
    method: str


def citation(report: Report) -> Citation:
    """The citation of these figures."""
    run = report.run
    key = re.sub(r"[^a-z0-9]+", "", _sides(run)[-1].lower()) or "model"
    version = run.abliterate
    figures = (
        f"@misc{{abliterate-{key},\n"
        f"  title = {{Refusals of {_tex(model_name(run))}: a report of abliterate {version}}},\n"
        f"  note = {{report.json, schema {report.format}; it holds the hashes of model and prompts}}\n}}"
    )
    method = (
        "@inproceedings{arditi2024refusal,\n"
        "  title = {Refusal in Language Models Is Mediated by a Single Direction},\n"
        "  author = {Arditi, Andy and Obeso, Oscar and Syed, Aaquib and Paleka, Daniel and Panickssery, Nina and Gurnee, Wes and "
        "Nanda, Neel},\n"
        "  booktitle = {Advances in Neural Information Processing Systems},\n"
        "  year = {2024},\n  eprint = {2406.11717},\n  archivePrefix = {arXiv}\n}"
    )
    return Citation(figures, method)


def model_name(run: RunRecord) -> str:
    """The model's name, or both names of a comparison: a Hub id, a short name as given, a folder's name (see ``folder_name``), or a
    server's name for a model that is only there."""
    return " compared with ".join(reversed(_sides(run)))


def _sides(run: RunRecord) -> list[str]:
    """The model's name, or the names of a comparison's base and derived model."""
    engines = [run.resolved.engine(which) for which in ("base", "edited")]
    served = [engine.model if engine else None for engine in engines]
    if run.kind == "compare":
        return [_called(run.settings["base"], run, served[0]), _called(run.settings["derived"], run.derived, served[1])]
    return [_called(run.settings["model"], run, served[0])]


def _called(given: object, model: RunRecord | ModelPlace | None, served: str | None) -> str:
    """``model``: its entry in run.json; ``served``: a server's name for it."""
    path = model.model_path if model else None
    name = str(served if served and path is None else given)
    if model and model.hub_id:
        return model.hub_id
    if "://" in name:
        return "a model on a server"
    if path is None and not is_path(name):
        return name
    folder = as_path(name if path is None else path)
    plain = "/" not in name and not is_path(name)
    found = folder_name(folder)
    return name if not found or (plain and found == folder.name) else found


def folder_name(folder: PurePath) -> str:
    """The name of a model's folder without its path, which stays private.

    A run's ``checkpoint`` is named after the run's folder, and a snapshot in the Hub's cache after its repository.
    """
    name, above = folder.name, folder.parent
    if above.name == "snapshots" and above.parent.name.startswith("models--"):
        return above.parent.name.removeprefix("models--").replace("--", "/")
    return above.name if name == CHECKPOINT and Path(above / "run.json").is_file() else name


def _tex(text: str) -> str:
    return re.sub(r"([\\{}%$#&_^~])", "", text)
