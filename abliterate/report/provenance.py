"""Where the figures of a report come from: the command, what it cost, how to cite it, and what was not measured."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any, Literal

from abliterate.config import AuditConfig, CompareConfig, Config, RunConfig
from abliterate.model.source import CHECKPOINT
from abliterate.report.without_paths import as_path, is_path

Kind = Literal["run", "audit", "compare"]
_CONFIGS: dict[Kind, type[Config]] = {"run": RunConfig, "audit": AuditConfig, "compare": CompareConfig}
_IN_WORDS = {
    "drift": "how far the model moved on harmless prompts (drift)",
    "controls": "edits along random directions, as controls",
    "recovery": "how close the model comes to a reference model",
    "benchmarks": "public benchmarks",
    "keep_test": "whether other refusals stay (no keep set was given)",
    "run.model_hashes": "the model's weights (a server doesn't show them)",
}


def kind(run: Mapping[str, Any]) -> Kind:
    """Which command made a run folder."""
    settings = run["settings"]
    return "compare" if "derived" in settings else "audit" if "prompts" in settings else "run"


def after(report: Mapping[str, Any]) -> str:
    """The name of a report's second model: edited, or derived if two models were only compared."""
    return "derived" if kind(report["run"]) == "compare" else "edited"


def command(run: Mapping[str, Any]) -> str:
    """The command line that repeats the run: every setting that differs from its default."""
    which = kind(run)
    fields = _CONFIGS[which].model_fields
    words = ["abliterate", which]
    for key, value in run["settings"].items():
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


def cost(found: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Stages with their seconds and their share of the longest, the sum, and peak memory in bytes; None if nothing is known."""
    if not found or not found["seconds"]:
        return None
    longest = max(found["seconds"].values()) or 1.0
    stages = [{"name": name, "seconds": s, "share": 100 * s / longest} for name, s in found["seconds"].items()]
    return {"stages": stages, "sum": sum(found["seconds"].values()), "peak": found["peak_rss_bytes"]}


def missing(report: Mapping[str, Any]) -> list[str]:
    """What was not measured, in words, as far as a reader would look for it. The report lists every missing figure by its path."""
    paths = set(report["not_measured"])
    asked = bool(report["sets"])
    edited = report["edit"] is not None or any(entry["edited"] is not None for entry in report["sets"].values())
    only_after = ("drift", "controls", "recovery", "keep_test")
    said = [words for path, words in _IN_WORDS.items() if path in paths and (edited or path not in only_after)]
    facts = [name for name in report["sets"] if f"sets.{name}.base.substance" in paths]
    if facts:
        said.append(f"whether answers contain facts ({', '.join(facts)}: the prompts list no facts)")
    if not asked:
        said.insert(0, "what the models reply (nothing was asked)")
    elif not edited:
        said.insert(0, "any change (one model, nothing edited)")
    return said


def citation(report: Mapping[str, Any]) -> dict[str, str]:
    """How to cite these figures, and the method, as BibTeX."""
    run = report["run"]
    key = re.sub(r"[^a-z0-9]+", "", _sides(run)[-1].lower()) or "model"
    version = run["abliterate"]
    figures = (
        f"@misc{{abliterate-{key},\n"
        f"  title = {{Refusals of {_tex(model_name(run))}: a report of abliterate {version}}},\n"
        f"  note = {{report.json, schema {report.get('schema', 'unknown')}; it holds the hashes of model and prompts}}\n}}"
    )
    method = (
        "@inproceedings{arditi2024refusal,\n"
        "  title = {Refusal in Language Models Is Mediated by a Single Direction},\n"
        "  author = {Arditi, Andy and Obeso, Oscar and Syed, Aaquib and Paleka, Daniel and Panickssery, Nina and Gurnee, Wes and "
        "Nanda, Neel},\n"
        "  booktitle = {Advances in Neural Information Processing Systems},\n"
        "  year = {2024},\n  eprint = {2406.11717},\n  archivePrefix = {arXiv}\n}"
    )
    return {"figures": figures, "method": method}


def model_name(run: Mapping[str, Any]) -> str:
    """The model's name, or both names of a comparison: a Hub id, a short name as given, a folder's name (see ``folder_name``), or a
    server's name for a model that is only there."""
    return " against ".join(reversed(_sides(run)))


def _sides(run: Mapping[str, Any]) -> list[str]:
    """The model's name, or the names of a comparison's base and derived model."""
    settings, engines = run["settings"], run.get("resolved", {}).get("engines", {})
    served = [engines.get(which, {}).get("model") for which in ("base", "edited")]
    if "derived" in settings:
        return [_called(settings["base"], run, served[0]), _called(settings["derived"], run.get("derived") or {}, served[1])]
    return [_called(settings["model"], run, served[0])]


def _called(given: Any, model: Mapping[str, Any], served: str | None) -> str:
    """``model``: its entry in run.json; ``served``: a server's name for it."""
    path = model.get("model_path")
    name = str(served if served and path is None else given)
    if model.get("hub_id"):
        return str(model["hub_id"])
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
