"""Replace paths and addresses in a report by bare names, to keep private where folders, files and servers are."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath, PureWindowsPath
from typing import Any

from abliterate.config.recorded import named_by
from abliterate.runs.document import RunRecord

HUB_ID = re.compile(r"\w[\w.-]*/[\w.-]+")
_WINDOWS = re.compile(r"[A-Za-z]:[\\/]|\\\\")


def without_paths(run: RunRecord) -> RunRecord:
    """run.json with every path and URL, under any key, replaced by a bare name.

    Models from the Hub are named by their ids, the base with its revision.
    """
    settings = {key: _hub_ids(run).get(key) or _named(key, value) for key, value in run.settings.items()}
    if run.hub_id and run.revision:
        settings["revision"] = run.revision
    return RunRecord.model_validate({**_plain(run.document()), "settings": settings})


def _hub_ids(run: RunRecord) -> dict[str, str | None]:
    """The models' Hub ids by the settings that name them; None for models from elsewhere."""
    others = {"derived": run.derived, "reference": run.reference}
    return {"model": run.hub_id, "base": run.hub_id, **{which: other.hub_id if other else None for which, other in others.items()}}


def said_without_paths(text: str, run: RunRecord) -> str:
    """A text about a run, such as an error message, with the paths and URLs that run.json knows replaced by names."""
    known = {place: name for key, value in run.settings.items() for place, name in _places(key, value)}
    known |= dict(_places("", {key: value for key, value in run.document().items() if key != "settings"}))
    for place in sorted(known, key=len, reverse=True):
        text = text.replace(place, known[place])
    return text


def judge_without_paths(name: str) -> str:
    """A judge's name without its server's address or its folder's path; a classifier from the Hub keeps its id."""
    kind, _, given = name.partition(":")
    if kind == "chat":
        _, mark, model = given.partition("#")
        return f"chat:SERVER{mark}{_named('judge', model)}"
    if kind == "classifier" and (not HUB_ID.fullmatch(given) or Path(given).is_dir()):
        return f"classifier:{_named('model', given)}"
    return name


def _plain(value: Any) -> Any:
    """A value outside the settings, with every path and URL in it replaced by a name."""
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    return _named("", value)


def _places(key: str, value: Any) -> Iterator[tuple[str, str]]:
    """Every path and URL inside a value, with its name."""
    if isinstance(value, Mapping):
        for inner in value.values():
            yield from _places("", inner)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _places(key, each)
    elif isinstance(value, str) and (name := _named(key, value)) != value:
        yield value, name


def _named(key: str, value: Any) -> Any:
    """A setting's value as a bare name: a URL becomes a placeholder, a path its last part."""
    if isinstance(value, list | tuple):
        return [_named(key, each) for each in value]
    if not isinstance(value, str):
        return value
    if "://" in value:
        return "DATABASE" if key == "study" else "SERVER"
    if value.startswith("hf:"):
        dataset, colon, rest = value.removeprefix("hf:").partition(":")
        return f"hf:{dataset if HUB_ID.fullmatch(dataset) else Path(dataset).name}{colon}{rest}"
    names = named_by(key)
    # A served model's name that looks like a Hub id is no path; other settings that name something may hold one even if it looks like that.
    if not (is_path(value) or (names is not None and (names != "served" or not HUB_ID.fullmatch(value)))):
        return value
    name = as_path(value).name
    return name if name.strip("~.") else key.upper()


def is_path(text: str) -> bool:
    """Whether a text begins like a path of this or another operating system."""
    return text.startswith(("/", "~", ".")) or _WINDOWS.match(text) is not None


def as_path(text: str) -> PurePath:
    """The path object for a path of any operating system."""
    return PureWindowsPath(text) if _WINDOWS.match(text) else Path(text)
